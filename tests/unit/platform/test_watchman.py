"""Alarms come from the supervisor: once each, with the time of what happened, whatever has died."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nightbeam.core.errors import StorageError, ToolError, UnavailableError
from nightbeam.core.times import iso_z
from nightbeam.platform.alarms import Alarm, read_alarms, record_alarms
from nightbeam.platform.model import PartState, PartStatus
from nightbeam.platform.watchman import LATE_S, QUIET_S, SILENT_S, Watchman

BEGIN = datetime(2026, 1, 1, 20, 0, tzinfo=UTC).timestamp()


class Server:
    """Answers as Prefect's does, of runs that a test lets end."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.ready = {"batch": True, "casa": True}
        self.away = False

    def flow_names(self, names: Any) -> dict[str, str]:
        return {f"id-{name}": name for name in names}

    def runs_of(self, flows: Any, *, types: Any = (), names: Any = (), ended_after: str | None = None,
                started_after: str | None = None, started: bool | None = None) -> list[dict[str, Any]]:  # fmt: skip
        if self.away:
            raise UnavailableError("nobody answers")
        return [
            run
            for run in self.runs
            if run["flow_id"].removeprefix("id-") in flows
            and (not types or run["state"]["type"] in types)
            and (not names or run["state"]["name"] in names)
            and (ended_after is None or run["state"]["timestamp"] >= ended_after)
            and (started_after is None or (run["start_time"] or "") >= started_after)
        ]

    def pools(self) -> list[dict[str, Any]]:
        return [{"name": name, "status": "READY" if ready else "NOT_READY"} for name, ready in self.ready.items()]


class World:
    """A server, a clock and a watchman who can be replaced by another."""

    def __init__(self, place: Path) -> None:
        self.server, self.place, self.now_s = Server(), place, 0.0
        self.told: list[str] = []
        self.deaf = False
        self.watchman = self.new()

    def new(self, **more: Any) -> Watchman:
        told: dict[str, Any] = {"pools": ("batch", "casa"), "runs": True, "notify": self.notify} | more
        return Watchman(
            self.server, file=self.place / "alarms.jsonl", memory=self.place / "watched.json", machine="here",
            clock=lambda: BEGIN + self.now_s, elapsed=lambda: self.now_s, **told,
        )  # fmt: skip

    def notify(self, text: str) -> None:
        if self.deaf:
            raise ToolError("no server, no block")
        self.told.append(text)

    def at(self, s: float) -> str:
        return iso_z(datetime.fromtimestamp(BEGIN + s, UTC))

    def ends(self, flow: str, name: str, *, at: float, kind: str = "FAILED", why: str = "no room") -> None:
        state = {"type": kind, "name": kind.title(), "message": f"{why}\nand more", "timestamp": self.at(at)}
        run = {"id": name, "state_id": f"state of {name}", "name": name, "flow_id": f"id-{flow}", "state": state}
        self.server.runs.insert(0, {**run, "start_time": self.at(at - 5)})

    def look(self, *parts: PartStatus, at: float | None = None) -> list[Alarm]:
        self.now_s = self.now_s + 15.0 if at is None else at
        return self.watchman.look(parts)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_run_that_fails_is_told_once_with_the_time_at_which_it_failed(world: World):
    world.look(at=0.0)
    world.ends("group-imaging", "g1", at=7.0)
    world.ends("elog-sync", "of no night", at=8.0)
    (alarm,) = world.look(at=15.0)
    assert (alarm.at, alarm.what, alarm.subject) == (world.at(7.0), "a run failed", "group-imaging g1")
    assert (alarm.detail, alarm.machine) == ("no room", "here")
    assert world.look() == world.look(at=QUIET_S * 3) == []
    assert read_alarms(world.place) == [alarm]
    assert world.told == [alarm.sentence()]


def test_what_was_before_the_first_watch_is_not_told(world: World):
    world.ends("group-imaging", "long ago", at=-4000.0)
    assert world.look(at=0.0) == []


def test_of_a_flow_that_fails_again_and_again_there_is_one_alarm_in_ten_minutes_that_counts(world: World):
    world.look(at=0.0)
    found = []
    for n in range(40):
        world.ends("ingest-subbands", f"scan {n}", at=30.0 * n + 1, kind="CRASHED" if n == 20 else "FAILED")
        found += world.look(at=30.0 * n + 15)
        if n == 3:
            world.ends("group-imaging", "g1", at=30.0 * n + 16)
    assert [(alarm.count, alarm.subject) for alarm in found] == [
        (1, "ingest-subbands scan 0"), (1, "group-imaging g1"), (20, "ingest-subbands scan 20"),
    ]  # fmt: skip
    assert (found[2].first_at, found[2].at) == (world.at(31.0), world.at(601.0))
    assert found[2].what == "20 runs failed or crashed, the last"


def test_what_happened_while_nobody_watched_is_told_together_on_return_and_nothing_twice(world: World):
    world.look(at=0.0)
    world.ends("group-imaging", "g0", at=10.0)
    assert len(world.look(at=15.0)) == 1
    for n in range(1, 30):
        world.ends("group-imaging", f"g{n}", at=10.0 + 60 * n)
    world.watchman = world.new()
    (alarm,) = world.look(at=5000.0)
    assert (alarm.count, alarm.at, alarm.first_at) == (29, world.at(10.0 + 60 * 29), world.at(70.0))


def test_an_end_that_the_server_hears_of_late_is_told(world: World):
    world.look(at=0.0)
    world.ends("housekeeping", "h1", at=1000.0)
    world.look(at=1010.0)
    world.ends("group-imaging", "g1", at=500.0)  # the server was away from where it ran
    (alarm,) = world.look(at=1600.0)
    assert (alarm.subject, alarm.at) == ("group-imaging g1", world.at(500.0))


def test_what_waits_to_be_told_is_not_lost_with_its_watchman(world: World):
    world.look(at=0.0)
    world.ends("group-imaging", "g0", at=10.0)
    world.look(at=15.0)
    world.ends("group-imaging", "g1", at=20.0)
    world.ends("housekeeping", "h1", at=200.0)
    assert [alarm.subject for alarm in world.look(at=215.0)] == ["housekeeping h1"]
    world.watchman = world.new()  # the other was killed
    world.watchman._told["group-imaging"] = -QUIET_S
    (alarm,) = world.look(at=400.0)
    assert (alarm.subject, alarm.count) == ("group-imaging g1", 1)


def test_a_pool_without_a_worker_is_told_once_though_nothing_of_it_runs(world: World):
    world.look(at=0.0)
    world.server.ready["batch"] = False
    assert world.look(at=15.0) == []
    assert world.look(at=LATE_S) == []
    (alarm,) = world.look(at=15.0 + LATE_S)
    assert (alarm.what, alarm.subject, alarm.at) == ("a pool has no worker", "batch", world.at(15.0))
    assert world.look(at=99_999.0) == []
    world.server.ready["batch"] = True
    assert world.look() == []
    world.server.ready["batch"] = False
    world.look()
    assert len(world.look(at=200_000.0)) == 1, "another time is another alarm"


def test_where_runs_are_watched_every_pool_is_that_has_had_a_worker(world: World):
    world.watchman = world.new(pools=())
    world.server.ready["spare"] = False
    world.look(at=0.0)
    world.server.ready["casa"] = False
    world.watchman = world.new(pools=())  # which has never seen it ready
    world.look(at=15.0)
    (alarm,) = world.look(at=15.0 + LATE_S)
    assert (alarm.what, alarm.subject) == ("a pool has no worker", "casa")
    del world.server.ready["casa"]
    world.look()
    world.server.ready["casa"] = False  # made anew, and nobody has served it yet
    world.look()
    assert world.look(at=99_999.0) == []


def test_a_clock_that_went_ahead_and_was_set_back_loses_no_alarm(world: World):
    world.look(at=0.0)
    world.ends("group-imaging", "g0", at=10.0)
    assert len(world.look(at=15.0)) == 1
    world.ends("housekeeping", "h0", at=90_000.0)  # another machine's clock
    assert len(world.look(at=20.0)) == 1
    world.ends("flight-check", "f0", at=80_000.0)
    assert len(world.look(at=80_015.0)) == 1  # ours
    world.ends("ingest-subbands", "i0", at=30.0)
    assert [alarm.subject for alarm in world.look(at=40.0)] == ["ingest-subbands i0"]


def test_a_watch_that_began_with_a_clock_ahead_tells_what_happens_once_it_is_right(world: World):
    world.look(at=50_000.0)
    world.look(at=0.0)
    world.ends("group-imaging", "g0", at=10.0)
    assert len(world.look(at=15.0)) == 1


def test_a_shared_directory_that_hangs_keeps_nobody_from_being_told_and_has_all_when_it_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    back, written = threading.Event(), record_alarms
    shared = world.place / "shared" / "alarms-here.jsonl"

    def hang(file: Path, alarms: Any) -> None:
        if file == shared:
            back.wait(60.0)
        written(file, alarms)

    monkeypatch.setattr("nightbeam.platform.alarms.record_alarms", hang)
    monkeypatch.setattr("nightbeam.platform.alarms._WITHIN_S", 1.0)
    world.watchman = world.new(shared=shared)
    world.look(at=0.0)
    for flow in ("group-imaging", "housekeeping", "flight-check"):
        world.ends(flow, f"one {flow}", at=world.now_s + 1)
        world.look()
    assert len(world.told) == len(read_alarms(world.place)) == 3
    assert not shared.exists()
    (thread,) = [one for one in threading.enumerate() if one.name == "write-alarms-here.jsonl"]
    back.set()
    thread.join(60.0)
    assert read_alarms(shared.parent) == read_alarms(world.place) == read_alarms(world.place, shared.parent)


def test_a_shared_directory_that_cannot_be_written_leaves_the_alarm_on_this_machine(world: World):
    (world.place / "file").write_text("")
    world.watchman = world.new(shared=world.place / "file" / "alarms-here.jsonl")
    world.look(at=0.0)
    world.ends("group-imaging", "g0", at=1.0)
    (alarm,) = world.look()
    assert read_alarms(world.place) == [alarm]
    assert world.told == [alarm.sentence()]


def test_pools_that_are_not_served_here_and_runs_of_anothers_server_are_looked_at_by_others(world: World):
    world.watchman = world.new(pools=(), runs=False)
    world.look(at=0.0)
    world.server.ready["casa"] = False
    world.ends("group-imaging", "g0", at=10.0)
    assert world.look(at=15.0) == world.look(at=9999.0) == []


def test_a_server_that_is_silent_is_told_and_what_stood_before_is_not_told_again(world: World):
    world.server.ready["casa"] = False
    world.look(at=0.0)
    assert len(world.look(at=LATE_S)) == 1
    world.server.away = True
    assert world.look(at=1000.0) == []
    (alarm,) = world.look(at=1000.0 + SILENT_S)
    assert (alarm.what, alarm.at) == ("the server does not answer", world.at(1000.0))
    world.server.away = False
    assert world.look(at=3000.0) == []


def late(world: World, *, due: float) -> None:
    state = {"type": "SCHEDULED", "name": "Late", "message": "", "timestamp": world.at(due + 15)}
    run = {"id": "late", "state_id": "late", "name": "a scan", "flow_id": "id-ingest-subbands", "state": state}
    world.server.runs.append({**run, "start_time": None, "expected_start_time": world.at(due)})


def test_runs_that_do_not_begin_are_told_and_those_that_wait_behind_one_that_runs_are_not(world: World):
    late(world, due=100.0)
    assert world.look(at=100.0 + LATE_S) == []
    (alarm,) = world.look(at=101.0 + LATE_S)
    assert (alarm.what, alarm.subject, alarm.at) == ("runs are late", "ingest-subbands", world.at(100.0))
    other = World(world.place / "other")
    late(other, due=100.0)
    other.ends("ingest-subbands", "long one", at=105.0, kind="RUNNING")
    assert other.look(at=900.0) == []


def test_a_run_that_does_not_end_is_told_once_and_one_that_may_take_hours_is_not(world: World):
    world.look(at=0.0)
    world.ends("ingest-subbands", "a scan", at=105.0, kind="RUNNING")
    world.ends("nightly-mosaic", "a mosaic", at=105.0, kind="RUNNING")
    assert world.look(at=1000.0) == []
    (alarm,) = world.look(at=1001.0)
    assert (alarm.what, alarm.subject, alarm.at) == ("a run hangs", "ingest-subbands a scan", world.at(1000.0))
    world.server.away = True
    world.look(at=1100.0)
    world.server.away = False
    assert world.look(at=1200.0) == []
    assert [one.subject for one in world.look(at=30_000.0)] == ["nightly-mosaic a mosaic"]


def test_a_part_that_was_given_up_is_told_though_the_server_is_away(world: World):
    world.server.away = True
    (alarm,) = world.look(PartStatus("server", PartState.GIVEN_UP, last_exit="exit code 1"), at=5.0)
    assert (alarm.what, alarm.subject, alarm.detail) == ("a part was given up", "server", "exit code 1")


def test_whom_nobody_could_tell_is_told_later_and_a_full_disk_is_told_all_the_more(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise StorageError("no room", fix="free some")

    world.look(at=0.0)
    world.deaf = True
    world.ends("group-imaging", "g0", at=1.0)
    monkeypatch.setattr("nightbeam.platform.alarms.record_alarms", full)
    (alarm,) = world.look()
    assert world.told == []
    world.deaf = False
    assert world.look() == []
    assert world.told == [f"{alarm.sentence()} (not written down: no room)"]


def test_a_memory_that_says_nothing_begins_the_watch_anew(world: World):
    (world.place / "watched.json").write_text("{")
    world.ends("group-imaging", "g0", at=-500.0)
    assert world.look(at=0.0) == []
    world.ends("group-imaging", "g1", at=10.0)
    assert len(world.look()) == 1
