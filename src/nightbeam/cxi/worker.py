"""The long loop: batches out of the queue, through the peak finder, into files; every event accounted for."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from nightbeam import __version__
from nightbeam.core.errors import (
    BusyError,
    InputError,
    MissingError,
    NightbeamError,
    StorageError,
    ToolError,
    UnavailableError,
)
from nightbeam.core.files import part_path, storage_errors
from nightbeam.core.locks import sole_owner
from nightbeam.core.times import iso_z, utc_now
from nightbeam.cxi.config import (
    WriterConfig,
    check_files,
    load_config,
    message_defaults,
    peak_settings,
    writer_config,
)
from nightbeam.cxi.counts import ODD_PIXELS, OF_FILES, Counts
from nightbeam.cxi.doors import Cluster, Doors, Source, image_ref, the_world
from nightbeam.cxi.execution import Done, Load, TaskPool, next_workers
from nightbeam.cxi.health import Health, health_server, write_status
from nightbeam.cxi.intake import Ends, Seen, announced_events, numbered, panels_by_geometry
from nightbeam.cxi.ledger import StreamLedger, lock_path, resume, status_path, total_events
from nightbeam.cxi.logs import logged
from nightbeam.cxi.outlet import Outlet, Parcel
from nightbeam.cxi.work import HitSettings, RowsResult, assemble, batch_bytes, process_rows, split_rows
from nightbeam.geometry.compute import explicit_origins, tile_origins
from nightbeam.geometry.files import read_geometry
from nightbeam.geometry.model import Geometry
from nightbeam.peaks.compute import find_peaks
from nightbeam.peaks.model import PeakSettings, Window
from nightbeam.stream.compute import describe, is_end, message_metadata, needs_arrays
from nightbeam.stream.model import BatchError, BatchHeader
from nightbeam.stream.order import Resequencer
from nightbeam.stream.receiver import Unreadable

__all__ = ["CxiService", "run_cpu_postprocessing_pipeline"]

_log = logging.getLogger(__name__)

_STATUS_EVERY_S: Final = 1.0
_ADAPT_EVERY_S: Final = 2.0
_IDLE_SAID_EVERY_S: Final = 30.0
_STUCK_AFTER_S: Final = 60.0
_BUSY_WAIT_S: Final = 0.02
_GAP_WAIT_S: Final = 10.0
_CHUNKS_WAITING: Final = 2
_MOST_NUMBER: Final = 1 << 62


@dataclass(slots=True, eq=False)
class _Job:
    """A batch in work."""

    number: int
    message: Any
    header: BatchHeader
    n_bytes: int
    predictions: Any = None
    images: Any = None
    line: str = ""
    left: int = 0
    parts: list[RowsResult] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Result:
    """What became of a batch: a parcel, or nothing where it was turned down; its place in which line."""

    line: str
    sequence: int | None
    number: int | None
    parcel: Parcel | None


class CxiService:
    """Take batches out of the queue, find their peaks, write the hits.

    Parameters
    ----------
    config
        What is wanted.
    config_path
        Where that was read, for the status.
    clock
        Seconds, of a clock that does not jump.
    doors
        The world; None: Ray and the disk.
    on_status
        Is told the counters whenever the status is written.

    Examples
    --------
    ``CxiService(load_config("cxi_writer.yaml")).loop(threading.Event())`` runs until an end condition is met.
    """

    def __init__(
        self,
        config: WriterConfig,
        *,
        config_path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        doors: Doors | None = None,
        on_status: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.config, self.config_path = config, config_path
        self._clock, self._doors, self._on_status = clock, doors or the_world(), on_status
        self.counts = Counts()
        self.ledger = StreamLedger()
        self.port: int | None = None
        self._stack = ExitStack()
        self._jobs: dict[int, _Job] = {}
        self._bytes: dict[int, int] = {}
        self._next_job = self._next_out = 0
        self._results: dict[int, _Result] = {}
        self._order: Resequencer[_Result] = Resequencer(max_wait_s=_GAP_WAIT_S)
        self._seen, self._ends = Seen(), Ends(config.queue.num_producers)
        self._known_lines: set[str] = set()
        self._fits: dict[tuple[int, int, int], BatchError | None] = {}
        self._said: set[Any] = set()
        self._queue_size: int | None = None
        self._queue_empty = False
        self._ended_by = ""
        self._state = "starting"
        self._file_written = threading.Event()
        self._status_problem = ""
        self._started = self._last_event = ""
        self._begun = self._heard = self._turned = self._status_at = self._adapted = self._idle_said = 0.0
        self._heard_once = False

    # -- from beginning to end ----------------------------------------------------------------------------------

    def loop(self, stop: threading.Event) -> dict[str, Any]:
        """Run until an end condition is met or ``stop`` is set; then write everything that was taken.

        Returns
        -------
        dict
            The counters.

        Raises
        ------
        NightbeamError
            If it cannot begin, the cluster is gone, or the disk would not take the rest (which says how many events
            are lost).
        """
        self.open()
        try:
            while not stop.is_set() and self.step():
                pass
        finally:
            self.close()
        return self.counters()

    def open(self) -> None:
        """Look at everything that could be wrong, before anything is taken, and connect.

        Raises
        ------
        MissingError, InputError
            If the geometry or the directory is not there or not usable.
        StorageError
            If the directory cannot be written.
        BusyError
            If another writer has this directory and prefix.
        UnavailableError, ConfigError
            If there is no cluster or queue, or the queue is not as announced.
        """
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise

    def _open(self) -> None:
        check_files(self.config)
        geometry = self._read_geometry()
        self._own_directory()
        _compile_kernels()
        cluster = self._doors.connect(self.config)
        self._stack.callback(self._doors.disconnect)
        self._source: Source = self._doors.source(self.config)
        self._begin_ledger()  # it may take a while, and says what was lost: not each time that nobody is there
        self._limits(cluster)
        self._outlet = Outlet(
            self._doors.files(self.config, geometry),
            self.counts,
            clock=self._clock,
            most_view_bytes=self._most_bytes // 2,
            on_settled=self._settle,
            on_file=self._file_written.set,
        )
        self.port = self._stack.enter_context(health_server(self.config.health.port, self.health, self.counters))
        self._started = iso_z(utc_now())
        self._begun = self._heard = self._turned = self._clock()
        self._state = "running"
        self._write_status(force=True)

    def step(self) -> bool:
        """Take at most one message, collect what is done, and look around; False when the run is over.

        Raises
        ------
        UnavailableError
            If the cluster or the queue has gone.
        RuntimeError
            If the thread that writes files has ended.
        """
        self._turned = self._clock()
        self._outlet.require_alive()
        if self._may_take():
            self._take_one()
        else:
            self._heard = self._turned  # nobody was asked, so nobody was silent
            if self.pool.open:
                self._collect(_BUSY_WAIT_S)
            else:
                self._let_go()
                self._outlet.wait(_BUSY_WAIT_S)
        self._collect(0.0)
        self._pass_on(self._order.expire(self._clock()))
        self._adapt()
        self._write_status()
        return not self._over()

    def close(self) -> None:
        """Take in what has already left the queue, write everything, and leave.

        Raises
        ------
        StorageError
            If the disk does not take it; says how many events are lost.
        """
        if self._state in {"starting", "ended"}:
            return
        self._state = "stopping"
        try:
            self._finish()
        finally:
            self._state = "ended"
            try:
                self._write_status(force=True)
            finally:  # whatever fails, the next writer must find no lock
                self._stack.close()

    def _finish(self) -> None:
        with ExitStack() as last:  # from the last to the first, each whatever has failed before it
            last.callback(self._outlet.close)
            last.callback(self.pool.close)
            last.callback(self._pass_on_all)
            for message in self._drained():
                self._receive(message)
            self._work_off()
        _log.info("ended%s: %s", f" ({self._ended_by})" if self._ended_by else "", self._progress())

    def _drained(self) -> list[Any]:
        """Return what has already left the queue, as far as the cluster still brings it."""
        try:
            self._source.stop_asking()
            return self._source.drain()
        except NightbeamError as error:
            _log.error("what has already left the queue does not come: %s", error)
            return []

    def _work_off(self) -> None:
        """Wait for what is in work; where Ray does not answer any more, its tasks are given up."""
        while self._jobs and self.pool.open:
            self._turned = self._clock()
            try:
                self._collect(0.2)
            except NightbeamError as error:
                if not self.pool.give_up_remote(error):
                    raise
                _log.error("Ray's tasks are given up: %s", error)
            self._write_status()

    def _pass_on_all(self) -> None:
        """Lose the batches that nobody will finish, and pass on those that have waited for them."""
        for job in list(self._jobs.values()):
            self._failed(job, UnavailableError("the writer ended before its work was done"))
        self._pass_on(self._order.flush())

    # -- before anything is taken -------------------------------------------------------------------------------

    def _read_geometry(self) -> Geometry | None:
        path = self.config.geometry.geom_file
        geometry = None if path is None else read_geometry(path)
        self._geometry = geometry
        for text in () if geometry is None else geometry.warnings:
            # The geometry beside the files supplies what CrystFEL lacks in the user's own.
            supplied = self.config.output.geom and text.startswith("CrystFEL ")
            _log.log(logging.DEBUG if supplied else logging.WARNING, "%s: %s", path, text)
        return geometry

    def _own_directory(self) -> None:
        output = self.config.output
        with storage_errors(output.output_dir):
            try:
                output.output_dir.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise StorageError(
                    f"{output.output_dir} is no directory", fix="set `output.output_dir` to another one"
                ) from error
            probe = part_path(output.output_dir / output.file_prefix)
            try:
                probe.write_bytes(b"\0")
            finally:
                probe.unlink(missing_ok=True)
        lock = sole_owner(lock_path(output.output_dir, output.file_prefix))
        try:
            self._stack.enter_context(lock)
        except BusyError as error:
            raise BusyError(
                f"another writer writes {output.file_prefix!r} in {output.output_dir}: {error.what}",
                fix="stop it, or give this one another `output.file_prefix`",
            ) from error

    def _begin_ledger(self) -> None:
        """Go on with the account of an earlier writer, and say what it had taken and not written."""
        output = self.config.output
        try:
            self.ledger, abandoned = resume(output.output_dir, output.file_prefix)
        except MissingError:
            return
        except InputError as error:
            _log.warning("the account of an earlier writer is not gone on with: %s", error)
            return
        self._write_status(force=True)  # what is said now is not said again
        for producer, ranges in abandoned.items():
            events = total_events(ranges)
            numbers = ", ".join(f"{one.first}-{one.last}" for one in ranges[:20])
            _log.error(
                "an earlier writer was killed: batches %s of producer %r (%s events) were taken and never written",
                numbers, producer, "?" if events is None else events,
            )  # fmt: skip

    def _limits(self, cluster: Cluster) -> None:
        asked, cores = self.config.processing, len(os.sched_getaffinity(0))
        self._cores = cores
        self._far = asked.mode == "tasks" or (asked.mode == "auto" and cluster.nodes > 1)
        self._adaptive = asked.num_cpu_workers == "auto"
        self._split = cores if asked.num_cpu_workers == "auto" else asked.num_cpu_workers
        store = cluster.object_store_bytes or psutil.virtual_memory().available
        self._most_bytes = asked.max_pending_bytes or store // 4
        self._settings = peak_settings(self.config)
        self._defaults = message_defaults(self.config)
        found, output = self.config.peak_finding, self.config.output
        self._hits = HitSettings(
            found.min_num_peak, found.max_num_peak, found.reject_above, output.images, misses=output.images
        )
        self.pool = TaskPool(
            min(2, cores) if self._adaptive else min(self._split, cores, asked.max_pending_tasks),
            most_threads=cores,
            most_remote=asked.max_pending_tasks,
            remote=self._doors.remote(asked.max_pending_tasks) if self._far else None,
        )
        psutil.cpu_percent()  # the first answer is about nothing; those that follow are about the time in between

    # -- taking -------------------------------------------------------------------------------------------------

    @property
    def pending_bytes(self) -> int:
        """Bytes of all batches that were taken and are not with the files."""
        return sum(list(self._bytes.values())) + self._outlet.waiting_bytes

    def _may_take(self) -> bool:
        return (
            self._outlet.blocked is None
            and self.pool.open < self.config.processing.max_pending_tasks
            and self._outlet.waiting_events < _CHUNKS_WAITING * self.config.output.buffer_size
            and self.pending_bytes < self._most_bytes
        )

    def _take_one(self) -> None:
        message = self._source.take(0.0 if self._jobs else self.config.queue.poll_timeout)
        self._queue_empty = message is None
        if message is not None:
            self._heard, self._heard_once = self._clock(), True
            self._receive(message)
        elif self._jobs:
            self._collect(self.config.queue.poll_timeout)
        else:
            self._say_idle()

    def _say_idle(self) -> None:
        now = self._clock()
        if now - max(self._heard, self._idle_said) >= _IDLE_SAID_EVERY_S or not self._idle_said:
            self._idle_said = now
            _log.info(
                "Queue empty, waiting... (normal if the pipeline has not started; otherwise check that it puts on Q2)"
            )

    def _receive(self, message: Any) -> None:
        """Take a message in, whatever it is; from here on its events are counted."""
        if isinstance(message, Unreadable):
            self._unreadable(message)
            return
        producer = is_end(message)
        if producer is not None:
            self._end_of(producer, message)
            return
        self._last_event = iso_z(utc_now())
        try:
            job = self._job_of(message)
        except Exception as error:  # a stranger's message may be anything; it never ends the run
            self._turn_down(message, error)
            return
        self._start(job)
        if self.counts.batches_received % self.config.system.progress_interval == 0:
            _log.info("%s", self._progress())

    def _unreadable(self, found: Unreadable) -> None:
        if found.reason == "shard lost":  # nobody knows whether there was anything in it
            with self.counts.lock:
                self.counts.warnings[found.reason] += 1
            _log.error("%s", found.text)
            return
        self.counts.take(0)
        self._lose(0, found.reason, found.text)

    def _end_of(self, producer: str, message: Any) -> None:
        _log.info("producer %r has ended", producer)
        total = numbered(message)[1]
        self._ends.add(producer)
        self._seen.forget(producer)
        self._pass_on(self._order.end(self.ledger.page_of(producer), total, self._clock()))
        with self.counts.lock:
            self.ledger.end(producer)

    def _job_of(self, message: Any) -> _Job:
        message_metadata(message)
        arrays = self._doors.fetch(message, None) if needs_arrays(message) else None
        shape = None if arrays is None else tuple(arrays.predictions.shape)
        defaults = panels_by_geometry(message, self._defaults, self._geometry, shape)
        header, again = self._seen.check(describe(message, defaults, shape=shape))
        if again:  # what comes of it has its own page and its own line, as after an end marker
            with self.counts.lock:
                self.ledger.end(header.producer)
                self.ledger.producers.pop(header.producer, None)
        self._require_fit(header)
        for text in header.warnings:
            self._warn(text, header)
        job = _Job(self._next_job, message, header, sum(batch_bytes(header)))
        if arrays is not None:
            job.predictions, job.images = arrays.predictions, arrays.images
        return job

    def _turn_down(self, message: Any, error: Exception) -> None:
        """Count a message that cannot become a batch; what follows it does not wait for it."""
        n_events, (producer, sequence) = announced_events(message), numbered(message)
        self.counts.take(n_events)
        if isinstance(error, BatchError):
            self._reject(n_events, error, _batch_id(message))
        elif isinstance(error, NightbeamError):
            self._lose(n_events, _reason(error), str(error), _batch_id(message))
        else:
            self._reject(n_events, BatchError(f"it cannot be understood: {error!r:.200}"), _batch_id(message))
        if sequence is None or sequence >= _MOST_NUMBER or self._came_before(producer, sequence):
            return
        header = _turned_down(message, producer, sequence, n_events)
        line = self._enter(header)
        self._settle(header)
        if self.config.output.ordered:
            self._in_sequence(_Result(line, sequence, None, None))

    def _came_before(self, producer: str, sequence: int) -> bool:
        """Return whether this number itself was taken before, and not only one of the same name."""
        page = self.ledger.producers.get(producer)
        known = page is not None and not page.ended and sequence in page.taken
        return known and self.ledger.page_of(producer) in self._known_lines

    def _require_fit(self, header: BatchHeader) -> None:
        shape = (header.n_panels, *header.panel_shape)
        if shape not in self._fits:
            self._fits[shape] = self._misfit(shape)
        error = self._fits[shape]
        if error is not None:
            raise error

    def _misfit(self, shape: tuple[int, int, int]) -> BatchError | None:
        try:
            if self.config.geometry.panel_map is not None:
                explicit_origins(self.config.geometry.panel_map, shape)
            elif self._geometry is not None:
                tile_origins(self._geometry, shape)
        except InputError as error:
            _log.error("batches of %s do not fit and are all rejected: %s", shape, error)
            return BatchError(error.what, reason="geometry", fix=error.fix)
        return None

    def _warn(self, text: str, header: BatchHeader) -> None:
        kind = "".join("#" if c.isdigit() else c for c in text)
        if len(self.counts.warnings) > 100 and kind not in self.counts.warnings:
            kind = "other"
        with self.counts.lock:
            self.counts.warnings[kind] += 1
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("batch %r: %s (said once)", header.batch_id, text)

    # -- working ------------------------------------------------------------------------------------------------

    def _start(self, job: _Job) -> None:
        header = job.header
        self.counts.take(header.n_events)
        job.line = self._enter(header)
        self._next_job += 1
        self._jobs[job.number] = job
        self._bytes[job.number] = job.n_bytes
        if job.predictions is None and not self._goes_far(job):
            self.pool.submit((job.number, "fetch"), self._doors.fetch, job.message, header)
        else:
            self._start_rows(job)

    def _enter(self, header: BatchHeader) -> str:
        """Enter a batch in the ledger, and return the line in which it stands."""
        due, before = self.ledger.due(header.producer), self.ledger.page_of(header.producer)
        with self.counts.lock:
            self.ledger.take(header, now=iso_z(utc_now()))
        line = self.ledger.page_of(header.producer)
        self._expect(header, line, due if line == before else None)
        return line

    def _expect(self, header: BatchHeader, line: str, due: int | None) -> None:
        """Go on where an earlier writer was, so that nobody waits for what that one had."""
        if header.sequence is None or line in self._known_lines:
            return
        self._known_lines.add(line)
        if due is not None:
            self._pass_on(self._order.expect(line, due))

    def _goes_far(self, job: _Job) -> bool:
        return self._far and getattr(job.message, "predictions_ref", None) is not None

    def _start_rows(self, job: _Job) -> None:
        header = job.header
        pieces = split_rows(header.n_events * header.n_panels, self._split)
        job.left = len(pieces)
        maps = self.config.output.save_segmentation_maps
        for start, stop in pieces:
            key = (job.number, start)
            asked = (header, self._settings, start, stop, maps)
            if job.predictions is None:
                refs = [job.message.predictions_ref, image_ref(job.message)]
                self.pool.submit_remote(key, process_rows, refs, *asked)
            else:
                self.pool.submit(key, process_rows, job.predictions, job.images, *asked)

    def _collect(self, timeout_s: float) -> None:
        """Take in what the workers have done."""
        for done in self.pool.finished(timeout_s):
            number, what = done.key
            job = self._jobs.get(number)
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
        with self.counts.lock:
            self.counts.retried_tasks = self.pool.retried

    def _rows_done(self, job: _Job, part: RowsResult) -> None:
        job.parts.append(part)
        job.left -= 1
        self.counts.nan_pixels += part.peaks.nan_pixels
        self.counts.nan_rows += part.peaks.nan_rows
        if part.peaks.nan_pixels:
            self._warn("logits are not a number in some pixels", job.header)
        if job.left == 0:
            job.predictions = None
            self.pool.submit((job.number, "assemble"), self._assemble, job, first=True)

    def _assemble(self, job: _Job) -> Any:
        """Gather a batch; in a thread."""
        images = job.images
        if images is None and job.header.image_kind != "none" and self._hits.images:
            images = self._doors.fetch_images(job.message, job.header)
        return assemble(job.header, job.parts, images, self._hits)

    def _assembled(self, job: _Job, done: Done) -> None:
        self._bytes[job.number] = n_bytes = batch_bytes(job.header)[1]
        self._deliver(job, Parcel(done.result, n_bytes))

    def _failed(self, job: _Job, error: BaseException) -> None:
        n_events, batch_id = job.header.n_events, job.header.batch_id
        if isinstance(error, BatchError):
            self._reject(n_events, error, batch_id)
        elif isinstance(error, NightbeamError) and not isinstance(error, ToolError):
            self._lose(n_events, _reason(error), str(error), batch_id)
        else:
            _log.error("a task of batch %r failed twice", batch_id, exc_info=error)
            self._lose(n_events, "task failed", repr(error)[:200], batch_id)
        self._bytes.pop(job.number, None)
        self._settle(job.header)
        self._deliver(job, None)

    # -- in order -----------------------------------------------------------------------------------------------

    def _deliver(self, job: _Job, parcel: Parcel | None) -> None:
        """Be done with a batch's work; what came of it goes on when its turn has come."""
        del self._jobs[job.number]
        result = _Result(job.line, job.header.sequence, job.number, parcel)
        if not self.config.output.ordered:
            self._pass_on([result])
            return
        self._results[job.number] = result
        while self._next_out in self._results:
            self._in_sequence(self._results.pop(self._next_out))
            self._next_out += 1

    def _in_sequence(self, result: _Result) -> None:
        ready = self._order.add(result.line, result.sequence, result, self._clock())
        self._pass_on([*ready, *(again for _, _, again in self._order.take_refused())])

    def _pass_on(self, results: list[_Result]) -> None:
        for result in results:
            if result.number is not None:
                self._bytes.pop(result.number, None)
            if result.parcel is not None:
                self._outlet.put(result.parcel)

    def _let_go(self) -> None:
        """Do not wait for a batch that cannot come, because what waits for it fills the memory."""
        full = self.pending_bytes - self._outlet.waiting_bytes >= self._most_bytes
        if full and not self._jobs and self._order.held:
            _log.warning("batches that wait for one that has not come fill the memory; they go on without it")
            self._pass_on(self._order.flush())

    def _settle(self, header: BatchHeader) -> None:
        with self.counts.lock:
            self.ledger.settle(header)

    # -- words --------------------------------------------------------------------------------------------------

    def _reject(self, n_events: int, error: BatchError, batch_id: str) -> None:
        self.counts.reject(n_events, error.reason)
        self._say_gone("rejected", error.reason, batch_id, str(error))

    def _lose(self, n_events: int, reason: str, text: str, batch_id: str = "") -> None:
        self.counts.lose(n_events, reason)
        self._say_gone("lost", reason, batch_id, text)

    def _say_gone(self, what: str, reason: str, batch_id: str, text: str) -> None:
        """Say it loudly the first time, and quietly for each batch."""
        first = (what, reason) not in self._said
        self._said.add((what, reason))
        _log.log(logging.ERROR if first else logging.WARNING, "batch %r is %s (%s): %s", batch_id, what, reason, text)

    # -- looking around -----------------------------------------------------------------------------------------

    def _over(self) -> bool:
        """Return whether an end condition is met, and remember which."""
        run, silent = self.config.run, self._clock() - self._heard
        if self._ends.all and self._queue_empty and self._nothing_left():
            self._ended_by = "all producers have ended"
        elif run.total_events is not None and self.counts.events_received >= run.total_events:
            self._ended_by = f"{run.total_events} events were received"
        elif run.total_batches is not None and self.counts.batches_received >= run.total_batches:
            self._ended_by = f"{run.total_batches} batches were received"
        elif self._heard_once and run.idle_timeout is not None and silent >= run.idle_timeout:
            self._ended_by = f"nothing came for {run.idle_timeout:g} s"
        elif not self._heard_once and run.startup_timeout is not None and silent >= run.startup_timeout:
            self._ended_by = f"nothing came in the first {run.startup_timeout:g} s"
        return bool(self._ended_by)

    def _nothing_left(self) -> bool:
        """Ask all shards once more; what one of them still has is taken in."""
        message = self._source.look_once()
        if message is not None:
            self._receive(message)
        return message is None

    def _adapt(self) -> None:
        now = self._clock()
        if not self._adaptive or now - self._adapted < _ADAPT_EVERY_S:
            return
        self._adapted = now
        idle = 1.0 - psutil.cpu_percent() / 100.0
        queued = (self._queue_size or 0) + self.pool.open - self.pool.running
        wanted = next_workers(Load(self.pool.limit, self.pool.running, queued, idle, self._cores))
        if wanted != self.pool.limit:
            _log.debug("%d workers in place of %d", wanted, self.pool.limit)
            self.pool.limit = wanted

    def health(self) -> Health:
        """Return whether the loop turns and the disk works."""
        problems = []
        silent = self._clock() - self._turned
        if self._state == "running" and silent > _STUCK_AFTER_S:
            problems.append(f"the loop has not turned for {silent:.0f} s")
        if self._state not in {"running", "stopping"}:
            problems.append(f"the writer is {self._state}")
        outlet = getattr(self, "_outlet", None)
        if outlet is not None and outlet.blocked is not None:
            problems.append(f"no file can be written: {outlet.blocked.what}")
        if outlet is not None and outlet.failed is not None:
            problems.append(f"the thread that writes files has ended: {outlet.failed!r}")
        if self._status_problem:
            problems.append(self._status_problem)
        return Health(tuple(problems))

    def counters(self) -> dict[str, Any]:
        """Return all totals; from any thread."""
        with self.counts.lock:
            found = self.counts.to_json()
            missing = self.ledger.never_received()
        if self._state == "starting":
            return found
        said = self._outlet.said
        recent, overall = self._outlet.rate.now()
        looked_at = found["total_events_written"] + found["total_events_filtered"] + found["buffer_size"]
        names = ("chunks_written", "peaks_written", "bytes_written", "last_file")
        self._say_odd_pixels(said)
        return found | {name: said.get(name) for name in names} | {name: said.get(name, 0) for name in OF_FILES} | {
            "queue_size": self._queue_size,
            "pending_tasks": self.pool.open,
            "pending_bytes": self.pending_bytes,
            "workers": self.pool.limit,
            "events_per_s": round(recent, 3),
            "events_per_s_total": round(overall, 3),
            "hit_rate": 1.0 - found["total_events_filtered"] / looked_at if looked_at else None,
            "events_missing": missing,
            "started": self._started,
            "last_event": self._last_event or None,
        }  # fmt: skip

    def _say_odd_pixels(self, said: Mapping[str, Any]) -> None:
        """Say once of each kind that a file's pixels are not those that came; failed writes are said as they come."""
        for name, text in ODD_PIXELS.items():
            if said.get(name) and name not in self._said:
                self._said.add(name)
                _log.warning("%s (%s; said once)", text, name)

    def require_balance(self) -> None:
        """Check that received = written + filtered + rejected + lost + buffered + in flight; true at every moment.

        Raises
        ------
        RuntimeError
            If it is not, which is a mistake in this program.
        """
        found = self.counts.to_json()
        if found["balance"] != 0:
            raise RuntimeError(f"the events do not add up: {found}")

    def _write_status(self, *, force: bool = False) -> None:
        now = self._clock()
        if not force and now - self._status_at < _STATUS_EVERY_S and not self._file_written.is_set():
            return
        self._status_at = now
        self._file_written.clear()
        self._look_at_queue()
        counters, output = self.counters(), self.config.output
        try:
            write_status(status_path(output.output_dir, output.file_prefix), self._status(counters))
            self._status_problem = ""
        except (StorageError, OSError) as error:
            if not self._status_problem:
                _log.error("the status cannot be written: %s", error)
            self._status_problem = f"the status cannot be written: {error}"
        if self._on_status is not None:
            self._on_status(counters)

    def _look_at_queue(self) -> None:
        try:
            self._queue_size = self._source.size()
        except NightbeamError as error:
            self._queue_size = None
            _log.debug("the queue does not say its size: %s", error)

    def _status(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        health = self.health()
        with self.counts.lock:
            producers, forgotten = self.ledger.to_json(), dict(self.ledger.forgotten)
        return {
            "state": self._state,
            "ended_by": self._ended_by or None,
            "problems": [one for one in health.problems if not one.startswith("the writer is ")],
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "version": __version__,
            "updated": iso_z(utc_now()),
            "config": None if self.config_path is None else str(self.config_path),
            "config_sha256": self.config.sha256,
            "queue": {"name": self.config.queue.name, "namespace": self.config.ray.namespace},
            "health_port": self.port,
            "counters": dict(counters),
            "name_template": self.config.output.name_template,
            "producers": producers,
            "producers_forgotten": forgotten,
        }

    def _progress(self) -> str:
        c = self.counters()
        gone = sum(c["events_rejected"].values()), sum(c["events_lost"].values())
        rate = c.get("events_per_s", 0.0)
        return (
            f"{c['batches_received']} batches, {c['events_received']} events: {c['total_events_written']} written, "
            f"{c['total_events_filtered']} filtered, {gone[0]} rejected, {gone[1]} lost, {c['buffer_size']} buffered, "
            f"{c['events_in_flight']} in flight; {rate:.1f} events/s"
        )


def run_cpu_postprocessing_pipeline(
    config: WriterConfig | Mapping[str, Any] | str | Path,
    *,
    stop: threading.Event | None = None,
    doors: Doors | None = None,
) -> dict[str, Any]:
    """Run the writer until an end condition is met; the log is as ``system`` wants it meanwhile.

    Parameters
    ----------
    config
        Read already, the tree of a file, or a file.
    stop
        Ends the run when it is set; what was taken is written.
    doors
        The world; None: Ray and the disk.

    Returns
    -------
    dict
        The counters.

    Raises
    ------
    NightbeamError
        As `CxiService.loop`, or if the configuration is wrong.
    """
    path = Path(config) if isinstance(config, str | Path) else None
    if path is not None:
        config = load_config(path)
    elif not isinstance(config, WriterConfig):
        config = writer_config(config)
    service = CxiService(config, config_path=path, doors=doors)
    with logged(config.system, program=False):
        return service.loop(stop or threading.Event())


def _compile_kernels() -> None:
    """Have the kernels compiled before anything is taken: it takes half a minute once, longer than a drain may."""
    logits = np.zeros((1, 2, 16, 16), np.float32)
    logits[0, 1, 7:9, 7:9] = 1.0
    images = np.ones((1, 16, 16), np.float32)
    for window in (None, Window(0, 0, 12, 12)):
        image = images if window is None else images[:, :12, :12]
        find_peaks(logits, image, window=window, settings=PeakSettings())


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


def _reason(error: NightbeamError) -> str:
    full = isinstance(error, StorageError)
    return str(getattr(error, "reason", "object store full" if full else "unavailable"))


def _batch_id(message: Any) -> str:
    found = getattr(message, "batch_id", "")
    return found if isinstance(found, str) else type(found).__name__
