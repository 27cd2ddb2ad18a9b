"""How the platform does: its supervisor's report, and what Prefect's server says when it is asked in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Final

from nightbeam.core.errors import NightbeamError
from nightbeam.core.locks import is_held
from nightbeam.core.settings import Settings
from nightbeam.monitor.compute import instant_of_time
from nightbeam.monitor.model import PlatformState, Pool, Process, Standing, System
from nightbeam.monitor.services import first_line, held
from nightbeam.platform import Layout, PartState, Phase, PoolStatus
from nightbeam.platform.control import ask_server
from nightbeam.platform.files import read_report
from nightbeam.platform.model import Report

__all__ = ["PlatformWatch"]

_log = logging.getLogger(__name__)

#: Prefect's server is asked this often at most, for so long, and waited for so long by who wants to know.
_ASK_EVERY_S: Final = 5.0
_ASK_S: Final = 3.0
_WAIT_S: Final = 1.0
#: What it said longer ago is not what is: nobody may have looked since.
_OLD_S: Final = 15.0
#: The supervisor's report is read anew after this.
_LOOK_S: Final = 1.0


class PlatformWatch:
    """Looks at the supervisor's report whenever it is asked, and at Prefect's server in the background.

    Parameters
    ----------
    settings
        Resolved.
    now
        The present.
    ask
        Asks the server for its health and its pools; may take seconds.
    clock
        Seconds that go on, for tests.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], datetime],
        ask: Callable[..., tuple[str, tuple[PoolStatus, ...]]] = ask_server,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._now, self._ask, self._clock = settings, now, ask, clock
        self._layout = Layout(settings.state_dir)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._asked: Future[tuple[str, tuple[PoolStatus, ...]]] | None = None
        self._asked_s = self._answered_s = -float("inf")
        self._answer: tuple[str, tuple[PoolStatus, ...], datetime] | None = None
        self._seen: tuple[float, Report | None, bool, str] | None = None

    def close(self) -> None:
        """End the thread that asks."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def runs(self) -> bool:
        """Say whether there is a supervisor at work."""
        return self._look()[1]

    def page_url(self) -> str | None:
        """Return the address of Prefect's page as browsers see it; None where there is none."""
        told = self._settings.monitor.prefect_url
        return told.rstrip("/") if told else self._api_url(self._look()[0]).removesuffix("/api") or None

    def api_url(self) -> str:
        """Return the address of Prefect's API, "" where there is none."""
        return self._api_url(self._look()[0])

    def state(self) -> PlatformState:
        """Return all that there is to say."""
        report, runs, problem = self._look()
        url = self._api_url(report)
        server, pools, asked_at = self._server(url)
        phase = str(report.phase) if report is not None and runs else str(Phase.STOPPED)
        problems = [problem] if problem else []
        parts = report.parts if report is not None and runs else ()
        lost = [f"{one.name} was given up ({one.last_exit})" for one in parts if one.state is PartState.GIVEN_UP]
        about = partial(System, key="platform", title="Platform")
        since = None if report is None else self._written()
        late = sum(pool.late for pool in pools)
        ill = [one.name for one in parts if one.state is not PartState.RUNNING]
        if problem:
            word, why = Standing.UNKNOWN, problem
        elif not runs:
            word, why = Standing.OFF, "stopped"
            if report is not None and report.phase not in (Phase.STOPPED,):
                word, why = (
                    Standing.TROUBLE,
                    report.problem or "the supervisor died; `nightbeam up` takes over what it left",
                )
            elif url and server == "healthy":
                word, why = Standing.OK, "no supervisor of this state directory; the server is healthy"
        elif lost:
            word, why = Standing.TROUBLE, lost[0]
        elif report is not None and report.problem:
            word, why = Standing.TROUBLE, first_line(report.problem)
        elif server not in ("healthy", "asking"):
            word, why = Standing.TROUBLE, f"Prefect's server is {server}"
        elif phase == Phase.RUNNING and (idle := self._without_worker(pools, ill)):
            word, why = Standing.TROUBLE, f"nobody works for {', '.join(idle)}: no worker is online"
        elif ill:
            word, why = Standing.WAITING, f"{', '.join(ill)} starts again"
        elif paused := [pool.name for pool in pools if pool.paused]:
            word, why = Standing.WAITING, f"paused: {', '.join(paused)}"
        elif phase != Phase.RUNNING:
            word, why = Standing.WAITING, phase
        elif server == "asking":
            word, why = Standing.WAITING, "Prefect's server has not answered yet"
        elif late:
            word, why = Standing.WAITING, f"{late} {'run is' if late == 1 else 'runs are'} late"
        else:
            word, why = Standing.OK, f"{len(parts)} processes, {sum(pool.running for pool in pools)} runs"
        facts: dict[str, int | float | str | None] = {"processes": len(parts), "runs_late": late, "server": server}
        return PlatformState(
            system=about(standing=word, reason=why, since=since, facts=facts),
            phase=phase,
            server=server,
            api_url=url,
            page_url=self.page_url(),
            ray=report.ray if report is not None and runs else "",
            processes=[
                Process(
                    name=one.name,
                    state=str(one.state),
                    pid=one.pid,
                    since=one.since,
                    restarts=one.restarts,
                    last_exit=one.last_exit,
                )
                for one in parts
            ],
            pools=[
                Pool(
                    name=one.name,
                    paused=one.paused,
                    workers_online=one.workers_online,
                    running=one.running,
                    pending=one.pending,
                    scheduled=one.scheduled,
                    late=one.late,
                )
                for one in pools
            ],
            asked_at=asked_at,
            problems=[*problems, *lost],
        )

    def _without_worker(self, pools: tuple[PoolStatus, ...], ill: list[str]) -> list[str]:
        """Return the pools of this site for which nobody works, and whose worker is not just starting again."""
        return [
            one.name
            for one in pools
            if one.name in self._settings.platform.pools
            and not (one.paused or one.workers_online or f"worker-{one.name}" in ill)
        ]

    def _look(self) -> tuple[Report | None, bool, str]:
        seen = self._seen
        if seen is None or self._clock() > seen[0] + _LOOK_S:
            report, problem = None, ""
            try:
                report = read_report(self._layout)
                runs = is_held(self._layout.lock)
            except NightbeamError as error:
                runs, problem = held(self._layout.lock), error.what
            except OSError as error:
                runs, problem = False, f"{self._layout.own} cannot be looked at: {error.strerror}"
            self._seen = seen = (self._clock(), report, runs, problem)
        return seen[1:]

    def _api_url(self, report: Report | None) -> str:
        return self._settings.platform.api_url or (report.api_url if report else "")

    def _written(self) -> datetime | None:
        with suppress(OSError):
            return instant_of_time(self._layout.report.stat().st_mtime)
        return None

    def _server(self, url: str) -> tuple[str, tuple[PoolStatus, ...], datetime | None]:
        """Return what the server last said; it is asked in the background, and waited for where that is long ago."""
        if not url:
            return "none", (), None
        with self._lock:
            self._take()
            if self._asked is None and self._clock() >= self._asked_s + _ASK_EVERY_S:
                self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="monitor-prefect")
                self._asked_s = self._clock()
                self._asked = self._pool.submit(self._ask, url, self._settings.platform.auth_string, timeout_s=_ASK_S)
            asked = self._asked
        if asked is not None and self._is_old():
            wait([asked], timeout=_WAIT_S)
            with self._lock:
                self._take()
        answer = self._answer
        # One that was in trouble and still says nothing is not taken for better.
        if answer is None or (answer[0] == "healthy" and self._is_old()):
            return "asking", (), None
        return answer

    def _is_old(self) -> bool:
        """Say whether what the server last said is no longer the present."""
        return self._answer is None or self._clock() > self._answered_s + _OLD_S

    def _take(self) -> None:
        asked = self._asked
        if asked is None or not asked.done():
            return
        self._asked = None
        try:
            server, pools = asked.result()
        except NightbeamError as error:
            server, pools = error.what, ()
        except Exception as error:
            # Whatever it was, the other systems are still to be looked at.
            _log.exception("Prefect's server could not be asked")
            server, pools = f"not understood ({type(error).__name__}: {error})", ()
        self._answer, self._answered_s = (server, pools, self._now()), self._clock()
