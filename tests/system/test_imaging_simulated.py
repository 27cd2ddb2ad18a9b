"""From simulated subbands through our converter to an image, against the simulator's truth."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from nightbeam.casa.tables import open_table
from nightbeam.imaging import ImageOptions, image_ms, judge_image, measure_sources
from nightbeam.imaging.visibilities import fingerprint
from nightbeam.simulate import SimulationSpec, plan_simulation, simulate_subbands
from nightbeam.simulate.model import SkySource
from nightbeam.sky import offset_position, separation
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


@pytest.fixture(scope="module")
def products(observed):
    """Of one Measurement Set, by both engines, with the same options."""
    root, _, files = observed
    ms = convert_group(list(reversed(files)), root / "2025-10-03T11:48:57.ms", max_workers=1).ms
    return {engine: image(ms, engine) for engine in ("tclean", "wsclean")}


def image(ms, engine, *, name="", **changed):
    stem = ms.with_name(f"{name or engine}.img")
    return image_ms(ms, stem, options=replace(OPTIONS, engine=engine, **changed), work_dir=ms.parent / "scratch")


def measure(truth, product):
    return measure_sources(
        product.fits["image"],
        [(s.ra_deg, s.dec_deg) for s in truth.sources],
        pb=product.fits["pb"],
        names=[s.name for s in truth.sources],
    )


@pytest.mark.parametrize("engine", ["tclean", "wsclean"])
def test_every_simulated_source_is_where_it_was_put_with_its_flux(observed, products, engine):
    _, truth, _ = observed
    product = products[engine]
    assert judge_image(product).good
    found = measure(truth, product)
    for source, fit in zip(truth.sources, found, strict=True):
        assert fit.found, fit.reason
        assert fit.offset_beams < 0.05
        assert fit.integrated_jy == pytest.approx(source.flux_jy, rel=0.03)
    assert found[1].pb < 0.85


def test_both_engines_see_the_same_sky(observed, products):
    _, truth, _ = observed
    one, other = products["tclean"], products["wsclean"]
    for a, b in zip(measure(truth, one), measure(truth, other), strict=True):
        assert b.integrated_jy == pytest.approx(a.integrated_jy, rel=0.01)
        assert b.peak_jy == pytest.approx(a.peak_jy, rel=0.01)
        apart = 3600.0 * float(separation(a.found_ra_deg, a.found_dec_deg, b.found_ra_deg, b.found_dec_deg))
        assert apart < 0.03 * OPTIONS.cell_arcsec
    assert other.noise_jy == pytest.approx(one.noise_jy, rel=0.1)
    assert other.beam_major_arcsec == pytest.approx(one.beam_major_arcsec, rel=0.03)
    assert other.beam_minor_arcsec == pytest.approx(one.beam_minor_arcsec, rel=0.03)
    assert other.beam_pa_deg == pytest.approx(one.beam_pa_deg, abs=2.0)


def test_both_engines_write_the_same_files_with_the_same_cards(products):
    one, other = products["tclean"], products["wsclean"]
    assert set(one.fits) == set(other.fits)
    for kind in one.fits:
        a, b = fits.getheader(one.fits[kind]), fits.getheader(other.fits[kind])
        for name in (
            "RADESYS",
            "BUNIT",
            "BTYPE",
            "OBJECT",
            "TELESCOP",
            "DATE-OBS",
            "DATE-AVG",
            "TIMESYS",
            "DATACOL",
            "PBMODEL",
        ):
            assert a[name] == b[name], (kind, name)
        for axis in "1234":
            assert (a[f"CTYPE{axis}"], a[f"CUNIT{axis}"]) == (b[f"CTYPE{axis}"], b[f"CUNIT{axis}"])
            assert (a[f"NAXIS{axis}"], a[f"CRPIX{axis}"]) == (b[f"NAXIS{axis}"], b[f"CRPIX{axis}"])
        for name in ("CRVAL1", "CRVAL2", "CDELT1", "CDELT2"):
            assert a[name] == pytest.approx(b[name], abs=1e-9)
        assert a["CRVAL3"] == pytest.approx(b["CRVAL3"], rel=1e-3)  # CASA moves it to the local standard of rest
        assert "EQUINOX" not in b
    assert np.allclose(fits.getdata(one.fits["pb"]), fits.getdata(other.fits["pb"]), atol=1e-6)
    assert fits.getheader(other.path)["IMAGER"] == f"wsclean {other.versions['wsclean']}"
    history = "".join(str(line) for line in fits.getheader(other.path)["HISTORY"])
    assert "nightbeam: wsclean command = 'wsclean -j 1" in history


def test_wsclean_gives_the_same_pixels_again_and_leaves_the_data_alone(products):
    before = fingerprint(products["wsclean"].ms)
    again = image(products["wsclean"].ms, "wsclean", name="again")
    assert fingerprint(again.ms) == before
    for kind, path in again.fits.items():
        assert np.array_equal(fits.getdata(path), fits.getdata(products["wsclean"].fits[kind]), equal_nan=True), kind
    assert list((again.ms.parent / "scratch").iterdir()) == []


def test_wsclean_sees_neither_flagged_nor_weightless_data_nor_autocorrelations(observed, products, tmp_path):
    _, truth, _ = observed
    own = Path(shutil.copytree(products["wsclean"].ms, tmp_path / "own.ms"))
    with open_table(own, write=True) as table:
        data, flags, weights = (table.getcol(name) for name in ("DATA", "FLAG", "WEIGHT_SPECTRUM"))
        antennas = table.getcol("ANTENNA1"), table.getcol("ANTENNA2")
        auto = antennas[0] == antennas[1]
        some = np.unique(antennas[0])[2:4]
        flagged, weightless = (~auto & ((antennas[0] == k) | (antennas[1] == k)) for k in some)
        data[auto | flagged | weightless] = 1e3
        flags[auto], flags[flagged], weights[weightless] = False, True, 0.0
        for name, values in (("DATA", data), ("FLAG", flags), ("WEIGHT_SPECTRUM", weights)):
            table.putcol(name, values)
    product = image(own, "wsclean", niter=200)
    for source, fit in zip(truth.sources, measure(truth, product), strict=True):
        assert fit.integrated_jy == pytest.approx(source.flux_jy, rel=0.05)


def test_wsclean_images_averaged_channels_a_range_of_baselines_and_keeps_casa_images(observed, products, tmp_path):
    _, truth, _ = observed
    changed = {"chanbin": 2, "max_smearing": 0.9, "uvrange": ">0.2klambda", "niter": 200, "keep_casa_images": True}
    product = image(products["wsclean"].ms, "wsclean", name="averaged", **changed)
    assert product.channels_averaged == 2
    assert set(product.versions) == {"nightbeam", "wsclean", "casatasks"}
    assert (product.parameters["split"]["width"], product.parameters["split"]["uvrange"]) == (2, ">0.2klambda")
    near, _ = measure(truth, product)
    assert near.integrated_jy == pytest.approx(1.0, rel=0.05)
    assert set(product.native) == {"image", "image.pbcor", "pb", "residual", "model", "psf"}
    assert all((path / "table.dat").is_file() for path in product.native.values())


def test_a_range_of_baselines_means_the_same_to_both_engines(products):
    ms = products["wsclean"].ms
    # By natural weights: cells in which weights are counted lie half a cell apart in the two engines.
    options = {"uvrange": "1~4klambda", "niter": 0, "weighting": "natural"}
    one, other = (image(ms, engine, name=f"long-{engine}", **options) for engine in ("tclean", "wsclean"))
    seen, also, all_of_them = (fits.getdata(p.fits["image"]).ravel() for p in (one, other, products["wsclean"]))
    assert np.corrcoef(seen, also)[0, 1] > 0.999
    assert np.corrcoef(also, all_of_them)[0, 1] < 0.9
