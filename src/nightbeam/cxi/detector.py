"""One detector on one slab: where each module goes, what is bad, how far a place is from the beam."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError
from nightbeam.geometry.compute import (
    bad_pixels,
    explicit_origins,
    panel_index,
    placed_panels,
    slab_of,
    stacked_origins,
    tile_origins,
)
from nightbeam.geometry.model import Geometry

__all__ = ["Detector", "ImageCounts", "Slabs", "describe_detector", "radius_px"]

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Detector:
    """What does not change from event to event.

    Attributes
    ----------
    shape
        (C, H0, W0) of an event's array.
    origins : (C, 2)
        First row and column (ss0, fs0) of each module in the slab.
    slab
        (SS, FS).
    bad : (SS, FS), bool, or None
        Bad pixels; None where nothing is known of them.
    geometry
        None: modules are stacked.
    pixel_size_m, clen_m
        Of the configuration or geometry; None: unknown. ``clen_m`` is a literal of the geometry.
    coffset_m
        Added to a camera length to be a distance.
    """

    shape: Shape
    origins: NDArray[np.intp]
    slab: tuple[int, int]
    bad: NDArray[np.bool_] | None
    geometry: Geometry | None
    pixel_size_m: float | None
    clen_m: float | None
    coffset_m: float

    @property
    def is_stack(self) -> bool:
        """Whether an event's array is the slab already, but for its shape."""
        modules, height, width = self.shape
        stacked = np.array_equal(self.origins, stacked_origins(self.shape))
        return bool(stacked) and self.slab == (modules * height, width)


def describe_detector(
    shape: Shape,
    *,
    geometry: Geometry | None = None,
    origins: Any = None,
    mask: NDArray[Any] | None = None,
    pixel_size_m: float | None = None,
) -> Detector:
    """Return the detector whose events have this shape.

    Parameters
    ----------
    shape
        (C, H0, W0), from the data.
    geometry
        Its tiles are the modules; without it they are stacked along ss.
    origins : (C, 2)
        Where modules go, in place of that rule.
    mask : (C, H0, W0) or (SS, FS)
        0 is good; what the geometry says is bad is bad too.

    Raises
    ------
    InputError
        If the shape does not fit the geometry, or the mask neither.
    """
    if origins is not None:
        places = explicit_origins(origins, shape)
    elif geometry is not None:
        places = tile_origins(geometry, shape)
    else:
        places = stacked_origins(shape)
    slab = slab_of(places, shape)
    if geometry is not None:
        slab = _at_least(slab, geometry)
    bad = None if geometry is None else _fitted(bad_pixels(geometry), slab)
    if mask is not None:
        asked = _mask_slab(mask, shape, places, slab)
        bad = asked if bad is None else bad | asked
    return Detector(
        shape=shape,
        origins=places,
        slab=slab,
        bad=bad,
        geometry=geometry,
        pixel_size_m=pixel_size_m if pixel_size_m is not None else _pixel_size(geometry),
        clen_m=None if geometry is None or geometry.clen is None else geometry.clen.base,
        coffset_m=0.0 if geometry is None else float(np.median([p.coffset for p in geometry.panels])),
    )


def _at_least(slab: tuple[int, int], geometry: Geometry) -> tuple[int, int]:
    """Return a slab that holds all panels, so that CrystFEL finds each where it looks."""
    rows, columns = geometry.slab_shape
    return max(slab[0], rows), max(slab[1], columns)


def _fitted(bad: NDArray[np.bool_], slab: tuple[int, int]) -> NDArray[np.bool_]:
    if bad.shape == slab:
        return bad
    whole = np.ones(slab, bool)
    whole[: bad.shape[0], : bad.shape[1]] = bad
    return whole


def _pixel_size(geometry: Geometry | None) -> float | None:
    return None if geometry is None else float(np.median([1.0 / panel.res for panel in geometry.panels]))


def _mask_slab(mask: NDArray[Any], shape: Shape, origins: NDArray[np.intp], slab: tuple[int, int]) -> NDArray[np.bool_]:
    if mask.shape == slab:
        return np.asarray(mask != 0)
    if mask.shape != shape:
        raise InputError(f"a mask of shape {mask.shape}", fix=f"give one of shape {shape} or {slab}")
    whole = np.zeros(slab, bool)
    for module, place in zip(mask, _places(origins, shape), strict=True):
        whole[place] = module != 0
    return whole


def _places(origins: NDArray[np.intp], shape: Shape) -> list[tuple[slice, slice]]:
    _, height, width = shape
    return [(slice(ss0, ss0 + height), slice(fs0, fs0 + width)) for ss0, fs0 in origins.tolist()]


def radius_px(geometry: Geometry, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance from the beam of places in the slab, in pixels; 0 in a gap.

    A shift of the detector that the geometry gives as a number counts.

    Parameters
    ----------
    y, x : (n,)
        Row and column, where whole numbers are centres of pixels.
    """
    panels = placed_panels(geometry)
    owner = panel_index(geometry)
    row, column = (np.clip(np.rint(v).astype(np.intp), 0, n - 1) for v, n in zip((y, x), owner.shape, strict=True))
    which = owner[row, column]
    table = np.array([(p.min_ss, p.min_fs, p.corner_x, p.corner_y, *p.fs[:2], *p.ss[:2]) for p in panels])[which]
    down, along = y + 0.5 - table[:, 0], x + 0.5 - table[:, 1]
    lab_x = table[:, 2] + along * table[:, 4] + down * table[:, 6]
    lab_y = table[:, 3] + along * table[:, 5] + down * table[:, 7]
    return np.where(which < 0, 0.0, np.hypot(lab_x, lab_y))


# -- images -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ImageCounts:
    """Pixels that the file's type could not hold as they were.

    A type of pixels that fits into the file's type whole is not counted. Else each pixel counts once at most.

    Attributes
    ----------
    clipped
        Finite and beyond the range: it became the type's largest or smallest number.
    rounded
        Finite, within the range, and the type has no such number.
    not_finite
        NaN or infinite: it stays so in floats; in integers NaN becomes 0 and infinity the largest or smallest number.
    """

    clipped: int = 0
    rounded: int = 0
    not_finite: int = 0


@dataclass(slots=True)
class Slabs:
    """Lays an event's modules on the slab, in the type of the file.

    An array that is the slab already is not copied; all others share one buffer, so use it before the next call.
    """

    detector: Detector
    dtype: np.dtype[Any]
    counts: ImageCounts = field(default_factory=ImageCounts)
    _buffer: NDArray[Any] | None = None

    def of(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the slab (SS, FS), C-contiguous, of an image (C, H0, W0); gaps are 0."""
        if image.dtype == self.dtype and image.flags.c_contiguous and self.detector.is_stack:
            return image.reshape(self.detector.slab)
        if self._buffer is None:
            self._buffer = np.zeros(self.detector.slab, self.dtype)
        for module, place in zip(image, _places(self.detector.origins, self.detector.shape), strict=True):
            self._fill(self._buffer[place], module)
        return self._buffer

    def spread(self, modules: NDArray[Any]) -> NDArray[Any]:
        """Return a slab of its own of modules that need no counting, such as maps and powders."""
        whole = np.zeros(self.detector.slab, modules.dtype)
        for module, place in zip(modules, _places(self.detector.origins, self.detector.shape), strict=True):
            whole[place] = module
        return whole

    def _fill(self, place: NDArray[Any], module: NDArray[Any]) -> None:
        if np.can_cast(module.dtype, self.dtype):
            place[...] = module
        elif module.dtype.kind != "f" and self.dtype.kind != "f":
            self._fill_from_integers(place, module)
        else:
            self._fill_counted(place, module)

    def _fill_from_integers(self, place: NDArray[Any], module: NDArray[Any]) -> None:
        own, limits = np.iinfo(module.dtype), np.iinfo(self.dtype)
        values = np.clip(module, max(own.min, limits.min), min(own.max, limits.max))
        self.counts.clipped += int(np.count_nonzero(values != module))
        place[...] = values

    def _fill_counted(self, place: NDArray[Any], module: NDArray[Any]) -> None:
        low, high = _range(self.dtype)
        values = module.astype(_exact(module.dtype, self.dtype), copy=False)
        finite = np.isfinite(values)
        held = values if self.dtype.kind == "f" else np.rint(values)
        outside = finite & ((held < low) | (held > high))
        held = np.clip(held, low, high)
        if self.dtype.kind == "f":
            held[~finite] = values[~finite]
        else:
            held[np.isnan(held)] = 0.0
        place[...] = held
        self.counts.clipped += int(np.count_nonzero(outside))
        self.counts.rounded += int(np.count_nonzero((place != values) & finite & ~outside))
        self.counts.not_finite += values.size - int(np.count_nonzero(finite))


def _range(kind: np.dtype[Any]) -> tuple[float, float]:
    limits = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    return float(limits.min), float(limits.max)


def _exact(given: np.dtype[Any], wanted: np.dtype[Any]) -> Any:
    """Return floats that hold all numbers of a type, and the limits of the other."""
    if given.kind != "f" and given.itemsize == 8:
        return np.longdouble
    return given if given.kind == wanted.kind == "f" else np.float64
