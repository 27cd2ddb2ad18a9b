"""Having a group done again: once, whoever asks how often."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import FileFact, GroupFact, Owner, Queue
from nightbeam.core.errors import BusyError, InputError, MissingError, StorageError, UnavailableError
from nightbeam.core.settings import Settings
from nightbeam.monitor.read import Reader
from nightbeam.monitor.remote import DEPLOYMENT, Reprocessing

DONE, FAILED, WORKING, PENDING, PART = (f"2025-10-02T00:{m:02d}:{s:02d}" for m, s in
                                        ((0, 0), (5, 9), (10, 18), (15, 27), (20, 36)))  # fmt: skip
ME = Owner("me", "here", 1, 1.0)


class FakePrefect:
    """Prefect, as far as it is asked: the same key gives the same run."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.down = self.without_deployment = False
        self.fails_at_run = False

    def deployment(self, name: str) -> dict[str, Any]:
        if self.down:
            raise UnavailableError("no Prefect server answers")
        if self.without_deployment:
            raise MissingError("it has no such deployment")
        return {"id": "d"}

    def run_deployment(self, name: str, **told: Any) -> dict[str, Any]:
        if self.fails_at_run:
            raise UnavailableError("no Prefect server answers")
        self.asked.append({"name": name, **told})
        return self.runs.setdefault(told["idempotency_key"], {"id": f"run-{len(self.runs)}", "state_type": "SCHEDULED"})


@pytest.fixture
def prefect() -> FakePrefect:
    return FakePrefect()


@pytest.fixture
def again(filled: Settings, reader: Reader, prefect: FakePrefect) -> Reprocessing:
    return Reprocessing(filled, reader, server=lambda _url: prefect)


@pytest.fixture
def queue(filled: Settings) -> Queue:
    return Queue(str(filled.contimg.queue_db))


@pytest.mark.parametrize("group", [DONE, FAILED])
def test_a_group_that_is_over_is_pending_again_and_its_run_is_asked_for(
    again: Reprocessing, queue: Queue, prefect: FakePrefect, group: str
):
    before = queue.group(group)
    found = again.start(group)
    assert (found.ok, found.started, found.run_id) == (True, True, "run-0")
    row = queue.group(group)
    assert (row.state, row.retry_count, row.retry_base) == ("pending", before.retry_count + 1, before.retry_count + 1)
    assert queue.receipts(group) == []
    (asked,) = prefect.asked
    assert (asked["name"], asked["parameters"]) == (DEPLOYMENT, {"group": group, "site": "main"})
    assert asked["idempotency_key"] == f"main/{row.dispatch_key}"


def test_clicking_twice_starts_one_run(again: Reprocessing, queue: Queue, prefect: FakePrefect):
    first, second = again.start(DONE), again.start(DONE)
    assert (first.started, second.started, second.run_id) == (True, False, first.run_id)
    assert (len(prefect.runs), queue.group(DONE).retry_count) == (1, 1)


def test_fifty_who_click_at_once_start_one_run(again: Reprocessing, queue: Queue, prefect: FakePrefect):
    found = []
    clicking = [threading.Thread(target=lambda: found.append(again.start(DONE))) for _ in range(50)]
    for one in clicking:
        one.start()
    for one in clicking:
        one.join(30.0)
    assert len(found) == 50
    assert {one.run_id for one in found} == {"run-0"}
    assert sum(bool(one.started) for one in found) == 1
    assert queue.group(DONE).retry_count == 1


def test_two_monitors_of_one_site_start_one_run(filled: Settings, reader: Reader, prefect: FakePrefect, queue: Queue):
    one, other = (Reprocessing(filled, reader, server=lambda _url: prefect) for _ in range(2))
    assert one.start(DONE).run_id == other.start(DONE).run_id
    assert queue.group(DONE).dispatches == 1


def test_a_group_that_the_ingest_has_dispatched_has_the_same_run(
    again: Reprocessing, queue: Queue, prefect: FakePrefect
):
    dispatch = next(d for d in queue.take_dispatchable(9) if d.group_id == PENDING)
    assert again.start(PENDING).started is False
    assert prefect.asked[0]["idempotency_key"] == f"main/{dispatch.idempotency_key}"
    assert queue.group(PENDING).retry_count == 0


def test_a_pending_group_that_nobody_has_dispatched_is_dispatched_and_keeps_its_attempts(
    again: Reprocessing, queue: Queue
):
    assert again.start(PENDING).started is True
    assert queue.group(PENDING).retry_count == 0
    assert [d.group_id for d in queue.take_dispatchable(9)] == [], "the ingest does not dispatch it once more"


def test_a_group_that_waits_for_gains_is_done_from_the_beginning(again: Reprocessing, queue: Queue):
    queue.claim(PENDING, ME)
    queue.wait_for_gains(PENDING, ME, "none yet")
    assert again.start(PENDING).started is True
    assert queue.group(PENDING).processing_stage == "processing_fresh"


def test_a_run_that_ended_without_taking_the_group_is_followed_by_another(
    again: Reprocessing, prefect: FakePrefect, queue: Queue
):
    again.start(DONE)
    next(iter(prefect.runs.values()))["state_type"] = "CANCELLED"
    found = again.start(DONE)
    assert (found.run_id, found.started) == ("run-1", True)
    assert queue.group(DONE).retry_count == 1


def test_somebody_who_works_on_it_goes_on(again: Reprocessing, queue: Queue, prefect: FakePrefect):
    with pytest.raises(BusyError, match="being worked on"):
        again.start(WORKING)
    assert queue.group(WORKING).state == "in_progress"
    assert prefect.asked == []


def test_a_group_that_lacks_subbands_is_begun_where_that_is_asked_for(again: Reprocessing, queue: Queue):
    assert again.start(PART, partial=True).started
    assert (queue.group(PART).state, queue.group(PART).partial) == ("pending", 1)


def test_not_even_then_is_a_group_taken_from_whoever_works_on_it(again: Reprocessing, queue: Queue):
    with pytest.raises(BusyError):
        again.start(WORKING, partial=True)
    assert queue.group(WORKING).state == "in_progress"


def test_nor_where_it_became_whole_and_was_claimed_while_prefect_was_asked(
    again: Reprocessing, queue: Queue, prefect: FakePrefect, monkeypatch: pytest.MonkeyPatch
):
    worker = Owner("worker", "here", 2, 1.0)

    def meanwhile(_name: str) -> dict[str, Any]:
        rest = [FileFact(k, Path(f"/in/{PART}_sb{k:02d}.hdf5")) for k in range(3, 16)]
        row = queue.group(PART)
        queue.record(GroupFact(PART, row.start_mjd), rest)
        queue.claim(PART, worker)
        return {"id": "d"}

    monkeypatch.setattr(prefect, "deployment", meanwhile)
    with pytest.raises(BusyError):
        again.start(PART, partial=True)
    row = queue.group(PART)
    assert (row.state, row.owner) == ("in_progress", "worker")


def test_a_group_that_lacks_subbands_is_not_begun(again: Reprocessing, queue: Queue):
    with pytest.raises(InputError, match="3 of 16 subbands"):
        again.start(PART)
    assert queue.group(PART).state == "collecting"


def test_what_is_not_there_is_missing(again: Reprocessing, prefect: FakePrefect):
    with pytest.raises(MissingError, match="group not found"):
        again.start("2025-10-02T23:59:59")
    assert prefect.asked == []


def test_without_prefect_nothing_changes(again: Reprocessing, queue: Queue, prefect: FakePrefect):
    prefect.down = True
    with pytest.raises(UnavailableError, match="no Prefect server"):
        again.start(DONE)
    prefect.down, prefect.without_deployment = False, True
    with pytest.raises(UnavailableError, match="has no deployment"):
        again.start(DONE)
    assert queue.group(DONE).state == "completed"


def test_where_the_run_cannot_be_asked_for_the_group_is_pending_and_asked_for_later_with_the_same_key(
    again: Reprocessing, queue: Queue, prefect: FakePrefect
):
    prefect.fails_at_run = True
    with pytest.raises(UnavailableError, match="the group is pending"):
        again.start(DONE)
    key = queue.group(DONE).dispatch_key
    prefect.fails_at_run = False
    again.start(DONE)
    assert prefect.asked[0]["idempotency_key"] == f"main/{key}"


def test_the_run_that_could_not_be_asked_for_is_started_by_who_asks_again(again: Reprocessing, prefect: FakePrefect):
    prefect.fails_at_run = True
    with pytest.raises(UnavailableError, match="the group is pending"):
        again.start(DONE)
    prefect.fails_at_run = False
    assert [again.start(DONE).started for _ in range(2)] == [True, False]


def test_a_queue_that_is_locked_is_not_a_group_that_is_worked_on(
    again: Reprocessing, filled: Settings, queue: Queue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("nightbeam.monitor.remote._BUSY_TIMEOUT_S", 0.01)
    with closing(sqlite3.connect(str(filled.contimg.queue_db).removeprefix("sqlite:///"))) as raw:
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="cannot be written now"):
            again.start(DONE)
        raw.rollback()
    assert again.start(DONE).started


def test_a_key_gives_its_run_even_after_that_has_taken_the_group_and_after_a_restart(
    again: Reprocessing, filled: Settings, reader: Reader, queue: Queue, prefect: FakePrefect
):
    first = again.start(DONE, key="mine")
    queue.claim(DONE, ME)
    queue.complete(DONE, ME)
    for one in (again, Reprocessing(filled, reader, server=lambda _url: prefect)):
        found = one.start(DONE, key="mine")
        assert (found.run_id, found.started) == (first.run_id, False)
    assert queue.group(DONE).state == "completed"
    assert again.start(DONE, key="another").run_id != first.run_id
    with pytest.raises(InputError, match="used for"):
        again.start(FAILED, key="mine")


def test_a_damaged_memory_of_keys_is_none(again: Reprocessing, filled: Settings):
    path = filled.state_dir / "monitor" / "requests.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": {"unknown": 1}, "x": 5')
    assert again.start(DONE, key="mine").ok


def test_a_queue_that_is_not_there_is_not_made(settings: Settings, prefect: FakePrefect):
    with pytest.raises(UnavailableError, match="queue_db not found"):
        Reprocessing(settings, Reader(settings), server=lambda _url: prefect).start(DONE)
    assert not settings.state_dir.exists()


def test_a_queue_of_a_newer_schema_is_left_alone(again: Reprocessing, filled: Settings, prefect: FakePrefect):
    file = Path(str(filled.contimg.queue_db).removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("UPDATE nightbeam_queue_version SET version_num = '0099'")
        raw.commit()
    with pytest.raises(UnavailableError, match="has schema 0099"):
        again.start(DONE)
    assert prefect.asked == []


def test_without_a_platform_it_says_how_to_start_one(filled: Settings, reader: Reader):
    with pytest.raises(UnavailableError, match="no platform runs"):
        Reprocessing(filled, reader).start(DONE)


def test_a_full_disk_forgets_the_key_and_starts_the_run(
    again: Reprocessing, prefect: FakePrefect, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path, _text: str) -> None:
        raise StorageError(f"no space left for {path}")

    monkeypatch.setattr("nightbeam.monitor.remote.write_text", full)
    assert again.start(DONE, key="mine").started is True
    assert again.start(DONE, key="mine").started is False, "this process still knows it"
    assert len(prefect.runs) == 1
