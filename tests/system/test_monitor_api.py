"""The monitor as a program: it listens, says where, ends cleanly, and is there again after it was killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import FileFact, GroupFact, Queue

pytestmark = pytest.mark.system


class Monitor:
    """`nightbeam monitor serve` in a process of its own."""

    def __init__(self, state: Path, *more: str) -> None:
        argv = [sys.executable, "-m", "nightbeam", "monitor", "serve", "--state-dir", str(state), *more]
        self.state = state
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def address(self) -> str:
        """Wait for the line that says where it listens."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read() if self.process.stderr else ""
        return line

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30.0)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10.0)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def get(url: str, **headers: str) -> tuple[int, Any, bytes]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30.0) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    here = tmp_path / "state"
    queue = Queue(f"sqlite:///{here}/ingest.sqlite3")
    files = [FileFact(k, Path(f"/in/sb{k:02d}.hdf5")) for k in range(16)]
    queue.record(GroupFact("2025-10-02T00:00:00", 60950.0), files)
    return here


@pytest.fixture
def monitor(state: Path) -> Iterator[Monitor]:
    found = Monitor(state)
    yield found
    found.close()


def test_it_says_where_it_listens_answers_and_takes_that_back_when_it_ends(monitor: Monitor, state: Path):
    address = monitor.address()
    assert (state / "monitor" / "address").read_text().strip() == address
    assert stat.S_IMODE((state / "monitor.token").stat().st_mode) == 0o600
    status, headers, body = get(f"{address}/api/status")
    assert (status, json.loads(body)["queue"]["pending"]) == (200, 1)
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["server"] is None
    assert get(f"{address}/api/status", host="evil.example")[0] == 400
    assert get(f"{address}/api/health")[0] == 200
    assert b"nightbeam_groups" in get(f"{address}/metrics")[2]
    assert monitor.stop() == 0
    assert not (state / "monitor" / "address").exists()


def test_a_group_that_comes_while_it_runs_is_seen(monitor: Monitor, state: Path):
    address = monitor.address()
    queue = Queue(f"sqlite:///{state}/ingest.sqlite3")
    queue.record(GroupFact("2025-10-02T00:05:09", 60950.1), [FileFact(0, Path("/in/x.hdf5"))])
    until = time.monotonic() + 30.0
    while json.loads(get(f"{address}/api/status")[2])["queue"]["total"] != 2:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_path_that_leads_out_is_sent_as_it_is_and_finds_nothing(monitor: Monitor, state: Path):
    address = monitor.address()
    (state / "qa" / "g").mkdir(parents=True)
    (state / "qa" / "g" / "a.png").write_bytes(b"png")
    port = int(address.rpartition(":")[2])
    for path in ("/api/qa/file/../../monitor.token", "/api/qa/file/g/..%2f..%2fmonitor.token", "/../monitor.token"):
        with socket.create_connection(("127.0.0.1", port), timeout=30.0) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            said = b"".join(iter(lambda raw=raw: raw.recv(65536), b""))
        assert said.split(b" ", 2)[1] == b"404", path
    assert get(f"{address}/api/qa/file/g/a.png")[2] == b"png"


def test_a_port_that_is_taken_is_one_error_and_another_one_is_found_where_none_is_named(monitor: Monitor, state: Path):
    port = monitor.address().rpartition(":")[2]
    second = Monitor(state, "--port", port)
    try:
        assert second.process.wait(60.0) == 75
        assert second.process.stderr is not None
        assert f"port {port} on 127.0.0.1 cannot be had" in second.process.stderr.read()
    finally:
        second.close()
    third = Monitor(state)
    try:
        assert third.address().rpartition(":")[2] != port
        assert third.stop(signal.SIGINT) == 0
    finally:
        third.close()


def test_after_a_kill_it_is_there_again_with_the_same_token(monitor: Monitor, state: Path):
    monitor.address()
    token = (state / "monitor.token").read_text()
    assert monitor.stop(signal.SIGKILL) == -signal.SIGKILL
    again = Monitor(state)
    try:
        address = again.address()
        assert (state / "monitor" / "address").read_text().strip() == address
        assert (state / "monitor.token").read_text() == token
        assert get(f"{address}/api/status")[0] == 200
    finally:
        again.close()


def test_fifty_clients_at_once_are_all_answered(monitor: Monitor):
    address = monitor.address()
    found: list[int] = []
    asking = [
        threading.Thread(target=lambda n=n: found.append(get(f"{address}/api/groups?limit={n + 1}")[0]))
        for n in range(50)
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join(60.0)
    assert found == [200] * 50


def test_a_token_that_others_may_read_is_refused_before_anything_is_served(state: Path):
    (state / "monitor.token").write_text("x" * 40)
    os.chmod(state / "monitor.token", 0o644)  # noqa: PTH101
    found = Monitor(state)
    try:
        assert found.process.wait(60.0) == 65
        assert not (state / "monitor" / "address").exists()
    finally:
        found.close()
