"""The writer: events in, CXI files of exactly so many events out."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nightbeam import __version__
from nightbeam.core.errors import ConfigError, MissingError, StorageError
from nightbeam.core.files import require_space
from nightbeam.core.times import iso_z, utc_now
from nightbeam.cxi import layout
from nightbeam.cxi.chunkfile import ChunkContents, PackedMask, Powders, compression_of, environment_line, write_chunk
from nightbeam.cxi.detector import Detector, ImageCounts, Slabs, describe_detector
from nightbeam.cxi.directory import Directory
from nightbeam.cxi.model import Event, OutputPlan, ProcessedBatch
from nightbeam.cxi.naming import Naming, new_writer
from nightbeam.geometry.compute import for_cxi
from nightbeam.geometry.model import Geometry
from nightbeam.stream.model import BatchError, BatchHeader

__all__ = ["CxiWriter", "FileWritten"]

_log = logging.getLogger(__name__)
#: So many batches without a hit are named in a file at most; more are counted.
_MOST_RECORDS: Final = 10_000


@dataclass(frozen=True, slots=True)
class FileWritten:
    """A file that is there, whole.

    Attributes
    ----------
    batches
        What its attribute ``batches`` says.
    seconds
        That it took.
    """

    path: Path
    events: int
    peaks: int
    bytes: int
    run: int | None
    batches: tuple[dict[str, Any], ...]
    seconds: float


@dataclass(slots=True)
class _Chunk:
    """A file to be: its events and what is said of their batches."""

    directory: Directory
    powders: Powders
    run: int | None
    experiment: str | None
    events: list[Event] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    omitted: int = 0
    several_runs: bool = False
    batches: int = 0
    closed: bool = False

    def add_record(self, header: BatchHeader, hits: int) -> dict[str, Any]:
        if hits == 0 and len(self.records) >= _MOST_RECORDS:
            self.omitted += 1
        record = {
            "batch_id": header.batch_id,
            "producer": header.producer,
            "sequence": header.sequence,
            "first_event": header.first_event,
            "events": header.n_events,
            "time": int(header.timestamps[0]) if header.timestamps.size else 0,
            "hits": hits,
            "written": 0,
        }
        if hits or len(self.records) < _MOST_RECORDS:
            self.records.append(record)
        return record


class CxiWriter:
    """Gathers events and writes them, ``plan.buffer_size`` to a file.

    What ``submit`` has taken is kept until it is in a file: after a `StorageError` the events are still there, and the
    next call tries again. It belongs to one thread.

    Parameters
    ----------
    plan
        Names, sizes and contents of files.
    geometry
        As the user gave it; its companion for these files is written beside them. None: modules are stacked along ss.
    origins : (C, 2)
        Where modules go in the slab, in place of what follows from the geometry.
    shape
        (C, H0, W0) of events; by default that of the first.
    batches_seen
        Names of batches that are in files already, and are refused.
    mask : (C, H0, W0) or (SS, FS)
        Bad pixels, not 0, besides those of the geometry.
    on_written
        Called with each `FileWritten`.

    Raises
    ------
    ConfigError
        If names, compression or directory are no good.
    InputError
        If the geometry cannot be used for CXI files, or its shape is not that of the events.
    MissingError, StorageError
        As `nightbeam.cxi.directory.Directory`.
    """

    def __init__(
        self,
        plan: OutputPlan,
        *,
        geometry: Geometry | None,
        origins: Any = None,
        shape: tuple[int, int, int] | None = None,
        batches_seen: Collection[str] | None = None,
        mask: NDArray[Any] | None = None,
        on_written: Callable[[FileWritten], None] | None = None,
    ) -> None:
        _check_plan(plan)
        self.plan, self._origins, self._mask, self._on_written = plan, origins, mask, on_written
        self._seen: Collection[str] = batches_seen if batches_seen is not None else ()
        self._naming, self._writer = Naming(plan.file_prefix, plan.name_template), new_writer()
        self._source = "" if geometry is None else geometry.source
        self._companion = None if geometry is None else _companion(geometry, plan)
        clen = None if self._companion is None else self._companion.clen
        self._needs_clen = clen is not None and clen.path is not None
        if line := environment_line(plan.compression):
            _log.warning("images are compressed with %s; CrystFEL reads them after: %s", plan.compression, line)
        self._detector: Detector | None = None
        self._packed: PackedMask | None = None
        if shape is not None:
            self._set_detector(shape)
        self._directories: dict[Path, Directory] = {}
        self._home = self._last_directory = self._open(plan.output_dir)
        self._split_runs = plan.per_run or "{run}" in plan.name_template
        self._chunks: deque[_Chunk] = deque([_Chunk(self._home, Powders(), None, None)])
        self._waiting_since: float | None = None
        self._written, self._numbers = 0, 0
        self._counts = ImageCounts()
        self._statistics: dict[str, Any] = dict.fromkeys(
            ("total_events_written", "total_events_filtered", "events_truncated", "chunks_written", "peaks_written",
             "bytes_written", "batches_received", "events_received", "write_failures", "events_given_up"), 0
        )  # fmt: skip
        self._write_s = 0.0
        self.last_file: Path | None = None

    # -- taking ---------------------------------------------------------------------------------------------------

    def submit(self, batch: ProcessedBatch) -> None:
        """Take a batch, and write each file that is full by it.

        Raises
        ------
        BatchError
            If its arrays are not what the batch or its predecessors say; nothing of it is taken.
        ConfigError
            If the geometry reads the camera length from the file and nobody knows it; nothing is taken.
        InputError
            If the shape of the first batch does not fit the geometry; nothing is taken.
        StorageError
            If a file could not be written. The batch is taken: do not submit it again.
        """
        self._check(batch)
        chunk = self._chunk_of(batch.batch)
        self._count(batch, chunk)
        self._take(batch, chunk)
        self._write_closed()

    def _check(self, batch: ProcessedBatch) -> None:
        header = batch.batch
        if header.batch_id in self._seen:
            raise BatchError(f"batch {header.batch_id} is in a file already", reason="duplicate")
        shape = (header.n_panels, *header.panel_shape)
        if self._detector is None:
            self._set_detector(shape)
        elif self._detector.shape != shape:
            raise BatchError(
                f"batch {header.batch_id} has events of shape {shape}, those before it {self._detector.shape}",
                reason="bad shape",
            )
        for event in batch.events:
            _check_event(event, shape, images=self.plan.images)
        layout.check_names(header.copied, below=layout.COPIED, what="metadata key")
        if self._needs_clen and any(np.isnan(header.clen_mm[e.index]) for e in batch.events):
            raise ConfigError(
                f"{self._source or 'the geometry'} reads the camera length from {layout.CLEN}, and batch "
                f"{header.batch_id} does not say it",
                fix="set instrument.camera_length_mm, or write a number after clen = in the geometry",
            )

    def _set_detector(self, shape: tuple[int, int, int]) -> None:
        self._detector = describe_detector(
            shape,
            geometry=self._companion,
            origins=self._origins,
            mask=self._mask,
            pixel_size_m=self.plan.pixel_size_m,
        )
        bad = self._detector.bad
        self._packed = None if bad is None or not self.plan.images else PackedMask(bad)

    def _chunk_of(self, header: BatchHeader) -> _Chunk:
        """Return the file that a batch goes to; another run begins another one, if runs are kept apart."""
        last = self._chunks[-1]
        if not last.events:
            last.experiment = header.experiment
        if header.run == last.run:
            return last
        self._numbers = 0
        if not self._split_runs:
            last.several_runs |= bool(last.events)
            last.run = header.run
            return last
        place = self._home
        if self.plan.per_run and header.run is not None:
            place = self._open(self.plan.output_dir / f"r{header.run:04d}", header.run)
        return self._begin(_Chunk(place, Powders(), header.run, header.experiment))

    def _begin(self, chunk: _Chunk) -> _Chunk:
        last = self._chunks[-1]
        if last.events:
            last.closed = True
        else:
            chunk.records, chunk.omitted = last.records, last.omitted
            self._chunks.pop()
        self._chunks.append(chunk)
        return chunk

    def _count(self, batch: ProcessedBatch, chunk: _Chunk) -> None:
        s = self._statistics
        s["batches_received"] += 1
        s["events_received"] += batch.batch.n_events
        s["total_events_filtered"] += batch.filtered
        s["events_truncated"] += batch.truncated
        if self.plan.images:
            for image in batch.misses:
                chunk.powders.add_miss(image)

    def _take(self, batch: ProcessedBatch, chunk: _Chunk) -> None:
        header = batch.batch
        first = header.first_event if header.first_event is not None else self._numbers
        self._numbers += header.n_events
        # A view would keep the images of the whole batch in memory.
        copy = 2 * len(batch.events) < header.n_events
        record = chunk.add_record(header, len(batch.events))
        chunk.batches += 1
        for event in batch.events:
            if len(chunk.events) == self.plan.buffer_size:
                chunk = self._begin(_Chunk(chunk.directory, chunk.powders, chunk.run, chunk.experiment, batches=1))
                record = chunk.add_record(header, len(batch.events))
            chunk.events.append(_own(event) if copy else event)
            chunk.numbers.append(first + event.index)
            record["written"] += 1
        many = self.plan.batches_per_file is not None and chunk.batches >= self.plan.batches_per_file
        if chunk.events and (many or len(chunk.events) == self.plan.buffer_size):
            self._close()
        elif many:
            chunk.batches = 0

    def _close(self) -> None:
        last = self._chunks[-1]
        if last.events:
            self._begin(_Chunk(last.directory, last.powders, last.run, last.experiment))

    # -- writing --------------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Write what could not be written, and what has waited for ``plan.flush_interval_s`` by the caller's clock.

        Raises
        ------
        StorageError
            If a file could not be written; its events are kept.
        """
        self._write_closed()
        if not self.buffered_events:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now_s
        elif self.plan.flush_interval_s is not None and now_s - self._waiting_since >= self.plan.flush_interval_s:
            self._waiting_since = now_s
            self._close()
            self._write_closed()

    def flush_final(self) -> dict[str, Any]:
        """Write what is left; returns the statistics.

        Raises
        ------
        StorageError
            If a file, the list or the master could not be written; events that are in no file are kept.
        """
        self._close()
        self._write_closed()
        for directory in self._directories.values():
            directory.catch_up()
            if self.plan.master:
                directory.write_master()
        return self.get_statistics()

    def _write_closed(self) -> None:
        while self._chunks[0].closed:
            chunk = self._chunks[0]
            try:
                written = self._write_twice(chunk)
            except OSError:  # StorageError is one: a matter of the disk, and the events stay
                raise
            except Exception:  # a matter of these events: they would fail for ever, and hold up all others
                self._give_up(self._chunks.popleft())
                continue
            self._chunks.popleft()  # from here on nothing that fails writes it again
            self._waiting_since = None
            self._after(chunk, written)

    def _give_up(self, chunk: _Chunk) -> None:
        ids = list(dict.fromkeys(event.batch.batch_id for event in chunk.events))
        _log.exception("a file of %d events cannot be made and they are lost: batches %.500r", len(chunk.events), ids)
        self._statistics["events_given_up"] += len(chunk.events)
        self._waiting_since = None

    def _write_twice(self, chunk: _Chunk) -> FileWritten:
        try:
            return self._write(chunk)
        except StorageError as error:
            self._statistics["write_failures"] += 1
            _log.warning("%s; trying once more", error.what)
            try:
                return self._write(chunk)
            except StorageError as again:
                self._statistics["write_failures"] += 1
                raise StorageError(
                    f"{again.what}; {self.buffered_events} events are kept in memory", fix=again.fix
                ) from again

    def _write(self, chunk: _Chunk) -> FileWritten:
        began = time.perf_counter()
        detector = self._known_detector()
        counts = ImageCounts()
        contents = ChunkContents(
            events=chunk.events,
            numbers=chunk.numbers,
            powders=chunk.powders,
            attributes=self._attributes(chunk),
        )
        self._require_space(chunk, detector)
        name = self._naming.name(
            chunk=self._written, writer=self._writer, when=utc_now(), run=chunk.run, experiment=chunk.experiment
        )
        slabs = Slabs(detector, np.dtype(self.plan.dtype), counts)
        write = partial(write_chunk, contents=contents, plan=self.plan, detector=detector, slabs=slabs,
                        mask=self._packed)  # fmt: skip
        path, size = chunk.directory.write(name, write)
        return self._add_up(chunk, path, size, counts, time.perf_counter() - began)

    def _known_detector(self) -> Detector:
        if self._detector is None:
            raise ValueError("a file is to be written before any batch was taken")
        return self._detector

    def _require_space(self, chunk: _Chunk, detector: Detector) -> None:
        """Look before writing: HDF5 is bad at a disk that fills up while it writes."""
        if self.plan.images and self.plan.compression == "none":
            pixels = int(np.prod(detector.slab))
            need = pixels * (len(chunk.events) * np.dtype(self.plan.dtype).itemsize + 8)
            try:
                require_space(chunk.directory.path, need, what=f"a file of {len(chunk.events)} events")
            except MissingError as error:
                raise StorageError(error.what, fix=error.fix) from error

    def _attributes(self, chunk: _Chunk) -> dict[str, Any]:
        ids = list(dict.fromkeys(record["batch_id"] for record in chunk.records if record["written"]))
        return {
            "creation_time": iso_z(utc_now()),
            "num_events": len(chunk.events),
            "min_num_peak": self.plan.min_num_peak,
            "max_num_peak": self.plan.max_num_peak,
            "software": "nightbeam",
            "version": __version__,
            "config_sha256": self.plan.config_sha256,
            "geometry_file": self._source,
            "batch_ids": json.dumps(ids),
            "batches": json.dumps(chunk.records),
            "batches_omitted": chunk.omitted,
            **({} if chunk.run is None or chunk.several_runs else {"run": chunk.run}),
            **({} if chunk.experiment is None else {"experiment": chunk.experiment}),
        }

    def _add_up(self, chunk: _Chunk, path: Path, size: int, counts: ImageCounts, seconds: float) -> FileWritten:
        s, peaks = self._statistics, sum(len(e.peaks) for e in chunk.events)
        s["total_events_written"] += len(chunk.events)
        s["chunks_written"] += 1
        s["peaks_written"] += peaks
        s["bytes_written"] += size
        for name in ("clipped", "rounded", "not_finite"):
            setattr(self._counts, name, getattr(self._counts, name) + getattr(counts, name))
        self._written += 1
        self._write_s += seconds
        self.last_file = path
        _log.info("%s: %d events, %d peaks", path, len(chunk.events), peaks)
        return FileWritten(path, len(chunk.events), peaks, size, chunk.run, tuple(chunk.records), seconds)

    def _after(self, chunk: _Chunk, written: FileWritten) -> None:
        """Put a file into the list and, when a run ends or many are new, into the master; then tell of it."""
        directory = chunk.directory
        try:
            directory.add_to_list(written.path)
            if self.plan.master and directory.master_is_due:
                directory.write_master()
            for left in {self._last_directory, directory} - {self._chunks[0].directory}:
                left.leave(master=self.plan.master)
        except StorageError as error:
            _log.warning("%s is written, but not yet in the list or the master: %s", written.path, error.what)
        self._last_directory = directory
        if self._on_written is not None:
            self._on_written(written)

    # -- looking --------------------------------------------------------------------------------------------------

    @property
    def buffered_events(self) -> int:
        """Events that are in no file yet."""
        return sum(len(chunk.events) for chunk in self._chunks)

    @property
    def buffered_bytes(self) -> int:
        """Bytes of their images."""
        return sum(e.image.nbytes for chunk in self._chunks for e in chunk.events if e.image is not None)

    def get_statistics(self) -> dict[str, Any]:
        """Return all counts so far."""
        return {
            **self._statistics,
            "buffer_size": self.buffered_events,
            "buffered_bytes": self.buffered_bytes,
            "pixels_clipped": self._counts.clipped,
            "pixels_rounded": self._counts.rounded,
            "pixels_not_finite": self._counts.not_finite,
            "write_s": round(self._write_s, 3),
            "last_file": None if self.last_file is None else str(self.last_file),
        }

    def _open(self, path: Path, run: int | None = None) -> Directory:
        if path not in self._directories:
            try:
                self._directories[path] = Directory(
                    path,
                    self._naming,
                    self._writer,
                    listed=self.plan.lst,
                    geometry=self._companion if self.plan.geom else None,
                    create=self.plan.create_output_dir or run is not None,
                    run=run,
                )
            except ConfigError as error:
                if run is None:
                    raise
                # At the start it ends the writer; now events are here, and wait until somebody has mended it.
                raise StorageError(error.what, fix=error.fix) from error
        return self._directories[path]


def _check_plan(plan: OutputPlan) -> None:
    compression_of(plan.compression)
    layout.check_names(plan.static, below=layout.STATIC, what="metadata.static")
    if plan.buffer_size < 1 or (plan.batches_per_file is not None and plan.batches_per_file < 1):
        raise ConfigError(
            f"buffer_size is {plan.buffer_size}, batches_per_file {plan.batches_per_file}", fix="at least 1"
        )


def _companion(geometry: Geometry, plan: OutputPlan) -> Geometry:
    made = for_cxi(geometry, data=layout.DATA, mask=layout.MASK if plan.images else None, peak_list=layout.RESULT)
    for warning in made.warnings:
        _log.warning("%s: %s", geometry.source, warning)
    return made


def _check_event(event: Event, shape: tuple[int, int, int], *, images: bool) -> None:
    panels, height, width = shape
    peaks, name = event.peaks, f"event {event.index} of batch {event.batch.batch_id}"
    if images and event.image is None:
        raise BatchError(f"{name} has no image", reason="no image", fix="or set output.images: false")
    for what, array in (("image", event.image if images else None), ("segmentation", event.segmentation)):
        if array is not None and array.shape != shape:
            raise BatchError(f"{name}: {what} of shape {array.shape}, not {shape}", reason="bad shape")
    if images and np.asarray(event.image).dtype.kind not in "uif":
        raise BatchError(f"{name}: image of type {np.asarray(event.image).dtype}", reason="bad shape")
    inside = (peaks.y > -0.5) & (peaks.y < height - 0.5) & (peaks.x > -0.5) & (peaks.x < width - 0.5)
    if not inside.all() or np.any(peaks.row // panels != event.index):
        raise BatchError(f"{name} has peaks that are not on its panels", reason="malformed")


def _own(event: Event) -> Event:
    image, maps = event.image, event.segmentation
    return replace(
        event,
        image=None if image is None else np.array(image, order="C"),
        segmentation=None if maps is None else np.array(maps, order="C"),
    )
