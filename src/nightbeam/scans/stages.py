"""The stages of a calibration, each from nouns to nouns: loads, air, references, temperatures.

They work on a whole scan or on some of its pixels, with the same result to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.atmosphere import AtmosphereModel, airmass_of, planck_j, transmission
from nightbeam.scans import kernel, slow
from nightbeam.scans.compute import (
    SPIKE_SIGMA,
    SkyTable,
    bin_mean,
    bin_sky,
    fit_pwv,
    load_gain,
    match_references,
    sky_brightness,
    sky_input,
    sky_noise,
    source_divisor,
    system_temperature,
    visits,
)
from nightbeam.scans.model import (
    MOST_PWV_MM,
    Atmosphere,
    AtmosphereFitError,
    CalibrationLoadFull,
    CalibrationOptions,
    CalibrationResult,
    Flag,
    LoadCounts,
    LoadGain,
    MeasuredSky,
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
    "between",
    "calibrate_full",
    "channel_width_hz",
    "determine_atmosphere_full",
    "load_counts",
    "load_of_counts",
    "load_of_scan",
    "prepare_otf",
    "prepare_tp",
    "reference_sky",
]

_GHZ = 1e9
_ENGINES: dict[str, Any] = {"numba": kernel, "numpy": slow}
#: Spectra of each pixel that its scatter is measured in, at most.
_SPECTRA = 8
#: Channels are fitted together to about this width: the finest structure of the air, ozone's lines, has 20 MHz.
_FIT_BIN_HZ = 5e6


def channel_width_hz(scan: RawScan) -> float:
    """Return the width of a channel; `ScanSchemaError` where there is one only."""
    if scan.freq_hz.size < 2:
        raise ScanSchemaError(f"scan {scan.info.scan}: one channel has no width", fix="calibrate spectra")
    return float(np.median(np.abs(np.diff(scan.freq_hz))))


# -- means --------------------------------------------------------------------------------------------------------


def _mean_of(
    scan: RawScan, dumps: NDArray[np.intp], engine: str
) -> tuple[NDArray[np.float64], NDArray[np.uint8], NDArray[np.float64]]:
    """Return mean counts, flags and integration time of some dumps of one phase: (pixel, channel) twice, (pixel,)."""
    shape = scan.counts.shape[1:]
    mean, flag, usable = np.empty(shape), np.zeros(shape, np.uint8), scan.flag[dumps] == 0
    seconds = np.zeros(shape[0])
    ceiling = np.inf if scan.info.adc_ceiling is None else scan.info.adc_ceiling
    dead = not bool(np.all(scan.phase[dumps] == Phase.ZERO))
    weights = scan.duration_s[dumps]
    _ENGINES[engine].average(scan.counts, dumps, weights, usable, ceiling, dead, mean, flag, seconds)
    flag[~usable.any(axis=0)] = np.uint8(Flag.USER)
    return mean, flag, seconds


def _zero_of(scan: RawScan, engine: str) -> NDArray[np.float64] | None:
    at = np.flatnonzero(scan.phase == Phase.ZERO)
    if at.size == 0:
        return None
    return _mean_of(scan, at, engine)[0]


# -- loads --------------------------------------------------------------------------------------------------------


def load_counts(scan: RawScan, *, engine: str = "numba") -> LoadCounts:
    """Return the mean counts of the phases of a calibration scan, or of some of its pixels.

    Raises
    ------
    MissingOffError
        If a load was not observed.
    """
    counts, flag, seconds = {}, {}, {}
    airmass: dict[Phase, float] = {}
    for phase in (Phase.HOT, Phase.COLD, Phase.SKY, Phase.ZERO):
        at = np.flatnonzero(scan.phase == phase)
        if at.size == 0:
            continue
        counts[phase], flag[phase], seconds[phase] = _mean_of(scan, at, engine)
        if phase == Phase.SKY:
            airmass[phase] = float(np.average(airmass_of(scan.elevation_deg[at]), weights=scan.duration_s[at]))
    for phase in (Phase.HOT, Phase.COLD):
        if phase not in counts:
            raise MissingOffError(
                f"scan {scan.info.scan}: the {phase.name.lower()} load was not observed",
                fix="choose another calibration",
            )
    times = scan.time_s[np.isin(scan.phase, [*counts])]
    return LoadCounts(counts, flag, seconds, airmass, float(np.mean(times)), float(np.ptp(times)))


def load_of_counts(
    scan: RawScan, found: LoadCounts, gain_signal: NDArray[np.float32], *, options: CalibrationOptions | None = None
) -> CalibrationLoadFull:
    """Return what the loads, and the sky if it was observed, say.

    Parameters
    ----------
    scan
        The calibration scan, or some of its pixels: for its frequencies and what its attributes say.
    found
        Of all pixels.
    gain_signal : (pixel, 1) or (pixel, channel)

    Raises
    ------
    LoadTemperatureError, GainError, ReceiverTemperatureError, SaturationError
        As of `load_gain`.
    """
    options, info = options or CalibrationOptions(), scan.info
    zero = found.counts.get(Phase.ZERO)
    hot, cold, sky = (
        None if phase not in found.counts else found.counts[phase] - (0.0 if zero is None else zero)
        for phase in (Phase.HOT, Phase.COLD, Phase.SKY)
    )
    assert hot is not None
    assert cold is not None
    gain = load_gain(
        hot,
        cold,
        t_hot_k=info.t_hot_k,
        t_cold_k=info.t_cold_k,
        freq_ghz=scan.freq_hz / _GHZ,
        image_ghz=scan.image_hz / _GHZ,
        gain_signal=gain_signal,
        flag=found.flag[Phase.HOT] | found.flag[Phase.COLD],
        couplings=(options.hot_coupling, options.cold_coupling),
        ambient_k=info.temperature_k,
        limits=options.limits,
    )
    measured = None
    if sky is not None and np.isfinite(sky).any():
        j_sky = sky_brightness(sky, hot, gain)
        sigma = sky_noise(
            j_sky,
            gain,
            bandwidth_hz=channel_width_hz(scan) * options.bandwidth_factor,
            sky_s=found.seconds[Phase.SKY][:, None],
            hot_s=found.seconds[Phase.HOT][:, None],
            cold_s=found.seconds[Phase.COLD][:, None],
        )
        measured = MeasuredSky(j_sky, sigma, found.airmass[Phase.SKY])
    return CalibrationLoadFull((info.scan,), gain, gain_signal, measured, zero, found.time_s, found.span_s)


def load_of_scan(
    scan: RawScan, *, options: CalibrationOptions | None = None, engine: str = "numba"
) -> CalibrationLoadFull:
    """Return what the loads, and the sky if it was observed, of a whole calibration scan say.

    Raises as `load_counts` and `load_of_counts`.
    """
    return load_of_counts(scan, load_counts(scan, engine=engine), scan.gain_signal, options=options)


def between(first: CalibrationLoadFull, second: CalibrationLoadFull, at_s: float) -> CalibrationLoadFull:
    """Return the calibration between two, at a time between theirs."""
    span = second.time_s - first.time_s
    w = float(np.clip((at_s - first.time_s) / span, 0.0, 1.0)) if span > 0 else 0.0
    one, two = first.gain, second.gain
    gain = LoadGain(
        (1 - w) * one.gamma + w * two.gamma,
        (1 - w) * one.t_rec + w * two.t_rec,
        (1 - w) * one.j_hot + w * two.j_hot,
        (1 - w) * one.j_cold + w * two.j_cold,
        one.flag | two.flag,
    )
    sky = first.sky if second.sky is None else second.sky
    if first.sky is not None and second.sky is not None:
        sky = MeasuredSky(
            (1 - w) * first.sky.j_sky + w * second.sky.j_sky,
            np.hypot((1 - w) * first.sky.sigma, w * second.sky.sigma),
            (1 - w) * first.sky.airmass + w * second.sky.airmass,
        )
    return CalibrationLoadFull(
        (*first.scans, *second.scans), gain, first.gain_signal, sky, first.zero, at_s,
        max(first.span_s, second.span_s), (two.gamma - one.gamma) / span if span > 0 else None,
    )  # fmt: skip


# -- air ----------------------------------------------------------------------------------------------------------


def determine_atmosphere_full(
    scan: RawScan,
    load: CalibrationLoadFull,
    model: AtmosphereModel,
    prepared: PreparedData,
    *,
    sky: MeasuredSky | None = None,
    options: CalibrationOptions | None = None,
) -> Atmosphere:
    """Find the water from the measured sky, and what the air lets through to each dump.

    Parameters
    ----------
    sky
        Of all pixels of ``load``. None: that of the calibration; where it has none, or the options say so, the
        scan's own reference.

    Raises
    ------
    AtmosphereFitError
        If no amount of water explains the sky, and nothing else may serve.
    OpaqueError
        If nothing comes through in any channel.

    Examples
    --------
    >>> from nightbeam.testing.dish import Dish
    >>> dish = Dish(noise=False, pwv_mm=0.62)
    >>> scan = dish.otf(2)
    >>> air = determine_atmosphere_full(scan, load_of_scan(dish.calibration(1)), dish.air, prepare_otf(scan))
    >>> air.source, round(air.pwv_mm, 3), air.tr_s.shape
    ('fit', 0.62, (1, 256))
    """
    options = options or CalibrationOptions()
    freq, image = scan.freq_hz / _GHZ, scan.image_hz / _GHZ
    if sky is None:
        sky = (
            load.sky if options.sky == "cal" and load.sky is not None else reference_sky(scan, prepared, load, options)
        )
    fit, failure = None, ""
    try:
        fit = _fit(scan, load, sky, model, options)
        pwv_mm, source = float(np.nanmedian(fit.pwv_mm)), "fit"
    except AtmosphereFitError as error:
        pwv_mm, source = _other_water(scan, options, error)
        failure = error.what
    tau_s, tau_i = model.opacity(freq, pwv_mm), model.opacity(image, pwv_mm)
    path = prepared.airmass[:1] if np.all(prepared.airmass == prepared.airmass[0]) else prepared.airmass
    tr_s, tr_i = (np.empty((path.size, freq.size), np.float32) for _ in range(2))
    for row, airmass in enumerate(path):
        tr_s[row], tr_i[row] = transmission(tau_s, airmass), transmission(tau_i, airmass)
    if float(tr_s.max()) < options.limits.tr_min:
        raise OpaqueError(
            f"scan {scan.info.scan}: at most {float(tr_s.max()):.2g} of the signal comes through {pwv_mm:.2f} mm of "
            f"water, {options.limits.tr_min:g} is wanted",
            fix="leave it out, or lower the limit tr_min",
        )
    return Atmosphere(tau_s, tau_i, tr_s, tr_i, fit, pwv_mm, source, failure)


def _other_water(scan: RawScan, options: CalibrationOptions, error: AtmosphereFitError) -> tuple[float, str]:
    """Return what may serve in place of a fit."""
    values = {"radiometer": scan.info.radiometer_pwv_mm, "configured": options.pwv_mm}
    for source in options.pwv_fallback:
        if (value := values[source]) is not None and 0 < value < MOST_PWV_MM:
            return value, source
    raise error


def reference_sky(
    scan: RawScan, prepared: PreparedData, load: CalibrationLoadFull, options: CalibrationOptions | None = None
) -> MeasuredSky:
    """Return the sky as the scan's own references saw it: of each the one nearest to the loads, where it is good.

    The gain is that of the loads; the nearer the reference, the less it has drifted.
    """
    options = options or CalibrationOptions()
    used = prepared.off_seconds.any(axis=1)
    visit = int(np.argmin(np.where(used, np.abs(prepared.off_time_s - load.time_s), np.inf)))
    seconds = prepared.off_seconds[visit]
    j_sky = prepared.off_counts[visit] / load.gain.gamma - load.gain.t_rec
    bandwidth = channel_width_hz(scan) * options.bandwidth_factor
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = (load.gain.t_rec + j_sky) / np.sqrt(bandwidth * seconds[:, None])
    return MeasuredSky(j_sky, sigma, float(prepared.off_airmass[visit]))


def _fit(
    scan: RawScan, load: CalibrationLoadFull, sky: MeasuredSky, model: AtmosphereModel, options: CalibrationOptions
) -> PwvFit:
    freq, image = scan.freq_hz / _GHZ, scan.image_hz / _GHZ
    seen, number = sky.j_sky, scan.info.scan
    above = float(np.nanmedian(seen - load.gain.j_hot)) if np.isfinite(seen).any() else 0.0
    if above > 0:
        raise AtmosphereFitError(
            f"scan {number}: the sky is {above:.1f} K brighter than the hot load",
            fix="is the vane still in the beam, or the order of phases wrong?",
        )
    out = np.zeros(freq.size, bool)
    for low, high in options.exclude_ghz:
        out |= (freq >= low) & (freq <= high)
    spill, together = _spill_k(scan), max(1, round(_FIT_BIN_HZ / channel_width_hz(scan)))
    seen, sigma, gain_signal = bin_sky(np.where(out, np.nan, seen), sky.sigma, load.gain_signal, together)
    freq, image = bin_mean(freq, together), bin_mean(image, together)
    fit = fit_pwv(
        seen,
        sigma,
        SkyTable(model, freq, image, airmass=sky.airmass),
        gain_signal=gain_signal,
        forward_eff=scan.info.forward_eff,
        spill_signal=planck_j(freq, spill),
        spill_image=planck_j(image, spill),
        common=options.common_pwv,
        offset=options.pwv_offset,
    )
    if (rms := float(np.nanmedian(fit.rms_k))) > options.limits.pwv_rms_k:
        raise AtmosphereFitError(
            f"scan {number}: {np.nanmedian(fit.pwv_mm):.2f} mm of water leave {rms:.1f} K rms of the sky, at most "
            f"{options.limits.pwv_rms_k:g} K is believed",
            fix="check sideband gains, forward efficiency and weather, or leave channels out (exclude_ghz)",
        )
    return fit


def _spill_k(scan: RawScan) -> float:
    """Return the temperature of the ground: that of the air beside the telescope where nothing is said."""
    return scan.info.temperature_k if scan.info.spill_k is None else scan.info.spill_k


# -- references ---------------------------------------------------------------------------------------------------


def prepare_otf(
    scan: RawScan,
    *,
    options: CalibrationOptions | None = None,
    zero: NDArray[np.float64] | None = None,
    whole: bool = True,
    engine: str = "numba",
) -> PreparedData:
    """Return the dumps of an on-the-fly map and the references about them.

    Parameters
    ----------
    zero : (pixel, channel)
        Level of no input, for scans that have not observed it themselves.
    whole
        Whether the scan has all its pixels. Some of them may be without a reference, all of them may not.

    Raises
    ------
    MissingOnError, MissingOffError
        If there is nothing but the one or the other.
    UnsupportedModeError
        If the scan was chopped.

    Examples
    --------
    >>> from nightbeam.testing.dish import Dish
    >>> prepared = prepare_otf(Dish(pixels=2, channels=64).otf(2, rows=3, dumps=10))
    >>> prepared.on.size, prepared.off_counts.shape
    (30, (4, 2, 64))
    >>> prepared.references.before[0, :12].tolist()  # the visits before and after each row of ten
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    >>> prepared.references.weight_after[0, :3].round(3).tolist()
    [0.179, 0.25, 0.321]
    """
    return _prepare(scan, options or CalibrationOptions(), zero, whole, engine)


def prepare_tp(
    scan: RawScan,
    *,
    options: CalibrationOptions | None = None,
    zero: NDArray[np.float64] | None = None,
    whole: bool = True,
    engine: str = "numba",
) -> PreparedData:
    """Return the dumps of a total-power scan and the references about them, in whatever order they come.

    Parameters and errors as of `prepare_otf`.

    Examples
    --------
    >>> from nightbeam.testing.dish import Dish
    >>> prepared = prepare_tp(Dish(pixels=2, channels=64).tp(2, "OFF ON ON OFF", seconds=10.0))
    >>> prepared.on.tolist(), prepared.references.weight_after[0].round(3).tolist()
    ([1, 2], [0.333, 0.667])
    """
    return _prepare(scan, options or CalibrationOptions(), zero, whole, engine)


def _prepare(
    scan: RawScan, options: CalibrationOptions, zero: NDArray[np.float64] | None, whole: bool, engine: str
) -> PreparedData:
    number = scan.info.scan
    if chopped := sorted({Phase(p).name for p in np.unique(scan.phase)} & {"SIG", "REF"}):
        raise UnsupportedModeError(
            f"scan {number} was chopped (phases {', '.join(chopped)}), which is not calibrated here",
            fix="observe on the fly or in total power",
        )
    on = np.flatnonzero(scan.phase == Phase.ON)
    if on.size == 0:
        raise MissingOnError(f"scan {number} has no dump on the source", fix="were the phases written?")
    visit = visits(scan.phase == Phase.OFF)
    if (last := int(visit.max(initial=-1))) < 0:
        raise MissingOffError(f"scan {number} has no dump on a reference", fix="was the reference observed?")
    own = _zero_of(scan, engine)
    level = zero if own is None else own if zero is None else np.where(np.isfinite(own), own, zero)
    shape = (last + 1, *scan.counts.shape[1:])
    counts, flag, seconds = np.empty(shape, np.float32), np.empty(shape, np.uint8), np.empty(shape[:2])
    for n in range(last + 1):
        mean, flag[n], seconds[n] = _mean_of(scan, np.flatnonzero(visit == n), engine)
        counts[n] = mean if level is None else mean - level
    weighted = [_of_visit(scan, visit, n) for n in range(last + 1)]
    times, path = (np.array(column) for column in zip(*weighted, strict=True))
    if options.off_mode == "mean":
        counts, flag, seconds, times, path = _mean_visit(counts, flag, seconds, times, path)
    if whole and not seconds.any():
        raise MissingOffError(
            f"scan {number}: no pixel has a good reference", fix="was the reference flagged throughout?"
        )
    references = _references(scan.time_s[on], times, seconds, options)
    return PreparedData(
        on, counts, flag, seconds, path, times, references, airmass_of(scan.elevation_deg[on]),
        None if level is None else level.astype(np.float32),
    )  # fmt: skip


def _of_visit(scan: RawScan, visit: NDArray[np.int64], n: int) -> tuple[float, float]:
    at = visit == n
    path = airmass_of(scan.elevation_deg[at])
    return tuple(float(np.average(one, weights=scan.duration_s[at])) for one in (scan.time_s[at], path))  # type: ignore[return-value]


def _mean_visit(
    counts: NDArray[np.float32],
    flag: NDArray[np.uint8],
    seconds: NDArray[np.float64],
    times: NDArray[Any],
    path: NDArray[Any],
) -> tuple[Any, Any, Any, Any, Any]:
    """Make one visit of all: each channel of what is good in it."""
    total, weight = np.zeros(counts.shape[1:]), np.zeros(counts.shape[1:])
    for spectra, of_visit in zip(counts, seconds, strict=True):
        good = np.isfinite(spectra)
        total += np.where(good, spectra, 0.0) * of_visit[:, None]
        weight += good * of_visit[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (total / weight).astype(np.float32)
    why = np.where(weight > 0, np.uint8(0), np.bitwise_or.reduce(flag, axis=0))
    # Of all pixels alike, so that some of them give the same as all.
    return mean[None], why[None], seconds.sum(axis=0, keepdims=True), np.mean(times)[None], np.mean(path)[None]


def _references(
    on: NDArray[np.float64],
    times: NDArray[np.float64],
    seconds: NDArray[np.float64],
    options: CalibrationOptions,
) -> References:
    """Match each pixel with the visits that are good for it, by their numbers among all."""
    pixels = seconds.shape[1]
    shape = (pixels, on.size)
    found = References(np.full(shape, -1), np.full(shape, -1), np.zeros(shape), np.full(shape, np.nan))
    # The mean of all is one visit by now.
    mode: OffMode = "nearest" if options.off_mode == "mean" else options.off_mode
    known: dict[bytes, References] = {}
    for pixel in range(pixels):
        key = seconds[:, pixel].tobytes()
        there = np.flatnonzero(seconds[:, pixel] > 0)
        if there.size == 0:
            continue
        if key not in known:
            known[key] = match_references(on, times[there], seconds[there, pixel], mode=mode)
        one = known[key]
        found.before[pixel], found.after[pixel] = there[one.before], there[one.after]
        found.weight_after[pixel], found.effective_s[pixel] = one.weight_after, one.effective_s
    return found


# -- temperatures -------------------------------------------------------------------------------------------------


def calibrate_full(
    scan: RawScan,
    prepared: PreparedData,
    load: CalibrationLoadFull,
    air: Atmosphere,
    model: AtmosphereModel,
    *,
    options: CalibrationOptions | None = None,
    pixels: slice = slice(None),
    out: NDArray[np.float32] | None = None,
    engine: str = "numba",
) -> CalibrationResult:
    """Return the antenna temperature above the atmosphere of every dump on the source.

    Parameters
    ----------
    scan
        Its counts are not changed, unless they are ``out``.
    prepared, load, air
        From the stages before.
    model
        The same that ``air`` is of: its sky at the airmass of each reference is the scale.
    pixels
        Those of ``load`` that the scan has, where it has not all.
    out : (dump, pixel, channel)
        Where to put the temperatures; the counts themselves, to save memory.

    Examples
    --------
    >>> from nightbeam.testing.dish import Dish, Line
    >>> dish = Dish(noise=False, lines=(Line(5.0, 809.3e9, 40e6),))
    >>> scan, load = dish.otf(2), load_of_scan(dish.calibration(1))
    >>> prepared = prepare_otf(scan)
    >>> air = determine_atmosphere_full(scan, load, dish.air, prepared)
    >>> result = calibrate_full(scan, prepared, load, air, dish.air)
    >>> result.ta_star.shape, round(float(result.ta_star.max()), 2)
    ((30, 4, 256), 5.0)
    """
    options = options or CalibrationOptions()
    if (prepared.zero is None) != (load.zero is None):
        raise ScanSchemaError(
            f"scan {scan.info.scan}: the zero level of the backend is known to the "
            f"{'scan' if load.zero is None else 'calibration'} alone, it has to be taken from both",
            fix="observe it with the loads; give that of the calibration to the stage that prepares",
        )
    counts = scan.counts if scan.counts.dtype == np.float32 else scan.counts.astype(np.float32)
    number, (_, of_pixels, channels) = prepared.on.size, counts.shape
    target = np.empty((number, of_pixels, channels), np.float32) if out is None else out[:number]
    maker = _Maker(scan, counts, prepared, load, air, model, options, pixels, engine)
    weight, scatter = np.empty((number, of_pixels), np.float32), np.empty(of_pixels)
    corrected = options.elevation_correction == "model"
    baseline = np.zeros(target.shape, np.float32) if corrected else None
    t_sys = np.empty((of_pixels, channels))
    for pixel in range(of_pixels):
        sigma = maker.pixel(pixel, target)
        if baseline is not None:
            baseline[:, pixel] = maker.baseline(pixel)
            good = ~np.isnan(target[:, pixel])
            target[:, pixel][good] -= baseline[:, pixel][good]
        weight[:, pixel] = 1.0 / sigma.astype(float) ** 2
        scatter[pixel] = _scatter(target[:, pixel], sigma)
        t_sys[pixel] = maker.t_sys(pixel)
    return CalibrationResult(target, weight, t_sys, baseline, scatter)


def _scatter(spectra: NDArray[np.float32], sigma: NDArray[np.float32]) -> float:
    """Return the measured noise of some spectra over the expected one, from the differences of neighbours."""
    some = np.unique(np.linspace(0, spectra.shape[0] - 1, _SPECTRA).astype(int))
    some = some[np.isfinite(sigma[some])]
    steps = np.empty(some.size * (spectra.shape[1] - 1), np.float32)
    steps = steps[: kernel.known_steps(spectra, some, sigma, steps)]
    if steps.size == 0 or not np.isfinite(steps.min()):
        return float("nan")
    # Of a normal distribution the median of |x| is 0.6745 sigma; a difference has twice the variance.
    return float(_median(steps) / (0.674490 * np.sqrt(2.0)))


def _median(values: NDArray[np.floating]) -> float:
    """Return what `numpy.median` does of values that are all numbers, in a quarter of its time; they are mixed up."""
    middle = values.size // 2
    values.partition(middle)
    if values.size % 2:
        return float(values[middle])
    return float(np.mean([values[:middle].max(), values[middle]], dtype=values.dtype))


class _Maker:
    """What the pixels of a scan have in common."""

    def __init__(
        self,
        scan: RawScan,
        counts: NDArray[np.float32],
        prepared: PreparedData,
        load: CalibrationLoadFull,
        air: Atmosphere,
        model: AtmosphereModel,
        options: CalibrationOptions,
        pixels: slice,
        engine: str,
    ) -> None:
        self.scan, self.counts, self.prepared, self.air, self.options = scan, counts, prepared, air, options
        self.engine, self.first = _ENGINES[engine], pixels.start or 0
        self.load, self.gain = load, load.gain
        freq, image = scan.freq_hz / _GHZ, scan.image_hz / _GHZ
        spill = _spill_k(scan)
        self.spill = (planck_j(freq, spill), planck_j(image, spill))
        self._model, self._freq, self._image = model, freq, image
        self._sky_s, self._sky_i = self._skies(prepared.off_airmass)
        self._mean_path = float(np.mean(prepared.airmass))
        self._mean_sky = self._skies(np.array([self._mean_path]))
        self._mean_tr = transmission(air.tau_s, self._mean_path), transmission(air.tau_i, self._mean_path)
        self._row = np.zeros(prepared.on.size, np.int64) if len(air.tr_s) == 1 else np.arange(prepared.on.size)
        with np.errstate(divide="ignore"):
            inverse = np.float32(1.0) / air.tr_s
        inverse[air.tr_s < np.float32(options.limits.tr_min)] = np.nan
        self._inverse = inverse
        self._least = np.array([np.nanmin(row) if np.isfinite(row).any() else 1.0 for row in inverse], np.float32)
        ceiling = scan.info.adc_ceiling
        self._ceiling = np.float32(np.inf if ceiling is None else ceiling)
        self._width_hz = channel_width_hz(scan) * options.bandwidth_factor

    def pixel(self, p: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill a pixel's temperatures, and return the noise of each of its spectra."""
        prepared, options, references, q = self.prepared, self.options, self.prepared.references, self.first + p
        channels, on = self.counts.shape[2], prepared.on
        sigma = np.empty(on.size, np.float32)
        part_s, part_i, ground = self._parts(p)
        seen = np.empty((len(self._sky_s), channels), np.float32)
        self.engine.seen_at(self.gain.t_rec[q], part_s, part_i, self._sky_s, self._sky_i, ground, seen)
        user = np.where(self.scan.flag[on, p] != 0, np.uint8(Flag.USER), np.uint8(0))
        before, after = references.before[p], references.after[p]
        if before[0] < 0:
            user |= np.uint8(Flag.DEAD)
            before = after = np.zeros(on.size, np.int64)
        on_s = self.scan.duration_s[on]
        noise = np.sqrt((1.0 / on_s + 1.0 / references.effective_s[p]) / self._width_hz)
        line, nothing = options.sideband_mode == "line", np.zeros(channels, np.float32)
        slope = self.load.gamma_per_s
        self.engine.calibrate_pixel(
            self.counts, out, out.view(np.uint32), p, on, before, after, references.weight_after[p],
            np.nan_to_num(noise, nan=1.0), user, nothing if prepared.zero is None else prepared.zero[p],
            np.ascontiguousarray(prepared.off_counts[:, p]), np.ascontiguousarray(prepared.off_flag[:, p]), seen,
            self.gain.gamma[q].astype(np.float32),
            nothing if slope is None else slope[q].astype(np.float32), self.scan.time_s[on] - self.load.time_s,
            options.scale == "load", part_s.astype(np.float32), self._inverse, self._least,
            nothing if line else part_i.astype(np.float32), self.air.tr_i, self._row, self.gain.flag[q],
            self._ceiling, SPIKE_SIGMA if options.spikes else 0.0, sigma,
        )  # fmt: skip
        return sigma

    def baseline(self, p: int) -> NDArray[np.float64]:
        """Return what the air is brighter at a pixel's dumps than at its references, as a source: (dump, channel)."""
        references, (sky_s, sky_i) = self.prepared.references, self._skies(self.prepared.airmass)
        at_on, w = self._j_sky(p, sky_s, sky_i), references.weight_after[p][:, None]
        at_off = self._j_sky(p, self._sky_s, self._sky_i)
        at_reference = (1 - w) * at_off[references.before[p]] + w * at_off[references.after[p]]
        return np.asarray((at_on - at_reference) / self._divisor(p, self.air.tr_s, self.air.tr_i))

    def t_sys(self, p: int) -> NDArray[np.float64]:
        """Return the system temperature of a pixel at the mean airmass of the source."""
        j_sky = self._j_sky(p, *self._mean_sky)[0]
        return system_temperature(self.gain.t_rec[self.first + p], j_sky, self._divisor(p, *self._mean_tr))

    def _skies(self, airmass: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        path, water = airmass[:, None], self.air.pwv_mm
        return self._model.sky(self._freq, water, path), self._model.sky(self._image, water, path)

    def _parts(self, p: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return ``F g`` of both sidebands, and what comes from the ground."""
        g_s, efficiency = self.scan.gain_signal[p].astype(float), self.scan.info.forward_eff
        g_s = np.broadcast_to(g_s, self.counts.shape[2:])
        ground = (1.0 - efficiency) * (g_s * self.spill[0] + (1.0 - g_s) * self.spill[1])
        return efficiency * g_s, efficiency * (1.0 - g_s), ground

    def _divisor(self, p: int, tr_s: NDArray[Any], tr_i: NDArray[Any]) -> NDArray[np.float64]:
        return source_divisor(
            tr_s,
            tr_i,
            gain_signal=self.scan.gain_signal[p],
            forward_eff=self.scan.info.forward_eff,
            mode=self.options.sideband_mode,
        )

    def _j_sky(self, p: int, signal: NDArray[np.float64], image: NDArray[np.float64]) -> NDArray[np.float64]:
        return sky_input(
            signal,
            image,
            gain_signal=self.scan.gain_signal[p],
            forward_eff=self.scan.info.forward_eff,
            spill_signal=self.spill[0],
            spill_image=self.spill[1],
        )
