"""What is measured of a group and of a mosaic: numbers in, measures with their limits and words out. Pure functions."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nightbeam.catalog.model import MosaicRow
from nightbeam.gains.model import TableStats
from nightbeam.imaging.model import ImageProduct
from nightbeam.qa.compute import FlagSummary, elongation, judge, largest_gap
from nightbeam.qa.model import CalibrationUse, Grade, Limits, Measure, QaLimits, Score, SourceComparison

__all__ = [
    "Unread",
    "calibration_measures",
    "corrected_measures",
    "coverage_measures",
    "flag_measures",
    "image_measures",
    "judge_mosaic",
    "source_measures",
    "subband_measures",
    "table_measures",
]


#: Of the noise over that of the receivers, where it is below 1: what they leave is known that well.
_LESS_THAN_THERMAL = Limits(0.85, 0.7, ideal=1.0)


@dataclass(frozen=True, slots=True)
class Unread:
    """Stands for what could not be read or worked out, and says why."""

    reason: str


def _fraction(pair: tuple[float, float]) -> Limits:
    return Limits(*pair, ideal=0.0)


def _unmade(specs: Mapping[str, tuple[str, Limits]], reason: str) -> list[Measure]:
    return [Measure(name, None, unit, limits, reason) for name, (unit, limits) in specs.items()]


def _measure(
    specs: Mapping[str, tuple[str, Limits]], name: str, value: float | None, says: str, *, unmade: str = ""
) -> Measure:
    unit, limits = specs[name]
    if value is None or math.isnan(value):
        return Measure(name, None, unit, limits, unmade or f"{name.replace('_', ' ')} is not known")
    return Measure(name, float(value), unit, limits, says)


def _percent(fraction: float) -> str:
    return f"{100.0 * fraction:.3g} %"


def _names(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# -- visibilities -----------------------------------------------------------------------------------------------


def flag_measures(found: FlagSummary | Unread, limits: QaLimits) -> list[Measure]:
    """Return what is flagged: of working receptors, and how many antennas, windows and lengths are mostly flagged.

    Dead receptors (those with everything flagged) are left out of the fractions and counted on their own.
    """
    receptors = 0 if isinstance(found, Unread) else found.receptors
    specs = {
        "flagged": ("", _fraction(limits.flagged_fraction)),
        "flagged_antennas": ("", _fraction(limits.flagged_share)),
        "flagged_windows": ("", _fraction(limits.flagged_share)),
        "flagged_lengths": ("", _fraction(limits.flagged_share)),
        "dead_receptors": ("receptors", _times(limits.dead_receptors, receptors)),
    }
    if isinstance(found, Unread):
        return _unmade(specs, found.reason)
    if not found.receptors:
        return _unmade(specs, "there are no cross-correlations")
    nothing = "no receptor works: all that was observed is flagged"
    dead = f"{found.dead_receptors} of {found.receptors} receptors are dead: all of their data are flagged"
    if found.dead_antennas:
        dead += f"; antennas without anything: {_names(found.dead_antennas)}"
    if not found.by_antenna:
        made = _unmade({name: spec for name, spec in specs.items() if name != "flagged"}, nothing)
        return [
            Measure("flagged", 1.0, *specs["flagged"], says=nothing),
            *made[:3],
            _measure(specs, "dead_receptors", found.dead_receptors, dead),
        ]
    says = f"{_percent(found.fraction)} of the data of working receptors is flagged"
    return [
        _measure(specs, "flagged", found.fraction, f"{says}, {_percent(found.raw_fraction)} with the dead ones"),
        _share(specs, "flagged_antennas", "antennas", found.by_antenna, limits),
        _share(specs, "flagged_windows", "spectral windows", found.by_window, limits),
        _share(specs, "flagged_lengths", "classes of baseline length", found.by_length, limits),
        _measure(specs, "dead_receptors", found.dead_receptors, dead),
    ]


def _times(pair: tuple[float, float], count: int, least: int = 0) -> Limits:
    return Limits(least + pair[0] * max(1, count), least + pair[1] * max(1, count), ideal=float(least))


def _share(
    specs: Mapping[str, tuple[str, Limits]], name: str, what: str, fractions: Mapping[str, float], limits: QaLimits
) -> Measure:
    most = limits.flagged_fraction[1]
    over = [key for key, fraction in fractions.items() if fraction > most]
    worst = max(fractions, key=lambda key: fractions[key])
    says = f"{len(over)} of {len(fractions)} {what} are flagged by more than {_percent(most)}"
    says += f": {_names(over)}" if over else f"; the worst, {worst}, by {_percent(fractions[worst])}"
    return _measure(specs, name, len(over) / len(fractions), says)


def coverage_measures(uv_klambda: Any | Unread, limits: QaLimits) -> list[Measure]:
    """Return how well the uv plane (n, 2) is covered: the largest relative gap of spacings, and how even it is."""
    specs = {
        "uv_gap": ("", Limits(*limits.uv_gap, ideal=0.0)),
        "uv_elongation": ("", Limits(*limits.uv_elongation, ideal=1.0)),
    }
    if isinstance(uv_klambda, Unread):
        return _unmade(specs, uv_klambda.reason)
    uv = np.asarray(uv_klambda, float)
    gap, inner, outer = largest_gap(np.hypot(*uv.T))
    says = f"the largest gap of the uv coverage is {gap:.2f} of its outer edge, from {inner:.3g} to {outer:.3g} klambda"
    wide = elongation(uv)
    shape = f"half of the uv coverage is {wide:.3g} times wider in one direction than in another"
    return [
        _measure(specs, "uv_gap", gap, says, unmade="fewer than two spacings have data"),
        _measure(specs, "uv_elongation", wide, shape, unmade="no spacing has data"),
    ]


def corrected_measures(column: str, usable: float) -> list[Measure]:
    """Return how much of the unflagged calibrated data is finite and not zero."""
    specs = {"corrected_data": ("", Limits(0.999, 0.5, ideal=1.0))}
    if column != "CORRECTED_DATA":
        return [_measure(specs, "corrected_data", 0.0, "there is no CORRECTED_DATA: no calibration was applied")]
    says = f"{_percent(usable)} of the unflagged CORRECTED_DATA looked at is finite and not zero"
    return [_measure(specs, "corrected_data", usable, says, unmade="nothing of CORRECTED_DATA is unflagged")]


def subband_measures(missing: Sequence[int], expected: int, limits: QaLimits) -> list[Measure]:
    """Return how many of the subbands did not come."""
    specs = {"missing_subbands": ("", _fraction(limits.missing_subbands))}
    share = len(missing) / expected if expected else math.nan
    says = f"{len(missing)} of {expected} subbands are missing"
    if missing:
        says += f": {_names([f'sb{n:02d}' for n in missing], 16)}"
    return [
        _measure(specs, "missing_subbands", share, says, unmade="it is not known how many subbands there should be")
    ]


# -- calibration ------------------------------------------------------------------------------------------------


def table_measures(
    found: TableStats | Unread,
    limits: QaLimits,
    *,
    name: str,
    kind: str,
    with_data: int | Unread | None = None,
    antennas: int | None = None,
) -> list[Measure]:
    """Return the health of one table's solutions.

    Delays have neither SNR nor scatter: CASA writes none, and delays of different antennas have nothing in common.

    Parameters
    ----------
    name
        What the names of the measures begin with, such as ``bpcal``.
    kind
        Of the table: ``BP``, ``GA``, ``K`` and so on.
    with_data
        How many receptors were recorded at all, of which ``found.unsolved_fraction`` is; the others cannot have
        solutions and are counted among the dead, but not held against the table. None: all of them. Where it is not
        known, the number of the dead is not judged.
    antennas
        How many antennas were recorded. None: not known, so that only a number of antennas can be asked for.
    """
    bandpass = kind == "BP"
    recorded, absent = _recorded(found, with_data)
    flagged = limits.bandpass_flagged if bandpass else limits.flagged_fraction
    specs = {
        f"{name}_flagged": ("", _fraction(flagged)),
        f"{name}_dead_receptors": ("receptors", _times(limits.unsolved_receptors, recorded, absent)),
        f"{name}_antennas": ("antennas", _solved(limits, antennas)),
    }
    if kind != "K":
        specs[f"{name}_snr"] = ("", Limits(*limits.solution_snr))
        scatter = limits.bandpass_scatter if bandpass else limits.gain_scatter
        specs[f"{name}_scatter"] = ("", _fraction(scatter))
    if bandpass:
        specs[f"{name}_phase_scatter"] = ("deg", _fraction(limits.bandpass_phase_deg))
    if isinstance(found, Unread):
        return _unmade(specs, found.reason)
    nothing = f"{name}: every solution is flagged"
    dead = f"{name}: {found.dead_receptors} of {found.receptors} receptors have no solution"
    dead += f", {absent} of them for nothing was recorded" if absent else ""
    fraction = found.flagged_fraction if found.working_solutions else 1.0
    says = (
        f"{name}: {found.working_flagged} of {found.working_solutions} solutions of working receptors are flagged "
        f"({_percent(fraction)}; {_percent(found.raw_flagged_fraction)} with the dead ones)"
    )
    made = [
        _measure(specs, f"{name}_flagged", fraction, says if found.working_solutions else nothing),
        _measure(
            specs,
            f"{name}_dead_receptors",
            None if isinstance(with_data, Unread) else found.dead_receptors,
            dead,
            unmade=f"{dead}, of which it is not known whether they were recorded: {getattr(with_data, 'reason', '')}",
        ),
        _measure(
            specs,
            f"{name}_antennas",
            found.antennas_with_solutions,
            f"{name}: {found.antennas_with_solutions} {_of_recorded(antennas)}have solutions",
        ),
    ]
    if kind != "K":
        snr, scatter_of = found.median_snr, found.amplitude_scatter
        made.append(
            _measure(specs, f"{name}_snr", snr, f"{name}: the median SNR is {_three(snr)}", unmade=_no("SNR", nothing))
        )
        says = f"{name}: amplitudes scatter by {_percent(scatter_of or 0.0)} (1.4826 MAD) about their median"
        made.append(_measure(specs, f"{name}_scatter", scatter_of, says, unmade=_no("amplitudes", nothing)))
    if bandpass:
        phase = found.phase_scatter_deg
        says = f"{name}: phases scatter by {_three(phase)} deg (rms) about the mean of each receptor and window"
        made.append(_measure(specs, f"{name}_phase_scatter", phase, says, unmade=_no("phases", nothing)))
    return made


def _solved(limits: QaLimits, antennas: int | None) -> Limits:
    """Return how many antennas a table should solve: so many, and all but a share of those that were recorded."""
    warn, bad = limits.solved_antennas
    if antennas is None:
        return Limits(warn, bad)
    few, many = limits.unsolved_receptors
    warn, bad = max(warn, (1.0 - few) * antennas), max(bad, (1.0 - many) * antennas)
    return Limits(warn, bad, ideal=antennas if antennas > warn else None)


def _of_recorded(antennas: int | None) -> str:
    return "antennas " if antennas is None else f"of {antennas} antennas that were recorded "


def _recorded(found: TableStats | Unread, with_data: int | Unread | None) -> tuple[int, int]:
    """Return how many receptors were recorded, and how many of the dead ones were not."""
    if isinstance(found, Unread):
        return 0, 0
    if with_data is None or isinstance(with_data, Unread):
        return found.receptors, 0
    return with_data, max(0, found.dead_receptors - round(found.unsolved_fraction * with_data))


def _three(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _no(what: str, nothing: str) -> str:
    return f"{nothing}, or it has no {what}"


def calibration_measures(found: CalibrationUse | Unread, limits: QaLimits) -> list[Measure]:
    """Return how far the calibration was from the data, whether it was borrowed, and how it fits its calibrator."""
    specs = {
        "calibration_age": ("h", _fraction(limits.calibration_age_hours)),
        "calibration_borrowed": ("", Limits(0.5, 1.5, ideal=0.0)),
        "calibrator_flux_ratio": ("", Limits(*limits.calibrator_ratio, ideal=1.0, of="factor")),
    }
    if isinstance(found, Unread):
        return _unmade(specs, found.reason)
    name, age = found.set_name, found.age_hours
    here = "on this group" if found.solved_here else f"{abs(age or 0.0):.2f} h from the data"
    borrowed = "was borrowed from outside its time of validity" if found.borrowed else "is valid for this time"
    says = f"corrected over model flux of its calibrator is {_three(found.ratio)}"
    return [
        _measure(
            specs,
            "calibration_age",
            None if age is None else abs(age),
            f"{name} was solved {here}",
            unmade=f"it is not known when {name} was solved",
        ),
        _measure(specs, "calibration_borrowed", float(found.borrowed), f"{name} {borrowed}"),
        _measure(
            specs,
            "calibrator_flux_ratio",
            found.ratio,
            f"{name}: {says}",
            unmade=f"{name} does not say how it fits its calibrator",
        ),
    ]


# -- the image --------------------------------------------------------------------------------------------------


def image_measures(
    found: ImageProduct | Unread, limits: QaLimits, *, thermal_jy: float | Unread, expected_beam_arcsec: float | Unread
) -> list[Measure]:
    """Return what the image is like.

    Parameters
    ----------
    thermal_jy
        Noise of the receivers alone.
    expected_beam_arcsec
        Narrowest full width at half maximum that the uv coverage gives with the weights of the image.
    """
    specs = _image_specs(limits) | {
        "thermal_factor": ("", Limits(*limits.thermal_factor, ideal=1.0)),
        "peak_over_hole": ("", Limits(*limits.peak_over_hole)),
        "beam_factor": ("", Limits(*limits.beam_factor, ideal=1.0, of="factor")),
    }
    if isinstance(found, Unread):
        return _unmade(specs, found.reason)
    major, minor = found.beam_major_arcsec, found.beam_minor_arcsec
    hole = max(-found.deepest_jy, found.noise_jy)
    peak = (
        f"the peak of {found.peak_jy:.4g} Jy/beam at {found.peak_ra_deg:.4f} {found.peak_dec_deg:+.4f} is "
        f"{_over(found.peak_jy, hole):.3g} times the deepest hole, or the noise"
    )
    return [
        *_plane_measures(specs, found.noise_jy, found.peak_jy, major, minor),
        _thermal_factor(specs, found.noise_jy, thermal_jy),
        _measure(specs, "peak_over_hole", _over(found.peak_jy, hole), peak, unmade="the image has no finite peak"),
        _compared(
            specs, "beam_factor", minor, expected_beam_arcsec,
            "the beam's narrow side is {:.3g} times what the uv coverage gives, {}", lambda a: f"{a:.3g} arcsec",
        ),
    ]  # fmt: skip


def _thermal_factor(specs: Mapping[str, tuple[str, Limits]], noise_jy: float, thermal_jy: float | Unread) -> Measure:
    """Return the noise over that of the receivers; an image that has less is of a wrong flux scale."""
    says, low = "the noise is {:.3g} times that of the receivers, {}", {"thermal_factor": ("", _LESS_THAN_THERMAL)}
    if not isinstance(thermal_jy, Unread) and _over(noise_jy, thermal_jy) < 1.0:
        says, specs = f"{says}: less than receivers can leave, so the flux scale is wrong", low
    return _compared(specs, "thermal_factor", noise_jy, thermal_jy, says, lambda jy: f"{1e3 * jy:.3g} mJy/beam")


def _image_specs(limits: QaLimits) -> dict[str, tuple[str, Limits]]:
    return {
        "noise": ("mJy/beam", Limits(*limits.noise_mjy)),
        "dynamic_range": ("", Limits(*limits.dynamic_range)),
        "beam_elongation": ("", Limits(*limits.beam_elongation, ideal=1.0)),
    }


def _plane_measures(
    specs: Mapping[str, tuple[str, Limits]],
    noise_jy: float | None,
    peak_jy: float | None,
    major: float | None,
    minor: float | None,
    which: str = "the noise",
) -> list[Measure]:
    noise = math.nan if noise_jy is None or noise_jy <= 0 else 1e3 * noise_jy
    ratio = _over(peak_jy, noise_jy)
    beam, size = _over(major, minor), f"{major or 0.0:.3g} by {minor or 0.0:.3g} arcsec"
    return [
        _measure(specs, "noise", noise, f"{which} is {noise:.3g} mJy/beam", unmade="the image has no finite noise"),
        _measure(
            specs,
            "dynamic_range",
            ratio,
            f"the peak of {peak_jy or 0.0:.4g} Jy/beam is {ratio:.4g} times {which}",
            unmade="the image has no finite peak or noise",
        ),
        _measure(specs, "beam_elongation", beam, f"the beam is {size}", unmade="the image has no beam"),
    ]


def _over(part: float | None, whole: float | None) -> float:
    if part is None or whole is None or not (math.isfinite(part) and math.isfinite(whole) and whole > 0):
        return math.nan
    return part / whole


def _compared(
    specs: Mapping[str, tuple[str, Limits]],
    name: str,
    value: float,
    expected: float | Unread,
    says: str,
    written: Any,
) -> Measure:
    if isinstance(expected, Unread):
        return _measure(specs, name, None, "", unmade=expected.reason)
    ratio = _over(value, expected)
    return _measure(
        specs, name, ratio, says.format(ratio, written(expected)), unmade="there is nothing finite to compare"
    )


def source_measures(found: SourceComparison | Unread, limits: QaLimits) -> list[Measure]:
    """Return how the sources of a list come out: their flux, their place, and whether they are there at all."""
    specs = {
        "flux_ratio": ("", Limits(*limits.flux_ratio, ideal=1.0, of="factor")),
        "astrometry": ("arcsec", _fraction(limits.astrometry_arcsec)),
        "completeness": ("", Limits(*limits.completeness, ideal=1.0)),
    }
    if isinstance(found, Unread):
        return _unmade(specs, found.reason)
    if not found.names:
        return _unmade(specs, f"no source of {found.catalogue} is bright enough to be expected in the image")
    count, n = int(found.found.sum()), len(found.names)
    lost = [name for name, seen in zip(found.names, found.found, strict=True) if not seen]
    here = f"{count} of the {n} sources of {found.catalogue} that should be seen are found"
    here += f"; not {_names(lost)}" if lost else ""
    complete = _measure(specs, "completeness", count / n, here)
    if not count:
        rest = {name: spec for name, spec in specs.items() if name != "completeness"}
        return [*_unmade(rest, f"none of the {n} sources of {found.catalogue} is found"), complete]
    ratio = float(np.nanmedian(found.ratio))
    flux = f"fluxes are {ratio:.3f} of {found.catalogue} in the median of {count} sources"
    if count > 2:
        low, high = np.nanpercentile(found.ratio, (25, 75))
        flux += f", half of them between {low:.3f} and {high:.3f}"
    return [_measure(specs, "flux_ratio", ratio, flux), _astrometry(specs, found, count), complete]


def _astrometry(specs: Mapping[str, tuple[str, Limits]], found: SourceComparison, count: int) -> Measure:
    """Return how far the image is from its place: what the median offset exceeds three times its error by."""
    east, north = float(np.nanmedian(found.east_arcsec)), float(np.nanmedian(found.north_arcsec))
    # a median is 1.2533 times less certain than a mean; of one or two it is the mean
    error = (1.2533 if count > 2 else 1.0) * math.sqrt(float(np.sum(found.error_arcsec[found.found] ** 2))) / count
    apart = math.hypot(east, north)
    says = (
        f"the image is {apart:.2f} +- {error:.2f} arcsec from its place in the median of {count} sources "
        f"({east:+.2f} east, {north:+.2f} north); what exceeds three times the error counts"
    )
    unmade = "without a beam it is not known how well places are measured"
    return _measure(specs, "astrometry", max(0.0, apart - 3.0 * error) if error >= 0 else None, says, unmade=unmade)


# -- mosaics ----------------------------------------------------------------------------------------------------


def judge_mosaic(row: MosaicRow, limits: QaLimits | None = None) -> tuple[Score, ...]:
    """Return how a mosaic is judged, from its row alone.

    ``noise``, ``dynamic_range``, ``beam_elongation`` and ``rejected_tiles`` are measured as for a group; each check
    that was made on it (``checks`` of the row: name, value, limit, passed, text, ideal) becomes ``check_<name>``. A
    check that passed has a score between 0.5, at its limit, and 1, at its ideal; one that did not has 0.
    """
    limits = limits or QaLimits()
    specs = _image_specs(limits) | {"rejected_tiles": ("", _fraction(limits.rejected_tiles))}
    if row.status != "built":
        why = f"the mosaic is {row.status}: {row.error}" if row.error else f"the mosaic is {row.status}"
        scores = [judge(m) for m in _unmade(specs, why)]
        if row.status == "failed":
            scores.append(Score("built", 0.0, "", 0.0, Grade.BAD, why))
        return tuple(scores)
    used, rejected = row.tiles_used, row.tiles_rejected
    share = math.nan if used is None or rejected is None or used + rejected == 0 else rejected / (used + rejected)
    says = f"{rejected} of {(used or 0) + (rejected or 0)} tiles were rejected{_why_rejected(row.verdicts)}"
    measures = [
        *_plane_measures(
            specs, row.noise_jy, row.peak_jy, row.beam_major_arcsec, row.beam_minor_arcsec, "the least noise of the map"
        ),
        _measure(specs, "rejected_tiles", share, says, unmade="it is not known how many tiles were used"),
    ]
    return (*map(judge, measures), *_check_scores(row.checks))


def _why_rejected(verdicts: str | None) -> str:
    """Return the commonest reasons, of whatever form the verdicts have that hold lists of reasons."""
    try:
        found = json.loads(verdicts or "null")
    except ValueError:
        return ""
    tiles: Iterable[Any] = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    reasons: Counter[str] = Counter()
    for tile in tiles:
        said = tile.get("reasons", ()) if isinstance(tile, dict) else tile
        if isinstance(said, list | tuple):
            reasons.update(str(r.get("text", r.get("name", "")) if isinstance(r, dict) else r) for r in said)
    return "" if not reasons else ": " + "; ".join(reason for reason, _ in reasons.most_common(3) if reason)


def _check_scores(checks: str | None) -> list[Score]:
    if not checks:
        return [Score("checks", None, "", None, Grade.UNKNOWN, "no checks were made on the mosaic")]
    try:
        found = json.loads(checks)
        named = {f"check_{check['name']}": check for check in found}
    except (ValueError, TypeError, KeyError, AttributeError):
        return [Score("checks", None, "", None, Grade.UNKNOWN, "the checks of the mosaic cannot be read")]
    return [_check_score(name, check) for name, check in named.items()]


def _check_score(name: str, check: Mapping[str, Any]) -> Score:
    value, limit, passed = _number(check.get("value")), check.get("limit"), check.get("passed")
    text = str(check.get("text") or "")
    reason = text or f"{check['name']} is {value}, limit {limit}"
    if passed is None:
        return Score(name, value, "", None, Grade.UNKNOWN, text or f"{check['name']} could not be checked")
    if not passed:
        return Score(name, value, "", 0.0, Grade.BAD, reason)
    ideal = _number(check.get("ideal"))
    return Score(name, value, "", 0.5 + 0.5 * _room(value, _number(limit), ideal), Grade.GOOD, reason)


def _number(value: Any) -> float | None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fine else None


def _room(value: float | None, limit: float | None, ideal: float | None) -> float:
    """Return how far a value that passed has come from its limit, 0, to its ideal, 1; 1 where nothing was measured.

    What lies beyond its limit and passed, because its error allows it, has come no way; nor has what has no ideal, of
    which only this is known, that it passed.
    """
    if value is None or limit is None:
        return 1.0
    if ideal is None or ideal == limit:
        return 0.0 if ideal is None else 1.0
    return min(1.0, max(0.0, (value - limit) / (ideal - limit)))
