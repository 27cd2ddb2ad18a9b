"""Places on the Earth, entries of a source list, and the names of beams."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = [
    "BEAM_MODELS",
    "DISH_DIAMETER_M",
    "OVRO_DSA110",
    "SPEED_OF_LIGHT_M_S",
    "BeamModel",
    "Calibrator",
    "Site",
]

SPEED_OF_LIGHT_M_S = 299792458.0

#: The dishes of DSA-110, as written in its files.
DISH_DIAMETER_M = 4.65

#: Why there are three and which is the default: docs/explanations/decisions/0010-beam-model.md.
BeamModel = Literal["dsacalib", "gaussian", "airy"]
BEAM_MODELS: tuple[BeamModel, ...] = get_args(BeamModel)


@dataclass(frozen=True, slots=True)
class Site:
    """Where an array stands: geodetic, WGS84, east and north positive."""

    longitude_deg: float
    latitude_deg: float
    height_m: float

    @property
    def longitude_rad(self) -> float:
        """East longitude in radians."""
        return math.radians(self.longitude_deg)

    @property
    def latitude_rad(self) -> float:
        """North latitude in radians."""
        return math.radians(self.latitude_deg)


#: The one constant for DSA-110, to be used only where a file does not say its site. The longitude is
#: confirmed to 0.007 arcsec by the sidereal times recorded with a real observation.
OVRO_DSA110 = Site(
    longitude_deg=math.degrees(-2.064427799136453),
    latitude_deg=math.degrees(0.6498455107238486),
    height_m=1188.0519,
)


@dataclass(frozen=True, slots=True)
class Calibrator:
    """One source of a calibrator list at 20 cm.

    ``uvmin_klambda`` and ``uvmax_klambda`` bound the baselines (kilo-wavelengths) on which the source
    may be used; None where the list sets no bound.
    """

    name: str
    ra_deg: float
    dec_deg: float
    flux_jy: float
    alt: str = ""
    position_code: str = ""
    uvmin_klambda: float | None = None
    uvmax_klambda: float | None = None
