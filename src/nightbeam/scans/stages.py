"""The stages of a calibration, each from nouns to nouns: loads, air, references, temperatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.atmosphere import AtmosphereModel, airmass_of, planck_j, transmission
from nightbeam.scans.compute import (
    SkyTable,
    average_visits,
    fit_pwv,
    load_gain,
    match_references,
    radiometer_noise,
    sky_brightness,
    sky_input,
    sky_noise,
    source_divisor,
    system_temperature,
    ta_star_load_scale,
    ta_star_off_scale,
    visits,
)
from nightbeam.scans.model import (
    Atmosphere,
    AtmosphereFitError,
    CalibrationLoadFull,
    CalibrationOptions,
    CalibrationResult,
    Flag,
    MissingOffError,
    MissingOnError,
    OffMode,
    OpaqueError,
    Phase,
    PreparedData,
    PwvFit,
    RawScan,
    References,
    ScanSchemaError,
    UnsupportedModeError,
)

__all__ = [
    "calibrate_full",
    "channel_width_hz",
    "determine_atmosphere_full",
    "load_of_scan",
    "prepare_otf",
    "prepare_tp",
]

_GHZ = 1e9


def channel_width_hz(scan: RawScan) -> float:
    """Return the width of a channel; `ScanSchemaError` where there is one only."""
    if scan.freq_hz.size < 2:
        raise ScanSchemaError(f"scan {scan.info.scan}: one channel has no width", fix="calibrate spectra")
    return float(np.median(np.abs(np.diff(scan.freq_hz))))


# -- loads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _PhaseMean:
    counts: NDArray[np.float64]
    seconds: float
    airmass: float
    times: NDArray[np.float64]


def load_of_scan(scan: RawScan, *, options: CalibrationOptions | None = None) -> CalibrationLoadFull:
    """Return what the loads, and the sky if it was observed, of a calibration scan say.

    Raises
    ------
    MissingOffError
        If a load was not observed.
    LoadTemperatureError, GainError, ReceiverTemperatureError, SaturationError
        As of `load_gain`.
    """
    options, info = options or CalibrationOptions(), scan.info
    zero = _mean_of(scan, Phase.ZERO)
    hot, cold, sky = (_mean_of(scan, phase) for phase in (Phase.HOT, Phase.COLD, Phase.SKY))
    if hot is None or cold is None:
        missing = "hot" if hot is None else "cold"
        raise MissingOffError(
            f"scan {info.scan}: the {missing} load was not observed", fix="choose another calibration"
        )
    level = 0.0 if zero is None else zero.counts
    freq, image = scan.freq_hz / _GHZ, scan.image_hz / _GHZ
    gain = load_gain(
        hot.counts - level,
        cold.counts - level,
        t_hot_k=info.t_hot_k,
        t_cold_k=info.t_cold_k,
        freq_ghz=freq,
        image_ghz=image,
        gain_signal=scan.gain_signal,
        ceiling=info.adc_ceiling,
        limits=options.limits,
    )
    times = np.concatenate([one.times for one in (hot, cold, sky) if one is not None])
    j_sky = sigma = None
    if sky is not None:
        j_sky = sky_brightness(sky.counts - level, hot.counts - level, gain)
        bandwidth = channel_width_hz(scan) * options.bandwidth_factor
        sigma = sky_noise(
            j_sky, gain, bandwidth_hz=bandwidth, sky_s=sky.seconds, hot_s=hot.seconds, cold_s=cold.seconds
        )
    return CalibrationLoadFull(
        info.scan, gain, j_sky, sigma, None if sky is None else sky.airmass, float(np.mean(times)), float(np.ptp(times))
    )


def _mean_of(scan: RawScan, phase: Phase) -> _PhaseMean | None:
    at = np.flatnonzero(scan.phase == phase)
    if at.size == 0:
        return None
    duration = scan.duration_s[at]
    good = scan.flag[at] == 0
    mean, seconds = average_visits(scan.counts[at], duration, np.zeros(at.size, np.int64), good=good)
    path = airmass_of(scan.elevation_deg[at])
    return _PhaseMean(mean[0], float(np.median(seconds)), float(np.average(path, weights=duration)), scan.time_s[at])


# -- air ----------------------------------------------------------------------------------------------------------


def determine_atmosphere_full(
    scan: RawScan,
    load: CalibrationLoadFull,
    model: AtmosphereModel,
    prepared: PreparedData,
    *,
    options: CalibrationOptions | None = None,
    configured_pwv_mm: float | None = None,
) -> Atmosphere:
    """Find the water from the measured sky, and what the air lets through to each dump.

    The sky is that of the calibration; where it has none, the scan's own references serve.

    Parameters
    ----------
    configured_pwv_mm
        Used where no fit is possible; without it that is an error.

    Raises
    ------
    AtmosphereFitError
        If no amount of water explains the sky and none is configured.
    OpaqueError
        If nothing comes through in any channel.
    """
    options = options or CalibrationOptions()
    freq, image = scan.freq_hz / _GHZ, scan.image_hz / _GHZ
    fit, source, pwv_mm = None, "fit", configured_pwv_mm
    try:
        fit = _fit(scan, load, model, prepared, options)
        pwv_mm = float(np.median(fit.pwv_mm))
    except AtmosphereFitError:
        if configured_pwv_mm is None:
            raise
        source = "configured"
    assert pwv_mm is not None
    tau_s, tau_i = model.opacity(freq, pwv_mm), model.opacity(image, pwv_mm)
    path = prepared.airmass[:, None]
    tr_s, tr_i = transmission(tau_s, path), transmission(tau_i, path)
    if np.all(tr_s < options.limits.tr_min):
        raise OpaqueError(
            f"scan {scan.info.scan}: at most {float(tr_s.max()):.2g} of the signal comes through {pwv_mm:.2f} mm of "
            f"water, {options.limits.tr_min:g} is wanted"
        )
    return Atmosphere(tau_s, tau_i, tr_s, tr_i, fit, pwv_mm, source)


def _fit(
    scan: RawScan,
    load: CalibrationLoadFull,
    model: AtmosphereModel,
    prepared: PreparedData,
    options: CalibrationOptions,
) -> PwvFit:
    freq, image = scan.freq_hz / _GHZ, scan.image_hz / _GHZ
    if load.j_sky is not None and load.sky_sigma is not None and load.sky_airmass is not None:
        seen, sigma, airmass = load.j_sky, load.sky_sigma, load.sky_airmass
    else:
        seen = prepared.off_counts[0] / load.gain.gamma - load.gain.t_rec
        seconds = float(np.median(prepared.off_seconds[0]))
        sigma = (load.gain.t_rec + seen) / np.sqrt(channel_width_hz(scan) * options.bandwidth_factor * seconds)
        airmass = float(prepared.off_airmass[0])
    return fit_pwv(
        seen,
        sigma,
        SkyTable(model, freq, image, airmass=airmass),
        gain_signal=scan.gain_signal,
        forward_eff=scan.info.forward_eff,
        spill_signal=planck_j(freq, _spill_k(scan)),
        spill_image=planck_j(image, _spill_k(scan)),
        common=options.common_pwv,
    )


def _spill_k(scan: RawScan) -> float:
    """Return the temperature of the ground: that of the air beside the telescope where nothing is said."""
    return scan.info.temperature_k if scan.info.spill_k is None else scan.info.spill_k


# -- references ---------------------------------------------------------------------------------------------------


def prepare_otf(scan: RawScan, *, options: CalibrationOptions | None = None) -> PreparedData:
    """Return the dumps of an on-the-fly map and the references about them.

    Raises
    ------
    MissingOnError, MissingOffError
        If there is nothing but the one or the other.
    UnsupportedModeError
        If the scan was chopped.
    """
    return _prepare(scan, options or CalibrationOptions())


def prepare_tp(scan: RawScan, *, options: CalibrationOptions | None = None) -> PreparedData:
    """Return the dumps of a total-power scan and the references about them, in whatever order they come.

    Raises as `prepare_otf`.
    """
    return _prepare(scan, options or CalibrationOptions())


def _prepare(scan: RawScan, options: CalibrationOptions) -> PreparedData:
    number = scan.info.scan
    if chopped := sorted({Phase(p).name for p in np.unique(scan.phase)} & {"SIG", "REF"}):
        raise UnsupportedModeError(f"scan {number} was chopped (phases {', '.join(chopped)}), which is not calibrated")
    on = np.flatnonzero(scan.phase == Phase.ON)
    if on.size == 0:
        raise MissingOnError(f"scan {number} has no dump on the source")
    zero = _mean_of(scan, Phase.ZERO)
    visit = visits(scan.phase == Phase.OFF)
    if visit.max(initial=-1) < 0:
        raise MissingOffError(f"scan {number} has no dump on a reference", fix="was the reference observed?")
    good = (scan.flag == 0) & np.isfinite(scan.counts).any(axis=2)
    counts, seconds = average_visits(scan.counts, scan.duration_s, visit, good=good)
    if zero is not None:
        counts = counts - zero.counts
    weighted = [_of_visit(scan, visit, n) for n in range(counts.shape[0])]
    times, path = (np.array(column) for column in zip(*weighted, strict=True))
    if options.off_mode == "mean":
        counts, seconds, times, path = _mean_visit(counts, seconds, times, path)
    references = tuple(
        _references_of(number, scan.time_s[on], times, seconds[:, pixel], options, pixel)
        for pixel in range(counts.shape[1])
    )
    return PreparedData(on, counts, seconds, path, references, airmass_of(scan.elevation_deg[on]))


def _of_visit(scan: RawScan, visit: NDArray[np.int64], n: int) -> tuple[float, float]:
    at = visit == n
    path = airmass_of(scan.elevation_deg[at])
    return tuple(float(np.average(one, weights=scan.duration_s[at])) for one in (scan.time_s[at], path))  # type: ignore[return-value]


def _mean_visit(
    counts: NDArray[np.float64], seconds: NDArray[np.float64], times: NDArray[Any], path: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any], NDArray[Any]]:
    total = seconds.sum(axis=0, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(counts * seconds[:, :, None], axis=0, keepdims=True) / total[:, :, None]
    weight = seconds.sum(axis=1)
    return (
        mean,
        total,
        np.atleast_1d(np.average(times, weights=weight)),
        np.atleast_1d(np.average(path, weights=weight)),
    )


def _references_of(
    number: int,
    on: NDArray[np.float64],
    times: NDArray[np.float64],
    seconds: NDArray[np.float64],
    options: CalibrationOptions,
    pixel: int,
) -> References:
    """Match with the visits that are good for a pixel, by their numbers among all."""
    there = np.flatnonzero(seconds > 0)
    if there.size == 0:
        raise MissingOffError(f"scan {number}: pixel {pixel} has no good reference", fix="was it flagged throughout?")
    # The mean of all is one visit by now.
    mode: OffMode = "nearest" if options.off_mode == "mean" else options.off_mode
    found = match_references(on, times[there], seconds[there], mode=mode)
    return References(there[found.before], there[found.after], found.weight_after, found.effective_s)


# -- temperatures -------------------------------------------------------------------------------------------------


def calibrate_full(
    scan: RawScan,
    prepared: PreparedData,
    load: CalibrationLoadFull,
    air: Atmosphere,
    model: AtmosphereModel,
    *,
    options: CalibrationOptions | None = None,
) -> CalibrationResult:
    """Return the antenna temperature above the atmosphere of every dump on the source.

    Parameters
    ----------
    scan
        Its counts are not changed.
    prepared, load, air
        From the stages before.
    model
        The same that ``air`` is of: its sky at the airmass of each reference is the scale.
    """
    options = options or CalibrationOptions()
    maker = _Maker(scan, prepared, load, air, model, options)
    pixels = [maker.pixel(number) for number in range(scan.counts.shape[1])]
    ta_star, flag, weight, baseline = (np.stack(column, axis=1) for column in zip(*pixels, strict=True))
    corrected = options.elevation_correction == "model"
    return CalibrationResult(ta_star, flag, weight, maker.t_sys(), baseline if corrected else None)


class _Maker:
    """What the pixels of a scan have in common."""

    def __init__(
        self,
        scan: RawScan,
        prepared: PreparedData,
        load: CalibrationLoadFull,
        air: Atmosphere,
        model: AtmosphereModel,
        options: CalibrationOptions,
    ) -> None:
        self.scan, self.prepared, self.gain, self.air, self.options = scan, prepared, load.gain, air, options
        self.freq, self.image = scan.freq_hz / _GHZ, scan.image_hz / _GHZ
        path = np.unique(np.concatenate([prepared.off_airmass, prepared.airmass]))[:, None]
        water = air.pwv_mm
        skies = zip(model.sky(self.freq, water, path), model.sky(self.image, water, path), strict=True)
        self._sky = dict(zip(path[:, 0].tolist(), skies, strict=True))
        spill = _spill_k(scan)
        self._spill = {"spill_signal": planck_j(self.freq, spill), "spill_image": planck_j(self.image, spill)}
        zero = _mean_of(scan, Phase.ZERO)
        self._zero = np.zeros(scan.counts.shape[1:]) if zero is None else zero.counts

    def pixel(
        self, number: int
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        prepared, references = self.prepared, self.prepared.references[number]
        on = self.scan.counts[prepared.on, number].astype(float) - self._zero[number]
        w = references.weight_after[:, None]
        off = (1 - w) * prepared.off_counts[references.before, number] + w * prepared.off_counts[
            references.after, number
        ]
        divisor = self._divisor(number)
        j_off = np.stack([self._j_sky(number, path) for path in prepared.off_airmass])
        j_ref = (1 - w) * j_off[references.before] + w * j_off[references.after]
        t_sys = system_temperature(self.gain.t_rec[number], j_ref, divisor)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.options.scale == "off":
                ta_star = ta_star_off_scale(on, off, t_sys)
            else:
                ta_star = ta_star_load_scale(on, off, self.gain.gamma[number], divisor)
        baseline = np.zeros_like(ta_star)
        if self.options.elevation_correction == "model":
            baseline = (np.stack([self._j_sky(number, path) for path in prepared.airmass]) - j_ref) / divisor
            ta_star = ta_star - baseline
        flag = self._flag(number, on, off, ta_star)
        weight = self._weight(t_sys, flag, references.effective_s)
        ta_star[flag != 0] = np.nan
        return ta_star.astype(np.float32), flag, weight, baseline.astype(np.float32)

    def t_sys(self) -> NDArray[np.float64]:
        """Return the system temperature of every pixel at the mean airmass of the source."""
        path = float(np.mean(self.prepared.airmass))
        nearest = min(self._sky, key=lambda one: abs(one - path))
        tr_s, tr_i = transmission(self.air.tau_s, path), transmission(self.air.tau_i, path)
        rows = [
            system_temperature(self.gain.t_rec[n], self._j_sky(n, nearest), self._divisor_of(n, tr_s, tr_i))
            for n in range(self.scan.counts.shape[1])
        ]
        return np.stack(rows)

    def _divisor(self, number: int) -> NDArray[np.float64]:
        return self._divisor_of(number, self.air.tr_s, self.air.tr_i)

    def _divisor_of(self, number: int, tr_s: NDArray[np.float64], tr_i: NDArray[np.float64]) -> NDArray[np.float64]:
        return source_divisor(
            tr_s,
            tr_i,
            gain_signal=self.scan.gain_signal[number],
            forward_eff=self.scan.info.forward_eff,
            mode=self.options.sideband_mode,
        )

    def _j_sky(self, number: int, airmass: float) -> NDArray[np.float64]:
        signal, image = self._sky[airmass]
        return sky_input(
            signal,
            image,
            gain_signal=self.scan.gain_signal[number],
            forward_eff=self.scan.info.forward_eff,
            **self._spill,
        )

    def _flag(
        self, number: int, on: NDArray[np.float64], off: NDArray[np.float64], ta_star: NDArray[np.float64]
    ) -> NDArray[np.uint8]:
        flag = np.broadcast_to(self.gain.flag[number], on.shape).copy()
        flag[~np.isfinite(ta_star) & (flag == 0)] |= np.uint8(Flag.NOT_FINITE)
        flag[(on == 0) | (off == 0)] |= np.uint8(Flag.DEAD)
        ceiling = self.scan.info.adc_ceiling
        if ceiling is not None:
            flag[(on >= ceiling) | (off >= ceiling)] |= np.uint8(Flag.SATURATED)
        flag[self.air.tr_s < self.options.limits.tr_min] |= np.uint8(Flag.OPAQUE)
        flag[self.scan.flag[self.prepared.on, number] != 0] |= np.uint8(Flag.USER)
        return flag

    def _weight(
        self, t_sys: NDArray[np.float64], flag: NDArray[np.uint8], effective_s: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        bandwidth = channel_width_hz(self.scan) * self.options.bandwidth_factor
        on_s = self.scan.duration_s[self.prepared.on]
        weight = np.zeros(t_sys.shape[0], np.float32)
        for dump in range(t_sys.shape[0]):
            good = flag[dump] == 0
            if good.any():
                middle = float(np.median(t_sys[dump, good]))
                sigma = radiometer_noise(middle, bandwidth_hz=bandwidth, on_s=on_s[dump], off_s=effective_s[dump])
                weight[dump] = 1.0 / float(sigma) ** 2
        return weight
