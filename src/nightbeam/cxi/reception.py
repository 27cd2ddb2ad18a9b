"""Messages are taken in, whatever they are: batches to work on, end markers, and what is turned down."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from nightbeam.core.errors import InputError, NightbeamError
from nightbeam.core.times import iso_z, utc_now
from nightbeam.cxi.books import Books
from nightbeam.cxi.config import WriterConfig, message_defaults
from nightbeam.cxi.delivery import Delivery
from nightbeam.cxi.intake import Ends, Seen, announced_events, numbered, panels_by_geometry
from nightbeam.cxi.jobs import Job
from nightbeam.cxi.work import batch_bytes
from nightbeam.geometry.compute import explicit_origins, tile_origins
from nightbeam.geometry.model import Geometry
from nightbeam.peaks.model import Window
from nightbeam.stream.compute import describe, is_end, message_metadata, needs_arrays
from nightbeam.stream.model import BatchError, BatchHeader
from nightbeam.stream.receiver import Unreadable

__all__ = ["Reception"]

_log = logging.getLogger(__name__)

_MOST_NUMBER: Final = 1 << 62


class Reception:
    """Take messages in; from then on their events are counted.

    Parameters
    ----------
    config
        What is wanted.
    geometry
        Which batches must fit; None: any do.
    fetch
        Brings the arrays of a message that does not say their shape.
    books
        Count and enter what comes.
    delivery
        Is told of lines that begin and end, and of batches that are turned down.
    start
        Begins the work on a batch.

    Attributes
    ----------
    ends
        The producers that have no more.
    last_event
        When the last batch came, ISO 8601; ``""`` before the first.
    """

    def __init__(
        self,
        config: WriterConfig,
        geometry: Geometry | None,
        *,
        fetch: Callable[[Any, Any], Any],
        books: Books,
        delivery: Delivery,
        start: Callable[[Job], None],
    ) -> None:
        self._fetch, self._books, self._delivery, self._start = fetch, books, delivery, start
        self._geometry, self._defaults = geometry, message_defaults(config)
        self._seen, self._fits = Seen(), _Fits(config, geometry)
        self.ends = Ends(config.queue.num_producers)
        self.last_event = ""

    def take_in(self, message: Any) -> bool:
        """Take a message in, whatever it is; return whether it is a batch whose work has begun."""
        if isinstance(message, Unreadable):
            self._unreadable(message)
            return False
        producer = is_end(message)
        if producer is not None:
            self._end_of(producer, message)
            return False
        self.last_event = iso_z(utc_now())
        try:
            job = self._job_of(message)
        except Exception as error:  # a stranger's message may be anything; it never ends the run
            self._turn_down(message, error)
            return False
        self._books.counts.take(job.header.n_events)
        job.line = self._enter(job.header)
        self._start(job)
        return True

    def _unreadable(self, found: Unreadable) -> None:
        if found.reason == "shard lost":  # nobody knows whether there was anything in it
            with self._books.counts.lock:
                self._books.counts.warnings[found.reason] += 1
            _log.error("%s", found.text)
            return
        self._books.counts.take(0)
        self._books.lose(0, found.reason, found.text)

    def _end_of(self, producer: str, message: Any) -> None:
        total = numbered(message)[1]
        if total and not self._books.heard(producer):
            _log.warning(
                "producer %r has ended, and nothing of its %d batches came here; if that end is of an earlier run, "
                "remove the queue with `nightbeam stream drop` before the next one", producer, total,
            )  # fmt: skip
        else:
            _log.info("producer %r has ended", producer)
        self.ends.add(producer)
        self._seen.forget(producer)
        self._delivery.end(self._books.ledger.page_of(producer), total)
        self._books.end(producer, total)

    def _job_of(self, message: Any) -> Job:
        message_metadata(message)
        arrays = self._fetch(message, None) if needs_arrays(message) else None
        shape = None if arrays is None else tuple(arrays.predictions.shape)
        defaults = panels_by_geometry(message, self._defaults, self._geometry, shape)
        header, again = self._seen.check(describe(message, defaults, shape=shape))
        if again:  # what comes of it has its own page and its own line, as after an end marker
            self._books.begin_again(header.producer)
        self._fits.require(header)
        for text in header.warnings:
            self._books.warn(text, header)
        job = Job(message, header, sum(batch_bytes(header)))
        if arrays is not None:
            job.predictions, job.images = arrays.predictions, arrays.images
        return job

    def _turn_down(self, message: Any, error: Exception) -> None:
        """Count a message that cannot become a batch; what follows it does not wait for it."""
        n_events, (producer, sequence) = announced_events(message), numbered(message)
        self._books.counts.take(n_events)
        if isinstance(error, BatchError):
            self._books.reject(n_events, error, _batch_id(message))
        elif isinstance(error, NightbeamError):
            self._books.lose_by(n_events, error, _batch_id(message))
        else:
            strange = BatchError(f"it cannot be understood: {error!r:.200}")
            self._books.reject(n_events, strange, _batch_id(message))
        if sequence is None or sequence >= _MOST_NUMBER or self._books.came_before(producer, sequence):
            return
        header = _turned_down(message, producer, sequence, n_events)
        line = self._enter(header)
        self._books.settle(header)
        self._delivery.skip(line, sequence)

    def _enter(self, header: BatchHeader) -> str:
        """Enter a batch in the books, and return the line in which it stands."""
        line, due = self._books.enter(header)
        if due is not None:
            self._delivery.expect(line, due)
        return line


class _Fits:
    """Knows which batches fit the panels that the configuration names."""

    def __init__(self, config: WriterConfig, geometry: Geometry | None) -> None:
        self._panel_map, self._geometry = config.geometry.panel_map, geometry
        self._known: dict[tuple[int, int, int], BatchError | None] = {}

    def require(self, header: BatchHeader) -> None:
        """Check a batch; raises BatchError ``geometry``, which is said once of each shape."""
        shape = (header.n_panels, *header.panel_shape)
        if shape not in self._known:
            self._known[shape] = self._misfit(shape)
        error = self._known[shape]
        if error is not None:
            raise error

    def _misfit(self, shape: tuple[int, int, int]) -> BatchError | None:
        try:
            if self._panel_map is not None:
                explicit_origins(self._panel_map, shape)
            elif self._geometry is not None:
                tile_origins(self._geometry, shape)
        except InputError as error:
            _log.error("batches of %s do not fit and are all rejected: %s", shape, error)
            return BatchError(error.what, reason="geometry", fix=error.fix)
        return None


def _turned_down(message: Any, producer: str, sequence: int, n_events: int) -> BatchHeader:
    """Return what the ledger wants to know of a message that cannot become a batch; the rest is made up."""
    first = message.metadata.get("event_index")
    known = n_events > 0 and isinstance(first, int) and not isinstance(first, bool) and 0 <= first < _MOST_NUMBER
    nothing = np.zeros(0)
    return BatchHeader(
        batch_id=_batch_id(message),
        producer=producer,
        sequence=sequence,
        first_event=first if known else None,
        run=None,
        experiment=None,
        n_events=n_events,
        n_panels=0,
        panel_shape=(0, 0),
        network_shape=(0, 0),
        window=Window(0, 0, 0, 0),
        form="logits",
        image_kind="none",
        timestamps=nothing.astype(np.uint64),
        wall_clock_s=None,
        photon_energy_ev=nothing,
        clen_mm=nothing,
    )


def _batch_id(message: Any) -> str:
    found = getattr(message, "batch_id", "")
    return found if isinstance(found, str) else type(found).__name__
