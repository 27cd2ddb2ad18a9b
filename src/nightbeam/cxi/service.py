"""The writer for months: one session after another, and patience where something is missing."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from nightbeam.core.errors import MissingError, UnavailableError
from nightbeam.cxi.config import WriterConfig
from nightbeam.cxi.counts import OF_FILES
from nightbeam.cxi.health import Health

__all__ = ["Session", "StreamWriter"]

_log = logging.getLogger(__name__)

_WAIT_S: Final = 2.0
_LONGEST_WAIT_S: Final = 30.0
#: Counters that are added up over the sessions; the others are those of the session that runs.
_TOTALS: Final = (
    "batches_received",
    "events_received",
    "total_events_written",
    "total_events_filtered",
    "events_truncated",
    "chunks_written",
    "peaks_written",
    "bytes_written",
    "retried_tasks",
    "nan_pixels",
    "nan_rows",
    "balance",
    *OF_FILES,
)
_TOTALS_BY_REASON: Final = ("events_rejected", "batches_rejected", "events_lost", "batches_lost", "warnings")


class Session(Protocol):
    """What writes until an end condition holds; `nightbeam.cxi.worker.CxiService` is one."""

    def loop(self, stop: threading.Event) -> Any:
        """Run; then write everything that was taken."""

    def counters(self) -> Mapping[str, Any]:
        """Return what was counted; ``started`` is among it as soon as something can be."""

    def health(self) -> Health:
        """Return what is wrong."""


class StreamWriter:
    """Run the writer again and again.

    A session ends when its producers say that they have no more, and then everything is in files. Where the cluster or
    the queue is not there, or the cluster is gone, the next session is begun when they are.

    Parameters
    ----------
    config
        What is wanted.
    until_end
        Whether the end of the first session is the end.
    begin
        Makes a session.
    leave
        Leaves the cluster. While a queue is waited for the connection is kept: each one is a job of the cluster, which
        remembers them.
    wait_s
        Between two looks for what is missing; twice as long each time, up to 30 s.

    Attributes
    ----------
    problem
        What is waited for, in words; ``""`` for nothing.
    """

    def __init__(
        self,
        config: WriterConfig,
        *,
        until_end: bool = False,
        begin: Callable[[WriterConfig], Session] | None = None,
        leave: Callable[[], None] | None = None,
        wait_s: float = _WAIT_S,
    ) -> None:
        self.config, self.problem = config, ""
        self._until_end, self._begin, self._wait_s = until_end, begin or _writer, wait_s
        self._leave = leave or (_leave if begin is None else lambda: None)
        self._pause_s = wait_s
        self._opened = 0
        self._before: dict[str, Any] = {}
        self._session: Session | None = None
        self._runs = False
        self._lock = threading.Lock()

    def loop(self, stop: threading.Event) -> dict[str, Any]:
        """Run until ``stop`` is set, or to the end of the first session; returns the counters.

        Raises
        ------
        NightbeamError
            As `nightbeam.cxi.worker.CxiService.loop`, but not where the cluster or the queue is not there or has gone:
            these are waited for.
        """
        try:
            while not stop.is_set():
                ended = self._run(stop)
                if ended and self._until_end:
                    break
                self._rest(stop)
        finally:
            self._leave()
        return self.counters()

    @property
    def sessions(self) -> int:
        """Return how many have begun to take."""
        with self._lock:
            return self._opened + self._is_open()

    def counters(self) -> dict[str, Any]:
        """Return the counters of all sessions; rates, queue and memory are those of the one that runs.

        ``problems`` are what is waited for, or what the session says is wrong.
        """
        with self._lock:
            now = {} if self._session is None else dict(self._session.counters())
            if self._session is not None and self._runs and "started" in now:
                problems = list(self._session.health().problems)
            else:
                problems = [self.problem] if self.problem else []
            return {**_sum(self._before, now), "sessions": self._opened + self._is_open(), "problems": problems}

    def _run(self, stop: threading.Event) -> bool:
        """Run one session; return whether it came to its end."""
        session = self._begin(self.config)
        with self._lock:
            if self._session is not None:
                self._before = _sum(self._before, dict(self._session.counters()))
            self._opened += self._is_open()
            self._session = session
        self._runs = True
        try:
            session.loop(stop)
        except MissingError as error:
            self._wait_for(str(error))
            return False
        except UnavailableError as error:
            self._wait_for(str(error))
            self._leave()
            return False
        finally:
            self._runs = False
        self.problem = ""
        self._leave()
        return True

    def _rest(self, stop: threading.Event) -> None:
        """Wait, the longer the more often nothing could begin; not at all after a session that had work."""
        if self._is_open():
            self._pause_s = self._wait_s
            if not self._received():
                stop.wait(self._wait_s)
            return
        stop.wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, max(_LONGEST_WAIT_S, self._wait_s))

    def _is_open(self) -> bool:
        """Return whether the session has begun to take, or had."""
        return self._session is not None and "started" in self._session.counters()

    def _wait_for(self, problem: str) -> None:
        if problem != self.problem:
            _log.warning("waiting: %s", problem)
        self.problem = problem

    def _received(self) -> bool:
        assert self._session is not None
        return bool(self._session.counters().get("batches_received"))


def _sum(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    totals = {name: (before.get(name) or 0) + (now.get(name) or 0) for name in _TOTALS if name in before or name in now}
    by_reason = {
        name: dict(Counter(before.get(name, {})) + Counter(now.get(name, {})))
        for name in _TOTALS_BY_REASON
        if name in before or name in now
    }
    # What a session cannot say yet, such as its last file, is what the one before it said.
    return {**before, **{name: value for name, value in now.items() if value is not None}, **totals, **by_reason}


def _writer(config: WriterConfig) -> Session:
    from nightbeam.cxi.doors import the_world
    from nightbeam.cxi.worker import CxiService  # brings the kernels

    return CxiService(config, doors=replace(the_world(), disconnect=lambda: None))


def _leave() -> None:
    from nightbeam.stream import remote

    remote.disconnect()
