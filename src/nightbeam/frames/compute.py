"""Simulated diffraction frames whose peaks are known, and slabs cut into panels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from nightbeam.core.errors import ConfigError, InputError
from nightbeam.frames.model import FramePlan, Frames, FrameTruth

__all__ = [
    "SimulatedFrames",
    "cut_slab",
    "expected_background",
    "lcls_time",
    "panel_radii",
    "simulate_frames",
    "stacked_radii",
    "tile_slab",
    "true_peaks",
]

#: What is drawn for an event comes from two streams: what is true of it, and its noise.
_TRUTH, _NOISE = 0, 1
_PATCH_SIGMAS = 5.0
_TRIES_PER_PEAK = 2000


# -- truth --------------------------------------------------------------------------------------------------------


def true_peaks(plan: FramePlan, first: int, n: int) -> FrameTruth:
    """Return what is true of ``n`` events from number ``first`` on, without making their frames.

    Raises
    ------
    ConfigError
        If the peaks of an event found no place.
    InputError
        If the range is none.
    """
    if first < 0 or n < 0:
        raise InputError(f"{n} events from number {first} on", fix="give numbers from 0 on")
    events = [_draw_event(plan, k) for k in range(first, first + n)]
    peaks = np.concatenate([np.empty((0, 4)), *(e.peaks for e in events)])
    number = np.repeat(np.arange(first, first + n, dtype=np.int64), [len(e.peaks) for e in events])
    return FrameTruth(
        event=number,
        panel=peaks[:, 0].astype(np.int64),
        y=peaks[:, 1].copy(),
        x=peaks[:, 2].copy(),
        total_adu=peaks[:, 3].copy(),
        first_event=first,
        hit=np.array([e.hit for e in events], bool),
        timestamps=lcls_time(plan.start_s * 10**9 + _nanoseconds(plan, first, n)),
        photon_energy_ev=np.array([e.photon_energy_ev for e in events], float),
        clen_mm=np.full(n, plan.clen_mm),
    )


class _Drawn(NamedTuple):
    hit: bool
    peaks: NDArray[np.float64]
    photon_energy_ev: float


def _draw_event(plan: FramePlan, event: int) -> _Drawn:
    rng = np.random.default_rng((plan.seed, event, _TRUTH))
    energy = plan.photon_energy_ev * (1.0 + plan.photon_energy_spread * rng.standard_normal())
    hit = bool(rng.random() < plan.hit_rate)
    count = int(rng.integers(plan.n_peaks[0], plan.n_peaks[1] + 1)) if hit else 0
    return _Drawn(hit, _draw_peaks(plan, rng, count), max(energy, 0.0))


def _draw_peaks(plan: FramePlan, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Return (panel, y, x, total) of peaks that keep their distance, sorted."""
    place = np.empty((count, 3))
    for n in range(count):
        place[n] = _draw_place(plan, rng, place[:n])
    total = np.exp(rng.uniform(math.log(plan.total_adu[0]), math.log(plan.total_adu[1]), count))
    order = np.lexsort((place[:, 2], place[:, 1], place[:, 0]))
    peaks: NDArray[np.float64] = np.column_stack([place, total])[order]
    return peaks


def _draw_place(plan: FramePlan, rng: np.random.Generator, taken: NDArray[np.float64]) -> NDArray[np.float64]:
    panels, height, width = plan.shape
    least, margin = plan.separation_px**2, plan.margin_px
    for _ in range(_TRIES_PER_PEAK):
        place = np.array([rng.integers(panels), *rng.uniform(margin, (height - 1 - margin, width - 1 - margin))])
        near = taken[taken[:, 0] == place[0], 1:]
        if not len(near) or ((near - place[1:]) ** 2).sum(1).min() >= least:
            return place
    raise ConfigError(
        f"no place found for peak {len(taken) + 1} of an event",
        fix="ask for fewer peaks, a smaller separation_px or margin_px, or larger panels",
    )


def _nanoseconds(plan: FramePlan, first: int, n: int) -> NDArray[np.int64]:
    since: NDArray[np.int64] = np.rint(np.arange(first, first + n) * (1e9 / plan.rate_hz)).astype(np.int64)
    return since


def lcls_time(nanoseconds: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return LCLS event times: seconds in the upper 32 bits, nanoseconds in the lower.

    Parameters
    ----------
    nanoseconds : (n,), int64
        Since 1970.
    """
    seconds, rest = np.divmod(nanoseconds, 10**9)
    return (seconds.astype(np.uint64) << np.uint64(32)) | rest.astype(np.uint64)


# -- pixels -------------------------------------------------------------------------------------------------------


def simulate_frames(
    plan: FramePlan, first: int, n: int, *, background: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.float32], FrameTruth]:
    """Return ``n`` frames from event ``first`` on, and what is true of them.

    A frame follows from the plan and the event's number: any range can be made again, in any order, by any process.

    Parameters
    ----------
    plan
        What is to be simulated.
    first, n
        Which events.
    background : (C, H0, W0), photons, optional
        Expected in a pixel; by default that of panels laid side by side around the beam.

    Returns
    -------
    frames : (n, C, H0, W0), float32
        ADU.
    truth

    Raises
    ------
    ConfigError
        If the peaks of an event found no place.
    InputError
        If the range is none, or the background is of another shape.

    Notes
    -----
    A peak is a Gaussian integrated over each pixel, out to 5 standard deviations, cut at the edge of its panel.
    """
    truth = true_peaks(plan, first, n)
    if background is None:
        background = _default_background(plan)
    elif background.shape != plan.shape:
        raise InputError(f"background is {background.shape}, frames are {plan.shape}", fix="give one value a pixel")
    frames = np.empty((n, *plan.shape), np.float32)
    ends = np.searchsorted(truth.event, np.arange(first, first + n + 1))
    for k in range(n):
        rng = np.random.default_rng((plan.seed, first + k, _NOISE))
        _fill_background(frames[k], plan, background, rng)
        for p in range(ends[k], ends[k + 1]):
            _add_spot(frames[k, truth.panel[p]], plan, truth.y[p], truth.x[p], truth.total_adu[p], rng)
    return frames, truth


def _fill_background(
    frame: NDArray[np.float32], plan: FramePlan, photons: NDArray[np.floating], rng: np.random.Generator
) -> None:
    drawn = rng.poisson(photons) if plan.photon_noise else photons
    np.multiply(drawn, plan.adu_per_photon, out=frame, casting="unsafe")
    if plan.read_noise_adu > 0:
        noise = rng.standard_normal(frame.shape, np.float32)
        noise *= np.float32(plan.read_noise_adu)
        frame += noise


def _add_spot(
    panel: NDArray[np.float32], plan: FramePlan, y: float, x: float, total: float, rng: np.random.Generator
) -> None:
    (y0, along_y), (x0, along_x) = (
        _profile(centre, plan.spot_sigma_px, side) for centre, side in zip((y, x), panel.shape, strict=True)
    )
    photons = np.outer(along_y, along_x) * (total / plan.adu_per_photon)
    # Poisson's law adds up: the photons of a peak are drawn apart from those of the background.
    drawn = rng.poisson(photons) if plan.photon_noise else photons
    panel[y0 : y0 + len(along_y), x0 : x0 + len(along_x)] += (drawn * plan.adu_per_photon).astype(np.float32)


def _profile(centre: float, sigma: float, side: int) -> tuple[int, NDArray[np.float64]]:
    """Return the first pixel of a Gaussian along one axis, and the share of each pixel from there on."""
    reach = _PATCH_SIGMAS * sigma
    first, last = max(0, math.floor(centre - reach)), min(side - 1, math.ceil(centre + reach))
    edges = np.arange(first, last + 2) - 0.5
    return first, np.diff(0.5 * erf((edges - centre) / (sigma * math.sqrt(2.0))))


@lru_cache(maxsize=4)
def _default_background(plan: FramePlan) -> NDArray[np.float64]:
    photons = expected_background(plan, stacked_radii(plan.shape))
    photons.flags.writeable = False
    return photons


def expected_background(plan: FramePlan, radius_px: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the photons that are expected in each pixel: those that are everywhere, and the rings.

    Parameters
    ----------
    plan
        With the rings.
    radius_px : (C, H0, W0)
        Distance of the pixels' centres from the beam.
    """
    share = radius_px / max(float(radius_px.max()), 1e-9)
    photons = np.full(radius_px.shape, plan.background_photons, np.float64)
    for ring in plan.rings:
        photons += ring.photons * np.exp(-0.5 * ((share - ring.radius) / ring.width) ** 2)
    return photons


def stacked_radii(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return each pixel's distance from the beam, for panels side by side in a near square with the beam amid.

    Returns
    -------
    (C, H0, W0), float64
        Pixels.
    """
    panels, height, width = shape
    columns = math.ceil(math.sqrt(panels))
    rows = math.ceil(panels / columns)
    number = np.arange(panels)
    top = (number // columns) * height - rows * height / 2 + 0.5
    left = (number % columns) * width - columns * width / 2 + 0.5
    y = top[:, None, None] + np.arange(height)[:, None]
    x = left[:, None, None] + np.arange(width)
    return np.hypot(y, x)


# -- slabs --------------------------------------------------------------------------------------------------------


def tile_slab(slab: tuple[int, int], panel_shape: tuple[int, int]) -> NDArray[np.intp]:
    """Return the origins of all tiles of a slab, column by column: rows (ss0, fs0).

    Parameters
    ----------
    slab
        (SS, FS).
    panel_shape
        (H0, W0) of a tile.

    Raises
    ------
    InputError
        If they do not fill it.
    """
    (ss, fs), (height, width) = slab, panel_shape
    if min(height, width) < 1 or ss % height or fs % width:
        raise InputError(
            f"a slab of {ss} x {fs} px cannot be cut into panels of {height} x {width}",
            fix="correct the panel shape, or give a geometry file",
        )
    return np.array([(y, x) for x in range(0, fs, width) for y in range(0, ss, height)], np.intp)


def cut_slab(
    slabs: NDArray[np.generic], origins: NDArray[np.integer], panel_shape: tuple[int, int]
) -> NDArray[np.generic]:
    """Cut slabs into panels.

    Parameters
    ----------
    slabs : (n, SS, FS)
    origins : (C, 2)
        Row and column of each panel's first pixel.
    panel_shape
        (H0, W0).

    Returns
    -------
    (n, C, H0, W0)
        A copy, or a view where the panels lie one below the other.

    Raises
    ------
    InputError
        If a panel reaches out of the slab.
    """
    height, width = panel_shape
    _check_origins(slabs.shape[1:], origins, panel_shape)
    if slabs.shape[2] == width and np.array_equal(origins[:, 0], np.arange(len(origins)) * height):
        whole = slabs[:, : len(origins) * height]
        return whole.reshape(len(slabs), len(origins), height, width)
    return np.stack([slabs[:, y : y + height, x : x + width] for y, x in origins], axis=1)


def _check_origins(slab: tuple[int, ...], origins: NDArray[np.integer], panel_shape: tuple[int, int]) -> None:
    if origins.ndim != 2 or origins.shape[1] != 2 or not len(origins):
        raise InputError(f"origins of panels are of shape {origins.shape}", fix="give a row and a column a panel")
    ends = origins + panel_shape
    if (origins < 0).any() or (ends > slab).any():
        bad = int(np.flatnonzero(((origins < 0) | (ends > slab)).any(1))[0])
        raise InputError(
            f"panel {bad} of {panel_shape[0]} x {panel_shape[1]} px at {tuple(map(int, origins[bad]))} reaches out of "
            f"the slab of {slab[0]} x {slab[1]} px",
            fix="correct the panel shape or its geometry file",
        )


def panel_radii(
    radius_px: NDArray[np.floating], origins: NDArray[np.integer], panel_shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the distances from the beam by panel (C, H0, W0), from those of the slab (SS, FS).

    What lies between panels has no distance there (NaN) and is taken to be on the beam.
    """
    return np.nan_to_num(np.asarray(cut_slab(radius_px[None], origins, panel_shape)[0], np.float64))


@dataclass(frozen=True)
class SimulatedFrames:
    """A source of simulated frames.

    Attributes
    ----------
    plan
        What is simulated.
    n_events
        How many there are.
    background : (C, H0, W0), photons, or None
        See `simulate_frames`.
    """

    plan: FramePlan
    n_events: int
    background: NDArray[np.floating] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Panels, rows and columns."""
        return self.plan.shape

    def read(self, first: int, n: int) -> Frames:
        """Return ``n`` events from number ``first`` on, fewer at the end."""
        count = max(0, min(n, self.n_events - first))
        images, truth = simulate_frames(self.plan, first, count, background=self.background)
        return Frames(images, first, truth.timestamps, truth.photon_energy_ev, truth.clen_mm)
