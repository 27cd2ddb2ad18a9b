"""Bad files leave the input directory: moved, never deleted, and put back by whoever wants them there.

A file first gets a hidden name where it lies, which takes it from whoever looks there at once; then it is seen to be
the one that was judged, and moved to its place. What is about to be done is written down before, so that whoever is
killed leaves a row that says in the middle of what, and the next look brings that to an end.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nightbeam.contimg.owners import scratch_maker
from nightbeam.contimg.quarantine import is_same, is_there, move
from nightbeam.contimg.site import Site
from nightbeam.core.errors import BusyError, InputError, MissingError, StorageError
from nightbeam.core.files import remove, storage_errors
from nightbeam.core.keys import SubbandName
from nightbeam.core.locks import sole_owner
from nightbeam.core.times import SECONDS_PER_DAY, datetime_from_mjd

if TYPE_CHECKING:
    from nightbeam.catalog import BadFileRow, Queue, SetAsideRow

__all__ = ["bad_lines", "move_bad_files", "put_back"]

logger = logging.getLogger(__name__)

_MJD_OF_EPOCH = 40587.0
#: How long `put_back` waits for a scan that is moving files.
_WAIT_S = 30.0
#: Half a copy that nobody has written to for so long is of somebody who died; its name tells no machine.
_PART_AGE_S = 3600.0
#: As `core.files.part_path` names what is on its way to, or from, one of our names in the input directory.
_PART = re.compile(r"\.(?P<of>.+)\.\d+\.[0-9a-f]{8}\.part")
_LINK = "it is a symbolic link, and what it leads to is not ours to move"


def move_bad_files(site: Site, queue: Queue, *, names: Collection[str] = (), now: float) -> list[str]:
    """Move the bad files aside that have not changed for `contimg.ingest.bad_file_wait_s`; returns which.

    One that has become another since it was judged stays, one that is gone is forgotten, and one that cannot be
    moved stays among the bad with what hinders it, as does a symbolic link. Whatever somebody was stopped in the
    middle of is ended first. Where somebody else is at it, nothing is done.

    Parameters
    ----------
    site, queue
        Whose.
    names
        What there is in the input directory: parts of copies that we left there when we were killed are removed.
    now
        Epoch seconds.
    """
    rows = [row for row in queue.bad_files() if Path(row.path).parent == site.input_dir]
    parts = [name for name in names if _PART.fullmatch(name)]
    if not rows and not parts and not queue.set_aside.rows(states=("moving", "restoring")):
        return []
    try:
        with _alone(site):
            _settle_all(site, queue, now)
            _remove_parts(site, queue, parts, now)
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
        hidden = _hidden(row)
        try:
            move(source, hidden)
            placed = _rename_back(hidden, original)
        except OSError:
            _settle_restoring(queue, row, now)
            raise
        if not placed:
            _settle_restoring(queue, row, now)
            raise InputError(f"something lies at {original} already", fix="move it away first")
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
        if stat.S_ISLNK(found.st_mode):
            queue.note_not_moved(path, _LINK)
            continue
        same = (found.st_size, found.st_mtime) == (row.size_bytes, row.mtime)
        if same and now - _changed_at(found, row, now) >= site.ingest.bad_file_wait_s:
            yield row


def _changed_at(found: os.stat_result, row: BadFileRow, now: float) -> float:
    """Return when a file that is as it was judged was last touched; one that is dated ahead, when it was judged."""
    if found.st_ctime > now:
        return row.recorded_at
    return max(when for when in (found.st_ctime, found.st_mtime) if when <= now)


def _remove_parts(site: Site, queue: Queue, names: list[str], now: float) -> None:
    """Remove the parts of copies that processes of ours left when they were killed; those of others are theirs.

    Only what is half of something that is whole at another place goes, after it was left alone for long, and where no
    process of this machine has the number that its name bears.
    """
    rows = queue.set_aside.rows() if names else []
    for name in names:
        path, found = site.input_dir / name, _PART.fullmatch(name)
        assert found is not None
        maker = scratch_maker(name)
        if maker is None or maker.alive is not False or not _is_elsewhere(site, rows, found["of"]):
            continue
        try:
            state = path.lstat()
            if now - max(state.st_mtime, state.st_ctime) < _PART_AGE_S:
                continue
            with storage_errors(path):
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.warning("%s, left behind by a process that is gone, cannot be removed: %s", path, error)
        else:
            logger.info("removed %s, left behind by a process that is gone", path)


def _is_elsewhere(site: Site, rows: list[SetAsideRow], of: str) -> bool:
    """Return whether that of which a name is the part is one of our files, and whole where it lies or lay."""
    original = site.input_dir / of
    if SubbandName.parse(of) is not None:
        here = [row for row in rows if row.original_path == str(original)]
    else:
        here = [row for row in rows if _hidden(row) == original]
    return any(
        is_there(Path(row.path)) or (row.state == "restored" and is_there(Path(row.original_path))) for row in here
    )


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
        if not _is_one(hidden, original):
            return False
    except OSError:  # a file system without hard links, or a directory
        if is_there(original):
            return False
        hidden.rename(original)
        return True
    hidden.unlink()
    return True


def _is_one(one: Path, other: Path) -> bool:
    """Return whether two names are of one file, as who is killed between giving and taking a name leaves them."""
    first, second = one.lstat(), other.lstat()
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _settle_restoring(queue: Queue, row: SetAsideRow, now: float) -> None:
    source, hidden, original = Path(row.path), _hidden(row), Path(row.original_path)
    if is_there(hidden) and is_there(source):  # a copy on another file system whose source was still to go
        if is_same(hidden, source):
            remove(hidden)
    elif is_there(hidden) and not _rename_back(hidden, original):
        move(hidden, source)
    if is_there(source) and is_there(original) and is_same(source, original):  # as it was done before
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
