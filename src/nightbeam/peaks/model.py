"""What a peak is, and what is asked of the finder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import ConfigError

__all__ = ["PeakSettings", "PeakTable", "Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """The detector's pixels within the larger panel that the network saw.

    Attributes
    ----------
    top, left
        Row and column of the network's panel where the detector's first pixel is.
    height, width
        Of the detector's panel.
    """

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class PeakSettings:
    """How a mask is made of logits, and what is measured of its components.

    Attributes
    ----------
    min_probability
        A pixel is of a peak where its softmax probability of class 1 exceeds (0.5) or reaches this.
    connectivity
        8: pixels that touch at a corner are one component; 4: only at a side.
    centroid
        ``mass``: mean index of the component's pixels; ``intensity``: weighted with what exceeds the background.
    background
        ``ring``: median of the pixels 5 to 7 px from the centroid that are in no component; ``ring-mean``: their mean;
        ``none``: 0.
    min_pixels, max_pixels
        Smaller or larger components are no peaks; their pixels are no background either.
    ring_px
        Least and largest distance from the (unweighted) centroid of the pixels of a ring, both included.

    Raises
    ------
    ConfigError
        If a value makes no sense.
    """

    min_probability: float = 0.5
    connectivity: Literal[4, 8] = 8
    centroid: Literal["mass", "intensity"] = "mass"
    background: Literal["ring", "ring-mean", "none"] = "ring"
    min_pixels: int = 1
    max_pixels: int | None = None
    ring_px: tuple[float, float] = (5.0, 7.0)

    def __post_init__(self) -> None:
        if not 0.0 < self.min_probability < 1.0:
            raise ConfigError(f"min_probability is {self.min_probability}", fix="give one between 0 and 1")
        if self.connectivity not in (4, 8):
            raise ConfigError(f"connectivity is {self.connectivity}", fix="give 4 or 8")
        if self.min_pixels < 1 or (self.max_pixels is not None and self.max_pixels < self.min_pixels):
            raise ConfigError(f"min_pixels is {self.min_pixels}, max_pixels {self.max_pixels}", fix="1 <= min <= max")
        if self.centroid not in ("mass", "intensity") or self.background not in ("ring", "ring-mean", "none"):
            raise ConfigError(f"centroid is {self.centroid!r}, background {self.background!r}",
                              fix="mass or intensity; ring, ring-mean or none")  # fmt: skip
        if len(self.ring_px) != 2 or not 0.0 <= self.ring_px[0] <= self.ring_px[1] < 1e6:
            raise ConfigError(
                f"ring_px is {self.ring_px}", fix="give two distances from the centroid, 0 <= inner <= outer"
            )


@dataclass(frozen=True, slots=True, eq=False)
class PeakTable:
    """The peaks of some rows of a batch, by row, then by their first pixel in raster order.

    A row is one panel of one event: ``event * panels + panel``.

    Attributes
    ----------
    row : (n,), int64
        Which row of the batch.
    y, x : (n,), float64
        Centroid within the detector's panel, pixel indices: the centre of the first pixel is (0, 0).
    n_pixels : (n,), int64
        Size of the component.
    total : (n,), float64
        Sum of what exceeds the background; 0 without an image.
    maximum : (n,), float64
        Brightest pixel, background not subtracted.
    background, sigma : (n,), float64
        Of the ring; 0 where it is empty.
    snr : (n,), float64
        ``total / (sigma * sqrt(n_pixels))``; 0 where sigma is 0.
    box : (n, 4), int64
        First and last row, first and last column of the component.
    nan_pixels
        Pixels whose logits were not a number; they are background.
    nan_rows
        Rows that have any.
    """

    row: NDArray[np.int64]
    y: NDArray[np.float64]
    x: NDArray[np.float64]
    n_pixels: NDArray[np.int64]
    total: NDArray[np.float64]
    maximum: NDArray[np.float64]
    background: NDArray[np.float64]
    sigma: NDArray[np.float64]
    snr: NDArray[np.float64]
    box: NDArray[np.int64]
    nan_pixels: int = 0
    nan_rows: int = 0

    def __len__(self) -> int:
        return len(self.row)

    def select(self, which: NDArray[Any] | slice) -> Self:
        """Return some of the peaks, by index or by mask; what is said of NaN stays."""
        arrays = {f.name: getattr(self, f.name)[which] for f in fields(self) if not f.name.startswith("nan_")}
        return type(self)(**arrays, nan_pixels=self.nan_pixels, nan_rows=self.nan_rows)
