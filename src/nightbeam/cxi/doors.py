"""What the loop asks of the world, in one place, so that a test can be the world."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from nightbeam.core.errors import MissingError
from nightbeam.cxi.config import QueueConfig, WriterConfig, output_plan
from nightbeam.cxi.execution import Remote
from nightbeam.cxi.masks import check_mask, read_mask
from nightbeam.cxi.outlet import Files
from nightbeam.cxi.writing import CxiWriter
from nightbeam.geometry.model import Geometry
from nightbeam.stream import nodes, queues, receiver, remote
from nightbeam.stream.arrays import fetch, fetch_object
from nightbeam.stream.model import BatchHeader
from nightbeam.stream.tasks import RayWorkers

__all__ = ["Cluster", "Doors", "Source", "image_ref", "the_world"]


_log = logging.getLogger(__name__)


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
    """Where messages come from; `nightbeam.stream.receiver.Receiver` over a queue is one."""

    def take(self, timeout_s: float) -> Any:
        """Return the next message, or None where none came in that time."""

    def look_once(self) -> Any:
        """Ask every shard and return the first message; None where none has any."""

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


class _Queue:
    """A queue and who takes from it."""

    def __init__(self, queue: queues.ShardedQueue, poll_s: float) -> None:
        self._receiver = receiver.Receiver(queue, poll_s=poll_s)
        self.take, self.look_once = self._receiver.take, self._receiver.look_once
        self.stop_asking, self.drain, self.size = self._receiver.stop_asking, self._receiver.drain, self._receiver.size


def the_world() -> Doors:
    """Return Ray and the disk."""
    return Doors(
        connect=_connect,
        source=_source,
        fetch=fetch,
        fetch_images=_fetch_images,
        remote=RayWorkers,
        files=_files,
        disconnect=remote.disconnect,
    )


def image_ref(message: Any) -> Any:
    """Return the image that the header speaks of: a reference, an array or None."""
    calibrated = message.metadata.get("calibrated_image_ref")
    return calibrated if calibrated is not None else getattr(message, "original_image_ref", None)


def _connect(config: WriterConfig) -> Cluster:
    remote.connect(config.ray.address, config.ray.namespace)
    number = nodes.count_nodes()
    return Cluster(number, remote.object_store_bytes() // number or None)


def _source(config: WriterConfig) -> Source:
    """Open the queue; it is made where there is none of that name anywhere, so that either side may start first."""
    wanted, namespace = config.queue, config.ray.namespace
    places = {one.namespace for one in queues.list_queues() if one.name == wanted.name}
    if wanted.num_shards == "auto" or (places and namespace not in places):
        queue = _existing(wanted, namespace, elsewhere=bool(places - {namespace}))
    else:
        queue = queues.ShardedQueue.create(wanted.name, wanted.num_shards, wanted.maxsize_per_shard)
    return _Queue(queue, wanted.poll_timeout)


def _existing(wanted: QueueConfig, namespace: str, *, elsewhere: bool) -> queues.ShardedQueue:
    """Open a queue that must be there, and say how to begin before it is."""
    try:
        return queues.ShardedQueue.open(wanted.name, wanted.num_shards)
    except MissingError as error:
        if elsewhere:
            first = (
                f"; if {namespace!r} is right, start the pipeline first, or remove the other queue with "
                f"`nightbeam stream drop {wanted.name} --namespace ...` if nobody uses it"
            )
        else:
            first = "; or give a number as `queue.num_shards`, then it is made"
        raise MissingError(error.what, fix=f"{error.fix}{first}") from error


def _fetch_images(message: Any, header: BatchHeader) -> Any:
    return fetch_object(image_ref(message), what=f"the image of batch {header.batch_id!r}")


def _files(config: WriterConfig, geometry: Geometry | None) -> Files:
    origins, mask = config.geometry.panel_map, None
    if config.geometry.mask_file is not None:
        mask = read_mask(config.geometry.mask_file)
        check_mask(mask, geometry=geometry, origins=origins)
    if "cheetah" in config.output.compat and geometry is None and config.instrument.pixel_size_m is None:
        _log.warning(
            "nothing says how large a pixel is: files have no x_pixel_size, without which cxiview does not open them; "
            "set `instrument.pixel_size_m` or `geometry.geom_file`"
        )
    return CxiWriter(output_plan(config), geometry=geometry, origins=origins, mask=mask)
