"""The one thread that hands batches to the files, and what happens when the disk will not take them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np

from nightbeam.core.errors import NightbeamError, RejectedError, StorageError
from nightbeam.core.times import iso_z, utc_now
from nightbeam.cxi.counts import Counts, Rate
from nightbeam.cxi.model import Event, ProcessedBatch
from nightbeam.stream.model import BatchHeader

__all__ = ["Files", "Outlet", "Parcel"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


class Files(Protocol):
    """What writes files; `nightbeam.cxi.writing.CxiWriter` is one."""

    def submit(self, batch: ProcessedBatch) -> Any:
        """Buffer the hits of a batch and write what is full."""

    def tick(self, now_s: float) -> Any:
        """Write what has waited for long enough, and what could not be written."""

    def flush_final(self) -> Mapping[str, Any]:
        """Write what is left."""

    def get_statistics(self) -> Mapping[str, Any]:
        """Return the totals."""


@dataclass(slots=True, eq=False)
class Parcel:
    """A batch on its way to the files.

    Attributes
    ----------
    batch
        Its hits and misses.
    n_bytes
        What it keeps in memory.
    """

    batch: ProcessedBatch
    n_bytes: int = 0


class Outlet:
    """Give batches to the files in the order in which they come, in a thread of its own.

    Where the disk is full or broken or its directory has gone nothing is given any more; it is tried again after
    1, 2, 4 ... 60 s. `blocked` says so meanwhile, and it is said once in the log.

    Parameters
    ----------
    files
        What writes.
    counts
        What is kept up to date.
    clock
        Seconds, of a clock that does not jump.
    tick_s
        How often `Files.tick` is called, whether anything comes or not.
    most_view_bytes
        While the files hold images of so many bytes, those that come are copied: a view keeps the memory of its whole
        batch. None: views are never copied.
    on_settled
        Is told the header of each batch all of whose events are in files or filtered.
    on_file
        Is called when a file has been written.

    Attributes
    ----------
    said
        What the files last said of themselves; others may not ask them while the thread is at work.
    rate
        Of events that were given to the files or filtered.
    blocked
        Why nothing can be written, or None.
    failed
        What has ended the thread before its time, or None.
    turned_down
        Why the files last refused a batch, or None.
    """

    def __init__(
        self,
        files: Files,
        counts: Counts,
        *,
        clock: Callable[[], float],
        tick_s: float = 0.5,
        most_view_bytes: int | None = None,
        on_settled: Callable[[BatchHeader], None] = lambda _: None,
        on_file: Callable[[], None] = lambda: None,
    ) -> None:
        self.files, self.rate = files, Rate(clock)
        self.said = dict(files.get_statistics())
        self._counts, self._clock, self._tick_s, self._ticked = counts, clock, tick_s, clock()
        self._most_view_bytes = most_view_bytes
        self._on_settled, self._on_file = on_settled, on_file
        self._parcels: deque[Parcel] = deque()
        self._changed = threading.Condition()
        self._open: deque[tuple[BatchHeader, int]] = deque()
        self._accepted = self._chunks = self._lost = self._given_up = 0
        self._closing = self._ended = self._owed = False
        self._pause_s = _FIRST_PAUSE_S
        self.failed: BaseException | None = None
        self.blocked: NightbeamError | None = None
        self.turned_down: NightbeamError | None = None
        self._thread = threading.Thread(target=self._run, name="cxi-files", daemon=True)
        self._thread.start()

    @property
    def waiting_events(self) -> int:
        """How many hits wait to be given to the files."""
        with self._changed:
            return sum(len(parcel.batch.events) for parcel in self._parcels)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes these batches keep in memory."""
        with self._changed:
            return sum(parcel.n_bytes for parcel in self._parcels)

    def put(self, parcel: Parcel) -> None:
        """Hand over a batch; returns at once."""
        with self._changed:
            self._parcels.append(parcel)
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until something has changed, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def require_alive(self) -> None:
        """Check that the thread is at work.

        Raises
        ------
        RuntimeError
            If a mistake in this program has ended it.
        """
        if self.failed is not None:
            raise RuntimeError(f"the thread that writes files has ended: {self.failed!r}") from self.failed

    def close(self) -> None:
        """Write everything and end the thread; what cannot be written is counted as lost.

        Raises
        ------
        StorageError
            If the disk did not take it, at a second try either; says how many events are lost.
        RuntimeError
            As `require_alive`.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            # The flag is ours: a thread's join takes an interrupted wait for its end.
            self._changed.wait_for(lambda: self._ended)
        self._thread.join()
        if self.failed is not None:
            self._give_up()
        self.require_alive()
        if self._lost and self.blocked is not None:
            raise StorageError(
                f"{self._lost} events could not be written and are lost: {self.blocked.what}",
                fix=self.blocked.fix or "free some space, then start the writer again",
            ) from self.blocked

    # -- in the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            self._finish()
        except BaseException as error:  # whoever waits for the end must get it
            _log.exception("the thread that writes files has ended")
            self.failed = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _turn(self) -> bool:
        """Do one thing; False when it is time to end."""
        due = self.blocked is None and self._clock() - self._ticked >= self._tick_s
        with self._changed:
            if not (self._closing or due) and (self.blocked or not self._parcels):
                self._changed.wait(self._pause_s if self.blocked else self._tick_s)
            if self._closing and (self.blocked or not self._parcels):
                return False
            parcel = None if due or not self._parcels or (self.blocked and not self._owed) else self._parcels[0]
        if parcel is None:
            self._tick()
        else:
            self._give(parcel)
        return True

    def _tick(self) -> None:
        self._ticked = self._clock()
        try:
            self.files.tick(self._ticked)
        except Exception as error:  # whatever it is, it may be over at the next try
            self._block(error)
        else:
            self._unblock()
        self._look()

    def _block(self, error: Exception) -> None:
        known = error if isinstance(error, NightbeamError) else None
        if self.blocked is None:
            foreign = error if known is None else None
            _log.error("no file can be written, so nothing more is taken from the queue: %s", error, exc_info=foreign)
        else:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        if known is None:
            known = StorageError(f"{error!r}", fix="look at the disk and into the log")
        self.blocked = known

    def _unblock(self) -> None:
        if self.blocked is not None:
            _log.warning("files can be written again")
            self.blocked, self._pause_s = None, _FIRST_PAUSE_S

    def _give(self, parcel: Parcel) -> None:
        """Give the first batch to the files; it stays the first where a part of it has to be given again."""
        batch, before = self._own(parcel.batch), self._held()
        error: Exception | None = None
        try:
            self.files.submit(batch)
        except Exception as raised:  # one bad batch never ends the run
            error = raised
        taken = self._held() - before
        all_taken = taken == len(batch.events)
        if error is None:
            self._unblock()
        elif isinstance(error, OSError) or (taken and all_taken):  # not the batch's fault
            self._block(error)
        else:
            self._refused(batch, taken, error)
            return
        self._owed = not all_taken
        if self._owed:
            self._passed_part(batch, taken)
            parcel.batch = replace(batch, events=batch.events[taken:], misses=())
        else:
            self._passed(batch)

    def _done(self) -> None:
        """Let go of the first batch, as soon as it is counted."""
        with self._changed:
            self._parcels.popleft()
            self._changed.notify_all()

    def _own(self, batch: ProcessedBatch) -> ProcessedBatch:
        """Copy images out of the object store where the files hold much of it."""
        if self._most_view_bytes is None or self.said.get("buffered_bytes", 0) < self._most_view_bytes:
            return batch
        return replace(batch, events=tuple(_owning(event) for event in batch.events))

    def _passed(self, batch: ProcessedBatch) -> None:
        self._accepted += len(batch.events)
        self._open.append((batch.batch, self._accepted))
        n_events = len(batch.events) + batch.filtered
        with self._counts.lock:
            self._counts.pass_on(n_events, batch.filtered, batch.truncated, **self._written_and_buffered())
            self._tally(batch, batch.events, batch.filtered)
            self._count_given_up()
        self._done()
        self.rate.add(len(batch.events) + batch.filtered)
        self._look()

    def _tally(self, batch: ProcessedBatch, hits: Sequence[Event], filtered: int) -> None:
        peaks = sum(len(event.peaks) for event in hits)
        self._counts.runs.add(
            batch.batch, events=len(hits) + filtered, hits=len(hits), peaks=peaks, now=iso_z(utc_now())
        )

    def _passed_part(self, batch: ProcessedBatch, taken: int) -> None:
        self._accepted += taken
        with self._counts.lock:
            self._counts.pass_part(taken, **self._written_and_buffered())
            self._tally(batch, batch.events[:taken], 0)
            self._count_given_up()
        self._look()

    def _refused(self, batch: ProcessedBatch, taken: int, error: Exception) -> None:
        if taken:
            self._passed_part(batch, taken)
        left = len(batch.events) - taken + batch.filtered
        if isinstance(error, NightbeamError):
            self.turned_down = error
            _log.error("batch %r is rejected: %s", batch.batch.batch_id, error)
            reason = error.reason if isinstance(error, RejectedError) and hasattr(error, "reason") else "not writable"
            self._counts.reject(left, reason)
        else:
            _log.error("batch %r is lost", batch.batch.batch_id, exc_info=error)
            self._counts.lose(left, "write failed")
        self._done()
        self._on_settled(batch.batch)

    def _look(self) -> None:
        """Take over what the writer says, and settle what is in files."""
        said = self._written_and_buffered()
        with self._counts.lock:
            self._counts.now_written(**said)
            self._count_given_up()
        while self._open and self._open[0][1] <= said["written"] + self._given_up:
            self._on_settled(self._open.popleft()[0])
        self.said = dict(self.files.get_statistics())
        chunks = int(self.said.get("chunks_written", 0))
        if chunks != self._chunks:
            self._chunks = chunks
            self._on_file()

    def _finish(self) -> None:
        """Write what is left, with one more try; what the disk does not take is lost."""
        for _ in range(2):
            if self._rest():
                break
        self._look()
        self._lost = self._give_up()

    def _rest(self) -> bool:
        while self._parcels:
            self._give(self._parcels[0])
            if self.blocked:
                break
        try:
            self.files.flush_final()
        except Exception as error:  # it is tried again, and the thread must end in good order
            self._block(error)
            return False
        if not self._parcels:
            self._unblock()
        return not self._parcels

    def _give_up(self) -> int:
        lost = self._counts.lose_buffered("not written")
        while self._parcels:
            batch = self._parcels.popleft().batch
            self._counts.lose(len(batch.events) + batch.filtered, "not written")
            lost += len(batch.events)
            self._on_settled(batch.batch)
        return lost

    def _count_given_up(self) -> None:
        """Count events of files that could not be made; the caller has the lock."""
        found = self._lost_by_files()
        if found > self._given_up:
            self._counts.lost["write failed"] += found - self._given_up
            self._given_up = found

    def _held(self) -> int:
        return sum(self._written_and_buffered().values()) + self._lost_by_files()

    def _lost_by_files(self) -> int:
        return int(self.files.get_statistics().get("events_given_up", 0))

    def _written_and_buffered(self) -> dict[str, int]:
        said = self.files.get_statistics()
        return {"written": int(said["total_events_written"]), "buffered": int(said["buffer_size"])}


def _owning(event: Event) -> Event:
    return event if event.image is None else replace(event, image=np.array(event.image, order="C"))
