"""Finds flow runs that claim to run although their process is gone."""

from __future__ import annotations

import logging
import socket
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
from nightbeam.platform.processes import process_lives

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
    not started yet died with its worker, where that is one of ours and a younger one is in its place.
    """
    swept = []
    births = _worker_births()
    with get_client(sync_client=True) as api:
        for run in _active_runs(api):
            born = births.get(run.work_pool_name or "")
            here = _is_of_this_machine(run)
            why = _why_dead(run, here=here, worker_born=born, grace_s=grace_s, pending_s=pending_s)
            if why and _still_active(api, run):
                logger.warning("run %s: %s", run.name, why)
                api.set_flow_run_state(run.id, Crashed(message=why), force=True)
                swept.append(run.name)
    logger.info("%d zombies", len(swept))
    return swept


def _active_runs(api: SyncPrefectClient) -> list[FlowRun]:
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}})
    found = api.read_flow_runs(flow_run_filter=wanted, limit=200)
    return [run for run in found if run.deployment_id is not None and str(run.id) != this_run.id]


def _worker_births() -> dict[str, float]:
    """Return when the worker of each pool that this machine alone serves was born; seconds since 1970."""
    report = read_report(Layout(load_settings().resolved().state_dir))
    if report is None or report.shares_pools:
        return {}
    workers = [part for part in report.parts if part.name.startswith("worker-") and part.created]
    return {part.name.removeprefix("worker-"): part.created or 0.0 for part in workers}


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
        if worker_born is not None and worker_born > since.timestamp() + grace_s:
            return "the worker that was about to start it is gone"
        if age_s > pending_s:
            return f"it has been about to start for {age_s:.0f} s"
    return ""


def _still_active(api: SyncPrefectClient, run: FlowRun) -> bool:
    # A process reports the end of its run before it ends: asked after we saw it dead, the answer is final.
    state = api.read_flow_run(run.id).state
    return state is not None and not state.is_final()


def _is_of_this_machine(run: FlowRun) -> bool:
    # Other machines may work for a server that is here, and this one for a server elsewhere.
    pool, worker = (run.labels.get(f"prefect.{what}.name") for what in ("work-pool", "worker"))
    return worker is not None and worker == worker_name(str(pool), socket.gethostname())
