"""The example service for real: its process, its worker and the server are killed, and it is cancelled."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from nightbeam.core.locks import is_held
from nightbeam.platform import ACTIVE, process_lives

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

NAME = "heartbeat-service/default"
POOL = ("example-service",)


class Service:
    """The one service of the running platform."""

    def __init__(self, running: Any, until: Callable[..., Any]) -> None:
        self.running, self.api, self.until = running, running.api, until
        self.out = running.settings.state_dir / "services" / "heartbeat.json"

    def begin(self) -> str:
        run = self.api.run_deployment(NAME, parameters={"every_s": 0.1, "fence_s": 1.0})
        self.until(lambda: self.kind(run["id"]) == "RUNNING", 30.0)
        self.counts_on()
        return str(run["id"])

    def kind(self, run_id: str) -> str:
        return str(self.api.flow_run(run_id)["state_type"])

    def wrote(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.out.read_text()))
        except FileNotFoundError:
            return {"count": 0, "pid": 0}

    def counts_on(self, seconds: float = 15.0) -> None:
        before = self.wrote()["count"]
        self.until(lambda: self.wrote()["count"] > before, seconds)

    def end(self, run_id: str) -> None:
        self.api.cancel(run_id)
        self.until(lambda: self.kind(run_id) == "CANCELLED", 45.0)

    def successor(self, run_id: str, seconds: float) -> str:
        def running() -> str | None:
            runs = self.api.flow_runs(types=("RUNNING",), pools=POOL)
            return next((r["id"] for r in runs if r["id"] != run_id), None)

        return str(self.until(running, seconds))

    def waiting_or_active(self) -> list[str]:
        """What is to run or runs, with who asked for it, so that a failure says where it came from."""
        runs = self.api.flow_runs(types=("SCHEDULED", *ACTIVE), pools=POOL)
        return [
            f"{r['name']} {r['state_name']} for {r['expected_start_time']} since {r['created']} by {r['created_by']}"
            for r in runs
        ]

    def writers(self) -> list[int]:
        """Processes that have the lock file open, of which the kernel lets one hold it."""
        lock = str(self.out.with_suffix(".lock"))
        found = []
        for process in psutil.process_iter():
            try:
                if any(f.path == lock for f in process.open_files()):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def service(running_platform: Any, until: Callable[..., Any]) -> Iterator[Service]:
    service = Service(running_platform, until)
    # Another test had its schedule active for a moment: what that made lies in the future, and is not of these tests.
    for run in service.api.flow_runs(types=("SCHEDULED",), pools=POOL):
        service.api._call("DELETE", f"/flow_runs/{run['id']}")
    yield service
    for run in service.api.flow_runs(types=("SCHEDULED", *ACTIVE), pools=POOL):
        service.api.cancel(run["id"])
    until(lambda: not service.api.count_runs(types=ACTIVE, pools=POOL), 45.0)
    until(lambda: not is_held(service.out.with_suffix(".lock")), 30.0)


def test_a_killed_flow_process_is_crashed_at_once_and_restarted_and_a_cancel_drains_it_for_good(service):
    run = service.begin()
    count = service.wrote()["count"]
    os.kill(service.wrote()["pid"], signal.SIGKILL)
    service.until(lambda: service.kind(run) == "CRASHED", 15.0)
    successor = service.successor(run, 90.0)
    service.counts_on()
    assert service.wrote()["count"] > count, "it goes on from where it was"

    begin = time.monotonic()
    service.end(successor)
    assert time.monotonic() - begin < 25.0
    service.until(lambda: not process_lives(service.wrote()["pid"], born_before=time.time()), 15.0)
    logs = " ".join(record["message"] for record in service.api.logs(successor))
    assert f"asked to stop at {service.wrote()['count']}" in logs, (
        "the loop itself ended, and its log reached the server"
    )
    time.sleep(12.0)
    assert not service.waiting_or_active(), "a cancelled service stays down"


def test_an_orphan_goes_on_alone_obeys_a_cancel_that_nobody_signals_and_gives_way(service):
    run = service.begin()
    pid = service.wrote()["pid"]
    os.kill(service.running.pids()["worker-example-service"], signal.SIGKILL)
    service.until(lambda: service.running.pids()["worker-example-service"] is not None, 20.0)
    service.counts_on()
    assert service.wrote()["pid"] == pid
    assert service.kind(run) == "RUNNING"
    assert service.writers() == [pid]

    service.api.cancel(run)
    service.until(lambda: not process_lives(pid, born_before=time.time()), 15.0)
    service.until(lambda: service.kind(run) == "CANCELLED", 15.0)
    second = service.begin()
    assert service.wrote()["pid"] != pid
    assert service.kind(second) == "RUNNING"


def test_a_run_whose_process_and_worker_are_both_killed_is_swept_and_restarted(service):
    run = service.begin()
    pid = service.wrote()["pid"]
    os.kill(service.running.pids()["worker-example-service"], signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    # The supervisor asks for a sweep when it has a new worker; nothing else would find this run so soon.
    service.until(lambda: service.kind(run) == "CRASHED", 45.0)
    assert f"its process {pid} is gone" in service.api.flow_run(run)["state"]["message"]
    service.successor(run, 90.0)
    service.counts_on()
    assert service.wrote()["pid"] != pid


def test_a_service_works_on_while_the_server_is_dead_and_its_run_goes_on_after(service):
    run = service.begin()
    pid = service.wrote()["pid"]
    os.kill(service.running.pids()["server"], signal.SIGKILL)
    service.counts_on(5.0)
    service.until(service.api.healthy, 60.0)
    service.counts_on(5.0)
    assert service.wrote()["pid"] == pid
    assert service.kind(run) == "RUNNING"
    service.end(run)
