"""Files that appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nightbeam.core.errors import MissingError, StorageError

__all__ = [
    "copy_tree",
    "directory_bytes",
    "exchange_paths",
    "full_place",
    "new_directory",
    "no_space",
    "part_path",
    "put_back",
    "remove",
    "remove_parts",
    "rename_new",
    "replace_path",
    "require_room",
    "require_space",
    "scratch_directory",
    "sha256",
    "storage_errors",
    "write_bytes",
    "write_text",
]

#: What was moved aside to be replaced, on a file system that cannot exchange two names (rename(2), linux/fs.h).
_OLD = ".old"
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: A Measurement Set has about two hundred files.
_FEW_FILES = 300
#: With less a file system is as good as full: whoever was stopped by it has given back what it could not use.
_LITTLE_BYTES = 4 << 20
_LITTLE_INODES = 64
_BAD = {errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOTDIR}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's word for a full or unwritable disk into ours."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in _FULL or (isinstance(error, shutil.Error) and os.strerror(errno.ENOSPC) in str(error)):
            raise no_space(path) from error
        if error.errno in _BAD:
            raise StorageError(f"cannot write {path}: {error.strerror}", fix="check the mount and its owner") from error
        raise


def no_space(path: Path, *, told: str = "") -> StorageError:
    """Return the error of who found no room for ``path``: it names the file system's directory if it is full still.

    Parameters
    ----------
    path
        What was to be written.
    told
        What a program said of it.
    """
    full = full_place(path)
    where = f" ({full})" if full else ""
    return StorageError(f"no space left for {path}{where}{told}", fix="free some space, then try again")


def full_place(*paths: Path) -> str:
    """Return on which of the file systems of some paths there is next to no room, and of what; ``""`` if on none.

    A path need not be there: the nearest directory above it that is counts.
    """
    for path in paths:
        place = next((p for p in (path, *path.parents) if p.exists()), None)
        if place is None:
            continue
        try:
            found = os.statvfs(place)
        except OSError:  # a mount that is gone is another trouble
            continue
        here = place if place.is_dir() else place.parent
        if found.f_bavail * found.f_frsize < _LITTLE_BYTES:
            return f"{_shown(found.f_bavail * found.f_frsize)} free in {here}"
        if found.f_files and found.f_favail < _LITTLE_INODES:  # some file systems have no table of them
            return f"{found.f_favail} inodes free in {here}"
    return ""


def part_path(path: Path) -> Path:
    """Return a fresh sibling name for something that is still being written.

    It lies in the same directory, so that a rename is atomic, begins with a dot and ends in ``.part``.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")


def remove_parts(path: Path) -> None:
    """Remove what those left who were killed while they wrote a file; only for who is the only one that writes it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if left.is_file():
            left.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of one."""
    part = part_path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode())


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the name ``path`` when the block ends without an error.

    Something that already has that name is replaced: it is moved aside first, because a directory that
    is not empty cannot be renamed over. On an error nothing remains and what was there stays.
    """
    part = part_path(path)
    with storage_errors(path):
        part.mkdir(parents=True)
        try:
            yield part
            replace_path(part, path)
        finally:
            remove(part)


def replace_path(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target``, replacing a file or a whole directory of that name.

    Where the file system can exchange two names, whoever looks sees the old one or the new one. Elsewhere a directory
    is moved aside first: of one who is killed just then `put_back` finds it.
    """
    if target.is_dir() and not target.is_symlink():
        if exchange_paths(source, target):
            remove(source)
            return
        put_back(target)  # what one left who was killed as he removed the old one
        old = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}{_OLD}")
        target.rename(old)
        try:
            source.rename(target)
        except OSError:
            old.rename(target)
            raise
        remove(old)
    else:
        source.replace(target)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory to another file system, and see to it that the copy is on its disk; on an error none is left."""
    try:
        shutil.copytree(source, target, copy_function=_copy_and_sync)
        for directory in (target, *(p for p in target.rglob("*") if p.is_dir())):
            _sync(directory)
    except BaseException:
        remove(target)
        raise


def _copy_and_sync(source: str, target: str) -> None:
    shutil.copy2(source, target)
    _sync(Path(target))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_back(target: Path) -> bool:
    """Undo the half of a `replace_path` that a kill has left; return whether something was put back.

    Only for who is the only one that writes it.
    """
    put = False
    for old in sorted(target.parent.glob(f".{glob.escape(target.name)}.*{_OLD}")):
        if target.exists():
            remove(old)
        else:
            old.rename(target)
            put = True
    return put


def exchange_paths(one: Path, other: Path) -> bool:
    """Give each of two things the name of the other at once; return False where the file system cannot."""
    return _renameat2(one, other, _RENAME_EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target``, which nothing has; two who do so at once cannot replace one another's.

    Where the file system cannot do that in one step it is looked first.

    Raises
    ------
    FileExistsError
        If something has that name, be it a symbolic link to nothing.
    """
    if _renameat2(source, target, _RENAME_NOREPLACE):
        return
    if target.exists() or target.is_symlink():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source), None, str(target))
    source.rename(target)


def _renameat2(one: Path, other: Path, flag: int) -> bool:
    """Rename as renameat2(2) does with a flag; return False where the system or the file system does not know it."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def remove(path: Path) -> None:
    """Remove a file or a directory tree; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_space(directory: Path, need_bytes: int, *, what: str) -> None:
    """Refuse to begin where ``need_bytes`` are not free.

    Raises
    ------
    StorageError
        Saying how much is free and how much is wanted.
    MissingError
        If there is no such directory.
    """
    try:
        free = shutil.disk_usage(directory).free
    except FileNotFoundError as error:
        raise MissingError(f"no directory {directory}", fix="create it or correct the setting") from error
    if free < need_bytes:
        raise StorageError(
            f"{what} needs {_shown(need_bytes)} in {directory}, {_shown(free)} are free",
            fix="free some space or choose another directory",
        )


def require_room(writes: Mapping[Path, int], *, what: str) -> None:
    """Refuse to begin where the disks have no room for all that will be written.

    Directories of one file system are counted together. One that is not there yet is asked for where it will be made.

    Parameters
    ----------
    writes : {directory: bytes}
        What will be added.
    what
        Who wants it, for the message.

    Raises
    ------
    StorageError
        Saying what is free, what is wanted, and where; also where no more files can be made.
    """
    wanted: dict[int, int] = {}
    places: dict[int, list[Path]] = {}
    for directory, count in writes.items():
        with storage_errors(directory):
            there = next(p for p in (directory, *directory.absolute().parents) if p.exists())
            device = there.stat().st_dev
        wanted[device] = wanted.get(device, 0) + count
        places.setdefault(device, []).append(there)
    for device, count in wanted.items():
        named = ", ".join(dict.fromkeys(map(str, places[device])))
        with storage_errors(places[device][0]):
            found = os.statvfs(places[device][0])
        free = found.f_bavail * found.f_frsize
        if free < count:
            raise StorageError(
                f"{what} needs {_shown(count)} in {named}, {_shown(free)} are free",
                fix="free some space or choose another directory; it is tried again",
            )
        if found.f_files and found.f_favail < _FEW_FILES:
            raise StorageError(
                f"{what} makes {_FEW_FILES} files in {named}, {found.f_favail} more can be made",
                fix="remove files that nobody needs; it is tried again",
            )


def _shown(size: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.1 * unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 1e9:.2f} GB"


def directory_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all the files below a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of a directory's names and contents in sorted order."""
    digest = hashlib.sha256()
    if path.is_file():
        _feed(digest, path)
    else:
        for item in sorted(p for p in path.rglob("*") if p.is_file()):
            if item.name == "table.lock":  # casacore rewrites it on every look
                continue
            digest.update(item.relative_to(path).as_posix().encode() + b"\0")
            _feed(digest, item)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)


def scratch_directory(root: Path, *, owner: str) -> Path:
    """Return a new directory under ``root`` whose name says who made it, so that it can be cleaned up.

    Raises
    ------
    StorageError
        If the disk is full or cannot be written.
    """
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{owner}.pid{os.getpid()}.", dir=root))
