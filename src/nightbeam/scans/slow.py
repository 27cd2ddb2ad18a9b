"""What `nightbeam.scans.kernel` does, written with numpy: slower, and easier to believe. For comparison."""

from __future__ import annotations

from typing import Any

import numpy as np

from nightbeam.scans.compute import flag_spikes
from nightbeam.scans.kernel import QUIET_NAN
from nightbeam.scans.model import Flag

__all__ = ["average", "calibrate_pixel", "seen_at"]


def average(
    counts: Any, dumps: Any, weights: Any, usable: Any, ceiling: float, zero_is_dead: bool, mean: Any, flag: Any,
    seconds: Any,
) -> None:  # fmt: skip
    """Average some dumps of each pixel (see `nightbeam.scans.kernel.average`)."""
    total, weight = np.zeros(mean.shape), np.zeros(mean.shape)
    flag[...] = 0
    for dump, of_dump, of_pixel in zip(dumps, weights, usable, strict=True):
        x = counts[dump].astype(float)
        finite, used = np.isfinite(x), np.broadcast_to(of_pixel[:, None], x.shape)
        with np.errstate(invalid="ignore"):
            full, dead = finite & (x >= ceiling), finite & (x == 0) & zero_is_dead
        good = used & finite & ~full & ~dead
        total += np.where(good, of_dump * np.where(good, x, 0.0), 0.0)
        weight += np.where(good, of_dump, np.where(used & full, -np.inf, 0.0))
        for bad, why in ((~finite, Flag.NOT_FINITE), (full, Flag.SATURATED), (dead, Flag.DEAD)):
            flag[used & bad] |= np.uint8(why)
    flag[weight > 0] = 0
    with np.errstate(invalid="ignore"):
        mean[...] = total / weight
    mean[weight <= 0] = np.nan
    left = np.maximum(weight, 0.0)
    seconds[...] = left.sum(axis=1) / np.maximum((weight > 0).sum(axis=1), 1)


def seen_at(t_rec: Any, part_s: Any, part_i: Any, sky_s: Any, sky_i: Any, ground: Any, out: Any) -> None:
    """Fill ``T_rec + J_sky`` of a pixel at each visit (see `nightbeam.scans.kernel.seen_at`)."""
    out[...] = t_rec + part_s * sky_s + part_i * sky_i + ground


def calibrate_pixel(
    counts: Any, out: Any, out_bits: Any, p: int, on: Any, before: Any, after: Any, weight_after: Any, noise: Any,
    user: Any, zero: Any, off: Any, off_flag: Any, seen: Any, gain: Any, gain_slope: Any, gain_at: Any, by_loads: bool,
    through_s: Any, inverse_s: Any, least_inverse: Any, through_i: Any, tr_i: Any, air_row: Any,  # noqa: ARG001
    base_flag: Any,
    ceiling: float, spike_sigma: float, sigma: Any,
) -> None:  # fmt: skip
    """Turn the counts of a pixel into antenna temperatures (see `nightbeam.scans.kernel.calibrate_pixel`)."""
    x, w = counts[on, p].astype(float), np.asarray(weight_after)[:, None]
    off = off.astype(float)
    reference = (1 - w) * off[before] + w * off[after]
    with np.errstate(all="ignore"):
        divisor = through_s / inverse_s[air_row].astype(float) + through_i * tr_i[air_row]
        system = ((1 - w) * seen[before].astype(float) + w * seen[after]) / divisor
        if by_loads:
            ta_star = (x - zero - reference) / ((gain + np.asarray(gain_at)[:, None] * gain_slope) * divisor)
        else:
            ta_star = (x - zero - reference) / reference * system
    flag = base_flag | off_flag[before] | off_flag[after] | np.asarray(user)[:, None]
    flag[~np.isfinite(x)] |= np.uint8(Flag.NOT_FINITE)
    flag[x >= ceiling] |= np.uint8(Flag.SATURATED)
    flag[x == 0] |= np.uint8(Flag.DEAD)
    flag[np.isnan(inverse_s[air_row])] |= np.uint8(Flag.OPAQUE)
    flag[(flag == 0) & ~np.isfinite(ta_star)] = np.uint8(Flag.NOT_FINITE)
    ta_star[flag != 0] = np.nan
    sigma[...] = _noise_of(system, base_flag, np.asarray(noise), np.asarray(user))
    sigma[~np.isfinite(ta_star).any(axis=1)] = np.inf
    if spike_sigma > 0 and on.size > 1:
        flag[flag_spikes(ta_star, system * np.asarray(noise)[:, None], spike_sigma)] |= np.uint8(Flag.SPIKE)
    out[: on.size, p] = ta_star
    out_bits[: on.size, p][flag != 0] = np.uint32(QUIET_NAN) | flag[flag != 0].astype(np.uint32)


def _noise_of(system: Any, base_flag: Any, noise: Any, user: Any) -> Any:
    good = np.isfinite(system) & (base_flag == 0)
    middle = np.array([np.median(row[use]) if use.any() else np.inf for row, use in zip(system, good, strict=True)])
    return np.where(user == 0, middle * noise, np.inf)
