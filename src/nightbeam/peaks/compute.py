"""From a network's logits, or what is left of them, to peaks with centroids and intensities.

Everything is measured within the detector's own pixels: the window is cut out first, so that a component that reaches
into the padding is measured by its part within. (A finder that labels first and then drops the centroids in the
padding differs only there: a padded pixel has no data.)

Intensities are summed as float64, whatever the image's type. Pixels of the image that are not finite are left out of
the ring, of the sum and of the maximum; they still belong to their component and count in its size and its unweighted
centroid. The standard deviation of the ring is that of `numpy.std` with ``ddof=0``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nightbeam.core.errors import ConfigError, InputError
from nightbeam.peaks import kernel
from nightbeam.peaks.model import PeakSettings, PeakTable, Window

__all__ = [
    "find_peaks",
    "find_peaks_in_bits",
    "find_peaks_in_pixels",
    "join_tables",
    "masks",
    "masks_in_bits",
    "masks_in_pixels",
    "select_events",
    "strongest",
]

#: Images that are read as they are; others are copied to one of these first, to keep the compiled versions few.
_AS_THEY_ARE: Final = ("float32", "float64", "uint16")
#: Exactly the same numbers as float32.
_AS_FLOAT32: Final = ("float16", "int8", "uint8", "int16", "bool")
_RINGS: Final = {"none": 0, "ring": 1, "ring-mean": 2}
_MOST: Final = int(np.iinfo(np.int64).max)
_LONGEST: Final = int(np.iinfo(np.int32).max)


def find_peaks(
    logits: NDArray[Any],
    images: NDArray[Any] | None,
    *,
    window: Window | None = None,
    settings: PeakSettings | None = None,
    first_row: int = 0,
) -> PeakTable:
    """Find the connected regions where class 1 wins, and measure them.

    Parameters
    ----------
    logits : (rows, K, H, W), float16, float32 or float64
        Class 1 must exceed all others; a tie is background, as is a pixel with a logit that is not a number (those
        within the window are counted). Anything but two classes, C-contiguous, of float32 or float64, costs a copy.
    images : (rows, H0, W0), any type and strides, or None
        The detector's pixels. None: there are no intensities, they are 0.
    window
        Where the detector's pixels are in the network's panel; None: everywhere.
    settings
        None: the defaults.
    first_row
        Added to the row of each peak, for rows out of the middle of a batch.

    Returns
    -------
    PeakTable
        By row, then by the first pixel in raster order.

    Raises
    ------
    InputError
        If a shape or type does not fit.
    ConfigError
        If a ``min_probability`` other than 0.5 is asked of more than two classes.
    """
    settings = settings or PeakSettings()
    pair = two_logits(logits, settings)
    window = checked_window(window, pair.shape[2:])
    runs, starts, nan_pixels, nan_rows = kernel.runs_of_logits(
        _sealed(np.ascontiguousarray(pair)), *_parts(window), settings.min_probability == 0.5, least_step(settings)
    )
    table = _measured(runs, starts, images, window, settings, first_row)
    return replace(table, nan_pixels=nan_pixels, nan_rows=nan_rows)


def find_peaks_in_bits(
    bits: NDArray[np.uint8],
    width: int,
    images: NDArray[Any] | None,
    *,
    window: Window | None = None,
    settings: PeakSettings | None = None,
    first_row: int = 0,
) -> PeakTable:
    """Find the connected regions of a mask of bits, and measure them (see `find_peaks`).

    Parameters
    ----------
    bits : (rows, H, ceil(W / 8)), uint8
        As `numpy.packbits` makes them along the last axis.
    width
        W.
    images, window, settings, first_row
        As of `find_peaks`; ``min_probability`` was somebody else's choice.

    Raises
    ------
    InputError
        If a shape or type does not fit.
    """
    settings = settings or PeakSettings()
    bits = checked_bits(bits, width)
    window = checked_window(window, (bits.shape[1], width))
    runs, starts = kernel.runs_of_bits(_sealed(bits), *_parts(window))
    return _measured(runs, starts, images, window, settings, first_row)


def find_peaks_in_pixels(
    pixels: NDArray[np.integer[Any]],
    rows: int,
    shape: tuple[int, int],
    images: NDArray[Any] | None,
    *,
    window: Window | None = None,
    settings: PeakSettings | None = None,
    first_row: int = 0,
) -> PeakTable:
    """Find the connected regions of listed pixels, and measure them (see `find_peaks`).

    Parameters
    ----------
    pixels : (n, 3), int
        Row, y and x of each pixel in the network's panel. In any order; one that is named twice counts once.
    rows
        How many rows there are, with peaks or without.
    shape
        (H, W).
    images, window, settings, first_row
        As of `find_peaks`; ``min_probability`` was somebody else's choice.

    Raises
    ------
    InputError
        If a shape or type does not fit, or a pixel lies outside.
    """
    settings = settings or PeakSettings()
    pixels = checked_pixels(pixels, rows, shape)
    window = checked_window(window, shape)
    runs, starts = kernel.runs_of_pixels(_sealed(pixels), int(rows), *_parts(window))
    return _measured(runs, starts, images, window, settings, first_row)


def masks(
    logits: NDArray[Any], window: Window | None = None, settings: PeakSettings | None = None
) -> NDArray[np.bool_]:
    """Return where class 1 wins.

    Parameters
    ----------
    logits, window, settings
        As of `find_peaks`.

    Returns
    -------
    (rows, H0, W0), bool

    Raises
    ------
    InputError, ConfigError
        As of `find_peaks`.
    """
    settings = settings or PeakSettings()
    pair = two_logits(logits, settings)
    cut = pair[(slice(None), slice(None), *_cut(checked_window(window, pair.shape[2:])))]
    if settings.min_probability == 0.5:
        return np.greater(cut[:, 1], cut[:, 0])
    with np.errstate(invalid="ignore"):  # infinite in both
        step = np.subtract(cut[:, 1], cut[:, 0], dtype=np.float64)
    return np.greater_equal(step, least_step(settings))


def masks_in_bits(bits: NDArray[np.uint8], width: int, window: Window | None = None) -> NDArray[np.bool_]:
    """Return the mask that bits stand for.

    Parameters
    ----------
    bits, width, window
        As of `find_peaks_in_bits`.

    Returns
    -------
    (rows, H0, W0), bool

    Raises
    ------
    InputError
        If a shape or type does not fit.
    """
    bits = checked_bits(bits, width)
    window = checked_window(window, (bits.shape[1], width))
    return np.unpackbits(bits, axis=2, count=width).view(np.bool_)[(slice(None), *_cut(window))]


def masks_in_pixels(
    pixels: NDArray[np.integer[Any]], rows: int, shape: tuple[int, int], window: Window | None = None
) -> NDArray[np.bool_]:
    """Return the mask that listed pixels stand for.

    Parameters
    ----------
    pixels, rows, shape, window
        As of `find_peaks_in_pixels`.

    Returns
    -------
    (rows, H0, W0), bool

    Raises
    ------
    InputError
        If a shape or type does not fit, or a pixel lies outside.
    """
    pixels = checked_pixels(pixels, rows, shape)
    window = checked_window(window, shape)
    y, x = pixels[:, 1] - window.top, pixels[:, 2] - window.left
    inside = (y >= 0) & (y < window.height) & (x >= 0) & (x < window.width)
    mask = np.zeros((rows, window.height, window.width), np.bool_)
    mask[pixels[inside, 0], y[inside], x[inside]] = True
    return mask


def strongest(table: PeakTable, most: int) -> PeakTable:
    """Return the ``most`` peaks of the largest total, in the order that they had; of equals the first are kept.

    Raises
    ------
    ConfigError
        If ``most`` is negative.
    """
    if most < 0:
        raise ConfigError(f"the strongest {most} peaks were asked for", fix="give 0 or more")
    if len(table) <= most:
        return table
    return table.select(np.sort(np.argsort(-table.total, kind="stable")[:most]))


def select_events(table: PeakTable, n_events: int, n_panels: int) -> NDArray[np.int64]:
    """Return where the peaks of each event begin.

    Parameters
    ----------
    table
        Peaks by row; a row is ``event * n_panels + panel``.
    n_events, n_panels

    Returns
    -------
    (n_events + 1,), int64
        The peaks of event ``i`` are those from ``[i]`` up to ``[i + 1]``.

    Raises
    ------
    InputError
        If there are peaks of other rows, or rows out of order.
    """
    row = table.row
    if len(row) and (row[0] < 0 or row[-1] >= n_events * n_panels or np.any(row[1:] < row[:-1])):
        raise InputError(f"peaks of rows {row.min()} to {row.max()} in {n_events} events of {n_panels} panels",
                         fix="give the table of the whole batch, by row")  # fmt: skip
    return np.searchsorted(row, np.arange(n_events + 1) * n_panels).astype(np.int64)


def join_tables(tables: Sequence[PeakTable]) -> PeakTable:
    """Return one table of the peaks of several, one after the other; what is said of NaN is added up."""
    some = tables or [_empty()]
    names = [f.name for f in fields(PeakTable) if not f.name.startswith("nan_")]
    return PeakTable(
        **{name: np.concatenate([getattr(table, name) for table in some]) for name in names},
        nan_pixels=sum(table.nan_pixels for table in some),
        nan_rows=sum(table.nan_rows for table in some),
    )


# -- what is asked of the data ------------------------------------------------------------------------------------


def two_logits(logits: NDArray[Any], settings: PeakSettings) -> NDArray[np.floating[Any]]:
    """Return (rows, 2, H, W), float32 or float64: the largest of the other classes, and class 1."""
    if not isinstance(logits, np.ndarray) or logits.ndim != 4 or logits.dtype.kind != "f":
        raise InputError(f"logits are {_said(logits)}", fix="give real numbers of shape (rows, classes, height, width)")
    if logits.dtype.itemsize > 8:
        raise InputError(f"logits are {_said(logits)}", fix="give float16, float32 or float64")
    classes = logits.shape[1]
    if classes < 2:
        raise InputError(f"logits have {classes} class", fix="class 0 is background, class 1 peak: give two or more")
    if classes > 2:
        if settings.min_probability != 0.5:
            raise ConfigError(f"min_probability is {settings.min_probability}, and there are {classes} classes",
                              fix="leave it at 0.5, or give logits of two classes")  # fmt: skip
        # np.max hands a NaN on, which makes the pixel background.
        logits = np.stack([np.delete(logits, 1, axis=1).max(axis=1), logits[:, 1]], axis=1)
    kind = np.float64 if logits.dtype.itemsize == 8 else np.float32
    return logits.astype(kind, copy=False)


def checked_window(window: Window | None, shape: Sequence[int]) -> Window:
    """Return the window, or one of the whole panel (H, W); refuse one that does not lie in it."""
    height, width = int(shape[0]), int(shape[1])
    if max(height, width) > _LONGEST:
        raise InputError(f"panels are {height} x {width} pixels", fix=f"give at most {_LONGEST} a side")
    if window is None:
        return Window(0, 0, height, width)
    fits = 0 <= window.top <= window.top + window.height <= height
    if not (fits and 0 <= window.left <= window.left + window.width <= width and min(_parts(window)) >= 0):
        raise InputError(f"{window} does not lie in a panel of {height} x {width} pixels",
                         fix="check the shapes before and after padding")  # fmt: skip
    return window


def checked_bits(bits: NDArray[Any], width: int) -> NDArray[np.uint8]:
    """Return the bits, C-contiguous; refuse what cannot be a mask of that width."""
    if not isinstance(bits, np.ndarray) or bits.ndim != 3 or bits.dtype != np.uint8:
        raise InputError(f"bits are {_said(bits)}", fix="give uint8 of shape (rows, height, bytes)")
    if width < 0 or bits.shape[2] != (width + 7) // 8:
        raise InputError(f"lines of {width} pixels have {bits.shape[2]} bytes", fix="pack the last axis, 8 to a byte")
    return np.ascontiguousarray(bits)


def checked_pixels(pixels: NDArray[Any], rows: int, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Return the pixels ascending, each once, as int32; refuse those that lie outside."""
    sizes = (int(rows), int(shape[0]), int(shape[1]))
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3 or pixels.dtype.kind not in "iu":
        raise InputError(f"pixels are {_said(pixels)}", fix="give integers of shape (n, 3): row, y, x")
    if min(sizes) < 0 or max(sizes) > _LONGEST:
        raise InputError(f"{sizes[0]} rows of {sizes[1]} x {sizes[2]} pixels", fix=f"give 0 to {_LONGEST} of each")
    if not len(pixels):
        return np.empty((0, 3), np.int32)
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    if any(n < 0 for n in low.tolist()) or any(n >= size for n, size in zip(high.tolist(), sizes, strict=True)):
        raise InputError(f"pixels from {low.tolist()} to {high.tolist()} in {sizes[0]} rows of {sizes[1]} x {sizes[2]}",
                         fix="give row, y, x in the network's panel, counted from 0")  # fmt: skip
    table = np.ascontiguousarray(pixels, np.int32)
    step = np.sign(np.diff(table, axis=0)) @ np.array([4, 2, 1], np.int32)
    return table if np.all(step > 0) else np.unique(table, axis=0)


def checked_images(images: NDArray[Any], rows: int, window: Window) -> NDArray[Any]:
    """Return the images in a type that is read as it is; refuse those that are not the detector's panels."""
    wanted = (rows, window.height, window.width)
    if not isinstance(images, np.ndarray) or images.shape != wanted or images.dtype.kind not in "fiub":
        raise InputError(f"images are {_said(images)}", fix=f"give real numbers of shape {wanted}: the window, cut out")
    kind = images.dtype
    if kind.name in _AS_THEY_ARE and kind.isnative and images.flags.aligned:
        return images
    return images.astype(np.float32 if kind.name in _AS_FLOAT32 or kind.name in _AS_THEY_ARE[:1] else np.float64)


def least_step(settings: PeakSettings) -> float:
    """Return by how much logit 1 exceeds logit 0 at ``min_probability``."""
    return float(np.log(settings.min_probability) - np.log1p(-settings.min_probability))


def _said(array: Any) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.dtype} of shape {array.shape}"
    return f"a {type(array).__name__}"


# -- to and from the compiled part --------------------------------------------------------------------------------


def _parts(window: Window) -> tuple[int, int, int, int]:
    return int(window.top), int(window.left), int(window.height), int(window.width)


def _cut(window: Window) -> tuple[slice, slice]:
    return (
        slice(window.top, window.top + window.height),
        slice(window.left, window.left + window.width),
    )


def _sealed(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view that cannot be written to: Ray's arrays cannot, and one kind means one compiled version."""
    view = array.view()
    view.flags.writeable = False
    return view


def _measured(
    runs: NDArray[np.int32], starts: NDArray[np.int64], images: NDArray[Any] | None, window: Window,
    settings: PeakSettings, first_row: int,
) -> PeakTable:  # fmt: skip
    known = np.zeros((0, 0, 0), np.float32) if images is None else checked_images(images, len(starts) - 1, window)
    reals, integers = kernel.measure(
        runs, starts, int(window.height), int(window.width), _sealed(known), images is not None,
        settings.connectivity == 8, settings.centroid == "intensity", _RINGS[settings.background],
        *(float(px) for px in settings.ring_px), int(settings.min_pixels), int(settings.max_pixels or _MOST),
    )  # fmt: skip
    return _table(reals, integers, first_row)


def _table(reals: ArrayLike, integers: ArrayLike, first_row: int) -> PeakTable:
    """Make a table of the columns that `nightbeam.peaks.kernel.measure` returns."""
    real, integer = np.ascontiguousarray(np.transpose(reals)), np.ascontiguousarray(np.transpose(integers))
    names = ("y", "x", "total", "maximum", "background", "sigma", "snr")
    return PeakTable(
        row=integer[0] + first_row, n_pixels=integer[1], box=np.ascontiguousarray(integer[2:].T),
        **dict(zip(names, real, strict=False)),
    )  # fmt: skip


def _empty() -> PeakTable:
    return _table(np.zeros((0, 10)), np.zeros((0, 6), np.int64), 0)
