"""A single-dish telescope whose sky, water and receivers are known: raw scans with their truth."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nightbeam.atmosphere import AtmosphereModel, ClosedFormAtmosphere, airmass_of, planck_j, transmission
from nightbeam.scans.compute import both_sidebands, sky_input
from nightbeam.scans.model import Phase, RawScan, ScanInfo

__all__ = ["Dish", "Line"]


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


@dataclass
class Dish:
    """A receiver array on a telescope, at one tuning.

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

    def __post_init__(self) -> None:
        self._dice = np.random.default_rng(self.seed)
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

    def calibration(
        self, number: int, *, at_s: float = 0.0, elevation_deg: float = 48.0, seconds: float = 20.0
    ) -> RawScan:
        """Observe the hot load, the cold load and the sky."""
        phases = [Phase.HOT, Phase.COLD, Phase.SKY]
        times = np.asarray(at_s + seconds * (0.5 + np.arange(3)), np.float64)
        return self._observe(number, "calibration", phases, times, np.full(3, seconds), np.full(3, elevation_deg))

    def otf(
        self,
        number: int,
        *,
        at_s: float = 90.0,
        rows: int = 3,
        dumps: int = 10,
        dump_s: float = 1.0,
        off_s: float = 4.0,
        elevation_deg: float = 48.0,
        off_elevation_deg: float | None = None,
        size_deg: float = 0.02,
    ) -> RawScan:
        """Observe a map row by row, with a visit to the reference before each row and one after the last."""
        off = elevation_deg if off_elevation_deg is None else off_elevation_deg
        phases, seconds, elevations, lon, lat, row = [], [], [], [], [], []
        for n in range(rows):
            phases += [Phase.OFF, *[Phase.ON] * dumps]
            seconds += [off_s, *[dump_s] * dumps]
            elevations += [off, *[elevation_deg] * dumps]
            lon += [0.0, *np.linspace(-size_deg, size_deg, dumps)]
            lat += [0.0, *[size_deg * (2 * n / max(1, rows - 1) - 1)] * dumps]
            row += [-1, *[n] * dumps]
        phases, seconds, elevations = [*phases, Phase.OFF], [*seconds, off_s], [*elevations, off]
        duration = np.array(seconds)
        times = at_s + np.cumsum(duration) - 0.5 * duration
        return self._observe(
            number, "otf", phases, times, duration, np.array(elevations),
            lon=np.array([*lon, 0.0]), lat=np.array([*lat, 0.0]), row=np.array([*row, -1]),
        )  # fmt: skip

    def tp(self, number: int, order: str = "OFF ON ON OFF", *, at_s: float = 90.0, seconds: float = 10.0) -> RawScan:
        """Observe positions in some order."""
        phases = [Phase[name] for name in order.split()]
        times = np.asarray(at_s + seconds * (0.5 + np.arange(len(phases))), np.float64)
        return self._observe(number, "tp", phases, times, np.full(len(phases), seconds), np.full(len(phases), 48.0))

    def input_k(self, phase: Phase, elevation_deg: float, source: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what comes into the receivers during a phase, in K: (pixel, channel)."""
        freq, image = self.freq_hz / 1e9, self.image_hz / 1e9
        if phase in (Phase.HOT, Phase.COLD):
            kelvin = self.t_hot_k if phase is Phase.HOT else self.t_cold_k
            return both_sidebands(self.g_s, planck_j(freq, kelvin), planck_j(image, kelvin))
        path = float(airmass_of(elevation_deg))
        blank = sky_input(
            self.air.sky(freq, self.pwv_mm, path),
            self.air.sky(image, self.pwv_mm, path),
            gain_signal=self.g_s,
            forward_eff=self.forward_eff,
            spill_signal=planck_j(freq, self.temperature_k),
            spill_image=planck_j(image, self.temperature_k),
        )
        if phase is not Phase.ON:
            return blank
        through = transmission(self.air.opacity(freq, self.pwv_mm), path)
        return blank + self.forward_eff * self.g_s * through * source

    def _observe(
        self,
        number: int,
        kind: str,
        phases: list[Phase],
        times: NDArray[np.float64],
        seconds: NDArray[np.float64],
        elevations: NDArray[np.float64],
        *,
        lon: NDArray[np.float64] | None = None,
        lat: NDArray[np.float64] | None = None,
        row: NDArray[np.int64] | None = None,
    ) -> RawScan:
        dumps = len(phases)
        nowhere = np.zeros(dumps)
        lon, lat = nowhere if lon is None else lon, nowhere if lat is None else lat
        source = sum((line.spectrum(self.freq_hz, lon, lat) for line in self.lines), np.zeros((dumps, self.channels)))
        counts = np.empty((dumps, self.pixels, self.channels), np.float32)
        for n, phase in enumerate(phases):
            gain = self.gammas * (1 + self.gain_drift * times[n] / 3600.0)
            mean = gain * (self.t_recs + self.input_k(phase, float(elevations[n]), source[n]))
            sigma = 1 / np.sqrt(self.width_hz * seconds[n]) if self.noise else 0.0
            counts[n] = mean * (1 + sigma * self._dice.standard_normal(mean.shape))
        return RawScan(
            info=self._info(number, kind),
            counts=counts,
            phase=np.array(phases, np.uint8),
            time_s=self.begin_s + times,
            duration_s=seconds.astype(float),
            elevation_deg=elevations,
            azimuth_deg=np.full(dumps, 120.0),
            lon_off_deg=np.repeat(lon[:, None], self.pixels, axis=1),
            lat_off_deg=np.repeat(lat[:, None], self.pixels, axis=1),
            row=np.full(dumps, -1, np.int32) if row is None else row.astype(np.int32),
            freq_hz=self.freq_hz,
            image_hz=self.image_hz,
            gain_signal=self.g_s,
            main_beam_eff=np.full(self.pixels, self.main_beam_eff, np.float32),
            flag=np.zeros((dumps, self.pixels), np.uint8),
        )

    def _info(self, number: int, kind: str) -> ScanInfo:
        return ScanInfo(
            scan=number, obs_type=kind, source="simulated", lo_hz=self.lo_hz, signal_sideband="USB", tuning_id="sim",
            backend="sim", t_hot_k=self.t_hot_k, t_cold_k=self.t_cold_k, altitude_m=5612.0, pressure_hpa=520.0,
            temperature_k=self.temperature_k, forward_eff=self.forward_eff, adc_ceiling=self.adc_ceiling,
        )  # fmt: skip
