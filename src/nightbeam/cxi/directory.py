"""A directory of CXI files: names that nobody else takes, the list that indexamajig wants, the geometry beside it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nightbeam.core.errors import ConfigError, MissingError, StorageError
from nightbeam.core.files import storage_errors
from nightbeam.cxi.chunkfile import sync
from nightbeam.cxi.master import write_master
from nightbeam.cxi.naming import Naming, partial_path, unfinished
from nightbeam.geometry.files import format_geometry, write_geometry
from nightbeam.geometry.model import Geometry

__all__ = ["Directory"]

_log = logging.getLogger(__name__)
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
#: The master file is not made anew for fewer new files than this, but at the end.
_MASTER_LEAST = 64


class Directory:
    """Where the files of one prefix, of one run or of all, go.

    Opening it makes it, takes away what dead writers left, and completes the list.

    Parameters
    ----------
    path
        Made if ``create``.
    naming
        Decides which files are ours.
    writer
        Our own name.
    listed
        Whether there is a ``{prefix}.lst``.
    geometry
        Written to ``{prefix}.geom``; None: no such file.
    run
        Of whose files they are, if of one.

    Raises
    ------
    MissingError
        If there is no directory and it is not to be made.
    ConfigError
        If it cannot be written to, or a list cannot hold its name.
    StorageError
        If the disk is full or does not work.
    """

    def __init__(
        self,
        path: Path,
        naming: Naming,
        writer: str,
        *,
        listed: bool,
        geometry: Geometry | None,
        create: bool = True,
        run: int | None = None,
    ) -> None:
        self.path, self.naming, self.writer, self.listed = path.absolute(), naming, writer, listed
        self.list_path = self.path / f"{naming.prefix}.lst"
        self.geometry_path = self.path / f"{naming.prefix}.geom"
        # Not .cxi: a user who gives *.cxi to indexamajig is not to have each event twice.
        self.master_path = self.path / f"{naming.prefix}{'' if run is None else f'_r{run:04d}'}_master.h5"
        self._since_master, self._next_master = 0, _MASTER_LEAST
        self._left = False
        #: So many bytes of the list hold nothing that is still to be added.
        self._list_read = 0
        #: Files that are there and not yet in the list, because the list could not be written.
        self.unlisted: list[Path] = []
        self._prepare(create)
        for left in unfinished(self.path, naming):
            _log.warning("removing %s, which a writer left that is no more", left)
            left.unlink(missing_ok=True)
        if listed and (there := naming.ours_in(self.path, but=self._listed())):
            self._append(there)
        if geometry is not None:
            self._write_geometry(geometry)

    def _prepare(self, create: bool) -> None:
        if "\n" in str(self.path):
            raise ConfigError(f"output_dir {str(self.path)!r} has a line break", fix="rename it")
        if not self.path.is_dir() and not create:
            raise MissingError(f"no directory {self.path}", fix="make it, or set output.create_output_dir")
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise ConfigError(f"cannot write to {self.path}", fix="check its owner and the mount")

    def _write_geometry(self, geometry: Geometry) -> None:
        text = format_geometry(geometry)
        there = self.geometry_path
        if not (there.is_file() and there.read_text(errors="replace") == text):
            write_geometry(geometry, there)

    def write(self, name: str, write: Callable[[Path], None]) -> tuple[Path, int]:
        """Let a function write a file under a hidden name, then give it its own; returns where it is and its bytes.

        If somebody else has a file of that name, it gets a number. Once it has its name nothing fails any more:
        somebody may have seen it, and it must not be written again.

        Raises
        ------
        StorageError
            If either fails; then nothing is left.
        """
        part = partial_path(self.path / name, self.writer)
        try:
            with _disk_errors(part):
                write(part)
                size = part.stat().st_size
                done = _publish(part, self.path / name)
        finally:
            _remove(part)
        try:
            sync(self.path)
        except OSError as error:
            _log.warning("%s is written, but %s may not be on the disk yet: %s", done, self.path, error)
        self._since_master += 1
        return done, size

    def add_to_list(self, path: Path) -> None:
        """Append a file to the list; what cannot be appended now is kept for the next time.

        Raises
        ------
        StorageError
            If it could not. The file itself is written.
        """
        if self.listed:
            self.unlisted.append(path)
            self.catch_up()

    def catch_up(self) -> None:
        """Append what could not be appended before."""
        if self.unlisted:
            self._append(self.unlisted)
            self.unlisted = []

    def files(self) -> list[Path]:
        """Return all finished files of the prefix, by whichever writer, oldest first."""
        return self.naming.ours_in(self.path)

    @property
    def master_is_due(self) -> bool:
        """Return whether there are twice as many files as the master has, so that all masters cost as much as two."""
        return self._since_master >= self._next_master

    def leave(self, *, master: bool) -> None:
        """Make the master at the end of a run; not each time where runs take turns."""
        if master and not self._left:
            self._left = True
            self.write_master()

    def write_master(self) -> None:
        """Replace the virtual file over all of them, where there is a new one.

        Raises
        ------
        StorageError
            If it could not be written.
        """
        if not self._since_master:
            return
        self._next_master = 2 * self._since_master  # where it fails it is not tried for each file
        with _disk_errors(self.master_path):
            files = self.files()
            write_master(self.master_path, files)
        self._next_master, self._since_master = max(_MASTER_LEAST, len(files)), 0

    def _listed(self) -> set[str]:
        """Return the names of the files of this directory that are in the list."""
        try:
            lines = self.list_path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return set()
        here = os.fsencode(self.path) + b"/"
        return {os.fsdecode(line.removeprefix(here)) for line in lines if line.startswith(here)}

    def _append(self, paths: Sequence[Path]) -> None:
        with _disk_errors(self.list_path), _locked(self.list_path) as handle:
            data, size = self._unread(handle)
            torn = data.rpartition(b"\n")[2]  # a writer died, or its disk was full, in the middle of a line
            known = {*data.removesuffix(torn).split(b"\n")}
            wanted = [os.fsencode(path) for path in paths]
            if torn and Path(os.fsdecode(torn)).is_file():
                wanted.insert(0, torn)
            lines = [line + b"\n" for line in dict.fromkeys(wanted) if line not in known]
            if torn:
                os.ftruncate(handle, size - len(torn))
            if lines or torn:
                _write_all(handle, b"".join(lines))
                os.fsync(handle)
            self._list_read = size - len(torn) + sum(map(len, lines))

    def _unread(self, handle: int) -> tuple[bytes, int]:
        """Return what is new in the list since it was last added to, or all of it where it is another, and its size."""
        size, begin = os.fstat(handle).st_size, self._list_read
        if begin > size or (begin and os.pread(handle, 1, begin - 1) != b"\n"):
            begin = 0
        return os.pread(handle, size - begin, begin), size


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s could not be removed: %s", part, error)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Give every error of the disk one kind: whatever it is, it is tried again."""
    try:
        with storage_errors(path):
            yield
    except StorageError:
        raise
    except OSError as error:
        said = error.strerror or str(error)[:200]
        raise StorageError(f"cannot write {path}: {said}", fix="check the directory, the disk and its mount") from error


def _publish(part: Path, path: Path) -> Path:
    """Give a file its name without replacing another: a link fails where a rename would replace."""
    for number in range(1, 1000):
        wanted = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            os.link(part, wanted)
        except FileExistsError:
            if _is_same(part, wanted):  # a network file system did it, and was asked again
                return wanted
            continue
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if wanted.exists():
                continue
            part.rename(wanted)
        return wanted
    raise StorageError(f"there are 999 files like {path}", fix="put {time} or {writer} into output.name_template")


def _is_same(part: Path, wanted: Path) -> bool:
    try:
        return part.samefile(wanted)
    except OSError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a file for reading and appending, alone where the file system can do that."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield handle
    finally:
        os.close(handle)
