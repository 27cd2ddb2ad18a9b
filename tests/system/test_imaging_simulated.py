"""From simulated subbands through our converter to an image, against the simulator's truth."""

import pytest

from nightbeam.imaging import ImageOptions, image_ms, judge_image, measure_sources
from nightbeam.simulate import SimulationSpec, plan_simulation, simulate_subbands
from nightbeam.simulate.model import SkySource
from nightbeam.sky import offset_position
from nightbeam.uvh5 import convert_group

pytestmark = pytest.mark.system

OPTIONS = ImageOptions(imsize=512, cell_arcsec=8.0, niter=800)


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """1 Jy near the centre and 2 Jy half a degree to the north-east, seen through the drifting beam."""
    root = tmp_path_factory.mktemp("simulated")
    common = {"antennas": 16, "channels": 4, "gains": False, "noise": "radiometer", "seed": 8}
    centre = plan_simulation(SimulationSpec(sources=0, **common)).groups[0]
    places = [offset_position(centre.ra_deg, centre.dec_deg, d, 45.0) for d in (0.02, 0.5)]
    sources = tuple(
        SkySource(name=f"s{k}", ra_deg=float(ra), dec_deg=float(dec), flux_jy=flux, spectral_index=0.0)
        for k, ((ra, dec), flux) in enumerate(zip(places, (1.0, 2.0), strict=True))
    )
    truth = simulate_subbands(root / "in", SimulationSpec(sources=sources, **common))
    group = truth.groups[0]
    return root, truth, [root / "in" / name for name in group.files]


def image(root, files, name):
    ms = convert_group(files, root / f"{name}.ms", max_workers=1).ms
    return image_ms(ms, root / f"{name}.img", options=OPTIONS, work_dir=root / "scratch")


def test_every_simulated_source_is_where_it_was_put_with_its_flux(observed):
    root, truth, files = observed
    product = image(root, list(reversed(files)), "2025-10-03T11:48:57")
    assert judge_image(product).good
    fits = measure_sources(
        product.fits["image"],
        [(s.ra_deg, s.dec_deg) for s in truth.sources],
        pb=product.fits["pb"],
        names=[s.name for s in truth.sources],
    )
    for source, fit in zip(truth.sources, fits, strict=True):
        assert fit.found, fit.reason
        assert fit.offset_beams < 0.05
        assert fit.integrated_jy == pytest.approx(source.flux_jy, rel=0.05)
    assert fits[1].pb < 0.85
