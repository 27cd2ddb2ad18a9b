"""Connected pixels, compiled: from logits, bits or lists of pixels to runs, and from runs to measured components.

A run is a row of neighbouring pixels of one line: line, first column, the column after its last. Runs are all that
the second step knows of a mask, so that the large array is read once, and line by line. Everything here lets go of
Python's lock: several threads may work on different rows of a batch.
`nightbeam.peaks.slow` does the same with scipy, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

__all__ = ["measure", "runs_of_bits", "runs_of_logits", "runs_of_pixels"]

#: Pixels that are looked at together where a line has some of a peak.
_BLOCK = 32
#: Pixels of a line of a ring that are looked at together.
_ARC = 16
#: Bytes with their bits in the other order.
_BACKWARDS = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0].astype(
    np.uint64
)
#: Pixels that a bound of a ring may be wrong by; which pixels belong to it is decided by their distance.
_ROUNDING = 1e-3
#: Standard deviations from the mean within which a median is sought first.
_CLOSE = 0.3
#: Numbers that are compared each with each.
_FEW = 48
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
    words = np.empty((height, (width + _BLOCK - 1) // _BLOCK), np.uint64)
    some = np.empty(height, np.bool_)
    for r in range(logits.shape[0]):
        panel = logits[r, :, top : top + height, left : left + width]
        # All of a panel before the first run is looked for: a wrong guess of a branch would hold up the memory.
        if _compare(panel, strict, least, words, some):
            nans = _clear_odd(panel, strict, least, words, some)
            nan_pixels += nans
            nan_rows += nans > 0
            for y in range(height):
                if some[y]:
                    runs = _with_room(runs, number, width // 2 + 1)
                    number = _add_line(words[y], width, y, runs, number)
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
    for r in range(bits.shape[0]):
        for y in range(height):
            line, some = bits[r, y + top], np.uint8(0)
            for byte in line:
                some |= byte
            if some != 0:
                runs = _with_room(runs, number, width // 2 + 1)
                number = _add_packed(line, left, width, y, runs, number)
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
    size = _across(height, outer) * _across(width, outer) + 1 if with_ring else 0
    values, spare, squares = np.empty(size), np.empty(size + 16), np.empty(_across(width, outer) + _ARC)
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
            _fetch_around(image, outer, reals[first])
            for k in range(first, number):
                _fetch_around(image, outer, reals[min(k + 1, number - 1)])
                _look_around(image, taken, values, spare, squares, inner, outer, ring == 2, reals[k])
            _paint(here, taken, False)
        _add_intensities(here, component, slot, image, reals, weighted)
        _finish(reals[first:number], integers[first:number], weighted)
    return reals[:number], integers[:number]


# -- one instruction for many pixels -----------------------------------------------------------------------------


def _of_block(test: Callable[[Any, Any, Any, Any], Any]) -> Any:
    """Return a function of two lines, a column and a threshold: a bit for each of 32 pixels, tested all at once.

    Neighbours on a line must be neighbours in memory, and the line long enough: nothing checks it.
    """

    def compare(typing: Any, high: Any, low: Any, start: Any, least: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def block(n: int) -> Any:
                kind = signature.args[n]
                item = context.get_value_type(kind.dtype)
                begin = builder.gep(context.make_array(kind)(context, builder, args[n]).data, [args[2]])
                many = builder.bitcast(begin, ir.VectorType(item, _BLOCK).as_pointer())
                return builder.load(many, align=kind.dtype.bitwidth // 8)

            bits = builder.bitcast(test(builder, block(0), block(1), args[3]), ir.IntType(_BLOCK))
            return builder.zext(bits, ir.IntType(64))

        return types.uint64(high, low, types.intp, types.float64), generate

    return intrinsic(compare)


def _step(builder: Any, high: Any, low: Any) -> Any:
    """By how much one exceeds the other, in double precision."""
    wide = ir.VectorType(ir.DoubleType(), _BLOCK)
    return builder.fsub(*(one if one.type == wide else builder.fpext(one, wide) for one in (high, low)))


def _each(builder: Any, value: Any, number: int = _BLOCK) -> Any:
    """The same number for each pixel of a block."""
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, number), ir.Undefined), value, _FIRST)
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), number), [0] * number))


_FIRST = ir.Constant(ir.IntType(32), 0)
_above = _of_block(lambda build, high, low, _: build.fcmp_ordered(">", high, low))
_reaches = _of_block(
    lambda build, high, low, least: build.fcmp_ordered(">=", _step(build, high, low), _each(build, least))
)
# True of numbers that are none, too: one test for both.
_above_or_odd = _of_block(lambda build, high, low, _: build.fcmp_unordered(">", high, low))
_reaches_or_odd = _of_block(
    lambda build, high, low, least: build.fcmp_unordered(">=", _step(build, high, low), _each(build, least))
)
_odd = _of_block(lambda build, high, low, _: build.fcmp_unordered("uno", high, low))


@intrinsic
def _on_ring(typing: Any, squares: Any, start: Any, more: Any, near: Any, far: Any) -> Any:  # noqa: ARG001
    """A bit for each of 16 squares whose sum with ``more`` is neither below ``near`` nor above ``far``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        begin = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        block = builder.load(builder.bitcast(begin, ir.VectorType(ir.DoubleType(), _ARC).as_pointer()), align=8)
        more, near, far = (_each(builder, one, _ARC) for one in args[2:])
        total = builder.fadd(block, more)
        inside = builder.and_(builder.fcmp_ordered(">=", total, near), builder.fcmp_ordered("<=", total, far))
        return builder.zext(builder.bitcast(inside, ir.IntType(_ARC)), ir.IntType(64))

    return types.uint64(squares, types.intp, types.float64, types.float64, types.float64), generate


@intrinsic
def _fetch(typing: Any, line: Any, at: Any) -> Any:  # noqa: ARG001
    """Ask for a pixel that will be wanted soon, and do not wait for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, number = signature.args[0], ir.IntType(32)
        array = context.make_array(kind)(context, builder, args[0])
        place = builder.bitcast(builder.gep(array.data, [args[1]]), ir.IntType(8).as_pointer())
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", (place.type,), ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        )
        builder.call(prefetch, [place, *(ir.Constant(number, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(line, types.intp), generate


@intrinsic
def _zeros_below(typing: Any, bits: Any) -> Any:  # noqa: ARG001
    """How many bits from the lowest are 0; 64 if all are."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def _ones(typing: Any, bits: Any) -> Any:  # noqa: ARG001
    """How many bits are 1."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(args[0])

    return types.int64(types.uint64), generate


# -- from pixels to runs ------------------------------------------------------------------------------------------


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _compare(panel: Any, strict: bool, least: float, words: Any, some: Any) -> bool:
    """Fill in a bit for each pixel that is of a peak or no number, and whether a line has any; return if one has."""
    any_line, whole = False, panel.shape[2] // _BLOCK
    for y in range(panel.shape[1]):
        low, high, line, found = panel[0, y], panel[1, y], words[y], np.uint64(0)
        if strict:
            for n in range(whole):
                line[n] = _above_or_odd(high, low, _BLOCK * n, least)
                found |= line[n]
        else:
            for n in range(whole):
                line[n] = _reaches_or_odd(high, low, _BLOCK * n, least)
                found |= line[n]
        if whole < line.size:
            bits, odd = _one_by_one(low, high, _BLOCK * whole, strict, least)
            line[whole] = bits | odd
            found |= line[whole]
        some[y] = found != 0
        any_line |= some[y]
    return any_line


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _clear_odd(panel: Any, strict: bool, least: float, words: Any, some: Any) -> int:
    """Leave the bits of pixels of peaks alone, and return how many pixels are no numbers."""
    number, whole = 0, panel.shape[2] // _BLOCK
    for y in range(panel.shape[1]):
        if not some[y]:
            continue
        low, high, line = panel[0, y], panel[1, y], words[y]
        for n in range(line.size):
            if line[n] == 0:
                continue
            if n == whole:
                line[n], odd = _one_by_one(low, high, _BLOCK * n, strict, least)
            else:
                odd = _odd(high, low, _BLOCK * n, least)
                if strict:
                    line[n] = _above(high, low, _BLOCK * n, least)
                else:
                    line[n] = _reaches(high, low, _BLOCK * n, least)
            number += _ones(odd)
    return number


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _one_by_one(low: Any, high: Any, start: int, strict: bool, least: float) -> tuple[Any, Any]:
    """Which pixels of the last block are of a peak, and which are no numbers, as bits."""
    bits, odd = np.uint64(0), np.uint64(0)
    for c in range(low.size - start):
        a, b = low[start + c], high[start + c]
        hit = b > a if strict else np.float64(b) - np.float64(a) >= least
        bits |= np.uint64(hit) << np.uint64(c)
        odd |= np.uint64((a != a) | (b != b)) << np.uint64(c)
    return bits, odd


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_line(words: Any, width: int, y: int, runs: Any, number: int) -> int:
    """Add the runs of a line of blocks; return how many there are then."""
    begin = -1
    for n in range(words.size):
        if words[n] != 0 or begin >= 0:
            size = min(_BLOCK, width - _BLOCK * n)
            number, begin = _add_bits(words[n], size, _BLOCK * n, y, begin, runs, number)
    return _add(runs, number, y, begin, width) if begin >= 0 else number


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_bits(bits: Any, size: int, start: int, y: int, begin: int, runs: Any, number: int) -> tuple[int, int]:
    """Add the runs of a block of pixels, the lowest bit first; an open run begins at ``begin``, or -1."""
    at = 0
    while True:
        if begin < 0:
            left = bits >> np.uint64(at)
            if left == 0:
                return number, -1
            at += _zeros_below(left)
            begin = start + at
        at += _zeros_below(~(bits >> np.uint64(at)))
        if at >= size:
            return number, begin
        number, begin = _add(runs, number, y, begin, start + at), -1


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_packed(line: Any, left: int, width: int, y: int, runs: Any, number: int) -> int:
    """Add the runs of a line of bytes from the pixel ``left``."""
    begin, at = -1, 0
    while at < width:
        j, skip = (left + at) >> 3, (left + at) & 7
        size = min(8 - skip, width - at)
        byte = line[j]
        if byte != 0 or begin >= 0:
            bits = (_BACKWARDS[byte] >> np.uint64(skip)) & ((np.uint64(1) << np.uint64(size)) - np.uint64(1))
            number, begin = _add_bits(bits, size, at, y, begin, runs, number)
        at += size
    return _add(runs, number, y, begin, width) if begin >= 0 else number


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
def _across(size: int, outer: float) -> int:
    """The most pixels of a line that a ring can touch."""
    return int(min(2.0 * outer + 3.0, float(size)))


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _paint(runs: Any, taken: Any, value: bool) -> None:
    for n in range(runs.shape[0]):
        line = taken[runs[n, 0]]
        for x in range(runs[n, 1], runs[n, 2]):
            line[x] = value


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _look_around(
    image: Any,
    taken: Any,
    values: Any,
    spare: Any,
    squares: Any,
    inner: float,
    outer: float,
    of_mean: bool,
    real: Any,
) -> None:
    """Fill in the background and its standard deviation from the ring around a centroid."""
    number = _gather(image, taken, values, squares, inner * inner, outer * outer, real[_Y], real[_X])
    if number == 0:
        return
    around = values[:number]
    mean = _sum(around) / number
    sigma = np.sqrt(_scatter(around, mean) / number)
    real[_SIGMA] = sigma
    real[_BACKGROUND] = mean if of_mean else _median(around, spare, mean, sigma)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _fetch_around(image: Any, outer: float, real: Any) -> None:
    """Ask for the lines of a ring before it is its turn: most of them are far from the processor."""
    first, last = _first(real[_X] - outer), _past(real[_X] + outer, image.shape[1]) - 1
    for y in range(_first(real[_Y] - outer), _past(real[_Y] + outer, image.shape[0])):
        _fetch(image[y], first)
        _fetch(image[y], last)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _gather(
    image: Any, taken: Any, values: Any, squares: Any, near: float, far: float, at_y: float, at_x: float
) -> int:
    """Collect the pixels of a ring that are free and finite; ``near`` and ``far`` are squares of distances."""
    number, reach = 0, np.sqrt(far)
    first, past = _first(at_x - reach), _past(at_x + reach, image.shape[1])
    squares[:] = np.inf
    for x in range(first, past):
        squares[x - first] = (x - at_x) * (x - at_x)
    for y in range(_first(at_y - reach), _past(at_y + reach, image.shape[0])):
        dy, line, covered = (y - at_y) * (y - at_y), image[y], taken[y]
        for start in range(0, past - first, _ARC):
            bits = _on_ring(squares, start, dy, near, far)
            while bits != 0:
                x = first + start + _zeros_below(bits)
                bits &= bits - np.uint64(1)
                # Written in any case, and counted if wanted: a branch here would be guessed wrong too often.
                values[number] = value = np.float64(line[x])
                number += (not covered[x]) & (value - value == 0.0)
    return number


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _first(at: float) -> int:
    """The first index that is not below, give or take a rounding error."""
    return int(max(np.ceil(at - _ROUNDING), 0.0))


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _past(at: float, size: int) -> int:
    """One more than the last index that is not above, give or take a rounding error."""
    return int(max(min(np.floor(at + _ROUNDING) + 1.0, float(size)), 0.0))


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})  # type: ignore[untyped-decorator]
def _sum(values: Any) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})  # type: ignore[untyped-decorator]
def _scatter(values: Any, mean: float) -> float:
    total = 0.0
    for value in values:
        total += (value - mean) * (value - mean)
    return total


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _median(values: Any, spare: Any, mean: float, sigma: float) -> float:
    """The middle value, or the mean of the middle two; the values are moved about.

    Nearly always it is close to the mean: it is sought among the few there.
    """
    low, high, below, inside = mean - _CLOSE * sigma, mean + _CLOSE * sigma, 0, 0
    for value in values:
        spare[inside] = value
        inside += (value >= low) & (value <= high)
        below += value < low
    middle, even = values.size // 2, values.size % 2 == 0
    if below <= middle - even and middle < below + inside:
        if inside <= _FEW:
            return _middle_of_few(spare, inside, middle - below, even)
        return _middle(spare[:inside], middle - below, even)
    return _middle(values, middle, even)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _middle_of_few(values: Any, number: int, middle: int, even: bool) -> float:
    """What `_middle` does, by counting how many are smaller than each: more work, and no branch to guess wrong."""
    padded = (number + 15) & ~15
    for n in range(number, padded):
        values[n] = np.inf
    at, before = -np.inf, -np.inf
    for value in values[:number]:
        below = 0
        for other in values[:padded]:
            below += other < value
        at = max(at, value if below <= middle else -np.inf)
        before = max(before, value if below < middle else -np.inf)
    return (before + at) / 2.0 if even else at


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _middle(values: Any, middle: int, even: bool) -> float:
    """The value with ``middle`` smaller ones, or its mean with the next smaller (Hoare's quickselect)."""
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
    if not even:
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
