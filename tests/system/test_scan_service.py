"""The scan calibrator for real: scans arrive, its process is killed, a second one is refused, it is cancelled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam.core.locks import is_held
from nightbeam.platform import ACTIVE, process_lives
from nightbeam.scans.files import RawStore, scan_name
from nightbeam.scans.model import PipelineConfig
from nightbeam.scans.results import ResultStore
from nightbeam.scans.worker import calibrate_store
from nightbeam.testing.dish import Line
from nightbeam.testing.night import Fault, NightPlan, simulate_night

pytestmark = [pytest.mark.system, pytest.mark.timeout(280)]

NAME = "scan-calibrator/default"
POOL = ("scan-calibrator",)
BAD = 3
SCANS = 16
PLAN = NightPlan(
    scans=SCANS, pixels=4, channels=256, rows=2, dumps=6, width_hz=4e6, lines=(Line(5.0, 809.3e9, 100e6),),
    faults=(Fault("truncated-chunk", BAD),),
)  # fmt: skip
GOOD = [scan for scan in range(1, SCANS + 1) if scan != BAD]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("night") / "night.zarr"
    simulate_night(store, PLAN)
    return store


class Service:
    """The scan calibrator of the running platform, and what arrives for it."""

    def __init__(self, running: Any, until: Callable[..., Any], night: Path) -> None:
        self.running, self.api, self.until, self.night = running, running.api, until, night
        self.l0, self.l1 = running.settings.scans.input_dir, running.settings.scans.output_dir
        self.l0.mkdir(parents=True, exist_ok=True)

    def begin(self) -> str:
        run = self.api.run_deployment(NAME, parameters={"fence_s": 1.0})
        self.until(lambda: self.kind(run["id"]) == "RUNNING", 60.0)
        self.until(lambda: process_lives(self.beat()["pid"], born_before=time.time()), 60.0)
        return str(run["id"])

    def kind(self, run_id: str) -> str:
        return str(self.api.flow_run(run_id)["state_type"])

    def beat(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.l1 / "scan-calibrator.json").read_text()))
        except FileNotFoundError:
            return {"pid": 0, "done": 0}

    def drop(self, name: str) -> Path:
        """Have all scans of the night arrive in a store, loads first, as they are observed."""
        store = self.l0 / name
        (store / "scans").mkdir(parents=True)
        shutil.copy(self.night / "zarr.json", store)
        for scan in sorted(RawStore(self.night).scans(), reverse=True):
            shutil.copytree(self.night / "scans" / scan_name(scan), store / "scans" / scan_name(scan))
        return store

    def done(self, name: str) -> dict[int, int]:
        """Return the results that are whole, and when each was written."""
        place = self.l1 / name
        if not place.exists():
            return {}
        store = ResultStore(place)
        found = [scan for scan in store.scans() if store.attributes(scan).get("status") == "complete"]
        return {scan: (store.place(scan) / "zarr.json").stat().st_mtime_ns for scan in found}


@pytest.fixture
def service(running_platform: Any, until: Callable[..., Any], night: Path) -> Iterator[Service]:
    service = Service(running_platform, until, night)
    yield service
    for run in service.api.flow_runs(types=("SCHEDULED", *ACTIVE), pools=POOL):
        service.api.cancel(run["id"])
    until(lambda: not service.api.count_runs(types=ACTIVE, pools=POOL), 60.0)
    until(lambda: not is_held(service.l1 / "scan-calibrator.lock"), 60.0)


def contents(l1: Path) -> dict[str, bytes]:
    """Return every chunk of a store of results, and every array's metadata."""
    files = {path.relative_to(l1): path for path in l1.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if len(name.parts) > 3}


def test_a_killed_service_is_restarted_and_goes_on_and_does_nothing_twice(service, tmp_path):
    run = service.begin()
    service.drop("killed.zarr")
    service.until(lambda: len(service.done("killed.zarr")) >= 2, 120.0)
    os.kill(service.beat()["pid"], signal.SIGKILL)
    before = service.done("killed.zarr")
    service.until(lambda: service.kind(run) == "CRASHED", 30.0)
    service.until(lambda: sorted(service.done("killed.zarr")) == GOOD, 180.0)
    after = service.done("killed.zarr")
    assert {scan: after[scan] for scan in before} == before
    calibrate_store(service.night, tmp_path / "at-once.zarr", PipelineConfig(atmosphere="closed-form", retries=0))
    assert contents(service.l1 / "killed.zarr") == contents(tmp_path / "at-once.zarr")
    failures = json.loads((service.l1 / "killed.failures.json").read_text())["failures"]
    assert [(one["scan"], one["error"]) for one in failures] == [(BAD, "StoreReadError")]
    (successor,) = service.api.flow_runs(types=("RUNNING",), pools=POOL)
    assert successor["id"] != run


def test_a_second_service_on_the_same_output_is_refused(service):
    run = service.begin()
    second = service.api.run_deployment(NAME)
    service.until(lambda: service.kind(second["id"]) == "CANCELLED", 60.0)
    # Nor is it let in from elsewhere, where no limit of a deployment counts.
    code = (
        "import flows._service as s; s.TAKEOVER_S = 0.5\n"
        "from flows.scan_calibrator import scan_calibrator\n"
        f"state = scan_calibrator({str(service.l0)!r}, {str(service.l1)!r}, return_state=True)\n"
        "print(type(state.result(raise_on_failure=False)).__name__, state.type.value)"
    )
    env = os.environ | {
        "PREFECT_API_URL": service.api.url,
        "PREFECT_API_AUTH_STRING": service.running.settings.platform.auth_string,
        "NIGHTBEAM_CONFIG": os.devnull,
    }
    other = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert other.stdout.split() == ["BusyError", "FAILED"], other.stderr[-2000:]
    assert service.kind(run) == "RUNNING"


def test_a_cancel_in_the_middle_of_a_night_drains_within_ten_seconds_and_one_run_does_the_rest(service):
    run = service.begin()
    store = service.drop("cancelled.zarr")
    service.until(lambda: service.done("cancelled.zarr"), 120.0)
    pid = service.beat()["pid"]
    begin = time.monotonic()
    service.api.cancel(run)
    service.until(lambda: not process_lives(pid, born_before=time.time()), 30.0, every_s=0.05)
    drained = time.monotonic() - begin
    service.until(lambda: service.kind(run) == "CANCELLED", 30.0, every_s=0.05)
    # The one promise in seconds: a cancelled service is gone long before Prefect would kill it.
    assert drained < 10.0
    before = service.done("cancelled.zarr")
    assert sorted(before) == ResultStore(service.l1 / "cancelled.zarr").scans(), "no half results"
    assert not (service.l1 / "cancelled.zarr.staging").exists()
    service.until(lambda: "drained: " in " ".join(one["message"] for one in service.api.logs(run)), 15.0)
    (table,) = [one for one in service.api.artifacts(run) if one["key"] == "service-scan-calibrator"]
    rows = table["data"] if isinstance(table["data"], list) else json.loads(table["data"])
    assert rows[0]["scans done"] >= len(before) - 1

    rest = service.api.run_deployment("scan-calibrate-store/default", parameters={"l0": str(store)})
    service.until(lambda: sorted(service.done("cancelled.zarr")) == GOOD, 120.0)
    after = service.done("cancelled.zarr")
    assert {scan: after[scan] for scan in before} == before
    service.api.cancel(rest["id"])  # it would try the damaged scan again and again
    service.until(lambda: service.kind(rest["id"]) in ("CANCELLED", "FAILED"), 60.0)
