"""``failures.json``: what became of a run, where something failed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nightbeam.core.errors import UsageError
from nightbeam.core.files import remove_parts, storage_errors, write_text
from nightbeam.scans.model import PipelineResult, RejectedCalibration, ScanFailure

__all__ = ["failures_path", "read_failures", "read_rejected", "require_ours", "write_failures"]

_SCHEMA = 1


def failures_path(l1: Path) -> Path:
    """Return where the failures of a store of results are written: beside it."""
    return l1.with_name(f"{l1.name.removesuffix('.zarr')}.failures.json")


def write_failures(
    path: Path,
    result: PipelineResult,
    *,
    run_id: str,
    store: Path,
    output: Path,
    started: str,
    finished: str,
    earlier: Iterable[ScanFailure] = (),
) -> None:
    """Write what failed, all at once; where nothing did a file of an earlier run is removed, and nobody else's is.

    Load calibrations that cannot be used are something that failed.

    Parameters
    ----------
    earlier
        Of scans that this run was not about.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    remove_parts(path)
    failures = sorted([*result.failures, *earlier], key=lambda one: one.scan)
    if not failures and not result.rejected:
        if _is_ours(path):
            with storage_errors(path):
                path.unlink(missing_ok=True)
        return
    ok, skipped, failed = len(result.successes), len(result.skipped), len(failures)
    text = {
        "schema": _SCHEMA, "run_id": run_id, "store": str(store), "output": str(output), "started": started,
        "finished": finished, "n_scans": ok + skipped + failed, "n_ok": ok, "n_skipped": skipped, "n_failed": failed,
        "failures": [_as_json(one) for one in failures],
        "calibrations": [asdict(one) for one in result.rejected],
    }  # fmt: skip
    write_text(path, json.dumps(text, indent=1) + "\n")


def _as_json(failure: ScanFailure) -> dict[str, Any]:
    return {**asdict(failure), "calibration_scans": list(failure.calibration_scans)}


def require_ours(path: Path) -> None:
    """Refuse a place for failures where there is something else; an empty file is nothing.

    Raises
    ------
    UsageError
        If there is no file that may be replaced.
    """
    if not path.exists() or _is_ours(path) or (path.is_file() and path.stat().st_size == 0):
        return
    raise UsageError(f"{path} is no list of failures and is not replaced by one", fix="name another file")


def _is_ours(path: Path) -> bool:
    try:
        found = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("schema") == _SCHEMA and isinstance(found.get("failures"), list)


def read_failures(path: Path) -> list[ScanFailure]:
    """Return the failures of the last run; none where there is no file, or one that is not ours."""
    try:
        found = json.loads(path.read_text())
        if found.get("schema") != _SCHEMA:
            return []
        every = [
            ScanFailure(**{**one, "calibration_scans": tuple(one["calibration_scans"])}) for one in found["failures"]
        ]
        words = all(isinstance(text, str) for one in every for text in (one.error, one.kind, one.stage, one.message))
        return every if words and all(type(one.scan) is int for one in every) else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def read_rejected(path: Path) -> list[RejectedCalibration]:
    """Return the load calibrations that the last run could not use; none where there is no file, or not ours."""
    try:
        found = json.loads(path.read_text())
        every = [RejectedCalibration(**one) for one in found["calibrations"] if found["schema"] == _SCHEMA]
        words = all(isinstance(text, str) for one in every for text in (one.error, one.stage, one.message, one.files))
        return every if words and all(type(one.scan) is int for one in every) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
