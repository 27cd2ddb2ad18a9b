"""Scores of measures, and summaries for figures: pure functions on arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightbeam.gains.model import CalSolutions, CatalogueSource
from nightbeam.imaging.model import SourceFit
from nightbeam.qa.model import FlagCounts, Grade, Limits, Measure, Score, SourceComparison, VisibilitySample

__all__ = [
    "BySpacing",
    "FlagSummary",
    "GainPoints",
    "Panels",
    "bandpass_panels",
    "by_spacing",
    "compare_sources",
    "elongation",
    "gain_panels",
    "gain_points",
    "judge",
    "largest_gap",
    "sum_flags",
    "thermal_noise_jy",
    "worst_first",
]

Floats = NDArray[np.float64]

#: Edges of the classes of baseline length, as the flag report of a solution has them.
LENGTHS_M = (0.0, 50.0, 100.0, 200.0, 400.0, 800.0, 1600.0, 3200.0)
#: System equivalent flux density of one receptor of DSA-110.
SEFD_JY = 6500.0


# -- judging ----------------------------------------------------------------------------------------------------


def judge(measure: Measure) -> Score:
    """Return how a measure is to be taken.

    The score is 1 at the ideal and beyond, 0.5 at the limit of warning, 0 at the limit of bad and beyond, and
    runs straight between them. A measure is ``good`` up to the limit of warning, ``warn`` up to that of bad, then
    ``bad``: exactly those with a score of 0.5 or more are good, and what is bad has a score of 0. What could not be
    measured, or is not a number, is ``unknown`` and has no score. An infinite value is as far off as can be.
    """
    value, limits = measure.value, measure.limits
    if value is None or math.isnan(value):
        return Score(measure.name, None, measure.unit, None, Grade.UNKNOWN, measure.says)
    held = _held_against(value, limits)
    grade = _grade(held, limits)
    score = float(_straight(held, limits))
    if grade is not Grade.GOOD:  # where a step is too small for the arithmetic, the word decides
        score = 0.0 if grade is Grade.BAD else min(score, math.nextafter(0.5, 0.0))
    kept = value if math.isfinite(value) else None
    return Score(measure.name, kept, measure.unit, score, grade, _reason(measure, grade))


def _held_against(value: float, limits: Limits) -> float:
    if limits.of == "value":
        return value
    return max(value, 1.0 / value) if value > 0 else math.inf


def _grade(held: float, limits: Limits) -> Grade:
    sign = -1.0 if limits.more_is_better else 1.0
    if sign * held <= sign * limits.warn:
        return Grade.GOOD
    return Grade.WARN if sign * held <= sign * limits.bad else Grade.BAD


def _straight(held: float, limits: Limits) -> float:
    sign = -1.0 if limits.more_is_better else 1.0
    edges = [sign * limits.best, sign * limits.warn, sign * limits.bad]
    return float(np.interp(sign * held, edges, [1.0, 0.5, 0.0]))


def _reason(measure: Measure, grade: Grade) -> str:
    limits, unit = measure.limits, f" {measure.unit}" if measure.unit else ""
    beyond = "below" if limits.more_is_better else "above"
    what = "off by more than a factor of" if limits.of == "factor" else beyond
    if grade is Grade.BAD:
        return f"{measure.says} (bad {what} {limits.bad:g}{unit})"
    return f"{measure.says} (warning {what} {limits.warn:g}{unit})"


#: What people are to look at first.
_ORDER = {Grade.BAD: 0, Grade.WARN: 1, Grade.UNKNOWN: 2, Grade.GOOD: 3}


def worst_first(scores: Iterable[Score]) -> list[Score]:
    """Return scores in the order in which they deserve to be read: bad, warned of, unknown, good; the lowest first."""
    return sorted(scores, key=lambda s: (_ORDER[s.verdict], 2.0 if s.score is None else s.score, s.name))


# -- flags ------------------------------------------------------------------------------------------------------


class FlagSummary(NamedTuple):
    """What is flagged of working receptors: fractions by antenna, window and length of baseline.

    A receptor is dead if all that it has is flagged; ``receptors`` counts all that have data at all. A sample
    counts where both its receptors work. ``by_antenna`` leaves out antennas of which nothing works: ``dead_antennas``.
    """

    raw_fraction: float
    fraction: float
    receptors: int
    dead_receptors: int
    dead_antennas: tuple[str, ...]
    by_antenna: dict[str, float]
    by_window: dict[str, float]
    by_length: dict[str, float]
    samples: int
    good_samples: int


def sum_flags(counts: FlagCounts) -> FlagSummary:
    """Return the flagged fractions, dead receptors left out; NaN where nothing works."""
    total, flagged = counts.total.sum(axis=0), counts.flagged.sum(axis=0)
    seen = total.sum(axis=2) + total.sum(axis=1)  # (hand, ant): a pair counts for both its ends
    good = seen - flagged.sum(axis=2) - flagged.sum(axis=1)
    present, works = seen > 0, good > 0
    both = works[:, :, None] & works[:, None, :]
    all_of, bad = counts.total * both, counts.flagged * both
    per_antenna = [a.sum(axis=(0, 1, 3)) + a.sum(axis=(0, 1, 2)) for a in (all_of, bad)]
    dead = np.flatnonzero(present.any(axis=0) & ~works.any(axis=0))
    return FlagSummary(
        raw_fraction=_ratio(flagged.sum(), total.sum()),
        fraction=_ratio(bad.sum(), all_of.sum()),
        receptors=int(present.sum()),
        dead_receptors=int((present & ~works).sum()),
        dead_antennas=tuple(counts.antennas[i] for i in dead),
        by_antenna={
            counts.antennas[i]: _ratio(per_antenna[1][i], per_antenna[0][i]) for i in np.flatnonzero(per_antenna[0])
        },
        by_window={str(w): _ratio(bad[w].sum(), a.sum()) for w, a in enumerate(all_of) if a.sum()},
        by_length=_by_length(counts.lengths_m, bad.sum(axis=(0, 1)), all_of.sum(axis=(0, 1))),
        samples=int(total.sum()),
        good_samples=int((total - flagged).sum()),
    )


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else math.nan


def _by_length(lengths: Floats, flagged: Floats, total: Floats) -> dict[str, float]:
    out = {}
    for low, high in pairwise((*LENGTHS_M, math.inf)):
        inside = (lengths >= low) & (lengths < high) & (total > 0)
        if inside.any():
            name = f"{low:.0f}-{high:.0f} m" if math.isfinite(high) else f"over {low:.0f} m"
            out[name] = _ratio(flagged[inside].sum(), total[inside].sum())
    return out


def thermal_noise_jy(samples: int, *, width_hz: float, integration_s: float, sefd_jy: float = SEFD_JY) -> float:
    """Return the noise that receivers alone leave in an image of natural weights, Jy/beam; NaN without samples.

    One visibility of one product has ``SEFD / sqrt(2 width time)`` in each of its parts [1]_, and an image of Stokes
    I averages all of them.

    Parameters
    ----------
    samples
        Unflagged visibilities: baselines times channels times integrations times parallel hands.

    References
    ----------
    .. [1] Thompson, Moran & Swenson, *Interferometry and Synthesis in Radio Astronomy*, 3rd ed., sec. 6.2.
    """
    if samples <= 0 or not (width_hz > 0 and integration_s > 0):
        return math.nan
    return sefd_jy / math.sqrt(2.0 * width_hz * integration_s * samples)


# -- coverage ---------------------------------------------------------------------------------------------------


def largest_gap(spacing: Floats) -> tuple[float, float, float]:
    """Return the largest hole between neighbouring spacings: its relative width, where it begins and ends.

    The width is ``(outer - inner) / outer``, as configurations of arrays are compared by [1]_: near 0 where the
    coverage is dense, near 1 where a spacing stands alone. NaN with fewer than two spacings.

    References
    ----------
    .. [1] Lal, Lobanov & Jimenez-Monferrer (2009), SKA memo 107.
    """
    ordered = np.unique(spacing[np.isfinite(spacing) & (spacing > 0)])
    if len(ordered) < 2:
        return math.nan, math.nan, math.nan
    widths = np.diff(ordered) / ordered[1:]
    k = int(np.argmax(widths))
    return float(widths[k]), float(ordered[k]), float(ordered[k + 1])


def elongation(uv: Floats, *, most: int = 20_000) -> float:
    """Return how much wider the coverage (n, 2) is in one direction than in another; NaN without any.

    Width is the median distance from the line across the direction: of an array that has lost one of two arms half of
    the baselines lie along the other, and the coverage has next to no width across it, whatever its longest ones do. 96
    stations of DSA-110 have 1.2 to 1.8 from declination -20 to 55, without an arm more than 60.
    """
    if len(uv) > most:
        uv = uv[np.sort(np.random.default_rng(0).choice(len(uv), most, replace=False))]
    if not len(uv):
        return math.nan
    angles = np.radians(np.arange(0.0, 180.0, 5.0))
    widths = [float(np.median(np.abs(uv @ np.array([math.sin(a), math.cos(a)])))) for a in angles]
    return max(widths) / min(widths) if min(widths) > 1e-9 * max(widths) else math.inf


class BySpacing(NamedTuple):
    """Visibilities by spacing: the middle of each bin (kilo-wavelengths), then 16th, 50th and 84th percentiles.

    Phases are counted from the mean direction in the bin, so that a bin around 180 degrees is none of -180 to 180.
    """

    spacing_klambda: Floats
    amplitude: Floats
    phase_deg: Floats


def by_spacing(sample: VisibilitySample, *, bins: int = 30) -> BySpacing:
    """Return percentiles in bins of spacing with equally many visibilities each.

    Parameters
    ----------
    sample
        Not finite amplitudes are left out.
    bins
        Fewer where there are fewer than ten visibilities a bin.

    Returns
    -------
    BySpacing
        ``amplitude`` and ``phase_deg`` (3, bin).
    """
    good = np.isfinite(sample.amplitude)
    where = np.hypot(sample.u_klambda, sample.v_klambda)[good]
    order = np.argsort(where, kind="stable")
    pieces = [p for p in np.array_split(order, max(1, min(bins, len(order) // 10))) if len(p)]
    amplitude, phase = sample.amplitude[good], sample.phase_deg[good]
    levels = np.array([np.percentile(amplitude[p], (16, 50, 84)) for p in pieces]).reshape(-1, 3).T
    phases = np.array([_phase_levels(phase[p]) for p in pieces]).reshape(-1, 3).T
    return BySpacing(np.array([np.median(where[p]) for p in pieces]), levels, phases)


def _phase_levels(phase_deg: Floats) -> Floats:
    turned = phase_deg[np.isfinite(phase_deg)]
    if not len(turned):
        return np.full(3, np.nan)
    mean = np.degrees(np.angle(np.exp(1j * np.radians(turned)).mean()))
    return np.asarray(mean + np.percentile((turned - mean + 180.0) % 360.0 - 180.0, (16, 50, 84)))


# -- solutions --------------------------------------------------------------------------------------------------


class Panels(NamedTuple):
    """Solutions by antenna along frequency or time: NaN where there is none.

    ``antennas`` (n,) names; ``x`` (point,) ascending; ``amplitude`` and ``phase_deg`` (pol, n, point). ``without``
    names the antennas that have no solution.
    """

    antennas: tuple[str, ...]
    x: Floats
    amplitude: Floats
    phase_deg: Floats
    without: tuple[str, ...]


def bandpass_panels(solutions: CalSolutions, *, most_points: int = 64) -> Panels:
    """Return a bandpass by antenna and frequency (MHz), averaged over time and over neighbouring channels.

    No more than ``most_points`` remain of an antenna, and fewer of a large array.
    """
    windows = [np.atleast_1d(f) for f in solutions.freqs_hz]
    freqs = np.concatenate(windows)
    rank = np.argsort(np.argsort(freqs, kind="stable"), kind="stable")
    begins = np.cumsum([0, *map(len, windows)])
    places = [rank[begins[s] : begins[s + 1]] for s in map(int, solutions.spw)]
    return _panels(solutions, np.sort(freqs) / 1e6, places, most_points)


def gain_panels(solutions: CalSolutions, *, most_points: int = 64) -> Panels:
    """Return gains by antenna and time (minutes from the first), averaged over windows and neighbouring times."""
    # Solutions of one interval differ by fractions of a second from window to window.
    seconds = np.round(solutions.time_mjd * 86400.0)
    distinct, which = np.unique(seconds, return_inverse=True)
    places = [np.full(solutions.values.shape[1], k) for k in which]
    return _panels(solutions, (distinct - distinct[:1]) / 60.0, places, most_points)


def _panels(solutions: CalSolutions, x: Floats, places: Sequence[NDArray[Any]], most_points: int) -> Panels:
    """Average solutions by antenna; ``places`` says to which of ``x`` each channel of a row belongs."""
    pols, antennas = solutions.polarizations, len(solutions.antennas)
    pieces = min(len(x), max(8, min(most_points, 8_000 // max(1, pols * len(np.unique(solutions.antenna))))))
    piece = np.arange(len(x)) * pieces // max(1, len(x))
    total = np.zeros((antennas, pieces, pols), complex)
    size, count = np.zeros((antennas, pieces, pols)), np.zeros((antennas, pieces, pols))
    for row, of in enumerate(places):
        values, flags = solutions.values[row, : len(of)], solutions.flags[row, : len(of)]
        good = ~flags & np.isfinite(values)
        values = np.where(good, values, 0)
        into = total[solutions.antenna[row]], size[solutions.antenna[row]], count[solutions.antenna[row]]
        for out, what in zip(into, (values, np.abs(values), good), strict=True):
            np.add.at(out, piece[of], what)
    with np.errstate(invalid="ignore", divide="ignore"):
        amplitude = np.where(count > 0, size / count, np.nan)
    phase = np.where(count > 0, np.degrees(np.angle(total)), np.nan)
    alive = (count > 0).any(axis=(1, 2))
    present: NDArray[np.bool_] = np.isin(np.arange(antennas), solutions.antenna)
    middles = np.bincount(piece, x, pieces) / np.bincount(piece, minlength=pieces) if len(x) else x
    names, without = np.array(solutions.antennas, dtype=object), present & ~alive
    return Panels(
        antennas=tuple(names[alive].tolist()),
        x=middles,
        amplitude=amplitude[alive].transpose(2, 0, 1),
        phase_deg=phase[alive].transpose(2, 0, 1),
        without=tuple(names[without].tolist()),
    )


class GainPoints(NamedTuple):
    """Single gains: parallel arrays (n,). ``antenna`` is the number of a name in ``names``."""

    names: tuple[str, ...]
    antenna: NDArray[np.int64]
    polarization: NDArray[np.int64]
    minutes: Floats
    amplitude: Floats
    phase_deg: Floats


def gain_points(solutions: CalSolutions) -> GainPoints:
    """Return every unflagged gain of a table, with minutes from its first; delays appear as amplitudes in ns."""
    good = ~solutions.flags & np.isfinite(solutions.values)
    row, _, pol = np.nonzero(good)
    values: NDArray[Any] = solutions.values[good]
    present = np.unique(solutions.antenna[row])
    start = float(solutions.time_mjd.min()) if len(solutions.time_mjd) else 0.0
    return GainPoints(
        names=tuple(solutions.antennas[int(k)] for k in present),
        antenna=np.searchsorted(present, solutions.antenna[row]).astype(np.int64),
        polarization=pol.astype(np.int64),
        minutes=(solutions.time_mjd[row] - start) * 1440.0,
        amplitude=np.abs(values) if np.iscomplexobj(values) else np.asarray(values, float),
        phase_deg=np.degrees(np.angle(values)),
    )


# -- sources ----------------------------------------------------------------------------------------------------


def compare_sources(
    fits: Sequence[SourceFit],
    sources: Sequence[CatalogueSource],
    *,
    catalogue: str,
    beam_arcsec: tuple[float, float] = (math.nan, math.nan),
) -> SourceComparison:
    """Return measured sources beside those of a list, in the same order; sources without a flux are left out.

    Peaks are compared, which for what is no larger than the beam are its flux. A Gaussian of the width of the beam is
    found to ``width / (2 SNR)`` along each axis [1]_; of the two widths the geometric mean is taken.

    References
    ----------
    .. [1] Condon (1997), *Errors in Elliptical Gaussian Fits*, PASP 109, 166.
    """
    pairs = [(f, s) for f, s in zip(fits, sources, strict=True) if s.flux_jy]
    found = np.array([f.found for f, _ in pairs], bool)
    listed = np.array([s.flux_jy for _, s in pairs], float)
    measured = np.array([f.peak_jy for f, _ in pairs], float)
    east, north = np.array([_offset_arcsec(f) for f, _ in pairs]).reshape(-1, 2).T
    width = math.sqrt(beam_arcsec[0] * beam_arcsec[1])
    error = width / (2.0 * np.array([f.snr for f, _ in pairs], float))
    measured, east, north, error = (np.where(found, values, np.nan) for values in (measured, east, north, error))
    return SourceComparison(
        catalogue=catalogue,
        names=tuple(s.name for _, s in pairs),
        catalogue_jy=listed,
        found=found,
        measured_jy=measured,
        ratio=measured / listed,
        east_arcsec=east,
        north_arcsec=north,
        error_arcsec=error,
    )


def _offset_arcsec(fit: SourceFit) -> tuple[float, float]:
    turn = (fit.found_ra_deg - fit.ra_deg + 180.0) % 360.0 - 180.0
    return turn * math.cos(math.radians(fit.dec_deg)) * 3600.0, (fit.found_dec_deg - fit.dec_deg) * 3600.0
