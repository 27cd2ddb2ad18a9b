"""Which load calibrations may serve a scan, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nightbeam.scans.model import (
    CalibrationError,
    CalibrationLoadFull,
    CalibrationOptions,
    NoCalibrationError,
    Tuning,
)
from nightbeam.scans.stages import between

__all__ = ["CalibrationScan", "candidates", "resolve_calibration_load_full"]


@dataclass(frozen=True, slots=True)
class CalibrationScan:
    """A calibration scan, as far as it has to be known to choose it.

    Attributes
    ----------
    time_s
        Its middle.
    """

    scan: int
    tuning: Tuning
    time_s: float


def candidates(
    scan: int,
    tuning: Tuning,
    ends_s: tuple[float, float],
    calibrations: Iterable[CalibrationScan],
    *,
    options: CalibrationOptions | None = None,
) -> list[tuple[int, ...]]:
    """Return what may calibrate a scan, best first: numbers of calibration scans, two where they serve together.

    Parameters
    ----------
    ends_s
        Begin and end of the scan; ages count from the nearer one.
    calibrations
        All there are.

    Raises
    ------
    NoCalibrationError
        If there is none of the same tuning, or none in time.

    Examples
    --------
    >>> tuning = Tuning(8e11, "USB", "fft", 1024, 8)
    >>> loads = [CalibrationScan(n, tuning, at) for n, at in ((1, 0.0), (5, 900.0), (9, 2000.0))]
    >>> candidates(6, tuning, (1000.0, 1600.0), loads)
    [(5,), (1,), (9,)]
    >>> candidates(6, tuning, (1000.0, 1600.0), loads, options=CalibrationOptions(cal_mode="linear"))
    [(5, 9), (5,), (1,), (9,)]
    """
    options, (begin_s, end_s) = options or CalibrationOptions(), ends_s
    forced = dict(options.force_calibration)
    every = list(calibrations)
    if scan in forced:
        chosen = next((one for one in every if one.scan == forced[scan]), None)
        if chosen is None or not tuning.matches(chosen.tuning):
            why = "is not there" if chosen is None else f"is of another tuning ({_words(chosen.tuning)})"
            raise NoCalibrationError(
                f"scan {scan} has to use calibration {forced[scan]}, which {why}", fix="name another calibration"
            )
        return [(forced[scan],)]
    same = [one for one in every if tuning.matches(one.tuning)]
    if not same:
        raise NoCalibrationError(
            f"scan {scan}: none of {len(every)} calibrations is of its tuning ({_words(tuning)})",
            fix="observe the loads with this tuning, or name a calibration",
        )
    age = {one.scan: max(0.0, begin_s - one.time_s, one.time_s - end_s) for one in same}
    in_time = sorted((one for one in same if age[one.scan] <= options.max_cal_age_s), key=lambda one: age[one.scan])
    if not in_time:
        raise NoCalibrationError(
            f"scan {scan}: the nearest calibration of its tuning is {min(age.values()):.0f} s away, at most "
            f"{options.max_cal_age_s:.0f} s are allowed",
            fix="observe the loads more often, or raise max_cal_age_s",
        )
    past = [one.scan for one in in_time if one.time_s <= end_s]
    future = [one.scan for one in in_time if one.time_s > end_s]
    if options.cal_mode == "nearest":
        return [(one.scan,) for one in in_time]
    singles = [(number,) for number in [*past, *future]]
    if options.cal_mode == "linear" and past and future:
        return [(past[0], future[0]), *singles]
    return [*singles]


def _words(tuning: Tuning) -> str:
    return (
        f"{tuning.lo_hz / 1e9:.6f} GHz {tuning.signal_sideband}, {tuning.backend}, {tuning.pixels} pixels of "
        f"{tuning.channels} channels from {tuning.first_hz / 1e9:.6f} to {tuning.last_hz / 1e9:.6f} GHz"
    )


def resolve_calibration_load_full(
    scan: int,
    at_s: float,
    choices: Iterable[tuple[int, ...]],
    load_of: Callable[[int], CalibrationLoadFull],
) -> tuple[CalibrationLoadFull, dict[int, CalibrationError]]:
    """Return the first calibration that is valid, and what was wrong with those before it.

    Parameters
    ----------
    at_s
        Middle of the scan: where two serve together, they are interpolated to it.
    choices
        As of `candidates`.
    load_of
        Makes a calibration of a scan's number; raises `CalibrationError` for those that are not valid.

    Raises
    ------
    CalibrationError
        That of the best one, if none is valid.

    Examples
    --------
    >>> from nightbeam.scans.stages import load_of_scan
    >>> from nightbeam.testing.dish import Dish
    >>> good, swapped = Dish(), Dish(t_hot_k=293.0, gamma=-2e4)
    >>> def load_of(number):
    ...     return load_of_scan((good if number == 1 else swapped).calibration(number))
    >>> load, failed = resolve_calibration_load_full(6, 1300.0, [(5,), (1,)], load_of)
    >>> load.scans, {number: type(error).__name__ for number, error in failed.items()}
    ((1,), {5: 'GainError'})
    >>> load.gain.t_rec.shape
    (4, 256)
    """
    failed: dict[int, CalibrationError] = {}
    for numbers in choices:
        if any(number in failed for number in numbers):
            continue
        loads = []
        for number in numbers:
            try:
                loads.append(load_of(number))
            except CalibrationError as error:
                failed[number] = error.with_traceback(None)  # which would keep the counts in memory
        if len(loads) == len(numbers):
            return loads[0] if len(loads) == 1 else between(loads[0], loads[1], at_s), failed
    if not failed:
        raise NoCalibrationError(f"scan {scan}: no calibration to choose from")
    number, first = next(iter(failed.items()))
    found = type(first)(f"scan {scan}, its calibration {number}: {first.what}", fix=first.fix)
    found.calibrations = tuple(failed)
    raise found from first
