"""A single-dish telescope whose sky, water and receivers are known: raw scans with their truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.atmosphere import AtmosphereModel, ClosedFormAtmosphere, airmass_of, planck_j, transmission
from nightbeam.scans.compute import both_sidebands, sky_input
from nightbeam.scans.model import Phase, RawScan, ScanInfo

__all__ = ["Dish", "Line", "Pointing", "point_calibration", "point_otf", "point_tp"]


@dataclass(frozen=True, slots=True)
class Line:
    """A Gaussian line in the signal sideband, of a source with a Gaussian outline.

    Attributes
    ----------
    peak_k
        ``T_A*`` at the centre of the source.
    freq_hz, fwhm_hz
    size_deg
        Full width of the source at half its peak; None: it fills the map.
    """

    peak_k: float
    freq_hz: float
    fwhm_hz: float
    size_deg: float | None = None

    def spectrum(
        self, freq_hz: NDArray[np.float64], lon_deg: NDArray[np.float64], lat_deg: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return ``T_A*`` in K: (position, channel)."""
        line = self.peak_k * np.exp(-4 * np.log(2) * ((freq_hz - self.freq_hz) / self.fwhm_hz) ** 2)
        if self.size_deg is None:
            return np.broadcast_to(line, (lon_deg.size, freq_hz.size))
        outline = np.exp(-4 * np.log(2) * (lon_deg**2 + lat_deg**2) / self.size_deg**2)
        return np.asarray(outline[:, None] * line)


@dataclass(frozen=True, slots=True)
class Pointing:
    """What a telescope looks at during a scan, dump by dump.

    Attributes
    ----------
    phase : (dump,), `Phase`
    time_s, duration_s : (dump,)
        Middle, counted from the night's begin, and length.
    elevation_deg : (dump,)
    lon_deg, lat_deg : (dump,)
        From the source's centre.
    row : (dump,)
        Of a map; -1 elsewhere.
    """

    phase: NDArray[np.uint8]
    time_s: NDArray[np.float64]
    duration_s: NDArray[np.float64]
    elevation_deg: NDArray[np.float64]
    lon_deg: NDArray[np.float64]
    lat_deg: NDArray[np.float64]
    row: NDArray[np.int32]


def point_calibration(*, at_s: float = 0.0, elevation_deg: float = 48.0, seconds: float = 20.0) -> Pointing:
    """Look at the hot load, the cold load and the sky."""
    return _point_still([Phase.HOT, Phase.COLD, Phase.SKY], at_s, elevation_deg, seconds)


def point_tp(
    order: str = "OFF ON ON OFF", *, at_s: float = 90.0, elevation_deg: float = 48.0, seconds: float = 10.0
) -> Pointing:
    """Look at positions in some order."""
    return _point_still([Phase[name] for name in order.split()], at_s, elevation_deg, seconds)


def _point_still(phases: list[Phase], at_s: float, elevation_deg: float, seconds: float) -> Pointing:
    dumps = len(phases)
    times = np.asarray(at_s + seconds * (0.5 + np.arange(dumps)), np.float64)
    return Pointing(
        np.array(phases, np.uint8), times, np.full(dumps, float(seconds)), np.full(dumps, float(elevation_deg)),
        np.zeros(dumps), np.zeros(dumps), np.full(dumps, -1, np.int32),
    )  # fmt: skip


def point_otf(
    *,
    at_s: float = 90.0,
    rows: int = 3,
    dumps: int = 10,
    dump_s: float = 1.0,
    off_s: float = 4.0,
    elevation_deg: float = 48.0,
    off_elevation_deg: float | None = None,
    size_deg: float = 0.02,
) -> Pointing:
    """Map row by row, with a visit to the reference before each row and one after the last."""
    off = elevation_deg if off_elevation_deg is None else off_elevation_deg
    phases, seconds, elevations, lon, lat, row = [], [], [], [], [], []
    for n in range(rows):
        phases += [Phase.OFF, *[Phase.ON] * dumps]
        seconds += [off_s, *[dump_s] * dumps]
        elevations += [off, *[elevation_deg] * dumps]
        lon += [0.0, *np.linspace(-size_deg, size_deg, dumps)]
        lat += [0.0, *[size_deg * (2 * n / max(1, rows - 1) - 1)] * dumps]
        row += [-1, *[n] * dumps]
    duration = np.array([*seconds, off_s], float)
    return Pointing(
        np.array([*phases, Phase.OFF], np.uint8), at_s + np.cumsum(duration) - 0.5 * duration, duration,
        np.array([*elevations, off], float), np.array([*lon, 0.0]), np.array([*lat, 0.0]),
        np.array([*row, -1], np.int32),
    )  # fmt: skip


@dataclass
class Dish:
    """A receiver array on a telescope, at one tuning.

    A scan's noise follows from the seed and the scan's number alone, whatever else is observed.

    Attributes
    ----------
    gain_drift
        Fraction by which the gain grows in an hour.
    noise
        Whether there is any.
    gain_signal
        Of each pixel; those in the middle of 0.5 where one number is given.
    """

    pixels: int = 4
    channels: int = 256
    width_hz: float = 1e6
    lo_hz: float = 803.3e9
    if_hz: float = 6e9
    t_rec_k: float = 180.0
    gamma: float = 2e4
    gain_signal: float | tuple[float, ...] = 0.5
    forward_eff: float = 0.95
    main_beam_eff: float = 0.8
    pwv_mm: float = 0.62
    gain_drift: float = 0.0
    noise: bool = True
    seed: int = 1
    air: AtmosphereModel = field(default_factory=ClosedFormAtmosphere)
    lines: tuple[Line, ...] = ()
    temperature_k: float = 265.0
    t_hot_k: float = 293.0
    t_cold_k: float = 78.0
    adc_ceiling: float | None = 1e8
    begin_s: float = 61_000 * 86_400.0
    tuning_id: str = "sim"
    altitude_m: float = 5612.0
    pressure_hpa: float = 520.0

    def __post_init__(self) -> None:
        offset = self.if_hz + self.width_hz * (np.arange(self.channels) - 0.5 * (self.channels - 1))
        self.freq_hz: NDArray[np.float64] = np.asarray(self.lo_hz + offset, np.float64)
        self.image_hz: NDArray[np.float64] = np.asarray(self.lo_hz - offset, np.float64)
        gains = np.broadcast_to(np.asarray(self.gain_signal, float), (self.pixels,))
        self.g_s = gains[:, None].astype(np.float32)
        ripple = 1 + 0.1 * np.sin(np.arange(self.channels) / 37.0 + np.arange(self.pixels)[:, None])
        self.gammas = self.gamma * ripple
        self.t_recs = self.t_rec_k * (
            1 + 0.05 * np.cos(np.arange(self.channels) / 53.0 + np.arange(self.pixels)[:, None])
        )

    def calibration(self, number: int, **where: float) -> RawScan:
        """Observe the loads and the sky; keywords are those of `point_calibration`."""
        return self.observe(number, "calibration", point_calibration(**where))

    def otf(self, number: int, **where: Any) -> RawScan:
        """Observe a map; keywords are those of `point_otf`."""
        return self.observe(number, "otf", point_otf(**where))

    def tp(self, number: int, order: str = "OFF ON ON OFF", **where: float) -> RawScan:
        """Observe positions in some order; keywords are those of `point_tp`."""
        return self.observe(number, "tp", point_tp(order, **where))

    def input_k(self, phase: Phase, elevation_deg: float) -> NDArray[np.float64]:
        """Return what comes into the receivers from a load or a blank sky, in K: (pixel, channel)."""
        freq, image = self.freq_hz / 1e9, self.image_hz / 1e9
        if phase in (Phase.HOT, Phase.COLD):
            kelvin = self.t_hot_k if phase is Phase.HOT else self.t_cold_k
            return both_sidebands(self.g_s, planck_j(freq, kelvin), planck_j(image, kelvin))
        path = float(airmass_of(elevation_deg))
        return sky_input(
            self.air.sky(freq, self.pwv_mm, path),
            self.air.sky(image, self.pwv_mm, path),
            gain_signal=self.g_s,
            forward_eff=self.forward_eff,
            spill_signal=planck_j(freq, self.temperature_k),
            spill_image=planck_j(image, self.temperature_k),
        )

    def through(self, elevation_deg: float) -> NDArray[np.float64]:
        """Return the part of a source's signal sideband that comes into the receivers: (pixel, channel)."""
        path = float(airmass_of(elevation_deg))
        return self.forward_eff * self.g_s * transmission(self.air.opacity(self.freq_hz / 1e9, self.pwv_mm), path)

    def source(self, pointing: Pointing) -> NDArray[np.float64]:
        """Return ``T_A*`` of all lines in K: (dump, channel)."""
        lines = (line.spectrum(self.freq_hz, pointing.lon_deg, pointing.lat_deg) for line in self.lines)
        return np.asarray(sum(lines, np.zeros((pointing.lon_deg.size, self.channels))))

    def observe(self, number: int, kind: str, pointing: Pointing) -> RawScan:
        """Observe what is pointed at, as scan ``number`` of some kind."""
        dumps = pointing.phase.size
        return RawScan(
            info=self._info(number, kind),
            counts=self._counts(number, pointing),
            phase=pointing.phase,
            time_s=self.begin_s + pointing.time_s,
            duration_s=pointing.duration_s,
            elevation_deg=pointing.elevation_deg,
            azimuth_deg=np.full(dumps, 120.0),
            lon_off_deg=np.repeat(pointing.lon_deg[:, None], self.pixels, axis=1),
            lat_off_deg=np.repeat(pointing.lat_deg[:, None], self.pixels, axis=1),
            row=pointing.row,
            freq_hz=self.freq_hz,
            image_hz=self.image_hz,
            gain_signal=self.g_s,
            main_beam_eff=np.full(self.pixels, self.main_beam_eff, np.float32),
            flag=np.zeros((dumps, self.pixels), np.uint8),
        )

    def _counts(self, number: int, pointing: Pointing) -> NDArray[np.float32]:
        """Return (dump, pixel, channel)."""
        dice, source = np.random.default_rng((self.seed, number)), self.source(pointing)
        # A dump differs from the one before by its source, its gain and its noise; the air is asked once an elevation.
        blank, through = cache(self.input_k), cache(self.through)
        counts = np.empty((pointing.phase.size, self.pixels, self.channels), np.float32)
        for n, phase in enumerate(Phase(one) for one in pointing.phase):
            elevation = float(pointing.elevation_deg[n])
            kelvin = self.t_recs + blank(phase if phase in (Phase.HOT, Phase.COLD) else Phase.SKY, elevation)
            if phase is Phase.ON:
                kelvin = kelvin + through(elevation) * source[n]
            mean = self.gammas * (1 + self.gain_drift * pointing.time_s[n] / 3600.0) * kelvin
            if self.noise:
                sigma = 1 / np.sqrt(self.width_hz * pointing.duration_s[n])
                mean *= 1 + sigma * dice.standard_normal(mean.shape, dtype=np.float32)
            counts[n] = mean
        return counts

    def _info(self, number: int, kind: str) -> ScanInfo:
        return ScanInfo(
            scan=number, obs_type=kind, source="simulated", lo_hz=self.lo_hz, signal_sideband="USB",
            tuning_id=self.tuning_id, backend="sim", t_hot_k=self.t_hot_k, t_cold_k=self.t_cold_k,
            altitude_m=self.altitude_m, pressure_hpa=self.pressure_hpa, temperature_k=self.temperature_k,
            forward_eff=self.forward_eff, adc_ceiling=self.adc_ceiling,
        )  # fmt: skip
