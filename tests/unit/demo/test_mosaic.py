"""The mosaics' part of the demo without a platform: what is right passes, and what is wrong is seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from nightbeam.contimg import Site
from nightbeam.contimg.nights import make_night
from nightbeam.core.errors import NightbeamError
from nightbeam.core.settings import load_settings
from nightbeam.core.times import JD_OF_MJD_ZERO
from nightbeam.demo import DemoReport, demo_settings
from nightbeam.demo.mosaic import MosaicDemo, noise_at
from nightbeam.demo.worker import DEMO_ARGUMENTS, STRIPS
from nightbeam.simulate import SimulationSpec, SkySource, plan_simulation
from nightbeam.simulate.files import write_truth
from nightbeam.sky.model import Calibrator
from nightbeam.testing.sky_tiles import SkyTile, write_tile

pytestmark = pytest.mark.slow
#: Groups as the demo's, and the sources that the tiles show. Beams are wide here, so these are few and far apart.
SPEC = SimulationSpec(
    groups=3,
    antennas=4,
    channels=1,
    subbands=1,
    stride=(1, 3),
    calibrator="3C48",
    calibrator_group=2,
    sources=3,
    seed=5,
)


class Platform:
    """In place of the platform: the flow's work is done at once, and may be spoilt on its way."""

    def __init__(self, settings, spoil=None):
        self.site, self.spoil, self.nights, self.state = Site.from_settings(settings), spoil, [], {}

    def run_deployment(self, name, *, parameters=None):
        assert name == "nightly-mosaic/default"
        self.nights.append(parameters["night"])
        try:
            make_night(self.site, parameters["night"], force=self.spoil == "force")
            self.state = {"state_type": "COMPLETED"}
        except NightbeamError as error:
            self.state = {"state_type": "FAILED", "state": {"message": error.what}}
        if callable(self.spoil):
            self.spoil(self.site)
        return {"id": "1"}

    def flow_run(self, run_id):
        return self.state


@pytest.fixture
def settings(tmp_path):
    found = demo_settings(tmp_path / "demo", load_settings(config=Path("/dev/null"), environ={}))
    # Beams of three arcmin are good for places of some arcsec.
    mosaic = found.contimg.mosaic.model_copy(update={"max_astrometry_arcsec": 10.0, "min_sources": 2})
    return found.model_copy(update={"contimg": found.contimg.model_copy(update={"mosaic": mosaic})})


@pytest.fixture
def truth(settings):
    truth = plan_simulation(SPEC)
    site = Site.from_settings(settings)
    places = [(0.25, 0.2), (-0.3, -0.2), (0.3, -0.25)]
    sources = tuple(
        SkySource(f"g{k}s{n}", group.ra_deg + dx, group.dec_deg + dy, 0.8 + 0.3 * n)
        for k, group in enumerate(truth.groups)
        for n, (dx, dy) in enumerate(places)
    )
    truth = replace(truth, sources=sources, groups=tuple(replace(g, calibrator=None) for g in truth.groups))
    site.input_dir.mkdir(parents=True)
    write_truth(site.input_dir, truth)
    for k, group in enumerate(truth.groups):
        tile = SkyTile(
            ra_deg=group.ra_deg, dec_deg=group.dec_deg, mid_mjd=group.mid_jd - JD_OF_MJD_ZERO, imsize=160, seed=k
        )
        product = write_tile(site.image_stem(group.group_id), tile, [Calibrator(s.name, s.ra_deg, s.dec_deg, s.flux_jy)
                                                                    for s in sources])  # fmt: skip
        names = ("mid_mjd", "ra_deg", "dec_deg", "imsize", "cell_arcsec", "freq_hz", "noise_jy", "dynamic_range")
        columns = {name: getattr(product, name) for name in names}
        files = {kind: str(path) for kind, path in product.fits.items()}
        site.products().upsert_image(
            product.path, ms_path=site.ms_path(group.group_id), group_id=group.group_id, pbcor=1, files=files, **columns
        )
    return truth


def check(settings, truth, spoil=None):
    demo = MosaicDemo.of(settings, truth, strips=STRIPS)
    platform, told = Platform(settings, spoil), []
    rows, sources = demo.check(platform, say=told.append)
    return rows, sources, platform, told


def test_all_is_right_and_the_night_is_that_of_the_data(settings, truth):
    rows, sources, platform, told = check(settings, truth)
    assert DemoReport((), mosaic=rows, mosaic_sources=sources).problems == []
    assert platform.nights == [demo_night(truth)] * 2
    assert [row.what for row in rows[:2]] == ["the night is made", f"tiles of the mosaics of {demo_night(truth)}"]
    assert rows[1].found == "2 built, 1 built"
    assert {source.mosaic for source in sources} == {row.name for row in platform.site.products().mosaics()}
    assert len(sources) == 9
    assert max(abs(one.check.flux_ratio - 1.0) for one in sources) < 0.05
    assert len(told) == 2


def demo_night(truth):
    return truth.groups[0].group_id[:10]


def test_sources_that_are_not_as_they_were_are_problems(settings, truth):
    wrong = replace(truth, sources=tuple(replace(s, flux_jy=1.2 * s.flux_jy) for s in truth.sources))
    problems = DemoReport((), mosaic=check(settings, wrong)[0]).problems
    assert [p for p in problems if "the simulated sources: fluxes are 0.8" in p]


def test_a_night_that_is_made_twice_is_a_problem(settings, truth):
    problems = DemoReport((), mosaic=check(settings, truth, "force")[0]).problems
    assert [p.partition(":")[0] for p in problems] == ["made again, it costs nothing and doubles nothing"]


def test_a_tile_that_is_rejected_and_a_night_that_fails_are_problems(settings, truth):
    for image in Site.from_settings(settings).products().images():
        with fits.open(image.path, mode="update") as hdus:
            hdus[0].data[...] = np.nan
    problems = DemoReport((), mosaic=check(settings, truth)[0]).problems
    assert len([p for p in problems if "FAILED: none of 3 tiles" in p]) == 2
    assert f"tiles of the mosaics of {demo_night(truth)}: none, expected 2 built, 1 built" in problems


def test_a_check_that_fails_and_a_file_that_is_gone_are_problems(settings, truth):
    def spoil(site):
        row = site.products().mosaics()[0]
        Path(json.loads(row.files)["weight"]).unlink(missing_ok=True)
        worse = [{**c, "passed": False} for c in json.loads(row.checks) if c["name"] == "coverage"]
        site.products().change_mosaic(row.name, checks=worse)

    problems = DemoReport((), mosaic=check(settings, truth, spoil)[0]).problems
    assert [p for p in problems if ": coverage: " in p]
    assert [p for p in problems if "are not there" in p]


def test_the_noise_beside_a_mosaic_is_infinite(settings, truth):
    Platform(settings).run_deployment("nightly-mosaic/default", parameters={"night": demo_night(truth)})
    row = Site.from_settings(settings).products().mosaics()[-1]
    far = SkySource("far", (truth.sources[0].ra_deg + 180.0) % 360.0, 0.0, 1.0)
    near, away = noise_at(Path(json.loads(row.files)["noise"]), [truth.sources[0], far])
    assert (0.0 < near < 1.0, away) == (True, np.inf)


def test_the_telescope_of_the_demo_observes_what_the_mosaics_are_asked_for():
    words = dict(zip(DEMO_ARGUMENTS[::2], DEMO_ARGUMENTS[1::2], strict=True))
    assert int(words["--groups"]) == sum(STRIPS)
    spec = SimulationSpec(groups=3, stride=tuple(int(n) for n in words["--stride"].split(",")))
    assert [spec.observation(k) for k in range(3)] == [0, 1, 4]
