"""The arithmetic of every visibility, compiled."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["average_channels"]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def average_channels(
    data: Any, flags: Any, flag_row: Any, weights: Any, width: int, mean: Any, weight: Any
) -> None:  # fmt: skip
    """Average ``width`` neighbouring channels by weight; flagged and non-finite samples are left out.

    Parameters
    ----------
    data, flags : (row, chan, pol)
    flag_row : (row,)
    weights : (row, chan, pol) or (row, 1, pol), float32
    mean : (row, bin, pol), complex64
        Result; 0 where nothing was left.
    weight : (row, bin, pol), float32
        Result: the sum of the weights; 0 where nothing was left.
    """
    rows, bins, pols = mean.shape
    one = weights.shape[1] == 1
    for row in range(rows):
        for b in range(bins):
            for pol in range(pols):
                real, imag, total = 0.0, 0.0, 0.0
                if not flag_row[row]:
                    for chan in range(b * width, (b + 1) * width):
                        value = data[row, chan, pol]
                        w = weights[row, 0 if one else chan, pol]
                        if flags[row, chan, pol] or not (w > 0.0):
                            continue
                        if not (np.isfinite(value.real) and np.isfinite(value.imag) and np.isfinite(w)):
                            continue
                        real += w * value.real
                        imag += w * value.imag
                        total += w
                if total > 0.0:
                    mean[row, b, pol] = complex(real / total, imag / total)
                else:
                    mean[row, b, pol] = 0.0
                weight[row, b, pol] = total
