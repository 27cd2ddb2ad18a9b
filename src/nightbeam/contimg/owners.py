"""Who works on a group: who we are, whether another one is still alive, and how we say that we are."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from nightbeam.catalog.model import GroupRow, Owner
from nightbeam.core.errors import NightbeamError
from nightbeam.core.files import remove, scratch_directory, storage_errors
from nightbeam.core.locks import is_held

if TYPE_CHECKING:
    from nightbeam.catalog import Queue

__all__ = [
    "Maker",
    "is_alive",
    "is_dead",
    "keeping_lease",
    "owned_scratch",
    "places_in_use",
    "process_birth",
    "remove_dead_scratch",
    "same_process",
    "scratch_maker",
    "this_process",
]

logger = logging.getLogger(__name__)

_SAME_START_S = 2.0
#: As `owned_scratch` and `core.files.part_path` name them.
_SCRATCH = re.compile(
    r"(?P<host>.+)\.(?P<group>\d{4}-\d\d-\d\dT[\d:]+|mosaic-[\w.+-]+)\.[a-z]+\.pid(?P<pid>\d+)\.[^.]*"
)
_PART = re.compile(r"\..+\.(?P<pid>\d+)\.[0-9a-f]{8}\.part")
#: As `core.files.scratch_directory` names one that no group owns, and as the DSA-110 pipeline names its own.
_OTHER = re.compile(r"[a-z]+\.pid(?P<pid>\d+)\.[^.]*")
_STREAM = re.compile(r"stream_.+")


def this_process(name: str | None = None) -> Owner:
    """Return this process as an owner.

    Parameters
    ----------
    name
        What survives a restart, such as the id of a flow run: an owner of the same name may take up its
        own group again. By default the process itself, which nobody else is.
    """
    host, pid = socket.gethostname(), os.getpid()
    started = _started(pid)
    return Owner(name or f"{host}:{pid}:{started:.0f}", host, pid, started, process_birth(pid))


def is_dead(row: GroupRow, *, lock: Path | None = None) -> bool:
    """Return whether the process that holds a group is certainly gone; of another machine nothing is certain.

    Parameters
    ----------
    row
        Of the group.
    lock
        The group's lock file: while somebody holds that, nobody is called dead.
    """
    if row.owner_host != socket.gethostname() or row.owner_pid is None:
        return False
    return not _alive(row.owner_pid, row.owner_started, row.owner_birth) and (lock is None or not is_held(lock))


def is_alive(row: GroupRow) -> bool:
    """Return whether the process that holds a group certainly lives; of another machine nothing is certain."""
    if row.owner_host != socket.gethostname() or row.owner_pid is None:
        return False
    return _alive(row.owner_pid, row.owner_started, row.owner_birth)


@cache
def _started(pid: int) -> float:
    # Asked once: the answer moves when somebody sets the clock, and the name of an owner is made of it.
    return float(psutil.Process(pid).create_time())


def process_birth(pid: int) -> str | None:
    """Return in which boot of the machine a process began, and after how many ticks of it, which no clock changes.

    It is None where the kernel does not tell (field 22 of ``/proc/PID/stat``, proc(5)).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        # The second field is the program's name in brackets, which may hold anything.
        return f"{boot}/{int(stat.rpartition(b')')[2].split()[19])}"
    except (OSError, ValueError, IndexError):
        return None


def same_process(pid: int, birth: str | None) -> bool:
    """Return whether a process of this machine lives that had this number and, where it is known, this birth."""
    return _alive(pid, None, birth)


def _alive(pid: int, started: float | None, birth: str | None = None) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if birth is not None and (found := process_birth(pid)) is not None:
            return found == birth
        return started is None or abs(process.create_time() - started) < _SAME_START_S
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@contextmanager
def keeping_lease(queue: Queue, group_id: str, owner: Owner, *, every_s: float) -> Iterator[None]:
    """Renew the lease on a group while the block runs.

    Raises
    ------
    BusyError
        At the end, if the group is no longer ours: what the block did must not be recorded.
    """
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(every_s):
            try:
                queue.heartbeat(group_id, owner)
            except NightbeamError as error:
                # Said again, and for good, by the heartbeat at the end of the block.
                logger.warning("the lease on %s was not renewed: %s", group_id, error.what)

    thread = threading.Thread(target=beat, name=f"lease-{group_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    queue.heartbeat(group_id, owner)


@contextmanager
def owned_scratch(root: Path, group_id: str, step: str) -> Iterator[Path]:
    """Yield a scratch directory that is removed at the end, or by `remove_dead_scratch` if we die.

    Raises
    ------
    StorageError
        If the disk is full or cannot be written.
    """
    path = scratch_directory(root, owner=f"{socket.gethostname()}.{group_id}.{step}")
    try:
        yield path
    finally:
        with storage_errors(path):
            remove(path)


def remove_dead_scratch(*roots: Path, keep: Collection[str] = ()) -> list[Path]:
    """Remove what processes of this machine left half-written when they died; returns what was removed.

    What cannot be removed is said and stays: it keeps nobody from the rest. Only names that say which process made them
    are touched, and only where that process is gone.

    Parameters
    ----------
    roots
        Directories to look in; those below them are not entered.
    keep
        Groups that another machine works on: what carries their name may be its own.
    """
    removed = []
    for root in roots:
        for path in _children(root):
            pid = _maker(path.name)
            if pid is None or any(group_id in path.name for group_id in keep) or _alive(pid, None):
                continue
            try:
                remove(path)
            except FileNotFoundError:  # somebody else removes it too
                continue
            except OSError as error:
                logger.warning("%s, left behind by a process that is gone, stays: %s", path, error.strerror or error)
                continue
            removed.append(path)
    return removed


def _children(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir()) if root.is_dir() else []
    except FileNotFoundError:
        return []
    except OSError as error:
        logger.warning("cannot look into %s: %s", root, error.strerror or error)
        return []


@dataclass(frozen=True, slots=True)
class Maker:
    """What the name of something half-written tells of who made it.

    Attributes
    ----------
    alive
        Whether that process lives; None where it is of another machine, or the name does not say.
    """

    alive: bool | None


def scratch_maker(name: str) -> Maker | None:
    """Return who made a scratch directory or a part file, or None for a name that none of us gives."""
    pid = _maker(name)
    if pid is not None:
        return Maker(_alive(pid, None))
    if found := _OTHER.fullmatch(name):
        return Maker(_alive(int(found["pid"]), None))
    return Maker(None) if _SCRATCH.fullmatch(name) or _STREAM.fullmatch(name) else None


def places_in_use() -> list[Path]:
    """Return where the processes of this machine stand and what they have open, as far as we may know."""
    places: set[str] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            places.add(process.cwd())
        with suppress(psutil.Error, OSError):
            places.update(file.path for file in process.open_files())
    return [Path(place) for place in sorted(places - {""})]


def _maker(name: str) -> int | None:
    if found := _SCRATCH.fullmatch(name):
        return int(found["pid"]) if found["host"] == socket.gethostname() else None
    found = _PART.fullmatch(name)
    return int(found["pid"]) if found else None
