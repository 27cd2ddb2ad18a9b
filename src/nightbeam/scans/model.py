"""Nouns of single-dish calibration: phases, flags, options, what stages hand on, and what can be wrong with a scan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import ConfigError, RejectedError

__all__ = [
    "Atmosphere",
    "AtmosphereFitError",
    "CalibrationError",
    "CalibrationLoadFull",
    "CalibrationOptions",
    "CalibrationResult",
    "ElevationCorrection",
    "ElevationError",
    "Flag",
    "FrequencyAxisError",
    "GainError",
    "LoadGain",
    "LoadTemperatureError",
    "MissingOffError",
    "MissingOnError",
    "NoCalibrationError",
    "OffMode",
    "OpaqueError",
    "Phase",
    "PreparedData",
    "PwvFit",
    "RawScan",
    "ReceiverTemperatureError",
    "References",
    "SaturationError",
    "Scale",
    "ScanInfo",
    "ScanLimits",
    "ScanSchemaError",
    "SidebandMode",
    "StoreReadError",
    "UnsupportedModeError",
]

OffMode = Literal["linear", "nearest", "mean"]
Scale = Literal["off", "load"]
SidebandMode = Literal["line", "continuum"]
ElevationCorrection = Literal["none", "model"]


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
    """A scan cannot be calibrated; others can."""


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
    """

    t_hot_k: tuple[float, float] = (200.0, 400.0)
    t_cold_k: tuple[float, float] = (2.0, 250.0)
    least_load_k: float = 20.0
    t_rec_k: float = 20_000.0
    gain_factor: float = 20.0
    tr_min: float = 0.02

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
    """

    scale: Scale = "off"
    off_mode: OffMode = "linear"
    sideband_mode: SidebandMode = "line"
    elevation_correction: ElevationCorrection = "none"
    common_pwv: bool = True
    bandwidth_factor: float = 1.0
    limits: ScanLimits = ScanLimits()


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
        Whether whoever writes it has finished.
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
    complete: bool = True


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
        How many were used.
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
    """Which visits to the reference serve each dump on the source.

    Attributes
    ----------
    before, after : (dump,), indices of visits
    weight_after : (dump,)
        The reference is ``(1 - w) before + w after``.
    effective_s : (dump,)
        Integration time that has the noise of that mixture.
    """

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    weight_after: NDArray[np.float64]
    effective_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CalibrationLoadFull:
    """A load calibration, ready for use.

    Attributes
    ----------
    scan
        Of which it is.
    gain
        Of every pixel and channel.
    j_sky, sky_sigma : (pixel, channel), K, or None
        Brightness of the blank sky and its noise; None where the sky was not observed.
    sky_airmass
        Where it was observed.
    time_s, span_s
        Middle, and how long it took from the first load to the last; the gain has drifted meanwhile.
    """

    scan: int
    gain: LoadGain
    j_sky: NDArray[np.float64] | None
    sky_sigma: NDArray[np.float64] | None
    sky_airmass: float | None
    time_s: float
    span_s: float


@dataclass(frozen=True, slots=True)
class Atmosphere:
    """The air of a scan.

    Attributes
    ----------
    tau_s, tau_i : (channel,), nepers towards the zenith
    tr_s, tr_i : (dump, channel)
        What comes through to each dump on the source.
    pwv
        The fit; of each pixel, or the same for all.
    pwv_mm
        What the opacities are of: the median over the pixels.
    source
        ``fit``, ``radiometer`` or ``configured``.
    """

    tau_s: NDArray[np.float64]
    tau_i: NDArray[np.float64]
    tr_s: NDArray[np.float64]
    tr_i: NDArray[np.float64]
    pwv: PwvFit | None
    pwv_mm: float
    source: str


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Dumps on the source, and the references that serve them.

    Attributes
    ----------
    on : (dump,), indices into the scan
    off_counts : (visit, pixel, channel)
    off_seconds : (visit, pixel)
    off_airmass : (visit,)
    references
        One for each pixel: a visit that is bad for one is left out for that one.
    airmass : (dump,)
    """

    on: NDArray[np.intp]
    off_counts: NDArray[np.float64]
    off_seconds: NDArray[np.float64]
    off_airmass: NDArray[np.float64]
    references: tuple[References, ...]
    airmass: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """A calibrated scan.

    Attributes
    ----------
    ta_star : (dump, pixel, channel), float32, K
        Dumps on the source only; NaN where it cannot be used.
    flag : (dump, pixel, channel), uint8
    weight : (dump, pixel), float32, 1/K^2
    t_sys : (pixel, channel), K
        At the mean airmass of the source.
    baseline_model : (dump, pixel, channel), float32, or None
        What was taken away for the difference in elevation.
    """

    ta_star: NDArray[np.float32]
    flag: NDArray[np.uint8]
    weight: NDArray[np.float32]
    t_sys: NDArray[np.float64]
    baseline_model: NDArray[np.float32] | None
