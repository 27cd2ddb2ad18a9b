"""Radiation of black bodies and of air: pure functions, and two models that need no other program.

All brightness is the Rayleigh-Jeans equivalent ``J`` of Planck's law, in kelvin: at 809 GHz a load of 293 K has
274.0 K. Opacities are zenith values in nepers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nightbeam.atmosphere.model import Layers
from nightbeam.core.errors import InputError

__all__ = [
    "BACKGROUND_K",
    "RJ_K_PER_GHZ",
    "BandedAtmosphere",
    "ClosedFormAtmosphere",
    "LayeredAtmosphere",
    "airmass_of",
    "planck_j",
    "transmission",
]

#: h/k, from the exact SI values of both (2019).
RJ_K_PER_GHZ = 0.04799243073366221
#: Of the cosmic background (Fixsen 2009 has 2.72548).
BACKGROUND_K = 2.725
#: Below this a plane-parallel atmosphere is no longer one.
LOWEST_ELEVATION_DEG = 5.0


def planck_j(freq_ghz: ArrayLike, temperature_k: ArrayLike) -> NDArray[np.float64]:
    """Return the Rayleigh-Jeans equivalent of a black body: ``(h nu / k) / (exp(h nu / k T) - 1)``.

    Parameters
    ----------
    freq_ghz, temperature_k
        Any shapes that go together; the temperature is above zero.

    Returns
    -------
    K, of their common shape

    Examples
    --------
    >>> planck_j(809.3, [78.0, 293.0]).round(4).tolist()
    [60.185, 274.0088]
    """
    quantum = RJ_K_PER_GHZ * np.asarray(freq_ghz, float)
    with np.errstate(over="ignore"):  # far in Wien's tail there is nothing
        return np.asarray(quantum / np.expm1(quantum / np.asarray(temperature_k, float)))


def airmass_of(elevation_deg: ArrayLike) -> NDArray[np.float64]:
    """Return ``1 / sin(elevation)``.

    Raises
    ------
    InputError
        Below 5 degrees, where the curvature of the Earth would have to be known, and above 90.
    """
    elevation = np.asarray(elevation_deg, float)
    if not np.all((elevation >= LOWEST_ELEVATION_DEG) & (elevation <= 90.0)):
        worst = elevation[~((elevation >= LOWEST_ELEVATION_DEG) & (elevation <= 90.0))].flat[0]
        raise InputError(
            f"an elevation of {worst:g} degrees, which is not between {LOWEST_ELEVATION_DEG:g} and 90",
            fix="leave those dumps out, or correct their elevation",
        )
    return np.asarray(1.0 / np.sin(np.deg2rad(elevation)))


def transmission(tau: ArrayLike, airmass: ArrayLike) -> NDArray[np.float64]:
    """Return what the air lets through: ``exp(-A tau)``."""
    return np.asarray(np.exp(-np.asarray(airmass, float) * np.asarray(tau, float)))


@dataclass(frozen=True)
class ClosedFormAtmosphere:
    """One layer of one temperature, with water that absorbs in lines and between them, in a formula.

    For tests and simulations, whose truth must not be another program's. It has the windows of the submillimetre
    where they are and opacities of the right size, but no ozone, and must not be used to calibrate real data.

    Attributes
    ----------
    temperature_k
        Physical temperature of the layer.
    dry : nepers at 1 THz
        Grows with the square of the frequency.
    wet : nepers per mm at 1 THz
        The continuum of water, which grows in the same way; the lines come on top.
    """

    temperature_k: float = 262.0
    dry: float = 0.12
    wet: float = 0.35
    background_k: float = BACKGROUND_K

    #: Centre in GHz, nepers per mm at the centre, half width in GHz: water's lines, in round numbers.
    LINES = (
        (183.31, 4.0, 2.5), (325.15, 2.5, 2.5), (380.2, 40.0, 2.5), (448.0, 25.0, 2.5), (556.94, 1500.0, 2.5),
        (620.7, 25.0, 2.5), (752.03, 800.0, 2.5), (916.17, 20.0, 2.5), (987.93, 700.0, 2.5),
    )  # fmt: skip

    def opacity(self, freq_ghz: ArrayLike, pwv_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the zenith opacity (see `AtmosphereModel`)."""
        freq = np.asarray(freq_ghz, float)
        square = (freq / 1000.0) ** 2
        wet = self.wet * square
        for centre, strength, width in self.LINES:
            wet = wet + strength / (1.0 + ((freq - centre) / width) ** 2)
        return np.asarray(self.dry * square + np.asarray(pwv_mm, float) * wet)

    def sky(self, freq_ghz: ArrayLike, pwv_mm: ArrayLike, airmass: ArrayLike) -> NDArray[np.float64]:
        """Return the brightness of the blank sky (see `AtmosphereModel`)."""
        through = transmission(self.opacity(freq_ghz, pwv_mm), airmass)
        layer, behind = planck_j(freq_ghz, self.temperature_k), planck_j(freq_ghz, self.background_k)
        return np.asarray(layer * (1.0 - through) + behind * through)


def _spline(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> Any:
    from scipy.interpolate import CubicSpline  # its import takes longer than that of all the rest

    return CubicSpline(x, y, axis=axis)


class LayeredAtmosphere:
    """Many layers, on a grid of frequencies: the exact transfer through what a model of the air has given.

    Between the grid's frequencies opacities and brightness are cubic splines. For any amount of water and any airmass
    nothing but array arithmetic is needed (the wet opacity is proportional to the water).

    Parameters
    ----------
    layers
        From the ground up.

    Notes
    -----
    ``sum_l J(T_l) (1 - exp(-t_l)) prod_(below l) exp(-t) + J_bg exp(-t_total)``, with ``t`` along the line of sight.
    """

    def __init__(self, layers: Layers, *, background_k: float = BACKGROUND_K) -> None:
        if layers.freq_ghz.size < 4:
            raise InputError(f"{layers.freq_ghz.size} frequencies in the layers, at least 4 are wanted")
        self.layers, self.background_k = layers, background_k
        totals = np.stack([layers.tau_dry.sum(axis=0), layers.tau_wet_per_mm.sum(axis=0)])
        self._totals = _spline(layers.freq_ghz, totals, 1)

    @property
    def name(self) -> str:
        """What it is known by: a digest of the layers."""
        digest = hashlib.blake2b(repr(self.background_k).encode(), digest_size=16)
        for one in fields(self.layers):
            digest.update(np.ascontiguousarray(getattr(self.layers, one.name)).tobytes())
        return digest.hexdigest()

    def opacity(self, freq_ghz: ArrayLike, pwv_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the zenith opacity (see `AtmosphereModel`)."""
        dry, wet = self._totals(self._inside(freq_ghz))
        return np.asarray(dry + np.asarray(pwv_mm, float) * wet)

    def sky(self, freq_ghz: ArrayLike, pwv_mm: ArrayLike, airmass: ArrayLike) -> NDArray[np.float64]:
        """Return the brightness of the blank sky (see `AtmosphereModel`)."""
        freq = self._inside(freq_ghz)
        on_grid = self.sky_on_grid(pwv_mm, airmass)
        if freq.shape == self.layers.freq_ghz.shape and np.array_equal(freq, self.layers.freq_ghz):
            return on_grid
        return np.asarray(_spline(self.layers.freq_ghz, on_grid, -1)(freq))

    def sky_on_grid(self, pwv_mm: ArrayLike, airmass: ArrayLike) -> NDArray[np.float64]:
        """Return the brightness of the blank sky at the frequencies of the layers: (..., chan) in K."""
        layers = self.layers
        water, path = np.asarray(pwv_mm, float), np.asarray(airmass, float)
        shape = np.broadcast_shapes(water.shape, path.shape, layers.freq_ghz.shape)
        below, sky = np.ones(shape), np.zeros(shape)
        for temperature, dry, wet in zip(layers.temperature_k, layers.tau_dry, layers.tau_wet_per_mm, strict=True):
            through = np.exp(-path * (dry + water * wet))
            sky += planck_j(layers.freq_ghz, temperature) * (1.0 - through) * below
            below *= through
        return sky + planck_j(layers.freq_ghz, self.background_k) * below

    def _inside(self, freq_ghz: ArrayLike) -> NDArray[np.float64]:
        freq, grid = np.asarray(freq_ghz, float), self.layers.freq_ghz
        if not np.all((freq >= grid[0]) & (freq <= grid[-1])):
            raise InputError(
                f"frequencies from {np.nanmin(freq):.3f} to {np.nanmax(freq):.3f} GHz, the layers reach from "
                f"{grid[0]:.3f} to {grid[-1]:.3f}",
                fix="have the layers made for these frequencies",
            )
        return freq


class BandedAtmosphere:
    """One atmosphere in several bands; frequencies that are asked for together lie in one of them."""

    def __init__(self, parts: Sequence[LayeredAtmosphere]) -> None:
        if not parts:
            raise InputError("an atmosphere without a band")
        self.parts = tuple(parts)

    @property
    def name(self) -> str:
        """What it is known by: digests of the layers of each band."""
        return " ".join(part.name for part in self.parts)

    def opacity(self, freq_ghz: ArrayLike, pwv_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the zenith opacity (see `AtmosphereModel`)."""
        return self._of(freq_ghz).opacity(freq_ghz, pwv_mm)

    def sky(self, freq_ghz: ArrayLike, pwv_mm: ArrayLike, airmass: ArrayLike) -> NDArray[np.float64]:
        """Return the brightness of the blank sky (see `AtmosphereModel`)."""
        return self._of(freq_ghz).sky(freq_ghz, pwv_mm, airmass)

    def _of(self, freq_ghz: ArrayLike) -> LayeredAtmosphere:
        freq = np.asarray(freq_ghz, float)
        for part in self.parts:
            grid = part.layers.freq_ghz
            if np.all((freq >= grid[0]) & (freq <= grid[-1])):
                return part
        reach = ", ".join(f"{p.layers.freq_ghz[0]:.3f} to {p.layers.freq_ghz[-1]:.3f}" for p in self.parts)
        raise InputError(
            f"frequencies from {np.nanmin(freq):.3f} to {np.nanmax(freq):.3f} GHz, the layers reach from {reach}",
            fix="have the layers made for these frequencies",
        )
