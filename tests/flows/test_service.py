"""How a long-lived service ends: what its run is called when a signal comes and nobody has told Prefect why."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
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

from flows._service import run_service

PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def _outlives() -> Iterator[None]:
    """Prefect gives the signal on, to whatever had it before."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def states_of_signalled(lock: Path, first: Callable[[str], None]) -> list[str]:
    """Run a service that is signalled as it works, after something has happened; return the states its run had."""
    runs: list[str] = []

    @flow(name="signalled")
    def signalled() -> State[Any]:
        run_id = str(this_run.id)
        runs.append(run_id)

        def loop(stop: threading.Event) -> None:
            first(run_id)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wait(PATIENCE_S), "it was asked to drain"

        return run_service(loop, lock=lock, name="signalled", fence_s=PATIENCE_S)

    with contextlib.suppress(TerminationSignal):
        signalled(return_state=True)
    with get_client(sync_client=True) as api:
        return [state.name for state in sorted(api.read_flow_run_states(runs[0]), key=lambda one: one.timestamp)]


def cancel(run_id: str) -> None:
    with get_client(sync_client=True) as api:
        api.set_flow_run_state(run_id, Cancelling(), force=True)


def test_a_cancelled_run_is_never_called_crashed_which_would_restart_it(tmp_path):
    assert states_of_signalled(tmp_path / "lock", cancel)[-3:] == ["Running", "Cancelling", "Cancelled"]


def test_a_run_that_was_not_cancelled_has_crashed(tmp_path):
    assert states_of_signalled(tmp_path / "lock", lambda _: None)[-2:] == ["Running", "Crashed"]


def test_where_nobody_answers_it_has_crashed(tmp_path, monkeypatch):
    def first(run_id: str) -> None:
        cancel(run_id)
        monkeypatch.setattr("flows._service.get_client", away)

    def away(**_: Any) -> Any:
        raise ConnectionError("away")

    assert states_of_signalled(tmp_path / "lock", first)[-1] == "Crashed"
