"""From the pixels of a tile to those of the common grid, by `reproject`.

The library asks astropy for the place of every pixel, which takes longer than the interpolation. Places on the sky vary
so smoothly from pixel to pixel that they are asked for at every 16th pixel here and brought to the others by a cubic
spline (the difference is below a millionth of a pixel); `PixelMap` hands them to the library as a coordinate system.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.wcs import WCS
from astropy.wcs.wcsapi import BaseLowLevelWCS, HighLevelWCSWrapper
from numpy.typing import NDArray

from nightbeam.mosaic.compute import Block

__all__ = ["PixelMap", "interpolate", "places"]

Floats = NDArray[np.floating[Any]]

_STEP = 16
_FAR = -1e6


class PixelMap(BaseLowLevelWCS):  # type: ignore[misc]
    """A coordinate system whose world is the pixels of a tile.

    That of the tile itself is the identity; that of a block of the grid knows where each of its pixels falls.
    """

    def __init__(self, places: tuple[Floats, Floats] | None = None) -> None:
        self._places = places

    pixel_n_dim = world_n_dim = 2
    world_axis_physical_types = ("custom:tile.x", "custom:tile.y")
    world_axis_units = ("pixel", "pixel")
    world_axis_object_components = (("x", 0, "value"), ("y", 0, "value"))

    @property
    def world_axis_object_classes(self) -> dict[str, Any]:
        """Plain quantities."""
        from astropy.units import Quantity

        return {axis: (Quantity, (), {"unit": "pixel"}) for axis in "xy"}

    @property
    def axis_correlation_matrix(self) -> NDArray[np.bool_]:
        """Every axis depends on every other."""
        return np.ones((2, 2), bool)

    def pixel_to_world_values(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return the places, which were worked out for all pixels in their order."""
        if self._places is None:
            return x, y
        return self._places[0].reshape(np.shape(x)), self._places[1].reshape(np.shape(y))

    def world_to_pixel_values(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return what was given: the tile's pixels are its world."""
        return x, y


def places(block: Block, grid: WCS, tile: WCS) -> tuple[Floats, Floats]:
    """Return where the pixels of a block fall on a tile: x and y (ny, nx) from the centre of its first pixel.

    Far outside (-1e6) where the tile's projection has no place for them.
    """
    from scipy.interpolate import RectBivariateSpline

    rows, cols = np.arange(block.y0, block.y1), np.arange(block.x0, block.x1)
    # Four knots at least, which a cubic needs, and the last one not before the last pixel.
    knots_x, knots_y = (
        np.arange(low, max(high, low + 3 * _STEP) + _STEP, float(_STEP))
        for low, high in ((block.x0, block.x1), (block.y0, block.y1))
    )
    x, y = _exact(grid, tile, knots_x, knots_y)
    if np.isfinite(x).all() and np.isfinite(y).all():
        x, y = (RectBivariateSpline(knots_y, knots_x, v)(rows, cols) for v in (x, y))
        return x, y
    x, y = _exact(grid, tile, cols.astype(float), rows.astype(float))
    nowhere = ~(np.isfinite(x) & np.isfinite(y))
    return np.where(nowhere, _FAR, x), np.where(nowhere, _FAR, y)


def _exact(grid: WCS, tile: WCS, cols: Floats, rows: Floats) -> tuple[Floats, Floats]:
    from astropy.wcs.utils import pixel_to_pixel

    # Coordinate systems of astropy are not safe between threads.
    x, y = pixel_to_pixel(grid.deepcopy(), tile.deepcopy(), *np.meshgrid(cols, rows))
    return np.asarray(x, float), np.asarray(y, float)


def interpolate(planes: Floats, x: Floats, y: Floats) -> NDArray[np.float32]:
    """Return planes (n, ny, nx) of finite numbers at places, by cubic splines; NaN outside."""
    from reproject import reproject_interp

    shape = (len(planes), *x.shape)
    out = reproject_interp(
        (planes, HighLevelWCSWrapper(PixelMap())),
        HighLevelWCSWrapper(PixelMap((x, y))),
        shape_out=shape,
        order="bicubic",
        roundtrip_coords=False,
        return_footprint=False,
        output_array=np.empty(shape, planes.dtype),
    )
    return np.asarray(out, np.float32)
