"""Finds flow runs that claim to run although their process is gone."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run as this_run
from prefect.states import Crashed

from nightbeam.core.settings import load_settings
from nightbeam.platform.compute import worker_name
from nightbeam.platform.files import read_report
from nightbeam.platform.model import Layout
from nightbeam.platform.processes import flow_processes, process_lives, runs_of

logger = logging.getLogger("nightbeam.sweep")


@flow(name="sweep-zombies")
def sweep_zombies(grace_s: float = 5.0, pending_s: float = 600.0) -> list[str]:
    """Mark as crashed every run whose process is dead; return their names.

    Prefect's own watch (the automation crash-zombie-flows) needs ten minutes and never finds a run that
    died before its first heartbeat, or that was silent when the automation was made.

    Parameters
    ----------
    grace_s
        A run younger than this is left alone.
    pending_s
        A run that has been about to start for longer than this never will.

    Notes
    -----
    A process number means something only on the machine that gave it. It is looked at where the run's worker is one
    of this machine, which its name tells; otherwise only `pending_s` counts, and Prefect's own watch. A run that was
    not started yet died with its worker, where that is one of ours and a younger one is in its place; one whose
    process lives here although nobody was told its number is not dead.
    """
    swept = []
    layout = Layout(load_settings().resolved().state_dir)
    births = _worker_births(layout)
    with get_client(sync_client=True) as api:
        runs = _active_runs(api)
        living = runs_of(flow_processes(layout.prefect_home))
        for run in runs:
            if not run.infrastructure_pid and str(run.id) in living:
                continue
            here = _is_of_this_machine(run)
            born = births.born(run, here=here)
            why = _why_dead(run, here=here, worker_born=born, grace_s=grace_s, pending_s=pending_s)
            if why and _is_as_it_was(api, run):
                logger.warning("run %s: %s", run.name, why)
                api.set_flow_run_state(run.id, Crashed(message=why), force=True)
                swept.append(run.name)
    logger.info("%d zombies", len(swept))
    return swept


def _active_runs(api: SyncPrefectClient) -> list[FlowRun]:
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}})
    found = api.read_flow_runs(flow_run_filter=wanted, limit=200)
    return [run for run in found if run.deployment_id is not None and str(run.id) != this_run.id]


@dataclass(frozen=True)
class _Births:
    """When the worker of each pool that is served here was born, in seconds since 1970, and whether others serve it."""

    workers: dict[str, float]
    shared: bool = False

    def born(self, run: FlowRun, *, here: bool) -> float | None:
        """Return when the worker was born that is now in the place of the one that took a run; None for another's."""
        # A run that was only just taken does not name its worker yet: where nobody else serves the pool it is ours.
        ours = here or (not self.shared and "prefect.worker.name" not in run.labels)
        return self.workers.get(run.work_pool_name or "") if ours else None


def _worker_births(layout: Layout) -> _Births:
    report = read_report(layout)
    if report is None:
        return _Births({})
    # A birth in the future is one of a clock that has been set back since.
    now = time.time()
    workers = [part for part in report.parts if part.name.startswith("worker-") and part.created]
    born = {part.name.removeprefix("worker-"): part.created or 0.0 for part in workers}
    return _Births({pool: at for pool, at in born.items() if at <= now}, report.shares_pools)


def _why_dead(run: FlowRun, *, here: bool, worker_born: float | None, grace_s: float, pending_s: float) -> str:
    now = datetime.now(UTC)
    since = run.state.timestamp if run.state is not None else now
    age_s = (now - since).total_seconds()
    if age_s < grace_s:
        return ""
    told = run.infrastructure_pid or ""
    pid = int(told) if told.isdigit() else None
    if pid is not None and here:
        began = run.start_time or since
        if not process_lives(pid, born_before=began.timestamp() + 1.0):
            return f"its process {pid} is gone"
        return ""
    if pid is None and run.state is not None and run.state.is_pending():
        # Between taking a run and starting its process a worker keeps the only place of a deployment; a new one does
        # not know of it, and until it is ended every other run of the deployment is refused.
        if worker_born is not None and worker_born > since.timestamp():
            return "the worker that was about to start it is gone"
        if age_s > pending_s:
            return f"it has been about to start for {age_s:.0f} s"
    return ""


def _is_as_it_was(api: SyncPrefectClient, run: FlowRun) -> bool:
    # A process reports the end of its run before it ends: asked after we saw it dead, the answer is final. And what
    # was about to start may have started since.
    state = api.read_flow_run(run.id).state
    return state is not None and run.state is not None and state.id == run.state.id


def _is_of_this_machine(run: FlowRun) -> bool:
    # Other machines may work for a server that is here, and this one for a server elsewhere.
    pool, worker = (run.labels.get(f"prefect.{what}.name") for what in ("work-pool", "worker"))
    return worker is not None and worker == worker_name(str(pool), socket.gethostname())
