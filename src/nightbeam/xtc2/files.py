"""LCLS-II data files: one datagram after the other, and what a file holds.

Only headers are read, and the bodies of the few datagrams that describe something; events are stepped over.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from nightbeam.core.errors import MissingError, StorageError
from nightbeam.xtc2.compute import (
    BLOCK_BYTES,
    HEADER_BYTES,
    MOST_DATAGRAM_BYTES,
    MOST_EXPERIMENT,
    MOST_FILENAME,
    Header,
    Value,
    chunk_info,
    detectors_of,
    parse_header,
    parse_names,
    read_values,
    run_info,
    walk,
)
from nightbeam.xtc2.model import (
    BlockKind,
    ChunkInfo,
    Configuration,
    FileReport,
    Names,
    RunInfo,
    StreamHead,
    StreamStatus,
    Transition,
    Xtc2Error,
)

__all__ = ["Datagram", "inspect_file", "read_configure", "read_datagrams", "read_head"]

IN_PROGRESS = ".inprogress"
#: The longest body that is read into memory: what the original's own tools can hold.
MOST_BODY_BYTES = 64 << 20
#: Headers looked at for the first BeginRun and event; real files have them among the first ten.
MOST_HEAD_DATAGRAMS = 100_000

#: What is kept of one file, whatever it says: bytes of all its Configures, and runs or chunks it names.
MOST_CONFIGURE_BYTES = 2 * MOST_BODY_BYTES
MOST_NAMED = 1 << 16

_LONGEST_TEXT = max(MOST_EXPERIMENT, MOST_FILENAME) + 1  # one more, so that the longer is told from the longest
_WINDOW_BYTES = 1 << 16
_FIX = "give LCLS-II .xtc2 files; if this is one, copy it again"
# By name of their own: looked at for every datagram, and Python looks an enum's members up slowly.
_CONFIGURE, _EVENT, _BEGUN = Transition.Configure, Transition.L1Accept, StreamStatus.BEGUN
# Where run and chunk information can be.
_DESCRIBING = frozenset({Transition.Configure, Transition.BeginRun, Transition.BeginStep, Transition.Enable})


class Datagram(NamedTuple):
    """One complete datagram; ``body`` is its payload if that was asked for."""

    offset: int
    header: Header
    body: bytes | None = None

    @property
    def transition(self) -> Transition:
        """Which step it stands for."""
        return self.header.transition

    @property
    def timestamp(self) -> int:
        """Seconds times 2**32 plus nanoseconds, as the original numbers events."""
        return self.header.seconds << 32 | self.header.nanoseconds


def read_datagrams(
    path: Path,
    *,
    bodies: Collection[Transition] = (),
    growing: bool | None = None,
    most_bytes: int = MOST_DATAGRAM_BYTES,
    most_body_bytes: int = MOST_BODY_BYTES,
) -> Iterator[Datagram]:
    """Yield the datagrams of a file in order.

    Parameters
    ----------
    path
        The file.
    bodies
        The transitions whose payload is wanted; the others are stepped over.
    growing
        Whether an incomplete last datagram is the end rather than an error; by default, for ``.inprogress``.
    most_bytes, most_body_bytes
        The longest datagram that is believed, and the longest payload that is read.

    Raises
    ------
    MissingError
        If there is no such file.
    StorageError
        If it cannot be read.
    Xtc2Error
        If something in it is no datagram, or the last one is cut.
    """
    with _opened(path) as source:
        yield from source.datagrams(bodies, most_bytes=most_bytes, most_body_bytes=most_body_bytes)
        if source.cut and not (path.name.endswith(IN_PROGRESS) if growing is None else growing):
            raise Xtc2Error(f"{path}: {source.cut}", fix="copy it again, or wait until it is finished")


def read_configure(path: Path) -> tuple[Names, ...]:
    """Return the Names of a file's first datagram, in file order.

    Raises
    ------
    MissingError, StorageError
        As `read_datagrams`.
    Xtc2Error
        If the file does not begin with a complete Configure, or it or a part of it is marked as corrupted.
    """
    with _opened(path) as source:
        for datagram in source.datagrams({Transition.Configure}):
            if datagram.body is None:
                raise Xtc2Error(f"{path} begins with {datagram.transition.name}, not with Configure", fix=_FIX)
            try:
                return _names_of(datagram.header, datagram.body)
            except Xtc2Error as error:
                raise _placed(error, path, datagram.offset) from error
        raise Xtc2Error(f"{path}: {source.cut or 'zero bytes'}", fix=_FIX)


def inspect_file(path: Path) -> FileReport:
    """Return what a file holds, however broken it is.

    Events are counted and stepped over; everything that describes them is read.

    Raises
    ------
    MissingError
        If there is no such file.
    StorageError
        If it cannot be read.
    Xtc2Error
        If it is no regular file but a directory, pipe, socket or device.
    """
    look = _Look()
    with _opened(path) as source:
        look.follow(source, path)
        detectors = [Configuration(at, detectors_of(names)) for at, names in look.configures]
        return FileReport(
            path=path,
            status=look.status,
            detectors=detectors[0].detectors if detectors else (),
            datagrams={t.name: look.counts[t] for t in Transition if look.counts[t]},
            runs=tuple(look.runs),
            chunks=tuple(look.chunks),
            reason="; ".join(look.reasons),
            size_bytes=source.size,
            truncated=bool(source.cut),
            damaged=look.damaged,
            configurations=tuple(detectors),
        )


def read_head(path: Path, *, most_datagrams: int = MOST_HEAD_DATAGRAMS) -> StreamHead:
    """Return how far the first chunk of a stream has come, reading no further than its first event.

    Raises
    ------
    MissingError, StorageError, Xtc2Error
        As `inspect_file`.
    """
    look = _Look()
    with _opened(path) as source:
        look.follow(source, path, most_datagrams=most_datagrams)
    return StreamHead(look.status, "; ".join(look.reasons), look.configures[0][1] if look.configures else ())


@dataclass
class _Look:
    """What has been seen of a file so far."""

    status: StreamStatus = StreamStatus.NOT_XTC2
    counts: list[int] = field(default_factory=lambda: [0] * len(Transition))
    configures: list[tuple[int, tuple[Names, ...]]] = field(default_factory=list)
    runs: dict[RunInfo, None] = field(default_factory=dict)
    chunks: dict[ChunkInfo, None] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    damaged: bool = False
    _naming: list[Names] = field(default_factory=list)
    _unreadable: int = 0
    _configure_bytes: int = 0

    def follow(self, source: _Source, path: Path, *, most_datagrams: int | None = None) -> None:
        """Go through a file; with ``most_datagrams``, to its first event and not beyond so many."""
        try:
            for number, datagram in enumerate(source.datagrams(_DESCRIBING), start=1):
                try:
                    self._take(datagram)
                except Xtc2Error as error:
                    raise _placed(error, path, datagram.offset) from error
                if most_datagrams and (number >= most_datagrams or self.status in _ENDS_HEAD):
                    break
        except Xtc2Error as error:
            self.damaged = True
            self.reasons.append(error.what)
        if self._unreadable > 1:
            self.reasons.append(f"{self._unreadable - 1} more runs or chunks are unreadable")
        if source.cut:
            self._note_cut(source, path)
        if source.size == 0:
            self.status = StreamStatus.EMPTY
            self.reasons.append("zero bytes")

    def _take(self, datagram: Datagram) -> None:
        transition = datagram.transition
        if datagram.offset == 0 and transition is not _CONFIGURE:
            self.status = StreamStatus.CONTINUATION
            self.reasons.append(f"begins with {transition.name}, not with Configure")
        if datagram.body is not None:
            self._read_body(datagram, datagram.body)
        self.counts[transition] += 1
        if transition is _EVENT:
            if self.status is _BEGUN:
                self.status = StreamStatus.HAS_EVENTS
        elif transition is Transition.BeginRun and self.status is StreamStatus.CONFIGURED:
            self.status = StreamStatus.BEGUN

    def _read_body(self, datagram: Datagram, body: bytes) -> None:
        if datagram.transition is Transition.Configure:
            self._configure_bytes += len(body)
            if self._configure_bytes > MOST_CONFIGURE_BYTES:
                raise Xtc2Error(f"the Configures of this file have more than {MOST_CONFIGURE_BYTES} bytes", fix=_FIX)
            names = _names_of(datagram.header, body)
            self.configures.append((datagram.offset, names))
            self._naming = [n for n in names if n.detector_name in ("runinfo", "chunkinfo")]
            if self.status is StreamStatus.NOT_XTC2:
                self.status = StreamStatus.CONFIGURED
        if datagram.header.corrupted:
            return
        for source, values in read_values(body, self._naming, longest_text=_LONGEST_TEXT):
            self._take_naming(datagram, source.detector_name, values)
            if len(self.runs) + len(self.chunks) > MOST_NAMED:
                raise Xtc2Error(f"this file names more than {MOST_NAMED} runs and chunks", fix=_FIX)

    def _take_naming(self, datagram: Datagram, kind: str, values: dict[str, Value]) -> None:
        """Keep what names a run or chunk; where it makes no sense, detectors and events still do."""
        try:
            if kind == "runinfo":
                self.runs[run_info(values)] = None
            else:
                self.chunks[chunk_info(values)] = None
        except Xtc2Error as error:
            self._unreadable += 1
            if self._unreadable == 1:  # a file may have any number of them
                self.reasons.append(f"the {kind} at {datagram.offset} is unreadable: {error.what}")

    def _note_cut(self, source: _Source, path: Path) -> None:
        kind = "still being written" if path.name.endswith(IN_PROGRESS) else "truncated"
        self.reasons.append(f"{kind}: {source.cut}")
        if not any(self.counts) and not self.damaged:
            self.status = source.status_of_first()


_ENDS_HEAD = frozenset({StreamStatus.CONTINUATION, StreamStatus.HAS_EVENTS})


def _names_of(header: Header, body: bytes) -> tuple[Names, ...]:
    if header.corrupted:
        raise Xtc2Error("the Configure is marked as corrupted, so its detectors cannot be known", fix=_FIX)
    found: dict[int, Names] = {}
    for block in walk(body):
        if block.corrupted:
            raise Xtc2Error("a part of the Configure is marked as corrupted, so detectors may be missing", fix=_FIX)
        if block.kind is BlockKind.NAMES:
            if block.names_id in found:
                raise Xtc2Error(f"two Names blocks have the id {block.names_id:#x}", fix=_FIX)
            found[block.names_id] = parse_names(body, block)
    return tuple(found.values())


class _Source:
    """An open file, read with few system calls whether its datagrams are small or large."""

    def __init__(self, handle: int, path: Path) -> None:
        self._handle, self._path = handle, path
        self.size = os.fstat(handle).st_size
        #: What is missing of the last datagram; empty if it is complete.
        self.cut = ""
        self._window, self._window_at = b"", 0

    def datagrams(
        self,
        bodies: Collection[Transition],
        *,
        most_bytes: int = MOST_DATAGRAM_BYTES,
        most_body_bytes: int = MOST_BODY_BYTES,
    ) -> Iterator[Datagram]:
        """Yield complete datagrams; afterwards ``cut`` says whether one more had begun."""
        at, size = 0, HEADER_BYTES
        wanted = [transition in bodies for transition in Transition]
        while at < self.size:
            if self.size - at < HEADER_BYTES:
                self.cut = f"{self.size - at} bytes at {at} are too few for a datagram"
                return
            # Small datagrams are likely followed by small ones: one read serves many headers.
            raw = self._bytes(at, HEADER_BYTES, ahead=size < _WINDOW_BYTES)
            try:
                header = parse_header(raw, most_bytes=most_bytes)
            except Xtc2Error as error:
                raise _placed(error, self._path, at) from error
            size = BLOCK_BYTES + header.extent
            if size > self.size - at:
                self.cut = f"the {header.transition.name} at {at} has {size} bytes, {self.size - at} are there"
                return
            body = self._body(at, header, most_body_bytes) if wanted[header.transition] else None
            yield Datagram(at, header, body)
            at += size

    def status_of_first(self) -> StreamStatus:
        """Return what a file is whose first datagram is cut: something else altogether, or a begun Configure."""
        if self.size < HEADER_BYTES:
            growing = self._path.name.endswith(IN_PROGRESS)
            return StreamStatus.PARTIAL_CONFIGURE if growing else StreamStatus.NOT_XTC2
        header = parse_header(self._bytes(0, HEADER_BYTES))
        if header.transition is not Transition.Configure:
            return StreamStatus.NOT_XTC2
        if self.size >= HEADER_BYTES + BLOCK_BYTES:
            inner = self._bytes(HEADER_BYTES, BLOCK_BYTES)
            kind, extent = int.from_bytes(inner[6:8], "little"), int.from_bytes(inner[8:12], "little")
            if kind & 0xFFF not in (BlockKind.PARENT, BlockKind.SHAPES_DATA, BlockKind.NAMES):
                return StreamStatus.NOT_XTC2
            if not BLOCK_BYTES <= extent <= header.size - HEADER_BYTES:
                return StreamStatus.NOT_XTC2
        return StreamStatus.PARTIAL_CONFIGURE

    def _body(self, at: int, header: Header, most_bytes: int) -> bytes:
        length = header.size - HEADER_BYTES
        if length > most_bytes:
            raise Xtc2Error(
                f"{self._path}: the {header.transition.name} at {at} has {length} bytes, more than {most_bytes}",
                fix=_FIX,
            )
        return self._bytes(at + HEADER_BYTES, length)

    def _bytes(self, at: int, length: int, *, ahead: bool = False) -> bytes:
        begin = at - self._window_at
        if begin >= 0 and begin + length <= len(self._window):
            return self._window[begin : begin + length]
        found = self._read(at, max(length, min(_WINDOW_BYTES, self.size - at)) if ahead else length)
        if ahead:
            self._window, self._window_at = found, at
        return found[:length]

    def _read(self, at: int, length: int) -> bytes:
        pieces: list[bytes] = []
        while length:
            piece = os.pread(self._handle, length, at)
            if not piece:
                raise Xtc2Error(f"{self._path} became shorter while it was read", fix="read it again")
            pieces.append(piece)
            at, length = at + len(piece), length - len(piece)
        return b"".join(pieces)


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    try:
        handle = _descriptor(path)
        try:
            _require_regular(os.fstat(handle), path)
            yield _Source(handle, path)
        finally:
            os.close(handle)
    except (FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, MissingError):
            raise
        raise MissingError(f"no file {path}", fix="check the name; it may have been moved") from error
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        reason = os.strerror(error.errno or errno.EIO)
        raise StorageError(f"cannot read {path}: {reason}", fix="check the mount and the file's owner") from error


def _descriptor(path: Path) -> int:
    try:
        # Asked before it is opened: opening alone makes some devices do things, and fails for a socket.
        _require_regular(path.stat(), path)
        # Without waiting, should a pipe have taken its place meanwhile.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:
        if isinstance(error, Xtc2Error):
            raise
        # A NUL, or a character that the system has no bytes for: no file can have that name.
        raise MissingError(f"no file {str(path)!r}", fix="check the name") from error


def _require_regular(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Xtc2Error(f"{path} is no regular file", fix=_FIX)


def _placed(error: Xtc2Error, path: Path, offset: int) -> Xtc2Error:
    """Return an error that says in which file and datagram it was."""
    return Xtc2Error(f"{path}: datagram at {offset}: {error.what}", fix=error.fix)
