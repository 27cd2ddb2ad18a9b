"""The directory where subbands arrive: what is ready, what is on its way, what is no subband."""

from __future__ import annotations

import logging
import math
import os
import stat
import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nightbeam.core.errors import InputError, MissingError, NightbeamError, StorageError
from nightbeam.core.keys import SubbandName
from nightbeam.ingest.compute import group_arrivals
from nightbeam.ingest.model import Arrival, BadFile, Scan, SubbandGroup, Unready

if TYPE_CHECKING:
    from nightbeam.uvh5.model import SubbandHeader

    ReadHeader = Callable[[Path], SubbandHeader]

#: Of the correlator.
_SUBBANDS = 16

__all__ = ["Looks", "group_files", "list_names", "scan_directory"]

logger = logging.getLogger(__name__)


def list_names(directory: Path) -> list[str]:
    """Return the names in the directory where files arrive, in no order; nothing is looked at.

    Raises
    ------
    MissingError
        If there is no such directory.
    StorageError
        If it cannot be read.
    """
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries]
    except FileNotFoundError as error:
        raise MissingError(f"no input directory {directory}", fix="create it or set contimg.input_dir") from error
    except OSError as error:
        raise StorageError(f"cannot read {directory}: {error.strerror}", fix="check the mount and its owner") from error


def scan_directory(
    directory: Path,
    *,
    names: Collection[str] | None = None,
    known: Container[str] = frozenset(),
    rejected: Mapping[Path, tuple[int | None, float | None]] | None = None,
    settle_s: float = 2.0,
    link_wait_s: float = 600.0,
    read: ReadHeader | None = None,
    looks: Looks | None = None,
    now: float | None = None,
) -> Scan:
    """Look at the subband files that lie directly in a directory.

    Files that are still being written (``_incomplete``), hidden ones and spectral-line products are
    no business of ours. A file is ready when its name is final, it has not changed for
    ``settle_s``, and its header can be read and is complete; it is bad when it has settled and
    cannot. A bad file is looked at again only after it changed. A symbolic link stands for what it leads to; one
    that leads nowhere is bad when that has lasted for ``link_wait_s``.

    Parameters
    ----------
    directory
        Where files arrive; directories in it are not entered.
    names
        What is in it, where that is known; otherwise it is listed.
    known
        Names recorded before, which are not opened again.
    rejected
        Bad files of before, with the size and time that they had then.
    settle_s
        How long a file must have been as it is.
    link_wait_s
        How old a link that leads nowhere must be, as a mount may be missing for a while.
    read
        Reads and checks a header; `nightbeam.uvh5.check_subband` by default.
    looks
        What earlier looks saw of files whose own times tell nothing.
    now
        Epoch seconds.

    Raises
    ------
    MissingError
        If there is no such directory.
    StorageError
        If it cannot be read.
    """
    now = time.time() if now is None else now
    read = read or _default_reader()
    looks = Looks() if looks is None else looks
    ready: list[Arrival] = []
    unready: list[Unready] = []
    bad: list[BadFile] = []
    still_bad: list[Path] = []
    for path, name in _subbands_in(directory, names, known):
        found = _look(path, name, (rejected or {}).get(path), (settle_s, link_wait_s), read, (looks, now))
        if isinstance(found, Arrival):
            ready.append(found)
        elif isinstance(found, Unready):
            unready.append(found)
        elif found is not None:
            bad.append(found)
        else:
            still_bad.append(path)
    return Scan(tuple(ready), tuple(unready), tuple(bad), tuple(still_bad))


class Looks:
    """For how long files have been as they are, also where a clock that was set, or a server's, dates them ahead.

    Parameters
    ----------
    clock
        Seconds that no one sets.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._seen: dict[Path, tuple[tuple[int, float, float], float]] = {}

    @property
    def ahead(self) -> frozenset[str]:
        """Names of the files that are dated ahead of our clock, and were not let go of."""
        return frozenset(path.name for path in self._seen)

    def unwritten_s(self, path: Path, found: os.stat_result, now: float) -> float:
        """Return for how long nothing has been written to a file.

        Who copies a file and keeps its times sets them when all of it is there, and a rename changes only the time
        of status: such a file is as old as its contents. One that is dated ahead may have had its status changed by
        our own kernel; where that is ahead as well, it is as old as what we have seen of it.
        """
        dated = found.st_mtime if found.st_mtime <= now else found.st_ctime
        if dated <= now:
            self._seen.pop(path, None)
            return now - dated
        state = (found.st_size, found.st_mtime, found.st_ctime)
        here = time.monotonic() if self._clock is None else self._clock()
        if path not in self._seen or self._seen[path][0] != state:
            self._seen[path] = (state, here)
        return here - self._seen[path][1]

    def forget(self, names: Container[str]) -> None:
        """Let go of files that are taken care of, or gone."""
        self._seen = {path: seen for path, seen in self._seen.items() if path.name not in names}


def group_files(
    paths: Iterable[Path], *, gap_s: float = 90.0, strict: bool = True, read: ReadHeader | None = None
) -> list[SubbandGroup]:
    """Return the groups that some files form.

    Parameters
    ----------
    paths
        Subband files.
    gap_s
        See `group_arrivals`.
    strict
        Whether a file whose header cannot be read is an error; otherwise its name decides.
    read
        Reads and checks a header; `nightbeam.uvh5.check_subband` by default.

    Raises
    ------
    InputError
        If a file is unreadable (``strict``), or nothing says which subband it is.
    MissingError
        If there is no such file.
    """
    read = read or _default_reader()
    arrivals = []
    for path in paths:
        name = SubbandName.parse(path.name)
        try:
            arrivals.append(_arrival(path, name, read(path)))
        except InputError:
            if strict or name is None:
                raise
            arrivals.append(Arrival(path, name.stamp, name.subband))
    return group_arrivals(arrivals, gap_s=gap_s)


def _subbands_in(
    directory: Path, names: Collection[str] | None, known: Container[str]
) -> list[tuple[Path, SubbandName]]:
    unknown = sorted(name for name in (list_names(directory) if names is None else names) if name not in known)
    parsed = ((name, SubbandName.parse(name)) for name in unknown)
    return [(directory / text, name) for text, name in parsed if name is not None]


def _look(
    path: Path,
    name: SubbandName,
    before: tuple[int | None, float | None] | None,
    waits_s: tuple[float, float],
    read: ReadHeader,
    when: tuple[Looks, float],
) -> Arrival | Unready | BadFile | None:
    settle_s, link_wait_s = waits_s
    looks, now = when
    try:
        first = path.stat()
    except OSError as error:
        return _look_at_link(path, before, error, link_wait_s, looks, now)
    if before == (first.st_size, first.st_mtime):
        return None
    age = looks.unwritten_s(path, first, now)
    if age < settle_s:
        return Unready(path, f"changed {max(age, 0.0):.1f} s ago")
    try:
        if first.st_size == 0:
            raise InputError("0 bytes", fix="copy it again")
        arrival = _arrival(path, name, read(path))
        last = path.stat()
    except InputError as error:
        return BadFile(path, error.what, first.st_size, first.st_mtime)
    except MissingError as error:  # a directory, or something that is just going away
        return BadFile(path, error.what, first.st_size, first.st_mtime) if path.is_dir() else Unready(path, error.what)
    except NightbeamError as error:  # the disk or a lock: a later look may succeed
        return Unready(path, error.what)
    except OSError as error:
        return Unready(path, f"cannot be read: {error.strerror or error}")
    except Exception as error:  # whatever one file makes its reader do, the others are to be taken in
        logger.exception("%s cannot be looked at", path)
        return Unready(path, f"cannot be looked at: {type(error).__name__}: {error}")
    if (last.st_size, last.st_mtime) != (first.st_size, first.st_mtime):
        return Unready(path, "it changed while we looked")
    return arrival


def _look_at_link(
    path: Path,
    before: tuple[int | None, float | None] | None,
    error: OSError,
    link_wait_s: float,
    looks: Looks,
    now: float,
) -> Unready | BadFile | None:
    """Say what is wrong with a name that leads to no file."""
    try:
        found = path.lstat()
        leads_to = path.readlink() if stat.S_ISLNK(found.st_mode) else None
    except OSError:
        return Unready(path, "it went away while we looked")
    if leads_to is None:
        return Unready(path, f"cannot be looked at: {error.strerror}")
    if before == (found.st_size, found.st_mtime):
        return None
    reason = f"it is a symbolic link to {leads_to}, which cannot be reached: {error.strerror}"
    if looks.unwritten_s(path, found, now) < link_wait_s:
        return Unready(path, reason)
    return BadFile(path, reason, found.st_size, found.st_mtime)


def _arrival(path: Path, name: SubbandName | None, header: SubbandHeader) -> Arrival:
    subband = header.subband if name is None else name.subband
    if subband is None:
        raise InputError(f"{path} does not say which subband it is", fix="name it YYYY-MM-DDTHH:MM:SS_sbNN.hdf5")
    if subband >= _SUBBANDS:
        raise InputError(f"{path.name}: sb{subband:02d} is outside the band", fix="the correlator has sb00 to sb15")
    if header.subband is not None and header.subband != subband:
        raise InputError(
            f"{path.name} is named sb{subband:02d} and holds the frequencies of sb{header.subband:02d}",
            fix="give it its right name",
        )
    found = path.stat()
    return Arrival(
        path=path,
        stamp=None if name is None else name.stamp,
        subband=subband,
        start_jd=float(header.start_jd),
        mid_jd=float(header.mid_jd),
        dec_deg=math.degrees(header.dec_rad),
        size_bytes=found.st_size,
        mtime=found.st_mtime,
        layout=str(getattr(header, "layout", "")),  # a reader of others may not tell
    )


def _default_reader() -> ReadHeader:
    from nightbeam.uvh5.files import check_subband

    return check_subband
