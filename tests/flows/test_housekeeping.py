"""Sweeping, cleaning and checking."""

from __future__ import annotations

import gc
import time
import warnings
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Completed, Pending, Running

import flows.sweep_zombies as sweeping
from flows._service import MOST_CRASHES, _count_unhappy
from flows.clean_results import remove_runs
from flows.flight_check import flight_check
from nightbeam.core.errors import ToolError
from tasks.shell import ask_version, run_shell


#: prefect-shell leaves its pipes to the garbage collector, which complains of them whenever it comes by.
def leaky(test):
    ignored = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
    return pytest.mark.usefixtures("_collected")(ignored(test))


@pytest.fixture
def _collected():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _run(state, pid=None, age_s=100.0):
    when = datetime.now(UTC) - timedelta(seconds=age_s)
    state = state.model_copy(update={"timestamp": when})
    return SimpleNamespace(state=state, infrastructure_pid=pid, start_time=when)


def _why(run, **more):
    return sweeping._why_dead(run, here=more.pop("here", True), grace_s=5.0, pending_s=600.0)


def test_a_run_is_a_zombie_when_its_process_is_gone_and_only_where_processes_are_known():
    gone = "4194303"
    assert "4194303 is gone" in _why(_run(Running(), gone))
    assert not _why(_run(Running(), gone), here=False)
    assert not _why(_run(Running(), gone, age_s=1.0)), "within its grace"


def test_a_living_process_is_left_alone(monkeypatch):
    monkeypatch.setattr(sweeping, "process_lives", lambda pid, born_before: True)
    assert not _why(_run(Running(), "12"))


def test_a_run_that_never_started_is_given_up_after_ten_minutes():
    assert not _why(_run(Pending(), age_s=500.0))
    assert "about to start" in _why(_run(Pending(), age_s=700.0))
    assert not _why(_run(Running(), age_s=700.0)), "a run without a process number may be anywhere"


@flow(name="short-lived")
def short_lived() -> None:
    """Nothing."""


def test_runs_that_ended_long_ago_are_removed_and_others_stay():
    with get_client(sync_client=True) as api:
        old = api.create_flow_run(short_lived, state=Running())
        api.set_flow_run_state(old.id, Completed(), force=True)
        going = api.create_flow_run(short_lived, state=Running())
    time.sleep(0.05)
    assert remove_runs(0.0, at_most=1000) >= 1
    with get_client(sync_client=True) as api:
        left = {run.id for run in api.read_flow_runs(limit=200)}
    assert going.id in left
    assert old.id not in left


def test_only_bad_ends_of_the_last_minutes_count_towards_giving_up():
    with get_client(sync_client=True) as api:
        flow_id = api.create_flow(short_lived)
        deployment = api.create_deployment(flow_id=flow_id, name="crashing", entrypoint="x.y")
        assert _count_unhappy(api, str(deployment)) == 0
        from prefect.states import Crashed

        for _ in range(MOST_CRASHES):
            run = api.create_flow_run_from_deployment(deployment)
            api.set_flow_run_state(run.id, Running(), force=True)
            api.set_flow_run_state(run.id, Crashed(), force=True)
        done = api.create_flow_run_from_deployment(deployment)
        api.set_flow_run_state(done.id, Completed(), force=True)
        assert _count_unhappy(api, str(deployment)) == MOST_CRASHES


@leaky
def test_the_flight_check_tells_of_what_is_there_and_of_what_is_not():
    assert flight_check(("bash", "no-such-program"))["no-such-program"] is None


@leaky
def test_a_shell_step_is_quoted_and_its_failure_is_an_error():
    assert run_shell(["echo", "$HOME; echo two"]) == ["$HOME; echo two"]
    with pytest.raises(ToolError, match="exit code 1"):
        run_shell(["false"])
    assert ask_version("bash").startswith("GNU bash")
