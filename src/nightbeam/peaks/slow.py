"""What `nightbeam.peaks.compute` does, written with scipy: slower, and easier to believe. For comparison."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nightbeam.peaks.compute import (
    checked_images,
    checked_window,
    join_tables,
    masks,
    masks_in_bits,
    masks_in_pixels,
    two_logits,
)
from nightbeam.peaks.model import PeakSettings, PeakTable, Window

__all__ = ["find_peaks", "find_peaks_in_bits", "find_peaks_in_pixels"]

_NEIGHBOURS = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}


def find_peaks(
    logits: NDArray[Any],
    images: NDArray[Any] | None,
    *,
    window: Window | None = None,
    settings: PeakSettings | None = None,
    first_row: int = 0,
) -> PeakTable:
    """Find the connected regions where class 1 wins (see `nightbeam.peaks.compute.find_peaks`)."""
    settings = settings or PeakSettings()
    table = _of_mask(masks(logits, window, settings), images, settings, first_row)
    pair = two_logits(logits, settings)
    at = checked_window(window, pair.shape[2:])
    odd = np.isnan(pair[:, :, at.top : at.top + at.height, at.left : at.left + at.width]).any(axis=1)
    return replace(table, nan_pixels=int(odd.sum()), nan_rows=int(odd.any(axis=(1, 2)).sum()))


def find_peaks_in_bits(
    bits: NDArray[np.uint8],
    width: int,
    images: NDArray[Any] | None,
    *,
    window: Window | None = None,
    settings: PeakSettings | None = None,
    first_row: int = 0,
) -> PeakTable:
    """Find the connected regions of bits (see `nightbeam.peaks.compute.find_peaks_in_bits`)."""
    return _of_mask(masks_in_bits(bits, width, window), images, settings or PeakSettings(), first_row)


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
    """Find the connected regions of listed pixels (see `nightbeam.peaks.compute.find_peaks_in_pixels`)."""
    return _of_mask(masks_in_pixels(pixels, rows, shape, window), images, settings or PeakSettings(), first_row)


def _of_mask(
    mask: NDArray[np.bool_], images: NDArray[Any] | None, settings: PeakSettings, first_row: int
) -> PeakTable:  # fmt: skip
    if images is not None:
        images = checked_images(images, len(mask), Window(0, 0, *mask.shape[1:]))
    some = [
        _of_panel(first_row + r, mask[r], None if images is None else images[r].astype(float), settings)
        for r in np.flatnonzero(mask.any(axis=(1, 2)))
    ]
    return join_tables(some)


def _of_panel(
    row: int, mask: NDArray[np.bool_], image: NDArray[np.float64] | None, settings: PeakSettings
) -> PeakTable:  # fmt: skip
    labels, _ = ndimage.label(mask, structure=_NEIGHBOURS[settings.connectivity])
    y, x = np.nonzero(mask)
    label = labels[y, x]
    # Labels by their first pixel, whatever order scipy gave them.
    first = np.sort(np.unique(label, return_index=True)[1])
    found = [_measured(y[label == k], x[label == k], mask, image, settings) for k in label[first]]
    kept = [one for one in found if settings.min_pixels <= one["n_pixels"] <= (settings.max_pixels or np.inf)]
    columns: dict[str, Any] = {name: np.array([one[name] for one in kept], kind) for name, kind in _KINDS.items()}
    columns["box"] = columns["box"].reshape(-1, 4)
    return PeakTable(row=np.full(len(kept), row, np.int64), **columns)


_KINDS = dict.fromkeys(("y", "x", "total", "maximum", "background", "sigma", "snr"), np.float64) | {
    "n_pixels": np.int64, "box": np.int64
}  # fmt: skip


def _measured(
    y: NDArray[np.int64], x: NDArray[np.int64], mask: NDArray[np.bool_], image: NDArray[np.float64] | None,
    settings: PeakSettings,
) -> dict[str, Any]:  # fmt: skip
    peak: dict[str, Any] = dict.fromkeys(_KINDS, 0.0)
    peak |= {"y": y.sum() / y.size, "x": x.sum() / x.size, "n_pixels": y.size}
    peak["box"] = (y.min(), y.max(), x.min(), x.max())
    if image is None:
        return peak
    if settings.background != "none":
        peak |= _ring(peak["y"], peak["x"], mask, image, settings)
    value = image[y, x]
    finite = np.isfinite(value)
    above = value[finite] - peak["background"]
    peak["total"] = above.sum()
    peak["maximum"] = value[finite].max() if finite.any() else 0.0
    if peak["sigma"] > 0:
        peak["snr"] = peak["total"] / (peak["sigma"] * np.sqrt(y.size))
    weight = np.maximum(above, 0)
    if settings.centroid == "intensity" and weight.sum() > 0:
        peak["y"], peak["x"] = (np.sum(weight * at[finite]) / weight.sum() for at in (y, x))
    return peak


def _ring(
    y: float, x: float, mask: NDArray[np.bool_], image: NDArray[np.float64], settings: PeakSettings
) -> dict[str, float]:  # fmt: skip
    inner, outer = settings.ring_px
    at_y, at_x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    square = (at_y - y) ** 2 + (at_x - x) ** 2
    around = image[(square >= inner**2) & (square <= outer**2) & ~mask & np.isfinite(image)]
    if not around.size:
        return {}
    middle = np.median(around) if settings.background == "ring" else np.mean(around)
    return {"background": float(middle), "sigma": float(np.std(around))}
