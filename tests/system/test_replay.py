"""Frames through the shipped network and a real queue: what comes out is what was simulated."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nightbeam.frames.compute import SimulatedFrames, simulate_frames
from nightbeam.frames.model import FramePlan
from nightbeam.replay.model import ReplayPlan
from nightbeam.replay.network import load_network
from nightbeam.replay.worker import replay
from nightbeam.stream.arrays import fetch
from nightbeam.stream.compute import describe, detector_images, is_end
from nightbeam.stream.model import MessageDefaults
from nightbeam.stream.producer import Producer
from nightbeam.stream.queues import ShardedQueue
from nightbeam.stream.receiver import Receiver
from nightbeam.stream.remote import connect, disconnect

pytestmark = pytest.mark.system

PLAN = FramePlan(shape=(2, 90, 100), n_peaks=(5, 9), hit_rate=0.6, seed=11)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    home = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: the name of a socket has 107 characters at most
    connect("local", "replay", num_cpus=1, object_store_bytes=100_000_000, temp_dir=home)
    yield
    disconnect()
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize(("form", "by"), [("logits", "reference"), ("logits", "value"), ("bits", "reference"),
                                          ("pixels", "value")])  # fmt: skip
def test_the_simulated_frames_and_their_peaks_arrive(form, by):
    # Room for two messages only, so the producer waits for this reader.
    queue = ShardedQueue.create(f"q-{form}-{by}", 1, 2)
    producer = Producer(queue, "p", pad_style="center", run=3)
    plan = ReplayPlan(batch=4, pad_multiple=32, pad_style="center", normalize=True, calibrated=True, form=form, by=by)
    source, network = SimulatedFrames(PLAN, 10), load_network(device="cpu")
    reports = []
    sender = threading.Thread(target=lambda: reports.append(replay(source, network, producer, plan, threading.Event())))
    sender.start()
    try:
        peaks, images = _take_all(Receiver(queue))
    finally:
        sender.join(60)
        queue.drop()
    frames, truth = simulate_frames(PLAN, 0, 10)
    assert np.array_equal(np.concatenate(images), frames.reshape(20, 90, 100))
    assert (reports[0].events, reports[0].batches) == (10, 3)
    assert abs(peaks - len(truth)) <= 0.02 * len(truth)


def _take_all(receiver: Receiver) -> tuple[int, list[np.ndarray]]:
    """Return how many components there were, and the images."""
    peaks, images = 0, []
    while (message := receiver.take(60.0)) is not None and is_end(message) is None:
        header = describe(message, MessageDefaults())
        assert (header.run, header.image_kind, header.window.top, header.window.left) == (3, "calibrated", 3, 14)
        assert header.first_event == sum(map(len, images)) // 2
        arrays = fetch(message, header)
        images.append(detector_images(header, np.asarray(arrays.images)))
        for row in _mask(header, arrays.predictions):
            peaks += ndimage.label(row, np.ones((3, 3)))[1]
    return peaks, images


def _mask(header, predictions) -> np.ndarray:
    rows, shape = header.n_events * header.n_panels, header.network_shape
    if header.form == "bits":
        return np.unpackbits(predictions, axis=-1)[..., : shape[1]].astype(bool)
    if header.form == "pixels":
        mask = np.zeros((rows, *shape), bool)
        mask[tuple(np.asarray(predictions).T)] = True
        return mask
    logits = np.asarray(predictions)
    return logits[:, 1] > logits[:, 0]
