"""What was missed, put aside and put back, with real Measurement Sets and CASA."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nightbeam.contimg import Site, run_group, scan_arrivals
from nightbeam.core.settings import load_settings
from nightbeam.imaging.visibilities import fingerprint
from nightbeam.simulate import SimulationSpec, simulate_subbands

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SETTINGS = """\
state_dir: {state}
contimg:
  registry_db: {registry}
  ingest: {{settle_s: 0, expected_subbands: 4}}
  image: {{imsize: 128, cell_arcsec: 40, niter: 20, gridder: standard, chanbin: 4}}
  housekeeping: {{ms_days: 1.0e-6}}
"""


def config_of(folder: Path, registry: Path) -> Path:
    folder.mkdir(exist_ok=True)
    config = folder / "nightbeam.yaml"
    config.write_text(SETTINGS.format(state=folder / "state", registry=registry))
    return config


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Site, list[str]]:
    """A site with two groups that became images; 3C48 crosses the meridian in the first."""
    folder = tmp_path_factory.mktemp("night")
    config = config_of(folder, folder / "cal_registry.sqlite3")
    site = Site.from_settings(load_settings(config=config))
    spec = SimulationSpec(
        groups=2, antennas=12, channels=4, subbands=4, integrations=4, calibrator="3C48", sources=1, noise=0.5, seed=3
    )
    simulate_subbands(site.input_dir, spec)
    scan_arrivals(site)
    groups = [row.group_id for row in site.queue().groups()]
    for group_id in groups:
        run_group(site, group_id)
    return config, site, groups


def pixels(site: Site, group_id: str) -> np.ndarray:
    from astropy.io import fits

    (row,) = site.products().images(group_id=group_id)
    return np.array(fits.getdata(row.path))


def nightbeam(config: Path, *argv: str, rc: int = 0) -> list[dict]:
    command = [sys.executable, "-m", "nightbeam", "--config", str(config), *argv, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=config.parent, timeout=600, check=False)
    assert done.returncode == rc, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_sets_that_the_queue_does_not_know_become_the_same_images(night, tmp_path):
    config, site, groups = night
    there = tmp_path / "archive" / "october"
    for number, group_id in enumerate(groups):
        shutil.copytree(site.ms_path(group_id), there / f"observation_{number}.ms")
    (there / "rubbish.ms").mkdir()
    other_config = config_of(tmp_path / "other", config.parent / "cal_registry.sqlite3")
    other = Site.from_settings(load_settings(config=other_config))
    outcomes = nightbeam(other_config, "backfill", str(tmp_path / "archive"), rc=2)
    assert {o["group_id"]: o["state"] for o in outcomes} == {None: "failed", **dict.fromkeys(groups, "imaged")}
    for group_id in groups:
        np.testing.assert_array_equal(pixels(other, group_id), pixels(site, group_id))
    rows = {row.group_id: row for row in other.products().ms_index()}
    for group_id, row in rows.items():
        ours = site.products().ms(site.ms_path(group_id))
        assert (row.start_mjd, row.mid_mjd) == pytest.approx((ours.start_mjd, ours.mid_mjd), abs=1e-8)
        assert (row.status, row.calibration_set) == ("done", f"calset_{groups[0]}")
    shutil.rmtree(there / "rubbish.ms")
    assert nightbeam(other_config, "backfill", str(tmp_path / "archive")) == []


def test_an_image_that_was_lost_is_made_again_and_is_the_same(night):
    config, site, groups = night
    before = pixels(site, groups[1])
    for path in site.image_stem(groups[1]).parent.glob(f"{groups[1]}.img.*"):
        path.unlink()
    night_of = groups[1][:10]
    assert nightbeam(config, "backfill", "--night", "1999-01-01") == []
    (outcome,) = nightbeam(config, "backfill", "--night", night_of)
    assert (outcome["group_id"], outcome["state"]) == (groups[1], "imaged")
    np.testing.assert_array_equal(pixels(site, groups[1]), before)
    assert nightbeam(config, "backfill") == []


def test_a_set_that_was_put_aside_comes_back_as_it_was(night):
    config, site, groups = night
    calibrator, plain = (site.ms_path(group_id) for group_id in groups)
    before = fingerprint(plain)
    (report,) = nightbeam(config, "housekeeping", "--force")
    assert [action["subject"] for action in report["done"]] == [str(plain)]
    assert [action["subject"] for action in report["left"]] == [str(calibrator)]
    assert "an active calibration set was solved on it" in report["left"][0]["reason"]
    assert nightbeam(config, "backfill") == []
    (held,) = nightbeam(config, "housekeeping", "--held")
    assert nightbeam(config, "housekeeping", "--restore", held["path"]) == [{"restored": str(plain)}]
    assert fingerprint(plain) == before
    assert nightbeam(config, "backfill") == []


def test_a_backfill_that_is_killed_is_done_by_the_next(night, tmp_path):
    config, site, groups = night
    there = tmp_path / "archive"
    shutil.copytree(site.ms_path(groups[1]), there / "a.ms")
    other_config = config_of(tmp_path / "other", config.parent / "cal_registry.sqlite3")
    other = Site.from_settings(load_settings(config=other_config))
    command = [sys.executable, "-m", "nightbeam", "--config", str(other_config), "backfill", str(there)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    until = time.monotonic() + 240
    while not list(other.scratch_dir.glob("*.apply.*")) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    child.kill()
    child.wait()
    (row,) = other.products().ms_index()
    assert row.status == "in_progress"
    (outcome,) = nightbeam(other_config, "backfill", str(there))
    assert outcome["state"] == "imaged"
    np.testing.assert_array_equal(pixels(other, groups[1]), pixels(site, groups[1]))
