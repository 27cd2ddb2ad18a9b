"""Real groups: simulated subbands to images through CASA, in one process, with and without being killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nightbeam.catalog import SetSpec, TableSpec
from nightbeam.contimg import STEPS, Site, run_group, scan_arrivals, take_dispatchable
from nightbeam.core.errors import InputError, ToolError
from nightbeam.core.settings import load_settings
from nightbeam.simulate import SimulationSpec, simulate_subbands

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SETTINGS = """\
state_dir: {state}
contimg:
  ingest: {{settle_s: 0, expected_subbands: 4}}
  image: {{imsize: 128, cell_arcsec: 40, niter: 20, gridder: standard, chanbin: 4}}
"""
#: Runs a group and kills itself, without a word, after the step that it is told.
KILLED = """\
import os, signal, sys
from pathlib import Path
from nightbeam.contimg import Site, run_group
from nightbeam.core.settings import load_settings
site = Site.from_settings(load_settings(config=Path(sys.argv[1])))
run_group(site, sys.argv[2], on_step=lambda step, receipt: step == sys.argv[3] and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.fixture(scope="module")
def subbands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups of four subbands, 12 antennas; 3C48 crosses the meridian in the first."""
    out = tmp_path_factory.mktemp("subbands")
    spec = SimulationSpec(
        groups=2, antennas=12, channels=4, subbands=4, integrations=4, calibrator="3C48", sources=1, noise=0.5, seed=3
    )
    simulate_subbands(out, spec)
    return out


def make_site(folder: Path, subbands: Path) -> tuple[Path, Site]:
    config = folder / "nightbeam.yaml"
    config.write_text(SETTINGS.format(state=folder / "state"))
    site = Site.from_settings(load_settings(config=config))
    shutil.copytree(subbands, site.input_dir)
    scan_arrivals(site)
    return config, site


def pixels(site: Site, group_id: str) -> np.ndarray:
    from astropy.io import fits

    (row,) = site.products().images(group_id=group_id)
    return np.array(fits.getdata(row.path))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, subbands: Path) -> tuple[Site, list[str]]:
    _, site = make_site(tmp_path_factory.mktemp("undisturbed"), subbands)
    groups = [row.group_id for row in site.queue().groups()]
    for group_id in groups:
        run_group(site, group_id)
    return site, groups


def test_a_calibrator_group_and_the_next_become_images_of_what_is_there(
    undisturbed: tuple[Site, list[str]], subbands: Path
):
    site, (first, second) = undisturbed
    truth = json.loads((subbands / "truth.json").read_text())
    assert [g["group_id"] for g in truth["groups"]] == [first, second]
    assert site.queue().counts()["completed"] == 2
    image, other = sorted(site.products().images(), key=lambda row: row.path)
    # 3C48 at the centre: 16.5 Jy in the VLA list, here at 1.475 GHz with a flat spectrum.
    assert image.peak_jy == pytest.approx(16.5, rel=0.03)
    assert image.calibration_set == other.calibration_set == f"calset_{first}"
    assert (other.cal_borrowed, other.pbcor) == (0, 1)
    assert other.cal_age_days == pytest.approx(309.24 / 86400, rel=0.01)
    rows = site.products().ms_index()
    assert {(r.stage, r.status, r.cal_applied, r.n_spw) for r in rows} == {("imaged", "done", 1, 4)}
    assert {r.n_rows for r in rows} == {4 * 4 * 78}  # windows x times x baselines of 12 antennas with autos
    from astropy.io import fits

    header = fits.getheader(image.path)
    assert any(f"calset_{first}" in str(card.value) for card in header.cards)
    measured = site.queue().performance(first)
    assert measured is not None
    assert measured.writer_type == "direct-subband"
    assert min(measured.load_time or 0, measured.write_time or 0, measured.image_time or 0) > 0
    names = {a.name for a in site.products().qa_artifacts(first)}
    assert {"image.png", "flags.png", "metrics.json"} <= names


def test_killed_after_every_step_a_group_ends_with_one_ms_one_row_and_the_same_pixels(
    undisturbed: tuple[Site, list[str]], subbands: Path, tmp_path: Path
):
    config, site = make_site(tmp_path, subbands)
    reference, (group_id, _) = undisturbed
    for n, step in enumerate(STEPS):
        child = subprocess.run(
            [sys.executable, "-c", KILLED, str(config), group_id, step], capture_output=True, text=True, timeout=300
        )
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert [r.step for r in site.queue().receipts(group_id)] == list(STEPS[: n + 1])
    assert run_group(site, group_id).state == "completed"
    attempts = site.queue().attempts(group_id)
    assert [a.outcome for a in attempts] == ["lost"] * len(STEPS) + ["completed"]
    assert len(site.products().images()) == len(site.products().ms_index()) == len(site.registry().sets()) == 1
    np.testing.assert_array_equal(pixels(site, group_id), pixels(reference, group_id))
    assert [p.name for p in site.output_dir.iterdir() if p.suffix == ".ms"] == [f"{group_id}.ms"]


def test_killed_in_the_middle_of_steps_it_goes_on_and_nothing_is_left_over(
    undisturbed: tuple[Site, list[str]], subbands: Path, tmp_path: Path
):
    config, site = make_site(tmp_path, subbands)
    reference, (group_id, _) = undisturbed
    command = [sys.executable, "-m", "nightbeam", "--config", str(config), "groups", "run", group_id]
    for step in ("convert", "calibrate", "apply", "image"):
        with (tmp_path / f"{step}.log").open("wb") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
            wait_for(site, group_id, step, child)
            time.sleep(0.5)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
    recovered = scan_arrivals(site).recovered
    assert recovered in ((group_id,), ())  # () where the last one was done before it was killed
    assert list(site.scratch_dir.iterdir()) == []
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert site.queue().group(group_id).state == "completed"
    assert len(site.products().images()) == len(site.products().ms_index()) == 1
    np.testing.assert_array_equal(pixels(site, group_id), pixels(reference, group_id))


def wait_for(site: Site, group_id: str, step: str, child: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        row = site.queue().group(group_id)
        if row.state == "in_progress" and row.current_step == step and row.owner_pid == child.pid:
            return
        assert child.poll() is None, f"it ended before it came to {step}"
        time.sleep(0.05)
    raise AssertionError(f"it never came to {step}")


def lend_gains(lender: Site, borrower: Site) -> None:
    """Register at one site the set that was solved at another, as its neighbour's end would."""
    tables = lender.registry().tables()
    first = tables[0]
    assert first.valid_start_mjd is not None
    assert first.valid_end_mjd is not None
    specs = tuple(TableSpec(Path(t.path), t.table_type, t.order_index, t.cal_field, t.refant) for t in tables)
    borrower.registry().register_set(
        SetSpec(
            first.set_name,
            specs,
            first.valid_start_mjd,
            first.valid_end_mjd,
            mid_mjd=first.mid_mjd,
            dec_deg=first.dec_deg,
        )
    )


def test_a_group_without_gains_waits_and_the_set_of_its_neighbour_wakes_it(
    undisturbed: tuple[Site, list[str]], subbands: Path, tmp_path: Path
):
    _, site = make_site(tmp_path, subbands)
    first, second = (row.group_id for row in site.queue().groups())
    assert run_group(site, second).state == "waiting_for_gains"
    assert [d.group_id for d in take_dispatchable(site, 5)] == [first]
    lend_gains(undisturbed[0], site)
    assert [d.group_id for d in take_dispatchable(site, 5)] == [second]


def test_an_imager_that_cannot_run_fails_the_group_with_the_end_of_its_log(
    undisturbed: tuple[Site, list[str]], subbands: Path, tmp_path: Path
):
    _, site = make_site(tmp_path, subbands)
    lend_gains(undisturbed[0], site)
    settings = site.image.model_copy(update={"deconvolver": "nosuch"})
    site = replace(site, image=settings, ingest=site.ingest.model_copy(update={"max_retries": 1}))
    group_id = site.queue().groups()[1].group_id
    with pytest.raises(ToolError):
        run_group(site, group_id)
    row = site.queue().group(group_id)
    assert (row.state, row.current_step) == ("failed", "image")
    assert "tclean" in (row.error or "")
    assert site.products().images() == []


def test_mixed_pointings_are_one_clear_failure(subbands: Path, tmp_path: Path):
    import h5py

    _, site = make_site(tmp_path, subbands)
    group_id = site.queue().groups()[0].group_id
    spoilt = Path(site.queue().subbands(group_id)[1].path)
    with h5py.File(spoilt, "r+") as file:
        for name in ("phase_center_app_dec", "extra_keywords/phase_center_dec"):
            if name in file["Header"]:
                file["Header"][name][()] += 0.1
    with pytest.raises(InputError, match=spoilt.name):
        run_group(site, group_id)
    assert site.queue().group(group_id).state == "failed"
