"""The one place that knows how a long-lived service lives in a flow run.

A service is a library function ``loop(stop: threading.Event)`` that knows nothing of Prefect. Its flow is
ten lines: make the objects, call `run_service`. What happens when a process, a worker or the server is
killed is written down in docs/explanations/decisions/0006-long-lived-services.md.
"""

from __future__ import annotations

import contextvars
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import Abort, TerminationSignal
from prefect.runtime import deployment as this_deployment
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Completed

from nightbeam.core.locks import sole_owner

__all__ = ["run_service", "unless_cancelled"]

logger = logging.getLogger("nightbeam.service")

#: Prefect kills a cancelled run after 30 s, and this is not adjustable.
DRAIN_S = 25.0
#: An orphan notices within `fence_s` that its run is over, and may drain; its successor waits that long for the lock.
TAKEOVER_S = 45.0
#: So many unhappy ends in so short a time, and the service gives up instead of restarting.
MOST_CRASHES = 5
CRASH_WINDOW_S = 600.0

Loop = Callable[[threading.Event], Any]
Counters = Callable[[], Mapping[str, Any]]
Rows = Callable[[], Sequence[Mapping[str, Any]]]


def run_service(
    loop: Loop,
    *,
    lock: Path,
    name: str,
    counters: Counters | None = None,
    tables: Mapping[str, Rows] | None = None,
    counters_every_s: float = 60.0,
    fence_s: float = 10.0,
) -> State[Any]:
    """Run a loop until it is asked to stop, as the only one that does.

    Parameters
    ----------
    loop
        Works until its event is set, then flushes and returns within 25 s.
    lock
        Lock file beside the output. It is what prevents two writers: Prefect may believe that nothing
        runs while a process whose worker was killed still writes.
    name
        What people call the service.
    counters
        Numbers to show at the run, asked for every ``counters_every_s`` and at the end.
    tables
        More to show in the same way, by the end of its key.
    fence_s
        How often to ask the server whether this run is still supposed to run.

    Returns
    -------
    State
        Completed when the loop ended by itself, or (``GaveUp``) after too many crashes; Cancelled when
        the run was cancelled.

    Raises
    ------
    BusyError
        If another process still holds the output.
    TerminationSignal
        When asked to stop by anything but a cancel, after draining: Prefect makes it Crashed.
    """
    rows: dict[str, Rows] = {} if counters is None else {f"service-{name}": lambda: [counters()]}
    rows |= {f"service-{name}-{what}": table for what, table in (tables or {}).items()}
    return unless_cancelled(lambda: _run(loop, lock, name, rows, counters_every_s, fence_s))


def unless_cancelled(body: Callable[[], State[Any]]) -> State[Any]:
    """Return what ``body`` does, or Cancelled if it ends by a signal and the server says that it was to be cancelled.

    A worker tells Prefect's engine within a second that a signal is a cancel, or not at all where the machine is busy.
    The engine would call the run crashed then, and what has crashed is restarted.
    """
    try:
        return body()
    except TerminationSignal as signal:
        if not _is_cancelled():
            raise
        why = f"; it failed as it drained: {signal.__cause__}" if signal.__cause__ else ""
        return Cancelled(message=f"stopped as it was asked to{why}")


def _run(
    loop: Loop, lock: Path, name: str, rows: Mapping[str, Rows], counters_every_s: float, fence_s: float
) -> State[Any]:
    crashes = _recent_crashes()
    if crashes >= MOST_CRASHES:
        message = f"{name} ended badly {crashes} times in {CRASH_WINDOW_S / 60:.0f} minutes and is not restarted"
        logger.critical("%s; mend the cause, then run the deployment by hand", message)
        return Completed(name="GaveUp", message=message)
    stop = threading.Event()
    fence = _Fence(stop, every_s=fence_s)
    fence.start()
    boards = [_Board(key, table, counters_every_s) for key, table in rows.items()]
    try:
        with sole_owner(lock, wait_s=TAKEOVER_S, what=f"the output of {name}"):
            _work(loop, stop, name=name, boards=boards)
    finally:
        stop.set()
    return fence.verdict()


def _work(loop: Loop, stop: threading.Event, *, name: str, boards: Sequence[_Board]) -> None:
    failed: list[BaseException] = []
    # Not asked of the thread: where a signal's exception interrupts `join`, Python 3.11 takes the thread for ended.
    ended = threading.Event()

    def body() -> None:
        try:
            loop(stop)
        except BaseException as error:  # raised again by the flow, below
            failed.append(error)
        finally:
            ended.set()

    # A bare thread has no run context, and its log records would not reach the server.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(body,), name=name)
    asked: TerminationSignal | None = None
    try:
        thread.start()
        while not ended.wait(0.5):
            for board in boards:
                board.show()
    except TerminationSignal as signal:
        logger.warning("%s was asked to stop and drains", name)
        asked = signal
    finally:
        stop.set()
        if thread.ident is not None and not ended.wait(DRAIN_S):
            logger.error("%s did not drain within %.0f s; its output stays locked until it has", name, DRAIN_S)
            ended.wait()
        for board in boards:
            board.show(last=True)
    if asked is not None:
        if failed:
            logger.error("%s failed as it drained", name, exc_info=failed[0])
        raise asked from (failed[0] if failed else None)
    if failed:
        raise failed[0]


class _Fence(threading.Thread):
    """Asks the server for this run's own state, and stops the loop when the run is over.

    An orphan, whose worker is gone, is told by nobody else. An error of the API is no answer: a server
    that is away has not told anybody to stop.
    """

    def __init__(self, stop: threading.Event, *, every_s: float) -> None:
        super().__init__(daemon=True, name="fence")
        self._stop_loop = stop
        self._every_s = every_s
        self._run_id = this_run.id
        self._found: State[Any] | None = None

    def run(self) -> None:
        if self._run_id is None:
            return
        away = False
        with get_client(sync_client=True) as api:
            while not self._stop_loop.wait(self._every_s):
                try:
                    state = api.read_flow_run(self._run_id).state
                except Exception as error:  # any failure to ask, whatever httpx or Prefect call it
                    if not away:
                        logger.warning("the server cannot be asked about this run, which goes on: %s", error)
                    away = True
                    continue
                away = False
                if state is not None and not state.is_running():
                    self._found = state
                    logger.warning("this run is %s: stopping", state.name)
                    self._stop_loop.set()

    def verdict(self) -> State[Any]:
        """Return the state that this run should end in."""
        if self._found is None:
            return Completed()
        if self._found.is_cancelling() or self._found.is_cancelled():
            return Cancelled(message="stopped by its own fence")
        # Somebody else has closed this run, and perhaps started the next: say nothing more about it.
        raise Abort(f"this run was already {self._found.name}")


def _is_cancelled() -> bool:
    """Ask whether this run is to be cancelled; False where nobody answers."""
    if (run_id := this_run.id) is None:
        return False
    try:
        with get_client(sync_client=True) as api:
            state = api.read_flow_run(run_id).state
    except Exception as error:  # any failure to ask, whatever httpx or Prefect call it
        logger.warning("the server cannot be asked whether this run was cancelled: %s", error)
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


class _Board:
    """One table at the run that is brought up to date, not a new one each minute; none while it has no rows."""

    def __init__(self, key: str, table: Rows, every_s: float) -> None:
        self._key, self._table, self._every_s = key, table, every_s
        self._next = 0.0
        self._id: Any = None

    def show(self, *, last: bool = False) -> None:
        if not last and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every_s
        rows = [dict(row) for row in self._table()]
        try:
            if self._id is not None:
                with get_client(sync_client=True) as api:
                    api.update_artifact(self._id, ArtifactUpdate(data=json.dumps(rows)))
            elif rows:
                self._id = create_table_artifact(rows, key=self._key)
        except Exception as error:  # the server may be away; the service goes on
            logger.warning("the counters cannot be shown: %s", error)


def _recent_crashes() -> int:
    """Return how many runs of this deployment have ended badly of late; 0 for a run without deployment."""
    if this_deployment.id is None:
        return 0
    with get_client(sync_client=True) as api:
        return _count_unhappy(api, this_deployment.id)


def _count_unhappy(api: SyncPrefectClient, deployment_id: str) -> int:
    since = datetime.now(UTC) - timedelta(seconds=CRASH_WINDOW_S)
    runs = api.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter.model_validate(
            {"state": {"type": {"any_": ["FAILED", "CRASHED"]}}, "end_time": {"after_": since.isoformat()}}
        ),
        sort=FlowRunSort.END_TIME_DESC,
        limit=MOST_CRASHES,
    )
    return len(runs)
