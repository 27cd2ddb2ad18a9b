"""The platform's own Ray cluster: one head on this machine, for the batches of networks on their way to files."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Final

import psutil

from nightbeam.core.errors import BusyError
from nightbeam.core.files import part_path, remove, storage_errors
from nightbeam.core.settings import Settings
from nightbeam.platform.model import Layout, Program, Report
from nightbeam.platform.processes import free_port, is_free
from nightbeam.stream import cluster

__all__ = [
    "NAME",
    "POOL",
    "choose_port",
    "is_wanted",
    "make_token",
    "port_of",
    "ray_processes",
    "ray_program",
    "trim_sessions",
]

logger = logging.getLogger(__name__)

#: Of the part.
NAME: Final = "ray"
#: The pool whose runs need the cluster.
POOL: Final = "cxi-writer"
#: In the environment of the head and of all that it starts: the state directory of their platform.
MARK: Final = "RAY_HEAD_OF_PLATFORM"
_FIRST_PORT: Final = 6379
#: What a person's shell may hold for another cluster or another platform.
_FOREIGN: Final = ("RAY_", "NIGHTBEAM_", "PREFECT_")
#: Each start of a head leaves a directory of logs.
_KEPT_SESSIONS: Final = 3


def is_wanted(settings: Settings, before: Report | None) -> bool:
    """Say whether the platform of these settings has a cluster of its own.

    The file for flows names its address. Where it serves as the settings of the next start, the cluster is ours still.
    """
    stream, ours = settings.stream, before.ray if before else ""
    if POOL not in settings.platform.pools or stream.address not in (None, ours):
        return False
    if importlib.util.find_spec("ray") is None:
        logger.warning("Ray is not installed; the pool %s is served without it", POOL)
        return False
    return True


def choose_port(layout: Layout, settings: Settings, before: Report | None) -> int:
    """Return the port of the settings, or the one that the last head had, or the first that is free.

    Raises
    ------
    BusyError
        If the port of the settings is taken, or none is free.
    """
    asked = settings.stream.port
    remembered = port_of(before)
    # The head of a dead supervisor may hold it, and is adopted.
    held_by_us = remembered is not None and bool(ray_processes(layout))
    if asked is not None:
        if not is_free(cluster.LOOPBACK, asked) and not (held_by_us and asked == remembered):
            raise BusyError(
                f"port {asked} on {cluster.LOOPBACK} is taken", fix="stop what listens there, or set stream.port"
            )
        return asked
    if remembered is not None and (held_by_us or is_free(cluster.LOOPBACK, remembered)):
        return remembered
    return free_port(cluster.LOOPBACK, _FIRST_PORT)


def port_of(before: Report | None) -> int | None:
    """Return the port of the cluster that a report tells of."""
    return int(before.ray.rpartition(":")[2]) if before and before.ray else None


def make_token(layout: Layout) -> None:
    """Write the word without which the cluster does nothing for anybody; one that is there stays.

    Whoever may use a cluster may run programs as its owner, and every user of the machine can reach a loopback port.
    """
    path = layout.ray_token
    if path.exists():
        return
    part = part_path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_hex(32))
        part.replace(path)


def ray_program(layout: Layout, port: int, *, settings: Settings, environ: Mapping[str, str]) -> Program:
    """Return how the head is started. Of our own settings nothing is in its environment."""
    stream = settings.stream
    argv = cluster.head_argv(
        port=port,
        num_cpus=stream.num_cpus or len(os.sched_getaffinity(0)),
        object_store_bytes=int(stream.object_store_gb * 1e9),
        temp_dir=cluster.short_temp_dir(layout.state_dir),
    )
    env = {name: value for name, value in environ.items() if not name.startswith(_FOREIGN)}
    env |= cluster.head_environment(token_file=layout.ray_token)
    env |= {MARK: str(layout.state_dir), "PREFECT_HOME": str(layout.prefect_home)}
    # A script's process shows its interpreter first, and a head that goes on is known by its command line.
    return Program(NAME, (sys.executable, *argv), env, layout.log_of(NAME))


def ray_processes(layout: Layout) -> list[psutil.Process]:
    """Return the head of a platform and everything that it started, whoever their parents are by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(layout.state_dir) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def trim_sessions(layout: Layout) -> None:
    """Remove the logs of all but the last heads."""
    found = sorted(cluster.short_temp_dir(layout.state_dir).glob("session_[0-9]*"))
    for session in found[:-_KEPT_SESSIONS]:
        remove(session)
