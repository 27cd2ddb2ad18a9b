"""What models of the atmosphere have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nightbeam.core.errors import InputError

__all__ = ["AtmosphereModel", "Layers", "Weather"]

#: What a place on Earth, or an aircraft above it, can have. Pardo's model takes anything, and hangs on some of it.
_LIMITS = {
    "altitude_m": (-400.0, 20_000.0),
    "pressure_hpa": (100.0, 1100.0),
    "temperature_k": (180.0, 330.0),
    "humidity_pct": (0.0, 100.0),
}


class AtmosphereModel(Protocol):
    """An atmosphere above one site, at one time; any model can be put in another's place."""

    def opacity(self, freq_ghz: ArrayLike, pwv_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the zenith opacity in nepers, dry and wet together.

        Parameters
        ----------
        freq_ghz : (chan,)
        pwv_mm : scalar, or (..., 1) to give many at once
            Precipitable water vapour towards the zenith.

        Returns
        -------
        (..., chan)
        """
        ...

    def sky(self, freq_ghz: ArrayLike, pwv_mm: ArrayLike, airmass: ArrayLike) -> NDArray[np.float64]:
        """Return the brightness of the blank sky in K (Rayleigh-Jeans), the attenuated background included.

        Parameters
        ----------
        freq_ghz : (chan,)
        pwv_mm, airmass : scalars, or (..., 1)

        Returns
        -------
        (..., chan)
        """
        ...


@dataclass(frozen=True, slots=True)
class Weather:
    """What a weather station says.

    Raises
    ------
    InputError
        If something is not a number, or not of this planet.
    """

    altitude_m: float
    pressure_hpa: float
    temperature_k: float
    humidity_pct: float = 20.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value, (low, high) = getattr(self, one.name), _LIMITS[one.name]
            if not (math.isfinite(value) and low <= value <= high):
                raise InputError(
                    f"{one.name} is {value}, which is not between {low:g} and {high:g}",
                    fix="check the weather in the scan, its units above all",
                )


@dataclass(frozen=True, slots=True)
class Layers:
    """Homogeneous layers of air, from the ground up.

    Attributes
    ----------
    freq_ghz : (chan,), ascending
    temperature_k : (layer,)
    tau_dry : (layer, chan)
        Zenith opacity of each layer, nepers.
    tau_wet_per_mm : (layer, chan)
        The same for each millimetre of water in the whole column.
    """

    freq_ghz: NDArray[np.float64]
    temperature_k: NDArray[np.float64]
    tau_dry: NDArray[np.float64]
    tau_wet_per_mm: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = (self.temperature_k.size, self.freq_ghz.size)
        if self.tau_dry.shape != shape or self.tau_wet_per_mm.shape != shape:
            raise InputError(
                f"opacities of shape {self.tau_dry.shape} and {self.tau_wet_per_mm.shape} for {shape[0]} layers and "
                f"{shape[1]} frequencies"
            )
        if self.freq_ghz.size > 1 and not np.all(np.diff(self.freq_ghz) > 0):
            raise InputError("the frequencies of the layers do not ascend")
