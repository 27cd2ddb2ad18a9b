"""What is observed in a simulated night, and the truth that lies beside its store.

Science scans have the numbers 1 to N in the order of time. A load calibration has the number of the science scan that
it is made for and `SHARED`, or `OWN` where only that scan can use it; so the number of no scan depends on what goes
wrong with others.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.core.files import write_text
from nightbeam.scans.model import Phase
from nightbeam.testing.dish import Dish, Line, Pointing, point_otf, point_tp
from nightbeam.testing.night_faults import Fault, Place

__all__ = [
    "OWN",
    "PAUSE_S",
    "SHARED",
    "NightPlan",
    "NightTruth",
    "ScanTruth",
    "read_truth",
    "truth_path",
    "truth_spectrum",
    "write_truth",
]

#: Added to a science scan's number: calibrations for it and those after it, and for it alone.
SHARED: Final = 100_000
OWN: Final = 200_000
_SCHEMA: Final = "night-truth"
_VERSION: Final = 1
#: Between two scans.
PAUSE_S: Final = 5.0
#: Loads are not used beyond this age.
_MOST_AGE_S: Final = 1800.0
_TP_ORDER: Final = "OFF ON ON OFF"
#: What the plan says of the telescope in the telescope's words.
_OF_DISH: Final = (
    "pixels", "channels", "width_hz", "lo_hz", "if_hz", "t_rec_k", "gamma", "gain_signal", "forward_eff",
    "main_beam_eff", "gain_drift", "noise", "seed", "lines", "temperature_k", "t_hot_k", "t_cold_k", "adc_ceiling",
    "begin_s", "altitude_m", "pressure_hpa",
)  # fmt: skip


# -- plan -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NightPlan:
    """What is observed in a night, with what, and what goes wrong.

    Attributes
    ----------
    scans
        Science scans.
    pixels, channels
    rows, dumps
        Rows of a map, and dumps on the source in each; in ``tp`` each row is a sequence OFF ON ON OFF.
    dump_s, off_s, tp_s, load_s
        Length of a map's dumps, of its references, of the dumps of a ``tp`` scan, of a load's.
    mode
        ``both``: maps and total power in turn.
    pwv_mm, elevation_deg
        At begin and end of the night; they change linearly from scan to scan.
    gain_drift
        Fraction by which the gain grows in an hour.
    gain_signal
        Of all pixels, or of each.
    calibration_every
        Science scans between two load calibrations.
    faults
        At most one a scan.

    Raises
    ------
    UsageError
        If such a night cannot be observed.
    """

    scans: int = 12
    pixels: int = 8
    channels: int = 1024
    rows: int = 4
    dumps: int = 20
    dump_s: float = 1.0
    off_s: float = 5.0
    tp_s: float = 10.0
    load_s: float = 20.0
    mode: Literal["otf", "tp", "both"] = "both"
    pwv_mm: tuple[float, float] = (0.60, 0.64)
    elevation_deg: tuple[float, float] = (42.0, 55.0)
    gain_drift: float = 0.02
    t_rec_k: float = 180.0
    gamma: float = 2e4
    gain_signal: float | tuple[float, ...] = 0.5
    lo_hz: float = 803.3e9
    if_hz: float = 6e9
    width_hz: float = 1e6
    lines: tuple[Line, ...] = (Line(5.0, 809.3e9, 40e6),)
    noise: bool = True
    seed: int = 1
    calibration_every: int = 4
    faults: tuple[Fault, ...] = ()
    forward_eff: float = 0.95
    main_beam_eff: float = 0.8
    temperature_k: float = 265.0
    t_hot_k: float = 293.0
    t_cold_k: float = 78.0
    adc_ceiling: float | None = 1e8
    begin_s: float = 61_000 * 86_400.0
    telescope: str = "FYST"
    altitude_m: float = 5612.0
    pressure_hpa: float = 520.0

    def __post_init__(self) -> None:
        if self.mode not in ("otf", "tp", "both"):
            raise UsageError(f"no way of observing is called {self.mode!r}", fix="otf, tp or both")
        if not 1 <= self.scans < SHARED:
            raise UsageError(f"a night of {self.scans} scans", fix=f"from 1 to {SHARED - 1}")
        if min(self.pixels, self.rows, self.dumps, self.calibration_every) < 1 or self.channels < 16:
            raise UsageError("a night without pixels, rows, dumps, calibrations, or with less than 16 channels")
        if self.seed < 0:
            raise UsageError(f"the seed {self.seed} is below zero")
        if isinstance(self.gain_signal, tuple) and len(self.gain_signal) != self.pixels:
            raise UsageError(f"{len(self.gain_signal)} sideband gains for {self.pixels} pixels")
        if (age := self._oldest_s()) > _MOST_AGE_S:
            raise UsageError(
                f"loads would be {age:.0f} s old in the middle of a scan, {_MOST_AGE_S:g} s are allowed",
                fix="lower calibration_every, or shorten the scans",
            )
        _check_faults(self)

    def fault_of(self, scan: int) -> Fault | None:
        """Return what goes wrong with a science scan."""
        return next((fault for fault in self.faults if fault.scan == scan), None)

    def kind_of(self, scan: int) -> Literal["otf", "tp"]:
        """Return how a science scan observes."""
        if self.mode != "both":
            return self.mode
        return "otf" if scan % 2 else "tp"

    def pointing(self, scan: int, *, at_s: float = 0.0, elevation_deg: float = 48.0) -> Pointing:
        """Return what the telescope looks at during a science scan."""
        if self.kind_of(scan) == "tp":
            order = " ".join([_TP_ORDER] * self.rows)
            return point_tp(order, at_s=at_s, elevation_deg=elevation_deg, seconds=self.tp_s)
        return point_otf(
            at_s=at_s,
            rows=self.rows,
            dumps=self.dumps,
            dump_s=self.dump_s,
            off_s=self.off_s,
            elevation_deg=elevation_deg,
        )

    def dish(self, **parts: Any) -> Dish:
        """Return the telescope; keywords replace its parts."""
        return Dish(**{name: getattr(self, name) for name in _OF_DISH} | parts)

    def length_s(self, scan: int) -> float:
        """Return how long a science scan takes."""
        return float(self.pointing(scan).duration_s.sum())

    @property
    def loads_s(self) -> float:
        """How long a load calibration takes: two loads and the sky, and the pause after them."""
        return 3 * self.load_s + PAUSE_S

    def _oldest_s(self) -> float:
        longest = max(self.length_s(1), self.length_s(min(2, self.scans)))
        turn = self.loads_s + longest + PAUSE_S
        return min(self.calibration_every, self.scans) * turn - 0.5 * longest + 0.5 * self.loads_s


def _check_faults(plan: NightPlan) -> None:
    seen: set[int] = set()
    for fault in plan.faults:
        if not 1 <= fault.scan <= plan.scans:
            raise UsageError(f"{fault}: the science scans are 1 to {plan.scans}")
        if fault.scan in seen:
            raise UsageError(f"{fault}: scan {fault.scan} has a fault already", fix="one fault a scan")
        if fault.kind == "dead-pixel" and plan.pixels < 2:
            raise UsageError(f"{fault}: it is the only pixel", fix="plan for two or more")
        if fault.kind in ("saturated", "saturated-samples") and plan.adc_ceiling is None:
            raise UsageError(f"{fault}: nothing saturates without a ceiling", fix="give the plan an adc_ceiling")
        seen.add(fault.scan)


# -- truth ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScanTruth:
    """What is in a science scan, and what its calibration is to say.

    Attributes
    ----------
    begin_s, end_s
        Seconds of MJD (UTC).
    pwv_mm, pwv_at_loads_mm
        During the scan, and when its calibration saw the sky; None where there is no calibration.
    gain_factor
        Gain in the middle of the scan in units of that at the night's begin.
    calibration
        Number of the load calibration that is to be used; None where none is to be.
    fault
        Its kind; None for a good scan.
    error
        Class that the calibration of the scan is to end with; None where it is to succeed.
    flag, flagged
        The flag that is owed, and where: dump on the source, pixel, channel, None for all. Without a place it depends
        on the air.
    """

    scan: int
    obs_type: str
    begin_s: float
    end_s: float
    elevation_deg: float
    pwv_mm: float
    pwv_at_loads_mm: float | None
    gain_factor: float
    lo_hz: float
    width_hz: float
    tuning_id: str
    calibration: int | None
    fault: str | None = None
    error: str | None = None
    flag: int = 0
    flagged: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class NightTruth:
    """What is in a simulated store.

    Attributes
    ----------
    plan
        Lines and receivers among the rest.
    air
        Class of the model that the sky is of.
    scans
        Science scans, in order.
    """

    plan: NightPlan
    air: str
    scans: tuple[ScanTruth, ...]

    def of(self, scan: int) -> ScanTruth:
        """Return the truth of one science scan.

        Raises
        ------
        MissingError
            If there is none of that number.
        """
        if not 1 <= scan <= len(self.scans):
            raise MissingError(f"scan {scan} is no science scan of the night", fix=f"they are 1 to {len(self.scans)}")
        return self.scans[scan - 1]

    def errors(self) -> dict[int, str]:
        """Return the scans that are to fail, each with the class of its error."""
        return {one.scan: one.error for one in self.scans if one.error is not None}


def truth_path(store: Path) -> Path:
    """Return where the truth of a store lies: ``night.truth.json`` beside ``night.zarr``."""
    return store.with_name(f"{store.name.removesuffix('.zarr')}.truth.json")


def truth_spectrum(truth: NightTruth, scan: int) -> NDArray[np.float64]:
    """Return what the source of a science scan has in truth.

    Parameters
    ----------
    truth, scan
        The scan is taken as it was planned, whatever has gone wrong with it.

    Returns
    -------
    (dump, pixel, channel), K
        ``T_A*`` of the dumps on the source.
    """
    known, plan = truth.of(scan), truth.plan
    pointing = plan.pointing(scan)
    spectra = plan.dish(lo_hz=known.lo_hz, width_hz=known.width_hz).source(pointing)[pointing.phase == Phase.ON]
    return np.repeat(spectra[:, None], plan.pixels, axis=1)


def read_truth(path: Path) -> NightTruth:
    """Return the truth that was written beside a store.

    Parameters
    ----------
    path
        Of the store, or of the truth.

    Raises
    ------
    MissingError
        If there is none.
    InputError
        If it cannot be understood.
    """
    place = path if path.suffix == ".json" else truth_path(path)
    try:
        found = json.loads(place.read_text())
        if (found["schema"], found["schema_version"]) != (_SCHEMA, _VERSION):
            raise InputError(f"{place} is no truth of a night", fix="simulate the night again")
        return NightTruth(_plan_of(found["plan"]), found["air"], tuple(_scan_of(one) for one in found["scans"]))
    except FileNotFoundError as error:
        raise MissingError(f"there is no truth {place}", fix="only simulated stores have one") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place} is no truth of a night: {error}", fix="simulate the night again") from error


def write_truth(store: Path, truth: NightTruth) -> None:
    """Write the truth beside a store, whole or not at all."""
    said = {"schema": _SCHEMA, "schema_version": _VERSION, "store": store.name, **asdict(truth)}
    said["plan"]["faults"] = [str(fault) for fault in truth.plan.faults]
    write_text(truth_path(store), json.dumps(said, indent=1) + "\n")


def _plan_of(found: dict[str, Any]) -> NightPlan:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    values["lines"] = tuple(Line(**line) for line in found["lines"])
    values["faults"] = tuple(Fault.parse(fault) for fault in found["faults"])
    return NightPlan(**values)


def _scan_of(found: dict[str, Any]) -> ScanTruth:
    return ScanTruth(**{**found, "flagged": tuple(tuple(place) for place in found["flagged"])})
