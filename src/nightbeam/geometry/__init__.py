"""Detector geometry as CrystFEL writes it: panels, pixel maps, tiles."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightbeam.geometry.compute import (
        bad_pixels,
        beam_radius_px,
        crystfel_complaints,
        explicit_origins,
        for_cxi,
        panel_index,
        pixel_maps,
        slab_of,
        stacked_origins,
        tile_origins,
        to_panel,
        to_slab,
    )
    from nightbeam.geometry.files import format_geometry, parse_geometry, read_geometry, write_geometry
    from nightbeam.geometry.model import BadRegion, Flag, Geometry, Mask, Panel, PixelMaps, Quantity

__all__ = [
    "BadRegion",
    "Flag",
    "Geometry",
    "Mask",
    "Panel",
    "PixelMaps",
    "Quantity",
    "bad_pixels",
    "beam_radius_px",
    "crystfel_complaints",
    "explicit_origins",
    "for_cxi",
    "format_geometry",
    "panel_index",
    "parse_geometry",
    "pixel_maps",
    "read_geometry",
    "slab_of",
    "stacked_origins",
    "tile_origins",
    "to_panel",
    "to_slab",
    "write_geometry",
]

_MODEL = ("BadRegion", "Flag", "Geometry", "Mask", "Panel", "PixelMaps", "Quantity")
_FILES = ("format_geometry", "parse_geometry", "read_geometry", "write_geometry")
_HOMES = dict.fromkeys(__all__, "compute") | dict.fromkeys(_MODEL, "model") | dict.fromkeys(_FILES, "files")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: numpy is not needed to list commands."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
