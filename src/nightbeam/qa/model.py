"""What quality control leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_BYTES", "QaArtifact", "VisibilitySample"]

#: Figures are embedded in web pages as data URIs.
MOST_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class QaArtifact:
    """One file of a group's quality control; ``name`` is unique within the group."""

    group_id: str
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class VisibilitySample:
    """Some unflagged cross-correlations, spread evenly over a Measurement Set.

    Attributes
    ----------
    column
        Where ``amplitude`` comes from.
    u_klambda, v_klambda : (n,)
        At the middle of each row's window.
    amplitude : (n,)
        Mean over the unflagged channels and products of the row, Jy (or the correlator's unit).
    """

    column: str
    u_klambda: NDArray[np.float64]
    v_klambda: NDArray[np.float64]
    amplitude: NDArray[np.float64]
