"""The arithmetic of single-dish calibration: loads, sky, water vapour, references, temperatures, noise.

Brightness is Rayleigh-Jeans (`nightbeam.atmosphere.planck_j`); ``s`` is the signal and ``i`` the image sideband;
``gain_signal`` is ``g_s`` with ``g_s + g_i = 1``. What the backend sees is ``gamma (T_rec + g_s S_s + g_i S_i)``.
Arrays of different shapes go together as in numpy; (pixel, channel) is meant where nothing is said.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter

from nightbeam.atmosphere import RJ_K_PER_GHZ, AtmosphereModel, planck_j
from nightbeam.core.errors import UsageError
from nightbeam.scans.model import (
    AtmosphereFitError,
    Flag,
    GainError,
    LoadGain,
    LoadTemperatureError,
    MissingOffError,
    OffMode,
    PwvFit,
    ReceiverTemperatureError,
    References,
    SaturationError,
    ScanLimits,
    SidebandMode,
)

__all__ = [
    "PWV_RANGE_MM",
    "SPIKE_SIGMA",
    "SkyTable",
    "bin_mean",
    "bin_sky",
    "both_sidebands",
    "fit_pwv",
    "flag_spikes",
    "load_gain",
    "main_beam_temperature",
    "match_references",
    "radiometer_noise",
    "sky_brightness",
    "sky_input",
    "sky_noise",
    "source_divisor",
    "system_temperature",
    "ta_star_load_scale",
    "ta_star_off_scale",
    "visits",
    "zero_point",
]

Floats = NDArray[np.floating[Any]]

#: Between these the water is looked for.
PWV_RANGE_MM = (0.02, 8.0)
#: Channels over which a gain is compared with its neighbours'.
_NEIGHBOURS = 65
#: Of the sum of squares over the water, that are followed.
_MOST_MINIMA = 3
#: Neighbours that stand out so many sigma make a line of what else would be a spike.
LINE_SIGMA = 3.0
#: Of single samples that stand out.
SPIKE_SIGMA = 8.0


# -- loads --------------------------------------------------------------------------------------------------------


def both_sidebands(gain_signal: ArrayLike, signal: ArrayLike, image: ArrayLike) -> NDArray[np.float64]:
    """Return what a receiver takes in: ``g_s signal + (1 - g_s) image``."""
    g_s = np.asarray(gain_signal, float)
    return np.asarray(g_s * np.asarray(signal, float) + (1.0 - g_s) * np.asarray(image, float))


def load_gain(
    hot: Floats,
    cold: Floats,
    *,
    t_hot_k: float,
    t_cold_k: float,
    freq_ghz: NDArray[np.float64],
    image_ghz: NDArray[np.float64],
    gain_signal: ArrayLike = 0.5,
    flag: NDArray[np.uint8] | None = None,
    couplings: tuple[float, float] = (1.0, 1.0),
    ambient_k: float | None = None,
    limits: ScanLimits | None = None,
) -> LoadGain:
    """Return gain and receiver temperature of every pixel and channel, from two loads.

    ``gamma = (C_hot - C_cold) / (J_hot - J_cold)``, ``T_rec = C_cold / gamma - J_cold``.

    Parameters
    ----------
    hot, cold : (pixel, channel), counts
        Zero level removed.
    t_hot_k, t_cold_k
        Physical temperatures.
    freq_ghz, image_ghz : (channel,)
    gain_signal : scalar, (pixel, 1) or (pixel, channel)
    flag : (pixel, channel), uint8, optional
        What is known of the counts (see `Flag`).
    couplings
        How much of the hot and of the cold load the receiver sees; the rest is ``ambient_k``.

    Raises
    ------
    LoadTemperatureError
        If a load's temperature is not that of a load, or the two are too close.
    SaturationError
        If more than half of the channels are at the ceiling.
    GainError
        If the gain is negative as a rule (the loads are swapped), or half of the channels are bad.
    ReceiverTemperatureError
        If the receiver temperature is not above zero as a rule, or above the limit.

    Examples
    --------
    >>> one = load_gain(np.array([[9082929.2239]]), np.array([[4806108.1239]]), t_hot_k=293.0, t_cold_k=78.0,
    ...                 freq_ghz=np.array([809.3]), image_ghz=np.array([797.3]))
    >>> float(one.gamma[0, 0].round(3)), float(one.t_rec[0, 0].round(5))
    (20000.0, 180.0)
    """
    limits = limits or ScanLimits()
    _check_load("hot", t_hot_k, limits.t_hot_k)
    _check_load("cold", t_cold_k, limits.t_cold_k)
    j_hot, j_cold = (
        np.broadcast_to(_load_brightness(kelvin, coupling, ambient_k, freq_ghz, image_ghz, gain_signal), hot.shape)
        for kelvin, coupling in zip((t_hot_k, t_cold_k), couplings, strict=True)
    )
    if (least := float(np.min(j_hot - j_cold))) < limits.least_load_k:
        raise LoadTemperatureError(
            f"the loads of {t_hot_k:g} and {t_cold_k:g} K differ by {least:.1f} K (Rayleigh-Jeans), "
            f"{limits.least_load_k:g} K are wanted",
            fix="check the loads' temperatures in the calibration scan",
        )
    flag = _flag_counts(hot, cold, flag)
    with np.errstate(divide="ignore", invalid="ignore"):
        gamma = (np.asarray(hot, float) - cold) / (j_hot - j_cold)
        t_rec = np.asarray(cold, float) / gamma - j_cold
    _check_saturation(flag)
    alive = np.any(flag == 0, axis=-1)
    if not alive.any():
        raise GainError("no channel has counts on both loads", fix="is the receiver switched on?")
    _check_gain(gamma, flag)
    flag[_gain_is_odd(gamma, flag, limits.gain_factor)] |= np.uint8(Flag.GAIN)
    # A pixel that has died is left out; its neighbours go on.
    if (bad := float(np.mean(flag[alive] != 0))) > 0.5:
        raise GainError(f"{bad:.0%} of the channels have no gain that makes sense", fix="look at the load spectra")
    _check_receiver(t_rec, flag, limits.t_rec_k)
    with np.errstate(invalid="ignore"):
        odd = ~((t_rec >= 0) & (t_rec <= limits.t_rec_k)) & (flag == 0)
    flag[odd] |= np.uint8(Flag.RECEIVER)
    nowhere = flag != 0
    return LoadGain(np.where(nowhere, np.nan, gamma), np.where(nowhere, np.nan, t_rec), j_hot, j_cold, flag)


def _check_load(which: str, kelvin: float, between: tuple[float, float]) -> None:
    low, high = between
    if not low <= kelvin <= high:
        raise LoadTemperatureError(
            f"the {which} load has {kelvin} K, which is not between {low:g} and {high:g}",
            fix="correct it in the calibration scan, or widen the limits",
        )


def _load_brightness(
    kelvin: float,
    coupling: float,
    ambient_k: float | None,
    freq_ghz: NDArray[np.float64],
    image_ghz: NDArray[np.float64],
    gain_signal: ArrayLike,
) -> NDArray[np.float64]:
    load = both_sidebands(gain_signal, planck_j(freq_ghz, kelvin), planck_j(image_ghz, kelvin))
    if coupling == 1.0:
        return load
    if ambient_k is None:
        raise UsageError(f"a load that is seen to {coupling:.0%} needs the temperature of what is seen beside it")
    beside = both_sidebands(gain_signal, planck_j(freq_ghz, ambient_k), planck_j(image_ghz, ambient_k))
    return np.asarray(coupling * load + (1.0 - coupling) * beside)


def zero_point(
    freq_ghz: NDArray[np.float64], image_ghz: NDArray[np.float64], gain_signal: ArrayLike
) -> NDArray[np.float64]:
    """Return half a photon in both sidebands, in K: what Callen and Welton add to every brightness.

    Added to loads and sky it goes out of the receiver temperature, and nothing else changes.

    Examples
    --------
    >>> zero_point(np.array([809.3]), np.array([797.3]), 0.5).round(3).tolist()
    [19.276]
    """
    return both_sidebands(gain_signal, 0.5 * RJ_K_PER_GHZ * freq_ghz, 0.5 * RJ_K_PER_GHZ * image_ghz)


def _flag_counts(hot: Floats, cold: Floats, known: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    flag = np.zeros(hot.shape, np.uint8) if known is None else known.copy()
    finite = np.isfinite(hot) & np.isfinite(cold)
    flag[~finite & (flag == 0)] |= np.uint8(Flag.NOT_FINITE)
    flag[finite & ((hot == 0) | (cold == 0) | (hot == cold))] |= np.uint8(Flag.DEAD)
    return flag


def _check_saturation(flag: NDArray[np.uint8]) -> None:
    if (share := float(np.mean((flag & Flag.SATURATED) != 0))) > 0.5:
        raise SaturationError(f"{share:.0%} of the channels are saturated on a load", fix="attenuate the receiver")


def _check_gain(gamma: Floats, flag: NDArray[np.uint8]) -> None:
    good = gamma[flag == 0]
    if good.size and (middle := float(np.median(good))) <= 0:
        raise GainError(
            f"the median gain is {middle:.4g} counts/K, so the cold load is brighter than the hot one",
            fix="have the two loads been swapped in the calibration scan?",
        )


def _gain_is_odd(gamma: Floats, flag: NDArray[np.uint8], factor: float) -> NDArray[np.bool_]:
    """Say where the gain is not above zero, or far from the median of its neighbours."""
    good = flag == 0
    usual = np.ones((*gamma.shape[:-1], 1))
    alive = good.any(axis=-1)
    usual[alive] = np.nanmedian(np.where(good, gamma, np.nan)[alive], axis=-1, keepdims=True)
    filled = np.where(good & np.isfinite(gamma), gamma, usual)
    # Row by row: of one dimension it is ten times faster.
    size = min(_NEIGHBOURS, filled.shape[-1])
    middle = np.array([median_filter(row, size=size, mode="nearest") for row in filled])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = gamma / middle
    return np.asarray(good & ~((gamma > 0) & (ratio > 1 / factor) & (ratio < factor)))


def _check_receiver(t_rec: Floats, flag: NDArray[np.uint8], most: float) -> None:
    good = t_rec[flag == 0]
    if good.size and not 0 < (middle := float(np.median(good))) <= most:
        raise ReceiverTemperatureError(
            f"the median receiver temperature is {middle:.1f} K, which is not between 0 and {most:g}",
            fix="check the loads' temperatures and the zero level of the backend",
        )


# -- sky ----------------------------------------------------------------------------------------------------------


def sky_brightness(sky: Floats, hot: Floats, gain: LoadGain) -> NDArray[np.float64]:
    """Return the measured brightness of the sky, both sidebands, in K: ``J_hot + (C_sky - C_hot) / gamma``."""
    return np.asarray(gain.j_hot + (np.asarray(sky, float) - hot) / gain.gamma)


def sky_noise(
    j_sky: Floats, gain: LoadGain, *, bandwidth_hz: float, sky_s: ArrayLike, hot_s: ArrayLike, cold_s: ArrayLike
) -> NDArray[np.float64]:
    """Return the radiometer noise of `sky_brightness` in K, that of both loads included.

    With ``x`` the place of the sky between the loads (0 cold, 1 hot), the sky's own noise and ``x`` times the hot
    load's and ``1 - x`` times the cold load's add in squares.
    """
    x = (j_sky - gain.j_cold) / (gain.j_hot - gain.j_cold)
    with np.errstate(divide="ignore", invalid="ignore"):  # a dead pixel has no time
        squares = (gain.t_rec + j_sky) ** 2 / np.asarray(sky_s)
        squares = squares + (x * (gain.t_rec + gain.j_hot)) ** 2 / np.asarray(hot_s)
        squares = squares + ((1.0 - x) * (gain.t_rec + gain.j_cold)) ** 2 / np.asarray(cold_s)
    return np.asarray(np.sqrt(squares / bandwidth_hz))


def sky_input(
    sky_signal: ArrayLike,
    sky_image: ArrayLike,
    *,
    gain_signal: ArrayLike,
    forward_eff: float,
    spill_signal: ArrayLike,
    spill_image: ArrayLike,
) -> NDArray[np.float64]:
    """Return what a blank sky puts into the receiver: ``F`` of the air's brightness, the rest from the ground."""
    air = both_sidebands(gain_signal, sky_signal, sky_image)
    ground = both_sidebands(gain_signal, spill_signal, spill_image)
    return np.asarray(forward_eff * air + (1.0 - forward_eff) * ground)


class SkyTable:
    """The brightness of the sky in both sidebands at one airmass, for any amount of water.

    A cubic spline over the logarithm of the water: with 33 amounts it is right to a thousandth of a kelvin.
    """

    def __init__(
        self,
        model: AtmosphereModel,
        freq_ghz: NDArray[np.float64],
        image_ghz: NDArray[np.float64],
        *,
        airmass: float,
        pwv_range_mm: tuple[float, float] = PWV_RANGE_MM,
        amounts: int = 33,
    ) -> None:
        low, high = pwv_range_mm
        if not 0 < low < high or amounts < 4:
            raise UsageError(f"no table of {amounts} amounts of water between {low} and {high} mm")
        self.log_pwv = np.linspace(np.log(low), np.log(high), amounts)
        water = np.exp(self.log_pwv)[:, None]
        self.signal = model.sky(freq_ghz, water, airmass)
        self.image = model.sky(image_ghz, water, airmass)

    @property
    def step(self) -> float:
        """Between two amounts, in the logarithm."""
        return float(self.log_pwv[1] - self.log_pwv[0])


def bin_mean(values: NDArray[np.float64], together: int) -> NDArray[np.float64]:
    """Return the mean of so many neighbours each; the last mean may be of fewer."""
    if together == 1:
        return values
    begins = np.arange(0, values.shape[-1], together)
    return np.asarray(np.add.reduceat(values, begins, axis=-1) / np.add.reduceat(np.ones(values.shape[-1]), begins))


def bin_sky(
    j_sky: Floats, sigma_k: Floats, gain_signal: NDArray[np.floating[Any]], together: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the brightness of the sky in bins of channels, weighted by its noise; its noise; the sideband gain.

    Parameters
    ----------
    j_sky, sigma_k : (pixel, channel), K
        NaN where a channel is not to be used.
    gain_signal : (pixel, 1) or (pixel, channel)
    together
        Channels of a bin; the last one may have fewer.

    Returns
    -------
    (pixel, bin), (pixel, bin), (pixel, 1) or (pixel, bin)
        A bin without a good channel is NaN.
    """
    gains = np.asarray(gain_signal, float)
    if together == 1:
        return np.asarray(j_sky, float), np.asarray(sigma_k, float), gains
    begins = np.arange(0, j_sky.shape[-1], together)
    means, noise = (np.empty((j_sky.shape[0], begins.size)) for _ in range(2))
    for pixel, (seen, sigma) in enumerate(zip(j_sky, sigma_k, strict=True)):  # of each, to need little memory
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = 1.0 / np.square(sigma)
            weight = np.where(np.isfinite(seen) & np.isfinite(weight), weight, 0.0)
            total = np.add.reduceat(weight, begins)
            means[pixel] = np.add.reduceat(weight * np.where(weight > 0, seen, 0.0), begins) / total
            noise[pixel] = 1.0 / np.sqrt(total)
    return means, noise, gains if gains.shape[-1] == 1 else bin_mean(gains, together)


def fit_pwv(
    j_sky: Floats,
    sigma_k: Floats,
    table: SkyTable,
    *,
    gain_signal: ArrayLike,
    forward_eff: float,
    spill_signal: ArrayLike,
    spill_image: ArrayLike,
    common: bool = True,
    offset: bool = False,
    most_steps: int = 30,
) -> PwvFit:
    """Fit the precipitable water vapour that explains the measured sky, by weighted least squares.

    Newton's method in the logarithm of the water (Gauss-Newton), begun at the best amount of the table.

    Parameters
    ----------
    j_sky : (pixel, channel), K
        As of `sky_brightness`; channels that are not to be used are NaN.
    sigma_k : (pixel, channel), K
        Noise of it.
    gain_signal : scalar, (pixel, 1) or (pixel, channel)
    spill_signal, spill_image : scalar or (channel,)
        Brightness of the ground.
    common
        One amount for all pixels: the water is the same for all, what differs is their errors.
    offset
        Also an additive constant for each pixel.

    Raises
    ------
    AtmosphereFitError
        If no pixel has channels that can be used, or the sky is brighter or darker than anything in the table.
    """
    seen = np.atleast_2d(np.asarray(j_sky, float))
    weight = np.broadcast_to(1.0 / np.asarray(sigma_k, float) ** 2, seen.shape)
    good = np.isfinite(seen) & np.isfinite(weight) & (weight > 0)
    weight, seen = np.where(good, weight, 0.0), np.where(good, seen, 0.0)
    channels = good.sum(axis=1)
    blind = channels <= int(offset)
    if blind.all():
        raise AtmosphereFitError(f"no pixel has more than {channels.max()} bins of channels to find the water from")
    weight[blind] = 0.0
    problem = _WaterProblem(
        seen, weight, table, gain_signal, forward_eff, np.asarray(spill_signal), np.asarray(spill_image), offset
    )
    low, high = table.log_pwv[0], table.log_pwv[-1]
    found = [_descend(problem, begin, common, table.step, (low, high), most_steps) for begin in problem.begins(common)]
    chi2 = np.stack([problem.chi2(u, common) for u, _ in found])
    step = max(steps for _, steps in found)
    u = np.take_along_axis(np.stack([u for u, _ in found]), np.argmin(chi2, axis=0)[None], axis=0)[0]
    _, curvature, rms, shift = problem.normal(u, common)
    at_bound = (u <= low + 1e-9) | (u >= high - 1e-9)
    _check_bounds(u[~blind], low, high)
    with np.errstate(divide="ignore"):
        error = np.exp(u) / np.sqrt(curvature)
    if not common:
        u, error = np.where(blind, np.nan, u), np.where(blind, np.nan, error)
    return PwvFit(np.exp(u), error, rms, shift, step, channels, at_bound & ~blind, common)


def _check_bounds(u: NDArray[np.float64], low: float, high: float) -> None:
    """Refuse a fit that ends, for most pixels, at the least or the most water that is tried."""
    middle = float(np.median(u))
    if middle >= high - 1e-9:
        raise AtmosphereFitError(
            f"the sky is brighter than with {np.exp(high):.3g} mm of water, the most that is tried",
            fix="check loads and weather, or leave the channels out that see no sky",
        )
    if middle <= low + 1e-9:
        raise AtmosphereFitError(
            f"the sky is darker than with {np.exp(low):.3g} mm of water, the least that is tried",
            fix="check loads, weather and forward efficiency, or let configured water serve (pwv_fallback)",
        )


def _descend(
    problem: _WaterProblem,
    u: NDArray[np.float64],
    common: bool,
    most: float,
    between: tuple[float, float],
    most_steps: int,
) -> tuple[NDArray[np.float64], int]:
    """Follow Newton's steps, none longer than ``most``, to the minimum nearest to a beginning."""
    for step in range(1, most_steps + 1):  # noqa: B007
        slope, curvature, _, _ = problem.normal(u, common)
        with np.errstate(invalid="ignore"):
            move = np.where(curvature > 0, np.clip(slope / curvature, -most, most), 0.0)
        after = np.clip(u + move, *between)
        done, u = np.max(np.abs(after - u)) < 1e-10, after
        if done:
            break
    return u, step


class _WaterProblem:
    """The sums of the fit; ``u`` is the logarithm of the water, one for each pixel."""

    def __init__(
        self,
        seen: NDArray[np.float64],
        weight: NDArray[np.float64],
        table: SkyTable,
        gain_signal: ArrayLike,
        forward_eff: float,
        spill_signal: NDArray[np.float64],
        spill_image: NDArray[np.float64],
        offset: bool,
    ) -> None:
        g_s = np.broadcast_to(np.asarray(gain_signal, float), seen.shape)
        self.seen, self.weight, self.table, self.offset = seen, weight, table, offset
        self.of_signal, self.of_image = forward_eff * g_s, forward_eff * (1.0 - g_s)
        self.ground = (1.0 - forward_eff) * both_sidebands(g_s, spill_signal, spill_image)
        from scipy.interpolate import CubicSpline  # its import takes longer than that of all the rest

        self.signal = CubicSpline(table.log_pwv, table.signal, axis=0).c
        self.image = CubicSpline(table.log_pwv, table.image, axis=0).c

    def begins(self, common: bool) -> list[NDArray[np.float64]]:
        """Return where to begin: at the best amount of the table for each pixel, or for all.

        With an offset there can be two minima, because more water makes the band's slope smaller again; then at the
        best of each.
        """
        chi2 = np.stack([self._chi2(self._residual_at_knot(n)) for n in range(self.table.log_pwv.size)])
        if common:
            chi2 = np.broadcast_to(chi2.sum(axis=1, keepdims=True), chi2.shape)
        if not self.offset:
            return [np.asarray(self.table.log_pwv[np.argmin(chi2, axis=0)])]
        walls = np.full((1, chi2.shape[1]), np.inf)
        around = np.minimum(np.concatenate([walls, chi2[:-1]]), np.concatenate([chi2[1:], walls]))
        order = np.argsort(np.where(chi2 <= around, chi2, np.inf), axis=0, kind="stable")[:_MOST_MINIMA]
        return [np.asarray(self.table.log_pwv[knots]) for knots in order]

    def chi2(self, u: NDArray[np.float64], common: bool) -> NDArray[np.float64]:
        """Return what a fit leaves, in squares of the noise; of each pixel, or of all."""
        left = self.seen - self._model(u)[0]
        if self.offset:
            left = left - self._mean(left)[:, None]
        of_pixels = self._chi2(left)
        return np.full_like(of_pixels, of_pixels.sum()) if common else of_pixels

    def normal(
        self, u: NDArray[np.float64], common: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return slope and curvature of the fit by ``u``, the rms that is left, and the offset of each pixel."""
        model, by_u = self._model(u)
        left = self.seen - model
        shift = self._mean(left) if self.offset else np.zeros(left.shape[0])
        if self.offset:
            left, by_u = left - shift[:, None], by_u - self._mean(by_u)[:, None]
        slope, curvature = (self.weight * by_u * left).sum(axis=1), (self.weight * by_u**2).sum(axis=1)
        with np.errstate(invalid="ignore"):
            rms = np.sqrt((np.where(self.weight > 0, left, 0.0) ** 2).sum(axis=1) / (self.weight > 0).sum(axis=1))
        if common:
            slope, curvature = np.full_like(slope, slope.sum()), np.full_like(curvature, curvature.sum())
        return slope, curvature, rms, shift

    def _model(self, u: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        knots = self.table.log_pwv
        at = np.clip(np.searchsorted(knots, u, side="right") - 1, 0, knots.size - 2)
        x = (u - knots[at])[:, None]
        (signal, signal_by_u), (image, image_by_u) = _cubic(self.signal, at, x), _cubic(self.image, at, x)
        model = self.of_signal * signal + self.of_image * image + self.ground
        return model, self.of_signal * signal_by_u + self.of_image * image_by_u

    def _residual_at_knot(self, n: int) -> NDArray[np.float64]:
        left = self.seen - (self.of_signal * self.table.signal[n] + self.of_image * self.table.image[n] + self.ground)
        return np.asarray(left - self._mean(left)[:, None] if self.offset else left)

    def _chi2(self, left: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((self.weight * left**2).sum(axis=1))

    def _mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = self.weight.sum(axis=1)
        return np.asarray((self.weight * values).sum(axis=1) / np.where(total > 0, total, 1.0))


def _cubic(
    coefficients: NDArray[np.float64], at: NDArray[np.intp], x: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return value and derivative of a spline's pieces ``at``, ``x`` beyond their begin; (pixel, channel)."""
    a, b, c, d = coefficients[:, at]
    return ((a * x + b) * x + c) * x + d, (3.0 * a * x + 2.0 * b) * x + c


# -- references ---------------------------------------------------------------------------------------------------


def visits(is_off: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each dump the number of the visit to the reference that it belongs to; -1 elsewhere.

    Dumps on the reference that follow each other are one visit.
    """
    begins = is_off & ~np.concatenate([[False], is_off[:-1]])
    return np.where(is_off, np.cumsum(begins) - 1, -1).astype(np.int64)


def match_references(
    time_on: NDArray[np.float64],
    time_off: NDArray[np.float64],
    seconds_off: NDArray[np.float64],
    *,
    mode: OffMode = "linear",
) -> References:
    """Choose the visits to the reference that serve each dump.

    Parameters
    ----------
    time_on : (dump,)
    time_off, seconds_off : (visit,), ascending
        Middle and integration time of each visit.
    mode
        ``linear``: between the visit before and the one after; outside of them the nearest, nothing is extrapolated.
        ``nearest``: that one. ``mean``: every dump has the same, to be made of all (``before`` and ``after`` are 0).

    Raises
    ------
    MissingOffError
        If there is no visit.

    Notes
    -----
    A mixture ``(1 - w) a + w b`` of visits of ``t_a`` and ``t_b`` seconds has the noise of
    ``1 / ((1 - w)^2 / t_a + w^2 / t_b)`` seconds.
    """
    if time_off.size == 0:
        raise MissingOffError("there is no good reference in the scan", fix="was the reference observed, and flagged?")
    if np.any(np.diff(time_off) <= 0):
        raise UsageError("the visits to the reference are not in the order of time")
    last = time_off.size - 1
    if mode == "mean":
        none = np.zeros(time_on.size, np.int64)
        return References(none, none, np.zeros(time_on.size), np.full(time_on.size, seconds_off.sum()))
    after = np.clip(np.searchsorted(time_off, time_on, side="left"), 0, last)
    before = np.clip(after - 1, 0, last)
    span = time_off[after] - time_off[before]
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(span > 0, (time_on - time_off[before]) / span, 0.0)
    weight = np.clip(weight, 0.0, 1.0)
    if mode == "nearest":
        weight = (weight > 0.5).astype(float)
    before, after = np.where(weight == 1.0, after, before), np.where(weight == 0.0, before, after)
    weight = np.where(before == after, 0.0, weight)
    effective = 1.0 / ((1.0 - weight) ** 2 / seconds_off[before] + weight**2 / seconds_off[after])
    return References(before.astype(np.int64), after.astype(np.int64), weight, effective)


# -- temperatures -------------------------------------------------------------------------------------------------


def source_divisor(
    tr_signal: ArrayLike,
    tr_image: ArrayLike,
    *,
    gain_signal: ArrayLike,
    forward_eff: float,
    mode: SidebandMode = "line",
) -> NDArray[np.float64]:
    """Return the part of a source's temperature that reaches the receiver.

    ``F g_s tr_s`` for a line in the signal sideband; ``F (g_s tr_s + g_i tr_i)`` for a continuum in both.
    """
    g_s = np.asarray(gain_signal, float)
    if mode == "line":
        return np.asarray(forward_eff * g_s * np.asarray(tr_signal, float))
    return np.asarray(forward_eff * both_sidebands(g_s, tr_signal, tr_image))


def system_temperature(t_rec: ArrayLike, j_sky: ArrayLike, divisor: ArrayLike) -> NDArray[np.float64]:
    """Return the system temperature above the atmosphere: ``(T_rec + J_sky) / divisor`` (see `source_divisor`).

    Examples
    --------
    >>> round(float(system_temperature(180.0, 185.59038033, 0.95 * 0.5 * 0.27449858)), 4)
    2803.8905
    """
    return np.asarray((np.asarray(t_rec, float) + np.asarray(j_sky, float)) / np.asarray(divisor, float))


def ta_star_off_scale(on: ArrayLike, off: ArrayLike, t_sys: ArrayLike) -> NDArray[np.float64]:
    """Return ``T_A*`` with the reference for a scale: ``(C_on - C_off) / C_off * T_sys``.

    What the gain has drifted since the loads cancels; that the sky at the reference is the one of ``t_sys`` is assumed.

    Examples
    --------
    >>> t_sys = system_temperature(180.0, 185.59038033, 0.95 * 0.5 * 0.27449858)
    >>> round(float(ta_star_off_scale(7324846.2891, 7311807.6066, t_sys)), 5)
    5.0
    """
    reference = np.asarray(off, float)
    return np.asarray((np.asarray(on, float) - reference) / reference * np.asarray(t_sys, float))


def ta_star_load_scale(on: ArrayLike, off: ArrayLike, gamma: ArrayLike, divisor: ArrayLike) -> NDArray[np.float64]:
    """Return ``T_A*`` with the loads for a scale: ``(C_on - C_off) / (gamma divisor)``.

    Examples
    --------
    >>> round(float(ta_star_load_scale(7324846.2891, 7311807.6066, 2e4, 0.95 * 0.5 * 0.27449858)), 5)
    5.0
    """
    difference = np.asarray(on, float) - np.asarray(off, float)
    return np.asarray(difference / (np.asarray(gamma, float) * np.asarray(divisor, float)))


def main_beam_temperature(ta_star: ArrayLike, *, forward_eff: float, main_beam_eff: ArrayLike) -> NDArray[np.float64]:
    """Return ``T_mb = T_A* F / B``."""
    return np.asarray(np.asarray(ta_star, float) * forward_eff / np.asarray(main_beam_eff, float))


def radiometer_noise(
    t_sys: ArrayLike, *, bandwidth_hz: float, on_s: ArrayLike, off_s: ArrayLike
) -> NDArray[np.float64]:
    """Return the noise of a difference in K: ``T_sys sqrt(1 / (dnu t_on) + 1 / (dnu t_off))``.

    Examples
    --------
    >>> round(float(radiometer_noise(2803.89051, bandwidth_hz=1e6, on_s=1.0, off_s=1.0)), 4)
    3.9653
    """
    inverse = 1.0 / np.asarray(on_s, float) + 1.0 / np.asarray(off_s, float)
    return np.asarray(np.asarray(t_sys, float) * np.sqrt(inverse / bandwidth_hz))


# -- flags --------------------------------------------------------------------------------------------------------


def flag_spikes(spectra: Floats, sigma: Floats, times: float = SPIKE_SIGMA) -> NDArray[np.bool_]:
    """Say which single samples stand out both in time and among their neighbours in frequency.

    Parameters
    ----------
    spectra : (dump, channel)
        Calibrated, of one pixel; NaN where a sample is flagged already.
    sigma : (dump,) or (dump, channel)
        Expected noise.
    times
        How many of them a sample has to stand out.

    Returns
    -------
    (dump, channel)
        Never where three or more channels that touch each other stand out in time, the others by three sigma: that
        may be a line.
    """
    noise = np.asarray(sigma, float)
    noise = noise[:, None] if noise.ndim == 1 else noise
    seen = np.where(np.isfinite(spectra), spectra, np.nan)
    # Of the neighbours alone: the sample itself must not pull its own background, nor must those it may spill into.
    padded = np.pad(seen, ((0, 0), (3, 3)), constant_values=np.nan)
    width = seen.shape[1]
    around = np.stack([padded[:, 3 + shift : 3 + shift + width] for shift in (-3, -2, 2, 3)])
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a channel without a single number has no median
        aside = np.abs(seen - np.nanmedian(seen, axis=0, keepdims=True))
        in_time, beside = aside > times * noise, aside > LINE_SIGMA * noise
        in_frequency = np.abs(seen - np.nanmedian(around, axis=0)) > times * noise
    enough = np.isfinite(around).sum(axis=0) >= 2
    # What stands beside a line's peak need not stand out as far as the peak.
    return np.asarray(in_time & in_frequency & enough & ~_in_runs_of_three(beside))


def _in_runs_of_three(out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    three = out[:, 2:] & out[:, 1:-1] & out[:, :-2]
    found = np.zeros_like(out)
    for shift in range(3):
        found[:, shift : out.shape[1] - 2 + shift] |= three
    return found
