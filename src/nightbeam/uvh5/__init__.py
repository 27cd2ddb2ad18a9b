"""DSA-110 UVH5 subband files: reading, checking, rotating to one phase centre, converting."""

from __future__ import annotations

from nightbeam.uvh5.convert import convert_group, read_group
from nightbeam.uvh5.files import check_subband, read_header
from nightbeam.uvh5.model import TELESCOPE, ConvertReport, Observation, SubbandHeader

__all__ = [
    "TELESCOPE",
    "ConvertReport",
    "Observation",
    "SubbandHeader",
    "check_subband",
    "convert_group",
    "read_group",
    "read_header",
]
