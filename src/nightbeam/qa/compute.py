"""Summaries for figures and reports: spacings, bandpasses, gains. Pure functions on arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightbeam.gains.model import CalSolutions

__all__ = ["BinnedAmplitudes", "GainPoints", "Waterfall", "amplitudes_by_spacing", "gain_points", "waterfall"]

Floats = NDArray[np.float64]


class BinnedAmplitudes(NamedTuple):
    """Amplitudes by spacing: the middle of each bin (kilo-wavelengths), then 16th, 50th and 84th percentile."""

    spacing_klambda: Floats
    low: Floats
    median: Floats
    high: Floats


def amplitudes_by_spacing(spacing_klambda: Floats, amplitude: Floats, *, bins: int = 30) -> BinnedAmplitudes:
    """Return percentiles of amplitude in bins of spacing with equally many visibilities each.

    Parameters
    ----------
    spacing_klambda, amplitude : (n,)
        Not finite amplitudes are left out.
    bins
        Fewer where there are fewer than ten visibilities a bin.
    """
    good = np.isfinite(amplitude)
    order = np.argsort(spacing_klambda[good], kind="stable")
    pieces = np.array_split(order, max(1, min(bins, len(order) // 10)))
    pieces = [piece for piece in pieces if len(piece)]
    where, what = spacing_klambda[good], amplitude[good]
    levels = np.array([np.percentile(what[p], (16, 50, 84)) for p in pieces]).reshape(-1, 3)
    middles = np.array([np.median(where[p]) for p in pieces])
    return BinnedAmplitudes(middles, levels[:, 0], levels[:, 1], levels[:, 2])


class Waterfall(NamedTuple):
    """A bandpass by antenna: NaN where there is no solution.

    ``antennas`` (n,) names; ``freq_mhz`` (chan,) ascending; ``amplitude`` and ``phase_deg`` (pol, n, chan).
    """

    antennas: tuple[str, ...]
    freq_mhz: Floats
    amplitude: Floats
    phase_deg: Floats


def waterfall(solutions: CalSolutions) -> Waterfall:
    """Return a table's solutions by antenna and frequency, averaged over time; antennas without any are left out."""
    freqs = np.concatenate([np.atleast_1d(f) for f in solutions.freqs_hz])
    begins = np.cumsum([0, *(len(np.atleast_1d(f)) for f in solutions.freqs_hz)])
    shape = (solutions.polarizations, len(solutions.antennas), len(freqs))
    total, count = np.zeros(shape, complex), np.zeros(shape)
    for row in range(len(solutions.antenna)):
        antenna, spw = int(solutions.antenna[row]), int(solutions.spw[row])
        span = slice(begins[spw], begins[spw + 1])
        good = ~solutions.flags[row] & np.isfinite(solutions.values[row])
        total[:, antenna, span] += np.where(good, solutions.values[row], 0).T
        count[:, antenna, span] += good.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, total / count, np.nan)
    alive = np.isfinite(mean).any(axis=(0, 2))
    order = np.argsort(freqs, kind="stable")
    mean = mean[:, alive][:, :, order]
    names = tuple(name for name, lives in zip(solutions.antennas, alive, strict=True) if lives)
    phase = np.where(np.isfinite(mean), np.degrees(np.angle(mean)), np.nan)
    return Waterfall(names, freqs[order] / 1e6, np.abs(mean), phase)


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
    row, _, pol = np.nonzero(~solutions.flags & np.isfinite(solutions.values))
    values: NDArray[Any] = solutions.values[~solutions.flags & np.isfinite(solutions.values)]
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
