"""The writer for months: sessions follow each other, what is missing is waited for, counters add up."""

from __future__ import annotations

import fcntl
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from nightbeam.core.errors import BusyError, MissingError, StorageError, UnavailableError
from nightbeam.core.locks import is_held
from nightbeam.cxi import start
from nightbeam.cxi.ledger import lock_path
from nightbeam.cxi.service import StreamWriter
from nightbeam.cxi.worker import CxiService
from nightbeam.testing.cxi_world import World, small_config


class Worlds:
    """One world after another; the last one has no end, and stops the service as soon as it is asked."""

    def __init__(self, stop: threading.Event, *prepare: Callable[[World], Any]) -> None:
        self.stop, self.worlds = stop, [World() for _ in prepare]
        for world, fill in zip(self.worlds, prepare, strict=True):
            fill(world)
        self._rest: Iterator[World] = iter(self.worlds)
        self.asked = 0

    def begin(self, config: Any) -> CxiService:
        self.asked += 1
        world = next(self._rest, None)
        if world is None:
            self.stop.set()
            world = World()
        return CxiService(config, doors=world.doors())


def two_batches(world: World) -> None:
    world.send(0)
    world.send(1, peaks=(3, 0, 0, 3))
    world.end()


def one_batch_without_arrays(world: World) -> None:
    world.send(0)
    world.objects.clear()
    world.end()


def test_a_session_ends_with_its_producers_and_the_next_begins_and_counters_add_up(tmp_path):
    stop = threading.Event()
    worlds = Worlds(stop, two_batches, one_batch_without_arrays, two_batches)
    service = StreamWriter(small_config(tmp_path), begin=worlds.begin, wait_s=0.01)
    found = service.loop(stop)
    assert worlds.asked == 4
    assert (found["batches_received"], found["events_received"]) == (5, 20)
    assert (found["total_events_written"], found["total_events_filtered"]) == (12, 4)
    assert found["events_lost"] == {"object lost": 4}
    assert found["balance"] == 0
    assert found["sessions"] == 4
    assert [len(world.files.events()) for world in worlds.worlds] == [6, 0, 6]


def test_until_end_is_until_the_end_of_the_first_session(tmp_path):
    stop = threading.Event()
    worlds = Worlds(stop, two_batches, two_batches)
    found = StreamWriter(small_config(tmp_path), until_end=True, begin=worlds.begin).loop(stop)
    assert worlds.asked == 1
    assert found["total_events_written"] == 6
    assert not stop.is_set()


@pytest.mark.parametrize("error", [UnavailableError("no cluster"), MissingError("no queue")])
def test_what_is_not_there_yet_is_waited_for_and_said_once(tmp_path, error, caplog):
    stop = threading.Event()
    worlds = Worlds(stop, two_batches)
    said: list[list[str]] = []

    def begin(config: Any) -> Any:
        if len(said) < 3:
            said.append(service.counters()["problems"])
            return Failing(error)
        return worlds.begin(config)

    service = StreamWriter(small_config(tmp_path), until_end=True, begin=begin, wait_s=0.01)
    with caplog.at_level(logging.WARNING):
        found = service.loop(stop)
    assert said == [[], [str(error)], [str(error)]]
    assert caplog.text.count(error.what) == 1
    assert found["total_events_written"] == 6
    assert found["problems"] == []


@pytest.mark.parametrize("error", [BusyError("another writer"), StorageError("no room for 7 events")])
def test_what_waiting_does_not_mend_ends_the_service(tmp_path, error):
    service = StreamWriter(small_config(tmp_path), begin=lambda _: Failing(error))
    with pytest.raises(type(error)):
        service.loop(threading.Event())


def test_a_cluster_that_goes_in_mid_session_is_waited_for_and_what_was_counted_stays(tmp_path):
    stop = threading.Event()
    worlds = Worlds(stop, two_batches)
    first = CxiService(small_config(tmp_path), doors=worlds.worlds[0].doors())
    take, taken = worlds.worlds[0].queue.take, []

    def gone(timeout_s: float) -> Any:
        if taken:
            raise UnavailableError("the cluster is gone")
        taken.append(1)
        return take(timeout_s)

    worlds.worlds[0].queue.take = gone  # type: ignore[method-assign]
    sessions: Iterator[Any] = iter([first])
    service = StreamWriter(small_config(tmp_path), begin=lambda c: next(sessions, None) or worlds.begin(c), wait_s=0.01)
    worlds._rest = iter([])
    found = service.loop(stop)
    assert found["batches_received"] == 1
    assert found["total_events_written"] == 4


class Pauses(threading.Event):
    """A stop that is set after so many waits, none of which takes any time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.waited = most, []

    most: int
    waited: list[float | None]

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        if len(self.waited) >= self.most:
            self.set()
        return self.is_set()


def test_the_pause_between_attempts_grows_to_half_a_minute_and_no_attempt_is_a_session(tmp_path):
    stop = Pauses(7)
    service = StreamWriter(small_config(tmp_path), begin=lambda _: Failing(UnavailableError("no cluster")))
    found = service.loop(stop)
    assert stop.waited == [2, 4, 8, 16, 30, 30, 30]
    assert (found["sessions"], service.sessions) == (0, 0)


def test_after_a_session_the_pause_is_short_again(tmp_path):
    stop = Pauses(6)
    worlds = Worlds(stop, lambda world: world.end())
    sessions: Iterator[Any] = iter([Failing(MissingError("no queue")), Failing(MissingError("no queue")), None])
    later = Failing(UnavailableError("no cluster"))

    def begin(config: Any) -> Any:
        return next(sessions, later) or worlds.begin(config)

    service = StreamWriter(small_config(tmp_path), begin=begin)
    assert service.loop(stop)["sessions"] == 1
    assert stop.waited == [2, 4, 2, 2, 4, 8]


def test_the_connection_is_kept_while_a_queue_is_waited_for_and_left_in_the_end(tmp_path):
    happened: list[str] = []
    errors = [MissingError("queue"), MissingError("queue"), UnavailableError("cluster"), MissingError("queue")]

    def begin(_: Any) -> Any:
        happened.append("begin")
        return Failing(errors[len(happened) - happened.count("leave") - 1])

    StreamWriter(small_config(tmp_path), begin=begin, leave=lambda: happened.append("leave")).loop(Pauses(4))
    assert happened == ["begin", "begin", "begin", "leave", "begin", "leave"]


def test_the_connection_is_left_after_a_session_and_after_an_error(tmp_path):
    left: list[int] = []
    stop = threading.Event()
    worlds = Worlds(stop, two_batches)
    StreamWriter(small_config(tmp_path), until_end=True, begin=worlds.begin, leave=lambda: left.append(1)).loop(stop)
    assert left
    left.clear()
    with pytest.raises(BusyError):
        StreamWriter(
            small_config(tmp_path), begin=lambda _: Failing(BusyError("another")), leave=lambda: left.append(1)
        ).loop(threading.Event())
    assert left == [1]


def test_the_next_writer_goes_on_with_the_counts_of_each_run(tmp_path):
    told = []
    for first in (0, 2):
        world = World()
        world.send(first)
        world.send(first + 1)
        world.end()
        service = CxiService(small_config(tmp_path), doors=world.doors(), clock=world.clock)
        service.loop(threading.Event())
        (said,) = json.loads((tmp_path / "peaknet_cxi_status.json").read_text())["runs"]
        told.append((said["events"], said["hits"], said["hit_rate"]))
    (events, hits, rate), after = told
    assert 0 < hits <= events
    assert after == (2 * events, 2 * hits, rate)


def test_attempts_without_a_cluster_look_into_no_file_and_say_once_what_an_earlier_writer_lost(
    tmp_path, caplog, monkeypatch
):
    world = World()
    world.send(0)
    killed = CxiService(small_config(tmp_path, output={"buffer_size": 100}), doors=world.doors(), clock=world.clock)
    killed.open()
    killed.step()
    killed._report.write(force=True)
    killed._stack.close()  # as a kill does
    killed._standing.state = "ended"
    looked: list[Any] = []
    resume = start.resume
    monkeypatch.setattr(start, "resume", lambda *args: (looked.append(args), resume(*args))[1])
    stop = Pauses(9)
    attempts: list[int] = []

    def begin(config: Any) -> CxiService:
        attempts.append(1)
        return CxiService(config, doors=replace(World().doors(), connect=away if len(attempts) < 6 else no_queue))

    service = StreamWriter(small_config(tmp_path), begin=begin)
    service.loop(stop)
    assert (len(attempts), looked, caplog.text.count("was killed")) == (9, [], 0)
    world = World()
    world.end()
    for _ in range(2):
        with pytest.raises(UnavailableError, match="files"):
            CxiService(small_config(tmp_path), doors=replace(world.doors(), files=away)).open()
    assert caplog.text.count("was killed") == 1


def away(*_: Any) -> Any:
    raise UnavailableError("no cluster, or no files")


def no_queue(*_: Any) -> Any:
    raise MissingError("no queue")


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def loop(self, stop: threading.Event) -> Any:
        raise self.error

    def counters(self) -> dict[str, Any]:
        return {"batches_received": 0}


def test_who_only_looks_at_the_lock_keeps_no_writer_from_starting(tmp_path, monkeypatch):
    output = small_config(tmp_path).output
    with start.own_directory(output):
        pass
    lock = lock_path(output.output_dir, output.file_prefix)
    with lock.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("nightbeam.core.locks.time.sleep", lambda _s: fcntl.flock(looking, fcntl.LOCK_UN))
        with start.own_directory(output):
            assert is_held(lock)
