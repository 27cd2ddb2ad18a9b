"""Bad files leave the input directory: moved, never deleted, and put back by whoever wants them there.

A file first gets a hidden name where it lies, which takes it from whoever looks there at once; then it is seen to be
the one that was judged, and moved to its place. What is about to be done is written down before, so that whoever is
killed leaves a row that says in the middle of what, and the next look brings that to an end.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nightbeam.contimg.quarantine import is_same, is_there, move
from nightbeam.contimg.site import Site
from nightbeam.core.errors import BusyError, InputError, MissingError, StorageError
from nightbeam.core.files import remove, storage_errors
from nightbeam.core.locks import sole_owner
from nightbeam.core.times import SECONDS_PER_DAY, datetime_from_mjd

if TYPE_CHECKING:
    from nightbeam.catalog import BadFileRow, Queue, SetAsideRow

__all__ = ["bad_lines", "move_bad_files", "put_back"]

logger = logging.getLogger(__name__)

_MJD_OF_EPOCH = 40587.0
#: How long `put_back` waits for a scan that is moving files.
_WAIT_S = 30.0


def move_bad_files(site: Site, queue: Queue, *, now: float) -> list[str]:
    """Move the bad files aside that have not changed for `contimg.ingest.bad_file_wait_s`; returns which.

    One that has become another since it was judged stays, one that is gone is forgotten, and one that cannot be
    moved stays among the bad with what hinders it. Whatever somebody was stopped in the middle of is ended first.
    Where somebody else is at it, nothing is done.
    """
    rows = [row for row in queue.bad_files() if Path(row.path).parent == site.input_dir]
    if not rows and not queue.set_aside.rows(states=("moving", "restoring")):
        return []
    try:
        with _alone(site):
            _settle_all(site, queue, now)
            return [row.path for row in _due(site, queue, rows, now) if _put_aside(site, queue, row, now)]
    except BusyError:
        return []
    except StorageError as error:  # no room for a lock: what is good goes on
        logger.warning("bad files stay where they are: %s", error.what)
        return []


def put_back(site: Site, path: Path, *, now: float, dry_run: bool = False) -> Path:
    """Put a file back where it lay; returns that place. The next look judges it as it judges any other.

    Parameters
    ----------
    site, path
        Where it lies, or lay: then the last that was set aside from there.
    now
        Epoch seconds.
    dry_run
        Only see whether it can be.

    Raises
    ------
    MissingError
        If nothing of that name was set aside, or it is gone.
    InputError
        If something lies at its place.
    BusyError
        If files are being moved for too long.
    StorageError
        If it cannot be moved.
    """
    queue = site.queue()
    with _alone(site, wait_s=_WAIT_S):
        _settle_all(site, queue, now)
        row = _held_at(queue, path)
        source, original = Path(row.path), Path(row.original_path)
        if not is_there(source):
            raise MissingError(f"{source} is gone", fix="was it moved by hand?")
        if is_there(original):
            raise InputError(f"something lies at {original} already", fix="move it away first")
        if dry_run:
            return original
        queue.set_aside.become(source, "restoring", now=now)
        try:
            move(source, original)
        except OSError:
            _settle(queue, row, now)
            raise
        queue.set_aside.become(source, "restored", now=now)
    logger.info("put back %s", original)
    return original


def bad_lines(site: Site, *, every: bool = False) -> list[dict[str, str]]:
    """Return a line for each file that is no readable subband, and where it is now.

    Parameters
    ----------
    site
        Whose.
    every
        Also those that were put back.
    """
    queue = site.queue()
    waiting = [
        {"file": row.path, "why": row.reason, "what": f"stays: {row.not_moved}" if row.not_moved else "waits"}
        for row in queue.bad_files()
    ]
    states = () if every else ("moving", "held", "restoring")
    aside = [
        {"file": row.original_path, "why": row.reason, "what": f"{row.state}: {row.path}"}
        for row in queue.set_aside.rows(states=states)
    ]
    return [*waiting, *aside]


# -- inside -----------------------------------------------------------------------------------------------------


@contextmanager
def _alone(site: Site, *, wait_s: float = 0.0) -> Iterator[None]:
    with sole_owner(site.state_dir / "locks" / "set-aside.lock", wait_s=wait_s, what="the files that are set aside"):
        yield


def _due(site: Site, queue: Queue, rows: list[BadFileRow], now: float) -> Iterator[BadFileRow]:
    for row in rows:
        path = Path(row.path)
        try:
            found = path.lstat()
        except FileNotFoundError:
            queue.forget_bad_file(path)
            continue
        except OSError as error:
            logger.warning("%s cannot be looked at: %s", path, error.strerror)
            continue
        # A clock ahead of ours may date a file in the future.
        changed = max(when for when in (found.st_ctime, found.st_mtime) if when <= now or when == found.st_ctime)
        same = (found.st_size, found.st_mtime) == (row.size_bytes, row.mtime)
        if same and now - changed >= site.ingest.bad_file_wait_s:
            yield row


def _put_aside(site: Site, queue: Queue, row: BadFileRow, now: float) -> bool:
    try:
        return _moved(site, queue, row, now)
    except OSError as error:
        why = error.what if isinstance(error, StorageError) else str(error)
        if queue.note_not_moved(Path(row.path), why):
            logger.warning("the bad file %s stays where it is: %s", row.path, why)
        return False


def _moved(site: Site, queue: Queue, row: BadFileRow, now: float) -> bool:
    original = Path(row.path)
    _require_writable(site)
    target = _free_place(site, queue, original.name, now)
    queue.set_aside.begin(
        target, original=original, reason=row.reason, size_bytes=row.size_bytes, mtime=row.mtime, now=now
    )
    begun = queue.set_aside.row(target)
    assert begun is not None
    hidden = _hidden(begun)
    try:
        with storage_errors(original):
            original.rename(hidden)
        return _settle_moving(queue, begun, now)
    except OSError as error:
        if is_there(hidden) and not is_there(target):
            _rename_back(hidden, original)
        # What is at its new place already is settled by the next look, which needs the row.
        if not is_there(hidden) and not is_there(target):
            queue.set_aside.forget(target)
        if isinstance(error, FileNotFoundError):
            return False  # it went away by itself
        raise


def _require_writable(site: Site) -> None:
    if not os.access(site.input_dir, os.W_OK | os.X_OK):
        raise StorageError(f"{site.input_dir} cannot be written", fix="check the mount and its owner")


def _settle_all(site: Site, queue: Queue, now: float) -> None:
    for row in queue.set_aside.rows(states=("moving", "restoring")):
        if Path(row.original_path).parent != site.input_dir:
            continue  # of a machine that sees another directory
        try:
            _settle(queue, row, now)
        except OSError as error:
            logger.warning("%s is still on its way: %s", row.original_path, error)


def _settle(queue: Queue, row: SetAsideRow, now: float) -> None:
    """Bring to its end what somebody was stopped in the middle of."""
    if row.state == "moving":
        _settle_moving(queue, row, now)
    else:
        _settle_restoring(queue, row, now)


def _settle_moving(queue: Queue, row: SetAsideRow, now: float) -> bool:
    """Go on with what was begun; returns whether the file lies aside now."""
    hidden, target, original = _hidden(row), Path(row.path), Path(row.original_path)
    if is_there(hidden) and not is_there(target):
        # It may have become another one at the last moment, a good one perhaps.
        if not _is_as_judged(hidden, row) and _rename_back(hidden, original):
            queue.set_aside.forget(target)
            return False
        move(hidden, target)
    elif is_there(hidden) and is_same(hidden, target):  # a copy on another file system whose original was still to go
        remove(hidden)
    if not is_there(target):
        # Where nothing of it can be seen, a mount may be missing: then the row is all that tells of the file.
        if is_there(original):
            queue.set_aside.forget(target)
        return False
    queue.set_aside.hold(row, now=now)
    logger.warning("moved aside %s, now %s: %s", original, target, row.reason)
    return True


def _rename_back(hidden: Path, original: Path) -> bool:
    """Give a file its name again, unless there is another of that name by now; returns whether it has it."""
    try:
        os.link(hidden, original, follow_symlinks=False)  # unlike a rename it replaces nothing
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, or a directory
        if is_there(original):
            return False
        hidden.rename(original)
        return True
    hidden.unlink()
    return True


def _settle_restoring(queue: Queue, row: SetAsideRow, now: float) -> None:
    source, original = Path(row.path), Path(row.original_path)
    if is_there(source) and is_there(original) and is_same(source, original):
        remove(source)
    if is_there(source) or is_there(original):  # else a mount may be missing
        queue.set_aside.become(source, "held" if is_there(source) else "restored", now=now)


def _is_as_judged(path: Path, row: SetAsideRow) -> bool:
    found = path.lstat()
    return (found.st_size, found.st_mtime) == (row.size_bytes, row.mtime)


def _hidden(row: SetAsideRow) -> Path:
    original, target = Path(row.original_path), Path(row.path)
    return original.with_name(f".{target.name}.{target.parent.name}.aside")


def _free_place(site: Site, queue: Queue, name: str, now: float) -> Path:
    day = datetime_from_mjd(_MJD_OF_EPOCH + now / SECONDS_PER_DAY).strftime("%Y-%m-%d")
    directory = site.set_aside_dir() / day
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = directory / (name if number == 1 else f"{name}.{number}")
        if not is_there(path) and queue.set_aside.row(path) is None:
            break
    return path


def _held_at(queue: Queue, path: Path) -> SetAsideRow:
    rows = queue.set_aside.rows(states=("held",))
    found = [row for row in rows if str(path) in (row.path, row.original_path)]
    if not found:
        raise MissingError(f"nothing that was set aside is or was at {path}", fix="nightbeam groups bad lists it")
    return found[-1]
