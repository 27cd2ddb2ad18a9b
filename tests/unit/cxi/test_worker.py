import json
import logging
import threading
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightbeam.core.errors import BusyError, ConfigError, MissingError, StorageError, UnavailableError
from nightbeam.cxi import outlet, worker, writing
from nightbeam.cxi.doors import the_world
from nightbeam.cxi.health import Health, metrics_text
from nightbeam.cxi.ledger import account, status_path
from nightbeam.cxi.worker import CxiService, run_cpu_postprocessing_pipeline
from nightbeam.stream.model import PipelineOutput
from nightbeam.stream.receiver import Unreadable
from nightbeam.testing.cxi_world import World, logits, small_config

FULL = 4  # events of a message, unless said otherwise


@pytest.fixture
def world():
    return World()


@pytest.fixture
def make(tmp_path, world):
    made = []

    def service(**sections):
        one = CxiService(small_config(tmp_path, **sections), doors=world.doors(), clock=world.clock)
        made.append(one)
        return one

    yield service
    world.files.gate.set()
    world.files.full = False
    for one in made:
        one.close()


def turn(service, times=None):
    """Let the loop turn until it ends, or so many times; the sum comes out after every turn."""
    going, k = True, 0
    while going and (times is None or k < times):
        going, k = service.step(), k + 1
        service.require_balance()
        assert k < 5000
    return going


def through(service):
    service.open()
    turn(service)
    service.close()
    service.require_balance()
    return service.counters()


def until(service, true):
    """Let the loop turn until something is true."""
    patience = time.monotonic() + 60
    while not true():
        assert time.monotonic() < patience, "it never became true"
        service.step()
        service.require_balance()
        service._outlet.wait(0.005)


# -- what comes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 3])
def test_batches_are_written_in_the_order_of_their_producer(world, make, nodes):
    world.nodes = nodes
    for k in (1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10):
        world.send(k)
    world.end(batches=12)
    found = through(make())
    assert world.files.events() == [(f"p_{k}", i) for k in range(12) for i in range(FULL)]
    assert (found["total_events_written"], found["events_missing"]) == (48, {})


def test_tasks_are_used_where_the_cluster_has_several_nodes_and_stay_below_their_limit(world, make):
    world.nodes = 2
    for k in range(6):
        world.send(k)
    world.end()
    found = through(make(processing={"num_cpu_workers": 8, "max_pending_tasks": 5}))
    assert found["total_events_written"] == 24
    assert world.tasks.most == 5


def test_a_tensor_that_came_by_value_needs_no_task_far_away(world, make):
    world.nodes = 2
    message = world.message(0, peaks=(2, 5))
    direct = torch.from_numpy(logits((2, 5))).to(torch.bfloat16)
    world.queue.messages.append(replace(message, predictions=direct, predictions_ref=None))
    world.end()
    assert through(make())["total_events_written"] == 2
    assert [len(event.peaks) for file in world.files.written for event in file] == [2, 5]


def test_without_order_every_event_comes_out_once(world, make):
    for k in range(8):
        world.send(k)
    world.end()
    through(make(output={"ordered": False}))
    assert sorted(world.files.events()) == sorted((f"p_{k}", i) for k in range(8) for i in range(FULL))


def test_events_with_too_few_peaks_are_filtered_and_those_with_too_many_cut(world, make):
    world.send(0, peaks=(0, 1, 5, 9))
    world.end()
    found = through(make(peak_finding={"min_num_peak": 2, "max_num_peak": 6}))
    assert (found["total_events_filtered"], found["events_truncated"], found["peaks_written"]) == (2, 1, 11)
    assert found["hit_rate"] == 0.5


def test_producers_that_do_not_count_are_written_as_they_come(world, make):
    for k in (2, 0, 1):
        world.send(k, sequence=None)
    world.end()
    through(make())
    assert [batch for batch, i in world.files.events() if i == 0] == ["p_2", "p_0", "p_1"]


def test_a_missing_batch_holds_up_nothing_for_ever_and_is_named(world, make):
    service = make(output={"buffer_size": 1})
    service.open()
    for k in (0, 2):
        world.send(k)
    until(service, lambda: len(world.files.events()) == FULL and not service.pool.open)
    turn(service, 20)
    assert len(world.files.events()) == FULL
    world.clock.now_s += worker._GAP_WAIT_S
    until(service, lambda: len(world.files.events()) == 2 * FULL)
    assert service.counters()["events_missing"] == {"p": {"batches": 1, "events": 4}}


def test_what_waits_for_a_batch_that_never_comes_does_not_fill_the_memory_for_ever(world, make):
    one = 8 * 64 * 12  # bytes of a message: rows, pixels, logits and image
    service = make(processing={"max_pending_bytes": one}, output={"buffer_size": 1})
    service.open()
    for k in range(1, 9):
        world.send(k)
    until(service, lambda: len(world.files.events()) == 8 * FULL)


# -- back-pressure ------------------------------------------------------------------------------------------------


def test_while_as_many_tasks_are_open_as_may_be_nothing_is_taken(world, make):
    gate = threading.Event()
    world.before_fetch = lambda _: gate.wait(30)
    for k in range(9):
        world.send(k)
    service = make(processing={"max_pending_tasks": 3})
    service.open()
    turn(service, 20)
    assert world.queue.taken == 3
    gate.set()
    until(service, lambda: world.queue.taken == 9)


def test_while_the_memory_is_full_nothing_is_taken(world, make):
    gate = threading.Event()
    world.before_fetch = lambda _: gate.wait(30)
    for k in range(9):
        world.send(k)
    service = make(processing={"max_pending_bytes": 2 * 8 * 64 * 12})
    service.open()
    turn(service, 20)
    assert world.queue.taken == 2
    assert service.counters()["pending_bytes"] == 2 * 8 * 64 * 12
    gate.set()
    until(service, lambda: world.queue.taken == 9)


def test_by_default_a_quarter_of_the_object_store_may_be_in_work(world, make):
    world.store_bytes = 4 * 8 * 64 * 12
    gate = threading.Event()
    world.before_fetch = lambda _: gate.wait(30)
    for k in range(3):
        world.send(k)
    service = make()
    service.open()
    turn(service, 10)
    assert world.queue.taken == 1
    gate.set()


def test_no_more_than_two_files_wait_for_the_disk(world, make):
    world.files.gate.clear()
    for k in range(20):
        world.send(k)
    service = make()
    service.open()
    until(service, lambda: service._outlet.waiting_events >= 2 * 4)
    until(service, lambda: not service.pool.open)
    taken = world.queue.taken
    turn(service, 20)
    assert world.queue.taken == taken < 20
    world.files.gate.set()
    until(service, lambda: world.queue.taken == 20)


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_bad_batches_are_rejected_each_with_its_reason_and_the_good_ones_written(world, make):
    good = world.send(0, timestamp=np.full(4, 1 << 60, np.uint64))
    world.queue.messages.append(replace(world.message(1), original_image_ref=None))
    world.queue.messages.append(replace(world.message(2), preprocessing_metadata=None))
    world.send(3, timestamp=np.zeros(3, np.uint64))
    bad = world.send(4)
    world.objects[bad.predictions_ref.key] = np.zeros((8, 2, 9, 8), np.float32)
    strange = world.send(5)
    strange.metadata = None
    world.queue.messages.append(replace(good))
    world.queue.messages.append(replace(good, metadata=good.metadata | {"sequence": 6}))
    world.queue.messages.append("a word")
    world.send(7)
    world.end(batches=8)
    found = through(make())
    assert [batch for batch, i in world.files.events() if i == 0] == ["p_0", "p_7"]
    assert found["batches_rejected"] == {
        "no image": 1, "no shape": 1, "short metadata": 1, "bad shape": 1, "malformed": 2, "duplicate": 2,
    }  # fmt: skip
    assert found["events_received"] == 8 * FULL  # two of the messages do not say how many they hold
    assert found["balance"] == 0


def test_a_lost_object_is_a_lost_batch_with_its_name_in_the_log(world, make, caplog):
    gone = world.send(0)
    del world.objects[gone.predictions_ref.key]
    world.send(1)
    world.end()
    with caplog.at_level(logging.INFO, "nightbeam"):
        found = through(make())
    assert found["events_lost"] == {"object lost": 4}
    assert "p_0" in caplog.text
    assert found["total_events_written"] == 4


@pytest.mark.parametrize("nodes", [1, 2])
def test_an_image_alone_that_is_gone_loses_its_batch(world, make, nodes):
    world.nodes = nodes
    gone = world.send(0)
    del world.objects[gone.original_image_ref.key]
    world.end()
    assert through(make())["events_lost"] == {"object lost": 4}


def test_logits_that_are_not_numbers_are_background_counted_and_said_once(world, make, caplog):
    for k in range(3):
        message = world.send(k)
        world.objects[message.predictions_ref.key][0, 1, 1, 1] = np.nan
    world.end()
    found = through(make())
    assert (found["nan_pixels"], found["nan_rows"], found["peaks_written"]) == (3, 3, 3 * (4 * 3 - 1))
    assert caplog.text.count("not a number") == 1


def test_a_task_that_fails_twice_loses_its_batch_and_no_other(world, make, monkeypatch):
    real, tries = worker.process_rows, []

    def fails(predictions, images, header, *args):
        if header.batch_id == "p_1":
            tries.append(args)
            raise MemoryError("no")
        return real(predictions, images, header, *args)

    monkeypatch.setattr(worker, "process_rows", fails)
    for k in range(3):
        world.send(k)
    world.end()
    found = through(make(processing={"num_cpu_workers": 1}))
    assert found["events_lost"] == {"task failed": 4}
    assert (len(tries), found["retried_tasks"]) == (2, 1)
    assert [batch for batch, i in world.files.events() if i == 0] == ["p_0", "p_2"]


def test_batches_that_do_not_fit_the_panels_are_rejected_and_said_once(world, make, caplog):
    for k in range(2):
        world.send(k)
    world.end()
    found = through(make(geometry={"panel_map": [[0, 0], [0, 4]]}))
    assert found["events_rejected"] == {"geometry": 8}
    assert caplog.text.count("all rejected") == 1


def test_what_cannot_be_read_is_counted_and_a_dead_shard_is_said(world, make, caplog):
    world.queue.messages += [Unreadable("unreadable", "no such class", 0), Unreadable("shard lost", "shard 1 died", 1)]
    world.send(0)
    world.end()
    found = through(make())
    assert found["batches_lost"] == {"unreadable": 1}
    assert (found["batches_received"], found["total_events_written"]) == (2, 4)
    assert "shard 1 died" in caplog.text


def test_a_mistake_of_the_files_loses_one_batch_and_the_run_goes_on(world, make):
    world.files.error = ZeroDivisionError("a mistake")
    for k in range(3):
        world.send(k)
    world.end()
    found = through(make())
    assert found["events_lost"] == {"write failed": 4}
    assert found["total_events_written"] == 8


def test_a_batch_that_the_files_refuse_is_rejected(world, make):
    world.files.error = ConfigError("no camera length")
    for k in range(2):
        world.send(k)
    world.end()
    assert through(make())["events_rejected"] == {"not writable": 4}


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(outlet, "_FIRST_PAUSE_S", 0.01)


def test_a_full_disk_stops_the_taking_says_it_once_and_loses_nothing(world, make, soon, caplog):
    world.files.full = True
    for k in range(12):
        world.send(k)
    world.end()
    service = make()
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


def test_stopped_with_a_full_disk_it_says_how_many_events_are_lost(world, make, soon):
    world.files.full = True
    for k in range(3):
        world.send(k)
    service = make()
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
def test_whatever_comes_every_event_ends_in_one_place(tmp_path_factory, kinds, nodes, size):
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


def test_a_rejected_batch_is_neither_missing_nor_waited_for(world, make):
    service = make(output={"buffer_size": 1})
    service.open()
    for k in range(6):
        message = world.send(k)
        if k in {0, 3, 5}:
            message.predictions_ref = None
    until(service, lambda: len(world.files.events()) == 3 * FULL)
    assert service._order.held == 0
    assert service.counters()["events_missing"] == {}
    page = service.ledger.producers["p"]
    assert page.taken == page.settled
    assert page.taken.to_json() == [[0, 5, 0, 24]]


def test_a_rejected_batch_of_a_producer_that_begins_again_stands_in_its_new_line(world, make):
    service = make(output={"buffer_size": 1}, queue={"num_producers": 9})
    service.open()
    world.send(0)
    world.end()
    world.send(0).predictions_ref = None
    world.send(1)
    until(service, lambda: len(world.files.events()) == 2 * FULL)
    assert service._order.held == 0


def test_a_name_that_came_before_makes_no_hole_where_the_number_is_new(world, make):
    service = make(output={"buffer_size": 1})
    service.open()
    for k in range(4):
        message = world.send(k)
        message.metadata |= times(1 if k == 2 else k)
        if k == 2:
            message.batch_id = "p_1"
    until(service, lambda: len(world.files.events()) == 3 * FULL)
    assert service._order.held == 0
    assert service.counters()["events_missing"] == {}
    assert service.counters()["events_rejected"] == {"duplicate": FULL}


def test_a_number_that_comes_again_does_not_take_the_place_of_the_one_in_work(world, make):
    service = make(output={"buffer_size": 1})
    service.open()
    go_on = threading.Event()
    world.before_fetch = lambda _: go_on.wait(30)
    for k in (0, 1, 1, 2):
        world.send(k)
    again = world.message(0)
    again.predictions_ref = None
    world.queue.messages.append(again)
    for _ in range(6):
        service.step()
    assert not any(0 in page.settled for page in service.ledger.producers.values())
    go_on.set()
    until(service, lambda: len(world.files.events()) == 3 * FULL)
    assert world.files.events() == [(f"p_{k}", i) for k in range(3) for i in range(FULL)]
    assert service.counters()["batches_rejected"] == {"duplicate": 1, "malformed": 1}


# -- when it ends -------------------------------------------------------------------------------------------------


def test_it_ends_when_every_producer_has_ended_and_nothing_is_left(world, make):
    service = make(queue={"num_producers": 2})
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
def test_it_ends_when_enough_has_come(world, make, run, taken):
    for k in range(9):
        world.send(k)
    found = through(make(run=run))
    assert world.queue.taken == taken
    assert found["total_events_written"] == taken * FULL


def test_it_ends_when_nothing_comes_any_more_but_not_before_the_first(world, make):
    service = make(run={"idle_timeout": 5})
    service.open()
    world.clock.now_s += 100
    assert turn(service, 3)
    world.send(0)
    assert turn(service, 3)
    world.clock.now_s += 4.9
    assert turn(service, 3)
    world.clock.now_s += 0.2
    assert not turn(service, 10)


def test_it_ends_when_nothing_ever_comes_where_that_is_asked(world, make):
    service = make(run={"startup_timeout": 5})
    service.open()
    assert turn(service, 3)
    world.clock.now_s += 5
    assert not turn(service, 3)


def test_when_it_is_stopped_all_that_has_left_the_queue_is_written_and_no_more(world, make):
    for k in range(3):
        world.send(k)
    world.queue.asked += [world.message(3), world.message(4)]
    world.queue.messages.extend(world.message(k) for k in range(5, 9))
    service = make()
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


def test_a_producer_that_has_ended_may_begin_again(world, make):
    world.send(0)
    world.end()
    world.send(0)
    world.end("q")
    found = through(make(queue={"num_producers": 2}))
    assert found["events_rejected"] == {}
    assert found["total_events_written"] == 8


def times(first):
    return {"timestamp": np.arange(first, first + FULL, dtype=np.uint64) << np.uint64(32)}


def test_a_producer_that_is_killed_and_begins_again_under_its_name_loses_nothing(world, make, tmp_path):
    for k in range(5):
        world.send(k, **times(1000 + FULL * k))
    for k in (1, 0, 3, 2, 4):  # several shards bring them in another order
        world.send(k, **times(9000 + FULL * k))
    world.end(batches=5)
    found = through(make())
    assert found["events_rejected"] == {}
    assert found["total_events_written"] == 2 * 5 * FULL
    stamps = [int(e.batch.timestamps[0] >> np.uint64(32)) for file in world.files.written for e in file if not e.index]
    assert stamps == [*range(1000, 1020, 4), *range(9000, 9020, 4)]
    assert found["events_missing"] == {}
    assert json.loads(status_path(tmp_path, "peaknet_cxi").read_text())["producers"]["p"]["taken"] == [[0, 4, 0, 20]]
    assert sum(n for text, n in found["warnings"].items() if "begun again" in text) == 1


def test_a_producer_that_does_not_count_and_begins_again_loses_nothing(world, make):
    for first in (1000, 9000):
        for k in range(3):
            world.send(k, sequence=None, event_index=None, **times(first + FULL * k))
    found = world.end() or through(make())
    assert (found["events_rejected"], found["total_events_written"]) == ({}, 6 * FULL)


# -- what messages do not say -------------------------------------------------------------------------------------

#: Two modules of 8 x 8 beside each other, each of two panels.
TILES = "".join(
    f"p{p}/min_fs = {4 * p}\np{p}/max_fs = {4 * p + 3}\np{p}/min_ss = 0\np{p}/max_ss = 7\n"
    f"p{p}/corner_x = {4 * p}\np{p}/corner_y = 0\np{p}/fs = x\np{p}/ss = y\np{p}/res = 1000\n"
    for p in range(4)
)


@pytest.mark.parametrize("section", [{}, {"panel_shape": [8, 8]}])
def test_the_number_of_panels_is_taken_from_the_geometry(world, make, tmp_path, section):
    (tmp_path / "g.geom").write_text(TILES)
    world.queue.messages.append(replace(world.message(0, peaks=(1, 2, 3)), preprocessing_metadata=None))
    world.end()
    found = through(make(geometry={"geom_file": str(tmp_path / "g.geom")}, detector=section))
    assert (found["events_rejected"], found["total_events_written"]) == ({}, 3)
    assert world.files.written[0][0].batch.n_panels == 2


def test_a_geometry_that_does_not_say_the_number_of_panels_is_a_reason(world, make, tmp_path, caplog):
    (tmp_path / "g.geom").write_text(TILES)
    world.queue.messages.append(replace(world.message(0), preprocessing_metadata=None))
    world.end()
    service = make(geometry={"geom_file": str(tmp_path / "g.geom")}, detector={"panel_shape": [5, 8]})
    assert through(service)["events_rejected"].keys() == {"no shape"}
    assert "8 x 16 cannot be cut into 5 x 8" in caplog.text


def test_the_number_of_panels_is_that_of_the_panel_map(world, make):
    world.queue.messages.append(replace(world.message(0, peaks=(1, 2, 3)), preprocessing_metadata=None))
    world.end()
    assert through(make(geometry={"panel_map": [[0, 0], [0, 8]]}))["total_events_written"] == 3


def test_what_crystfel_lacks_in_the_users_geometry_is_no_warning_where_ours_supplies_it(world, make, tmp_path, caplog):
    (tmp_path / "g.geom").write_text(TILES + "colour = red\n")
    make(geometry={"geom_file": str(tmp_path / "g.geom")}).open()
    assert "refuses" not in caplog.text
    assert "'colour' is unknown" in caplog.text
    caplog.clear()
    make(geometry={"geom_file": str(tmp_path / "g.geom")}, output={"geom": False, "file_prefix": "b"}).open()
    assert "clen) is not given" in caplog.text


def test_what_was_taken_is_written_although_the_queue_has_died(world, make):
    for k in range(6):
        world.send(k)

    def gone():
        raise UnavailableError("every shard has died")

    take = world.queue.take
    world.queue.take = lambda timeout_s: take(timeout_s) or gone()
    world.queue.drain = gone
    service = make()
    with pytest.raises(UnavailableError, match="every shard"):
        service.loop(threading.Event())
    found = service.counters()
    assert (found["total_events_written"], found["events_in_flight"], found["balance"]) == (24, 0, 0)


def test_tasks_that_cannot_be_submitted_lose_their_batch_and_the_end_comes(world, make):
    world.nodes = 2
    service = make(processing={"num_cpu_workers": 4})
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


def test_tasks_of_which_nobody_hears_again_are_lost_and_the_end_comes(world, make):
    world.nodes = 2
    service = make(processing={"num_cpu_workers": 4})
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


def test_the_lock_is_free_after_the_end_whatever_has_failed(world, tmp_path):
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


# -- before it begins ---------------------------------------------------------------------------------------------


def test_a_second_writer_of_the_same_files_is_refused_and_one_of_another_prefix_is_not(world, make):
    make().open()
    with pytest.raises(BusyError, match="file_prefix"):
        make().open()
    make(output={"file_prefix": "other"}).open()


def test_output_that_cannot_be_written_is_said_before_anything_is_taken(world, tmp_path):
    (tmp_path / "file").write_text("x")
    world.send(0)
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError):
            CxiService(small_config(place), doors=world.doors()).open()
    assert world.queue.size() == 1


def test_a_geometry_that_is_not_there_is_said_before_anything_is_taken(world, make, tmp_path):
    with pytest.raises(MissingError, match="geometry"):
        make(geometry={"geom_file": str(tmp_path / "no.geom")}).open()


# -- what it says -------------------------------------------------------------------------------------------------


def status(tmp_path):
    return json.loads(status_path(tmp_path, "peaknet_cxi").read_text())


def test_kernels_are_compiled_before_anybody_is_connected(world, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(worker, "find_peaks", lambda *_, **__: done.append("compiled"))
    connect = world.doors().connect
    doors = replace(world.doors(), connect=lambda config: done.append("connected") or connect(config))
    service = CxiService(small_config(tmp_path), doors=doors, clock=world.clock)
    service.open()
    service.close()
    assert done == ["compiled", "compiled", "connected"]


def test_the_status_file_is_there_from_the_beginning_and_says_how_it_ended(world, make, tmp_path):
    service = make()
    service.open()
    assert status(tmp_path)["state"] == "running"
    world.send(0)
    world.end()
    turn(service)
    service.close()
    found = status(tmp_path)
    assert (found["state"], found["ended_by"]) == ("ended", "all producers have ended")
    assert found["counters"]["total_events_written"] == 4
    assert found["producers"]["p"]["settled"] == [[0, 0, 0, 4]]


def test_the_status_is_written_once_a_second(world, make, tmp_path):
    service = make()
    service.open()
    status_path(tmp_path, "peaknet_cxi").unlink()
    turn(service, 3)
    assert not status_path(tmp_path, "peaknet_cxi").exists()
    world.clock.now_s += 1.0
    turn(service, 1)
    assert status(tmp_path)["state"] == "running"


def test_a_status_that_cannot_be_written_stops_nothing(world, make, tmp_path):
    service = make()
    service.open()
    path = status_path(tmp_path, "peaknet_cxi")
    path.unlink()
    path.mkdir()
    world.clock.now_s += 1.0
    turn(service, 1)
    assert "status" in service.health().problems[0]
    path.rmdir()
    world.clock.now_s += 1.0
    turn(service, 1)
    assert service.health().works


def test_a_writer_that_was_killed_leaves_an_account_and_the_next_one_goes_on(world, make, tmp_path, caplog):
    first = make(output={"buffer_size": 100})
    first.open()
    for k in range(3):
        world.send(k)
    until(first, lambda: first.counters()["buffer_size"] == 12)
    first._write_status(force=True)
    first._stack.close()  # as a kill does: the lock is free, nothing is flushed
    first._state = "ended"
    (found,) = account(tmp_path)
    assert (found.missing[0].first, found.missing[0].last, found.events_missing) == (0, 2, 12)
    second = make()
    second.open()
    assert "batches 0-2 of producer 'p' (12 events) were taken and never written" in caplog.text
    for k in range(3, 5):
        world.send(k)
    world.end()
    turn(second)
    second.close()
    (found,) = account(tmp_path)
    assert [(one.first, one.last) for one in found.received] == [(3, 4)]
    assert [(one.first, one.last) for one in found.missing] == [(0, 2)]


def test_an_empty_queue_is_said_and_not_again_at_once(world, make, caplog):
    caplog.set_level(logging.INFO, "nightbeam")
    service = make()
    service.open()
    turn(service, 50)
    assert caplog.text.count("Queue empty, waiting...") == 1
    assert "normal if the pipeline has not started; otherwise check that it puts on Q2" in caplog.text
    world.clock.now_s += 31
    turn(service, 50)
    assert caplog.text.count("Queue empty, waiting...") == 2


def test_progress_is_said_after_so_many_batches(world, make, caplog):
    caplog.set_level(logging.INFO, "nightbeam")
    for k in range(6):
        world.send(k)
    world.end()
    through(make(system={"progress_interval": 2}))
    assert [f"{k} batches, {4 * k} events" in caplog.text for k in (2, 3, 4, 6)] == [True, False, True, True]


def test_the_loop_that_does_not_turn_is_not_healthy(world, make):
    service = make()
    service.open()
    assert service.health().works
    world.clock.now_s += 61
    assert "has not turned" in service.health().problems[0]


def test_workers_follow_the_load_where_that_is_asked(world, make, monkeypatch):
    monkeypatch.setattr(worker.psutil, "cpu_percent", lambda: 0.0)
    monkeypatch.setattr(worker.os, "sched_getaffinity", lambda _: range(4))
    gate = threading.Event()
    world.before_fetch = lambda _: gate.wait(30)
    for k in range(9):
        world.send(k)
    service = make(processing={"num_cpu_workers": "auto"})
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


def test_anything_with_the_attributes_is_a_message(world, make):
    class Foreign:
        pass

    known, strange = world.message(0), Foreign()
    for name in PipelineOutput.__dataclass_fields__:
        setattr(strange, name, getattr(known, name))
    world.queue.messages.append(strange)
    world.end()
    assert through(make())["total_events_written"] == 4


# -- with real files ----------------------------------------------------------------------------------------------


def test_real_files_hold_every_hit_once_in_order_although_the_disk_was_full(world, tmp_path, monkeypatch, soon):
    full = threading.Event()
    full.set()

    def space(*_, **__):
        if full.is_set():
            raise StorageError("no space left", fix="make some")

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


def test_pixels_that_the_files_cannot_hold_are_counted_in_the_status_and_said_once(world, tmp_path, caplog):
    for k in range(2):
        message = world.send(k, peaks=(3,))
        image = world.objects[message.original_image_ref.key]
        image[0, 0, 0, :4] = [np.nan, 0.5, 70000.0, -1.0]
    world.end()
    config = small_config(tmp_path, output={"dtype": "uint16", "buffer_size": 1})
    found = through(CxiService(config, doors=replace(world.doors(), files=the_world().files), clock=world.clock))
    counted = [found[f"pixels_{name}"] for name in ("clipped", "rounded", "not_finite")]
    assert (counted, found["write_failures"]) == ([4, 2, 2], 0)
    assert caplog.text.count("said once") == 3
    assert json.loads(status_path(tmp_path, "peaknet_cxi").read_text())["counters"]["pixels_clipped"] == 4
    assert b"cxi_pixels_clipped_total 4.0" in metrics_text(found, Health())
