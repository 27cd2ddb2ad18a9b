"""The functions that users of psana's ``calib_prefetch`` know, under their names and with their arguments.

What differs is told in docs/explanations/decisions/0022-constants-cache.md: constants are those of the *requested* run,
what cannot be had is an error and not an empty answer, and nothing but success is remembered.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from nightbeam.calib.compute import needs_update
from nightbeam.calib.entry import CalibEntry
from nightbeam.calib.files import entry_path, is_whole, list_entries, load_pickle, map_entry
from nightbeam.calib.prefetch import PrefetchReport, prefetch_and_open, skipped_names
from nightbeam.calib.reader import open_constants
from nightbeam.calib.remote import CalibService
from nightbeam.core.errors import NightbeamError
from nightbeam.xtc2 import judge_run, latest_usable_run

__all__ = [
    "detector_info_from_file",
    "detector_info_from_run",
    "ensure_valid_calibconst",
    "get_latest_run",
    "load_existing_run",
    "needs_update",
    "try_load_calib_const_from_file",
    "update_calib",
]

_log = logging.getLogger(__name__)

CalibConst = dict[str, Any]
Log = logging.Logger | None
_SHM = "/dev/shm"
#: How many runs of an experiment stay in the cache.
KEEP = 5


def get_latest_run(
    output_dir: str | Path,
    expcode: str,
    log: Log,
    xtc_dir: str | Path | None = None,
    *,
    owners: Iterable[str | int] = (),
) -> int | None:
    """Return the latest run that can be used, or None if there is none or it is in the cache already.

    Raises
    ------
    TypeError
        If ``xtc_dir`` is not given, as in the original.
    """
    if xtc_dir is None:
        raise TypeError("xtc_dir is needed to find runs")
    log = log or _log
    try:
        verdict, rejected = latest_usable_run(Path(xtc_dir), expcode)
    except FileNotFoundError as error:
        log.warning("%s", error)
        return None
    for each in rejected:
        log.warning("run %d of %s cannot be used: %s", each.run, expcode, "; ".join(each.reasons))
    if verdict is None:
        log.info("no usable run of %s in %s", expcode, xtc_dir)
        return None
    if is_whole(entry_path(Path(output_dir), expcode, verdict.run), owners=owners):
        log.debug("run %d of %s is in the cache", verdict.run, expcode)
        return None
    return verdict.run


def load_existing_run(output_dir: str | Path, expcode: str, *, owners: Iterable[str | int] = ()) -> int:
    """Return the highest run with a cache file that can be used, -1 when there is none.

    Raises
    ------
    FileNotFoundError
        If there is no such directory.
    """
    return max(_usable_runs(output_dir, expcode, owners), default=-1)


def detector_info_from_run(expcode: str, runnum: int, xtc_dir: str | Path | None = None) -> dict[str, str]:
    """Return unique id by detector name, as a run's files say; empty if they cannot be read."""
    try:
        if xtc_dir is None:
            raise TypeError("xtc_dir is needed to find runs")
        verdict = judge_run(Path(xtc_dir), expcode, runnum)
    except (NightbeamError, TypeError) as error:
        _log.warning("run %s of %s cannot be read: %s", runnum, expcode, error)
        return {}
    if not verdict.usable:
        _log.warning("run %d of %s cannot be used: %s", runnum, expcode, "; ".join(verdict.reasons))
        return {}
    return verdict.det_info


def detector_info_from_file(
    output_dir: str | Path, expcode: str, runnum: int, *, owners: Iterable[str | int] = ()
) -> dict[str, str] | None:
    """Return unique id by detector name, as a cache file says; None if it cannot be used."""
    try:
        path = entry_path(Path(output_dir), expcode, runnum)
        entry = map_entry(path, owners=owners)
        found = load_pickle(path, owners=owners)["det_info"] if entry is None else entry.det_info
    except NightbeamError as error:
        _log.warning("%s", error)
        return None
    return dict(found)


def try_load_calib_const_from_file(
    output_dir: str | Path, expcode: str, *, owners: Iterable[str | int] = ()
) -> tuple[CalibConst, int]:
    """Return the constants of the highest run whose cache file can be used, and the run; ``({}, -1)`` if none can."""
    try:
        runs = sorted(_usable_runs(output_dir, expcode, owners), reverse=True)
    except NightbeamError as error:
        _log.warning("%s", error)
        return {}, -1
    for run in runs:
        try:
            return _as_dict(open_constants(expcode, run, Path(output_dir), owners=owners)), run
        except NightbeamError as error:
            _log.warning("%s", error)
    return {}, -1


def update_calib(
    expcode: str,
    latest_run: int | None = None,
    latest_info: Mapping[str, str] | None = None,
    output_dir: str | Path = _SHM,
    log: Log = None,
    xtc_dir: str | Path | None = None,
    skip_calib_load: Collection[str] = (),
    *,
    service: CalibService | None = None,
    owners: Iterable[str | int] = (),
    keep: int | None = KEEP,
) -> None:
    """Bring the cache up to date for a run, by default the latest one that can be used.

    Parameters
    ----------
    skip_calib_load
        Detectors to leave out, or ``"all"``.
    service
        Whom to ask; None: whom ``LCLS_CALIB_HTTP`` and ``CALIB_JWT`` name.
    owners
        Users whose cache files are trusted beside our own.
    keep
        How many runs of the experiment to keep; None: all.

    Raises
    ------
    NightbeamError
        As `nightbeam.calib.prefetch.prefetch`; what was in the cache is untouched.
    """
    _update(expcode, latest_run, latest_info, output_dir, log, xtc_dir, skip_calib_load, service, owners, keep)


def ensure_valid_calibconst(
    expcode: str,
    latest_run: int | None,
    latest_info: Mapping[str, str] | None,
    xtc_dir: str | Path | None,
    skip_calib_load: Collection[str],
    output_dir: str | Path = _SHM,
    log: Log = None,
    *,
    service: CalibService | None = None,
    owners: Iterable[str | int] = (),
    keep: int | None = KEEP,
) -> tuple[CalibConst, int]:
    """Return the constants that hold for the requested run, and its number.

    Where the service cannot be reached, a cache file of this very run with these very detectors is good enough, and
    a warning is logged. Another run's never is.

    Returns
    -------
    calib_const
        Detector name -> type of constant -> (data, document); None for a detector that was skipped. Arrays are
        read-only views of pages that all processes share.
    run
        The run they hold for; -1, with nothing, where no detectors were given or no run can be used.

    Raises
    ------
    NightbeamError
        If constants that are valid for the request cannot be had.
    """
    log = log or _log
    try:
        report, entry = _update(
            expcode, latest_run, latest_info, output_dir, log, xtc_dir, skip_calib_load, service, owners, keep
        )
    except NightbeamError as error:
        entry = _fallback(error, expcode, latest_run, latest_info, output_dir, skip_calib_load, owners)
        log.warning("%s; the constants that %s holds are used", error.what, entry.path)
        return _requested(entry, latest_info or {}, skip_calib_load), latest_run or 0
    if report.run is None or not report.detectors:
        return {}, -1
    asked = latest_info or {row.detector: row.unique_id for row in report.detectors}
    return _requested(entry, asked, skip_calib_load), report.run


def _update(
    expcode: str,
    run: int | None,
    info: Mapping[str, str] | None,
    output_dir: str | Path,
    log: Log,
    xtc_dir: str | Path | None,
    skip: Collection[str],
    service: CalibService | None,
    owners: Iterable[str | int],
    keep: int | None,
) -> tuple[PrefetchReport, CalibEntry | None]:
    opened = service or CalibService.from_environment(os.environ)
    try:
        report, entry = prefetch_and_open(
            expcode,
            output_dir=Path(output_dir),
            service=opened,
            xtc_dir=None if xtc_dir is None else Path(xtc_dir),
            run=run,
            det_info=info,
            skip=skip,
            keep=keep,
            owners=owners,
        )
    finally:
        if service is None:
            opened.close()
    if log is not None:
        what = f"{report.action}{f': {report.reason}' if report.reason else ''}"
        log.info("run %s of %s: %s, %.1f s", report.run, expcode, what, report.seconds)
    return report, entry


def _fallback(
    error: NightbeamError,
    expcode: str,
    run: int | None,
    info: Mapping[str, str] | None,
    output_dir: str | Path,
    skip: Collection[str],
    owners: Iterable[str | int],
) -> CalibEntry:
    """Return the cache file that serves the request although it could not be brought up to date, or raise the error."""
    if not error.retry or run is None or not info:
        raise error
    try:
        entry = map_entry(entry_path(Path(output_dir), expcode, run), owners=owners)
    except NightbeamError:
        raise error from None
    needed = {name: info[name] for name in set(info) - skipped_names(skip, info)}
    if entry is None or entry.index.experiment != expcode or needs_update(needed, entry.det_info):
        raise error
    return entry


def _requested(entry: CalibEntry | None, asked: Mapping[str, str], skip: Collection[str]) -> CalibConst:
    """Return the detectors that were asked for and no others, which may not have been looked at."""
    skipped = skipped_names(skip, asked)
    found: CalibConst = {}
    for name in asked:
        found[name] = None if entry is None or name in skipped else dict(entry[name])
    return found


def _as_dict(constants: Mapping[str, Any]) -> CalibConst:
    return {detector: dict(constants[detector]) for detector in constants}


def _usable_runs(output_dir: str | Path, expcode: str, owners: Iterable[str | int]) -> list[int]:
    lines = list_entries(Path(output_dir), expcode, owners=owners)
    return [line.run for line in lines if line.index is not None or is_whole(line.path, owners=owners)]
