"""A world for the CXI writer in which nothing is real: queue, arrays, tasks, files and time, all in this process.

What goes wrong is asked for: arrays that are gone, a disk that is full, tasks that fail.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import StorageError
from nightbeam.cxi.config import WriterConfig, writer_config
from nightbeam.cxi.doors import Cluster, Doors, image_ref
from nightbeam.cxi.model import Event, ProcessedBatch
from nightbeam.stream.arrays import Arrays
from nightbeam.stream.model import END_OF_STREAM, LostError, PipelineOutput, PreprocessingMetadata

__all__ = ["Clock", "FilesInMemory", "QueueInMemory", "Ref", "TasksInMemory", "World", "small_config"]

#: Panels of an event, and their size, of the messages that `World` makes.
PANELS, HEIGHT, WIDTH = 2, 8, 8


class Clock:
    """A clock that goes when it is told to.

    Attributes
    ----------
    now_s
        What it shows.
    """

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Return it."""
        return self.now_s


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for an array of `World.objects`."""

    key: int


class QueueInMemory:
    """A queue that never makes anybody wait.

    Attributes
    ----------
    messages
        What is in it.
    asked
        What an open question has already removed; `drain` brings it.
    """

    def __init__(self) -> None:
        self.messages: deque[Any] = deque()
        self.asked: deque[Any] = deque()
        self.stopped = False
        self.taken = 0

    def take(self, timeout_s: float) -> Any:  # noqa: ARG002
        """Return the next message, or None."""
        if self.messages:
            self.taken += 1
            return self.messages.popleft()
        return None

    def look_once(self) -> Any:
        """Return the next message, or None."""
        return self.take(0.0)

    def stop_asking(self) -> None:
        """Ask no more."""
        self.stopped = True

    def drain(self) -> list[Any]:
        """Return what had been asked for."""
        found = list(self.asked)
        self.asked.clear()
        return found

    def size(self) -> int:
        """Return how many are in it."""
        return len(self.messages)


class FilesInMemory:
    """What keeps its files in memory: lists of events, ``buffer_size`` each.

    Attributes
    ----------
    full
        Whether the disk is; events are then kept and `StorageError` is raised, as the real writer does.
    error
        Raised by the next `submit`, which takes nothing.
    written
        The files: for each a list of events.
    gate
        While it is not set, `submit` waits.
    """

    def __init__(self, buffer_size: int = 4) -> None:
        self.buffer_size, self.full, self.error = buffer_size, False, None
        self.files: list[Path] = []
        self.written: list[list[Event]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._buffer: list[Event] = []

    error: Exception | None

    def submit(self, batch: ProcessedBatch) -> None:
        """Buffer, and write what is full."""
        self.gate.wait(30)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self._buffer += batch.events
        self._write(self.buffer_size)

    def tick(self, now_s: float) -> None:  # noqa: ARG002
        """Write what could not be written."""
        self._write(self.buffer_size)

    def flush_final(self) -> dict[str, Any]:
        """Write what is left."""
        self._write(1)
        return self.get_statistics()

    def get_statistics(self) -> dict[str, Any]:
        """Return the totals."""
        return {
            "total_events_written": sum(map(len, self.written)),
            "buffer_size": len(self._buffer),
            "chunks_written": len(self.written),
            "peaks_written": sum(len(event.peaks) for file in self.written for event in file),
            "bytes_written": 0,
            "last_file": str(self.files[-1]) if self.files else None,
        }

    def events(self) -> list[tuple[str, int]]:
        """Return batch and index of every event that was written, in order."""
        return [(event.batch.batch_id, event.index) for file in self.written for event in file]

    def _write(self, least: int) -> None:
        while len(self._buffer) >= least:
            if self.full:
                raise StorageError("no space left for a file", fix="free some space, then try again")
            self.written.append(self._buffer[: self.buffer_size])
            del self._buffer[: self.buffer_size]
            self.files.append(Path(f"{len(self.written)}.cxi"))


class TasksInMemory:
    """Ray's workers without Ray: a task is done when it is asked for, the last one first.

    Attributes
    ----------
    most
        The largest number that was open.
    """

    def __init__(self, objects: dict[int, Any], most_tasks: int) -> None:
        self._objects, self._most_tasks = objects, most_tasks
        self._open: dict[int, Callable[[], Any]] = {}
        self._count = self.most = 0

    def submit(self, function: Callable[..., Any], refs: Sequence[Any], *args: Any) -> int:
        """Note what is to be done."""
        assert len(self._open) < self._most_tasks
        self._count += 1
        self._open[self._count] = lambda: function(*(_value(self._objects, ref) for ref in refs), *args)
        self.most = max(self.most, len(self._open))
        return self._count

    def finished(self, timeout_s: float) -> list[tuple[int, Any]]:  # noqa: ARG002
        """Do the last one."""
        if not self._open:
            return []
        handle = max(self._open)
        try:
            return [(handle, self._open.pop(handle)())]
        except Exception as error:  # as Ray does: the error is the result
            return [(handle, error)]


def _value(objects: dict[int, Any], ref: Any) -> Any:
    if not isinstance(ref, Ref):
        return ref
    if ref.key not in objects:
        raise LostError(f"object {ref.key} is gone")
    return objects[ref.key]


@dataclass
class World:
    """All of it.

    Attributes
    ----------
    queue, files, clock
        Of the writer.
    objects
        The object store: take one out and it is lost.
    nodes, store_bytes
        Of the cluster.
    before_fetch
        Called with each message before its arrays are fetched, in a worker's thread.
    """

    queue: QueueInMemory = field(default_factory=QueueInMemory)
    files: FilesInMemory = field(default_factory=FilesInMemory)
    clock: Clock = field(default_factory=Clock)
    objects: dict[int, Any] = field(default_factory=dict)
    nodes: int = 1
    store_bytes: int = 1 << 30
    before_fetch: Callable[[Any], None] = lambda _: None
    tasks: TasksInMemory | None = None

    def doors(self) -> Doors:
        """Return the way into it."""
        return Doors(
            connect=lambda _: Cluster(self.nodes, self.store_bytes),
            source=lambda _: self.queue,
            fetch=self._fetch,
            fetch_images=lambda message, _: _value(self.objects, image_ref(message)),
            remote=self._remote,
            files=lambda config, _: self._sized(config),
        )

    def put(self, value: Any) -> Ref:
        """Put an array into the object store."""
        key = max(self.objects, default=-1) + 1
        self.objects[key] = value
        return Ref(key)

    def message(self, number: int, *, peaks: Sequence[int] = (3, 3, 3, 3), producer: str = "p",
                **metadata: Any) -> PipelineOutput:  # fmt: skip
        """Return a batch, whose events have so many peaks each, by reference.

        Parameters
        ----------
        number
            Its sequence number; it is called ``PRODUCER_NUMBER``.
        peaks
            Of each event, at most 16.
        producer
            Who made it.
        metadata
            To add, or to take away where None.
        """
        rows = len(peaks) * PANELS
        about = {"producer_id": producer, "sequence": number, "event_index": number * len(peaks)} | metadata
        return PipelineOutput(
            predictions_ref=self.put(logits(peaks)),
            original_image_ref=self.put(np.ones((rows, 1, HEIGHT, WIDTH), np.float32)),
            metadata={key: value for key, value in about.items() if value is not None},
            batch_id=f"{producer}_{number}",
            preprocessing_metadata=PreprocessingMetadata((len(peaks), PANELS, HEIGHT, WIDTH), (rows, 1, HEIGHT, WIDTH)),
        )

    def send(self, number: int, **kwargs: Any) -> PipelineOutput:
        """Put such a batch on the queue."""
        message = self.message(number, **kwargs)
        self.queue.messages.append(message)
        return message

    def end(self, producer: str = "p", batches: int | None = None) -> None:
        """Put an end marker on the queue."""
        metadata: dict[str, Any] = {"producer_id": producer, END_OF_STREAM: True}
        if batches is not None:
            metadata["sequence"] = batches
        self.queue.messages.append(PipelineOutput(metadata=metadata))

    def _fetch(self, message: Any, _header: Any) -> Arrays:
        self.before_fetch(message)
        predictions = message.predictions if message.predictions is not None else message.predictions_ref
        return Arrays(_value(self.objects, predictions), _value(self.objects, image_ref(message)))

    def _remote(self, most: int) -> TasksInMemory:
        self.tasks = TasksInMemory(self.objects, most)
        return self.tasks

    def _sized(self, config: WriterConfig) -> FilesInMemory:
        self.files.buffer_size = config.output.buffer_size
        return self.files


def logits(peaks: Sequence[int]) -> NDArray[np.float32]:
    """Return logits (events * `PANELS`, 2, `HEIGHT`, `WIDTH`) with single pixels, four pixels apart, as peaks."""
    found = np.zeros((len(peaks) * PANELS, 2, HEIGHT, WIDTH), np.float32)
    places = [(panel, y, x) for panel in range(PANELS) for y in range(1, HEIGHT, 3) for x in range(1, WIDTH, 3)]
    for event, count in enumerate(peaks):
        for panel, y, x in places[:count]:
            found[event * PANELS + panel, 1, y, x] = 1.0
    return found


def small_config(output_dir: Path, **sections: dict[str, Any]) -> WriterConfig:
    """Return a configuration for such messages; keywords add to its sections."""
    tree: dict[str, dict[str, Any]] = {
        "ray": {"namespace": "test"},
        "queue": {"name": "q", "num_shards": 1},
        "processing": {"num_cpu_workers": 2},
        "peak_finding": {"min_num_peak": 1},
        "output": {"output_dir": str(output_dir), "buffer_size": 4},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return writer_config(tree)
