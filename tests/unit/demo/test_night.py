"""The scans' part of the demo without a platform: what is right passes, and what is wrong is seen."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import zarr

from nightbeam.core.settings import load_settings
from nightbeam.demo import demo_settings
from nightbeam.demo.model import DemoReport
from nightbeam.demo.night import NightDemo, line_strength
from nightbeam.scans.config import pipeline_config
from nightbeam.scans.service import ScanService
from nightbeam.testing.night import NightPlan, simulate_night

pytestmark = pytest.mark.slow


class Platform:
    """In place of the platform: the service's loop runs in a thread, and may be spoilt on its way."""

    def __init__(self, settings, spoil=None):
        scans = settings.scans
        self.stop, self.state, self.spoil = threading.Event(), "RUNNING", spoil
        self.service = ScanService(
            scans.input_dir,
            scans.output_dir,
            pipeline_config(settings),
            interval_s=0.1,
            heartbeat=scans.output_dir / "scan-calibrator.json",
        )
        self.thread = threading.Thread(target=self.service.loop, args=(self.stop,))

    def run_deployment(self, name, *, parameters=None):
        assert name == "scan-calibrator/default"
        self.thread.start()
        return {"id": "1"}

    def cancel(self, run_id):
        self.stop.set()
        self.thread.join()
        self.state = "CANCELLED"

    def flow_run(self, run_id):
        return {"state_type": self.state}


@pytest.fixture
def settings(tmp_path):
    overrides = {"scans.input_dir": "/the/sites", "scans.output_dir": "/the/sites", "scans.atmosphere": "casa"}
    return demo_settings(tmp_path / "demo", load_settings(config=Path("/dev/null"), overrides=overrides, environ={}))


def test_all_is_right_and_everything_lies_in_the_demos_directory(settings, tmp_path):
    demo, told = NightDemo.of(settings.scans), []
    rows = demo.check(Platform(settings), say=told.append)
    assert DemoReport((), scans=rows).problems == []
    assert [row.what for row in rows] == [
        "scan 1 (otf)",
        "scan 2 (tp)",
        "scan 3 (otf)",
        "scan 4 (tp, truncated-chunk)",
        "scan 5 (otf)",
        "scan 6 (tp)",
        "figures of a scan and of the night",
        "the service is cancelled",
    ]
    assert (rows[3].expected, rows[3].found) == ("StoreReadError", "StoreReadError")
    assert demo.l1.is_relative_to(tmp_path / "demo")
    assert [Path(words.removeprefix("scans: ")).is_file() for words in told] == [True, True]


def test_results_that_are_not_the_truth_are_problems(settings, monkeypatch):
    real = NightDemo._wait

    def spoilt(self, truth, timeout_s):
        real(self, truth, timeout_s)
        group = zarr.open_group(self.l1 / "scans" / "scan_000002", mode="r+", zarr_format=3, use_consolidated=False)
        group["ta_star"][...] = 2.0 * group["ta_star"][...]
        group = zarr.open_group(self.l1 / "scans" / "scan_000003", mode="r+", zarr_format=3, use_consolidated=False)
        group.attrs["pwv_mm"] = 0.7

    monkeypatch.setattr(NightDemo, "_wait", spoilt)
    problems = DemoReport((), scans=NightDemo.of(settings.scans).check(Platform(settings))).problems
    assert [problem.split(":")[0] for problem in problems] == ["scan 2 (tp)", "scan 3 (otf)"]


def test_the_strength_of_a_line_without_noise_is_one(tmp_path):
    plan = NightPlan(scans=1, pixels=2, channels=64, rows=1, dumps=4, noise=False, gain_drift=0.0, pwv_mm=(0.6, 0.6))
    (tmp_path / "l0").mkdir()
    truth = simulate_night(tmp_path / "l0" / "night.zarr", replace(plan, width_hz=4e6))
    settings = load_settings(config=Path("/dev/null"), overrides={"scans.atmosphere": "closed-form"}, environ={})
    service = ScanService(tmp_path / "l0", tmp_path / "l1", pipeline_config(settings))
    while service.poll():
        pass
    strength, error = line_strength(tmp_path / "l1" / "night.zarr", truth, 1)
    assert strength == pytest.approx(1.0, abs=1e-3)
    assert error < 1e-3
