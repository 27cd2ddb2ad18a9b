"""Directions, times, beams and source lists: the geometry that every radio package shares."""

from __future__ import annotations

from nightbeam.sky.compute import (
    apparent_hadec,
    beam_attenuation,
    beam_first_null_rad,
    beam_fwhm_rad,
    earth_orientation,
    is_alone,
    itrf_from_site,
    lst_rad,
    meridian_icrs,
    offset_position,
    separation,
    uvw_basis,
)
from nightbeam.sky.files import find_calibrator, read_calibrators
from nightbeam.sky.model import (
    BEAM_MODELS,
    DISH_DIAMETER_M,
    OVRO_DSA110,
    SPEED_OF_LIGHT_M_S,
    BeamModel,
    Calibrator,
    Site,
)

__all__ = [
    "BEAM_MODELS",
    "DISH_DIAMETER_M",
    "OVRO_DSA110",
    "SPEED_OF_LIGHT_M_S",
    "BeamModel",
    "Calibrator",
    "Site",
    "apparent_hadec",
    "beam_attenuation",
    "beam_first_null_rad",
    "beam_fwhm_rad",
    "earth_orientation",
    "find_calibrator",
    "is_alone",
    "itrf_from_site",
    "lst_rad",
    "meridian_icrs",
    "offset_position",
    "read_calibrators",
    "separation",
    "uvw_basis",
]
