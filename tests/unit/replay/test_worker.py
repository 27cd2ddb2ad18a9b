"""The loop of a producer, with a fake queue and a fake clock."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from nightbeam.core.errors import ConfigError, InputError
from nightbeam.frames.files import open_frames
from nightbeam.replay.model import ReplayPlan
from nightbeam.replay.worker import replay
from nightbeam.stream.model import PreprocessingMetadata


def go(source, network, producer, *, stop=None, clock=None, **plan):
    return replay(source, network, producer, ReplayPlan(**plan), stop or threading.Event(), clock=clock)


def test_every_event_is_sent_once_in_order(source, network, producer):
    report = go(source, network, producer, batch=4)
    assert [list(one["metadata"]["source_event"]) for one in producer.sent] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (report.events, report.batches, report.pixels, report.stopped) == (10, 3, 10, False)
    assert producer.ended == [True]
    assert report.waited_s == 0.75
    assert report.device == "cpu"


def test_a_batch_says_all_that_is_known_of_it(source, network, producer):
    go(source, network, producer, batch=3, n_events=3, first_event=2, pad_multiple=8, calibrated=True)
    (one,) = producer.sent
    assert one["preprocessing"] == PreprocessingMetadata((3, 2, 5, 7), (6, 1, 8, 8))
    assert one["images"].shape == (6, 1, 8, 8)
    assert one["metadata"]["timestamp"].tolist() == [3 << 32, 4 << 32, 5 << 32]
    assert one["metadata"]["photon_energy"].tolist() == [9002, 9003, 9004]
    assert one["metadata"]["encoder_value"].tolist() == [2, 3, 4]
    assert np.array_equal(one["calibrated"], source.read(2, 3).images)
    assert one["predictions"].shape == (6, 2, 8, 8)
    assert (one["form"], one["by"]) == ("logits", "reference")


def test_of_what_is_not_known_nothing_is_said(network, producer, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4)))
    with open_frames(tmp_path / "a.npy") as reader:
        go(reader, network, producer)
    assert set(producer.sent[0]["metadata"]) == {"source_event"}
    assert producer.sent[0]["calibrated"] is None


@pytest.mark.parametrize(
    ("form", "by", "shape", "kind"),
    [
        ("logits", "value", (20, 2, 5, 7), torch.Tensor),
        ("bits", "reference", (20, 5, 1), np.ndarray),
        ("pixels", "value", (10, 3), np.ndarray),
    ],
)
def test_predictions_have_the_form_that_was_asked_for(source, network, producer, form, by, shape, kind):
    go(source, network, producer, batch=10, form=form, by=by)
    (one,) = producer.sent
    assert isinstance(one["predictions"], kind)
    assert tuple(one["predictions"].shape) == shape
    assert (one["form"], one["by"]) == (form, by)
    if form == "pixels":
        # Row 2 * event + 1, where the bright pixel is.
        assert one["predictions"].tolist() == [[2 * k + 1, 2, 3] for k in range(10)]


def test_normalised_panels_come_with_what_undoes_it(source, network, producer):
    go(source, network, producer, batch=4, normalize=True, pad_to=(6, 9), pad_style="center")
    one = producer.sent[1]
    undo = one["metadata"]["normalization"]
    inside = one["images"][:, 0, 0:5, 1:8]
    back = inside * undo["std"][:, None, None] + undo["mean"][:, None, None]
    assert back == pytest.approx(source.read(4, 4).images.reshape(8, 5, 7), abs=1e-2)
    assert undo["mean"].shape == (8,)


def test_everything_can_be_sent_again(source, network, producer):
    assert go(source, network, producer, batch=6, repeat=3).events == 30
    assert [one["metadata"]["source_event"][0] for one in producer.sent] == [0, 6] * 3


def test_a_rate_is_kept_by_waiting_until_a_batch_is_due(source, network, producer, clock):
    report = go(source, network, producer, clock=clock, batch=4, rate_hz=2.0)
    # Batches are due when the events before them have had half a second each.
    assert clock.waits == [2.0, 2.0]
    assert report.seconds == pytest.approx(4.0)
    assert report.events_per_s == pytest.approx(2.5)


def test_time_that_was_lost_is_made_up_for(source, network, producer, clock):
    send = producer.send

    def slow(*args, **rest):
        clock.time += 3.0 if not producer.sent else 0.0
        return send(*args, **rest)

    producer.send = slow
    go(source, network, producer, clock=clock, batch=4, rate_hz=2.0)
    assert clock.waits == [1.0]


def test_asked_to_stop_it_begins_no_batch_and_says_the_end(source, network, producer):
    stop = threading.Event()
    seen = []

    def tell(events):
        seen.append(events)
        if events == 4:
            stop.set()

    report = replay(source, network, producer, ReplayPlan(batch=2), stop, on_batch=tell)
    assert seen == [2, 4]
    assert (report.events, report.stopped) == (4, True)
    assert producer.ended == [True]


def test_a_stop_ends_the_wait_for_the_next_batch(source, network, producer, clock):
    stop = threading.Event()
    wait = clock.wait
    clock.wait = lambda seconds, event: (wait(seconds / 4, event), stop.set())
    report = go(source, network, producer, stop=stop, clock=clock, batch=5, rate_hz=1.0)
    assert (report.events, report.stopped) == (5, True)


def test_a_full_queue_is_asked_again_until_there_is_room(source, network, producer):
    producer.room = 1

    def make_room(fake):
        fake.room += fake.offers >= 4

    producer.when_full = make_room
    report = go(source, network, producer, batch=5)
    assert [one["metadata"]["source_event"][0] for one in producer.sent] == [0, 5]
    assert producer.offers == 5
    assert report.events == 10


def test_a_stop_while_the_queue_is_full_gives_the_batch_up_and_counts_it_not(source, network, producer):
    stop = threading.Event()
    producer.room, producer.when_full = 1, lambda fake: stop.set()
    report = go(source, network, producer, stop=stop, batch=5)
    assert (report.events, report.batches, report.stopped, len(producer.sent)) == (5, 1, True, 1)


@pytest.mark.parametrize(("end", "wait", "ended"), [(True, False, [False]), (False, False, []), (False, True, [])])
def test_the_end_is_said_and_waited_for_as_asked(source, network, producer, end, wait, ended):
    producer.waiting = 3
    go(source, network, producer, end=end, wait=wait)
    assert producer.ended == ended
    assert (producer.waiting == 0) == (wait and not end)


def test_a_range_that_is_not_there_is_refused_before_anything_is_sent(source, network, producer):
    for plan in ({"first_event": 10}, {"first_event": 8, "n_events": 3}):
        with pytest.raises(InputError, match="the source has 10"):
            go(source, network, producer, **plan)
    with pytest.raises(InputError, match="do not fit"):
        go(source, network, producer, pad_to=(4, 9))
    assert not producer.sent


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"repeat": 0}, {"first_event": -1}, {"n_events": 0}, {"rate_hz": 0.0}, {"pad_style": "left"},
     {"form": "text"}, {"by": "hand"}, {"pad_multiple": 0}],
    ids=str,
)  # fmt: skip
def test_a_plan_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError):
        ReplayPlan(**wrong)
