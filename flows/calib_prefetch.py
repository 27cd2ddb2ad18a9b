"""The detector constants of an experiment's newest usable run, in shared memory before anyone asks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact

from blocks import CalibrationService
from nightbeam.calib.prefetch import DetectorReport, PrefetchReport, Progress
from nightbeam.core.errors import NightbeamError
from tasks import calib as steps

logger = logging.getLogger("nightbeam.calib")


@flow(name="calib-prefetch", flow_run_name="{experiment}")
def calib_prefetch(
    experiment: str,
    xtc_dir: str,
    output_dir: str = "/dev/shm",
    service: str = "main",
    run: int | None = None,
    skip: list[str] | None = None,
    keep: int | None = 5,
) -> dict[str, Any]:
    """Bring the cache of one experiment up to date, once.

    Where nothing is new, two questions a detector are asked and nothing is fetched. A failure leaves the cache as it
    was.

    Parameters
    ----------
    experiment
        Such as tmoc00118.
    xtc_dir
        Where its runs lie.
    output_dir
        Where cache files are kept.
    service
        Name of the ``calibration-service`` block.
    run
        None: the newest run that can be used.
    skip
        Detectors to leave out.
    keep
        How many runs to keep; null: all.

    Returns
    -------
    dict
        ``action`` (fetched, linked, current, nothing), ``run``, ``path``, ``bytes_fetched``, ``requests``, ``reason``.
    """
    block = CalibrationService.load(service)
    assert isinstance(block, CalibrationService)
    try:
        with block.client() as client:
            report = steps.prefetch(
                experiment,
                output_dir=Path(output_dir),
                service=client,
                xtc_dir=Path(xtc_dir),
                run=run,
                skip=tuple(skip or ()),
                keep=keep,
                on_progress=_Bar(experiment),
            )
    except NightbeamError as error:
        _table([], f"{experiment}, run {run or 'latest'}: failed, the cache is as it was: {error}")
        raise
    _show(report)
    told = {"action": str(report.action), "run": report.run, "path": str(report.path) if report.path else None}
    logger.info("%s: %s, run %s", experiment, report.reason or report.action, report.run)
    return told | {"bytes_fetched": report.bytes_fetched, "requests": report.requests, "reason": report.reason}


class _Bar:
    """How far the fetching is, at the run; there is none where nothing is fetched."""

    def __init__(self, experiment: str) -> None:
        self._experiment = experiment
        self._id: UUID | None = None
        self._broken = False

    def __call__(self, progress: Progress) -> None:
        if self._broken:
            return
        try:
            self._draw(progress)
        except Exception as error:  # the constants matter more than the picture of their coming
            logger.warning("how far the fetching is cannot be shown: %s", error)
            self._broken = True

    def _draw(self, progress: Progress) -> None:
        percent = 100.0 * progress.bytes_done / max(progress.bytes_total, 1)
        text = f"{self._experiment}: {progress.done} of {progress.total} constants, {progress.detector} last"
        if self._id is None:
            found = create_progress_artifact(percent, key="calib-progress", description=text)
            assert isinstance(found, UUID)
            self._id = found
        else:
            update_progress_artifact(self._id, progress=percent, description=text)


def _show(report: PrefetchReport) -> None:
    rows = [_row(line) for line in report.detectors]
    rows += [
        {"detector": f"run {run}", "why there is none": f"cannot be used: {why}"}
        for run, why in (report.rejected_runs or {}).items()
    ]
    _table(rows, f"{report.experiment}, run {report.run}: {report.reason or report.action}")


def _table(rows: list[dict[str, Any]], about: str) -> None:
    create_table_artifact(rows or [{"detector": "-", "why there is none": about}], key="calib-table", description=about)


def _row(line: DetectorReport) -> dict[str, Any]:
    return {
        "detector": line.detector,
        "constant": line.ctype or "-",
        "document": line.document_id or "-",
        "valid from run": "-" if line.run_from is None else line.run_from,
        "age (days)": "-" if line.age_days is None else round(line.age_days, 1),
        "bytes": line.bytes,
        "fetched now": "yes" if line.fetched else "no",
        "why there is none": line.reason or "",
    }
