"""What a writer says of itself: its counters, whether it works, the status file, a line of progress."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nightbeam import __version__
from nightbeam.core.errors import NightbeamError, StorageError
from nightbeam.core.times import iso_z, utc_now
from nightbeam.cxi.books import Books
from nightbeam.cxi.config import WriterConfig
from nightbeam.cxi.counts import OF_FILES
from nightbeam.cxi.delivery import Delivery
from nightbeam.cxi.execution import TaskPool
from nightbeam.cxi.health import Health, write_status
from nightbeam.cxi.ledger import status_path
from nightbeam.cxi.outlet import Outlet
from nightbeam.cxi.reception import Reception

__all__ = ["Parts", "Report", "Standing"]

_log = logging.getLogger(__name__)

_STATUS_EVERY_S: Final = 1.0
_STUCK_AFTER_S: Final = 60.0


@dataclass(slots=True)
class Standing:
    """How far a writer is; the loop changes it, and any thread may read it.

    Attributes
    ----------
    state
        ``starting``, ``running``, ``stopping`` or ``ended``.
    started
        When it began to take, ISO 8601; ``""`` before.
    turned_s
        When the loop last turned, on the writer's clock.
    ended_by
        Which end condition was met, in words; ``""`` for none.
    port
        Where its health is served, if anywhere.
    """

    state: str = "starting"
    started: str = ""
    turned_s: float = 0.0
    ended_by: str = ""
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a writer that has connected is made of, as far as it is asked how it does."""

    outlet: Outlet
    pool: TaskPool
    delivery: Delivery
    reception: Reception


class Report:
    """Say how a writer does.

    Parameters
    ----------
    config
        What is wanted.
    books, standing
        What is said.
    ask_queue
        Asks the queue how much is in it, whenever the status is written.
    clock
        Seconds, of a clock that does not jump.
    config_path
        Where the configuration was read, for the status.
    on_status
        Is told the counters whenever the status is written.

    Attributes
    ----------
    queue_size
        What the queue last said; None where it did not.
    file_written
        Set, the status is written without delay.
    """

    def __init__(
        self,
        config: WriterConfig,
        books: Books,
        standing: Standing,
        *,
        ask_queue: Callable[[], int],
        clock: Callable[[], float],
        config_path: Path | None = None,
        on_status: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._config, self._config_path = config, config_path
        self._books, self._standing = books, standing
        self._ask_queue, self._clock, self._on_status = ask_queue, clock, on_status
        self._parts: Parts | None = None
        self.queue_size: int | None = None
        self.file_written = threading.Event()
        self._written_s = 0.0
        self._problem = ""

    def attend(self, parts: Parts) -> None:
        """Look at these from now on."""
        self._parts = parts

    def health(self) -> Health:
        """Return whether the loop turns and the disk works; from any thread."""
        problems, standing = [], self._standing
        silent = self._clock() - standing.turned_s
        if standing.state == "running" and silent > _STUCK_AFTER_S:
            problems.append(f"the loop has not turned for {silent:.0f} s")
        if standing.state not in {"running", "stopping"}:
            problems.append(f"the writer is {standing.state}")
        outlet = None if self._parts is None else self._parts.outlet
        if outlet is not None and outlet.blocked is not None:
            problems.append(f"no file can be written: {outlet.blocked.what}")
        if outlet is not None and outlet.failed is not None:
            problems.append(f"the thread that writes files has ended: {outlet.failed!r}")
        if self._problem:
            problems.append(self._problem)
        return Health(tuple(problems))

    def counters(self) -> dict[str, Any]:
        """Return all totals; from any thread."""
        books, parts = self._books, self._parts
        with books.counts.lock:
            found = books.counts.to_json()
            missing = books.ledger.never_received()
        if self._standing.state == "starting" or parts is None:
            return found
        said = parts.outlet.said
        recent, overall = parts.outlet.rate.now()
        looked_at = found["total_events_written"] + found["total_events_filtered"] + found["buffer_size"]
        names = ("chunks_written", "peaks_written", "bytes_written", "last_file")
        books.say_odd_pixels(said)
        return found | {name: said.get(name) for name in names} | {name: said.get(name, 0) for name in OF_FILES} | {
            "queue_size": self.queue_size,
            "pending_tasks": parts.pool.open,
            "pending_bytes": parts.delivery.pending_bytes,
            "workers": parts.pool.limit,
            "events_per_s": round(recent, 3),
            "events_per_s_total": round(overall, 3),
            "hit_rate": 1.0 - found["total_events_filtered"] / looked_at if looked_at else None,
            "events_missing": missing,
            "started": self._standing.started,
            "last_event": parts.reception.last_event or None,
        }  # fmt: skip

    def progress(self) -> str:
        """Return the counters in one line."""
        c = self.counters()
        gone = sum(c["events_rejected"].values()), sum(c["events_lost"].values())
        rate = c.get("events_per_s", 0.0)
        return (
            f"{c['batches_received']} batches, {c['events_received']} events: {c['total_events_written']} written, "
            f"{c['total_events_filtered']} filtered, {gone[0]} rejected, {gone[1]} lost, {c['buffer_size']} buffered, "
            f"{c['events_in_flight']} in flight; {rate:.1f} events/s"
        )

    # -- the status file ----------------------------------------------------------------------------------------

    def write(self, *, force: bool = False) -> None:
        """Write the status, once a second or when a file has been written; a disk that does not take it is a problem.

        Parameters
        ----------
        force
            Write it now.
        """
        now = self._clock()
        if not force and now - self._written_s < _STATUS_EVERY_S and not self.file_written.is_set():
            return
        self._written_s = now
        self.file_written.clear()
        self._look_at_queue()
        counters, output = self.counters(), self._config.output
        try:
            write_status(status_path(output.output_dir, output.file_prefix), self._status(counters))
            self._problem = ""
        except (StorageError, OSError) as error:
            if not self._problem:
                _log.error("the status cannot be written: %s", error)
            self._problem = f"the status cannot be written: {error}"
        if self._on_status is not None:
            self._on_status(counters)

    def _look_at_queue(self) -> None:
        try:
            self.queue_size = self._ask_queue()
        except NightbeamError as error:
            self.queue_size = None
            _log.debug("the queue does not say its size: %s", error)

    def _status(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        health, books, config = self.health(), self._books, self._config
        with books.counts.lock:
            producers, forgotten = books.ledger.to_json(), dict(books.ledger.forgotten)
            runs = books.counts.runs.to_json()
        return {
            "state": self._standing.state,
            "ended_by": self._standing.ended_by or None,
            "problems": [one for one in health.problems if not one.startswith("the writer is ")],
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "version": __version__,
            "updated": iso_z(utc_now()),
            "config": None if self._config_path is None else str(self._config_path),
            "config_sha256": config.sha256,
            "queue": {"name": config.queue.name, "namespace": config.ray.namespace},
            "health_port": self._standing.port,
            "counters": dict(counters),
            "runs": runs,
            "name_template": config.output.name_template,
            "producers": producers,
            "producers_forgotten": forgotten,
        }
