"""The long loop of a producer: read, pad, ask the network, hand over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError
from nightbeam.frames.model import Frames, FrameSource
from nightbeam.replay.compute import mask_of, normalize, pad, padded_size, predictions_of
from nightbeam.replay.model import BatchSink, Clock, ReplayPlan, ReplayReport, SystemClock
from nightbeam.replay.network import Network
from nightbeam.stream.model import PreprocessingMetadata

__all__ = ["replay"]

#: For so long a batch is offered before `stop` is looked at: each offer puts its arrays into the store again.
_OFFER_S: Final = 2.0

_LOG = logging.getLogger(__name__)


def replay(
    source: FrameSource,
    network: Network,
    producer: BatchSink,
    plan: ReplayPlan,
    stop: threading.Event,
    *,
    clock: Clock | None = None,
    on_batch: Callable[[int], None] | None = None,
    on_sent: Callable[[], None] | None = None,
) -> ReplayReport:
    """Send frames through a network into a queue.

    Parameters
    ----------
    source
        Of the frames.
    network
        That makes logits of them.
    producer
        That takes the batches.
    plan
        How.
    stop
        Set it, and no further batch is begun. The end is said and what was sent is waited for all the same, where
        the plan wants that.
    clock
        For ``rate_hz``.
    on_batch
        Called with the number of events sent so far.
    on_sent
        Called when nothing more is sent, before that is waited for.

    Raises
    ------
    InputError
        If the source has no event in the range, or its panels do not fit.
    ToolError
        If the network fails.
    """
    run = _Run(source, network, producer, plan, clock or SystemClock(), stop)
    size = padded_size(source.shape[1:], size=plan.pad_to, multiple=plan.pad_multiple)
    complete = True
    for first, n in _ranges(source.n_events, plan):
        complete = run.keep_pace() and run.send(first, n, size)
        if not complete:
            break
        if on_batch is not None:
            on_batch(run.events)
    seconds = run.clock.now() - run.begun
    if on_sent is not None:
        on_sent()
    run.finish()
    _LOG.info("%d events in %d batches, %.1f s", run.events, run.batches, seconds)
    return run.report(seconds, stopped=not complete)


def _ranges(available: int, plan: ReplayPlan) -> Iterator[tuple[int, int]]:
    """Return an iterator over (first event, events) of the batches; the last of each repeat may be smaller."""
    end = available if plan.n_events is None else plan.first_event + plan.n_events
    if plan.first_event >= available or end > available:
        raise InputError(
            f"events {plan.first_event} to {end - 1} are wanted, the source has {available}",
            fix="ask for what there is",
        )
    starts = range(plan.first_event, end, plan.batch)
    return ((k, min(plan.batch, end - k)) for _ in range(plan.repeat) for k in starts)


@dataclass
class _Run:
    """The state of a replay."""

    source: FrameSource
    network: Network
    producer: BatchSink
    plan: ReplayPlan
    clock: Clock
    stop: threading.Event
    events: int = 0
    batches: int = 0
    pixels: int = 0
    read_s: float = 0.0
    network_s: float = 0.0
    send_s: float = 0.0

    def __post_init__(self) -> None:
        self.begun = self.clock.now()
        self.waited_before = self.producer.waited_s

    def keep_pace(self) -> bool:
        """Wait until the next batch is due; return whether to go on."""
        if self.plan.rate_hz is not None:
            due = self.begun + self.events / self.plan.rate_hz
            while not self.stop.is_set() and (left := due - self.clock.now()) > 0:
                self.clock.wait(left, self.stop)
        return not self.stop.is_set()

    def send(self, first: int, n: int, size: tuple[int, int]) -> bool:
        """Send one batch; return whether it was taken."""
        begun = time.perf_counter()
        frames = self.source.read(first, n)
        images, normalization = self._network_input(frames.images, size)
        read = time.perf_counter()
        logits = self.network.logits(images)
        mask = mask_of(logits)
        predictions = predictions_of(logits, mask, self.plan.form, by_value=self.plan.by == "value")
        ready = time.perf_counter()
        taken = self._hand_over(predictions, images, frames, _metadata(frames) | normalization)
        self.read_s += read - begun
        self.network_s += ready - read
        self.send_s += time.perf_counter() - ready
        if taken:
            self.events += n
            self.batches += 1
            self.pixels += int(np.count_nonzero(mask))
        return taken

    def _hand_over(
        self, predictions: Any, images: NDArray[np.float32], frames: Frames, metadata: dict[str, Any]
    ) -> bool:
        """Offer a batch until there is room, or until it is time to stop."""
        shapes = PreprocessingMetadata(frames.images.shape, images.shape)
        arrays: list[Any] = [predictions, images, frames.images if self.plan.calibrated else None]
        if self.plan.by == "reference":  # offered as often as it takes, stored once
            arrays = [None if one is None else self.producer.share(one) for one in arrays]
        while not (
            taken := self.producer.send(
                arrays[0],
                arrays[1],
                preprocessing=shapes,
                metadata=metadata,
                form=self.plan.form,
                by=self.plan.by,
                calibrated=arrays[2],
                timeout_s=_OFFER_S,
            )
        ):
            if self.stop.is_set():
                break
        return taken

    def finish(self) -> None:
        """Say the end, and stay until all is taken, as far as the plan wants that."""
        if self.plan.end:
            self.producer.finish(wait=self.plan.wait)
        elif self.plan.wait:
            pause = threading.Event()
            while self.producer.queue.size() or self.producer.outstanding():
                pause.wait(0.05)

    def _network_input(
        self, frames: NDArray[np.float32], size: tuple[int, int]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        if not self.plan.normalize:
            return pad(frames, size, self.plan.pad_style)[0], {}
        frames, mean, std = normalize(frames)
        return pad(frames, size, self.plan.pad_style)[0], {"normalization": {"mean": mean, "std": std}}

    def report(self, seconds: float, *, stopped: bool) -> ReplayReport:
        """Return what was done."""
        return ReplayReport(
            producer=self.producer.producer_id,
            events=self.events,
            batches=self.batches,
            pixels=self.pixels,
            seconds=seconds,
            read_s=self.read_s,
            network_s=self.network_s,
            send_s=self.send_s,
            waited_s=self.producer.waited_s - self.waited_before,
            stopped=stopped,
            device=self.network.device,
        )


def _metadata(frames: Frames) -> dict[str, Any]:
    """Return what is known of the events; keys of which nothing is known are left out."""
    known: dict[str, Any] = {"source_event": np.arange(frames.first_event, frames.first_event + len(frames.images))}
    if frames.timestamps.any():
        known["timestamp"] = frames.timestamps
    if frames.photon_energy_ev is not None:
        known["photon_energy"] = np.nan_to_num(frames.photon_energy_ev)
    if frames.clen_mm is not None and np.isfinite(frames.clen_mm).any():
        known["encoder_value"] = frames.clen_mm
    return known
