"""What the air absorbs and how bright it is: models for single-dish calibration."""

from __future__ import annotations

from nightbeam.atmosphere.compute import (
    BACKGROUND_K,
    RJ_K_PER_GHZ,
    BandedAtmosphere,
    ClosedFormAtmosphere,
    LayeredAtmosphere,
    airmass_of,
    planck_j,
    transmission,
)
from nightbeam.atmosphere.model import AtmosphereModel, Layers, Weather

__all__ = [
    "BACKGROUND_K",
    "RJ_K_PER_GHZ",
    "AtmosphereModel",
    "BandedAtmosphere",
    "ClosedFormAtmosphere",
    "LayeredAtmosphere",
    "Layers",
    "Weather",
    "airmass_of",
    "planck_j",
    "transmission",
]
