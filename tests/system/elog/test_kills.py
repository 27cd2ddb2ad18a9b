"""Updates that are killed, and updates that meet another."""

from __future__ import annotations

import json
import random
import runpy
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import Logbook
from nightbeam.catalog.elog_snapshot import snapshot_counts
from nightbeam.core.locks import is_held
from nightbeam.elogsync.files import snapshots
from nightbeam.testing.elog_service import FakeLogbook

pytestmark = pytest.mark.system

_helpers = runpy.run_path(str(Path(__file__).resolve().parents[2] / "elog_mirror.py"))
content, differences, nothing_lost, start = (
    _helpers[name] for name in ("content", "differences", "nothing_lost", "start")
)


#: Reads lines of JSON: what to run, and when to kill it: in which phase, how often that has begun, and how long ago.
#: Says how it ended, and in which phases it was then. Phases are counted in memory that survives.
KILLED = """
import ctypes, json, mmap, os, signal, sys, threading, time
from contextlib import contextmanager
from nightbeam.catalog.remote import Database
from nightbeam.cli import main
from nightbeam.elog.remote import LogbookClient
from nightbeam.elogsync import files, worker

PHASES = ("starting", "looking around", "fetching", "writing", "publishing")
memory = mmap.mmap(-1, 4096)
begun, running = [(ctypes.c_int * 8).from_buffer(memory, at) for at in (0, 1024)]
lock = threading.Lock()

@contextmanager
def during(phase):
    n = PHASES.index(phase)
    with lock:
        begun[n] += 1
        running[n] += 1
    try:
        yield
    finally:
        with lock:
            running[n] -= 1

def counted(owner, name, phase, manager=False):
    function = getattr(owner, name)
    def call(*args, **options):
        with during(phase):
            return function(*args, **options)
    @contextmanager
    def enter(*args, **options):
        with during(phase), function(*args, **options) as found:
            yield found
    setattr(owner, name, enter if manager else call)

counted(Database, "_open", "starting")
counted(worker, "look_around", "looking around")
counted(LogbookClient, "_try", "fetching")
counted(Database, "write", "writing", manager=True)
counted(files, "publish", "publishing")

def run(argv):
    try:
        main(argv)
    except SystemExit as ended:
        return ended.code or 0

def child(argv):
    sys.stdout = open(os.devnull, "w")
    os._exit(run(argv))

def kill(pid, order):
    n, ended = PHASES.index(order["phase"]), 0
    while begun[n] < order["times"] and not ended:
        time.sleep(0.0002)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        time.sleep(order["later"])
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return status

said, sys.stdout = sys.stdout, sys.stderr
run(json.loads(sys.argv[1]))  # everything is imported now
assert threading.active_count() == 1
for line in sys.stdin:
    order = json.loads(line)
    memory.seek(0)
    memory.write(bytes(2048))
    pid = os.fork()
    if pid == 0:
        child(order["argv"])
    status = kill(pid, order) if "phase" in order else os.waitpid(pid, 0)[1]
    ended = "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    found = {"ended": ended, "pid": pid, "during": [p for p, n in zip(PHASES, running) if n], "begun": list(begun)}
    print(json.dumps(found), file=said, flush=True)
"""

KILLS, KILLS_ON_A_SERVER = 52, 20
#: How often a phase begins in a small update, at most; and how long one takes, roughly.
MOMENTS = {
    "starting": (2, 0.01),
    "looking around": (1, 0.02),
    "fetching": (15, 0.005),
    "writing": (22, 0.005),
    "publishing": (1, 0.06),
}


class Victim:
    """A process that runs commands, and kills them when it is told to."""

    def __init__(self, *warm: Any) -> None:
        argv = [sys.executable, "-c", KILLED, json.dumps([str(one) for one in warm])]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, argv: list[Any], **moment: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"argv": [str(one) for one in argv], **moment}) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        self.process.communicate(timeout=10)


@pytest.fixture
def victim(fake: FakeLogbook, tmp_path: Path) -> Iterator[Victim]:
    service = ("--base-url", fake.url, "--auth", "none")
    found = Victim("elog", "update", "--everything", *service, "--database-dir", tmp_path / "warm")
    yield found
    found.close()


def is_free(url: str) -> bool:
    file = Logbook(url).database.file
    if file is not None:
        return not is_held(file.with_name(f".{file.name}.sync.lock"))
    until = time.monotonic() + 5  # the server sees that its client is gone a moment later
    while time.monotonic() < until:
        with Logbook(url).database.read() as connection:
            if connection.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").scalar() == 0:
                return True
        time.sleep(0.01)
    return False


def look_through_snapshots(place: Path) -> None:
    """Look through every snapshot, as a reader that has no other file than that."""
    for path in snapshots(place):
        assert snapshot_counts(path)["experiments"] > 0
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_an_update_killed_at_fifty_random_moments_harms_nothing(
    fake: FakeLogbook, logbook_url: str, place: Path, victim: Victim
):
    fake.populate(3, 6, 3, 4, parameters=14, fields=4, definitions=1, jobs=1, odd=0.1, seed=31)
    fake.latency_s = 0.003
    service = ["--base-url", fake.url, "--auth", "none", "--jobs", "3"]
    where = ["--database", logbook_url, "--database-dir", place]
    update = ["elog", "update", "--everything", *service]
    dice, died, ends, leftovers = random.Random(3), Counter[str](), Counter[Any](), 0
    rows: dict[Any, Any] = {}
    file = Logbook(logbook_url).database.file
    kills = KILLS if file else KILLS_ON_A_SERVER
    for n in range(10 * kills):
        if ends["killed"] == kills:
            break
        phase = (*MOMENTS, "writing")[n % (len(MOMENTS) + 1)]
        times, later = MOMENTS[phase]
        moment = {"phase": phase, "times": dice.randint(1, times), "later": dice.uniform(0, later)}
        new = place.parent / f"new{n}"  # a mirror that is just being made
        made_now = file is not None and phase == "starting"
        there = ["--database-dir", new] if made_now else where
        found = victim([*update, *there, *(["--full"] if dice.random() < 0.5 else [])], **moment)
        ends[found["ended"]] += 1
        if found["ended"] == "killed":
            died.update(found["during"] or ["between"])
        if made_now:
            assert victim([*update, *there])["ended"] == 0
            assert differences(Logbook(f"sqlite:///{new}/elog.db"), fake, without={"jobs"}) == []
            shutil.rmtree(new)
        book = Logbook(logbook_url)
        assert is_free(logbook_url)
        rows = nothing_lost(rows, book)
        look_through_snapshots(place)
        leftovers += any(".part" in path.name for path in place.glob(".*"))
        if n % 14 == 13:  # nothing is left to be done but to publish
            victim([*update, *where, "--full"], phase="publishing", times=1, later=0)
        if n % 7 == 6 or "writing" in found["during"]:
            assert victim([*update, *where, "--full"])["ended"] == 0
            assert differences(book, fake, without={"jobs"}) == []
        if n % 7 == 6:
            assert content(Logbook(f"sqlite:///{snapshots(place)[-1]}")) == content(book)
            assert victim(["elog", "verify", *where])["ended"] == 0
            names = {path.name for path in place.iterdir()} - {path.name for path in snapshots(place)}
            names |= {path.name for path in file.parent.iterdir() if path.is_file()} if file else set()
            assert file is None or names <= {file.name, f".{file.name}.lock", f".{file.name}.sync.lock"}
        fake.stir(12, seed=n)
    assert set(ends) <= {"killed", 0}
    assert ends["killed"] == kills, "too many updates ended before their signal"
    assert all(died[phase] >= kills // 20 for phase in MOMENTS), died
    assert leftovers >= 1 or not file, "no kill fell into the writing of a file"


@pytest.mark.parametrize("logbook_url", ["sqlite"], indirect=True)
def test_a_first_update_killed_at_any_moment_is_completed_by_the_next_however_little_is_new(
    fake: FakeLogbook, logbook_url: str, place: Path, victim: Victim
):
    fake.populate(3, 6, 3, 4, parameters=14, fields=4, seed=32)
    fake.latency_s = 0.003
    service = ["--base-url", fake.url, "--auth", "none", "--jobs", "2"]
    update = ["elog", "update", "--everything", "--hours", "0.001", *service]
    dice, killed = random.Random(4), 0
    for n in range(14):
        where = ["--database-dir", place.parent / f"new{n}"]
        killed += (
            victim([*update, *where], phase="writing", times=n + 1, later=dice.uniform(0, 0.005))["ended"] == "killed"
        )
        assert victim([*update, *where])["ended"] == 0
        book = Logbook(f"sqlite:///{place.parent}/new{n}/elog.db")
        assert differences(book, fake, without={"jobs"}) == []
        assert content(Logbook(f"sqlite:///{snapshots(place.parent / f'new{n}')[-1]}")) == content(book)
    assert killed >= 8


@pytest.mark.parametrize("known", [True, False])
def test_the_second_of_two_updates_hears_who_is_at_it_and_the_first_goes_on(
    fake: FakeLogbook, logbook_url: str, place: Path, elog: Any, until: Callable[..., Any], known: bool
):
    fake.populate(2, 4, 2, 2, parameters=14, fields=2, seed=41)
    if known:
        assert elog("update", "--everything")[0] == 0
        fake.post(fake.experiments[0], "since then")
    held = threading.Event()
    answer, fake._answer = fake._answer, lambda *asked: (held.wait(15), answer(*asked))[1]  # type: ignore[method-assign]
    where = ("--database", logbook_url, "--database-dir", place)
    first = start(fake, "--auth", "none", *where)
    try:
        until(lambda: fake._in_flight, 60, every_s=0.02)
        fake.forget()
        code, _, err = elog("update", "--everything")
        assert code == 75
        assert f"is held by process {first.pid} on {socket.gethostname()}" in err
        assert fake.traffic.most_in_flight == 1, "the second has asked something"
        assert elog("fetch", fake.experiments[0])[0] == 75
    finally:
        held.set()
        said = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert differences(Logbook(logbook_url), fake, without={"jobs"}) == []


def test_a_look_around_that_ends_does_not_remove_the_mirror_that_an_update_begins_to_fill(
    fake: FakeLogbook, tmp_path: Path, place: Path, until: Callable[..., Any]
):
    fake.populate(2, 4, 2, 2, parameters=14, fields=2, seed=43)
    gates, asking, answer = (threading.Event(), threading.Event()), dict[int, int](), fake._answer

    def wait(*asked: Any) -> Any:
        # Each connection has a thread; whose is the first to ask is the look-around.
        gates[min(asking.setdefault(threading.get_ident(), len(asking)), 1)].wait(30)
        return answer(*asked)

    fake._answer = wait  # type: ignore[method-assign]
    file = tmp_path / "elog.db"
    where = ("--auth", "none", "--database", file, "--database-dir", place)
    look = start(fake, "--dry-run", *where)
    until(lambda: fake._in_flight == 1, 30, every_s=0.02)
    update = start(fake, *where)
    until(lambda: fake._in_flight == 2, 30, every_s=0.02)
    gates[0].set()
    assert (look.communicate(timeout=60)[0] != "", look.returncode) == (True, 0)
    assert is_held(tmp_path / ".elog.db.sync.lock")
    gates[1].set()
    said = update.communicate(timeout=60)
    assert update.returncode == 0, said
    assert differences(Logbook(f"sqlite:///{file}"), fake, without={"jobs"}) == []


def test_of_many_updates_that_begin_at_once_those_that_fail_say_why_and_the_mirror_is_whole(
    fake: FakeLogbook, logbook_url: str, place: Path, elog: Any
):
    fake.populate(3, 5, 3, 3, parameters=14, fields=3, seed=42)
    fake.latency_s = 0.02
    where = ("--auth", "none", "--database", logbook_url, "--database-dir", place)
    started = [start(fake, *where) for _ in range(4)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert {code for _, code in ended} <= {0, 75}, ended
    assert 0 in {code for _, code in ended}
    assert all("is held by process" in err for err, code in ended if code == 75)
    book = Logbook(logbook_url)
    assert differences(book, fake, without={"jobs"}) == []
    assert content(Logbook(f"sqlite:///{snapshots(place)[-1]}")) == content(book)
    assert elog("verify")[0] == 0
