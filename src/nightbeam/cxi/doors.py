"""What the loop asks of the world, in one place, so that a test can be the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from nightbeam.cxi.config import WriterConfig, output_plan
from nightbeam.cxi.execution import Remote
from nightbeam.cxi.outlet import Files

__all__ = ["Cluster", "Doors", "Source", "the_world"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to work with.

    Attributes
    ----------
    nodes
        Machines.
    object_store_bytes
        Of this machine's object store; None where nobody says.
    """

    nodes: int = 1
    object_store_bytes: int | None = None


class Source(Protocol):
    """Where messages come from; `nightbeam.stream.remote.Receiver` over a queue is one."""

    def take(self, timeout_s: float) -> Any:
        """Return the next message, or None where none came in that time."""

    def stop_asking(self) -> None:
        """Ask for nothing more."""

    def drain(self) -> list[Any]:
        """Return what had been asked for before and comes now."""

    def size(self) -> int:
        """Return how many messages are in the queue."""


@dataclass(frozen=True)
class Doors:
    """The world.

    Attributes
    ----------
    connect
        Open the cluster of the configuration and return what there is.
    source
        Open its queue.
    fetch
        Bring the arrays of a message: an object with ``predictions`` and ``images``.
    fetch_images
        Bring the images alone.
    remote
        Return Ray's workers, at most so many tasks.
    files
        Return what writes files.
    disconnect
        Leave the cluster.
    """

    connect: Callable[[WriterConfig], Cluster]
    source: Callable[[WriterConfig], Source]
    fetch: Callable[[Any, Any], Any]
    fetch_images: Callable[[Any, Any], Any]
    remote: Callable[[int], Remote]
    files: Callable[[WriterConfig, Any], Files]
    disconnect: Callable[[], None] = lambda: None
