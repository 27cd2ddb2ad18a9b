"""Cache files of detector constants: written whole or not at all, opened only if nobody else can have planted them.

One file serves one run of one experiment, ``calibconst_{experiment}_r{run:04d}.pkl``; `nightbeam.calib.layout` says how
it is laid out. Runs whose constants are the same documents share one file by hard links.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nightbeam.calib.entry import CalibEntry
from nightbeam.calib.layout import (
    FOOTER_BYTES,
    ConstantPlace,
    DetectorPlace,
    EntryIndex,
    pack_tail,
    parse_footer,
    parse_index,
    placed_arrays,
)
from nightbeam.calib.pickles import ALIGNMENT, Emitter, PlacedArray, read_restricted
from nightbeam.core.errors import InputError, MissingError, NightbeamError, RejectedError, StorageError
from nightbeam.core.files import require_space, storage_errors
from nightbeam.core.locks import remove_free_lock, sole_owner
from nightbeam.core.times import iso_z, utc_now

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = [
    "EntryLine",
    "EntryName",
    "Payload",
    "collect",
    "entry_path",
    "is_whole",
    "link_entry",
    "list_entries",
    "load_pickle",
    "lock_path",
    "lone_writer",
    "map_entry",
    "open_entry",
    "owner_ids",
    "parse_entry_name",
    "read_index",
    "remove_stale",
    "remove_surplus",
    "surplus",
    "verify_entry",
    "verify_mapped",
    "write_entry",
]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,127}")
_ENTRY = re.compile(r"calibconst_(?P<experiment>[A-Za-z0-9_-]{1,127})_r(?P<run>\d{1,9})\.pkl")
_PART = re.compile(_ENTRY.pattern + r"(\.(?P<host>[A-Za-z0-9_-]+)\.(?P<pid>\d+)\.(?P<token>[0-9a-f]+))?\.inprogress")
_MODE = 0o640
_BLOCK = 1 << 23
_LARGEST_INDEX = 1 << 28
#: A temporary of a process whose number may have been given to another one is stale after this long,
#: one of another machine or another program after an hour without a change.
_REUSED_S, _FOREIGN_S = 60.0, 3600.0
_Key = tuple[str, str, str]


@dataclass(frozen=True)
class EntryName:
    """What the name of a cache file says."""

    experiment: str
    run: int


@dataclass(frozen=True)
class Payload:
    """One constant to be written.

    Attributes
    ----------
    ctype
        Type of constant, such as ``pedestals``.
    database, document
        Where it comes from on the service.
    data
        An array, text or a dict of them; or a function that returns it, called when its turn comes, so that only one
        is in memory.
    """

    ctype: str
    database: str
    document: Mapping[str, Any]
    data: Any | Callable[[], Any]

    @property
    def key(self) -> _Key:
        """Database, document and data; constants with the same key, none of it empty, have the same data."""
        return self.database, str(self.document.get("_id") or ""), str(self.document.get("id_data") or "")


@dataclass(frozen=True)
class EntryLine:
    """One cache file in a list.

    Attributes
    ----------
    reason
        Why it cannot be used, or None.
    shared_by
        How many runs share its content.
    """

    path: Path
    experiment: str
    run: int
    bytes: int
    shared_by: int
    inode: int
    created: str | None = None
    detectors: int | None = None
    constants: int | None = None
    skipped: tuple[str, ...] = ()
    reason: str | None = None
    index: EntryIndex | None = field(default=None, repr=False, compare=False)


def check_name(text: str, what: str = "experiment") -> str:
    """Return a name that is safe in a path.

    Raises
    ------
    InputError
        If it has anything but letters, digits, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(text):
        raise InputError(f"{text!r} is no name of an {what}", fix="use letters, digits, _ and - only")
    return text


def entry_path(cache_dir: Path, experiment: str, run: int) -> Path:
    """Return where the constants of a run are kept; the run has at least four digits."""
    if run < 0:
        raise InputError(f"{run} is no run", fix="runs count from 0")
    return cache_dir / f"calibconst_{check_name(experiment)}_r{run:04d}.pkl"


def parse_entry_name(name: str) -> EntryName | None:
    """Return what a cache file's name says, or None for any other file."""
    found = _ENTRY.fullmatch(name)
    return EntryName(found["experiment"], int(found["run"])) if found else None


def owner_ids(owners: Iterable[str | int]) -> frozenset[int]:
    """Return the numbers of users, given by name or number.

    Raises
    ------
    InputError
        If there is no such user.
    """
    import pwd

    ids = set()
    for owner in owners:
        try:
            ids.add(owner if isinstance(owner, int) else int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid)
        except KeyError as error:
            raise InputError(f"there is no user {owner!r}", fix="correct calib.owners") from error
    return frozenset(ids)


def lock_path(cache_dir: Path, experiment: str) -> Path:
    """Return the lock of whoever fetches for this experiment, in a directory that nobody else can write.

    It is one for all runs: most share their constants, and two who fetched them for two runs would fetch them twice.
    A lock beside the cache files could be planted as a link to a file that we would then overwrite.

    Raises
    ------
    RejectedError
        If somebody else made that directory.
    """
    return _own_directory(cache_dir) / f"{check_name(experiment)}.lock"


def _own_directory(cache_dir: Path) -> Path:
    directory = cache_dir / f".calibconst.{os.geteuid()}"
    with storage_errors(directory), _known_directory(cache_dir):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise RejectedError(
                    f"{directory} is not a directory of ours alone", fix="remove it; somebody else may have made it"
                ) from None
    return directory


@contextmanager
def _known_directory(cache_dir: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"no directory {cache_dir}", fix="create it or correct the output directory") from error
    except NotADirectoryError as error:
        raise MissingError(f"{cache_dir} is no directory", fix="correct the output directory") from error


# ---------------------------------------------------------------------------------------------- opening


@contextmanager
def _checked(path: Path, owners: Iterable[str | int]) -> Iterator[tuple[int, os.stat_result]]:
    """Yield a handle and the facts of a file that only its owner, one of ours, can have written."""
    handle = _open_no_link(path)
    try:
        found = os.fstat(handle)
        _refuse_untrusted(path, found, owners)
        yield handle, found
    finally:
        os.close(handle)


def _open_no_link(path: Path) -> int:
    try:
        # Without O_NONBLOCK a planted pipe would hold us for ever.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise MissingError(f"no constants at {path}", fix="run `nightbeam calib prefetch --once`") from error
    except NotADirectoryError as error:
        raise MissingError(f"{path.parent} is no directory", fix="correct the cache directory") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RejectedError(f"{path} is a symbolic link, not a cache file", fix=_REMOVE) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENXIO):
            raise RejectedError(f"{path} cannot be opened: {error.strerror}", fix=_REMOVE) from error
        raise StorageError(f"cannot open {path}: {error.strerror}") from error


_REMOVE = "remove it, and find out who made it"


def _refuse_untrusted(path: Path, found: os.stat_result, owners: Iterable[str | int]) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise RejectedError(f"{path} is not a regular file", fix=_REMOVE)
    if found.st_uid != os.geteuid() and found.st_uid not in owner_ids(owners):
        raise RejectedError(
            f"{path} belongs to user {found.st_uid}, who is not trusted", fix=f"{_REMOVE}; or add them to calib.owners"
        )
    if found.st_mode & 0o022:
        raise RejectedError(f"{path} can be written by others (mode {found.st_mode & 0o777:o})", fix=_REMOVE)


def open_entry(path: Path, *, owners: Iterable[str | int] = ()) -> CalibEntry:
    """Map a cache file read-only; nothing but its index is read.

    Parameters
    ----------
    path
        The file.
    owners
        Users, by name or number, whose files are trusted beside our own.

    Raises
    ------
    MissingError
        If there is no such file.
    RejectedError
        If it is a link, another user's, writable by others, or no regular file. It was not read.
    InputError
        If it is truncated, damaged, or has no index (a pickle that another program wrote: see `load_pickle`).
    """
    entry = map_entry(path, owners=owners)
    if entry is None:
        raise InputError(f"{path} has no index", fix="it is truncated, or another program wrote it; fetch it anew")
    return entry


def map_entry(path: Path, *, owners: Iterable[str | int] = ()) -> CalibEntry | None:
    """Return what `open_entry` does, or None where the file is a pickle that another program wrote."""
    with _checked(path, owners) as (handle, facts):
        index = _index_of(path, handle, facts.st_size)
        if index is None:
            return None
        buffer = mmap.mmap(handle, facts.st_size, access=mmap.ACCESS_READ)
        return CalibEntry(path, index, buffer, (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))


def read_index(path: Path, *, owners: Iterable[str | int] = ()) -> EntryIndex | None:
    """Return what a cache file says of itself, or None where it is a pickle that another program wrote.

    Raises
    ------
    MissingError, RejectedError, InputError
        As `open_entry`.
    """
    with _checked(path, owners) as (handle, facts):
        return _index_of(path, handle, facts.st_size)


def _index_of(path: Path, handle: int, size: int) -> EntryIndex | None:
    try:
        footer = parse_footer(os.pread(handle, FOOTER_BYTES, max(0, size - FOOTER_BYTES)), size)
        if footer is None:
            return None
        offset, length, digest = footer
        if length > _LARGEST_INDEX:
            raise InputError(f"its index claims {length} bytes")
        return parse_index(os.pread(handle, length, offset), digest, offset)
    except InputError as error:
        raise InputError(f"{path} is damaged: {error.what}", fix="remove it; it is fetched anew") from error


def load_pickle(path: Path, *, owners: Iterable[str | int] = ()) -> dict[str, Any]:
    """Return the dict of a cache file by its pickle, copying; also of one that another program wrote.

    Arrays are read-only. Only plain values and numpy arrays are let in.

    Raises
    ------
    MissingError
        If there is no such file.
    RejectedError
        If it is not to be trusted (see `open_entry`), or names anything that could run code; nothing was run.
    InputError
        If it is truncated or holds something else.
    """
    with _checked(path, owners) as (handle, _), os.fdopen(os.dup(handle), "rb") as file:
        try:
            found = read_restricted(file)
        except NightbeamError as error:
            raise type(error)(f"{path}: {error.what}", fix=error.fix) from error
    if not isinstance(found, dict) or set(found) != {"det_info", "calib_const"}:
        raise InputError(f"{path} holds no constants", fix="remove it; it is fetched anew")
    if not all(isinstance(part, dict) for part in found.values()):
        raise InputError(f"{path} holds constants in an unknown form", fix="remove it; it is fetched anew")
    return found


def is_whole(path: Path, *, owners: Iterable[str | int] = ()) -> bool:
    """Say whether a file could be used: trusted and complete. Another program's pickle is read to its end for that."""
    try:
        if read_index(path, owners=owners) is None:
            load_pickle(path, owners=owners)
    except NightbeamError:
        return False
    return True


def verify_entry(path: Path, *, owners: Iterable[str | int] = ()) -> EntryIndex:
    """Read a cache file whole and compare every checksum.

    Raises
    ------
    InputError
        Naming the detector and the constant that is damaged, or the pickle.
    MissingError, RejectedError
        As `open_entry`.
    """
    entry = open_entry(path, owners=owners)
    verify_mapped(entry)
    return entry.index


def verify_mapped(entry: CalibEntry) -> None:
    """Do for an open cache file what `verify_entry` does for one by its name.

    Raises
    ------
    InputError
        As `verify_entry`.
    """
    around, at = hashlib.sha256(), 0
    # Detectors that are served by the same document share an array: it is read once.
    for offset, (array, what) in sorted(_arrays_of(entry.index).items()):
        around.update(entry.body(at, offset - at))
        at = offset + array.nbytes
        if hashlib.sha256(entry.body(offset, array.nbytes)).hexdigest() != array.sha256:
            raise InputError(f"{entry.path}: {what} is damaged", fix="remove it; it is fetched anew")
    around.update(entry.body(at, entry.index.data_bytes - at))
    if around.hexdigest() != entry.index.pickle_sha256:
        raise InputError(f"{entry.path}: its pickle is damaged", fix="remove it; it is fetched anew")


def _arrays_of(index: EntryIndex) -> dict[int, tuple[PlacedArray, str]]:
    return {
        array.offset: (array, f"{ctype} of {detector}")
        for detector, place in index.detectors.items()
        for ctype, constant in (place.constants or {}).items()
        for array in placed_arrays(constant.data)
        if array.nbytes
    }


# ---------------------------------------------------------------------------------------------- writing


def write_entry(
    path: Path,
    det_info: Mapping[str, str],
    constants: Mapping[str, Sequence[Payload] | None],
    *,
    reasons: Mapping[str, str] | None = None,
    gaps: Mapping[str, tuple[str, ...]] | None = None,
    short_names: Mapping[str, str] | None = None,
    need_bytes: int = 0,
) -> EntryIndex:
    """Write a cache file that appears whole, under its name, or not at all.

    Parameters
    ----------
    path
        From `entry_path`.
    det_info
        Unique id by detector name.
    constants
        By detector name, for every detector of ``det_info``; None where one was skipped.
    reasons, gaps
        By detector: why it has no constants, and what the service failed to say.
    short_names
        By detector: the service's own name for it.
    need_bytes
        How much the arrays will take, for the check of free space.

    Returns
    -------
    EntryIndex
        What was written.

    Raises
    ------
    StorageError
        If the space is not there or a write failed; what was there before is untouched.
    InputError
        If a constant is of a kind that is not kept.
    MissingError
        If there is no such directory.
    """
    name = parse_entry_name(path.name)
    if name is None:
        raise InputError(f"{path.name} is no name of a cache file", fix="take it from entry_path")
    if set(det_info) != set(constants):
        raise InputError("constants are given for other detectors than det_info names")
    require_space(path.parent, need_bytes + _slack(constants), what=path.name)
    with _published(path) as file:
        return _write(file, name.experiment, det_info, constants, reasons or {}, gaps or {}, short_names or {})


def _slack(constants: Mapping[str, Sequence[Payload] | None]) -> int:
    return (1 << 20) + ALIGNMENT * sum(len(each or ()) for each in constants.values())


def _write(
    file: BinaryIO,
    experiment: str,
    det_info: Mapping[str, str],
    constants: Mapping[str, Sequence[Payload] | None],
    reasons: Mapping[str, str],
    gaps: Mapping[str, tuple[str, ...]],
    short_names: Mapping[str, str],
) -> EntryIndex:
    # Readers, who are many, do without.
    from concurrent.futures import ThreadPoolExecutor

    from nightbeam import __version__

    with ThreadPoolExecutor(1) as hasher:
        emitter = Emitter(file, lambda out, body: _write_hashed(out, body, hasher))
        emitter.begin()
        emitter.put(b"}(")
        emitter.value("det_info")
        # Whoever compares ids must not take a detector that was skipped for one that is served.
        emitter.value({name: uid for name, uid in det_info.items() if constants[name] is not None})
        emitter.value("calib_const")
        emitter.put(b"}(")
        detectors: dict[str, DetectorPlace] = {}
        written: dict[_Key, tuple[Any, int]] = {}
        for detector in det_info:
            emitter.value(detector)
            places = _write_detector(emitter, constants[detector], written)
            why, missing = reasons.get(detector), gaps.get(detector, ())
            detectors[detector] = DetectorPlace(places, why, missing, short_names.get(detector))
        emitter.put(b"uu")
        end = emitter.end()
    writer = f"nightbeam {__version__} on {os.uname().nodename}, process {os.getpid()}"
    index = EntryIndex(experiment, dict(det_info), detectors, iso_z(utc_now()), writer, end, emitter.sha256)
    file.write(pack_tail(index))
    return index


def _write_detector(
    emitter: Emitter, constants: Sequence[Payload] | None, written: dict[_Key, tuple[Any, int]]
) -> dict[str, ConstantPlace] | None:
    if constants is None:
        emitter.value(None)
        return None
    emitter.put(b"}(")
    places = {}
    for constant in constants:
        emitter.value(constant.ctype)
        emitter.put(b"(")
        key = constant.key
        if key in written:  # another detector is served by the same document
            node, number = written[key]
            emitter.recall(number)
        else:
            node = emitter.value(constant.data() if callable(constant.data) else constant.data)
            if all(key):
                written[key] = node, emitter.remember()
        emitter.value(constant.document)
        emitter.put(b"t")
        places[constant.ctype] = ConstantPlace(constant.database, dict(constant.document), node)
    emitter.put(b"u")
    return places


def _write_hashed(file: BinaryIO, body: memoryview, hasher: ThreadPoolExecutor) -> str:
    """Write bytes while another thread hashes them; neither holds the interpreter."""
    digest = hasher.submit(lambda: hashlib.sha256(body).hexdigest())
    try:
        for at in range(0, len(body), _BLOCK):
            file.write(body[at : at + _BLOCK])
    finally:
        found = digest.result()
    return found


@contextmanager
def _published(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the name ``path`` when the block ends without an error."""
    with storage_errors(path), _known_directory(path.parent):
        part, handle = _new_part(path)
        try:
            with os.fdopen(handle, "wb", buffering=1 << 16) as file:
                yield file
                file.flush()
                os.fchmod(handle, _MODE)
                os.fsync(handle)
                _take_name(part, path)
        finally:
            part.unlink(missing_ok=True)


def _take_name(part: Path, path: Path) -> None:
    try:
        part.replace(path)
    except IsADirectoryError as error:
        raise RejectedError(f"{path} is a directory, not a cache file", fix=_REMOVE) from error


def part_name(path: Path) -> Path:
    """Return a fresh temporary name, which says who is writing what."""
    host = re.sub(r"[^A-Za-z0-9_-]", "-", os.uname().nodename)
    return path.with_name(f"{path.name}.{host}.{os.getpid()}.{os.urandom(6).hex()}.inprogress")


def _new_part(path: Path) -> tuple[Path, int]:
    """Return a temporary that did not exist before, and its handle, locked for as long as it is open."""
    while True:
        part = part_name(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(part, flags, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return part, handle
        os.close(handle)  # whoever cleans up took it for a dead one before it was locked


def link_entry(existing: Path, new: Path, *, owners: Iterable[str | int] = ()) -> EntryIndex:
    """Let another run share the content of a cache file.

    Where the file system has no hard links, or refuses one, the content is copied.

    Raises
    ------
    MissingError, RejectedError, InputError
        As `open_entry`, of ``existing``.
    StorageError
        If neither a link nor a copy can be made.
    """
    with _checked(existing, owners) as (handle, facts), storage_errors(new):
        index = _index_of(existing, handle, facts.st_size)
        if index is None:
            raise InputError(f"{existing} has no index", fix="fetch it anew")
        part = part_name(new)
        try:
            os.link(existing, part, follow_symlinks=False)
            if os.path.samestat(part.lstat(), os.fstat(handle)):
                _take_name(part, new)
                return index
        except OSError as error:
            if isinstance(error, NightbeamError) or error.errno not in _NO_LINK:
                raise
        finally:
            # Renaming one name of a file onto another name of it does nothing, and leaves both.
            part.unlink(missing_ok=True)
        _copy(handle, facts.st_size, new)
    return index


#: Why a link may not be had although a copy may; the last where ``existing`` was removed after it was opened.
_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.ENOENT}


def _copy(handle: int, size: int, new: Path) -> None:
    require_space(new.parent, size, what=new.name)
    with _published(new) as out, os.fdopen(os.dup(handle), "rb") as source:
        source.seek(0)
        shutil.copyfileobj(source, out, _BLOCK)


# ---------------------------------------------------------------------------------------------- keeping house


def list_entries(
    cache_dir: Path, experiment: str | None = None, *, owners: Iterable[str | int] = (), verify: bool = False
) -> list[EntryLine]:
    """Return the cache files of a directory, by experiment and run; those that cannot be used say why.

    Raises
    ------
    MissingError
        If there is no such directory.
    """
    lines = []
    for path, name in _named(cache_dir, experiment):
        try:
            lines.append(_line(path, name, owners, verify))
        except FileNotFoundError:
            continue  # removed while we were looking
    return sorted(lines, key=lambda line: (line.experiment, line.run))


def _named(cache_dir: Path, experiment: str | None) -> list[tuple[Path, EntryName]]:
    with _known_directory(cache_dir):
        found = [(path, parse_entry_name(path.name)) for path in cache_dir.iterdir()]
    return [(path, name) for path, name in found if name and experiment in (None, name.experiment)]


def _line(path: Path, name: EntryName, owners: Iterable[str | int], verify: bool) -> EntryLine:
    found = path.lstat()
    facts: dict[str, Any] = {}
    try:
        index = (verify_entry if verify else read_index)(path, owners=owners)
    except MissingError as error:
        raise FileNotFoundError(path) from error
    except NightbeamError as error:
        facts["reason"] = error.what
    else:
        facts = _facts(index, name)
    return EntryLine(path, name.experiment, name.run, found.st_size, found.st_nlink, found.st_ino, **facts)


def _facts(index: EntryIndex | None, name: EntryName) -> dict[str, Any]:
    if index is None:
        return {"reason": "it has no index: truncated, or written by another program"}
    if index.experiment != name.experiment:
        return {"reason": f"it holds constants of {index.experiment}"}
    counts = [len(place.constants or ()) for place in index.detectors.values()]
    return {
        "created": index.created,
        "detectors": len(counts),
        "constants": sum(counts),
        "skipped": tuple(sorted(index.skipped)),
        "index": index,
    }


def remove_stale(cache_dir: Path) -> list[Path]:
    """Remove temporaries whose writers are dead; returns them.

    A living writer holds a lock on its temporary, which the kernel releases with its last breath.

    Raises
    ------
    MissingError
        If there is no such directory.
    """
    with _known_directory(cache_dir):
        parts = [(path, _PART.fullmatch(path.name)) for path in cache_dir.iterdir()]
    return [path for path, found in parts if found and _remove_if_dead(path, found)]


def _remove_if_dead(path: Path, name: re.Match[str]) -> bool:
    try:
        found = path.lstat()
        if found.st_uid != os.geteuid() or time.time() - found.st_ctime < _patience_s(name):
            return False
        if not stat.S_ISREG(found.st_mode):
            path.unlink()
            return True
        return _unlink_unlocked(path)
    except (FileNotFoundError, PermissionError):
        return False  # its writer has just finished, or is not ours to judge


def _patience_s(name: re.Match[str]) -> float:
    """Return how long a temporary without a lock must have been unchanged before it is called dead."""
    if name["pid"] is None or name["host"] != re.sub(r"[^A-Za-z0-9_-]", "-", os.uname().nodename):
        return _FOREIGN_S
    try:
        os.kill(int(name["pid"]), 0)
    except ProcessLookupError:
        return 0.0
    except (PermissionError, OverflowError):
        pass
    return _REUSED_S


def _unlink_unlocked(path: Path) -> bool:
    """Remove a file while holding its lock, so that its writer, if there is one, notices; returns whether it did."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(handle)


def collect(
    cache_dir: Path,
    *,
    keep: int,
    experiment: str | None = None,
    spare: Iterable[Path] = (),
    dry_run: bool = False,
) -> list[EntryLine]:
    """Remove all but the cache files of the ``keep`` highest runs of each experiment, and those that are damaged.

    Processes that have mapped a file keep it. Files of other users are left alone.

    Parameters
    ----------
    spare
        Files that stay, whatever their run.
    dry_run
        Remove nothing.

    Returns
    -------
    list
        What was removed.

    Raises
    ------
    InputError
        If ``keep`` is less than 1.
    BusyError
        If somebody fetches for an experiment for longer than a minute.
    MissingError
        If there is no such directory.
    """
    spare, removed = tuple(spare), list[EntryLine]()
    for each in sorted({name.experiment for _, name in _named(cache_dir, experiment)}):
        if dry_run:
            removed += surplus(cache_dir, each, keep=keep, spare=spare)
            continue
        with lone_writer(cache_dir, each, wait_s=60.0):
            removed += remove_surplus(cache_dir, each, keep=keep, spare=spare)
    if not dry_run:
        remove_stale(cache_dir)
    return removed


@contextmanager
def lone_writer(cache_dir: Path, experiment: str, *, wait_s: float) -> Iterator[None]:
    """Hold the lock of whoever writes or removes cache files of an experiment.

    Raises
    ------
    BusyError
        If another process holds it for longer than ``wait_s``.
    """
    lock = lock_path(cache_dir, experiment)
    try:
        with storage_errors(lock), sole_owner(lock, wait_s=wait_s, what=f"the cache of {experiment}"):
            yield
    finally:
        remove_free_lock(lock)


def remove_surplus(cache_dir: Path, experiment: str, *, keep: int, spare: Iterable[Path] = ()) -> list[EntryLine]:
    """Do for one experiment what `collect` does; for those who hold its lock."""
    removed = surplus(cache_dir, experiment, keep=keep, spare=spare)
    for line in removed:
        with storage_errors(line.path):
            line.path.unlink(missing_ok=True)
    return removed


def surplus(cache_dir: Path, experiment: str, *, keep: int, spare: Iterable[Path] = ()) -> list[EntryLine]:
    """Return which of our cache files of an experiment are damaged, or of runs below the ``keep`` highest.

    A file that is planted or of another user is neither counted nor named.

    Raises
    ------
    InputError
        If ``keep`` is less than 1.
    """
    if keep < 1:
        raise InputError(f"cannot keep {keep} runs", fix="keep 1 or more")
    spared = set(spare)
    ours = [line for line in list_entries(cache_dir, experiment) if _is_ours(line.path)]
    good = [line for line in ours if line.index is not None or is_whole(line.path)]
    damaged = [line for line in ours if line not in good and _is_damaged(line.path)]
    lowest = sorted(good, key=lambda line: -line.run)[keep:]
    return [line for line in (*damaged, *lowest) if line.path not in spared]


def _is_damaged(path: Path) -> bool:
    """Say whether a file can never be used; one that cannot be read today is not meant."""
    try:
        if read_index(path) is None:
            load_pickle(path)
    except InputError:
        return True
    except NightbeamError:
        pass
    return False


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def created_time(index: EntryIndex) -> datetime:
    """Return when an entry was written (UTC)."""
    return datetime.fromisoformat(index.created)
