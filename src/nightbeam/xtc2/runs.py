"""Which runs lie in a directory, and whether one can be used."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nightbeam.core.errors import InputError, MissingError, StorageError
from nightbeam.xtc2.compute import detectors_of
from nightbeam.xtc2.files import IN_PROGRESS, read_head
from nightbeam.xtc2.model import Names, RunVerdict, StreamHead, StreamStatus, StreamVerdict, Xtc2Error

__all__ = ["RunListing", "StreamFile", "StreamName", "find_runs", "judge_run", "latest_usable_run", "list_runs"]

log = logging.getLogger(__name__)

_EXPERIMENT = re.compile(r"[0-9A-Za-z_-]{1,127}")
# Nine digits: more than any facility counts, and too few to be a nuisance.
_STREAM_NAME = re.compile(
    r"(?P<experiment>[0-9A-Za-z_-]{1,127})-r(?P<run>[0-9]{4,9})-s(?P<stream>[0-9]{2,9})-c(?P<chunk>[0-9]{2,9})"
    r"(?P<smd>\.smd)?\.xtc2(?P<inprogress>\.inprogress)?"
)
_SMALL_DATA = "smalldata"
_GOOD = frozenset({StreamStatus.BEGUN, StreamStatus.HAS_EVENTS})


@dataclass(frozen=True, slots=True, order=True)
class StreamName:
    """What the name of a data file says.

    Written ``{experiment}-r{run:04d}-s{stream:03d}-c{chunk:03d}.xtc2``, with ``.smd`` before the end for small
    data and ``.inprogress`` after it while the file is being transferred. Older files have two digits for
    stream and chunk.
    """

    experiment: str
    run: int
    stream: int
    chunk: int
    smd: bool = False
    inprogress: bool = False

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return what ``name`` says, or None for a name that follows another grammar."""
        found = _STREAM_NAME.fullmatch(name)
        if not found:
            return None
        return cls(
            found["experiment"],
            int(found["run"]),
            int(found["stream"]),
            int(found["chunk"]),
            bool(found["smd"]),
            bool(found["inprogress"]),
        )

    def __str__(self) -> str:
        stem = f"{self.experiment}-r{self.run:04d}-s{self.stream:03d}-c{self.chunk:03d}"
        return stem + ".smd" * self.smd + ".xtc2" + IN_PROGRESS * self.inprogress


@dataclass(frozen=True, slots=True)
class StreamFile:
    """A file of a stream, and what its name says."""

    path: Path
    name: StreamName


@dataclass(frozen=True, slots=True)
class RunListing:
    """The files of an experiment by run, and the data files that were passed over with the reason for each."""

    runs: Mapping[int, tuple[StreamFile, ...]]
    skipped: tuple[tuple[Path, str], ...]


def list_runs(xtc_dir: Path, experiment: str) -> RunListing:
    """Return the bulk files of an experiment in a directory, by run, and what was passed over.

    Files still being transferred count as well. Small data do not, nor do directories below.

    Raises
    ------
    InputError
        If ``experiment`` cannot be the name of one.
    MissingError
        If there is no such directory.
    StorageError
        If it cannot be read.
    """
    if not _EXPERIMENT.fullmatch(experiment):
        raise InputError(f"{experiment!r} is no experiment", fix="give letters and digits, as in mfxl1033223")
    found: dict[int, list[StreamFile]] = {}
    skipped: list[tuple[Path, str]] = []
    for path in _data_files(xtc_dir):
        name = StreamName.parse(path.name)
        if name is None:
            skipped.append((path, "its name is not EXPERIMENT-rRUN-sSTREAM-cCHUNK.xtc2"))
        elif name.experiment != experiment:
            skipped.append((path, f"belongs to experiment {name.experiment}"))
        elif name.smd:
            skipped.append((path, "small data"))
        else:
            found.setdefault(name.run, []).append(StreamFile(path, name))
    return RunListing({run: _one_a_chunk(found[run]) for run in sorted(found)}, tuple(skipped))


def find_runs(xtc_dir: Path, experiment: str) -> dict[int, tuple[StreamFile, ...]]:
    """Return the files of an experiment by rising run; what is passed over is logged.

    Raises
    ------
    InputError, MissingError, StorageError
        As `list_runs`.
    """
    listing = list_runs(xtc_dir, experiment)
    for path, reason in listing.skipped:
        log.debug("passed over %r: %s", str(path), reason)  # anybody may have chosen that name
    return dict(listing.runs)


def judge_run(xtc_dir: Path, experiment: str, run: int, *, events_required: bool = False) -> RunVerdict:
    """Return whether a run can be used, and everything that stands against it.

    It can if at least one stream is there, every stream begins with a complete Configure and has come to
    BeginRun, and there is a detector that measures. Of each stream only the beginning is read.

    Parameters
    ----------
    xtc_dir
        The directory with the bulk files; its ``smalldata`` tells of streams whose bulk file is not there,
        and where it cannot be read, that is logged.
    experiment, run
        As in the names of the files.
    events_required
        Whether at least one stream must hold an event.

    Raises
    ------
    InputError, MissingError, StorageError
        As `list_runs`.
    """
    return _judge(xtc_dir, experiment, run, find_runs(xtc_dir, experiment).get(run, ()), events_required)


def latest_usable_run(
    xtc_dir: Path, experiment: str, *, below: int | None = None, events_required: bool = False
) -> tuple[RunVerdict | None, tuple[RunVerdict, ...]]:
    """Return the highest run that can be used, or None, and the higher ones that were rejected.

    Parameters
    ----------
    xtc_dir, experiment, events_required
        As `judge_run`.
    below
        Only runs with a lower number are looked at.

    Raises
    ------
    InputError, MissingError, StorageError
        As `list_runs`.
    """
    rejected: list[RunVerdict] = []
    runs = find_runs(xtc_dir, experiment)
    for run in sorted(runs, reverse=True):
        if below is not None and run >= below:
            continue
        verdict = _judge(xtc_dir, experiment, run, runs[run], events_required)
        if verdict.usable:
            return verdict, tuple(rejected)
        log.info("run %d of %s cannot be used: %s", run, experiment, "; ".join(verdict.reasons))
        rejected.append(verdict)
    return None, tuple(rejected)


def _data_files(directory: Path) -> Iterator[Path]:
    try:
        paths = sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"no directory {directory}", fix="check the data directory of the experiment") from error
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise StorageError(f"cannot read {directory}: {reason}", fix="check the mount and its owner") from error
    except ValueError as error:  # a NUL, or a character that the system has no bytes for
        raise MissingError(f"no directory {str(directory)!r}", fix="check the name") from error
    return (path for path in paths if path.name.endswith((".xtc2", ".xtc2" + IN_PROGRESS)))


def _one_a_chunk(files: Iterable[StreamFile]) -> tuple[StreamFile, ...]:
    """Return one file for each chunk, the finished one where both are there."""
    best: dict[tuple[int, int], StreamFile] = {}
    for file in sorted(files, key=lambda f: (f.name, f.path.name)):
        best.setdefault((file.name.stream, file.name.chunk), file)
    return tuple(best[key] for key in sorted(best))


def _judge(
    xtc_dir: Path, experiment: str, run: int, files: tuple[StreamFile, ...], events_required: bool
) -> RunVerdict:
    first: dict[int, StreamFile] = {}
    for file in files:
        first.setdefault(file.name.stream, file)
    streams: list[StreamVerdict] = []
    names: list[Names] = []
    for file in first.values():
        verdict, found = _judge_stream(file)
        streams.append(verdict)
        names += found
    streams += _without_bulk(xtc_dir, experiment, run, set(first))
    detectors = detectors_of(names)
    reasons = [_complaint(stream) for stream in streams if stream.status not in _GOOD]
    if not streams:
        reasons.append(f"no files of run {run}")
    elif not any(detector.is_real for detector in detectors):
        reasons.append("no detector that measures: " + (", ".join(d.name for d in detectors) or "none at all"))
    if events_required and not any(stream.status is StreamStatus.HAS_EVENTS for stream in streams):
        reasons.append("no events yet")
    return RunVerdict(
        experiment,
        run,
        usable=not reasons,
        reasons=tuple(reasons),
        streams=tuple(sorted(streams, key=lambda s: s.stream)),
        detectors=detectors,
    )


def _complaint(stream: StreamVerdict) -> str:
    text = f"stream {stream.stream}: {stream.status}"
    return f"{text} ({stream.reason})" if stream.reason else text


def _judge_stream(file: StreamFile) -> tuple[StreamVerdict, tuple[Names, ...]]:
    name = file.name
    if name.chunk:
        reason = f"chunk 0 is missing, chunk {name.chunk} is the first that is there"
        return StreamVerdict(file.path, name.stream, name.chunk, StreamStatus.NO_FILE, reason), ()
    path, head = _head_of(file)
    status, reason = head.status, head.reason
    if status is StreamStatus.CONTINUATION:  # right for a later chunk, but this is the first
        status, reason = StreamStatus.NOT_XTC2, f"chunk 0 {reason}"
    elif status is StreamStatus.CONFIGURED and not reason:
        reason = "no BeginRun yet"
    return StreamVerdict(path, name.stream, name.chunk, status, reason), head.names


def _head_of(file: StreamFile) -> tuple[Path, StreamHead]:
    finished = file.path.with_name(file.path.name.removesuffix(IN_PROGRESS))
    for path in dict.fromkeys((file.path, finished)):  # it may be given its final name just now
        try:
            return path, read_head(path)
        except MissingError:
            continue
        except StorageError as error:
            return path, StreamHead(StreamStatus.UNREADABLE, error.what)
        except Xtc2Error as error:  # a directory or device of that name: it must not hide the runs below
            return path, StreamHead(StreamStatus.NOT_XTC2, error.what)
    return file.path, StreamHead(StreamStatus.NO_FILE, "it has gone")


def _without_bulk(xtc_dir: Path, experiment: str, run: int, there: set[int]) -> list[StreamVerdict]:
    """Return the streams that have small data but no bulk file."""
    found: dict[int, StreamVerdict] = {}
    for path in _small_data_files(xtc_dir):
        name = StreamName.parse(path.name)
        if name and (name.experiment, name.run, name.smd) == (experiment, run, True) and name.stream not in there:
            reason = f"only small data are there: {path.name}"
            found[name.stream] = StreamVerdict(path, name.stream, name.chunk, StreamStatus.NO_FILE, reason)
    return list(found.values())


def _small_data_files(xtc_dir: Path) -> Iterator[Path]:
    """Return the small data; they only tell of further streams, so a run can be judged without them."""
    try:
        return _data_files(xtc_dir / _SMALL_DATA)
    except MissingError as error:
        log.debug("streams are those of the bulk files: %s", error.what)
    except StorageError as error:
        log.warning("streams are those of the bulk files: %s", error.what)
    return iter(())
