"""What became of every event that was taken, and the sum that must always come out."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nightbeam.cxi.tallies import RunTallies

__all__ = ["ODD_PIXELS", "OF_FILES", "UNFIT", "Counts", "Rate"]

_WINDOW_S: Final = 10.0
#: Reasons that lie in the configuration and not in the batch.
UNFIT: Final = ("geometry", "not writable")
#: What the files count of pixels that the type of the images cannot hold as they came -> what that means.
ODD_PIXELS: Final[Mapping[str, str]] = {
    "pixels_clipped": "pixels are beyond what `output.dtype` holds and are written as its least or most",
    "pixels_rounded": "pixels are no whole numbers and are rounded to `output.dtype`",
    "pixels_not_finite": "pixels are no numbers and are written as 0",
}
#: Counts of the files alone that the writer passes on.
OF_FILES: Final = (*ODD_PIXELS, "write_failures")


class Rate:
    """Events per second over the last ten seconds and since the first; a second counts as the least.

    Parameters
    ----------
    clock
        Seconds, of a clock that does not jump.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._total = clock, 0
        self._first: float | None = None
        self._seen: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def add(self, n: int) -> None:
        """Count events that are done now."""
        now = self._clock()
        with self._lock:
            self._first = now if self._first is None else self._first
            self._total += n
            self._seen.append((now, n))
            self._forget(now)

    def now(self) -> tuple[float, float]:
        """Return the rates: of the last ten seconds, and of all."""
        now = self._clock()
        with self._lock:
            if self._first is None:
                return 0.0, 0.0
            self._forget(now)
            since = max(now - self._first, 1.0)
            return sum(n for _, n in self._seen) / min(since, _WINDOW_S), self._total / since

    def _forget(self, now: float) -> None:
        while self._seen and self._seen[0][0] < now - _WINDOW_S:
            self._seen.popleft()


@dataclass(slots=True)
class Counts:
    """Counters of one writer; the loop and the writing thread change them under one lock.

    Attributes
    ----------
    batches_received, events_received
        Taken out of the queue; end markers are no batches.
    in_flight
        Batches and events that were taken and have neither reached the writer nor been given up.
    filtered, truncated
        Events without enough peaks, and hits with more peaks than fit.
    rejected, lost
        Events by reason; ``rejected_batches`` and ``lost_batches`` the batches.
    written, buffered
        Events in files, and in the writer's memory, as the writer itself says.
    warnings
        Odd things that could be mended, by their text without numbers.
    runs
        Events and hits of each run, also those of earlier writers of the same files.
    """

    batches_received: int = 0
    events_received: int = 0
    batches_in_flight: int = 0
    in_flight: int = 0
    filtered: int = 0
    truncated: int = 0
    written: int = 0
    buffered: int = 0
    retried_tasks: int = 0
    nan_pixels: int = 0
    nan_rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_batches: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    lost_batches: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    runs: RunTallies = field(default_factory=RunTallies)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def take(self, n_events: int) -> None:
        """Count a batch that was taken."""
        with self.lock:
            self.batches_received += 1
            self.events_received += n_events
            self.batches_in_flight += 1
            self.in_flight += n_events

    def reject(self, n_events: int, reason: str) -> None:
        """Count a batch in flight as turned down."""
        with self.lock:
            self._leave(n_events)
            self.rejected[reason] += n_events
            self.rejected_batches[reason] += 1

    def lose(self, n_events: int, reason: str) -> None:
        """Count a batch in flight as lost."""
        with self.lock:
            self._leave(n_events)
            self.lost[reason] += n_events
            self.lost_batches[reason] += 1

    def pass_on(self, n_events: int, filtered: int, truncated: int, *, written: int, buffered: int) -> None:
        """Count a batch in flight as given to the writer, which now says what it has written and holds."""
        with self.lock:
            self._leave(n_events)
            self.filtered += filtered
            self.truncated += truncated
            self.written, self.buffered = written, buffered

    def pass_part(self, n_events: int, *, written: int, buffered: int) -> None:
        """Count some events of a batch as given to the writer; the batch itself stays in flight."""
        with self.lock:
            self.in_flight -= n_events
            self.written, self.buffered = written, buffered

    def now_written(self, *, written: int, buffered: int) -> None:
        """Take over what the writer says."""
        with self.lock:
            self.written, self.buffered = written, buffered

    def lose_buffered(self, reason: str) -> int:
        """Count what the writer still holds as lost; returns how many events."""
        with self.lock:
            gone, self.buffered = self.buffered, 0
            if gone:
                self.lost[reason] += gone
            return gone

    def unfit(self) -> int:
        """Return how many batches were turned down for what is configured; 0 where another one came through."""
        with self.lock:
            through = self.written + self.filtered + self.buffered
            return 0 if through else sum(self.rejected_batches[reason] for reason in UNFIT)

    def balance(self) -> int:
        """Return received less all that became of it; anything but 0 is a mistake in this program."""
        with self.lock:
            gone = self.written + self.filtered + self.rejected.total() + self.lost.total()
            return self.events_received - gone - self.buffered - self.in_flight

    def to_json(self) -> dict[str, Any]:
        """Return the counters as JSON types, all of one moment."""
        with self.lock:
            return {
                "batches_received": self.batches_received,
                "events_received": self.events_received,
                "batches_in_flight": self.batches_in_flight,
                "events_in_flight": self.in_flight,
                "total_events_written": self.written,
                "total_events_filtered": self.filtered,
                "buffer_size": self.buffered,
                "events_rejected": dict(self.rejected),
                "batches_rejected": dict(self.rejected_batches),
                "events_lost": dict(self.lost),
                "batches_lost": dict(self.lost_batches),
                "events_truncated": self.truncated,
                "retried_tasks": self.retried_tasks,
                "nan_pixels": self.nan_pixels,
                "nan_rows": self.nan_rows,
                "warnings": dict(self.warnings),
                "balance": self.balance(),
            }

    def _leave(self, n_events: int) -> None:
        self.batches_in_flight -= 1
        self.in_flight -= n_events
