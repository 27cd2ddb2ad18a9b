import logging
import os
import socket
import threading
from dataclasses import replace

import h5py
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightbeam.core.errors import BusyError, ConfigError, StorageError, UnavailableError
from nightbeam.cxi import delivery, outlet, writing
from nightbeam.cxi.doors import the_world
from nightbeam.cxi.ledger import account
from nightbeam.cxi.worker import CxiService, run_cpu_postprocessing_pipeline
from nightbeam.testing.cxi_world import World, small_config

FULL = 4  # events of a message, unless said otherwise


# -- what comes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 3])
def test_batches_are_written_in_the_order_of_their_producer(world, make_service, nodes, through):
    world.nodes = nodes
    for k in (1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10):
        world.send(k)
    world.end(batches=12)
    found = through(make_service())
    assert world.files.events() == [(f"p_{k}", i) for k in range(12) for i in range(FULL)]
    assert (found["total_events_written"], found["events_missing"]) == (48, {})


def test_without_order_every_event_comes_out_once(world, make_service, through):
    for k in range(8):
        world.send(k)
    world.end()
    through(make_service(output={"ordered": False}))
    assert sorted(world.files.events()) == sorted((f"p_{k}", i) for k in range(8) for i in range(FULL))


def test_producers_that_do_not_count_are_written_as_they_come(world, make_service, through):
    for k in (2, 0, 1):
        world.send(k, sequence=None)
    world.end()
    through(make_service())
    assert [batch for batch, i in world.files.events() if i == 0] == ["p_2", "p_0", "p_1"]


def test_a_missing_batch_holds_up_nothing_for_ever_and_is_named(world, make_service, turn, until):
    service = make_service(output={"buffer_size": 1})
    service.open()
    for k in (0, 2):
        world.send(k)
    until(service, lambda: len(world.files.events()) == FULL and not service.pool.open)
    turn(service, 20)
    assert len(world.files.events()) == FULL
    world.clock.now_s += delivery._GAP_WAIT_S
    until(service, lambda: len(world.files.events()) == 2 * FULL)
    assert service.counters()["events_missing"] == {"p": {"batches": 1, "events": 4}}


def test_what_waits_for_a_batch_that_never_comes_does_not_fill_the_memory_for_ever(world, make_service, until):
    one = 8 * 64 * 12  # bytes of a message: rows, pixels, logits and image
    service = make_service(processing={"max_pending_bytes": one}, output={"buffer_size": 1})
    service.open()
    for k in range(1, 9):
        world.send(k)
    until(service, lambda: len(world.files.events()) == 8 * FULL)


# -- back-pressure ------------------------------------------------------------------------------------------------


def test_while_as_many_tasks_are_open_as_may_be_nothing_is_taken(world, make_service, turn, until):
    gate = threading.Event()
    world.before_fetch = lambda _: gate.wait(30)
    for k in range(9):
        world.send(k)
    service = make_service(processing={"max_pending_tasks": 3})
    service.open()
    turn(service, 20)
    assert world.queue.taken == 3
    gate.set()
    until(service, lambda: world.queue.taken == 9)


def test_while_the_memory_is_full_nothing_is_taken(world, make_service, turn, until):
    gate = threading.Event()
    world.before_fetch = lambda _: gate.wait(30)
    for k in range(9):
        world.send(k)
    service = make_service(processing={"max_pending_bytes": 2 * 8 * 64 * 12})
    service.open()
    turn(service, 20)
    assert world.queue.taken == 2
    assert service.counters()["pending_bytes"] == 2 * 8 * 64 * 12
    gate.set()
    until(service, lambda: world.queue.taken == 9)


def test_by_default_a_quarter_of_the_object_store_may_be_in_work(world, make_service, turn):
    world.store_bytes = 4 * 8 * 64 * 12
    gate = threading.Event()
    world.before_fetch = lambda _: gate.wait(30)
    for k in range(3):
        world.send(k)
    service = make_service()
    service.open()
    turn(service, 10)
    assert world.queue.taken == 1
    gate.set()


def test_no_more_than_two_files_wait_for_the_disk(world, make_service, turn, until):
    world.files.gate.clear()
    for k in range(20):
        world.send(k)
    service = make_service()
    service.open()
    until(service, lambda: service._outlet.waiting_events >= 2 * 4)
    until(service, lambda: not service.pool.open)
    taken = world.queue.taken
    turn(service, 20)
    assert world.queue.taken == taken < 20
    world.files.gate.set()
    until(service, lambda: world.queue.taken == 20)


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_mistake_of_the_files_loses_one_batch_and_the_run_goes_on(world, make_service, through):
    world.files.error = ZeroDivisionError("a mistake")
    for k in range(3):
        world.send(k)
    world.end()
    found = through(make_service())
    assert found["events_lost"] == {"write failed": 4}
    assert found["total_events_written"] == 8


def test_a_batch_that_the_files_refuse_is_rejected(world, make_service, through):
    world.files.error = ConfigError("no camera length")
    for k in range(2):
        world.send(k)
    world.end()
    assert through(make_service())["events_rejected"] == {"not writable": 4}


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(outlet, "_FIRST_PAUSE_S", 0.01)


def test_a_full_disk_stops_the_taking_says_it_once_and_loses_nothing(world, make_service, soon, caplog, turn, until):
    world.files.full = True
    for k in range(12):
        world.send(k)
    world.end()
    service = make_service()
    service.open()
    until(service, lambda: service._outlet.blocked is not None)
    taken = world.queue.taken
    until(service, lambda: not service.pool.open)
    turn(service, 30)
    assert world.queue.taken <= taken + 3
    assert not service.health().works
    assert "no space left" in service.health().problems[0]
    world.files.full = False
    turn(service)
    service.close()
    assert service.health().problems == ("the writer is ended",)
    assert world.files.events() == [(f"p_{k}", i) for k in range(12) for i in range(FULL)]
    assert caplog.text.count("nothing more is taken") == 1


def test_stopped_with_a_full_disk_it_says_how_many_events_are_lost(world, make_service, soon, until):
    world.files.full = True
    for k in range(3):
        world.send(k)
    service = make_service()
    service.open()
    until(service, lambda: service._outlet.blocked is not None)
    with pytest.raises(StorageError, match="events could not be written and are lost"):
        service.close()
    service.require_balance()
    found = service.counters()
    assert sum(found["events_lost"].values()) == found["events_received"] > 0
    assert set(found["events_lost"]) == {"not written"}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["good", "lost", "bad shape", "nan", "short", "again", "misses", "word"]), max_size=12),
    st.integers(1, 3),
    st.integers(1, 7),
)
def test_whatever_comes_every_event_ends_in_one_place(through, tmp_path_factory, kinds, nodes, size):
    world = World(nodes=nodes)
    for k, kind in enumerate(kinds):
        message = world.message(k, peaks=(0, 0) if kind == "misses" else (2, 3),
                                **({"photon_energy": [9000.0]} if kind == "short" else {}))  # fmt: skip
        if kind == "lost":
            del world.objects[message.predictions_ref.key]
        elif kind == "bad shape":
            world.objects[message.predictions_ref.key] = np.zeros((1, 2, 8, 8), np.float32)
        elif kind == "nan":
            world.objects[message.predictions_ref.key][:] = np.nan
        world.queue.messages += [message, message] if kind == "again" else ["word" if kind == "word" else message]
    world.end()
    config = small_config(tmp_path_factory.mktemp("x"), output={"buffer_size": size})
    found = through(CxiService(config, doors=world.doors(), clock=world.clock))
    count = kinds.count
    assert found["total_events_written"] == 2 * (count("good") + count("again"))
    assert found["total_events_filtered"] == 2 * (count("misses") + count("nan"))
    assert sum(found["events_lost"].values()) == 2 * count("lost")
    assert found["batches_received"] == len(kinds) + count("again")
    assert found["balance"] == found["buffer_size"] == found["events_in_flight"] == 0
    assert all(len(file) == size for file in world.files.written[:-1])


# -- when it ends -------------------------------------------------------------------------------------------------


def test_it_ends_when_every_producer_has_ended_and_nothing_is_left(world, make_service, turn):
    service = make_service(queue={"num_producers": 2})
    service.open()
    world.end("a")
    world.end("a")
    assert turn(service, 10)
    world.end("b")
    world.send(0)
    turn(service)
    service.close()
    assert world.files.events()[0] == ("p_0", 0)


@pytest.mark.parametrize(("run", "taken"), [({"total_batches": 3}, 3), ({"total_events": 9}, 3)])
def test_it_ends_when_enough_has_come(world, make_service, run, taken, through):
    for k in range(9):
        world.send(k)
    found = through(make_service(run=run))
    assert world.queue.taken == taken
    assert found["total_events_written"] == taken * FULL


def test_it_ends_when_nothing_comes_any_more_but_not_before_the_first(world, make_service, turn):
    service = make_service(run={"idle_timeout": 5})
    service.open()
    world.clock.now_s += 100
    assert turn(service, 3)
    world.send(0)
    assert turn(service, 3)
    world.clock.now_s += 4.9
    assert turn(service, 3)
    world.clock.now_s += 0.2
    assert not turn(service, 10)


@pytest.mark.parametrize("kind", ["geometry", "not writable"])
def test_where_nothing_fits_what_is_configured_the_rest_stays_in_the_queue(world, make_service, kind, monkeypatch):
    for k in range(40):
        world.send(k)
    world.end()
    if kind == "geometry":
        service = make_service(geometry={"panel_map": [[0, 0], [0, 4]]})
    else:

        def refuse(_):
            raise ConfigError("nobody says the camera length", fix="set instrument.camera_length_mm")

        monkeypatch.setattr(world.files, "submit", refuse)
        service = make_service()
    with pytest.raises(ConfigError, match="do not fit what is configured") as caught:
        service.loop(threading.Event())
    assert ("panel_map" if kind == "geometry" else "the camera length") in caught.value.what
    found = service.counters()
    assert found["balance"] == 0
    assert sum(found["batches_rejected"].values()) == found["batches_received"]
    if kind == "geometry":  # the other is known only once a batch has come to the files
        assert (found["batches_received"], world.queue.size()) == (8, 33)


def test_a_short_stream_of_which_nothing_fits_is_no_success(world, make_service):
    world.send(0)
    world.end()
    with pytest.raises(ConfigError, match="none of the 1 batches"):
        make_service(geometry={"panel_map": [[0, 0], [0, 4]]}).loop(threading.Event())


def test_what_is_found_in_the_last_look_counts_as_heard(world, make_service, turn):
    service = make_service(run={"idle_timeout": 5})
    service.open()
    world.send(0)
    world.end()
    world.queue.look_once = lambda: world.queue.messages.popleft() if world.queue.messages else None
    turn(service, 1)
    world.queue.take, take = lambda _: None, world.queue.take
    world.queue.messages.append(world.message(1))
    service._reception.ends.add("p")
    world.clock.now_s += 6
    assert service.step()
    world.queue.take = take
    turn(service)
    service.close()
    assert [name for name, _ in world.files.events()] == ["p_0"] * FULL + ["p_1"] * FULL


def test_a_beginning_that_fails_leaves_no_thread_at_work(world, make_service):
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service = make_service(health={"port": taken.getsockname()[1]})
        with pytest.raises(BusyError, match=r"port \d+ cannot be served"):
            service.open()
    assert threading.active_count() == before


def test_it_ends_when_nothing_ever_comes_where_that_is_asked(world, make_service, turn):
    service = make_service(run={"startup_timeout": 5})
    service.open()
    assert turn(service, 3)
    world.clock.now_s += 5
    assert not turn(service, 3)


def test_when_it_is_stopped_all_that_has_left_the_queue_is_written_and_no_more(world, make_service, turn):
    for k in range(3):
        world.send(k)
    world.queue.asked += [world.message(3), world.message(4)]
    world.queue.messages.extend(world.message(k) for k in range(5, 9))
    service = make_service()
    service.open()
    turn(service, 3)
    service.close()
    assert world.files.events() == [(f"p_{k}", i) for k in range(5) for i in range(FULL)]
    assert world.queue.size() == 4
    assert world.queue.stopped


def test_a_loop_that_is_told_to_stop_before_it_begins_takes_nothing(world, tmp_path):
    world.send(0)
    stop = threading.Event()
    stop.set()
    found = run_cpu_postprocessing_pipeline(small_config(tmp_path), stop=stop, doors=world.doors())
    assert (found["batches_received"], world.queue.size()) == (0, 1)


def test_what_was_taken_is_written_although_the_queue_has_died(world, make_service):
    for k in range(6):
        world.send(k)

    def gone():
        raise UnavailableError("every shard has died")

    take = world.queue.take
    world.queue.take = lambda timeout_s: take(timeout_s) or gone()
    world.queue.drain = gone
    service = make_service()
    with pytest.raises(UnavailableError, match="every shard"):
        service.loop(threading.Event())
    found = service.counters()
    assert (found["total_events_written"], found["events_in_flight"], found["balance"]) == (24, 0, 0)


def test_tasks_that_cannot_be_submitted_lose_their_batch_and_the_end_comes(world, make_service, turn):
    world.nodes = 2
    service = make_service(processing={"num_cpu_workers": 4})
    service.open()
    submit, left = world.tasks.submit, iter([True, True, False])

    def some(*args):
        if next(left, True):
            return submit(*args)
        raise UnavailableError("raylet is gone")

    world.tasks.submit = some
    world.send(0)
    world.send(1)
    turn(service, 20)
    service.close()
    found = service.counters()
    assert (found["events_lost"], found["total_events_written"]) == ({"unavailable": 4}, 4)
    assert (found["events_in_flight"], found["balance"]) == (0, 0)


def test_tasks_of_which_nobody_hears_again_are_lost_and_the_end_comes(world, make_service, turn):
    world.nodes = 2
    service = make_service(processing={"num_cpu_workers": 4})
    service.open()

    def finished(_):
        raise UnavailableError("the cluster is gone")

    world.tasks.finished = finished
    world.send(0)
    world.send(1)
    with pytest.raises(UnavailableError):
        turn(service, 20)
    world.queue.asked.extend(world.queue.messages)
    service.close()
    found = service.counters()
    assert found["events_lost"] == {"unavailable": found["events_received"]}
    assert (found["events_in_flight"], found["batches_in_flight"], found["balance"]) == (0, 0, 0)


def test_the_lock_is_free_after_the_end_whatever_has_failed(world, tmp_path, turn):
    def told(counters):
        if counters["batches_received"]:
            raise ZeroDivisionError("a mistake of who listens")

    service = CxiService(small_config(tmp_path), doors=world.doors(), clock=world.clock, on_status=told)
    service.open()
    world.send(0)
    turn(service, 1)
    with pytest.raises(ZeroDivisionError):
        service.close()
    following = CxiService(small_config(tmp_path), doors=world.doors(), clock=world.clock)
    following.open()
    following.close()
    assert service.counters()["events_in_flight"] == 0


# -- what it says -------------------------------------------------------------------------------------------------


def test_an_empty_queue_is_said_and_not_again_at_once(world, make_service, caplog, turn):
    caplog.set_level(logging.INFO, "nightbeam")
    service = make_service()
    service.open()
    turn(service, 50)
    assert "Queue empty" not in caplog.text  # a first look may be too short for what is there
    world.clock.now_s += 1
    turn(service, 50)
    assert caplog.text.count("Queue empty, waiting...") == 1
    assert "normal if the pipeline has not started; otherwise check that it puts on Q2" in caplog.text
    world.clock.now_s += 31
    turn(service, 50)
    assert caplog.text.count("Queue empty, waiting...") == 2


def test_workers_follow_the_load_where_that_is_asked(world, make_service, monkeypatch, turn, until):
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    gate = threading.Event()
    world.before_fetch = lambda _: gate.wait(30)
    for k in range(9):
        world.send(k)
    service = make_service(processing={"num_cpu_workers": "auto"})
    service.open()
    before = service.pool.limit
    turn(service, 9)
    world.clock.now_s += 2.0
    turn(service, 1)
    assert service.pool.limit == before + 1
    gate.set()
    until(service, lambda: not service.pool.open)
    world.clock.now_s += 1.0
    turn(service, 1)  # the queue is looked at
    world.clock.now_s += 1.0
    turn(service, 1)
    assert service.pool.limit == before


# -- with real files ----------------------------------------------------------------------------------------------


def test_real_files_hold_every_hit_once_in_order_although_the_disk_was_full(
    world, tmp_path, monkeypatch, soon, turn, until
):
    full = threading.Event()
    full.set()

    def space(*_, **__):
        if full.is_set():
            raise StorageError("no space left", fix="make_service some")

    monkeypatch.setattr(writing, "require_space", space)
    for k in range(6):
        world.send(k, peaks=(0, 1, 2, 3))
    world.end()
    files = replace(world.doors(), files=the_world().files)
    service = CxiService(small_config(tmp_path, output={"buffer_size": 5}), doors=files, clock=world.clock)
    service.open()
    until(service, lambda: service._outlet.blocked is not None)
    full.clear()
    turn(service)
    service.close()
    service.require_balance()
    paths = sorted(tmp_path.glob("*.cxi"))
    sizes, counts = [], []
    for path in paths:
        with h5py.File(path) as file:
            found = file["/entry_1/result_1/nPeaks"][:].tolist()
        sizes.append(len(found))
        counts += found
    assert sizes == [5, 5, 5, 3]
    assert counts == [1, 2, 3] * 6
    (told,) = account(tmp_path)
    assert [(one.first, one.last) for one in told.received] == [(0, 5)]
    assert not list(tmp_path.glob(".*partial"))
