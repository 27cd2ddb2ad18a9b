"""What is asked of a replay, and what it did."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any, Literal, Protocol

from nightbeam.core.errors import ConfigError
from nightbeam.stream.model import Form, PadStyle, PreprocessingMetadata

__all__ = ["BatchSink", "Clock", "MatchedFilter", "ReplayPlan", "ReplayReport", "SystemClock"]


@dataclass(frozen=True, slots=True)
class MatchedFilter:
    """Settings of the network that is shipped.

    Attributes
    ----------
    sigma_px
        Of the peaks that it looks for.
    threshold
        Signal-to-noise ratio where a pixel is as likely of a peak as not.
    slope
        Of the difference of the logits against that ratio.
    """

    sigma_px: float = 1.2
    threshold: float = 6.0
    slope: float = 1.0

    def __post_init__(self) -> None:
        if not 0.3 <= self.sigma_px <= 8.0:
            raise ConfigError(f"sigma_px is {self.sigma_px}", fix="give one from 0.3 to 8 px")
        if not (0.0 < self.threshold < 1e6 and 0.0 < self.slope < 1e6):
            raise ConfigError(f"threshold is {self.threshold}, slope {self.slope}", fix="give numbers above 0")


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """How frames become batches.

    Attributes
    ----------
    batch
        Events in one.
    first_event, n_events
        Which of the source; None: to its end.
    repeat
        How often.
    pad_to, pad_multiple
        Size of the network's panel, or what its sides are multiples of; ``pad_to`` wins.
    pad_style
        Where the pad is.
    normalize
        Give the network each panel with mean 0 and variance 1, and say so, so that it can be undone.
    calibrated
        Send the frames as they are in the source beside what the network got.
    form, by
        Of the predictions: what, and whether as references or by value.
    rate_hz
        Most events in a second; None: as fast as it goes.
    end
        Whether to say at the end that no more come.
    wait
        Whether to stay until all that was sent was taken: the arrays belong to this process and end with it.

    Raises
    ------
    ConfigError
        If a value makes no sense.
    """

    batch: int = 8
    first_event: int = 0
    n_events: int | None = None
    repeat: int = 1
    pad_to: tuple[int, int] | None = None
    pad_multiple: int = 1
    pad_style: PadStyle = "bottom-right"
    normalize: bool = False
    calibrated: bool = False
    form: Form = "logits"
    by: Literal["reference", "value"] = "reference"
    rate_hz: float | None = None
    end: bool = True
    wait: bool = True

    def __post_init__(self) -> None:
        if min(self.batch, self.repeat, self.pad_multiple) < 1:
            what = f"batch is {self.batch}, repeat {self.repeat}, pad_multiple {self.pad_multiple}"
            raise ConfigError(what, fix="give 1 or more")
        if self.first_event < 0 or (self.n_events is not None and self.n_events < 1):
            what = f"first_event is {self.first_event}, n_events {self.n_events}"
            raise ConfigError(what, fix="begin at 0 or later, with one event or more")
        if self.rate_hz is not None and not 0.0 < self.rate_hz < 1e9:
            raise ConfigError(f"rate_hz is {self.rate_hz}", fix="give one above 0")
        if self.pad_style not in ("bottom-right", "center"):
            raise ConfigError(f"pad_style is {self.pad_style!r}", fix="bottom-right or center")
        if self.form not in ("logits", "bits", "pixels") or self.by not in ("reference", "value"):
            raise ConfigError(
                f"form is {self.form!r}, by {self.by!r}", fix="logits, bits or pixels; reference or value"
            )


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay did.

    Attributes
    ----------
    producer
        Its name in the messages.
    events, batches
        Sent.
    pixels
        How many the network gave to peaks.
    seconds
        Of wall clock, without the wait for what was sent to be taken.
    read_s, network_s, send_s
        Of these, reading or simulating, the network, and handing over (with waits for room).
    waited_s
        How long the producer waited for the queue, see there.
    stopped
        Whether it was asked to stop before its end.
    device
        Where the network ran.
    """

    producer: str
    events: int
    batches: int
    pixels: int
    seconds: float
    read_s: float
    network_s: float
    send_s: float
    waited_s: float
    stopped: bool
    device: str

    @property
    def events_per_s(self) -> float:
        """Events in a second of wall clock."""
        return self.events / self.seconds if self.seconds > 0 else 0.0


class Clock(Protocol):
    """Time for a replay at a given rate."""

    def now(self) -> float:
        """Return seconds from any begin; they never go back."""

    def wait(self, seconds: float, stop: Event) -> None:
        """Return after so long, or as soon as ``stop`` is set."""


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The clock of this machine."""

    read: Callable[[], float] = time.monotonic

    def now(self) -> float:
        """Return seconds since some begin."""
        return self.read()

    def wait(self, seconds: float, stop: Event) -> None:
        """Return after so long, or as soon as ``stop`` is set."""
        stop.wait(seconds)


class _Sized(Protocol):
    def size(self) -> int:
        """Return how many messages wait."""


class BatchSink(Protocol):
    """What takes batches: `nightbeam.stream.producer.Producer`, or something like it."""

    producer_id: str
    waited_s: float

    @property
    def queue(self) -> _Sized:
        """Where the batches go."""

    def share(self, value: Any) -> Any:
        """Return a reference to an array that is stored once."""

    def send(
        self,
        predictions: Any,
        images: Any = None,
        *,
        preprocessing: PreprocessingMetadata | None = None,
        metadata: dict[str, Any] | None = None,
        form: Form = "logits",
        by: Literal["reference", "value"] = "reference",
        calibrated: Any = None,
        timeout_s: float | None = None,
    ) -> bool:
        """Hand over one batch, waiting for room; False: there was none in time and nothing was sent."""

    def finish(self, *, wait: bool = True) -> bool:
        """Say that no more come, and wait until all that was sent was taken."""

    def outstanding(self) -> int | None:
        """Return how many arrays somebody may still want; None where nobody knows."""
