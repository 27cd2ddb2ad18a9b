"""Removes what would be kept for ever: runs that ended long ago with all that they show, and results of tasks."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH

from nightbeam.platform.files import remove_older

logger = logging.getLogger("nightbeam.clean")


@flow(name="clean-results")
def clean_results(days: float = 14.0, runs_days: float = 30.0, at_most: int = 5000) -> dict[str, int]:
    """Remove runs that ended more than ``runs_days`` ago, then persisted results older than ``days``.

    Results are removed though the runs could not all be: a full disk is why somebody waits for it.

    A schedule of 30 s leaves 2,880 runs a day. Prefect's own vacuum of runs is not used: with it on, a server
    on SQLite was seen to answer nobody for a minute at a time.
    """
    try:
        runs = remove_runs(runs_days, at_most=at_most)
    finally:
        files, size = remove_older(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value(), older_than_s=days * 86400.0)
    return {"files": files, "bytes": size, "runs": runs}


def remove_runs(days: float, *, at_most: int) -> int:
    """Remove runs that ended more than ``days`` ago, with their logs, states and artifacts; return how many.

    What somebody else removes meanwhile is as good as removed by us.
    """
    before = datetime.now(UTC) - timedelta(days=days)
    wanted = FlowRunFilter.model_validate({"end_time": {"before_": before.isoformat()}})
    removed = 0
    with get_client(sync_client=True) as api:
        while removed < at_most and (runs := api.read_flow_runs(flow_run_filter=wanted, limit=100)):
            _remove_artifacts(api, [run.id for run in runs])
            for run in runs:
                with suppress(ObjectNotFound):
                    api.delete_flow_run(run.id)
            removed += len(runs)
    logger.info("removed %d runs that ended before %s", removed, before.date())
    return removed


def _remove_artifacts(api: SyncPrefectClient, runs: list[UUID]) -> None:
    """Remove the tables and figures at some runs, which Prefect would keep when the runs are gone."""
    wanted = ArtifactFilter.model_validate({"flow_run_id": {"any_": [str(run) for run in runs]}})
    while artifacts := api.read_artifacts(artifact_filter=wanted, limit=200):
        for artifact in artifacts:
            with suppress(ObjectNotFound):
                api.delete_artifact(artifact.id)
