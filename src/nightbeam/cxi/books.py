"""The books of a writer: what is counted, what stands in the ledger and what is said in the log agree."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from nightbeam.core.errors import NightbeamError, StorageError
from nightbeam.core.times import iso_z, utc_now
from nightbeam.cxi.counts import ODD_PIXELS, UNFIT, Counts
from nightbeam.cxi.ledger import StreamLedger
from nightbeam.stream.model import BatchError, BatchHeader

__all__ = ["Books"]

_log = logging.getLogger(__name__)


class Books:
    """Note what becomes of every batch.

    Attributes
    ----------
    counts
        Of events and batches; its lock is that of the ledger too.
    ledger
        Of the producers that number their batches.
    turned_down
        What was last wrong with a batch that does not fit what is configured, if one did not.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.ledger = StreamLedger()
        self.turned_down: BatchError | None = None
        self._known_lines: set[str] = set()
        self._said: set[Any] = set()

    # -- in the ledger ------------------------------------------------------------------------------------------

    def enter(self, header: BatchHeader) -> tuple[str, int | None]:
        """Enter a batch that was taken.

        Returns
        -------
        line
            In which it stands: its producer, since that has begun.
        due
            Where this is its first and an earlier writer had some of it: the number that is next, so that nobody
            waits for what that one had. Else None.
        """
        due, before = self.ledger.due(header.producer), self.ledger.page_of(header.producer)
        with self.counts.lock:
            self.ledger.take(header, now=iso_z(utc_now()))
        line = self.ledger.page_of(header.producer)
        if header.sequence is None or line in self._known_lines:
            return line, None
        self._known_lines.add(line)
        return line, due if line == before else None

    def heard(self, producer: str) -> bool:
        """Return whether a numbered batch of a producer was taken, by this writer or one before it."""
        return producer in self.ledger.producers

    def came_before(self, producer: str, sequence: int) -> bool:
        """Return whether this number itself was taken before, and not only one of the same name."""
        page = self.ledger.producers.get(producer)
        known = page is not None and not page.ended and sequence in page.taken
        return known and self.ledger.page_of(producer) in self._known_lines

    def settle(self, header: BatchHeader) -> None:
        """Note that nothing of a batch is open any more; from any thread."""
        with self.counts.lock:
            self.ledger.settle(header)

    def end(self, producer: str, total: int | None) -> None:
        """Note that a producer has no more than ``total`` batches, where it says how many."""
        with self.counts.lock:
            self.ledger.end(producer, total)

    def begin_again(self, producer: str) -> None:
        """Give what a producer sends from now on a page of its own, as after its end."""
        with self.counts.lock:
            self.ledger.end(producer)
            self.ledger.producers.pop(producer, None)

    # -- turned down and lost -----------------------------------------------------------------------------------

    def reject(self, n_events: int, error: BatchError, batch_id: str) -> None:
        """Count a batch in flight as turned down, and say so."""
        if error.reason in UNFIT:
            self.turned_down = error
        self.counts.reject(n_events, error.reason)
        self._say_gone("rejected", error.reason, batch_id, str(error))

    def lose(self, n_events: int, reason: str, text: str, batch_id: str = "") -> None:
        """Count a batch in flight as lost, and say so."""
        self.counts.lose(n_events, reason)
        self._say_gone("lost", reason, batch_id, text)

    def lose_by(self, n_events: int, error: NightbeamError, batch_id: str) -> None:
        """Count a batch in flight as lost for the reason that an error has, and say so."""
        self.lose(n_events, _reason(error), str(error), batch_id)

    def _say_gone(self, what: str, reason: str, batch_id: str, text: str) -> None:
        """Say it loudly the first time, and quietly for each batch."""
        first = (what, reason) not in self._said
        self._said.add((what, reason))
        _log.log(logging.ERROR if first else logging.WARNING, "batch %r is %s (%s): %s", batch_id, what, reason, text)

    # -- odd things ---------------------------------------------------------------------------------------------

    def warn(self, text: str, header: BatchHeader) -> None:
        """Count an odd thing that could be mended, and say it once of each kind."""
        kind = "".join("#" if c.isdigit() else c for c in text)
        if len(self.counts.warnings) > 100 and kind not in self.counts.warnings:
            kind = "other"
        with self.counts.lock:
            self.counts.warnings[kind] += 1
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("batch %r: %s (said once)", header.batch_id, text)

    def say_odd_pixels(self, said: Mapping[str, Any]) -> None:
        """Say once of each kind that a file's pixels are not those that came; failed writes are said as they come."""
        for name, text in ODD_PIXELS.items():
            if said.get(name) and name not in self._said:
                self._said.add(name)
                _log.warning("%s (%s; said once)", text, name)


def _reason(error: NightbeamError) -> str:
    full = isinstance(error, StorageError)
    return str(getattr(error, "reason", "object store full" if full else "unavailable"))
