"""One owner at a time, by a lock that the kernel releases when its owner dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nightbeam.core.errors import BusyError
from nightbeam.core.files import storage_errors
from nightbeam.core.times import iso_z, utc_now

__all__ = ["is_held", "lock_holder", "remove_free_lock", "sole_owner"]

#: Longer than anybody looks at a lock, which takes microseconds.
_LOOK_S = 0.05


@contextmanager
def sole_owner(path: Path, *, wait_s: float = 0.0, what: str = "") -> Iterator[None]:
    """Hold an ``flock`` on ``path`` for the block.

    The file stays behind with the last holder's pid and host; only the lock itself counts. It is not
    inherited by children that are started with ``close_fds`` (the default of `subprocess`).

    Parameters
    ----------
    path
        The lock file; its directory is made.
    wait_s
        How long to wait for the present holder; an instant at least, for somebody may only be looking (`is_held`).
    what
        What is being held, for the message.

    Raises
    ------
    BusyError
        Naming who holds it.
    StorageError
        If the file can neither be opened nor made.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path, wait_s, what)
    try:
        # On a full disk too: whoever frees it needs his lock, and who holds it is only told for people.
        with suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(_me()).encode(), 0)
        yield
    finally:
        os.close(handle)


def lock_holder(path: Path) -> dict[str, str | int]:
    """Return pid, host and time of the last holder, or an empty dict if nobody wrote one."""
    try:
        found = json.loads(path.read_text() or "{}")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_held(path: Path) -> bool:
    """Say whether somebody holds the lock just now, without keeping anybody from it for longer than an instant."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)


def remove_free_lock(path: Path) -> bool:
    """Remove a lock file that nobody holds, while holding it; returns whether it is gone now."""
    handle = _try(path, os.O_RDWR)
    if handle is None:
        return not path.exists()
    try:
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)
    return True


def _acquire(path: Path, wait_s: float, what: str) -> int:
    until, pause_s = time.monotonic() + max(wait_s, _LOOK_S), 0.005
    while (handle := _try(path, os.O_RDWR | os.O_CREAT)) is None:
        if time.monotonic() >= until:
            holder = lock_holder(path)
            who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "somebody"
            raise BusyError(f"{what or path} is held by {who}", fix="wait for it to end, or stop it")
        time.sleep(pause_s)
        pause_s = min(2.0 * pause_s, 0.05)
    return handle


def _try(path: Path, flags: int) -> int | None:
    """Return a handle that holds the lock, or None where another one does."""
    try:
        handle = os.open(path, flags | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        if flags & os.O_CREAT:
            raise
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been removed between our opening and our locking it: then others lock its successor.
        if _is_at(handle, path):
            return handle
    except BlockingIOError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _me() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": iso_z(utc_now())}
