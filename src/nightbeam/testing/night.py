"""A night of single-dish observing whose truth is known, written as a store of raw scans.

What is observed is a `NightPlan`, what is in the store a `NightTruth` (see `nightbeam.testing.night_plan`), and what
can go wrong is in `nightbeam.testing.night_faults`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from nightbeam.atmosphere import AtmosphereModel, ClosedFormAtmosphere, Weather, airmass_of, transmission
from nightbeam.atmosphere.remote import casa_atmosphere
from nightbeam.core.errors import InputError, UsageError
from nightbeam.scans.files import create_raw_store, scan_name, write_raw_scan
from nightbeam.testing.dish import Dish
from nightbeam.testing.night_faults import Fault, FaultKind, leave_incomplete, write_zarr_v2
from nightbeam.testing.night_plan import (
    OWN,
    PAUSE_S,
    SHARED,
    NightPlan,
    NightTruth,
    ScanTruth,
    read_truth,
    truth_path,
    truth_spectrum,
    write_truth,
)

__all__ = [
    "OWN",
    "SHARED",
    "Fault",
    "NightPlan",
    "NightTruth",
    "ScanTruth",
    "casa_air",
    "leave_incomplete",
    "read_truth",
    "simulate_night",
    "truth_path",
    "truth_spectrum",
    "write_zarr_v2",
]

#: So much before the scan are the loads of the fault old-calibration.
_OLD_S: Final = 7200.0
#: Between the tunings of scans that are not to share calibrations; they match within 1 kHz.
_LO_STEP_HZ: Final = 10e3
#: Between these the water is found that makes the air opaque.
_WATER_MM: Final = (0.02, 7.5)
#: At least so wide is a spectrum of which a part is to be opaque.
_BAND_HZ: Final = 1e9
_GOOD: Final = FaultKind("nothing is wrong")


def simulate_night(
    out: Path,
    plan: NightPlan,
    *,
    air: AtmosphereModel | None = None,
    on_scan: Callable[[ScanTruth], None] | None = None,
) -> NightTruth:
    """Write the store of a night, scan by scan, and beside it its truth.

    A scan's counts follow from the plan, its number and its own fault; what goes wrong with others does not change a
    bit of them.

    Parameters
    ----------
    out
        The store, which is not there yet.
    air
        Above the telescope; `ClosedFormAtmosphere` where nothing is said.
    on_scan
        Called after each science scan.

    Raises
    ------
    InputError
        If there is something at the place.
    UsageError
        If a fault asks for an opaque sky, and the air at these frequencies never is.
    StorageError
        If it cannot be written.
    """
    for there in (out, truth_path(out)):
        if there.exists():
            raise InputError(f"{there} is there already", fix="remove it, or name another place")
    air = air or ClosedFormAtmosphere()
    night, scans = _Night(out, plan, air), []
    create_raw_store(out, telescope=plan.telescope, altitude_m=plan.altitude_m, instrument="simulated")
    for turn in night.turns:
        scans.append(night.write(turn))
        if on_scan is not None:
            on_scan(scans[-1])
    truth = NightTruth(plan, type(air).__name__, tuple(scans))
    write_truth(out, truth)
    return truth


def casa_air(plan: NightPlan, *, cache_dir: Path | None = None) -> AtmosphereModel:
    """Return CASA's air above a night, for both sidebands of all its tunings.

    Parameters
    ----------
    cache_dir
        Where its layers are kept; None: in the user's cache directory.

    Raises
    ------
    ToolError
        If CASA cannot be asked.
    """
    half = 0.5 * max(plan.channels * plan.width_hz, _BAND_HZ) + _LO_STEP_HZ * plan.scans
    offset = np.array([plan.if_hz - half, plan.if_hz + half])
    bands = [(plan.lo_hz + sign * offset) / 1e9 for sign in (1, -1)]
    weather = Weather(plan.altitude_m, plan.pressure_hpa, plan.temperature_k)
    return casa_atmosphere(weather, bands, cache_dir=cache_dir or Path.home() / ".cache" / "nightbeam" / "air")


@dataclass(frozen=True, slots=True)
class _Turn:
    """When a science scan and its calibrations are observed, in seconds from the night's begin."""

    scan: int
    at_s: float
    shared: int
    shared_at_s: float
    own_at_s: float


def _turns(plan: NightPlan) -> tuple[list[_Turn], float]:
    """Return each turn, and when the night ends; a scan has the time for loads of its own, used or not."""
    at_s, shared, shared_at_s, turns = 0.0, 0, 0.0, []
    for scan in range(1, plan.scans + 1):
        if (scan - 1) % plan.calibration_every == 0:
            shared, shared_at_s = SHARED + scan, at_s
            at_s += plan.loads_s
        turns.append(_Turn(scan, at_s + plan.loads_s, shared, shared_at_s, at_s))
        at_s = turns[-1].at_s + plan.length_s(scan) + PAUSE_S
    return turns, at_s


class _Night:
    """A night that is being written."""

    def __init__(self, out: Path, plan: NightPlan, air: AtmosphereModel) -> None:
        self.out, self.plan, self.air = out, plan, air
        self.turns, self.end_s = _turns(plan)
        for fault in plan.faults:
            # Before anything is written: the air may not be able to do what is asked of it.
            self._dish_of(self.turns[fault.scan - 1], fault.meaning)

    def write(self, turn: _Turn) -> ScanTruth:
        """Write a science scan, and the calibrations that are made for it."""
        if turn.shared == SHARED + turn.scan:
            self._write_loads(turn.shared, turn.shared_at_s, self._dish(turn.shared_at_s))
        fault = self.plan.fault_of(turn.scan)
        kind = _GOOD if fault is None else fault.meaning
        dish = self._dish_of(turn, kind)
        truth = self._truth(turn, fault, dish)
        if kind.calibration in ("own", "old"):
            own_at_s = turn.at_s - _OLD_S if kind.calibration == "old" else turn.own_at_s
            self._write_loads(OWN + turn.scan, own_at_s, dish, kind)
        pointing = self.plan.pointing(turn.scan, at_s=turn.at_s, elevation_deg=truth.elevation_deg)
        scan = dish.observe(turn.scan, self.plan.kind_of(turn.scan), pointing)
        truth = replace(truth, flagged=kind.places(scan))
        write_raw_scan(self.out, kind.of_scan(scan))
        if kind.of_files is not None:
            kind.of_files(self.out / "scans" / scan_name(turn.scan))
        return truth

    def _write_loads(self, number: int, at_s: float, dish: Dish, kind: FaultKind = _GOOD) -> None:
        elevation = self._now(self.plan.elevation_deg, at_s)
        loads = dish.calibration(number, at_s=at_s, elevation_deg=elevation, seconds=self.plan.load_s)
        write_raw_scan(self.out, kind.of_load(loads))

    def _now(self, ends: tuple[float, float], at_s: float) -> float:
        """Return what changes linearly in the night, at some time of it."""
        return float(np.interp(at_s, (0.0, self.end_s), ends))

    def _dish(self, at_s: float) -> Dish:
        return self.plan.dish(air=self.air, pwv_mm=self._now(self.plan.pwv_mm, at_s))

    def _dish_of(self, turn: _Turn, kind: FaultKind) -> Dish:
        """Return the telescope as it observes a science scan: at a tuning of its own where the fault wants that."""
        dish = self._dish(turn.at_s)
        if kind.calibration == "shared":
            return dish
        own = replace(dish, tuning_id=f"sim-{turn.scan}", lo_hz=dish.lo_hz + _LO_STEP_HZ * turn.scan)
        if kind.transmission is None:
            return own
        # A drift of the gain between load and sky would pass for water, and a narrow band is opaque all or not at all.
        own = replace(own, gain_drift=0.0, width_hz=max(own.width_hz, _BAND_HZ / own.channels))
        elevation = self._now(self.plan.elevation_deg, turn.at_s)
        return replace(own, pwv_mm=_opaque_water_mm(self.air, own.freq_hz / 1e9, elevation, kind))

    def _truth(self, turn: _Turn, fault: Fault | None, dish: Dish) -> ScanTruth:
        plan, length_s = self.plan, self.plan.length_s(turn.scan)
        kind = _GOOD if fault is None else fault.meaning
        calibration = {"shared": turn.shared, "own": OWN + turn.scan}.get(kind.calibration)
        shared_pwv_mm = self._now(plan.pwv_mm, turn.shared_at_s)
        return ScanTruth(
            scan=turn.scan,
            obs_type=plan.kind_of(turn.scan),
            begin_s=plan.begin_s + turn.at_s,
            end_s=plan.begin_s + turn.at_s + length_s,
            elevation_deg=self._now(plan.elevation_deg, turn.at_s),
            pwv_mm=dish.pwv_mm,
            pwv_at_loads_mm={"shared": shared_pwv_mm, "own": dish.pwv_mm}.get(kind.calibration),
            gain_factor=1 + dish.gain_drift * (turn.at_s + 0.5 * length_s) / 3600.0,
            lo_hz=dish.lo_hz,
            width_hz=dish.width_hz,
            tuning_id=dish.tuning_id,
            calibration=calibration,
            fault=None if fault is None else fault.kind,
            error=None if kind.error is None else kind.error.__name__,
            flag=int(kind.flag),
        )


def _opaque_water_mm(
    air: AtmosphereModel, freq_ghz: NDArray[np.float64], elevation_deg: float, kind: FaultKind
) -> float:
    """Return the water that lets so little through as the fault wants."""
    path, wanted = float(airmass_of(elevation_deg)), kind.transmission
    assert wanted is not None
    best = np.median if kind.opaque_channels == "half" else np.max

    def excess(log_pwv: float) -> float:
        return float(best(transmission(air.opacity(freq_ghz, np.exp(log_pwv)), path)) - wanted)

    low_mm, high_mm = _WATER_MM
    low, high = np.log(low_mm), np.log(high_mm)
    if excess(high) > 0 or excess(low) < 0:
        raise UsageError(
            f"at {freq_ghz.mean():.0f} GHz no water from {low_mm:g} to {high_mm:g} mm lets {wanted:g} through",
            fix="plan other frequencies, or leave the opaque scans out",
        )
    return float(np.exp(brentq(excess, low, high, xtol=1e-12)))
