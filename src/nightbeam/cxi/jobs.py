"""The batches in work: their arrays are fetched, their peaks found, and what came of it is gathered."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from nightbeam.core.errors import NightbeamError, ToolError, UnavailableError
from nightbeam.cxi.books import Books
from nightbeam.cxi.config import WriterConfig
from nightbeam.cxi.delivery import Delivery
from nightbeam.cxi.doors import Doors, image_ref
from nightbeam.cxi.execution import Done, TaskPool
from nightbeam.cxi.limits import Limits
from nightbeam.cxi.outlet import Parcel
from nightbeam.cxi.work import HitSettings, RowsResult, assemble, batch_bytes, process_rows, split_rows
from nightbeam.peaks.model import PeakSettings
from nightbeam.stream.model import BatchError, BatchHeader

__all__ = ["Job", "Jobs"]

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """A batch in work.

    Attributes
    ----------
    message, header
        As it came, and what that says.
    n_bytes
        Of its arrays, about.
    predictions, images
        The arrays, once they are here.
    line
        In which it stands.
    number
        Its own, from 0; -1 until the work begins.
    left
        Pieces that are not done.
    parts
        Of those that are.
    """

    message: Any
    header: BatchHeader
    n_bytes: int
    predictions: Any = None
    images: Any = None
    line: str = ""
    number: int = -1
    left: int = 0
    parts: list[RowsResult] = field(default_factory=list)


class Jobs:
    """Have the work on batches done, and deliver what comes of each: a parcel, or nothing where it failed.

    Parameters
    ----------
    config
        What is wanted.
    settings
        What a peak is.
    limits
        Into how many pieces a batch is cut, and whether they may go far.
    doors
        Fetch arrays.
    pool
        Does the work.
    books
        Are told of what fails or is odd.
    delivery
        Is given what is done.
    """

    def __init__(
        self,
        config: WriterConfig,
        settings: PeakSettings,
        limits: Limits,
        *,
        doors: Doors,
        pool: TaskPool,
        books: Books,
        delivery: Delivery,
    ) -> None:
        self._settings, self._limits, self._doors, self._pool = settings, limits, doors, pool
        self._books, self._delivery = books, delivery
        found, output = config.peak_finding, config.output
        self._maps = output.save_segmentation_maps
        self._hits = HitSettings(
            found.min_num_peak, found.max_num_peak, found.reject_above, output.images, misses=output.images
        )
        self._open: dict[int, Job] = {}
        self._next = 0

    def __len__(self) -> int:
        """Return how many are in work."""
        return len(self._open)

    def start(self, job: Job) -> None:
        """Begin the work on a batch that was counted and entered."""
        job.number = self._next
        self._next += 1
        self._open[job.number] = job
        self._delivery.keep(job.number, job.n_bytes)
        if job.predictions is None and not self._goes_far(job):
            self._pool.submit((job.number, "fetch"), self._doors.fetch, job.message, job.header)
        else:
            self._start_rows(job)

    def collect(self, timeout_s: float) -> None:
        """Take in what the workers have done; waits up to ``timeout_s`` for the first of it.

        Raises
        ------
        NightbeamError
            As `TaskPool.finished`.
        """
        for done in self._pool.finished(timeout_s):
            number, what = done.key
            job = self._open.get(number)
            if job is None:  # another part of it has failed before
                continue
            if isinstance(done.result, BaseException):
                self._failed(job, done.result)
            elif what == "fetch":
                job.predictions, job.images = done.result.predictions, done.result.images
                self._start_rows(job)
            elif what == "assemble":
                self._assembled(job, done)
            else:
                self._rows_done(job, done.result)
        with self._books.counts.lock:
            self._books.counts.retried_tasks = self._pool.retried

    def lose_all(self) -> None:
        """Lose the batches that nobody will finish."""
        for job in list(self._open.values()):
            self._failed(job, UnavailableError("the writer ended before its work was done"))

    # -- steps --------------------------------------------------------------------------------------------------

    def _goes_far(self, job: Job) -> bool:
        return self._limits.far and getattr(job.message, "predictions_ref", None) is not None

    def _start_rows(self, job: Job) -> None:
        header = job.header
        pieces = split_rows(header.n_events * header.n_panels, self._limits.num_pieces)
        job.left = len(pieces)
        for start, stop in pieces:
            key = (job.number, start)
            asked = (header, self._settings, start, stop, self._maps)
            if job.predictions is None:
                refs = [job.message.predictions_ref, image_ref(job.message)]
                self._pool.submit_remote(key, process_rows, refs, *asked)
            else:
                self._pool.submit(key, process_rows, job.predictions, job.images, *asked)

    def _rows_done(self, job: Job, part: RowsResult) -> None:
        job.parts.append(part)
        job.left -= 1
        self._books.counts.nan_pixels += part.peaks.nan_pixels
        self._books.counts.nan_rows += part.peaks.nan_rows
        if part.peaks.nan_pixels:
            self._books.warn("logits are not a number in some pixels", job.header)
        if job.left == 0:
            job.predictions = None
            self._pool.submit((job.number, "assemble"), self._assemble, job, first=True)

    def _assemble(self, job: Job) -> Any:
        """Gather a batch; in a thread."""
        images = job.images
        if images is None and job.header.image_kind != "none" and self._hits.images:
            images = self._doors.fetch_images(job.message, job.header)
        return assemble(job.header, job.parts, images, self._hits)

    def _assembled(self, job: Job, done: Done) -> None:
        n_bytes = batch_bytes(job.header)[1]
        self._delivery.keep(job.number, n_bytes)
        self._deliver(job, Parcel(done.result, n_bytes))

    def _failed(self, job: Job, error: BaseException) -> None:
        n_events, batch_id = job.header.n_events, job.header.batch_id
        if isinstance(error, BatchError):
            self._books.reject(n_events, error, batch_id)
        elif isinstance(error, NightbeamError) and not isinstance(error, ToolError):
            self._books.lose_by(n_events, error, batch_id)
        else:
            _log.error("a task of batch %r failed twice", batch_id, exc_info=error)
            self._books.lose(n_events, "task failed", repr(error)[:200], batch_id)
        self._delivery.free(job.number)
        self._books.settle(job.header)
        self._deliver(job, None)

    def _deliver(self, job: Job, parcel: Parcel | None) -> None:
        """Be done with a batch's work; what came of it goes on when its turn has come."""
        del self._open[job.number]
        self._delivery.deliver(job.number, job.line, job.header.sequence, parcel)
