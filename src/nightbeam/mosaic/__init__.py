"""Mosaics of drift tiles: which tiles make one, how they are combined, and what is asked of the result."""

from __future__ import annotations

from nightbeam.mosaic.compute import circular_mean_deg, common_grid, cut_strip, split_strips
from nightbeam.mosaic.files import inspect_tile, mosaic_sidecar_path, read_mosaic, verify_mosaic
from nightbeam.mosaic.judging import judge_tiles
from nightbeam.mosaic.model import (
    Check,
    MosaicOptions,
    MosaicProduct,
    Reason,
    ReasonCode,
    SkyGrid,
    Strip,
    Tile,
    TileFacts,
    TileUse,
    TileVerdict,
    mosaic_path,
)
from nightbeam.mosaic.product import build_mosaic

__all__ = [
    "Check",
    "MosaicOptions",
    "MosaicProduct",
    "Reason",
    "ReasonCode",
    "SkyGrid",
    "Strip",
    "Tile",
    "TileFacts",
    "TileUse",
    "TileVerdict",
    "build_mosaic",
    "circular_mean_deg",
    "common_grid",
    "cut_strip",
    "inspect_tile",
    "judge_tiles",
    "mosaic_path",
    "mosaic_sidecar_path",
    "read_mosaic",
    "split_strips",
    "verify_mosaic",
]
