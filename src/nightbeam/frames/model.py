"""Detector frames and what is known of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import ConfigError

__all__ = ["FramePlan", "FrameSource", "FrameTruth", "Frames", "Ring"]

#: Share of a plane that disks of one size may fill before placing them at random becomes a puzzle (it ends at 0.547).
_CROWDED = 0.35


@dataclass(frozen=True, slots=True)
class Ring:
    """A diffuse ring, as water makes it: Gaussian in the distance from the beam.

    Attributes
    ----------
    radius, width
        Its middle and its standard deviation, as a fraction of the detector's largest distance from the beam.
    photons
        Expected in a pixel on its middle.
    """

    radius: float
    width: float
    photons: float


@dataclass(frozen=True, slots=True)
class FramePlan:
    """Diffraction frames to be simulated. Two plans that are equal make the same frames.

    Attributes
    ----------
    shape
        (C, H0, W0): panels, rows and columns of one.
    seed
        Of all that is drawn; an event's frame follows from it and the event's number alone.
    hit_rate
        Probability that an event has peaks.
    n_peaks
        Fewest and most peaks of a hit.
    spot_sigma_px
        Standard deviation of a peak's Gaussian.
    total_adu
        Weakest and strongest peak, by expected sum; uniform in the logarithm between.
    separation_px
        Least distance of two peaks of a panel.
    margin_px
        Least distance of a peak's centre from the centres of its panel's outermost pixels.
    background_photons, rings
        Expected in a pixel: everywhere, and of the water.
    adu_per_photon
        Gain.
    read_noise_adu
        Standard deviation, Gaussian.
    photon_noise
        Whether photons come as Poisson's law says; without it, as many as expected.
    photon_energy_ev, photon_energy_spread
        Mean, and standard deviation as a fraction of it.
    clen_mm
        Camera length encoder.
    rate_hz, start_s
        Of the events; the first is ``start_s`` seconds after 1970.

    Raises
    ------
    ConfigError
        If a value makes no sense, or so many peaks cannot be kept so far apart.
    """

    shape: tuple[int, int, int] = (4, 128, 128)
    seed: int = 0
    hit_rate: float = 0.5
    n_peaks: tuple[int, int] = (15, 30)
    spot_sigma_px: float = 1.2
    total_adu: tuple[float, float] = (600.0, 6000.0)
    separation_px: float = 12.0
    margin_px: float = 6.0
    background_photons: float = 0.5
    rings: tuple[Ring, ...] = (Ring(0.35, 0.12, 1.5), Ring(0.65, 0.15, 0.8))
    adu_per_photon: float = 4.0
    read_noise_adu: float = 2.5
    photon_noise: bool = True
    photon_energy_ev: float = 9500.0
    photon_energy_spread: float = 0.002
    clen_mm: float = 120.0
    rate_hz: float = 120.0
    start_s: int = 1_700_000_000

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or math.prod(self.shape) > 1 << 28:
            raise ConfigError(
                f"frames of shape {self.shape}", fix="give panels, rows and columns, 2**28 pixels at most"
            )
        if not 0.0 <= self.hit_rate <= 1.0:
            raise ConfigError(f"hit_rate is {self.hit_rate}", fix="give one from 0 to 1")
        if not 0 <= self.n_peaks[0] <= self.n_peaks[1]:
            raise ConfigError(f"n_peaks is {self.n_peaks}", fix="0 <= fewest <= most")
        if not 0.0 < self.total_adu[0] <= self.total_adu[1]:
            raise ConfigError(f"total_adu is {self.total_adu}", fix="0 < weakest <= strongest")
        self._check_positive("spot_sigma_px", "adu_per_photon", "photon_energy_ev", "rate_hz")
        self._check_not_negative(
            "seed",
            "separation_px",
            "margin_px",
            "background_photons",
            "read_noise_adu",
            "photon_energy_spread",
            "start_s",
        )
        self._check_room()

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="give one above 0")

    def _check_not_negative(self, *names: str) -> None:
        for name in names:
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="give 0 or more")

    def _check_room(self) -> None:
        panels, *sides = self.shape
        height, width = (side - 1 - 2 * self.margin_px for side in sides)
        if self.n_peaks[1] == 0 or self.hit_rate == 0.0:
            return
        # The disks that may not overlap stick out of the margin by half their size. One in each panel always fits.
        crowd = max(0, self.n_peaks[1] - panels)
        room = panels * (height + self.separation_px) * (width + self.separation_px)
        if min(height, width) < 0 or crowd * math.pi / 4 * self.separation_px**2 > _CROWDED * room:
            raise ConfigError(
                f"{self.n_peaks[1]} peaks {self.separation_px:g} px apart do not fit into {panels} panels of "
                f"{sides[0]} x {sides[1]} px with a margin of {self.margin_px:g} px",
                fix="ask for fewer peaks, a smaller separation_px or margin_px, or larger panels",
            )


@dataclass(frozen=True, slots=True, eq=False)
class FrameTruth:
    """What is true of a range of simulated events. Peaks are by event, then by panel, then by row and column.

    Attributes
    ----------
    event : (n,), int64
        Number of the event that a peak is in.
    panel : (n,), int64
    y, x : (n,), float64
        Centre in its panel, pixel indices: the centre of the first pixel is (0, 0).
    total_adu : (n,), float64
        Expected sum over the panel.
    first_event
        Number of the first event of the range.
    hit : (N,), bool
        Whether an event is one; a hit may have no peaks where the plan allows 0.
    timestamps : (N,), uint64
        LCLS event time: seconds in the upper 32 bits, nanoseconds in the lower.
    photon_energy_ev : (N,), float64
    clen_mm : (N,), float64
    """

    event: NDArray[np.int64]
    panel: NDArray[np.int64]
    y: NDArray[np.float64]
    x: NDArray[np.float64]
    total_adu: NDArray[np.float64]
    first_event: int
    hit: NDArray[np.bool_]
    timestamps: NDArray[np.uint64]
    photon_energy_ev: NDArray[np.float64]
    clen_mm: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.event)

    def peaks_of(self, event: int) -> Self:
        """Return the truth with the peaks of one event only."""
        keep = self.event == event
        peaks = {name: getattr(self, name)[keep] for name in ("event", "panel", "y", "x", "total_adu")}
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in peaks}
        return type(self)(**peaks, **rest)


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Consecutive events of a source.

    Attributes
    ----------
    images : (n, C, H0, W0), float32
    first_event
        Number of the first in its source, from 0.
    timestamps : (n,), uint64
        LCLS event times; 0: unknown.
    photon_energy_ev : (n,), float64, or None
        NaN: unknown.
    clen_mm : (n,), float64, or None
        Camera length encoder; NaN: unknown.
    """

    images: NDArray[np.float32]
    first_event: int
    timestamps: NDArray[np.uint64]
    photon_energy_ev: NDArray[np.float64] | None = None
    clen_mm: NDArray[np.float64] | None = None


class FrameSource(Protocol):
    """Where frames come from: a file, or a simulation."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Panels, rows and columns."""

    @property
    def n_events(self) -> int:
        """How many there are."""

    def read(self, first: int, n: int) -> Frames:
        """Return ``n`` events from number ``first`` on, fewer at the end."""
