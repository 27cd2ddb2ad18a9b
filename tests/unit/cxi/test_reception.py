"""Messages of all kinds come to a writer in which nothing is real."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from nightbeam.cxi.ledger import status_path
from nightbeam.stream.model import PipelineOutput
from nightbeam.stream.receiver import Unreadable

FULL = 4  # events of a message, unless said otherwise


def test_bad_batches_are_rejected_each_with_its_reason_and_the_good_ones_written(world, make_service, through):
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
    found = through(make_service())
    assert [batch for batch, i in world.files.events() if i == 0] == ["p_0", "p_7"]
    assert found["batches_rejected"] == {
        "no image": 1, "no shape": 1, "short metadata": 1, "bad shape": 1, "malformed": 2, "duplicate": 2,
    }  # fmt: skip
    assert found["events_received"] == 8 * FULL  # two of the messages do not say how many they hold
    assert found["balance"] == 0


def test_batches_that_do_not_fit_the_panels_are_rejected_and_said_once(world, make_service, caplog, through):
    for k in range(2):
        world.send(k)
    world.end()
    found = through(make_service(geometry={"panel_map": [[0, 0], [0, 4]]}))
    assert found["events_rejected"] == {"geometry": 8}
    assert caplog.text.count("all rejected") == 1


def test_what_cannot_be_read_is_counted_and_a_dead_shard_is_said(world, make_service, caplog, through):
    world.queue.messages += [Unreadable("unreadable", "no such class", 0), Unreadable("shard lost", "shard 1 died", 1)]
    world.send(0)
    world.end()
    found = through(make_service())
    assert found["batches_lost"] == {"unreadable": 1}
    assert (found["batches_received"], found["total_events_written"]) == (2, 4)
    assert "shard 1 died" in caplog.text


def test_anything_with_the_attributes_is_a_message(world, make_service, through):
    class Foreign:
        pass

    known, strange = world.message(0), Foreign()
    for name in PipelineOutput.__dataclass_fields__:
        setattr(strange, name, getattr(known, name))
    world.queue.messages.append(strange)
    world.end()
    assert through(make_service())["total_events_written"] == 4


# -- in the place of a batch that was turned down -----------------------------------------------------------------


def test_a_rejected_batch_is_neither_missing_nor_waited_for(world, make_service, until):
    service = make_service(output={"buffer_size": 1})
    service.open()
    for k in range(6):
        message = world.send(k)
        if k in {0, 3, 5}:
            message.predictions_ref = None
    until(service, lambda: len(world.files.events()) == 3 * FULL)
    assert service._delivery.waiting == 0
    assert service.counters()["events_missing"] == {}
    page = service.ledger.producers["p"]
    assert page.taken == page.settled
    assert page.taken.to_json() == [[0, 5, 0, 24]]


def test_a_rejected_batch_of_a_producer_that_begins_again_stands_in_its_new_line(world, make_service, until):
    service = make_service(output={"buffer_size": 1}, queue={"num_producers": 9})
    service.open()
    world.send(0)
    world.end()
    world.send(0).predictions_ref = None
    world.send(1)
    until(service, lambda: len(world.files.events()) == 2 * FULL)
    assert service._delivery.waiting == 0


def test_a_name_that_came_before_makes_no_hole_where_the_number_is_new(world, make_service, until):
    service = make_service(output={"buffer_size": 1})
    service.open()
    for k in range(4):
        message = world.send(k)
        message.metadata |= times(1 if k == 2 else k)
        if k == 2:
            message.batch_id = "p_1"
    until(service, lambda: len(world.files.events()) == 3 * FULL)
    assert service._delivery.waiting == 0
    assert service.counters()["events_missing"] == {}
    assert service.counters()["events_rejected"] == {"duplicate": FULL}


def test_a_number_that_comes_again_does_not_take_the_place_of_the_one_in_work(world, make_service, until):
    service = make_service(output={"buffer_size": 1})
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


# -- producers that begin again -----------------------------------------------------------------------------------


def test_a_producer_that_has_ended_may_begin_again(world, make_service, through):
    world.send(0)
    world.end()
    world.send(0)
    world.end("q")
    found = through(make_service(queue={"num_producers": 2}))
    assert found["events_rejected"] == {}
    assert found["total_events_written"] == 8


def times(first):
    return {"timestamp": np.arange(first, first + FULL, dtype=np.uint64) << np.uint64(32)}


def test_a_producer_that_is_killed_and_begins_again_under_its_name_loses_nothing(
    world, make_service, tmp_path, through
):
    for k in range(5):
        world.send(k, **times(1000 + FULL * k))
    for k in (1, 0, 3, 2, 4):  # several shards bring them in another order
        world.send(k, **times(9000 + FULL * k))
    world.end(batches=5)
    found = through(make_service())
    assert found["events_rejected"] == {}
    assert found["total_events_written"] == 2 * 5 * FULL
    stamps = [int(e.batch.timestamps[0] >> np.uint64(32)) for file in world.files.written for e in file if not e.index]
    assert stamps == [*range(1000, 1020, 4), *range(9000, 9020, 4)]
    assert found["events_missing"] == {}
    assert json.loads(status_path(tmp_path, "peaknet_cxi").read_text())["producers"]["p"]["taken"] == [[0, 4, 0, 20]]
    assert sum(n for text, n in found["warnings"].items() if "begun again" in text) == 1


def test_a_producer_that_does_not_count_and_begins_again_loses_nothing(world, make_service, through):
    for first in (1000, 9000):
        for k in range(3):
            world.send(k, sequence=None, event_index=None, **times(first + FULL * k))
    found = world.end() or through(make_service())
    assert (found["events_rejected"], found["total_events_written"]) == ({}, 6 * FULL)


# -- what messages do not say -------------------------------------------------------------------------------------


#: Two modules of 8 x 8 beside each other, each of two panels.
TILES = "".join(
    f"p{p}/min_fs = {4 * p}\np{p}/max_fs = {4 * p + 3}\np{p}/min_ss = 0\np{p}/max_ss = 7\n"
    f"p{p}/corner_x = {4 * p}\np{p}/corner_y = 0\np{p}/fs = x\np{p}/ss = y\np{p}/res = 1000\n"
    for p in range(4)
)


@pytest.mark.parametrize("section", [{}, {"panel_shape": [8, 8]}])
def test_the_number_of_panels_is_taken_from_the_geometry(world, make_service, tmp_path, section, through):
    (tmp_path / "g.geom").write_text(TILES)
    world.queue.messages.append(replace(world.message(0, peaks=(1, 2, 3)), preprocessing_metadata=None))
    world.end()
    found = through(make_service(geometry={"geom_file": str(tmp_path / "g.geom")}, detector=section))
    assert (found["events_rejected"], found["total_events_written"]) == ({}, 3)
    assert world.files.written[0][0].batch.n_panels == 2


def test_a_geometry_that_does_not_say_the_number_of_panels_is_a_reason(world, make_service, tmp_path, caplog, through):
    (tmp_path / "g.geom").write_text(TILES)
    world.queue.messages.append(replace(world.message(0), preprocessing_metadata=None))
    world.end()
    service = make_service(geometry={"geom_file": str(tmp_path / "g.geom")}, detector={"panel_shape": [5, 8]})
    assert through(service)["events_rejected"].keys() == {"no shape"}
    assert "8 x 16 cannot be cut into 5 x 8" in caplog.text


def test_the_number_of_panels_is_that_of_the_panel_map(world, make_service, through):
    world.queue.messages.append(replace(world.message(0, peaks=(1, 2, 3)), preprocessing_metadata=None))
    world.end()
    assert through(make_service(geometry={"panel_map": [[0, 0], [0, 8]]}))["total_events_written"] == 3


def test_the_end_of_one_of_whom_nothing_came_may_be_of_an_earlier_run(world, make_service, caplog, through):
    world.end("earlier", batches=7)
    world.send(0)
    world.end(batches=1)
    through(make_service(queue={"num_producers": 2}))
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    warned = [text for text in said if "has ended" in text]
    assert len(warned) == 1
    assert "'earlier' has ended, and nothing of its 7 batches came" in warned[0]


def test_a_producer_that_its_own_end_has_overtaken_has_ended(world, make_service, through):
    world.send(0)
    world.end(batches=2)
    world.send(1)
    world.end("other")
    service = make_service(queue={"num_producers": 2})
    found = through(service)
    assert found["total_events_written"] == 8
    assert service.ledger.producers["p"].ended
