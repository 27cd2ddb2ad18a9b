"""The compiled arithmetic against the same written with numpy, on scans with everything wrong that can be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nightbeam.scans import kernel, slow
from nightbeam.scans.model import CalibrationOptions, CalibrationResult, Flag, Phase, RawScan, flags_of
from nightbeam.scans.stages import (
    between,
    calibrate_full,
    determine_atmosphere_full,
    load_of_scan,
    prepare_otf,
)
from nightbeam.testing.dish import Dish, Line

pytestmark = pytest.mark.slow

LINE = Line(5.0, 809.3e9, 40e6)


def everything_wrong(dish: Dish) -> RawScan:
    """A map with samples of every flag, a dead pixel, spikes in the middle and at the ends, and a strong line."""
    scan = dish.otf(2, rows=4, dumps=12, elevation_deg=47.0)
    counts, flag, elevation = scan.counts.copy(), scan.flag.copy(), scan.elevation_deg.copy()
    on, off = (np.flatnonzero(scan.phase == phase) for phase in (Phase.ON, Phase.OFF))
    counts[on[3], 0, 7], counts[on[4], 1, 8], counts[on[5], 2, 9] = np.nan, 0.0, 2e8
    counts[on[6], 0, 100] *= 1.5
    counts[on[7], 0, [0, 2, -1]] *= 1.5
    counts[on[8], 1, 50:53] *= 1.5
    counts[off[1], 0, 30], counts[off[2], 0, 31], counts[off[2], 2, :] = np.nan, 2e8, 0.0
    counts[:, 3] = 0.0
    flag[on[9], 1], flag[off[0], 2] = 1, 1
    elevation[on] += np.linspace(0.0, 0.5, on.size)
    return replace(scan, counts=counts, flag=flag, elevation_deg=elevation)


def calibrated(dish: Dish, scan: RawScan, engine: str, options: CalibrationOptions) -> CalibrationResult:
    load = load_of_scan(dish.calibration(1), options=options, engine=engine)
    if options.cal_mode == "linear":
        load = between(load, load_of_scan(dish.calibration(3, at_s=300.0), options=options, engine=engine), 150.0)
    prepared = prepare_otf(scan, options=options, engine=engine)
    air = determine_atmosphere_full(scan, load, dish.air, prepared, options=options)
    return calibrate_full(scan, prepared, load, air, dish.air, options=options, engine=engine)


@pytest.mark.parametrize(
    "chosen",
    [
        {}, {"scale": "load"}, {"scale": "load", "cal_mode": "linear"}, {"sideband_mode": "continuum"},
        {"off_mode": "mean"}, {"off_mode": "nearest", "spikes": False}, {"elevation_correction": "model"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("channels", [256, 9000])
def test_both_engines_give_the_same(channels, chosen):
    receiver = {
        "channels": channels, "width_hz": 4e9 / channels, "gain_signal": (0.4, 0.5, 0.55, 0.7), "gain_drift": 0.1,
    }  # fmt: skip
    scan = everything_wrong(Dish(lines=(LINE,), **receiver))  # type: ignore[arg-type]
    options = CalibrationOptions(**chosen)  # type: ignore[arg-type]
    # A dish has dice of its own: both engines must see the same calibration.
    fast, sure = (
        calibrated(Dish(**receiver), scan, engine, options)  # type: ignore[arg-type]
        for engine in ("numba", "numpy")
    )  # fmt: skip
    assert np.array_equal(fast.flag, sure.flag)
    good = fast.flag == 0
    assert good.mean() > 0.6
    assert np.abs(fast.ta_star[good] - sure.ta_star[good]).max() < 5e-3, "a millionth of the system temperature"
    assert np.isnan(fast.ta_star[~good]).all()
    assert fast.weight == pytest.approx(sure.weight, rel=0.02)
    assert fast.t_sys[:3] == pytest.approx(sure.t_sys[:3], rel=1e-6)


@pytest.mark.parametrize("channels", [6, 7, 8, 9, 8192 + 7])
def test_what_is_no_number_is_flagged_wherever_it_lies(channels):
    """Also in the last strip of a long spectrum, of which only a few channels are left."""
    dish = Dish(pixels=1, channels=channels, width_hz=10e6 if channels < 100 else 0.5e6)
    scan, good, options = dish.otf(2, rows=1, dumps=4), load_of_scan(dish.calibration(1)), CalibrationOptions()
    prepared = prepare_otf(scan, options=options)
    air = determine_atmosphere_full(scan, good, dish.air, prepared, options=options)
    for at in range(-min(channels, 9), 0):
        t_rec = good.gain.t_rec.copy()
        t_rec[0, at] = np.inf if at % 2 else np.nan
        load = replace(good, gain=replace(good.gain, t_rec=t_rec))
        values = calibrate_full(scan, prepared, load, air, dish.air, options=options).ta_star
        assert not np.isfinite(values[:, 0, at]).any()
        assert (flags_of(values)[:, 0, at] != 0).all(), at
        assert (flags_of(values) != 0).sum() == len(values), at


@pytest.mark.parametrize("engine", ["numba", "numpy"])
def test_every_flag_is_where_it_belongs_and_a_line_is_no_spike(engine):
    dish = Dish(channels=256, lines=(Line(600.0, 809.3e9, 4e6),))
    scan = everything_wrong(dish)
    flag = calibrated(Dish(channels=256), scan, engine, CalibrationOptions()).flag
    assert (flag[3, 0, 7], flag[4, 1, 8] & Flag.DEAD, flag[5, 2, 9]) == (Flag.NOT_FINITE, Flag.DEAD, Flag.SATURATED)
    assert flag[6, 0, 100] == Flag.SPIKE
    assert flag[7, 0, [0, 2, -1]].tolist() == [Flag.SPIKE] * 3
    assert not flag[8, 1, 50:53].any(), "three together may be a line"
    assert (flag[9, 1] == Flag.USER).all()
    assert (flag[:, 3] & Flag.DEAD).all()
    line = np.abs(dish.freq_hz - 809.3e9) < 10e6
    assert not flag[:3, 0, line].any()
    # A reference that is bad in one channel spoils that channel between its neighbours in time, and no other.
    assert set(np.flatnonzero(flag[13:24, 0].any(axis=0))) == {30, 31}


@pytest.mark.parametrize("scale", ["off", "load"])
@pytest.mark.parametrize("pixels", [slice(0, 1), slice(1, 3), slice(3, 4)])
def test_some_pixels_give_what_all_of_them_give_to_the_last_bit(pixels, scale):
    dish, options = Dish(lines=(LINE,), gain_signal=(0.4, 0.5, 0.55, 0.7)), CalibrationOptions(scale=scale)
    scan, load = everything_wrong(dish), load_of_scan(dish.calibration(1))
    prepared = prepare_otf(scan, options=options)
    air = determine_atmosphere_full(scan, load, dish.air, prepared, options=options)
    whole = calibrate_full(scan, prepared, load, air, dish.air, options=options)
    of_pixels = ("lon_off_deg", "lat_off_deg", "flag")
    part = replace(
        scan, counts=scan.counts[:, pixels], gain_signal=scan.gain_signal[pixels],
        main_beam_eff=scan.main_beam_eff[pixels], **{name: getattr(scan, name)[:, pixels] for name in of_pixels},
    )  # fmt: skip
    some = prepare_otf(part, options=options, whole=False)
    found = calibrate_full(part, some, load, air, dish.air, options=options, pixels=pixels)
    assert found.ta_star.tobytes() == np.ascontiguousarray(whole.ta_star[:, pixels]).tobytes()
    assert found.weight.tobytes() == np.ascontiguousarray(whole.weight[:, pixels]).tobytes()


def test_in_place_of_the_counts_is_the_same():
    dish = Dish(lines=(LINE,))
    scan, load = everything_wrong(dish), load_of_scan(dish.calibration(1))
    prepared = prepare_otf(scan)
    air = determine_atmosphere_full(scan, load, dish.air, prepared)
    apart = calibrate_full(scan, prepared, load, air, dish.air)
    same = calibrate_full(scan, prepared, load, air, dish.air, out=scan.counts)
    assert np.shares_memory(same.ta_star, scan.counts)
    assert same.ta_star.tobytes() == apart.ta_star.tobytes()


@pytest.mark.parametrize("engine", [kernel, slow])
def test_a_mean_is_of_the_good_dumps_by_their_time(engine):
    counts = np.array([[[2.0, 20.0, 0.0]], [[4.0, np.nan, 0.0]], [[9.0, 90.0, 9.0]], [[np.nan, 5.0, 8.0]]], np.float32)
    usable = np.array([[True], [True], [False]])
    mean, flag, seconds = np.empty((1, 3)), np.zeros((1, 3), np.uint8), np.empty(1)
    engine.average(counts, np.array([0, 1, 3]), np.array([1.0, 3.0, 2.0]), usable, np.inf, True, mean, flag, seconds)
    assert mean[0, :2].tolist() == [3.5, 20.0]
    assert np.isnan(mean[0, 2])
    assert flag.tolist() == [[0, 0, Flag.DEAD]]
    assert seconds[0] == 2.5, "four seconds in one channel, one in another"
    engine.average(counts, np.array([0, 1, 3]), np.array([1.0, 3.0, 2.0]), usable, 15.0, False, mean, flag, seconds)
    assert mean[0, [0, 2]].tolist() == [3.5, 0.0]
    assert flag.tolist() == [[0, Flag.SATURATED | Flag.NOT_FINITE, 0]]
    counts[1, 0, 1] = 3.0
    engine.average(counts, np.array([0, 1, 3]), np.array([1.0, 3.0, 2.0]), usable, 15.0, True, mean, flag, seconds)
    assert np.isnan(mean[0, 1]), "the one that escaped the ceiling says nothing"
    assert flag[0, 1] == Flag.SATURATED


def test_flags_survive_in_what_is_no_number():
    bits = np.array([kernel.QUIET_NAN | 0x85, kernel.QUIET_NAN | 1], np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([1.5, np.inf, -0.0])])
    assert flags_of(values).tolist() == [0x85, 1, 0, 0, 0]
