"""Removes results of tasks that no retry can want any more."""

from __future__ import annotations

from prefect import flow
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH

from nightbeam.platform.files import remove_older


@flow(name="clean-results")
def clean_results(days: float = 14.0) -> dict[str, int]:
    """Remove persisted results older than ``days``; Prefect itself never does."""
    files, size = remove_older(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value(), older_than_s=days * 86400.0)
    return {"files": files, "bytes": size}
