"""An image beside the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nightbeam.demo.model import SourceCheck
from nightbeam.imaging import SourceFit
from nightbeam.simulate import SkySource
from nightbeam.sky import separation

__all__ = ["check_sources", "flux_at", "judge_sources", "sources_in_reach"]

#: A source this many times brighter than the noise must be found, this close to its place.
CERTAIN_SNR = 20.0
MOST_OFFSET_BEAMS = 0.3
#: How far the middle flux ratio may be from one; single faint sources scatter more (confusion, noise).
MOST_MEDIAN_FLUX_ERROR = 0.03
#: In the calibrator's own field, for the calibrator, and for the sources around it: these were not in the model on
#: which the gains were solved, so that the gains take up some of their flux.
MOST_CALIBRATOR_FLUX_ERROR = 0.03
MOST_MEDIAN_ERROR_AROUND_CALIBRATOR = 0.15


def flux_at(source: SkySource, freq_hz: float, *, reference_hz: float) -> float:
    """Return the flux of a source in Jy at a frequency, from its flux at the reference."""
    return float(source.flux_jy * (freq_hz / reference_hz) ** source.spectral_index)


def sources_in_reach(
    sources: Sequence[SkySource], *, ra_deg: float, dec_deg: float, radius_deg: float
) -> list[SkySource]:
    """Return the sources within ``radius_deg`` of a centre, nearest first."""
    near = [(float(separation(s.ra_deg, s.dec_deg, ra_deg, dec_deg)), s) for s in sources]
    return [s for away, s in sorted(near, key=lambda pair: pair[0]) if away <= radius_deg]


def check_sources(
    fits: Sequence[SourceFit], sources: Sequence[SkySource], *, freq_hz: float, reference_hz: float, noise_jy: float
) -> list[SourceCheck]:
    """Return one check for each source that is bright enough to be certain.

    Parameters
    ----------
    fits, sources
        Measured and true, in the same order.
    freq_hz, reference_hz
        Of the image, and of the true fluxes.
    noise_jy
        Of the image before primary-beam correction, which is why the beam at each source counts.
    """
    checks = []
    for fit, source in zip(fits, sources, strict=True):
        true = flux_at(source, freq_hz, reference_hz=reference_hz)
        if not math.isfinite(fit.pb) or true * fit.pb < CERTAIN_SNR * noise_jy:
            continue
        ratio = fit.peak_jy / true if fit.found else math.nan
        checks.append(SourceCheck(source.name, true, fit.found, ratio, fit.offset_beams))
    return checks


def judge_sources(checks: Sequence[SourceCheck], *, calibrator: str | None = None) -> tuple[str, ...]:
    """Return what is wrong with an image, in words; nothing if it agrees with the truth.

    ``calibrator`` names the source on which the gains of this very image were solved, if there is one.
    """
    if not checks:
        return ("no source is bright enough to be checked",)
    problems = [f"{c.name} ({c.true_jy:.2f} Jy) is not in the image" for c in checks if not c.found]
    problems += [
        f"{c.name} is {c.offset_beams:.2f} beams from its place"
        for c in checks
        if c.found and c.offset_beams > MOST_OFFSET_BEAMS
    ]
    return (*problems, *_flux_problems([c for c in checks if c.found], calibrator))


def _flux_problems(found: Sequence[SourceCheck], calibrator: str | None) -> list[str]:
    others = [c.flux_ratio for c in found if c.name != calibrator]
    problems = [
        f"the calibrator's flux is {c.flux_ratio:.3f} of the truth"
        for c in found
        if c.name == calibrator and abs(c.flux_ratio - 1.0) > MOST_CALIBRATOR_FLUX_ERROR
    ]
    most = MOST_MEDIAN_FLUX_ERROR if calibrator is None else MOST_MEDIAN_ERROR_AROUND_CALIBRATOR
    if others and abs(float(np.median(others)) - 1.0) > most:
        problems.append(f"fluxes are {float(np.median(others)):.3f} of the truth in the median")
    return problems
