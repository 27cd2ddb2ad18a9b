"""The machine in numbers, and what Prometheus is told."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from nightbeam.contimg.pressure import Level
from nightbeam.monitor.compute import are_blind
from nightbeam.monitor.fresh import Fresh
from nightbeam.monitor.model import Standing, SystemMetrics

if TYPE_CHECKING:
    from nightbeam.monitor.read import Reader

__all__ = ["CONTENT_TYPE", "Instruments", "Machine"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Moments that are remembered, and between two of them.
_REMEMBERED: Final = 200
_EVERY_S: Final = 15.0
_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)


class Machine:
    """Looks at processor, memory, disk and load, and remembers the last moments.

    Parameters
    ----------
    directory
        Whose disk is looked at.
    clock
        Epoch seconds, for tests.
    """

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._directory, self._clock = directory, clock
        self._ring: deque[SystemMetrics] = deque(maxlen=_REMEMBERED)
        self._last = Fresh(self._look, keep_s=1.0)
        self._times = psutil.cpu_times()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look every now and then from now on, so that there is a history where nobody asks."""
        self._thread = threading.Thread(target=self._loop, name="monitor-machine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def now(self) -> SystemMetrics:
        """Return the machine at most a second ago."""
        return self._last.get()

    def history(self, limit: int) -> list[SystemMetrics]:
        """Return the last moments, oldest first."""
        return list(self._ring)[-limit:]

    def _loop(self) -> None:
        while not self._stop.wait(_EVERY_S):
            with suppress(psutil.Error, OSError):
                self._last.get()

    def _look(self) -> SystemMetrics:
        found: dict[str, Any] = {}
        with suppress(psutil.Error, OSError):
            found["cpu_percent"] = self._busy_percent()
        with suppress(psutil.Error, OSError):
            memory = psutil.virtual_memory()
            found |= {"mem_percent": memory.percent, "mem_total": memory.total, "mem_used": memory.used}
        with suppress(psutil.Error, OSError):
            disk = psutil.disk_usage(str(self._existing()))
            found |= {"disk_total": disk.total, "disk_used": disk.used}
        with suppress(OSError):
            found |= dict(zip(("load_1", "load_5", "load_15"), os.getloadavg(), strict=True))
        moment = SystemMetrics(ts=datetime.fromtimestamp(self._clock(), UTC), **found)
        self._ring.append(moment)
        return moment

    def _busy_percent(self) -> float | None:
        """Return what part of the time since the last look the processors were at work; None where no time has passed.

        psutil keeps the last look of each thread by itself, and any thread may be the one that looks.
        """
        before, self._times = self._times, psutil.cpu_times()
        spent = [max(0.0, now - then) for now, then in zip(self._times, before, strict=True)]
        by_name = dict(zip(self._times._fields, spent, strict=True))
        # A guest's time is counted among its host's, too.
        total = sum(spent) - by_name.get("guest", 0.0) - by_name.get("guest_nice", 0.0)
        idle = by_name["idle"] + by_name.get("iowait", 0.0)
        return round(100.0 * max(0.0, total - idle) / total, 1) if total > 0 else None

    def _existing(self) -> Path:
        return next((path for path in (self._directory, *self._directory.parents) if path.exists()), Path("/"))


class Instruments:
    """What Prometheus reads, of one application."""

    def __init__(self, reader: Reader, machine: Machine) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._registry = CollectorRegistry(auto_describe=False)
        self._seconds = Histogram(
            "nightbeam_request_seconds",
            "Time to answer.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._answers = Counter(
            "nightbeam_requests", "Answers, by status.", ["method", "route", "status"], registry=self._registry
        )
        self._state = _State(reader, machine)
        self._registry.register(self._state)

    def watch(self, reader: Reader, machine: Machine) -> None:
        """Tell of another site from now on."""
        self._state.reader, self._state.machine = reader, machine

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = method if method in ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE") else "other"
        self._seconds.labels(known, route).observe(seconds)
        self._answers.labels(known, route, str(status)).inc()

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)


class _State:
    """The site as it is when somebody asks."""

    def __init__(self, reader: Reader, machine: Machine) -> None:
        self.reader, self.machine = reader, machine

    def collect(self) -> Iterable[Any]:
        """Yield every number."""
        from prometheus_client.core import GaugeMetricFamily

        tonight = self.reader.tonight()
        groups = GaugeMetricFamily("nightbeam_groups", "Groups of subbands, by state.", labels=["state"])
        for state in ("collecting", "pending", "in_progress", "completed", "failed"):
            groups.add_metric([state], getattr(tonight.queue, state))
        if not are_blind(tonight.problems):  # zero would be a number like any other
            yield groups
            backlog = self.reader.backlog()
            yield GaugeMetricFamily("nightbeam_backlog_groups", "Groups that wait.", value=tonight.queue.pending)
            yield GaugeMetricFamily("nightbeam_backlog_minutes", "Of sky that could be imaged.", value=backlog.minutes)
            level = GaugeMetricFamily("nightbeam_pressure_level", "1 for what gives way.", labels=["level"])
            for one in Level:
                level.add_metric([one.value], float(backlog.level == one))
            yield level
            owed = GaugeMetricFamily("nightbeam_owed_groups", "Completed groups that are owed it.", labels=["owed"])
            owed.add_metric(["image"], backlog.owed_images)
            owed.add_metric(["figures"], backlog.owed_figures)
            yield owed
        known = GaugeMetricFamily(
            "nightbeam_system_standing", "1 for how a system does.", labels=["system", "standing"]
        )
        ages = GaugeMetricFamily(
            "nightbeam_sign_of_life_age_seconds", "Since its last sign of life.", labels=["system"]
        )
        for system in tonight.systems:
            for word in Standing:
                known.add_metric([system.key, word.value], float(system.standing is word))
            if system.since is not None:
                ages.add_metric([system.key], (tonight.now - system.since).total_seconds())
        yield known
        yield ages
        oldest = GaugeMetricFamily(
            "nightbeam_oldest_group_age_seconds", "Of the oldest group in a state.", labels=["state"]
        )
        for state, at in self.reader.oldest().items():
            oldest.add_metric([state], (tonight.now - at).total_seconds())
        yield oldest
        health = self.reader.health()
        readable = GaugeMetricFamily("nightbeam_database_readable", "1 where it can be read.", labels=["database"])
        for name, said in health.databases.items():
            readable.add_metric([name], float(said == "ok"))
        yield readable
        moment = self.machine.now()
        for name in ("cpu_percent", "mem_percent", "mem_used", "disk_used", "disk_total", "load_1"):
            value = getattr(moment, name)
            if value is not None:
                yield GaugeMetricFamily(f"nightbeam_machine_{name}", f"{name} of the machine.", value=value)
