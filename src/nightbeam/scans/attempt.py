"""One attempt at a store, of which a run may need several: what is done is not done again, and what failed is said."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from nightbeam.core.errors import PartialError
from nightbeam.scans.model import PipelineConfig, PipelineResult
from nightbeam.scans.report import failures_path
from nightbeam.scans.results import ResultStore
from nightbeam.scans.worker import calibrate_store, plan_store

__all__ = ["ScansFailedError", "ScansUnreadError", "attempt_store"]


class ScansFailedError(PartialError):
    """Some scans of a store, or all, cannot be calibrated as they are."""


class ScansUnreadError(ScansFailedError):
    """Some scans of a store could not be read, or met a mistake in the program; a later try may work."""

    retry = True


def attempt_store(
    l0: Path,
    l1: Path,
    config: PipelineConfig,
    *,
    since: datetime | None = None,
    stop: threading.Event | None = None,
) -> PipelineResult:
    """Calibrate a store as `calibrate_store` does; an attempt at which a scan fails ends with an error.

    Parameters
    ----------
    since
        With ``config.force``: results that were finished after this are kept, so that a second attempt does not do
        again what the first has done.

    Raises
    ------
    ScansUnreadError, ScansFailedError
        If a scan has failed; the former if another attempt may help.
    NightbeamError
        As `calibrate_store`.
    """
    if config.force and since is not None:
        config = replace(config, scans=_older(l0, l1, config, since))
    result = calibrate_store(l0, l1, config, stop=stop)
    if not result.failures:
        return result
    healing = any(one.kind in ("read", "internal", "write") for one in result.failures)
    named = ", ".join(f"{one.scan} ({one.error})" for one in result.failures[:5])
    more = f" and {len(result.failures) - 5} more" if len(result.failures) > 5 else ""
    whole = len(result.failures) + len(result.successes) + len(result.skipped)
    kind = ScansUnreadError if healing else ScansFailedError
    raise kind(
        f"{len(result.failures)} of {whole} scans of {l0.name} failed: {named}{more}",
        fix=f"see {config.failures or failures_path(l1)}",
    )


def _older(l0: Path, l1: Path, config: PipelineConfig, since: datetime) -> tuple[int, ...]:
    """Return the scans that have no result, or one from before."""
    plan = plan_store(l0, l1, replace(config, force=False))
    output = ResultStore(l1) if l1.exists() else None
    found = []
    for scan, what in plan:
        said = output.attributes(scan) if output is not None and what == "done" else {}
        if what == "calibrate" or (what == "done" and datetime.fromisoformat(said["finished"]) < since):
            found.append(scan)
    return tuple(found)
