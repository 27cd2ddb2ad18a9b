"""Stores of scans from beginning to end: what is to do, what failed, what is tried again."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr

from nightbeam import __version__
from nightbeam.atmosphere import AtmosphereModel
from nightbeam.core.times import iso_z, utc_now
from nightbeam.scans.files import RawStore
from nightbeam.scans.model import (
    Atmosphere,
    CalibrationLoadFull,
    CalibrationResult,
    PipelineConfig,
    PipelineResult,
    PreparedData,
    RawScan,
    ScanFailure,
    ScanResult,
    StoreReadError,
)
from nightbeam.scans.pipeline import Pipeline
from nightbeam.scans.report import failures_path, read_failures, read_rejected, require_ours, write_failures
from nightbeam.scans.results import ResultStore, arrays_of
from nightbeam.scans.run import NOT_OF_A_SOURCE, KnownCalibrations, Run

__all__ = ["NOT_OF_A_SOURCE", "calibrate_single_scan", "calibrate_store", "plan_store", "write_calibration_result"]

_log = logging.getLogger(__name__)


def calibrate_store(
    l0: Path,
    l1: Path,
    config: PipelineConfig | None = None,
    *,
    air: AtmosphereModel | None = None,
    stop: threading.Event | None = None,
    on_begin: Callable[[int], None] | None = None,
    on_scan: Callable[[ScanResult | ScanFailure], None] | None = None,
    read: Callable[..., RawScan] | None = None,
    known: KnownCalibrations | None = None,
) -> PipelineResult:
    """Calibrate all scans of a source in a store that have not been calibrated yet.

    A scan that fails stops nothing: it is written to ``failures.json``. One that could not be read, or met a mistake
    in the program, is tried again after all others.

    Parameters
    ----------
    l0, l1
        Stores of raw scans, and of results.
    air
        An atmosphere to use in place of what ``config`` says. Scans that were done with it are recognised by its
        class and its fields, if it is a dataclass of numbers, words and arrays, or else by its attribute ``name``.
        One without either has all scans done again in every run, which is said as a warning.
    stop
        Ends the run soon when it is set; what is not whole is left out and done next time.
    on_begin
        Is told the number of scans that are to do.
    on_scan
        Is told each result and each failure (those that are tried again, after the last attempt).
    read
        Reads in place of `RawStore.read`; for tests and benchmarks.
    known
        What earlier calls for this store have read of its load calibrations, which is added to.

    Raises
    ------
    MissingError, InputError
        If there is no store of raw scans, or something else in the place of results.
    BusyError
        If another run writes these results.
    StorageError
        If results cannot be written; those that are there stay.
    UsageError
        If a scan that was asked for is none of a source, or something else lies where failures are to be written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from nightbeam.testing.night import Fault, NightPlan, simulate_night
    >>> plan = NightPlan(scans=3, pixels=2, channels=64, dumps=4, faults=(Fault("no-off", 2),))
    >>> with TemporaryDirectory() as place:
    ...     l0, l1 = Path(place, "night.zarr"), Path(place, "calibrated.zarr")
    ...     truth = simulate_night(l0, plan)
    ...     found = calibrate_store(l0, l1, PipelineConfig(atmosphere="closed-form"))
    >>> [one.scan for one in found.successes], [(one.scan, one.error) for one in found.failures], found.exit_code
    ([1, 3], [(2, 'MissingOffError')], 2)
    """
    config = config or PipelineConfig()
    _check_failures(l1, config)
    run = Run(RawStore(l0), ResultStore(l1, **_about(l0)), config, air=air, stop=stop, read=read, known=known)
    result = _work_through(run, on_begin, on_scan)
    if not (result.successes or result.failures or result.skipped or result.stopped):
        _log.warning("%s has no scan of a source", l0)
    return result


def calibrate_single_scan(
    l0: Path,
    l1: Path,
    scan: int,
    config: PipelineConfig | None = None,
    *,
    air: AtmosphereModel | None = None,
    stop: threading.Event | None = None,
) -> ScanResult:
    """Calibrate one scan, in the same way; one that has been done is done again.

    ``failures.json`` is told as well.

    Raises
    ------
    CalibrationError
        Whatever is wrong with it.
    NightbeamError
        As of `calibrate_store`; also what else went wrong with the scan.
    """
    config = replace(config or PipelineConfig(), scans=(scan,), force=True)
    _check_failures(l1, config)
    run = Run(RawStore(l0), ResultStore(l1, **_about(l0)), config, air=air, stop=stop)
    result = _work_through(run)
    if result.successes:
        return result.successes[0]
    raise run.error or StoreReadError(f"scan {scan} is not complete yet", fix="wait until it has been written")


def plan_store(l0: Path, l1: Path, config: PipelineConfig | None = None) -> list[tuple[int, str]]:
    """Return what a run would do with each scan: ``calibrate``, ``done``, ``incomplete`` or ``calibration``.

    Nothing is written, not even an empty store of results. Raises as `calibrate_store`.
    """
    config = config or PipelineConfig()
    run = Run(RawStore(l0), ResultStore(l1) if l1.exists() else None, config)
    todo, result = run.plan()
    words = dict.fromkeys(run.store.scans(), "calibration")
    words |= dict.fromkeys(todo, "calibrate") | dict.fromkeys(result.skipped, "done")
    words |= dict.fromkeys(result.incomplete, "incomplete")
    if config.scans is not None:
        words = {scan: what for scan, what in words.items() if scan in config.scans}
    return sorted(words.items())


def _check_failures(l1: Path, config: PipelineConfig) -> None:
    if config.failures is not None or l1.name:  # a place without a name is refused as one of results
        require_ours(config.failures or failures_path(l1))


def _about(l0: Path) -> dict[str, Any]:
    return {"l0": str(l0.resolve()), "version": __version__}


@contextlib.contextmanager
def _quiet_zarr() -> Iterator[None]:
    """Few threads: reading, calibrating and writing have theirs, and each of zarr's holds a chunk."""
    with zarr.config.set({"async.concurrency": 4, "threading.max_workers": 2}):
        yield


def _work_through(
    run: Run,
    on_begin: Callable[[int], None] | None = None,
    on_scan: Callable[[ScanResult | ScanFailure], None] | None = None,
) -> PipelineResult:
    """Do what is to do, as the only one who writes these results, and report what failed."""
    l0, l1, config = run.store.path, run.output.given, run.config
    started, run_id, path = iso_z(utc_now()), uuid.uuid4().hex[:12], config.failures or failures_path(l1)
    with run.output.sole_writer(), _quiet_zarr():
        run.rejected = {one.scan: one for one in read_rejected(path)}
        todo, result = run.plan()
        if on_begin is not None:
            on_begin(len(todo))
        if todo:
            run.output.describe(**_about(l0), config_hash=run.config_hash)
        result = _attempts(run, todo, result, on_scan or (lambda _: None))
        result = replace(result, rejected=run.still_rejected())
        write_failures(
            path, result, run_id=run_id, store=l0, output=l1, started=started, finished=iso_z(utc_now()),
            earlier=_others(path, result, run),
        )  # fmt: skip
    return result


def _attempts(
    run: Run, todo: Sequence[int], result: PipelineResult, on_scan: Callable[[ScanResult | ScanFailure], None]
) -> PipelineResult:
    """Work through the scans, and again through those for which a second try can help."""
    wait_s, config = run.config.retry_wait_s, run.config
    for attempt in range(config.retries + 1):
        last = attempt == config.retries

        def told(one: ScanResult | ScanFailure, last: bool = last) -> None:
            if isinstance(one, ScanResult) or last or not _can_heal(one):
                on_scan(one)

        run.look_anew()
        found = Pipeline(run, todo, told).run()
        healing = () if last else tuple(one for one in found.failures if _can_heal(one))
        for_good = tuple(one for one in found.failures if one not in healing)
        result = replace(
            result,
            successes=_by_scan((*result.successes, *found.successes)),
            failures=_by_scan((*result.failures, *for_good)),
            stopped=found.stopped,
        )
        if not healing:
            break
        todo = [one.scan for one in healing]
        if not found.stopped:
            _log.warning("scans %s are tried again in %.0f s", ", ".join(map(str, todo)), wait_s)
        if run.stop.wait(wait_s):
            # What was to be tried again has failed, as far as this run knows.
            for one in healing:
                on_scan(one)
            return replace(result, failures=_by_scan((*result.failures, *healing)), stopped=True)
        wait_s *= 2
    return result


def _can_heal(failure: ScanFailure) -> bool:
    return failure.kind in ("read", "internal")


def _by_scan(items: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(items, key=lambda one: int(one.scan)))


def _others(path: Path, result: PipelineResult, run: Run) -> list[ScanFailure]:
    """Return the failures that an earlier run left for scans that this one was not about, and that are still there."""
    if run.config.scans is None and not result.stopped:
        return []
    now = {one.scan for one in result.successes} | {one.scan for one in result.failures} | set(result.skipped)
    left = {*run.store.scans()} - now
    return [one for one in read_failures(path) if one.scan in left]


def write_calibration_result(
    output: ResultStore,
    scan: RawScan,
    prepared: PreparedData,
    load: CalibrationLoadFull,
    air: Atmosphere,
    result: CalibrationResult,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Write the result of the stages, all at once, and return its place: for those who call them themselves.

    Raises
    ------
    StorageError
        If it cannot be written; what was there stays.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from nightbeam.scans.stages import calibrate_full, determine_atmosphere_full, load_of_scan, prepare_tp
    >>> from nightbeam.testing.dish import Dish
    >>> dish = Dish(pixels=2, channels=64)
    >>> scan, load = dish.tp(7), load_of_scan(dish.calibration(1))
    >>> prepared = prepare_tp(scan)
    >>> air = determine_atmosphere_full(scan, load, dish.air, prepared)
    >>> result = calibrate_full(scan, prepared, load, air, dish.air)
    >>> with TemporaryDirectory() as place:
    ...     path = write_calibration_result(ResultStore(Path(place, "l1.zarr")), scan, prepared, load, air, result)
    ...     path.name, zarr.open_group(path, mode="r")["ta_star"].shape
    ('scan_000007', (2, 2, 64))
    """
    said: dict[str, Any] = {
        "obs_type": scan.info.obs_type,
        "source": scan.info.source,
        "calibration_scans": list(load.scans),
    }
    said |= {"pwv_mm": air.pwv_mm, "pwv_source": air.source, "temperature_scale": "rj-planck"}
    return output.write(scan.info.scan, arrays_of(scan, prepared, load, air, result), {**said, **(attributes or {})})
