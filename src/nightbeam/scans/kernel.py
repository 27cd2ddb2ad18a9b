"""The arithmetic of every sample, compiled: the mean of some dumps, and antenna temperatures in place of counts.

A sample that cannot be used becomes a NaN that carries its flags in its lowest byte
(`nightbeam.scans.model.flags_of`), so that no second array as long as the data is needed. `nightbeam.scans.slow` does
the same with numpy, for comparison.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["QUIET_NAN", "average", "calibrate_pixel", "flag_bytes", "known_steps", "seen_at"]

#: Of float32, about: what is infinite lies beyond.
_LARGEST = np.float32(3e38)
#: Bits of a float32 that is not a number; flags are added to it.
QUIET_NAN = 0x7FC00000
#: Channels worked on at a time: what the dumps of a pixel share stays in the cache.
_STRIP = 8192
#: Channels of a spectrum that the median of its system temperature is taken of, at most.
_SAMPLE = 256

#: Neighbours that stand out so many sigma make a line of what else would be a spike.
LINE_SIGMA = 3.0

_NOT_FINITE, _DEAD, _SATURATED, _OPAQUE, _SPIKE = 1, 2, 4, 32, 64


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def average(
    counts: Any, dumps: Any, weights: Any, usable: Any, ceiling: float, zero_is_dead: bool, mean: Any, flag: Any,
    seconds: Any,
) -> None:  # fmt: skip
    """Average some dumps of each pixel; samples that are not finite or dead are left out.

    Where one is saturated there is no mean: those that just escaped the ceiling are too low as a rule.

    Parameters
    ----------
    counts : (dump, pixel, channel)
    dumps, weights : (n,)
    usable : (n, pixel), bool
    ceiling
        Of the digitizer; infinite where there is none.
    mean : (pixel, channel), float64
        Result; NaN where nothing was left.
    flag : (pixel, channel), uint8
        Result: why nothing was left.
    seconds : (pixel,)
        Result: integration time of what was left, as the mean over the channels that have some.
    """
    pixels, channels = mean.shape
    total, weight = np.empty(channels), np.empty(channels)
    for p in range(pixels):
        total[:] = 0.0
        weight[:] = 0.0
        any_used = False
        for k in range(dumps.size):
            if not usable[k, p]:
                continue
            any_used = True
            row, w = counts[dumps[k], p], weights[k]
            for c in range(channels):
                x = np.float64(row[c])
                good = (x - x == 0.0) & (x < ceiling) & ((x != 0.0) | (not zero_is_dead))
                total[c] += w * x if good else 0.0
                weight[c] += w if good else (-np.inf if (x >= ceiling) & (x - x == 0.0) else 0.0)
        some, number = 0.0, 0
        for c in range(channels):
            mean[p, c] = total[c] / weight[c] if weight[c] > 0.0 else np.nan
            flag[p, c] = 0
            some += max(weight[c], 0.0)
            number += weight[c] > 0.0
        seconds[p] = some / number if number > 0 else 0.0
        if not any_used:
            continue
        for c in range(channels):
            if weight[c] > 0.0:
                continue
            for k in range(dumps.size):
                if usable[k, p]:
                    x = np.float64(counts[dumps[k], p, c])
                    if not np.isfinite(x):
                        flag[p, c] |= _NOT_FINITE
                    elif x >= ceiling:
                        flag[p, c] |= _SATURATED
                    elif x == 0.0 and zero_is_dead:
                        flag[p, c] |= _DEAD


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def flag_bytes(bits: Any, out: Any) -> Any:
    """Take the flags out of samples (see `nightbeam.scans.model.flags_of`), and count the flagged and saturated ones.

    Parameters
    ----------
    bits : (dump, pixel, channel), uint32
        The samples' own memory.
    out : (dump, pixel, channel), uint8
    """
    flagged, saturated = 0, 0
    for n in range(bits.shape[0]):
        for p in range(bits.shape[1]):
            source, target = bits[n, p], out[n, p]
            odd = np.uint8(0)
            for c in range(target.size):
                x = source[c]
                flag = (
                    np.uint8(x & np.uint32(0xFF))
                    if (x & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
                    else np.uint8(0)
                )
                target[c] = flag
                odd |= flag
            if odd != 0:
                for c in range(target.size):
                    flagged += target[c] != 0
                    saturated += (target[c] & _SATURATED) != 0
    return flagged, saturated


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def known_steps(spectra: Any, some: Any, sigma: Any, out: Any) -> int:
    """Fill ``out`` with the steps between neighbours, over their spectrum's noise, and return how many are numbers.

    Parameters
    ----------
    spectra : (dump, channel), float32
    some : (n,)
        Dumps that are looked at.
    sigma : (dump,), float32
    out : (at least n (channel - 1),), float32
    """
    known = 0
    for n in some:
        row, noise = spectra[n], sigma[n]
        for c in range(row.size - 1):
            step = abs(row[c + 1] - row[c]) / noise
            out[known] = step
            known += step == step
    return int(known)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def seen_at(t_rec: Any, part_s: Any, part_i: Any, sky_s: Any, sky_i: Any, ground: Any, out: Any) -> None:
    """Fill ``T_rec + J_sky`` of a pixel at each visit: (visit, channel); the parts are ``F g`` of the sidebands."""
    for v in range(out.shape[0]):
        signal, image, row = sky_s[v], sky_i[v], out[v]
        for c in range(row.size):
            row[c] = np.float32(t_rec[c] + part_s[c] * signal[c] + part_i[c] * image[c] + ground[c])


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def calibrate_pixel(
    counts: Any,
    out: Any,
    out_bits: Any,
    p: int,
    on: Any,
    before: Any,
    after: Any,
    weight_after: Any,
    noise: Any,
    user: Any,
    zero: Any,
    off: Any,
    off_flag: Any,
    seen: Any,
    gain: Any,
    gain_slope: Any,
    gain_at: Any,
    by_loads: bool,
    through_s: Any,
    inverse_s: Any,
    least_inverse: Any,
    through_i: Any,
    tr_i: Any,
    air_row: Any,
    base_flag: Any,
    ceiling: float,
    spike_sigma: float,
    sigma: Any,
) -> None:
    """Turn the counts of a pixel into antenna temperatures, dump by dump.

    Parameters
    ----------
    counts : (dump, pixel, channel), float32
    out, out_bits : (n, pixel, channel), float32, and the same memory as uint32
        Results; may be the first dumps of ``counts`` itself.
    on : (n,)
        Dumps on the source, ascending.
    before, after, weight_after : (n,)
        Visits to the reference, and how much of the later one.
    noise : (n,)
        ``sqrt(1 / (dnu t_on) + 1 / (dnu t_ref))``.
    user : (n,), uint8
        Flags of whole spectra.
    zero : (channel,)
        Level of no input.
    off : (visit, channel), off_flag : (visit, channel)
        Counts on the reference without the zero level.
    seen : (visit, channel), K
        ``T_rec + J_sky`` at each visit.
    gain, gain_slope : (channel,), gain_at : (n,)
        Counts per kelvin: ``gain + gain_at gain_slope``; used if ``by_loads``.
    through_s, through_i : (channel,)
        ``F g`` of the sidebands; 0 for the image if the source is a line.
    inverse_s, tr_i : (row, channel), air_row : (n,)
        One over what the air lets through in the signal band, not a number where that is too little; and what it lets
        through in the image band.
    least_inverse : (row,)
        The least of ``inverse_s``.
    base_flag : (channel,), uint8
        Of the loads.
    spike_sigma
        Samples farther out are spikes; 0: none is.
    sigma : (n,), float32
        Result: noise of each spectrum, from the median of the system temperature of some of its good channels.
    """
    channels, number = zero.size, on.size
    has_zero = np.any(zero != np.float32(0.0))
    by_line = not np.any(through_i != np.float32(0.0))
    step_off, first_seen = np.empty(_STRIP, np.float32), np.empty(_STRIP, np.float32)
    step_seen, made, nothing = np.empty(_STRIP, np.float32), np.empty(_STRIP, np.float32), np.zeros(_STRIP, np.float32)
    found, spots, least_of_all = 0, np.empty((64, 2), np.int64), np.float32(np.inf)
    for start in range(0, channels, _STRIP):
        size = min(_STRIP, channels - start)
        stop = start + size
        last_b, last_a, last_air, least_seen, least_made = -1, -1, -1, np.float32(0.0), np.float32(0.0)
        zeros, part_s, part_i = zero[start:stop], through_s[start:stop], through_i[start:stop]
        for n in range(number):
            b, a, air, w = before[n], after[n], air_row[n], np.float32(weight_after[n])
            off_b = off[b, start:stop]
            if b != last_b or a != last_a:
                _difference(off[a, start:stop], off_b, step_off[:size])
                _seen_through(
                    seen[b, start:stop], seen[a, start:stop], part_s, by_line, first_seen[:size], step_seen[:size]
                )
                least_seen, last_b, last_a = _least(first_seen[:size], step_seen[:size]), b, a
            if air != last_air and not by_line:
                _of_both(part_s, inverse_s[air, start:stop], part_i, tr_i[air, start:stop], made[:size])
                least_made, last_air = _least(made[:size], nothing[:size]), air
            inverse = inverse_s[air, start:stop] if by_line else made[:size]
            spectrum, values = counts[on[n], p, start:stop], out[n, p, start:stop]
            kept = spectrum.copy() if _has_odd_counts(spectrum, ceiling) else spectrum[:0]
            if by_loads:
                _of_loads(
                    spectrum,
                    zeros,
                    off_b,
                    step_off[:size],
                    w,
                    gain[start:stop],
                    gain_slope[start:stop],
                    np.float32(gain_at[n]),
                    part_s,
                    by_line,
                    inverse,
                    values,
                )
            elif has_zero:
                _of_reference_and_zero(
                    spectrum, zeros, off_b, step_off[:size], w, first_seen[:size], step_seen[:size], inverse, values
                )
            else:
                _of_reference(spectrum, off_b, step_off[:size], w, first_seen[:size], step_seen[:size], inverse, values)
            doubtful = True
            if spike_sigma > 0.0:
                least = np.float32(noise[n]) * least_seen * (least_inverse[air] if by_line else least_made)
                least_of_all = min(least_of_all, least)
                limit = min(np.float32(spike_sigma) * least, _LARGEST)
                # What is not finite is among them, unless there are so few that some have no such neighbours.
                doubtful = size < 8 or _suspects(values, limit) > np.float32(0.0)
                if doubtful:
                    for c in range(3, size - 3):
                        if _stands_out(values, c, limit):
                            spots, found = _noted(spots, found, n, start + c)
            if user[n] != 0 or kept.size > 0 or (doubtful and _has_odd(values)):
                _flag(
                    kept,
                    values,
                    out_bits[n, p, start:stop],
                    base_flag[start:stop],
                    off_flag[b, start:stop],
                    off_flag[a, start:stop],
                    user[n],
                    inverse_s[air, start:stop],
                    ceiling,
                )
    _weigh(
        number,
        channels,
        base_flag,
        inverse_s,
        through_s,
        tr_i,
        through_i,
        air_row,
        seen,
        before,
        after,
        weight_after,
        noise,
        user,
        sigma,
    )
    for n in range(number):
        if not _has_a_number(out[n, p]):
            sigma[n] = np.inf
    if spike_sigma <= 0.0 or number < 2:
        return
    limit = np.float32(spike_sigma) * least_of_all
    for start in range(0, channels, _STRIP):  # where strips meet, and where the spectrum ends
        stop = min(start + _STRIP, channels)
        for n in range(number):
            for c in range(max(start, stop - 3), min(channels, stop + 3)):
                if _may_stand_out(out[n, p], c, limit):
                    spots, found = _noted(spots, found, n, c)
            if start == 0:
                for c in range(min(3, stop - 3)):
                    if _may_stand_out(out[n, p], c, limit):
                        spots, found = _noted(spots, found, n, c)
    _flag_spikes(
        out,
        out_bits,
        p,
        spots[:found],
        channels,
        spike_sigma,
        inverse_s,
        through_s,
        tr_i,
        through_i,
        air_row,
        seen,
        before,
        after,
        weight_after,
        noise,
    )


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _difference(first: Any, second: Any, out: Any) -> None:
    for c in range(out.size):
        out[c] = first[c] - second[c]


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _seen_through(first: Any, second: Any, part_s: Any, by_line: bool, at: Any, step: Any) -> None:
    """What is seen at one visit, and its change to the next; of a line over ``F g_s``."""
    for c in range(at.size):
        per = np.float32(1.0) / part_s[c] if by_line else np.float32(1.0)
        at[c], step[c] = first[c] * per, (second[c] - first[c]) * per


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _of_both(part_s: Any, inverse_s: Any, part_i: Any, tr_i: Any, out: Any) -> None:
    """One over what air and receiver let through in both bands."""
    for c in range(out.size):
        out[c] = np.float32(1.0) / (part_s[c] / inverse_s[c] + part_i[c] * tr_i[c])


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _least(at: Any, step: Any) -> Any:
    """The least that is seen between two visits."""
    least = np.float32(np.inf)
    for c in range(at.size):
        lower = min(at[c], at[c] + step[c])
        least = lower if lower < least else least
    return least


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _of_reference(x: Any, off: Any, step: Any, w: Any, seen: Any, step_seen: Any, inverse: Any, out: Any) -> None:
    for c in range(out.size):
        reference = off[c] + w * step[c]
        out[c] = (x[c] - reference) / reference * ((seen[c] + w * step_seen[c]) * inverse[c])


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _of_reference_and_zero(
    x: Any, zero: Any, off: Any, step: Any, w: Any, seen: Any, step_seen: Any, inverse: Any, out: Any
) -> None:
    for c in range(out.size):
        reference = off[c] + w * step[c]
        out[c] = ((x[c] - zero[c]) - reference) / reference * ((seen[c] + w * step_seen[c]) * inverse[c])


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _of_loads(
    x: Any, zero: Any, off: Any, step: Any, w: Any, gain: Any, gain_slope: Any, at: Any, part_s: Any, by_line: bool,
    inverse: Any, out: Any,
) -> None:  # fmt: skip
    for c in range(out.size):
        per_k = (gain[c] + at * gain_slope[c]) * (part_s[c] if by_line else np.float32(1.0))
        out[c] = ((x[c] - zero[c]) - (off[c] + w * step[c])) / per_k * inverse[c]


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def _has_odd_counts(x: Any, ceiling: Any) -> bool:
    """Say whether some counts are none at all, not finite, or at the ceiling. The sum may be taken in any order."""
    odd = np.float32(0.0)
    for c in range(x.size):
        odd += np.float32(0.0) if (x[c] < ceiling) & (x[c] != np.float32(0.0)) else np.float32(1.0)
    return bool(odd > np.float32(0.0))


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def _has_odd(values: Any) -> bool:
    """Say whether something is not finite."""
    odd = np.float32(0.0)
    for c in range(values.size):
        odd += values[c] * np.float32(0.0)
    return bool(odd != np.float32(0.0))


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def _suspects(values: Any, limit: Any) -> Any:
    """Count what may be spikes: see `_stands_out`, of which this is a form without a branch."""
    size, count = values.size - 6, np.float32(0.0)
    if size <= 0:
        return count
    va, vb, vc = values[0:size], values[1 : size + 1], values[3 : size + 3]
    vd, ve = values[5 : size + 5], values[6 : size + 6]
    for c in range(size):
        a, b, d, e = va[c], vb[c], vd[c], ve[c]
        high_1, low_1 = (a if a > b else b), (b if a > b else a)
        high_2, low_2 = (d if d > e else e), (e if d > e else d)
        high, low = (high_1 if high_1 > high_2 else high_2), (low_1 if low_1 < low_2 else low_2)
        middle = ((a + b) + (d + e) - high - low) * np.float32(0.5)
        count += np.float32(0.0) if abs(vc[c] - middle) <= limit else np.float32(1.0)
    return count


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _flag(
    counts: Any, values: Any, bits: Any, base: Any, off_b: Any, off_a: Any, whole: Any, inverse_s: Any, ceiling: Any
) -> None:
    """Have samples that cannot be used carry why; ``counts`` is empty where there is nothing odd about them."""
    for c in range(values.size):
        f: Any = np.int64(base[c]) | np.int64(off_b[c]) | np.int64(off_a[c]) | np.int64(whole)
        if counts.size > 0:
            x = counts[c]
            f |= _SATURATED if x >= ceiling else 0
            f |= _DEAD if x == np.float32(0.0) else 0
            f |= _NOT_FINITE if not np.isfinite(x) else 0
        f |= _OPAQUE if np.isnan(inverse_s[c]) else 0
        if f == 0 and not np.isfinite(values[c]):
            f = _NOT_FINITE
        if f != 0:
            bits[c] = np.uint32(QUIET_NAN | f)


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
def _stands_out(values: Any, c: int, limit: Any) -> bool:
    """Say whether a value is far from the median of four neighbours; also if one of them is not a number."""
    v, a, b, d, e = values[c], values[c - 3], values[c - 2], values[c + 2], values[c + 3]
    high_1, low_1 = (a, b) if a > b else (b, a)
    high_2, low_2 = (d, e) if d > e else (e, d)
    high, low = high_1 if high_1 > high_2 else high_2, low_1 if low_1 < low_2 else low_2
    middle = ((a + b) + (d + e) - high - low) * np.float32(0.5)
    return bool((v == v) & (not (abs(v - middle) <= limit)))


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _may_stand_out(values: Any, c: int, limit: Any) -> bool:
    """Say whether a value is far from one of its neighbours at least; for those near the ends of a spectrum."""
    if 3 <= c < values.size - 3:
        return bool(_stands_out(values, c, limit))
    for shift in (-3, -2, 2, 3):
        if 0 <= c + shift < values.size and not abs(values[c] - values[c + shift]) <= limit:
            return bool(values[c] == values[c])
    return False


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _noted(spots: Any, found: int, n: int, c: int) -> Any:
    if found == spots.shape[0]:
        larger = np.empty((2 * found, 2), np.int64)
        larger[:found] = spots
        spots = larger
    spots[found, 0], spots[found, 1] = n, c
    return spots, found + 1


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _t_sys(
    n: int, c: int, inverse_s: Any, through_s: Any, tr_i: Any, through_i: Any, air_row: Any, seen: Any, before: Any,
    after: Any, weight_after: Any,
) -> float:  # fmt: skip
    first, second, air = seen[before[n], c], seen[after[n], c], air_row[n]
    divisor = through_s[c] / inverse_s[air, c] + through_i[c] * tr_i[air, c]
    return float((first + weight_after[n] * (second - first)) / divisor)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _weigh(
    number: int, channels: int, base_flag: Any, inverse_s: Any, through_s: Any, tr_i: Any, through_i: Any, air_row: Any,
    seen: Any, before: Any, after: Any, weight_after: Any, noise: Any, user: Any, sigma: Any,
) -> None:  # fmt: skip
    """Fill the noise of each spectrum; between two visits it is linear, as the system temperature is."""
    n = 0
    while n < number:
        last = n
        while (
            last + 1 < number
            and before[last + 1] == before[n]
            and after[last + 1] == after[n]
            and air_row[last + 1] == air_row[n]
        ):
            last += 1
        middle = np.empty(2)
        for end, at in enumerate((n, last)):
            kelvin, used = np.empty(_SAMPLE), 0
            step = (channels + _SAMPLE - 1) // _SAMPLE
            while used == 0 and step > 0:
                for c in range(0, channels, step):
                    if used < _SAMPLE and base_flag[c] == 0:
                        value = _t_sys(
                            at, c, inverse_s, through_s, tr_i, through_i, air_row, seen, before, after, weight_after
                        )
                        if np.isfinite(value):
                            kelvin[used] = value
                            used += 1
                step = 1 if used == 0 and step > 1 else 0
            middle[end] = np.median(kelvin[:used]) if used > 0 else np.inf
        for k in range(n, last + 1):
            part = (k - n) / (last - n) if last > n else 0.0
            kelvin_here = middle[0] + part * (middle[1] - middle[0]) if np.isfinite(middle[0]) else np.inf
            sigma[k] = kelvin_here * noise[k] if user[k] == 0 else np.inf
        n = last + 1


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _flag_spikes(
    out: Any, out_bits: Any, p: int, spots: Any, channels: int, spike_sigma: float, inverse_s: Any, through_s: Any,
    tr_i: Any, through_i: Any, air_row: Any, seen: Any, before: Any, after: Any, weight_after: Any, noise: Any,
) -> None:  # fmt: skip
    """Flag those of the suspects that stand out in time as well, and not together with two neighbours."""
    middle, known = np.empty(channels), np.zeros(channels, np.bool_)
    sure = np.zeros(spots.shape[0], np.bool_)
    for k in range(spots.shape[0]):
        n, c = spots[k]
        value = out[n, p, c]
        if not np.isfinite(value):
            continue
        around, used = np.empty(4), 0
        for shift in (-3, -2, 2, 3):
            if 0 <= c + shift < channels and np.isfinite(out[n, p, c + shift]):
                around[used] = out[n, p, c + shift]
                used += 1
        limit = (
            spike_sigma
            * noise[n]
            * _t_sys(n, c, inverse_s, through_s, tr_i, through_i, air_row, seen, before, after, weight_after)
        )
        if used < 2 or not abs(value - np.median(around[:used])) > limit:
            continue
        run, longest, here = 0, 0, False
        for b in range(max(0, c - 2), min(channels, c + 3)):
            if not known[b]:
                middle[b], known[b] = _middle_in_time(out, p, b), True
            # What stands beside a line's peak need not stand out as far as the peak.
            far = (
                (spike_sigma if b == c else LINE_SIGMA)
                * noise[n]
                * _t_sys(n, b, inverse_s, through_s, tr_i, through_i, air_row, seen, before, after, weight_after)
            )
            outside = abs(out[n, p, b] - middle[b]) > far
            run = run + 1 if outside else 0
            longest = max(longest, run)
            here = here or (b == c and outside)
        sure[k] = here and longest < 3
    for k in range(spots.shape[0]):
        if sure[k]:
            out_bits[spots[k, 0], p, spots[k, 1]] = np.uint32(QUIET_NAN | _SPIKE)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _has_a_number(values: Any) -> bool:
    for c in range(values.size):  # noqa: SIM110 - the compiler knows no any() of a generator
        if np.isfinite(values[c]):
            return True
    return False


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _middle_in_time(out: Any, p: int, c: int) -> float:
    values, used = np.empty(out.shape[0]), 0
    for n in range(out.shape[0]):
        if np.isfinite(out[n, p, c]):
            values[used] = out[n, p, c]
            used += 1
    return float(np.median(values[:used])) if used > 0 else np.nan
