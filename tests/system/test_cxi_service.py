"""The CXI writer for real: frames come by the platform's own Ray, its process is killed, a second run is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from nightbeam.core.locks import is_held
from nightbeam.cxi.check import check_file
from nightbeam.cxi.files import read_chunk
from nightbeam.cxi.ledger import lock_path, read_status, status_path
from nightbeam.platform import ACTIVE, platform_status, process_lives
from nightbeam.platform.ray_head import ray_processes
from nightbeam.stream.cluster import alive

pytestmark = [pytest.mark.system, pytest.mark.timeout(280)]

NAME = "cxi-writer/default"
POOL = ("cxi-writer",)
PREFIX = "p"


class Service:
    """The CXI writer of the running platform, and the producers that feed it."""

    def __init__(self, running: Any, until: Callable[..., Any], out: Path) -> None:
        self.running, self.api, self.until, self.out = running, running.api, until, out
        self.stream = running.settings.stream
        self.queue = out.name
        self.config = running.settings.cxi.config
        tree = {
            "ray": {"namespace": self.stream.namespace},
            "queue": {"name": self.queue, "num_shards": "auto"},
            "peak_finding": {"min_num_peak": 5},
            "processing": {"num_cpu_workers": 2},
            "output": {"output_dir": str(out), "file_prefix": PREFIX, "buffer_size": 10},
        }
        self.config.write_text(yaml.safe_dump(tree))
        until(lambda: alive(platform_status(running.settings).ray), 60.0)

    def begin(self) -> str:
        run = self.api.run_deployment(NAME, parameters={"fence_s": 1.0})
        self.until(lambda: self.kind(run["id"]) == "RUNNING", 60.0)
        return str(run["id"])

    def kind(self, run_id: str) -> str:
        return str(self.api.flow_run(run_id)["state_type"])

    def replay(self, events: int, *, producer: str, log: Path, **options: Any) -> subprocess.Popen[bytes]:
        """Have frames sent by a process of its own, which stays until the writer has them."""
        more = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        config = str(self.running.layout.config)
        argv = [sys.executable, "-m", "nightbeam", "--config", config, "stream", "replay", "--queue", self.queue]
        argv += ["--shards", "2", "--simulate", str(events), "--panels", "2x64x64", "--peaks", "10:14"]
        argv += ["--batch", "2", "--threads", "1", "--producer", producer, *more]
        with log.open("ab") as out:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def status(self) -> dict[str, Any]:
        path = status_path(self.out, PREFIX)
        return dict(read_status(path)) if path.exists() else {"pid": 0, "producers": {}}

    def events_of(self, producer: str, what: str) -> int:
        page = self.status()["producers"].get(producer, {})
        return sum((end or 0) - (begin or 0) for _, _, begin, end in page.get(what, []))

    def numbers_of(self, producer: str, what: str) -> list[int]:
        page = self.status()["producers"].get(producer, {})
        return [n for first, last, *_ in page.get(what, []) for n in range(first, last + 1)]

    def written(self) -> list[tuple[str, int]]:
        """Return producer and number of every event in the files, all of which CrystFEL would read."""
        found: list[tuple[str, int]] = []
        for path in sorted(self.out.glob("*.cxi")):
            assert check_file(path).findings == (), path
            for row in read_chunk(path).attributes["batches"]:
                found += [(row["producer"], row["sequence"])] * row["written"]
        return found


@pytest.fixture
def service(running_platform: Any, until: Callable[..., Any], tmp_path: Path) -> Iterator[Service]:
    service = Service(running_platform, until, tmp_path / f"q{os.urandom(4).hex()}")
    yield service
    for run in service.api.flow_runs(types=("SCHEDULED", *ACTIVE), pools=POOL):
        service.api.cancel(run["id"])
    until(lambda: not service.api.count_runs(types=ACTIVE, pools=POOL), 60.0)
    until(lambda: not is_held(lock_path(service.out, PREFIX)), 60.0)


def test_the_cluster_listens_on_loopback_only_and_is_gone_and_back_when_it_is_killed(service):
    head = service.running.pids()["ray"]
    ours = ray_processes(service.running.layout)
    listening = {c.laddr.ip for p in ours for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {"::ffff:127.0.0.1"} or listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    os.kill(head, signal.SIGKILL)
    service.until(lambda: service.running.pids().get("ray") not in (None, head), 30.0)
    service.until(lambda: alive(platform_status(service.running.settings).ray), 60.0)
    service.until(lambda: not any(process.is_running() for process in ours), 10.0)


def test_a_killed_writer_is_restarted_goes_on_and_states_what_was_lost(service, tmp_path):
    run = service.begin()
    sender = service.replay(5000, producer="a", log=tmp_path / "a.log", rate=12, by="value")
    try:
        service.until(lambda: service.events_of("a", "settled") >= 20, 120.0)
        dead = service.status()["pid"]
        os.kill(dead, signal.SIGKILL)
        last = service.numbers_of("a", "taken")[-1]
        service.until(lambda: service.kind(run) == "CRASHED", 30.0)
        service.until(lambda: service.status()["pid"] != dead, 90.0)
        service.until(lambda: service.numbers_of("a", "settled")[-1] > last, 60.0)
        sender.terminate()  # it says that it has no more and waits until the writer has what it sent
        assert sender.wait(60) == 128 + signal.SIGTERM, (tmp_path / "a.log").read_text()
    finally:
        sender.kill()
        sender.wait()
    done = ("settled", "abandoned")
    service.until(lambda: sum(service.events_of("a", what) for what in done) == service.events_of("a", "taken"), 30.0)
    (successor,) = service.api.flow_runs(types=("RUNNING",), pools=POOL)
    assert successor["id"] != run
    # Each batch is in the account, or its number is left out: taken by the dead and never told of.
    numbers = set(service.numbers_of("a", "taken"))
    missing = set(range(max(numbers))) - numbers
    said = service.status()["counters"]["events_missing"].get("a", {"batches": 0})
    assert said["batches"] == len(missing)
    written = service.written()
    assert written
    assert {number for _, number in written} <= numbers
    assert not list(service.out.glob("*.partial"))


def test_a_cancel_drains_and_a_second_run_is_refused(service, tmp_path):
    run = service.begin()
    second = service.api.run_deployment(NAME)
    service.until(lambda: service.kind(second["id"]) == "CANCELLED", 60.0)
    sender = service.replay(400, producer="c", log=tmp_path / "c.log", rate=40, by="value")
    try:
        service.until(lambda: service.events_of("c", "taken") >= 20, 120.0)
        pid = service.status()["pid"]
        begin = time.monotonic()
        service.api.cancel(run)
        service.until(lambda: not process_lives(pid, born_before=time.time()), 30.0, every_s=0.05)
        drained = time.monotonic() - begin
        service.until(lambda: service.kind(run) == "CANCELLED", 30.0)
    finally:
        sender.terminate()
        sender.kill()
        sender.wait()
    # The one promise in seconds: a cancelled service is gone long before Prefect would kill it.
    assert drained < 15.0
    status = service.status()
    page, counters = status["producers"]["c"], status["counters"]
    assert page["taken"] == page["settled"], "everything that was taken is in files or was filtered"
    assert counters["events_received"] == counters["total_events_written"] + counters["total_events_filtered"]
    assert counters["balance"] == 0
    assert len(service.written()) == counters["total_events_written"] > 0
    (table,) = [one for one in service.api.artifacts(run) if one["key"] == "service-cxi-writer"]
    rows = table["data"] if isinstance(table["data"], list) else json.loads(table["data"])
    assert rows[0]["events"] == counters["events_received"]
    assert rows[0]["files"] == len(list(service.out.glob("*.cxi")))
