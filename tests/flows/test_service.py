"""How a long-lived service ends: what its run is called when a signal comes and nobody has told Prefect why."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelling

from flows._service import run_service, unless_cancelled
from nightbeam.core.locks import is_held

PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def _outlives() -> Iterator[None]:
    """Prefect gives the signal on, to whatever had it before."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def states_of_signalled(
    lock: Path, first: Callable[[str], None], last: Callable[[], None] = lambda: None
) -> list[State[Any]]:
    """Run a service that is signalled as it works, after something has happened; return the states its run had.

    ``last`` is what it does after it was asked to drain.
    """
    runs: list[str] = []

    @flow(name="signalled")
    def signalled() -> State[Any]:
        run_id = str(this_run.id)
        runs.append(run_id)

        def loop(stop: threading.Event) -> None:
            first(run_id)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wait(PATIENCE_S), "it was asked to drain"
            last()

        return run_service(loop, lock=lock, name="signalled", fence_s=PATIENCE_S)

    with contextlib.suppress(TerminationSignal):
        signalled(return_state=True)
    return states(runs[0])


def states(run_id: str) -> list[State[Any]]:
    with get_client(sync_client=True) as api:
        return sorted(api.read_flow_run_states(run_id), key=lambda one: one.timestamp)


def names(found: list[State[Any]]) -> list[str]:
    return [str(state.name) for state in found]


def cancel(run_id: str) -> None:
    with get_client(sync_client=True) as api:
        api.set_flow_run_state(run_id, Cancelling(), force=True)


def test_a_cancelled_run_is_never_called_crashed_which_would_restart_it(tmp_path):
    found = states_of_signalled(tmp_path / "lock", cancel)
    assert names(found)[-3:] == ["Running", "Cancelling", "Cancelled"]
    assert found[-1].message == "stopped as it was asked to"


def test_a_cancel_before_the_service_has_begun_is_one_too():
    runs: list[str] = []

    def begin() -> State[Any]:
        cancel(runs[0])
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal comes first")

    @flow(name="slow-to-begin")
    def slow_to_begin() -> State[Any]:
        runs.append(str(this_run.id))
        return unless_cancelled(begin)

    with contextlib.suppress(TerminationSignal):
        slow_to_begin(return_state=True)
    assert names(states(runs[0]))[-2:] == ["Cancelling", "Cancelled"]


def test_what_went_wrong_as_it_drained_is_said(tmp_path, caplog):
    def fail() -> None:
        raise OSError("the disk is full")

    found = states_of_signalled(tmp_path / "lock", cancel, fail)
    assert names(found)[-1] == "Cancelled"
    assert "the disk is full" in str(found[-1].message)


def test_the_output_stays_locked_until_who_drains_slowly_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("flows._service.DRAIN_S", 0.05)
    held: list[bool] = []
    found = states_of_signalled(
        tmp_path / "lock", cancel, lambda: (time.sleep(0.5), held.append(is_held(tmp_path / "lock")))
    )
    assert held == [True]
    assert names(found)[-1] == "Cancelled"


def test_a_run_that_was_not_cancelled_has_crashed(tmp_path):
    assert names(states_of_signalled(tmp_path / "lock", lambda _: None))[-2:] == ["Running", "Crashed"]


def test_where_nobody_answers_it_has_crashed(tmp_path, monkeypatch):
    asked: list[bool] = []

    def away(**_: Any) -> Any:
        asked.append(True)
        raise ConnectionError("away")

    def first(run_id: str) -> None:
        cancel(run_id)
        monkeypatch.setattr("flows._service.get_client", away)

    monkeypatch.setattr("flows._service._Fence.run", lambda self: None)  # it would ask too
    assert names(states_of_signalled(tmp_path / "lock", first))[-1] == "Crashed"
    assert asked
