"""Connected pixels, compiled: from logits, bits or lists of pixels to runs, and from runs to measured components.

A run is a row of neighbouring pixels of one line: line, first column, the column after its last. Runs are all that
the second step knows of a mask, so that the large array is read once, and line by line. Everything here lets go of
Python's lock: several threads may work on different rows of a batch.
`nightbeam.peaks.slow` does the same with scipy, for comparison.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["measure", "runs_of_bits", "runs_of_logits", "runs_of_pixels"]

#: Pixels that are looked at together where a line has some of a peak.
_BLOCK = 32
#: What the columns of the table of reals are: see `measure`.
_Y, _X, _TOTAL, _MAXIMUM, _BACKGROUND, _SIGMA, _SNR, _WEIGHT, _WEIGHT_Y, _WEIGHT_X = range(10)
#: What the columns of the table of integers are.
_ROW, _PIXELS, _FIRST_Y, _LAST_Y, _FIRST_X, _LAST_X = range(6)
#: Pixels, sums of their indices, and box of a component.
_COUNT, _SUM_Y, _SUM_X, _TOP, _BOTTOM, _LEFT, _RIGHT = range(7)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def runs_of_logits(
    logits: Any, top: int, left: int, height: int, width: int, strict: bool, least: float
) -> tuple[Any, Any, int, int]:
    """Return the runs of pixels where class 1 wins, and how many pixels and rows have logits that are no numbers.

    Parameters
    ----------
    logits : (row, 2, H, W), float32 or float64, C-contiguous
    top, left, height, width
        The part that is looked at; runs are counted from its first pixel.
    strict
        True: logit 1 must exceed logit 0; False: by ``least`` or more.
    least

    Returns
    -------
    runs : (n, 3), int32
    starts : (row + 1,), int64
        The first run of each row, and n.
    nan_pixels, nan_rows
    """
    runs, starts = np.empty((256, 3), np.int32), np.zeros(logits.shape[0] + 1, np.int64)
    number, nan_pixels, nan_rows = 0, 0, 0
    for r in range(logits.shape[0]):
        odd = 0
        for y in range(height):
            low = logits[r, 0, top + y, left : left + width]
            high = logits[r, 1, top + y, left : left + width]
            if not _has_some(low, high, strict, least):
                continue
            runs = _with_room(runs, number, width // 2 + 1)
            number, nans = _add_line(low, high, strict, least, y, runs, number)
            odd += nans
        nan_pixels += odd
        nan_rows += odd > 0
        starts[r + 1] = number
    return runs[:number], starts, nan_pixels, nan_rows


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def runs_of_bits(bits: Any, top: int, left: int, height: int, width: int) -> tuple[Any, Any]:
    """Return the runs of set bits; the highest bit of a byte is the first pixel, as `numpy.packbits` has it.

    Parameters
    ----------
    bits : (row, H, byte), uint8, C-contiguous
    top, left, height, width
        The part that is looked at, in pixels.

    Returns
    -------
    runs : (n, 3), int32
    starts : (row + 1,), int64
    """
    runs, starts, number = np.empty((256, 3), np.int32), np.zeros(bits.shape[0] + 1, np.int64), 0
    first, last = left >> 3, (left + width + 7) >> 3
    for r in range(bits.shape[0]):
        for y in range(height):
            line = bits[r, top + y, first:last]
            some = np.uint8(0)
            for byte in line:
                some |= byte
            if some == 0 or width == 0:
                continue
            runs = _with_room(runs, number, width // 2 + 1)
            number = _add_bits(line, left - 8 * first, width, y, runs, number)
        starts[r + 1] = number
    return runs[:number], starts


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def runs_of_pixels(pixels: Any, rows: int, top: int, left: int, height: int, width: int) -> tuple[Any, Any]:
    """Return the runs of listed pixels.

    Parameters
    ----------
    pixels : (n, 3), int32
        Row, y, x; ascending, none twice, rows within ``rows``.
    rows
    top, left, height, width
        The part that is looked at.

    Returns
    -------
    runs : (n, 3), int32
    starts : (row + 1,), int64
    """
    runs, starts, number = np.empty((pixels.shape[0], 3), np.int32), np.zeros(rows + 1, np.int64), 0
    row = 0
    for n in range(pixels.shape[0]):
        r, y, x = pixels[n, 0], pixels[n, 1] - top, pixels[n, 2] - left
        if y < 0 or y >= height or x < 0 or x >= width:
            continue
        while row < r:
            row += 1
            starts[row] = number
        if number > starts[r] and runs[number - 1, 0] == y and runs[number - 1, 2] == x:
            runs[number - 1, 2] = x + 1
        else:
            runs[number, 0], runs[number, 1], runs[number, 2] = y, x, x + 1
            number += 1
    starts[row + 1 :] = number
    return runs[:number], starts


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def measure(
    runs: Any,
    starts: Any,
    height: int,
    width: int,
    images: Any,
    has_images: bool,
    corners: bool,
    weighted: bool,
    ring: int,
    inner: float,
    outer: float,
    min_pixels: int,
    max_pixels: int,
) -> tuple[Any, Any]:
    """Join runs to components and measure them.

    Parameters
    ----------
    runs : (n, 3), int32
    starts : (row + 1,), int64
    height, width
        Of a panel.
    images : (row, height, width)
        Used if ``has_images``.
    has_images
    corners
        Whether pixels that touch at a corner are joined.
    weighted
        Whether centroids are weighted with intensities.
    ring
        0: background is 0; 1: median of the ring; 2: its mean.
    inner, outer
        Least and largest distance from the centroid of a pixel of the ring, pixels.
    min_pixels, max_pixels
        Sizes of components that are kept.

    Returns
    -------
    reals : (peak, 10), float64
        y, x, total, maximum, background, sigma, snr; the rest is of no interest.
    integers : (peak, 6), int64
        Row, pixels, first and last line, first and last column.
    """
    reals, integers, number = np.zeros((64, 10)), np.zeros((64, 6), np.int64), 0
    parent, component = np.empty(256, np.int32), np.empty(256, np.int32)
    moments, slot = np.empty((256, 7), np.int64), np.empty(256, np.int64)
    with_ring = has_images and ring != 0
    taken = np.zeros((height, width) if with_ring else (0, 0), np.bool_)
    values = np.empty(_ring_size(height, width, outer) if with_ring else 0)
    for r in range(starts.size - 1):
        here = runs[starts[r] : starts[r + 1]]
        if here.shape[0] == 0:
            continue
        if here.shape[0] > parent.size:
            room = 2 * here.shape[0]
            parent, component = np.empty(room, np.int32), np.empty(room, np.int32)
            moments, slot = np.empty((room, 7), np.int64), np.empty(room, np.int64)
        _join(here, parent, 1 if corners else 0)
        found = _sum_up(here, parent, component, moments)
        first = number
        reals, integers, number = _keep(r, moments[:found], slot, reals, integers, number, min_pixels, max_pixels)
        if not has_images or number == first:
            continue
        image = images[r]
        if with_ring:
            _paint(here, taken, True)
            for k in range(first, number):
                _look_around(image, taken, values, inner, outer, ring == 2, reals[k])
            _paint(here, taken, False)
        _add_intensities(here, component, slot, image, reals, weighted)
        _finish(reals[first:number], integers[first:number], weighted)
    return reals[:number], integers[:number]


# -- from pixels to runs ------------------------------------------------------------------------------------------


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _has_some(low: Any, high: Any, strict: bool, least: float) -> bool:
    """Whether there may be a pixel of a peak, or one that is no number: one comparison for both."""
    some = False
    if strict:
        for c in range(low.size):
            some |= not (high[c] <= low[c])
    else:
        for c in range(low.size):
            some |= not (np.float64(high[c]) - np.float64(low[c]) < least)
    return some


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_line(
    low: Any, high: Any, strict: bool, least: float, y: int, runs: Any, number: int
) -> tuple[int, int]:  # fmt: skip
    """Add the runs of a line; return how many there are then, and how many of its pixels are no numbers."""
    begin, nans = -1, 0
    for start in range(0, low.size, _BLOCK):
        stop = min(start + _BLOCK, low.size)
        if not _has_some(low[start:stop], high[start:stop], strict, least):
            if begin >= 0:
                number, begin = _add(runs, number, y, begin, start), -1
            continue
        for c in range(start, stop):
            a, b = low[c], high[c]
            hit = b > a if strict else np.float64(b) - np.float64(a) >= least
            nans += (a != a) | (b != b)
            if hit and begin < 0:
                begin = c
            elif not hit and begin >= 0:
                number, begin = _add(runs, number, y, begin, c), -1
    if begin >= 0:
        number = _add(runs, number, y, begin, low.size)
    return number, nans


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_bits(line: Any, skip: int, width: int, y: int, runs: Any, number: int) -> int:
    """Add the runs of a line of bytes; its first pixel is the bit ``skip``."""
    begin = -1
    for j in range(line.size):
        byte, start = line[j], 8 * j - skip
        if byte == 0:
            if begin >= 0:
                number, begin = _add(runs, number, y, begin, start), -1
            continue
        for c in range(max(0, start), min(width, start + 8)):
            hit = (byte >> (7 - (c - start))) & 1
            if hit and begin < 0:
                begin = c
            elif not hit and begin >= 0:
                number, begin = _add(runs, number, y, begin, c), -1
    if begin >= 0:
        number = _add(runs, number, y, begin, width)
    return number


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add(runs: Any, number: int, y: int, begin: int, end: int) -> int:
    runs[number, 0], runs[number, 1], runs[number, 2] = y, begin, end
    return number + 1


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _with_room(table: Any, number: int, more: int) -> Any:
    """Return the table, or a larger copy where ``more`` lines do not fit."""
    if number + more <= table.shape[0]:
        return table
    larger = np.empty((2 * (number + more), table.shape[1]), table.dtype)
    larger[:number] = table[:number]
    return larger


# -- from runs to components --------------------------------------------------------------------------------------


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _join(runs: Any, parent: Any, reach: int) -> None:
    """Let each run point towards the first of its component; ``reach`` is 1 where corners join."""
    above = 0
    for n in range(runs.shape[0]):
        parent[n] = n
        y, begin, end = runs[n, 0], runs[n, 1] - reach, runs[n, 2] + reach
        while runs[above, 0] < y - 1 or (runs[above, 0] == y - 1 and runs[above, 2] <= begin):
            above += 1
        k = above  # the last that touches may touch the next run, too
        while runs[k, 0] == y - 1 and runs[k, 1] < end:
            _unite(parent, n, k)
            k += 1


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _unite(parent: Any, n: int, k: int) -> None:
    """Join two trees; the smaller number becomes the root, and paths get shorter on the way."""
    while parent[n] != n:
        parent[n] = parent[parent[n]]
        n = parent[n]
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    if n < k:
        parent[k] = n
    else:
        parent[n] = k


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _sum_up(runs: Any, parent: Any, component: Any, moments: Any) -> int:
    """Number the components by their first run and sum up their pixels' indices; return how many there are."""
    found = 0
    for n in range(runs.shape[0]):
        y, begin, end = np.int64(runs[n, 0]), np.int64(runs[n, 1]), np.int64(runs[n, 2])
        if parent[n] == n:
            k, found = found, found + 1
            of = moments[k]
            of[_COUNT], of[_SUM_Y], of[_SUM_X] = 0, 0, 0
            of[_TOP], of[_LEFT], of[_RIGHT] = y, begin, end - 1
        else:
            k = component[parent[n]]
            of = moments[k]
        component[n] = k
        size = end - begin
        of[_COUNT] += size
        of[_SUM_Y] += size * y
        of[_SUM_X] += size * (begin + end - 1) // 2
        of[_BOTTOM] = y
        of[_LEFT], of[_RIGHT] = min(of[_LEFT], begin), max(of[_RIGHT], end - 1)
    return found


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _keep(
    row: int, moments: Any, slot: Any, reals: Any, integers: Any, number: int, min_pixels: int, max_pixels: int
) -> tuple[Any, Any, int]:
    """Give the components of a right size a line in both tables; the slot of the others is -1."""
    reals = _with_room(reals, number, moments.shape[0])
    integers = _with_room(integers, number, moments.shape[0])
    for k in range(moments.shape[0]):
        of = moments[k]
        if of[_COUNT] < min_pixels or of[_COUNT] > max_pixels:
            slot[k] = -1
            continue
        real, integer = reals[number], integers[number]
        real[:] = 0.0
        real[_Y], real[_X] = of[_SUM_Y] / of[_COUNT], of[_SUM_X] / of[_COUNT]
        integer[_ROW], integer[_PIXELS] = row, of[_COUNT]
        integer[_FIRST_Y], integer[_LAST_Y] = of[_TOP], of[_BOTTOM]
        integer[_FIRST_X], integer[_LAST_X] = of[_LEFT], of[_RIGHT]
        slot[k] = number
        number += 1
    return reals, integers, number


# -- intensities --------------------------------------------------------------------------------------------------


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _ring_size(height: int, width: int, outer: float) -> int:
    """The most pixels that a ring can have."""
    across = 2.0 * outer + 3.0
    return int(min(across, float(height))) * int(min(across, float(width)))


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _paint(runs: Any, taken: Any, value: bool) -> None:
    for n in range(runs.shape[0]):
        taken[runs[n, 0], runs[n, 1] : runs[n, 2]] = value


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _look_around(
    image: Any, taken: Any, values: Any, inner: float, outer: float, of_mean: bool, real: Any
) -> None:  # fmt: skip
    """Fill in the background and its standard deviation from the ring around a centroid."""
    at_y, at_x, number, total = real[_Y], real[_X], 0, 0.0
    near, far = inner * inner, outer * outer
    first_y, last_y = _between(at_y, outer, image.shape[0])
    first_x, last_x = _between(at_x, outer, image.shape[1])
    for y in range(first_y, last_y):
        dy = (y - at_y) * (y - at_y)
        for x in range(first_x, last_x):
            square = dy + (x - at_x) * (x - at_x)
            if square < near or square > far or taken[y, x]:
                continue
            value = np.float64(image[y, x])
            if value - value == 0.0:
                values[number] = value
                total += value
                number += 1
    if number == 0:
        return
    mean, scatter = total / number, 0.0
    for n in range(number):
        scatter += (values[n] - mean) * (values[n] - mean)
    real[_SIGMA] = np.sqrt(scatter / number)
    real[_BACKGROUND] = mean if of_mean else _median(values[:number])


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _between(at: float, outer: float, size: int) -> tuple[int, int]:
    """First index that a ring may touch, and the one after its last."""
    return int(max(0.0, np.floor(at - outer))), int(min(float(size), np.ceil(at + outer) + 1.0))


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _median(values: Any) -> float:
    """The middle value, or the mean of the middle two; the values are moved about."""
    middle = values.size // 2
    low, high = 0, values.size - 1
    while low < high:
        pivot, i, j = values[(low + high) // 2], low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i, j = i + 1, j - 1
        if middle <= j:
            high = j
        elif middle >= i:
            low = i
        else:
            break
    if values.size % 2:
        return float(values[middle])
    below = values[0]
    for n in range(1, middle):
        below = max(below, values[n])
    return float((below + values[middle]) / 2.0)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_intensities(
    runs: Any, component: Any, slot: Any, image: Any, reals: Any, weighted: bool
) -> None:  # fmt: skip
    """Sum up what exceeds the background in each component that is kept, and find its brightest pixel."""
    for n in range(runs.shape[0]):
        at = slot[component[n]]
        if at < 0:
            continue
        real, y, line = reals[at], runs[n, 0], image[runs[n, 0]]
        background, total = real[_BACKGROUND], real[_TOTAL]
        # SNR is not known yet: its place says whether there was a pixel.
        known, maximum = real[_SNR] > 0.0, real[_MAXIMUM]
        for x in range(runs[n, 1], runs[n, 2]):
            value = np.float64(line[x])
            if value - value != 0.0:
                continue
            total += value - background
            maximum = max(maximum, value) if known else value
            known = True
            if weighted:
                weight = max(value - background, 0.0)
                real[_WEIGHT] += weight
                real[_WEIGHT_Y] += weight * y
                real[_WEIGHT_X] += weight * x
        real[_TOTAL], real[_MAXIMUM], real[_SNR] = total, maximum, 1.0 if known else 0.0


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _finish(reals: Any, integers: Any, weighted: bool) -> None:
    """Fill in what follows from the sums."""
    for k in range(reals.shape[0]):
        real = reals[k]
        noise = real[_SIGMA] * np.sqrt(float(integers[k, _PIXELS]))
        real[_SNR] = real[_TOTAL] / noise if noise > 0.0 else 0.0
        if weighted and real[_WEIGHT] > 0.0:
            real[_Y], real[_X] = real[_WEIGHT_Y] / real[_WEIGHT], real[_WEIGHT_X] / real[_WEIGHT]
