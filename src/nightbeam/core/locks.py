"""One owner at a time, by a lock that the kernel releases when its owner dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nightbeam.core.errors import BusyError
from nightbeam.core.times import iso_z, utc_now

__all__ = ["is_held", "lock_holder", "sole_owner"]


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
        How long to wait for the present holder.
    what
        What is being held, for the message.

    Raises
    ------
    BusyError
        Naming who holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(handle, path, wait_s, what)
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
    """Say whether somebody holds the lock just now, without taking it."""
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


def _acquire(handle: int, path: Path, wait_s: float, what: str) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                holder = lock_holder(path)
                who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "somebody"
                raise BusyError(f"{what or path} is held by {who}", fix="wait for it to end, or stop it") from error
            time.sleep(0.05)
        else:
            return


def _me() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": iso_z(utc_now())}
