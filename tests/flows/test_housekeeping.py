"""Sweeping, cleaning and checking."""

from __future__ import annotations

import gc
import os
import socket
import time
import traceback
import warnings
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Completed, Pending, Running

import flows.sweep_zombies as sweeping
from blocks import ElogService
from flows._service import MOST_CRASHES, _count_unhappy
from flows.clean_results import remove_runs
from flows.flight_check import flight_check
from nightbeam.core.errors import AuthError, ToolError
from nightbeam.platform.files import write_report
from nightbeam.platform.model import Layout, PartState, PartStatus, Phase, Report
from tasks.elog import renew_ticket
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
    here, born = more.pop("here", True), more.pop("worker_born", None)
    return sweeping._why_dead(run, here=here, worker_born=born, grace_s=5.0, pending_s=600.0)


def test_a_run_is_a_zombie_when_its_process_is_gone_and_only_where_processes_are_known():
    gone = "4194303"
    assert "4194303 is gone" in _why(_run(Running(), gone))
    assert not _why(_run(Running(), gone), here=False)
    assert not _why(_run(Running(), gone, age_s=1.0)), "within its grace"


def test_a_run_is_of_the_machine_whose_worker_took_it():
    def run(worker):
        told = {"prefect.worker.name": worker, "prefect.work-pool.name": "casa"} if worker else {}
        return SimpleNamespace(labels=told)

    assert sweeping._is_of_this_machine(run(f"casa-{socket.gethostname()}"))
    assert not sweeping._is_of_this_machine(run(f"casa-other-{socket.gethostname()}"))
    assert not sweeping._is_of_this_machine(run("casa-far"))
    assert not sweeping._is_of_this_machine(run(None))


def test_a_living_process_is_left_alone(monkeypatch):
    monkeypatch.setattr(sweeping, "process_lives", lambda pid, born_before: True)
    assert not _why(_run(Running(), "12"))


def test_a_run_that_never_started_is_given_up_after_ten_minutes():
    assert not _why(_run(Pending(), age_s=500.0))
    assert "about to start" in _why(_run(Pending(), age_s=700.0))
    assert not _why(_run(Running(), age_s=700.0)), "a run without a process number may be anywhere"


def test_a_run_that_its_worker_had_only_taken_dies_with_the_worker():
    now = time.time()
    gone = "worker that was about to start it is gone"
    assert gone in _why(_run(Pending(), age_s=60.0), worker_born=now - 30.0)
    assert gone in _why(_run(Pending(), age_s=60.0), worker_born=now - 58.5), "it is born again in no time"
    assert not _why(_run(Pending(), age_s=60.0), worker_born=now - 90.0), "its worker lives"
    assert not _why(_run(Pending(), age_s=2.0), worker_born=now - 1.0), "within its grace"
    assert not _why(_run(Running(), age_s=60.0), worker_born=now - 30.0), "what runs outlives its worker"


@pytest.mark.parametrize("shared", [False, True])
def test_workers_are_known_by_the_report_and_take_no_run_of_another_machine(tmp_path, shared):
    layout = Layout(tmp_path / "state")
    here = f"casa-{socket.gethostname()}"

    def born(worker, pool="casa"):
        labels = {"prefect.worker.name": worker, "prefect.work-pool.name": pool} if worker else {}
        run = SimpleNamespace(labels=labels, work_pool_name=pool)
        return sweeping._worker_births(layout).born(run, here=sweeping._is_of_this_machine(run))

    assert born(here) is None
    ahead = time.time() + 3600.0
    parts = (
        PartStatus("server", PartState.RUNNING, 1, 5.0),
        PartStatus("worker-casa", PartState.RUNNING, 2, 7.0),
        PartStatus("worker-batch", PartState.RUNNING, 3, ahead),
    )
    write_report(layout, Report(Phase.RUNNING, 1, "http://127.0.0.1:9/api", parts=parts, shares_pools=shared))
    assert born(here) == 7.0
    assert born("casa-another") is None
    assert born(None) == (None if shared else 7.0), "before it says whose it is"
    assert born(f"batch-{socket.gethostname()}", "batch") is None, "of a clock that was set back"


@flow(name="short-lived")
def short_lived() -> None:
    """Nothing."""


def test_only_the_run_that_was_just_taken_and_has_no_process_dies_with_its_worker(tmp_path, monkeypatch):
    state_dir = tmp_path / "state"
    monkeypatch.setenv("NIGHTBEAM_STATE_DIR", str(state_dir))
    with get_client(sync_client=True) as api:
        flow_id = api.create_flow(short_lived)
        deployment = api.create_deployment(flow_id=flow_id, name="taken", entrypoint="x.y")
        taken, living, begun = (api.create_flow_run_from_deployment(deployment) for _ in range(3))
        for run in (taken, living, begun):
            api.set_flow_run_state(run.id, Pending(), force=True)
        monkeypatch.setattr(sweeping._Births, "born", lambda self, run, here: time.time())
        monkeypatch.setattr(
            sweeping, "flow_processes", lambda home: ["process"] * (home == Layout(state_dir).prefect_home)
        )
        monkeypatch.setattr(sweeping, "runs_of", lambda processes: {str(living.id)} if processes else set())
        as_it_was = sweeping._is_as_it_was

        def begins(api, run):
            if run.id == begun.id:
                api.set_flow_run_state(run.id, Running(), force=True)
            return as_it_was(api, run)

        monkeypatch.setattr(sweeping, "_is_as_it_was", begins)
        swept = sweeping.sweep_zombies.fn(grace_s=0.0)
        assert taken.name in swept
        assert not {living.name, begun.name} & set(swept)
        ended = {run.id: api.read_flow_run(run.id).state.type.value for run in (taken, living, begun)}
        assert ended == {taken.id: "CRASHED", living.id: "PENDING", begun.id: "RUNNING"}


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


@leaky
def test_what_a_shell_step_complains_of_is_said_without_its_secrets():
    script = 'echo first >&2; echo "cannot read $1" >&2; exit 3'
    with pytest.raises(ToolError) as failed:
        run_shell(["bash", "-c", script, "bash", "/secret/key tab"], hide={"/secret/key tab": "the keytab"})
    assert failed.value.what == "bash ended with exit code 3: cannot read the keytab"


@leaky
def test_a_keytab_that_gives_no_ticket_is_said_with_the_reason_and_without_its_place(tmp_path, monkeypatch):
    programs, keytab = tmp_path / "bin", tmp_path / "svc.keytab"
    programs.mkdir()
    kinit = programs / "kinit"
    kinit.write_text(
        "#!/bin/bash\necho \"kinit: Key table file '$5' not found while getting initial credentials\" >&2\nexit 1\n"
    )
    kinit.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("KRB5CCNAME", "")
    block = ElogService(
        url="https://h",
        principal="svc-elog@REALM",
        keytab=str(keytab),
        database="sqlite:////d/elog.db",
        database_dir=str(tmp_path),
    )
    with pytest.raises(AuthError) as failed:
        renew_ticket(block)
    shown = "".join(traceback.format_exception(failed.value))
    assert "svc-elog@REALM" in failed.value.what
    assert failed.value.what.endswith("Key table file 'the keytab' not found while getting initial credentials")
    assert str(keytab) not in shown
