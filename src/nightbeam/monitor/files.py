"""Files that the monitor shows or keeps: pictures and reports that may be seen, its address, its token."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nightbeam.core.errors import InputError, MissingError, StorageError
from nightbeam.core.files import part_path, storage_errors, write_text

__all__ = [
    "CONTENT_TYPES",
    "address_path",
    "content_of",
    "forget_address",
    "newest_pictures",
    "picture",
    "qa_file",
    "qa_files",
    "read_address",
    "read_token",
    "token_path",
    "write_address",
]

#: What is shown at all, by the end of its name.
CONTENT_TYPES: Final = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".svg")
_LONGEST_NAME: Final = 255
_MOST_BYTES: Final = 64 << 20
#: Directories of groups that are looked into for a list.
_MOST_DIRECTORIES: Final = 2000
_LEAST_TOKEN: Final = 16


# -- what may be seen ---------------------------------------------------------------------------------------------


def qa_file(qa_dir: Path, group_id: str, name: str) -> Path:
    """Return the real path of ``qa_dir/group_id/name``.

    Raises
    ------
    MissingError
        If there is no such file, one of the names is no plain name, it leads out of ``qa_dir``, or files of its kind
        are not shown.
    """
    if not (_is_plain(group_id) and _is_plain(name)):
        raise MissingError("no such file")
    return _inside(qa_dir / group_id / name, (qa_dir,), tuple(CONTENT_TYPES))


def picture(named: str | None, roots: Iterable[Path]) -> Path:
    """Return the real path of a picture that a database names.

    Raises
    ------
    MissingError
        If none is named, it is not there, is no picture, or does not lie in one of ``roots``.
    """
    if not named or "\0" in named or not Path(named).is_absolute():
        raise MissingError("no picture")
    return _inside(Path(named), roots, _PICTURES)


def content_of(path: Path) -> tuple[bytes, str]:
    """Return the bytes of a file that may be seen, and its media type.

    Raises
    ------
    MissingError
        If it is gone, cannot be read, or is larger than a page bears.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise MissingError("no such file") from error
    if len(data) > _MOST_BYTES:
        raise MissingError("the file is too large to be shown")
    return data, CONTENT_TYPES[path.suffix.lower()]


def qa_files(qa_dir: Path, *, group_id: str | None, limit: int) -> list[Path]:
    """Return pictures under ``qa_dir``, the last group first; of one group, or of all."""
    if group_id is not None:
        return _pictures_of(qa_dir / group_id)[:limit] if _is_plain(group_id) else []
    try:
        names = sorted((one.name for one in os.scandir(qa_dir)), reverse=True)
    except OSError:
        return []
    found: list[Path] = []
    for name in names[:_MOST_DIRECTORIES]:
        found += _pictures_of(qa_dir / name)
        if len(found) >= limit:
            break
    return found[:limit]


def newest_pictures(qa_dir: Path, *, limit: int) -> list[Path]:
    """Return the newest picture of each group under ``qa_dir``, the newest first."""
    try:
        names = sorted((one.name for one in os.scandir(qa_dir)), reverse=True)
    except OSError:
        return []
    newest = [max(map(_written, found)) for name in names[:_MOST_DIRECTORIES] if (found := _pictures_of(qa_dir / name))]
    return [path for _, path in sorted(newest, reverse=True)[:limit]]


def _written(path: Path) -> tuple[float, Path]:
    try:
        return path.stat().st_mtime, path
    except OSError:  # it was removed meanwhile
        return 0.0, path


def _pictures_of(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            names = [one.name for one in entries if one.name.lower().endswith(_PICTURES) and one.is_file()]
    except OSError:
        return []
    return [directory / name for name in sorted(names)]


def _is_plain(name: str) -> bool:
    """Say whether a name is that of one thing in a directory, which begins with no dot."""
    return (
        0 < len(name) <= _LONGEST_NAME
        and not name.startswith(".")
        and not set(name) & {"/", "\\", "\0"}
        and len(os.fsencode(name.encode("utf-8", "replace").decode())) <= _LONGEST_NAME
    )


def _inside(path: Path, roots: Iterable[Path], endings: tuple[str, ...]) -> Path:
    try:
        real = path.resolve(strict=True)
        homes = [root.resolve() for root in roots]
        if real.is_file() and real.suffix.lower() in endings and any(real.is_relative_to(home) for home in homes):
            return real
    except (OSError, ValueError, RuntimeError):  # none there, no name of a file, a circle of links
        pass
    raise MissingError("no such file")


# -- where it listens ---------------------------------------------------------------------------------------------


def address_path(state_dir: Path) -> Path:
    """Return the file that says where the monitor listens."""
    return state_dir / "monitor" / "address"


def write_address(state_dir: Path, address: str) -> None:
    """Say where the monitor listens."""
    write_text(address_path(state_dir), address + "\n")


def read_address(state_dir: Path) -> str | None:
    """Return where the monitor says that it listens, or None."""
    try:
        return address_path(state_dir).read_text().strip() or None
    except (OSError, ValueError):
        return None


def forget_address(state_dir: Path, address: str) -> None:
    """Take back what was said, unless another one has said something else since."""
    if read_address(state_dir) == address:
        address_path(state_dir).unlink(missing_ok=True)


# -- the token ----------------------------------------------------------------------------------------------------


def token_path(state_dir: Path, told: Path | None) -> Path:
    """Return where the word lies that changing anything asks for."""
    return told.expanduser().absolute() if told else state_dir / "monitor.token"


def read_token(path: Path, *, make: bool = True) -> str:
    """Return the word; a new one is made where there is none, to be read by its owner alone.

    Raises
    ------
    MissingError
        If there is none and none is to be made.
    InputError
        If the file holds none, or a short one, or may be read by others.
    StorageError
        If it cannot be read or written.
    """
    try:
        return _read_token(path)
    except FileNotFoundError as error:
        if not make or isinstance(error, MissingError):
            raise MissingError(f"there is no token {path}", fix="nightbeam monitor token makes one") from error
    _make_token(path)
    return _read_token(path)


def _read_token(path: Path) -> str:
    try:
        with path.open() as file:
            mode = os.fstat(file.fileno()).st_mode
            word = file.read(4096).strip()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}", fix="check the file and its owner") from error
    if mode & 0o077:
        raise InputError(f"others may read {path}", fix=f"chmod 600 {path}, and replace the word if they have")
    if len(word) < _LEAST_TOKEN or not word.isascii() or any(c.isspace() for c in word):
        raise InputError(
            f"{path} holds no token: {_LEAST_TOKEN} letters and digits or more are wanted",
            fix="remove it; a new one is made",
        )
    return word


def _make_token(path: Path) -> None:
    part = part_path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                out.write(secrets.token_urlsafe(32) + "\n")
            # Of two who make one at a time, both go on with the first.
            try:
                os.link(part, path)
            except FileExistsError:
                return
        finally:
            part.unlink(missing_ok=True)
