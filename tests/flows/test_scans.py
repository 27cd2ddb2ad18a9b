"""The flows of the scan calibrator, on a small simulated night."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows.scan_calibrate_store import scan_calibrate_store
from flows.scan_calibrator import scan_calibrator
from nightbeam.core.errors import BusyError
from nightbeam.core.locks import sole_owner
from nightbeam.scans import attempt
from nightbeam.scans.attempt import ScansFailedError, ScansUnreadError
from nightbeam.scans.files import scan_name
from nightbeam.scans.results import ResultStore
from nightbeam.scans.service import ScanService
from nightbeam.testing.dish import Line
from nightbeam.testing.night import Fault, NightPlan, simulate_night
from tasks import scans as steps

PLAN = {
    "scans": 3, "pixels": 2, "channels": 64, "rows": 1, "dumps": 4, "width_hz": 10e6,
    "lines": (Line(5.0, 809.3e9, 100e6),), "calibration_every": 3,
}  # fmt: skip


class Night:
    """A simulated night, settings of its own, and what its flow runs leave at the server."""

    def __init__(self, directory: Path, *faults: Fault) -> None:
        self.directory = directory
        self.l0, self.l1 = directory / "l0" / "night.zarr", directory / "l1" / "night.zarr"
        self.l0.parent.mkdir()
        simulate_night(self.l0, NightPlan(**PLAN, faults=faults))

    def mend(self, scan: int) -> None:
        good = self.directory / "good.zarr"
        simulate_night(good, NightPlan(**PLAN))
        place = self.l0 / "scans" / scan_name(scan)
        shutil.rmtree(place)
        shutil.copytree(good / "scans" / scan_name(scan), place)

    def finished(self) -> dict[int, int]:
        """Return when each result was written."""
        store = ResultStore(self.l1)
        return {scan: (store.place(scan) / "zarr.json").stat().st_mtime_ns for scan in store.scans()}


@pytest.fixture
def night(tmp_path, monkeypatch):
    config = tmp_path / "nightbeam.yaml"
    said = {
        "state_dir": str(tmp_path / "state"),
        "scans": {"atmosphere": "closed-form", "output_dir": str(tmp_path / "l1")},
    }
    config.write_text(json.dumps(said))
    monkeypatch.setenv("NIGHTBEAM_CONFIG", str(config))
    quick = steps.calibrate_store.with_options(retries=1, retry_delay_seconds=0, retry_jitter_factor=0)
    monkeypatch.setattr(steps, "calibrate_store", quick)
    return lambda *faults: Night(tmp_path, *faults)


def artifacts(state: Any) -> dict[str, Any]:
    """Return the last artifact of each key that a run left."""
    only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(artifact_filter=only)
    return {a.key: a.data for a in sorted(found, key=lambda a: str(a.created)) if a.key}


def test_a_store_is_calibrated_where_the_settings_say_and_a_second_run_finds_it_done(night):
    night = night()
    state = scan_calibrate_store(str(night.l0), return_state=True)
    assert state.is_completed()
    assert state.result() == {"calibrated": [1, 2, 3], "skipped": [], "incomplete": [], "results": str(night.l1)}
    rows = json.loads(artifacts(state)["scans-table"])
    assert [(row["scan"], row["state"]) for row in rows] == [(1, "complete"), (2, "complete"), (3, "complete")]
    assert all(0.5 < row["pwv (mm)"] < 0.7 for row in rows)
    before = night.finished()
    assert scan_calibrate_store(str(night.l0))["skipped"] == [1, 2, 3]
    assert night.finished() == before
    assert scan_calibrate_store(str(night.l0), scans=[2], force=True)["calibrated"] == [2]
    after = night.finished()
    assert [scan for scan in before if after[scan] != before[scan]] == [2]


def test_a_retry_does_only_what_could_not_be_read_and_the_run_shows_what_failed(night):
    night = night(Fault("truncated-chunk", 2))
    attempts: list[tuple[int, ...]] = []
    real = attempt.calibrate_store

    def counted(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        attempts.append(tuple(one.scan for one in (*result.successes, *result.failures)))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "calibrate_store", counted)
        state = scan_calibrate_store(str(night.l0), force=True, return_state=True)
    assert state.is_failed()
    assert [sorted(one) for one in attempts] == [[1, 2, 3], [2]]
    assert "1 of " in str(state.result(raise_on_failure=False))
    found = artifacts(state)
    rows = {row["scan"]: row for row in json.loads(found["scans-table"])}
    assert {scan: row["state"] for scan, row in rows.items()} == {1: "complete", 2: "failed", 3: "complete"}
    assert "StoreReadError" in rows[2]["what"]
    assert "night.failures.json" in found["scans-failures"]
    night.mend(2)
    assert scan_calibrate_store(str(night.l0))["calibrated"] == [2]


def test_what_is_wrong_with_the_data_is_not_tried_again(night):
    night = night(Fault("no-off", 1))
    calls: list[int] = []
    real = attempt.calibrate_store

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "calibrate_store", counted)
        state = scan_calibrate_store(str(night.l0), return_state=True)
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert type(error) is ScansFailedError
    assert error.exit_code == 2
    assert len(calls) == 1


def test_a_store_of_which_nothing_can_be_read_fails_and_says_so(night):
    night = night(*(Fault("truncated-chunk", scan) for scan in (1, 2, 3)))
    error = scan_calibrate_store(str(night.l0), return_state=True).result(raise_on_failure=False)
    assert type(error) is ScansUnreadError
    assert error.what.startswith("3 of 3 scans of night.zarr failed: 1 (StoreReadError), 2 (StoreReadError)")


def test_the_service_calibrates_what_arrives_shows_it_and_ends_when_its_loop_does(night, monkeypatch):
    night = night(Fault("truncated-chunk", 2))
    drained = threading.Event()
    poll = ScanService.poll

    def until_done(self: Any, stop: threading.Event) -> bool:
        """End the loop, as a fence would, when nothing is left to do."""
        if not (busy := poll(self, stop)):
            drained.set()
            stop.set()
        return busy

    monkeypatch.setattr("nightbeam.scans.service.ScanService.poll", until_done)
    state = scan_calibrator(str(night.l0.parent), return_state=True)
    assert drained.is_set()
    assert state.is_completed()
    assert ResultStore(night.l1).scans() == [1, 3]
    found = {key: json.loads(data) for key, data in artifacts(state).items()}
    row = found["service-scan-calibrator"][0]
    assert (row["scans done"], row["failed"], row["backlog"]) == (2, 1, 0)
    assert "calibrate" in row["seconds a scan"]
    assert [one["scan"] for one in found["service-scan-calibrator-pwv"]] == [1, 3]
    assert [(one["scan"], one["error"]) for one in found["service-scan-calibrator-failures"]] == [(2, "StoreReadError")]
    beat = json.loads((night.l1.parent / "scan-calibrator.json").read_text())
    assert (beat["pid"], beat["done"], beat["failed"]) == (os.getpid(), 2, 1)


def test_a_second_service_on_one_output_is_refused(night, monkeypatch):
    night = night()
    monkeypatch.setattr("flows._service.TAKEOVER_S", 0.1)
    with sole_owner(night.l1.parent / "scan-calibrator.lock"):
        state = scan_calibrator(str(night.l0.parent), return_state=True)
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert isinstance(error, BusyError)
    assert f"process {os.getpid()}" in error.what
