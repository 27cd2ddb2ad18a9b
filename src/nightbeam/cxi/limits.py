"""How much is done at a time, and where."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from nightbeam.cxi.config import ProcessingConfig
from nightbeam.cxi.doors import Cluster
from nightbeam.cxi.execution import Remote, TaskPool

__all__ = ["Limits", "find_limits", "make_pool"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is done at a time, and where.

    Attributes
    ----------
    cores
        Of this machine, that this process may use.
    adaptive
        Whether the number of workers follows the load.
    num_pieces
        Into how many mini-batches a batch is cut, at least.
    far
        Whether tasks of Ray do the work, where they can.
    most_bytes
        Bytes of batches that were taken and are not with the files, at most.
    """

    cores: int
    adaptive: bool
    num_pieces: int
    far: bool
    most_bytes: int


def find_limits(asked: ProcessingConfig, cluster: Cluster) -> Limits:
    """Return the limits that are asked for, or that this machine and its cluster bear."""
    cores = len(os.sched_getaffinity(0))
    store = cluster.object_store_bytes or psutil.virtual_memory().available
    return Limits(
        cores=cores,
        adaptive=asked.num_cpu_workers == "auto",
        num_pieces=cores if asked.num_cpu_workers == "auto" else asked.num_cpu_workers,
        far=asked.mode == "tasks" or (asked.mode == "auto" and cluster.nodes > 1),
        most_bytes=asked.max_pending_bytes or store // 4,
    )


def make_pool(asked: ProcessingConfig, limits: Limits, remote: Callable[[int], Remote]) -> TaskPool:
    """Return threads, and where they are far Ray's workers, that ``remote`` returns for at most so many tasks."""
    return TaskPool(
        min(2, limits.cores) if limits.adaptive else min(limits.num_pieces, limits.cores, asked.max_pending_tasks),
        most_threads=limits.cores,
        most_remote=asked.max_pending_tasks,
        remote=remote(asked.max_pending_tasks) if limits.far else None,
    )
