"""What is in a store of calibrated scans, for people: its scans, what has failed, whether a run is going on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zarr
from zarr.errors import BaseZarrError

from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.locks import is_held, lock_holder
from nightbeam.core.times import SECONDS_PER_DAY, datetime_from_mjd
from nightbeam.scans.files import scan_name
from nightbeam.scans.model import RejectedCalibration, ScanFailure
from nightbeam.scans.report import failures_path, read_rejected
from nightbeam.scans.results import ResultStore

__all__ = [
    "FailureReport",
    "ScanSummary",
    "failure_report",
    "running",
    "store_attributes",
    "summarize_scan",
    "summarize_store",
]

_COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class ScanSummary:
    """A calibrated scan in one line; None where its store does not say.

    Attributes
    ----------
    status
        ``complete``, or ``damaged`` where what is said of the scan cannot be read.
    begin, end
        References included, where that is said; else of the dumps on the source.
    calibration_scans
        The load calibration it used; two between which was interpolated.
    pwv_mm, pwv_error_mm, pwv_source
        The water, the error of the noise alone, and where it is from: ``fit``, ``radiometer`` or ``configured``.
    t_sys_k, t_rec_k
        Medians over pixels and channels.
    flagged
        Fraction of its samples.
    scatter
        Measured noise over the expected one.
    seconds
        That its calibration took.
    """

    scan: int
    status: str
    source: str | None = None
    obs_type: str | None = None
    begin: datetime | None = None
    end: datetime | None = None
    calibration_scans: tuple[int, ...] = ()
    pwv_mm: float | None = None
    pwv_error_mm: float | None = None
    pwv_source: str | None = None
    t_sys_k: float | None = None
    t_rec_k: float | None = None
    flagged: float | None = None
    scatter: float | None = None
    warnings: tuple[str, ...] = ()
    seconds: float | None = None
    finished: str | None = None

    @property
    def middle(self) -> datetime | None:
        """When it was observed."""
        return None if self.begin is None or self.end is None else self.begin + (self.end - self.begin) / 2


@dataclass(frozen=True, slots=True)
class FailureReport:
    """What a run has written about the scans it could not calibrate, and the load calibrations it could not use."""

    path: Path
    run_id: str | None
    started: str | None
    finished: str | None
    n_scans: int | None
    n_ok: int | None
    n_skipped: int | None
    failures: tuple[ScanFailure, ...]
    rejected: tuple[RejectedCalibration, ...] = ()


# -- calibrated scans ---------------------------------------------------------------------------------------------


def store_attributes(l1: Path) -> dict[str, Any]:
    """Return what a store of calibrated scans says of itself.

    Raises
    ------
    MissingError
        If there is nothing at the place.
    InputError
        If it is damaged, or something else.
    """
    if not l1.exists():
        raise MissingError(f"there is no store {l1}", fix="correct its name, or calibrate into it first")
    if not (l1 / "zarr.json").exists():
        raise InputError(f"{l1} is no Zarr store of format 3", fix="name a store of calibrated scans")
    ResultStore(l1)  # which refuses what is none of its own
    return dict(zarr.open_group(l1, mode="r", zarr_format=3, use_consolidated=False).attrs)


def summarize_store(l1: Path) -> list[ScanSummary]:
    """Return a line for each scan of a store of calibrated scans, by number.

    Raises
    ------
    MissingError, InputError
        As `store_attributes`.
    """
    store_attributes(l1)
    try:
        numbers = sorted(ResultStore(l1).scans())
    except ValueError as error:
        raise InputError(
            f"something in {l1 / 'scans'} is called like a scan and is none: {error}", fix="move it elsewhere"
        ) from error
    return [summarize_scan(l1, scan) for scan in numbers]


def summarize_scan(l1: Path, scan: int) -> ScanSummary:
    """Return the line of one scan, which is damaged where it cannot be read.

    Raises
    ------
    MissingError
        If there is none of that number.
    """
    place = l1 / "scans" / scan_name(scan)
    if not place.exists():
        raise MissingError(f"{l1} has no result of scan {scan}", fix="nightbeam scans status lists those it has")
    try:
        said = json.loads((place / "zarr.json").read_text())["attributes"]
        begin, end = _when(said, "begin"), _when(said, "end")
        if begin is None or end is None:
            begin, end = _span(place)
    except (BaseZarrError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return ScanSummary(scan, "damaged")
    quality = said.get("quality")
    quality = quality if isinstance(quality, dict) else {}
    return ScanSummary(
        scan=scan,
        status=_COMPLETE if said.get("status") == _COMPLETE else "damaged",
        source=_text(said, "source"),
        obs_type=_text(said, "obs_type"),
        begin=begin,
        end=end,
        calibration_scans=_numbers(said.get("calibration_scans")),
        pwv_mm=_number(said, "pwv_mm"),
        pwv_error_mm=_number(quality, "pwv_error_mm"),
        pwv_source=_text(said, "pwv_source"),
        t_sys_k=_number(quality, "t_sys_k"),
        t_rec_k=_number(quality, "t_rec_k"),
        flagged=_number(quality, "flagged"),
        scatter=_number(quality, "scatter"),
        warnings=tuple(str(one) for one in _list(said.get("warnings"))),
        seconds=_number(said, "seconds"),
        finished=_text(said, "finished"),
    )


def _span(place: Path) -> tuple[datetime | None, datetime | None]:
    group: Any = zarr.open_group(place, mode="r", zarr_format=3, use_consolidated=False)
    if "time" not in group or "duration" not in group:
        return None, None
    time_s, half_s = group["time"][...], 0.5 * group["duration"][...]
    ends = float((time_s - half_s).min()), float((time_s + half_s).max())
    begin, end = (datetime_from_mjd(one / SECONDS_PER_DAY) for one in ends)
    return begin, end


def _when(said: Mapping[str, Any], name: str) -> datetime | None:
    text = said.get(name)
    when = datetime.fromisoformat(text) if isinstance(text, str) else None
    return when if when is None or when.tzinfo else when.replace(tzinfo=UTC)


def _number(said: Mapping[str, Any], name: str) -> float | None:
    value = said.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(said: Mapping[str, Any], name: str) -> str | None:
    value = said.get(name)
    return value if isinstance(value, str) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(int(one) for one in _list(value) if isinstance(one, int))


# -- runs ---------------------------------------------------------------------------------------------------------


def running(l1: Path) -> dict[str, str | int] | None:
    """Return who writes to a store just now (pid, host, since); None where nobody does."""
    lock = l1.with_name(f"{l1.name}.lock")
    return lock_holder(lock) if is_held(lock) else None


def failure_report(l1: Path, path: Path | None = None) -> FailureReport | None:
    """Return what failed in the last run; None where nothing did.

    Parameters
    ----------
    path
        The file, where it is not at its usual place; then it must be there.

    Raises
    ------
    MissingError
        If the file that was named is not there.
    InputError
        If it is no list of failures.
    """
    place = path or failures_path(l1)
    try:
        found = json.loads(place.read_text())
        if found["schema"] != 1:
            raise InputError(f"{place} has version {found['schema']!r} of its schema, this nightbeam knows 1")
        known = {one.name for one in fields(ScanFailure)}
        failures = tuple(_failure({k: v for k, v in one.items() if k in known}) for one in found["failures"])
    except FileNotFoundError as error:
        if path is None:
            return None
        raise MissingError(f"there is no list of failures {place}", fix="correct its name") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place} is no list of failures: {error}", fix="name another one, or remove it") from error
    return FailureReport(
        path=place,
        run_id=_text(found, "run_id"),
        started=_text(found, "started"),
        finished=_text(found, "finished"),
        n_scans=_count(found.get("n_scans")),
        n_ok=_count(found.get("n_ok")),
        n_skipped=_count(found.get("n_skipped")),
        failures=failures,
        rejected=tuple(read_rejected(place)),
    )


def _failure(said: dict[str, Any]) -> ScanFailure:
    return ScanFailure(**(said | {"calibration_scans": _numbers(said.get("calibration_scans"))}))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None
