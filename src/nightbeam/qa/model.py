"""What quality control measures, how it is judged, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import UsageError

__all__ = [
    "MOST_BYTES",
    "CalibrationUse",
    "FlagCounts",
    "Grade",
    "Limits",
    "Measure",
    "QaArtifact",
    "QaLimits",
    "QaReport",
    "Score",
    "SourceComparison",
    "VisibilitySample",
]

#: No figure and no JSON beside one is larger: pages show many of them at once.
MOST_BYTES = 100_000

Floats = NDArray[np.float64]


class Grade(StrEnum):
    """What a measure comes to, in a word."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Limits:
    """By what a measure is judged: beyond ``warn`` it is worth a warning, beyond ``bad`` it is bad.

    Attributes
    ----------
    warn, bad
        Whether more or less is better follows from their order.
    ideal
        Where nothing is left to wish for. None: as many times better than ``warn`` as that is better than ``bad``
        (for limits that are positive).
    of
        What is held against them: the ``value`` itself, or the ``factor`` by which it is off from 1, in
        either direction.

    Raises
    ------
    UsageError
        If the three do not follow one another.
    """

    warn: float
    bad: float
    ideal: float | None = None
    of: Literal["value", "factor"] = "value"

    def __post_init__(self) -> None:
        if self.ideal is None and not (self.warn > 0 and self.bad > 0):
            raise UsageError(f"limits {self.warn:g} and {self.bad:g} have no ideal", fix="name one, or positive limits")
        best = self.best
        if not (best < self.warn < self.bad or best > self.warn > self.bad):
            raise UsageError(
                f"limits {best:g} (ideal), {self.warn:g} (warning) and {self.bad:g} (bad) do not follow one another",
                fix="put the warning between the other two",
            )

    @property
    def best(self) -> float:
        """The ideal, whether given or worked out."""
        return self.warn * self.warn / self.bad if self.ideal is None else self.ideal

    @property
    def more_is_better(self) -> bool:
        """Whether a larger value is a better one."""
        return self.warn > self.bad


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that was measured, or could not be.

    Attributes
    ----------
    name
        Unique among the measures of its group or mosaic.
    value
        None where it could not be made; then ``says`` is why.
    unit
        Of the value; empty for a plain number.
    limits
        By what it is judged.
    says
        In words, with the value: "3 of 63 antennas are flagged by more than 50 %".
    """

    name: str
    value: float | None
    unit: str
    limits: Limits
    says: str


@dataclass(frozen=True, slots=True)
class Score:
    """A judged measure: ``score`` runs from 0 (bad) to 1 (nothing left to wish for), None where it is unknown."""

    name: str
    value: float | None
    unit: str
    score: float | None
    verdict: Grade
    reason: str


@dataclass(frozen=True, slots=True)
class QaLimits:
    """The limits of everything that is judged: from where on a warning, and from where on bad.

    What each means is said with the settings of the same names (``contimg.qa``).
    """

    flagged_fraction: tuple[float, float] = (0.2, 0.5)
    flagged_share: tuple[float, float] = (0.1, 0.3)
    dead_receptors: tuple[float, float] = (0.4, 0.7)
    bandpass_flagged: tuple[float, float] = (0.03, 0.2)
    solution_snr: tuple[float, float] = (10.0, 3.0)
    solved_antennas: tuple[float, float] = (12.0, 10.0)
    unsolved_receptors: tuple[float, float] = (0.15, 0.3)
    bandpass_scatter: tuple[float, float] = (0.1, 0.3)
    bandpass_phase_deg: tuple[float, float] = (20.0, 45.0)
    gain_scatter: tuple[float, float] = (0.5, 1.0)
    calibrator_ratio: tuple[float, float] = (1.5, 5.0)
    calibration_age_hours: tuple[float, float] = (1.0, 12.0)
    uv_gap: tuple[float, float] = (0.5, 0.8)
    uv_elongation: tuple[float, float] = (5.0, 20.0)
    dynamic_range: tuple[float, float] = (20.0, 5.0)
    noise_mjy: tuple[float, float] = (40.0, 100.0)
    thermal_factor: tuple[float, float] = (100.0, 500.0)
    peak_over_hole: tuple[float, float] = (4.0, 2.0)
    beam_elongation: tuple[float, float] = (3.0, 6.0)
    beam_factor: tuple[float, float] = (3.0, 6.0)
    flux_ratio: tuple[float, float] = (1.2, 1.5)
    astrometry_arcsec: tuple[float, float] = (2.0, 5.0)
    completeness: tuple[float, float] = (0.9, 0.6)
    missing_subbands: tuple[float, float] = (0.1, 0.5)
    rejected_tiles: tuple[float, float] = (0.25, 0.75)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Return the limits that a section of settings names; what it does not name is as by default.

        Raises
        ------
        UsageError
            If a name is unknown.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"no limit {', '.join(unknown)}", fix=f"one of {', '.join(sorted(known))}")
        return cls(**{name: (float(pair[0]), float(pair[1])) for name, pair in values.items()})


@dataclass(frozen=True, slots=True)
class QaArtifact:
    """One file of a group's or mosaic's quality control; ``name`` is unique within it."""

    group_id: str
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class QaReport:
    """What one call wrote, the report last, and how what was measured is judged."""

    artifacts: tuple[QaArtifact, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class CalibrationUse:
    """Which calibration served a group, how old it was, and what was said of it when it was solved.

    ``age_hours`` is how far it is from the data, whether before or after; ``ratio`` is the flux of the calibrator
    as corrected over that of its model, None where nobody has written it down.
    """

    set_name: str
    age_hours: float | None = None
    borrowed: bool = False
    solved_here: bool = False
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class FlagCounts:
    """Samples of the parallel hands of cross-correlations, all and flagged.

    Attributes
    ----------
    antennas : (ant,)
        Names, all of the array.
    lengths_m : (ant, ant)
        Distance of each pair.
    total, flagged : (window, hand, ant, ant)
        Of the pair, in the upper triangle.
    uv_klambda : (n, 2), float32
        Of rows that are not all flagged, at the middle of their window: all of them, or evenly many.
    width_hz, integration_s
        Of one sample: the median channel, the interval.
    telescope
        Its name.
    """

    antennas: tuple[str, ...]
    lengths_m: Floats
    total: Floats
    flagged: Floats
    uv_klambda: NDArray[np.float32]
    width_hz: float
    integration_s: float
    telescope: str = ""


@dataclass(frozen=True, slots=True)
class VisibilitySample:
    """Some unflagged cross-correlations, spread evenly over a Measurement Set.

    Attributes
    ----------
    column
        Where they come from.
    u_klambda, v_klambda : (n,)
        At the middle of each row's window.
    amplitude : (n,)
        Mean over the unflagged channels and parallel hands of the row, Jy (or the correlator's unit).
    phase_deg : (n,)
        Of the mean of the complex visibilities, -180 to 180.
    usable : float
        Share of the unflagged samples that are finite and not zero; NaN where there are none.
    """

    column: str
    u_klambda: Floats
    v_klambda: Floats
    amplitude: Floats
    phase_deg: Floats
    usable: float = float("nan")


@dataclass(frozen=True, slots=True)
class SourceComparison:
    """Sources of a list as an image shows them; parallel arrays (n,), one for each source that it should show.

    Attributes
    ----------
    catalogue
        What it is compared with, in words.
    names, catalogue_jy
        From the list.
    found : bool
    measured_jy, ratio, east_arcsec, north_arcsec
        NaN where it was not found; ``ratio`` is measured over listed.
    error_arcsec
        What the noise makes of a place along each axis, 1 sigma; NaN where it was not found, or the beam is not known.
    """

    catalogue: str
    names: tuple[str, ...] = ()
    catalogue_jy: Floats = field(default_factory=lambda: np.zeros(0))
    found: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    measured_jy: Floats = field(default_factory=lambda: np.zeros(0))
    ratio: Floats = field(default_factory=lambda: np.zeros(0))
    east_arcsec: Floats = field(default_factory=lambda: np.zeros(0))
    north_arcsec: Floats = field(default_factory=lambda: np.zeros(0))
    error_arcsec: Floats = field(default_factory=lambda: np.zeros(0))
