"""Removes what Prefect would keep for ever: results of tasks, and runs that ended long ago."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH

from nightbeam.platform.files import remove_older

logger = logging.getLogger("nightbeam.clean")


@flow(name="clean-results")
def clean_results(days: float = 14.0, runs_days: float = 30.0, at_most: int = 5000) -> dict[str, int]:
    """Remove persisted results older than ``days``, and runs that ended more than ``runs_days`` ago.

    A schedule of 30 s leaves 2,880 runs a day. Prefect's own vacuum of runs is not used: with it on, a server
    on SQLite was seen to answer nobody for a minute at a time.
    """
    files, size = remove_older(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value(), older_than_s=days * 86400.0)
    return {"files": files, "bytes": size, "runs": remove_runs(runs_days, at_most=at_most)}


def remove_runs(days: float, *, at_most: int) -> int:
    """Remove runs that ended more than ``days`` ago, with their logs and states; return how many."""
    before = datetime.now(UTC) - timedelta(days=days)
    wanted = FlowRunFilter.model_validate({"end_time": {"before_": before.isoformat()}})
    removed = 0
    with get_client(sync_client=True) as api:
        while removed < at_most and (runs := api.read_flow_runs(flow_run_filter=wanted, limit=100)):
            for run in runs:
                api.delete_flow_run(run.id)
            removed += len(runs)
    logger.info("removed %d runs that ended before %s", removed, before.date())
    return removed
