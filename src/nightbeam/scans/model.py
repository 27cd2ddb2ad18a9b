"""Nouns of single-dish calibration: phases, flags, options, what stages hand on, and what can be wrong with a scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import ConfigError, RejectedError

__all__ = [
    "MOST_PWV_MM",
    "Atmosphere",
    "AtmosphereFitError",
    "CalMode",
    "CalibrationError",
    "CalibrationLoadFull",
    "CalibrationOptions",
    "CalibrationResult",
    "ElevationCorrection",
    "ElevationError",
    "Flag",
    "FrequencyAxisError",
    "GainError",
    "LoadCounts",
    "LoadGain",
    "LoadTemperatureError",
    "MeasuredSky",
    "MissingOffError",
    "MissingOnError",
    "NoCalibrationError",
    "OffMode",
    "OpaqueError",
    "Phase",
    "PipelineConfig",
    "PipelineResult",
    "PreparedData",
    "PwvFallback",
    "PwvFit",
    "RawScan",
    "ReceiverTemperatureError",
    "References",
    "RejectedCalibration",
    "SaturationError",
    "Scale",
    "ScanFailure",
    "ScanInfo",
    "ScanLimits",
    "ScanResult",
    "ScanSchemaError",
    "SidebandMode",
    "SkyFrom",
    "StoreReadError",
    "Tuning",
    "UnsupportedModeError",
    "flags_of",
]

#: No place that is observed from has more water above it.
MOST_PWV_MM = 30.0

OffMode = Literal["linear", "nearest", "mean"]
Scale = Literal["off", "load"]
SidebandMode = Literal["line", "continuum"]
ElevationCorrection = Literal["none", "model"]
SkyFrom = Literal["cal", "off"]
CalMode = Literal["past-then-future", "nearest", "linear"]
PwvFallback = Literal["radiometer", "configured"]


class Phase(IntEnum):
    """What the telescope looked at during a dump, as it is stored."""

    ON = 0
    OFF = 1
    HOT = 2
    COLD = 3
    SKY = 4
    ZERO = 5
    SIG = 6
    REF = 7


class Flag(IntFlag):
    """Why a number is not to be used, as it is stored (uint8)."""

    NONE = 0
    NOT_FINITE = 1
    DEAD = 2
    SATURATED = 4
    GAIN = 8
    RECEIVER = 16
    OPAQUE = 32
    SPIKE = 64
    USER = 128


# -- what can be wrong with a scan --------------------------------------------------------------------------------


class CalibrationError(RejectedError):
    """A scan cannot be calibrated; others can.

    Attributes
    ----------
    calibrations
        Scans of loads that were tried.
    pixel
        Which one, where it is about one.
    """

    calibrations: tuple[int, ...] = ()
    pixel: int | None = None


class StoreReadError(CalibrationError):
    """A part of the scan is missing, truncated, or not what its checksum says."""

    retry = True  # a scan that is still being copied is whole a moment later


class ScanSchemaError(CalibrationError):
    """An array or attribute of the scan is missing, or they do not fit together."""


class NoCalibrationError(CalibrationError):
    """There is no valid load calibration in time and of the same tuning."""


class LoadTemperatureError(CalibrationError):
    """A load's temperature cannot be right, or both are the same."""


class GainError(CalibrationError):
    """The loads have been swapped, or most channels make no sense."""


class ReceiverTemperatureError(CalibrationError):
    """The receiver temperature that follows from the loads cannot be right."""


class SaturationError(CalibrationError):
    """Most channels are at the ceiling of the digitizer."""


class AtmosphereFitError(CalibrationError):
    """No amount of water explains the sky."""


class OpaqueError(CalibrationError):
    """Nothing comes through the air in any channel."""


class MissingOffError(CalibrationError):
    """There is no reference."""


class MissingOnError(CalibrationError):
    """There is nothing but references."""


class FrequencyAxisError(CalibrationError):
    """The frequencies are not a spectrum's."""


class ElevationError(CalibrationError):
    """The telescope points too low, or nowhere."""


class UnsupportedModeError(CalibrationError):
    """A way of observing that is not calibrated here; it is not taken for another one."""


# -- options ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScanLimits:
    """What is believed.

    Attributes
    ----------
    t_hot_k, t_cold_k
        Lowest and highest temperature of each load.
    least_load_k
        The least difference of the two loads (Rayleigh-Jeans).
    t_rec_k
        The highest receiver temperature (DSB).
    gain_factor
        How far a channel's gain may be from that of its neighbours.
    tr_min
        Channels with less transmission are opaque.
    pwv_rms_k
        What the fit of the water may leave of the sky, as the median over the pixels.
    load_span_s
        A calibration that took longer is warned of: the gain has drifted between loads and sky.
    elevation_deg
        A source farther above or below its reference is warned of (the ALMA pipeline's limit).
    """

    t_hot_k: tuple[float, float] = (200.0, 400.0)
    t_cold_k: tuple[float, float] = (2.0, 250.0)
    least_load_k: float = 20.0
    t_rec_k: float = 20_000.0
    gain_factor: float = 20.0
    tr_min: float = 0.02
    pwv_rms_k: float = 20.0
    load_span_s: float = 300.0
    elevation_deg: float = 3.0

    def __post_init__(self) -> None:
        if not (0 < self.tr_min < 1 and self.gain_factor > 1 and self.least_load_k > 0 and self.t_rec_k > 0):
            raise ConfigError(f"limits that turn down everything or nothing: {self}", fix="see the defaults")


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """How a scan is calibrated.

    Attributes
    ----------
    scale
        ``off``: the reference gives the scale, and a drift of the gain since the loads cancels. ``load``: the loads do.
    off_mode
        See `nightbeam.scans.compute.match_references`.
    sideband_mode
        ``line``: of the signal sideband; ``continuum``: of a source in both.
    elevation_correction
        ``model``: what the air is brighter or darker at the source than at the reference is taken away.
    common_pwv
        One amount of water for all pixels.
    bandwidth_factor
        Noise bandwidth of a channel in units of its width.
    sky
        Whether the water is found from the sky of the calibration, or from the scan's own reference. Where a
        calibration has no sky the reference serves.
    cal_mode
        ``past-then-future``: the nearest valid calibration before the scan, else the nearest after it. ``nearest``.
        ``linear``: between the one before and the one after; where one of them is missing, the other.
    max_cal_age_s
        Calibrations farther away in time are not used.
    force_calibration
        Pairs of a scan and the calibration it has to use, whatever their times.
    exclude_ghz
        Ranges of signal frequency that the water is not found from.
    pwv_offset
        Also fit an additive constant for each pixel.
    pwv_fallback
        What may serve, in this order, where the sky cannot be fitted; nothing, unless it is said here.
    pwv_mm
        The configured water.
    callen_welton
        Give receiver temperatures with the zero-point noise on the side of the source. ``T_A*`` does not change.
    hot_coupling, cold_coupling
        How much of each load the receiver sees; the rest has the temperature of the air.
    spikes
        Whether single samples that stand out are flagged.
    """

    scale: Scale = "off"
    off_mode: OffMode = "linear"
    sideband_mode: SidebandMode = "line"
    elevation_correction: ElevationCorrection = "none"
    common_pwv: bool = True
    bandwidth_factor: float = 1.0
    sky: SkyFrom = "cal"
    cal_mode: CalMode = "past-then-future"
    max_cal_age_s: float = 1800.0
    force_calibration: tuple[tuple[int, int], ...] = ()
    exclude_ghz: tuple[tuple[float, float], ...] = ()
    pwv_offset: bool = False
    pwv_fallback: tuple[PwvFallback, ...] = ()
    pwv_mm: float | None = None
    callen_welton: bool = False
    hot_coupling: float = 1.0
    cold_coupling: float = 1.0
    spikes: bool = True
    limits: ScanLimits = ScanLimits()

    def __post_init__(self) -> None:
        if self.pwv_mm is not None and not 0 < self.pwv_mm < MOST_PWV_MM:
            raise ConfigError(
                f"a configured water of {self.pwv_mm:g} mm, between 0 and {MOST_PWV_MM:g} is wanted",
                fix="correct scans.pwv_mm",
            )
        if "configured" in self.pwv_fallback and self.pwv_mm is None:
            raise ConfigError("the configured water may serve, and none is configured", fix="set scans.pwv_mm")
        if not (0.5 < self.hot_coupling <= 1 and 0.5 < self.cold_coupling <= 1):
            raise ConfigError(
                f"couplings to the loads of {self.hot_coupling:g} and {self.cold_coupling:g}, "
                "more than a half and at most 1 is wanted"
            )
        if self.bandwidth_factor <= 0 or self.max_cal_age_s <= 0:
            raise ConfigError("a noise bandwidth or an age of calibrations that is not above zero")


# -- what is stored -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScanInfo:
    """What a scan's attributes say.

    Attributes
    ----------
    obs_type
        ``calibration`` (loads and sky), ``otf`` (on the fly), ``tp`` (total power), or another way of observing.
    signal_sideband
        ``USB`` or ``LSB``.
    t_hot_k, t_cold_k
        Physical temperatures of the loads.
    adc_ceiling
        Counts at which the digitizer ends; None where nobody knows.
    spill_k
        Temperature of the ground that the telescope sees beside the sky.
    complete
        Whether whoever writes it has finished; None where the store does not say.
    radiometer_pwv_mm
        Water that a radiometer beside the telescope has measured.
    """

    scan: int
    obs_type: str
    source: str
    lo_hz: float
    signal_sideband: str
    tuning_id: str
    backend: str
    t_hot_k: float
    t_cold_k: float
    altitude_m: float
    pressure_hpa: float
    temperature_k: float
    humidity_pct: float = 20.0
    forward_eff: float = 0.95
    adc_ceiling: float | None = None
    spill_k: float | None = None
    complete: bool | None = None
    radiometer_pwv_mm: float | None = None


@dataclass(frozen=True, slots=True)
class RawScan:
    """A scan as it was observed.

    Attributes
    ----------
    counts : (dump, pixel, channel)
    phase : (dump,), `Phase`
    time_s : (dump,), ascending
        Middle of each dump, seconds of MJD (UTC).
    duration_s, elevation_deg, azimuth_deg : (dump,)
    lon_off_deg, lat_off_deg : (dump, pixel)
    row : (dump,)
        Number of the row of an on-the-fly map; -1 elsewhere.
    freq_hz, image_hz : (channel,)
    gain_signal : (pixel, 1) or (pixel, channel)
    main_beam_eff : (pixel,)
    flag : (dump, pixel), uint8
        What the instrument says; zeros where it says nothing.
    """

    info: ScanInfo
    counts: NDArray[np.floating]
    phase: NDArray[np.uint8]
    time_s: NDArray[np.float64]
    duration_s: NDArray[np.float64]
    elevation_deg: NDArray[np.float64]
    azimuth_deg: NDArray[np.float64]
    lon_off_deg: NDArray[np.float64]
    lat_off_deg: NDArray[np.float64]
    row: NDArray[np.int32]
    freq_hz: NDArray[np.float64]
    image_hz: NDArray[np.float64]
    gain_signal: NDArray[np.float32]
    main_beam_eff: NDArray[np.float32]
    flag: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a calibration must have in common with the scan that uses it.

    The local oscillator to 1 kHz, the ends of the band to a tenth of a channel.
    """

    lo_hz: float
    signal_sideband: str
    backend: str
    channels: int
    pixels: int
    first_hz: float = 0.0
    last_hz: float = 0.0

    def matches(self, other: Tuning) -> bool:
        """Say whether the two belong together."""
        same = (self.signal_sideband, self.backend, self.channels, self.pixels) == (
            other.signal_sideband, other.backend, other.channels, other.pixels,
        )  # fmt: skip
        near = 0.1 * abs(self.last_hz - self.first_hz) / max(1, self.channels - 1)
        ends = max(abs(self.first_hz - other.first_hz), abs(self.last_hz - other.last_hz))
        # The band moves with the oscillator.
        return same and abs(self.lo_hz - other.lo_hz) <= 1e3 and ends <= near + 1e3


# -- what stages hand on ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadGain:
    """What the two loads say of a receiver.

    Attributes
    ----------
    gamma : (pixel, channel), counts/K of double-sideband input
    t_rec : (pixel, channel), K, double sideband
    j_hot, j_cold : (pixel, channel), K
        Both sidebands of each load.
    flag : (pixel, channel), uint8
        `Flag`; a flagged channel is NaN in ``gamma`` and ``t_rec``.
    """

    gamma: NDArray[np.floating]
    t_rec: NDArray[np.floating]
    j_hot: NDArray[np.float64]
    j_cold: NDArray[np.float64]
    flag: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PwvFit:
    """The water that explains the sky; arrays have one number for each pixel.

    Attributes
    ----------
    pwv_mm, error_mm
        Zenith; the error is that of the noise alone.
    rms_k
        Of what the model leaves.
    offset_k
        Added to the model; zero unless it was asked for.
    iterations
        Of the slowest pixel.
    channels
        How many were used; bins of channels, where they were fitted together.
    at_bound
        Whether the best amount is the least or the most that was tried.
    common
        Whether one amount was fitted to all pixels.
    """

    pwv_mm: NDArray[np.float64]
    error_mm: NDArray[np.float64]
    rms_k: NDArray[np.float64]
    offset_k: NDArray[np.float64]
    iterations: int
    channels: NDArray[np.int64]
    at_bound: NDArray[np.bool_]
    common: bool


@dataclass(frozen=True, slots=True)
class References:
    """Which visits to the reference serve each dump on the source: of one pixel (dump,), or of all (pixel, dump).

    Attributes
    ----------
    before, after : indices of visits
        -1 for pixels that have no good reference.
    weight_after
        The reference is ``(1 - w) before + w after``.
    effective_s
        Integration time that has the noise of that mixture.
    """

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    weight_after: NDArray[np.float64]
    effective_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LoadCounts:
    """The mean counts of a calibration scan, of each of its phases.

    Attributes
    ----------
    counts : phase -> (pixel, channel), float64
        NaN where no sample is good.
    flag : phase -> (pixel, channel), uint8
        Why not.
    seconds : phase -> (pixel,)
        Integration time.
    airmass : phase -> number
        Mean, of the sky.
    time_s, span_s
        Middle of all dumps, and from the first to the last.
    """

    counts: Mapping[Phase, NDArray[np.float64]]
    flag: Mapping[Phase, NDArray[np.uint8]]
    seconds: Mapping[Phase, NDArray[np.float64]]
    airmass: Mapping[Phase, float]
    time_s: float
    span_s: float


@dataclass(frozen=True, slots=True)
class MeasuredSky:
    """The brightness of the blank sky.

    Attributes
    ----------
    j_sky, sigma : (pixel, channel), K
        Both sidebands, and its noise; NaN where it is not known.
    airmass
        Where it was observed.
    """

    j_sky: NDArray[np.float64]
    sigma: NDArray[np.float64]
    airmass: float


@dataclass(frozen=True, slots=True)
class CalibrationLoadFull:
    """A load calibration, ready for use.

    Attributes
    ----------
    scans
        Of which it is; two where it is interpolated between them.
    gain
        Of every pixel and channel.
    gain_signal : (pixel, 1) or (pixel, channel)
    sky
        None where it was not observed.
    zero : (pixel, channel), counts, or None
        Level of no input, where it was observed.
    time_s, span_s
        Middle, and how long it took from the first dump to the last; the gain has drifted meanwhile.
    gamma_per_s : (pixel, channel), or None
        How the gain changes with time, where two calibrations say so.
    """

    scans: tuple[int, ...]
    gain: LoadGain
    gain_signal: NDArray[np.float32]
    sky: MeasuredSky | None
    zero: NDArray[np.float64] | None
    time_s: float
    span_s: float
    gamma_per_s: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Atmosphere:
    """The air of a scan.

    Attributes
    ----------
    tau_s, tau_i : (channel,), nepers towards the zenith
    tr_s, tr_i : (dump, channel), float32
        What comes through to each dump on the source; one row where the airmass is the same throughout.
    pwv
        The fit; of each pixel, or the same for all. None where there was none.
    pwv_mm
        What the opacities are of: the median over the pixels.
    source
        ``fit``, ``radiometer`` or ``configured``.
    failure
        Why there was no fit.
    """

    tau_s: NDArray[np.float64]
    tau_i: NDArray[np.float64]
    tr_s: NDArray[np.float32]
    tr_i: NDArray[np.float32]
    pwv: PwvFit | None
    pwv_mm: float
    source: str
    failure: str = ""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Dumps on the source, and their references.

    Attributes
    ----------
    on : (dump,)
        Which of the scan's dumps are on the source.
    off_counts : (visit, pixel, channel), float32
        Mean of each visit to the reference, zero level removed; NaN where no sample is good.
    off_flag : (visit, pixel, channel), uint8
        Why not.
    off_seconds : (visit, pixel)
        Integration time; 0 where a visit is not used.
    off_airmass, off_time_s : (visit,)
    references
        Of each pixel and dump on the source.
    airmass : (dump,)
        Of the dumps on the source.
    zero : (pixel, channel), float32, or None
    """

    on: NDArray[np.intp]
    off_counts: NDArray[np.float32]
    off_flag: NDArray[np.uint8]
    off_seconds: NDArray[np.float64]
    off_airmass: NDArray[np.float64]
    off_time_s: NDArray[np.float64]
    references: References
    airmass: NDArray[np.float64]
    zero: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """A calibrated scan, or some of its pixels.

    Attributes
    ----------
    ta_star : (dump, pixel, channel), float32, K
        Dumps on the source only; NaN where it cannot be used. Those carry their flags in their lowest byte.
    weight : (dump, pixel), float32, 1/K^2
    t_sys : (pixel, channel), K
        At the mean airmass of the source.
    baseline_model : (dump, pixel, channel), float32, or None
        What was taken away for the difference in elevation.
    scatter : (pixel,)
        Measured noise, from channel to channel, over the expected one.
    """

    ta_star: NDArray[np.float32]
    weight: NDArray[np.float32]
    t_sys: NDArray[np.float64]
    baseline_model: NDArray[np.float32] | None
    scatter: NDArray[np.float64]

    @property
    def flag(self) -> NDArray[np.uint8]:
        """`Flag` of every sample: (dump, pixel, channel)."""
        return flags_of(self.ta_star)


def flags_of(ta_star: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the flags that samples carry: 0 where they are numbers."""
    bits = ta_star.view(np.uint32)
    return np.where(np.isnan(ta_star), bits & np.uint32(0xFF), np.uint32(0)).astype(np.uint8)


# -- what a run does ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """How a store of scans is worked through.

    Attributes
    ----------
    options
        How each scan is calibrated.
    scans
        Only these; None: all scans of a source.
    force
        Also what has been done already.
    atmosphere
        ``casa``: ATM, through CASA. ``closed-form``: a formula, for simulations only.
    cache_dir
        Where layers of air are kept; None: in the user's cache directory.
    memory_budget_bytes
        Scans larger than a third of it are worked on in blocks of pixels; None: 40 % of the machine's memory.
    failures
        Where failures are written; None: ``failures.json`` beside the results (``NAME.failures.json``).
    retries
        How often a scan that could not be read is tried again.
    retry_wait_s
        Before the first of these; each wait is twice the last.
    engine
        ``numba``, or ``numpy``, which gives the same more slowly.
    """

    options: CalibrationOptions = CalibrationOptions()
    scans: tuple[int, ...] | None = None
    force: bool = False
    atmosphere: Literal["casa", "closed-form"] = "casa"
    cache_dir: Path | None = None
    memory_budget_bytes: int | None = None
    failures: Path | None = None
    retries: int = 2
    retry_wait_s: float = 2.0
    engine: Literal["numba", "numpy"] = "numba"


@dataclass(frozen=True, slots=True)
class ScanResult:
    """A scan that has been calibrated.

    Attributes
    ----------
    path
        Of its group in the results.
    calibration_scans
        The load calibration it used; two between which was interpolated.
    pwv_mm, pwv_source
        The water, and where it is from: ``fit``, ``radiometer`` or ``configured``.
    timings
        Seconds of each stage.
    quality
        Numbers that say how good it is (see docs/reference/scans.md).
    warnings
        What somebody should look at.
    """

    scan: int
    path: Path
    calibration_scans: tuple[int, ...]
    pwv_mm: float
    pwv_source: str
    seconds: float
    timings: Mapping[str, float]
    quality: Mapping[str, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScanFailure:
    """A scan that could not be calibrated.

    Attributes
    ----------
    error
        Name of the class.
    kind
        ``calibration``: the data; ``read``, ``write``; ``internal``: a mistake in the program.
    stage
        ``load``, ``resolve``, ``atmosphere``, ``prepare``, ``calibrate`` or ``write``.
    message
        With a traceback where the kind is ``internal``.
    pixel
        Which one, where it is about one.
    calibration_scans
        Those that were tried.
    """

    scan: int
    error: str
    kind: Literal["calibration", "read", "write", "internal"]
    stage: str
    message: str
    pixel: int | None = None
    calibration_scans: tuple[int, ...] = ()
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RejectedCalibration:
    """A load calibration that cannot be used, as it is.

    Attributes
    ----------
    scan
        Its number.
    error
        Name of the class.
    stage
        ``load``: not even its times and its tuning can be read; ``resolve``: its counts cannot be read, or make no
        sense.
    files
        What changes when its files do; empty where they could not be looked at.
    """

    scan: int
    error: str
    stage: Literal["load", "resolve"]
    message: str
    files: str = ""


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """What became of the scans of a store.

    Attributes
    ----------
    skipped
        Numbers of the scans whose result was there already.
    incomplete
        Numbers of those that are still being written, as they say.
    stopped
        Whether somebody asked for an end before all was done.
    rejected
        Load calibrations that this run, or one before it, could not use, and whose files have not changed since.
    """

    successes: tuple[ScanResult, ...] = ()
    failures: tuple[ScanFailure, ...] = ()
    skipped: tuple[int, ...] = ()
    incomplete: tuple[int, ...] = ()
    stopped: bool = False
    rejected: tuple[RejectedCalibration, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: nothing failed; 2: some did; 1: nothing succeeded."""
        if not self.failures:
            return 0
        return 2 if self.successes or self.skipped else 1
