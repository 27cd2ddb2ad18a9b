"""Which rows belong together, and what spacings they have. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError

__all__ = ["cross_uv_range", "row_runs"]


def row_runs(labels: NDArray[np.integer], most: int) -> Iterator[NDArray[np.int64]]:
    """Yield row numbers of one label each, at most ``most`` at a time, label by label.

    Parameters
    ----------
    labels : (row,)
        Which data description each row has.
    most
        Rows in one block.

    Yields
    ------
    (n,)
        Ascending row numbers; consecutive wherever the rows of a label are.
    """
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        for begin in range(0, len(rows), most):
            yield rows[begin : begin + most]


def cross_uv_range(
    uvw_m: NDArray[np.floating], antenna1: NDArray[np.integer], antenna2: NDArray[np.integer]
) -> tuple[float, float]:
    """Return the shortest and longest projected spacing in metres, autocorrelations left out.

    Parameters
    ----------
    uvw_m : (row, 3)
    antenna1, antenna2 : (row,)

    Raises
    ------
    InputError
        If there are only autocorrelations.
    """
    spacing = np.hypot(uvw_m[:, 0], uvw_m[:, 1])[antenna1 != antenna2]
    if not spacing.size:
        raise InputError("there are only autocorrelations", fix="select rows with two different antennas")
    return float(spacing.min()), float(spacing.max())
