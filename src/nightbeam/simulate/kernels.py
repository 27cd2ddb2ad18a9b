"""The inner loop of the simulator, compiled.

A matrix product would say the same, but the library behind it splits matrices as small as these over
all cores and is then a hundred times slower on a machine that is doing something else.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["sum_sources"]


@njit(cache=True, fastmath=True, nogil=True)  # type: ignore[misc,untyped-decorator,unused-ignore]
def sum_sources(
    phasor: NDArray[np.complex128],
    power: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    out: NDArray[np.complex64],
) -> None:
    """Write ``sum_s power[c, s] conj(phasor[c, i, s]) phasor[c, j, s]`` of baseline b = (i, j) to ``out[b, c]``."""
    n_channels, _, n_sources = phasor.shape
    for b in range(len(first)):
        i, j = first[b], second[b]
        for c in range(n_channels):
            real = 0.0
            imag = 0.0
            for s in range(n_sources):
                one, two = phasor[c, i, s], phasor[c, j, s]
                real += power[c, s] * (one.real * two.real + one.imag * two.imag)
                imag += power[c, s] * (one.real * two.imag - one.imag * two.real)
            out[b, c] = complex(real, imag)
