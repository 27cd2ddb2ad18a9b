"""Pure arithmetic of calibration: ranking calibrators, predicting visibilities, judging solutions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.gains.model import (
    Acceptance,
    CalibratorMatch,
    CalSolutions,
    CatalogueSource,
    ModelSource,
    RefantChoice,
    TableStats,
)
from nightbeam.sky import (
    BEAM_MODELS,
    DISH_DIAMETER_M,
    OVRO_DSA110,
    SPEED_OF_LIGHT_M_S,
    BeamModel,
    Site,
    apparent_hadec,
    beam_attenuation,
    meridian_icrs,
    separation,
)

__all__ = [
    "accept",
    "averaging_interval_s",
    "beam_on_sources",
    "choose_refant",
    "direction_cosines",
    "divide_gains",
    "field_sources",
    "gain_cube",
    "match_calibrators",
    "match_sources",
    "model_ratio",
    "pointing_track",
    "predict_block",
    "source_spectrum",
    "table_stats",
]

MJD_JD = 2_400_000.5

Beam = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def match_sources(
    catalogue: Iterable[CatalogueSource],
    *,
    ra_deg: float,
    dec_deg: float,
    beam: Beam,
    radius_deg: float = 1.0,
    topn: int = 3,
    min_weighted_jy: float = 0.0,
    min_field_fraction: float | None = None,
    field_radius_deg: float = 3.0,
) -> list[CalibratorMatch]:
    """Return the calibrators near a field's centre, the most useful first.

    Parameters
    ----------
    catalogue
        Sources with ICRS positions and fluxes in Jy; one without a flux is never a match.
    ra_deg, dec_deg
        The centre, ICRS.
    beam
        Primary beam (power) against the angle from the centre, which it takes in radians.
    radius_deg, topn
        How far a calibrator may be, and how many are returned.
    min_weighted_jy
        Least flux times beam.
    min_field_fraction
        Least share of the beam-weighted flux of the field (the telescope team asks for 0.15); None:
        reported but not asked for.
    field_radius_deg
        Sources out to here make up the field.

    Returns
    -------
    list of CalibratorMatch
        Falling in flux times beam, then rising in separation.

    Raises
    ------
    InputError
        If the centre is not a direction.
    """
    if not (np.isfinite(ra_deg) and -90.0 <= dec_deg <= 90.0):
        raise InputError(f"the centre RA {ra_deg}, Dec {dec_deg} is no direction", fix="give degrees, ICRS")
    known = [s for s in catalogue if s.flux_jy is not None and np.isfinite(s.flux_jy) and s.flux_jy > 0]
    if not known:
        return []
    flux = np.array([float(s.flux_jy or 0.0) for s in known])
    sep = separation(ra_deg, dec_deg, [s.ra_deg for s in known], [s.dec_deg for s in known])
    weighted = flux * np.asarray(beam(np.radians(sep)), float)
    field = float(weighted[sep <= max(field_radius_deg, radius_deg)].sum())
    share = weighted / field if field > 0 else np.zeros_like(weighted)
    keep = (sep <= radius_deg) & (weighted >= min_weighted_jy) & (weighted > 0)
    if min_field_fraction is not None:
        keep &= share >= min_field_fraction
    order = sorted(np.flatnonzero(keep), key=lambda i: (-weighted[i], sep[i]))[:topn]
    return [
        CalibratorMatch(
            name=known[i].name,
            ra_deg=float(known[i].ra_deg),
            dec_deg=float(known[i].dec_deg),
            flux_jy=float(flux[i]),
            sep_deg=float(sep[i]),
            weighted_flux=float(weighted[i]),
            field_fraction=float(share[i]),
            spectral_index=float(getattr(known[i], "spectral_index", None) or 0.0),
        )
        for i in order
    ]


def direction_cosines(
    ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64], ra0_deg: float, dec0_deg: float
) -> NDArray[np.float64]:
    """Return (l, m, n - 1) of directions about a centre: l grows to the east, m to the north; shape (source, 3)."""
    da = np.radians(np.asarray(ra_deg, float) - ra0_deg)
    d, d0 = np.radians(np.asarray(dec_deg, float)), np.radians(dec0_deg)
    l_cos = np.cos(d) * np.sin(da)
    m_cos = np.sin(d) * np.cos(d0) - np.cos(d) * np.sin(d0) * np.cos(da)
    # n - 1 without the cancellation of 1 - cos(small angle)
    half = np.sin((d - d0) / 2) ** 2 + np.cos(d) * np.cos(d0) * np.sin(da / 2) ** 2
    return np.stack([l_cos, m_cos, -2.0 * half], axis=-1)


def source_spectrum(source: ModelSource, freqs_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the flux density in Jy at each frequency: a power law."""
    return np.asarray(source.flux_jy * (freqs_hz / source.reference_hz) ** source.spectral_index)


def predict_block(
    uvw_m: NDArray[np.float64],
    freqs_hz: NDArray[np.float64],
    lmn: NDArray[np.float64],
    amplitude: NDArray[np.float64],
    time_index: NDArray[np.intp],
) -> NDArray[np.complex64]:
    """Return the visibilities of point sources in a Measurement Set's convention.

    V = sum of A exp(+2 pi i (u l + v m + w (n - 1)) nu / c), with uvw = pos(ANTENNA1) - pos(ANTENNA2).

    Parameters
    ----------
    uvw_m : (row, 3), m
    freqs_hz : (chan,), Hz
    lmn : (source, 3)
        From `direction_cosines`.
    amplitude : (source, time, chan), Jy
        Flux times beam.
    time_index : (row,)
        Which time of ``amplitude`` a row belongs to.

    Returns
    -------
    (row, chan) complex64
    """
    rows, chans = len(uvw_m), len(freqs_hz)
    total = np.zeros((rows, chans), np.complex64)
    steps = np.diff(freqs_hz)
    even = chans < 2 or np.ptp(steps) < 1e-6 * abs(steps[0])
    for direction, spectrum in zip(lmn, amplitude, strict=True):
        turns = 2.0 * np.pi * (uvw_m @ direction) / SPEED_OF_LIGHT_M_S  # phase per Hz
        phasor = np.exp(1j * turns * freqs_hz[0])
        step = np.exp(1j * turns * steps[0]) if even and chans > 1 else None
        for chan in range(chans):
            if chan:
                phasor = phasor * step if step is not None else np.exp(1j * turns * freqs_hz[chan])
            total[:, chan] += (spectrum[time_index, chan] * phasor).astype(np.complex64)
    return total


def choose_refant(
    names: Sequence[str],
    xyz_m: NDArray[np.float64],
    unflagged_baselines: Mapping[str, int],
    preferred: Sequence[str] = (),
) -> RefantChoice:
    """Return the reference antenna: the first preferred one that has data, else the best connected of the core.

    Parameters
    ----------
    names, xyz_m : (n_ant,), (n_ant, 3)
        The array.
    unflagged_baselines
        By antenna, how many of its baselines hold unflagged data.
    preferred
        Names in order of preference.

    Raises
    ------
    MissingError
        If a preferred antenna is not in the array at all.
    InputError
        If no antenna has unflagged data.
    """
    unknown = [name for name in preferred if name not in names]
    if unknown and len(unknown) == len(preferred):
        raise MissingError(
            f"the array has no antenna named {', '.join(unknown)}",
            fix=f"choose reference antennas from {', '.join(names[:6])}, ...",
        )
    count = np.array([unflagged_baselines.get(name, 0) for name in names])
    best = int(count.max(initial=0))
    if best == 0:
        raise InputError("no antenna has unflagged data, so there is no reference antenna", fix="look at the flags")
    for name in preferred:
        if name in names and count[names.index(name)] >= 0.5 * best:
            return RefantChoice(name, names.index(name), "preferred")
    good = np.flatnonzero(count >= 0.95 * best)
    centre = np.median(xyz_m[count > 0], axis=0)
    index = int(good[np.argmin(np.linalg.norm(xyz_m[good] - centre, axis=1))])
    why = f"{count[index]} unflagged baselines, nearest the core"
    if preferred:
        why += f"; {', '.join(preferred)} have too few"
    return RefantChoice(names[index], index, why)


def table_stats(
    solutions: CalSolutions, *, name: str, kind: str, receptors_with_data: NDArray[np.bool_] | None = None
) -> TableStats:
    """Return the health of one table, dead receptors left out.

    Parameters
    ----------
    receptors_with_data : (n_ant, pol), bool
        Which receptors had unflagged data to be solved from; None: not known.
    """
    flags, pols, n_ant = solutions.flags, solutions.polarizations, len(solutions.antennas)
    alive = np.zeros((n_ant, pols), bool)
    np.logical_or.at(alive, solutions.antenna, (~flags).any(axis=1))
    present = np.zeros(n_ant, bool)
    present[solutions.antenna] = True
    working = alive[solutions.antenna][:, None, :] & np.ones_like(flags)
    total, flagged = flags.size, int(flags.sum())
    n_working, working_flagged = int(working.sum()), int((flags & working).sum())
    unsolved = 0.0
    if receptors_with_data is not None and receptors_with_data.any():
        unsolved = float((receptors_with_data & ~alive).sum() / receptors_with_data.sum())
    good = ~flags
    amplitude, scatter, phase = _spread(solutions, good)
    referred = sorted({solutions.antennas[i] for i in solutions.refant if 0 <= i < n_ant})
    return TableStats(
        name=name,
        kind=kind,
        solutions=total,
        flagged=flagged,
        raw_flagged_fraction=flagged / total if total else 1.0,
        receptors=int(present.sum()) * pols,
        dead_receptors=int((~alive[present]).sum()),
        working_solutions=n_working,
        working_flagged=working_flagged,
        flagged_fraction=working_flagged / n_working if n_working else 1.0,
        antennas_with_solutions=int(alive.any(axis=1).sum()),
        unsolved_fraction=unsolved,
        # CASA writes no SNR for delays: the column is 0
        median_snr=float(np.median(solutions.snr[good])) if solutions.snr[good].any() else None,
        median_amplitude=amplitude,
        amplitude_scatter=scatter,
        phase_scatter_deg=phase,
        refants=tuple(referred),
    )


def _spread(solutions: CalSolutions, good: NDArray[np.bool_]) -> tuple[float | None, float | None, float | None]:
    if not good.any():
        return None, None, None
    if not np.iscomplexobj(solutions.values):
        return float(np.median(np.abs(solutions.values[good]))), None, None
    gains = solutions.values[good]
    amplitude = np.abs(gains)
    middle = float(np.median(amplitude))
    scatter = float(1.4826 * np.median(np.abs(amplitude - middle)) / middle) if middle > 0 else None
    # about the middle phase of each antenna, window and receptor, so that only the spread along the channels counts
    masked = np.where(good, solutions.values, 0)
    mean = masked.sum(axis=1, keepdims=True)
    residual = np.angle(solutions.values * np.conj(mean))[good]
    return middle, scatter, float(np.degrees(np.sqrt(np.mean(residual**2))))


def accept(
    tables: Sequence[TableStats],
    limits: Acceptance,
    *,
    corrected_over_model: float | None = None,
    coherence: float | None = None,
) -> tuple[list[str], list[str]]:
    """Return why a set fails and what it is warned of; no reasons mean that it is accepted."""
    reasons: list[str] = []
    warnings: list[str] = []
    if not tables:
        reasons.append("no table was solved")
    for table in tables:
        _judge(table, limits, reasons, warnings)
    if coherence is not None and coherence < limits.fail_coherence:
        reasons.append(
            f"the calibrated data hold no coherent fringe: {coherence:.3f} of 1 follows the model "
            f"(limit {limits.fail_coherence:g})"
        )
    if corrected_over_model is not None:
        ratio = corrected_over_model
        off = max(ratio, 1.0 / ratio) if ratio > 0 and np.isfinite(ratio) else np.inf
        says = f"corrected over model flux of the calibrator is {ratio:.3g}"
        if off > limits.fail_ratio:
            reasons.append(f"{says} (limit {limits.fail_ratio:g}x)")
        elif off > limits.warn_ratio:
            warnings.append(f"{says} (outside {limits.warn_ratio:g}x)")
    return reasons, warnings


def _judge(table: TableStats, limits: Acceptance, reasons: list[str], warnings: list[str]) -> None:
    if table.working_solutions == table.working_flagged:
        reasons.append(f"{table.name}: every solution is flagged")
        return
    bandpass = table.kind == "BP"
    fail = limits.fail_bandpass_flagged if bandpass else limits.fail_flagged
    warn = limits.warn_bandpass_flagged if bandpass else limits.warn_flagged
    if table.flagged_fraction > fail:
        reasons.append(f"{table.name}: {table.flagged_fraction:.1%} of working receptors flagged (limit {fail:.0%})")
    elif table.flagged_fraction > warn:
        warnings.append(f"{table.name}: {table.flagged_fraction:.1%} of working receptors flagged")
    if table.unsolved_fraction > limits.fail_unsolved:
        reasons.append(f"{table.name}: {table.unsolved_fraction:.1%} of receptors with data have no solution")
    if table.antennas_with_solutions < limits.min_antennas:
        reasons.append(
            f"{table.name}: {table.antennas_with_solutions} antennas have solutions, fewer than {limits.min_antennas}"
        )
    if table.median_snr is None:
        if table.kind != "K":
            reasons.append(f"{table.name}: the solutions have no SNR")
    elif not table.median_snr >= limits.fail_snr:
        reasons.append(f"{table.name}: median SNR {table.median_snr:.2g} (limit {limits.fail_snr:g})")
    elif table.median_snr < limits.warn_snr:
        warnings.append(f"{table.name}: median SNR {table.median_snr:.2g}")


def gain_cube(
    solutions: CalSolutions, spw: int, freqs_hz: NDArray[np.float64], time_mjd: float
) -> tuple[NDArray[np.complex128], NDArray[np.bool_]]:
    """Return the gains of all antennas for one window, nearest in time: values and flags, (ant, chan, pol).

    An antenna without a row, or with a flagged solution, has gain 1 and is flagged. Delays become phases about
    the window's reference, which in CASA is the frequency that the table's own SPECTRAL_WINDOW names.
    """
    n_ant, pols, chans = len(solutions.antennas), solutions.polarizations, len(freqs_hz)
    values = np.ones((n_ant, chans, pols), complex)
    flags = np.ones((n_ant, chans, pols), bool)
    mine = np.flatnonzero(solutions.spw == spw)
    if len(mine) == 0:
        return values, flags
    distance = np.abs(solutions.time_mjd[mine] - time_mjd)
    for row in mine[np.argsort(-distance, kind="stable")]:  # the nearest is written last and stays
        cell, bad = solutions.values[row], solutions.flags[row]
        if not np.iscomplexobj(cell):
            reference = solutions.freqs_hz[spw][0]
            cell = np.exp(2j * np.pi * cell * 1e-9 * (freqs_hz[:, None] - reference))
        values[solutions.antenna[row]] = np.broadcast_to(cell, (chans, pols))
        flags[solutions.antenna[row]] = np.broadcast_to(bad, (chans, pols))
    flags |= ~np.isfinite(values) | (values == 0)
    values[flags] = 1.0
    return values, flags


def divide_gains(
    data: NDArray[np.complexfloating[Any, Any]],
    flags: NDArray[np.bool_],
    antenna1: NDArray[np.intp],
    antenna2: NDArray[np.intp],
    gains: NDArray[np.complex128],
    gain_flags: NDArray[np.bool_],
) -> tuple[NDArray[np.complex128], NDArray[np.bool_]]:
    """Return data over g1 conj(g2) and the flags that result; (row, chan, pol), gains (ant, chan, pol)."""
    corrected = data / (gains[antenna1] * np.conj(gains[antenna2]))
    return corrected, flags | gain_flags[antenna1] | gain_flags[antenna2]


def model_ratio(
    corrected: NDArray[np.complexfloating[Any, Any]],
    model: NDArray[np.complexfloating[Any, Any]],
    good: NDArray[np.bool_],
) -> tuple[float | None, float | None]:
    """Return the flux of the data in units of the model, and how much of the data's power the model explains.

    The first is sum Re(V conj M) / sum |M|^2; the second |sum V conj M| / sqrt(sum |V|^2 sum |M|^2), which is
    1 for noiseless data that fit and about 1/sqrt(n) for noise. None for both where there is nothing to compare.
    """
    v, m = corrected[good].astype(complex), model[good].astype(complex)
    power = float(np.sum(np.abs(m) ** 2))
    total = float(np.sum(np.abs(v) ** 2))
    if power == 0 or total == 0 or not np.isfinite(total):
        return None, None
    dot = complex(np.sum(v * np.conj(m)))
    return dot.real / power, abs(dot) / float(np.sqrt(power * total))


def match_calibrators(
    catalogue: Iterable[CatalogueSource],
    *,
    mid_mjd: float | None = None,
    dec_apparent_rad: float | None = None,
    ra_deg: float | None = None,
    dec_deg: float | None = None,
    site: Site = OVRO_DSA110,
    radius_deg: float = 1.0,
    topn: int = 3,
    min_weighted_jy: float = 0.0,
    min_field_fraction: float | None = None,
    beam_model: str = "dsacalib",
    dish_diameter_m: float = DISH_DIAMETER_M,
    freq_hz: float = 1.405e9,
) -> list[CalibratorMatch]:
    """Return the calibrators near the field of a group, the most useful first.

    The field is named by its centre (``ra_deg``, ``dec_deg``, ICRS) or as the meridian at the middle of
    the observation (``mid_mjd``, ``dec_apparent_rad``, as the files say it). The meridian point is brought to
    ICRS, which is the same as precessing the catalogue to the apparent place of date.

    Parameters
    ----------
    catalogue
        From `nightbeam.sky.read_calibrators`.
    mid_mjd
        UTC.
    site
        Where the array stands, for the meridian.
    radius_deg, topn, min_weighted_jy, min_field_fraction
        As for `match_sources`.
    beam_model, dish_diameter_m, freq_hz
        The primary beam that weights the fluxes.

    Raises
    ------
    UsageError
        If the field is named in neither way, or in both.
    """
    by_centre, by_meridian = ra_deg is not None and dec_deg is not None, dec_apparent_rad is not None
    if by_centre == by_meridian:
        raise UsageError("the field is named twice or not at all", fix="give RA and Dec, or the time and apparent Dec")
    if by_meridian:
        if mid_mjd is None:
            raise UsageError("an apparent declination needs a time", fix="give mid_mjd")
        ra, dec = meridian_icrs(mid_mjd + MJD_JD, dec_apparent_rad or 0.0, site)
        ra_deg, dec_deg = float(ra), float(dec)

    def beam(theta_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        return beam_attenuation(theta_rad, freq_hz, model=beam_name(beam_model), diameter_m=dish_diameter_m)

    return match_sources(
        catalogue,
        ra_deg=float(ra_deg or 0.0),
        dec_deg=float(dec_deg or 0.0),
        beam=beam,
        radius_deg=radius_deg,
        topn=topn,
        min_weighted_jy=min_weighted_jy,
        min_field_fraction=min_field_fraction,
    )


def field_sources(
    catalogue: Iterable[CatalogueSource],
    calibrator: CalibratorMatch,
    *,
    ra_deg: float,
    dec_deg: float,
    min_share: float = 0.01,
    radius_deg: float = 3.0,
    beam_model: str = "dsacalib",
    dish_diameter_m: float = DISH_DIAMETER_M,
    freq_hz: float = 1.405e9,
) -> list[ModelSource]:
    """Return the other listed sources that a calibrator's model should hold, the brightest first.

    Parameters
    ----------
    catalogue
        From `nightbeam.sky.read_calibrators`.
    ra_deg, dec_deg
        The field's centre, ICRS.
    min_share
        Least flux times beam, as a share of the calibrator's.
    radius_deg
        Farthest from the centre.
    beam_model, dish_diameter_m, freq_hz
        The primary beam that weights the fluxes.

    Returns
    -------
    list of ModelSource
        Without the calibrator itself, which is whatever lies within an arcminute of it.
    """

    def beam(theta_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        return beam_attenuation(theta_rad, freq_hz, model=beam_name(beam_model), diameter_m=dish_diameter_m)

    away = np.atleast_1d(np.radians(separation(ra_deg, dec_deg, calibrator.ra_deg, calibrator.dec_deg)))
    least = min_share * calibrator.flux_jy * float(beam(away)[0])
    found = match_sources(
        catalogue, ra_deg=ra_deg, dec_deg=dec_deg, beam=beam, radius_deg=radius_deg, topn=1000, min_weighted_jy=least
    )
    return [
        ModelSource(m.name, m.ra_deg, m.dec_deg, m.flux_jy, m.spectral_index)
        for m in found
        if float(separation(m.ra_deg, m.dec_deg, calibrator.ra_deg, calibrator.dec_deg)) > 1.0 / 60.0
    ]


def beam_name(text: str) -> BeamModel:
    """Return the name of a beam model.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    for name in BEAM_MODELS:
        if name == text:
            return name
    raise UsageError(f"no beam model {text!r}", fix=f"choose one of {', '.join(BEAM_MODELS)}")


def pointing_track(
    times_mjd: NDArray[np.float64],
    centre_deg: tuple[float, float],
    *,
    site: Site,
    pointing_dec_deg: float | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where an array that stands on the meridian points at each time, ICRS degrees.

    Parameters
    ----------
    centre_deg
        Phase centre (ICRS), which is the meridian point at the middle of the times.
    pointing_dec_deg
        Apparent declination of the pointing, where it is not that of the phase centre.
    """
    jd = np.asarray(times_mjd, float) + MJD_JD
    if pointing_dec_deg is None:
        middle = 0.5 * (jd[0] + jd[-1])
        dec = float(apparent_hadec(middle, *centre_deg, site)[1])
    else:
        dec = float(np.radians(pointing_dec_deg))
    return meridian_icrs(jd, dec, site)


def beam_on_sources(
    sources: Sequence[ModelSource],
    track_deg: tuple[NDArray[np.float64], NDArray[np.float64]],
    channel_hz: Sequence[NDArray[np.float64]],
    *,
    beam_model: str,
    dish_diameter_m: float,
) -> NDArray[np.float64]:
    """Return the primary beam on each source, (source, time, window, chan); short windows are padded with 0."""
    most = max(len(c) for c in channel_hz)
    out = np.zeros((len(sources), len(track_deg[0]), len(channel_hz), most))
    for i, source in enumerate(sources):
        theta = np.radians(separation(track_deg[0], track_deg[1], source.ra_deg, source.dec_deg))
        for window, freqs in enumerate(channel_hz):
            out[i, :, window, : len(freqs)] = beam_attenuation(
                theta[:, None], freqs[None, :], model=beam_name(beam_model), diameter_m=dish_diameter_m
            )
    return out


_INTERVAL = re.compile(r"\s*([0-9.]+)\s*(s|min|h)?\s*")
_SECONDS = {None: 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}


def averaging_interval_s(intervals: Iterable[str | None]) -> float | None:
    """Return the shortest of CASA's solution intervals in seconds; None where one is every integration, or none ends.

    Raises
    ------
    UsageError
        If one is no interval.
    """
    shortest = np.inf
    for text in intervals:
        if text is None or text.lower().startswith("inf"):
            continue
        if text.lower() == "int":
            return None
        found = _INTERVAL.fullmatch(text)
        if not found or float(found[1]) <= 0:
            raise UsageError(f"{text!r} is no solution interval", fix="write int, inf, or like 60s or 2min")
        shortest = min(shortest, float(found[1]) * _SECONDS[found[2]])
    return float(shortest) if np.isfinite(shortest) else None
