"""The two loops that every visibility goes through, compiled. They run without Python's lock."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["gather_chunks", "rotate_rows"]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def gather_chunks(chunks: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Lay chunks (row chunk, chan chunk, pol chunk, row, chan, pol) out as rows (row, chan, pol)."""
    n_rows, n_chans, n_pols = out.shape
    height, width, depth = chunks.shape[3:]
    for row in range(n_rows):
        block, inside = row // height, row % height
        for c in range(chunks.shape[1]):
            for p in range(chunks.shape[2]):
                for chan in range(min(width, n_chans - c * width)):
                    for pol in range(min(depth, n_pols - p * depth)):
                        out[row, c * width + chan, p * depth + pol] = chunks[block, c, p, inside, chan, pol]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def rotate_rows(  # pragma: no cover - compiled
    vis: Any,
    flags: Any,
    nsamples: Any,
    turn_first: Any,
    turn_step: Any,
    conjugate: Any,
    auto: Any,
    falling: bool,
    data: Any,
    flag: Any,
    spectrum: Any,
    weight: Any,
    sigma: Any,
    row_flag: Any,
    counts: Any,
) -> None:
    """Bring rows of a subband to the new phase centre and into the order of a Measurement Set.

    Parameters
    ----------
    vis, flags, nsamples : (row, chan, pol)
        As in the file.
    turn_first, turn_step : (row,)
        Phase (rad) to add in the first channel of the file, and from each channel to the next.
    conjugate, auto : (row,), bool
        Rows to conjugate after the turn; rows that are autocorrelations.
    falling
        Whether the file's frequencies fall, so that channels must be reversed.
    data, flag, spectrum : (row, chan, pol), out
    weight, sigma : (row, pol), out
        Mean of ``spectrum`` over unflagged channels (1 where there are none), and its inverse root.
    row_flag : (row,), out
        Whether all of a row is flagged.
    counts : (3,), in and out
        Cross-correlations: exact zeros, not finite, flagged altogether.
    """
    n_rows, n_chans, n_pols = vis.shape
    one = np.float32(1.0)
    for row in range(n_rows):
        turn = complex(np.cos(turn_first[row]), np.sin(turn_first[row]))
        step = complex(np.cos(turn_step[row]), np.sin(turn_step[row]))
        mirror = np.float32(-1.0) if conjugate[row] else one
        all_bad = True
        for pol in range(n_pols):
            weight[row, pol] = 0.0
            sigma[row, pol] = 0.0
        for chan in range(n_chans):
            to = n_chans - 1 - chan if falling else chan
            c, s = np.float32(turn.real), np.float32(turn.imag)
            for pol in range(n_pols):
                value, samples = vis[row, chan, pol], nsamples[row, chan, pol]
                re, im = value.real, value.imag
                finite = np.isfinite(re) and np.isfinite(im)
                zero = re == 0.0 and im == 0.0
                good_weight = np.isfinite(samples) and samples > 0.0
                bad = flags[row, chan, pol] or not finite or zero or not good_weight or auto[row]
                if not auto[row]:
                    counts[0] += zero
                    counts[1] += not finite
                    counts[2] += bad
                if finite:
                    data[row, to, pol] = complex(re * c - im * s, mirror * (re * s + im * c))
                else:
                    data[row, to, pol] = 0.0
                flag[row, to, pol] = bad
                spectrum[row, to, pol] = samples if good_weight else one
                if not bad:
                    all_bad = False
                    weight[row, pol] += samples
                    sigma[row, pol] += one
            turn *= step
        row_flag[row] = all_bad
        for pol in range(n_pols):
            mean = weight[row, pol] / sigma[row, pol] if sigma[row, pol] > 0.0 else one
            weight[row, pol] = mean
            sigma[row, pol] = one / np.sqrt(mean)
