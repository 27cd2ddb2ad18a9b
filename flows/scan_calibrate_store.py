"""One store of scans, calibrated once and for all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from nightbeam.core.errors import NightbeamError
from nightbeam.core.settings import load_settings
from nightbeam.core.times import utc_now
from nightbeam.scans.config import pipeline_config
from nightbeam.scans.report import failures_path, read_failures
from nightbeam.scans.summary import ScanSummary, summarize_store
from tasks import scans as steps

logger = logging.getLogger("nightbeam.scans")


@flow(name="scan-calibrate-store", flow_run_name="{l0}")
def scan_calibrate_store(
    l0: str,
    l1: str | None = None,
    scans: list[int] | None = None,
    force: bool = False,
    atmosphere: str | None = None,
) -> dict[str, Any]:
    """Calibrate the scans of a store that have not been calibrated; a retry does only what has failed.

    What could not be read is tried again by the task; what is wrong with the data is not. The run fails if a scan has,
    and shows which.

    Parameters
    ----------
    l0
        A store of raw scans.
    l1
        The store of results; null: of the same name, where the settings have results.
    scans
        Only these.
    force
        Also what was calibrated before this run was asked for.
    atmosphere
        ``casa`` or ``closed-form``; null: as the settings say.

    Returns
    -------
    dict
        ``calibrated``, ``skipped``, ``incomplete`` (numbers of scans), ``results``.
    """
    settings = load_settings().resolved()
    assert settings.scans.output_dir is not None  # resolved
    store = Path(l0).absolute()
    out = Path(l1).absolute() if l1 else settings.scans.output_dir / store.name
    chosen = None if scans is None else tuple(scans)
    config = pipeline_config(settings, scans=chosen, force=force, atmosphere=atmosphere, retries=0)
    try:
        result = steps.calibrate_store(store, out, config, _asked_at(), store.name)
    finally:
        _show(out, chosen)
    logger.info("%s: %d scans calibrated, %d done before", store, len(result.successes), len(result.skipped))
    return {
        "calibrated": [one.scan for one in result.successes],
        "skipped": list(result.skipped),
        "incomplete": list(result.incomplete),
        "results": str(out),
    }


def _asked_at() -> datetime:
    """Return when this run was asked for, which a retry does not change."""
    if flow_run.id is None:
        return utc_now()
    with get_client(sync_client=True) as api:
        return api.read_flow_run(flow_run.id).created or utc_now()


def _show(l1: Path, scans: Sequence[int] | None) -> None:
    try:
        done = [one for one in summarize_store(l1) if scans is None or one.scan in scans]
    except NightbeamError as error:
        logger.warning("the results cannot be shown: %s", error.what)
        return
    failed = {one.scan: one for one in read_failures(failures_path(l1)) if scans is None or one.scan in scans}
    rows = [_row(one) for one in done if one.scan not in failed]
    rows += [
        {"scan": one.scan, "state": "failed", "what": f"{one.error}: {one.message.splitlines()[0]}"}
        for one in failed.values()
    ]
    about = f"{len(rows) - len(failed)} scans calibrated, {len(failed)} failed: {l1}"
    create_table_artifact(rows or [{"scan": "-", "state": "no scan of a source"}], key="scans-table", description=about)
    if failed:
        create_link_artifact(failures_path(l1).as_uri(), link_text="failures.json", key="scans-failures")


def _row(one: ScanSummary) -> dict[str, Any]:
    return {
        "scan": one.scan,
        "state": one.status,
        "source": one.source or "-",
        "pwv (mm)": None if one.pwv_mm is None else round(one.pwv_mm, 3),
        "T_sys (K)": None if one.t_sys_k is None else round(one.t_sys_k, 1),
        "seconds": one.seconds,
        "what": "; ".join(one.warnings),
    }
