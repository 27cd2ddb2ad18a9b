"""Which load calibration a scan gets: laws, and examples worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nightbeam.scans.choice import CalibrationScan, candidates, resolve_calibration_load_full
from nightbeam.scans.model import (
    CalibrationLoadFull,
    CalibrationOptions,
    GainError,
    LoadTemperatureError,
    NoCalibrationError,
    Tuning,
)
from nightbeam.scans.stages import load_of_scan
from nightbeam.testing.dish import Dish

TUNING = Tuning(8e11, "USB", "fft", 1024, 8)
MODES = ("past-then-future", "nearest", "linear")
#: A scan from 1000 s to 1600 s.
ENDS = (1000.0, 1600.0)

times = st.lists(st.integers(-5000, 8000).map(float), min_size=1, max_size=8, unique=True)


def loads(*times_s: float, tuning: Tuning = TUNING) -> list[CalibrationScan]:
    """Number calibrations from 1 in the order in which their times are given."""
    return [CalibrationScan(1 + n, tuning, at) for n, at in enumerate(times_s)]


def chosen(every: list[CalibrationScan], **options: Any) -> list[tuple[int, ...]]:
    return candidates(7, TUNING, ENDS, every, options=CalibrationOptions(**options))


# -- examples ---------------------------------------------------------------------------------------------------------


def test_the_past_comes_first_the_nearest_before_others_then_the_future():
    every = loads(100.0, 900.0, 1700.0, 2500.0)
    assert chosen(every) == [(2,), (1,), (3,), (4,)]
    assert chosen(every, cal_mode="nearest") == [(2,), (3,), (1,), (4,)]  # both 100 s away: the earlier one
    assert chosen(every, cal_mode="linear") == [(2, 3), (2,), (1,), (3,), (4,)]


def test_where_there_is_no_past_or_no_future_the_other_serves():
    assert chosen(loads(1700.0, 2500.0)) == [(1,), (2,)]
    assert chosen(loads(1700.0, 2500.0), cal_mode="linear") == [(1,), (2,)]
    assert chosen(loads(100.0, 900.0), cal_mode="linear") == [(2,), (1,)]


def test_a_calibration_within_the_scan_has_no_age_and_is_of_the_past():
    assert chosen(loads(1300.0, 1700.0), max_cal_age_s=1.0) == [(1,)]


def test_an_age_counts_from_the_nearer_end_and_its_limit_is_allowed():
    assert chosen(loads(700.0, 1900.0), max_cal_age_s=300.0) == [(1,), (2,)]
    with pytest.raises(NoCalibrationError, match="scan 7: the nearest calibration of its tuning is 301 s away"):
        chosen(loads(699.0, 1902.0), max_cal_age_s=300.0)


@pytest.mark.parametrize(
    "other",
    [
        {"lo_hz": 8e11 + 1001.0}, {"lo_hz": float("nan")}, {"signal_sideband": "LSB"}, {"backend": "acs"},
        {"channels": 512}, {"pixels": 7},
    ],
    ids=str,
)  # fmt: skip
def test_every_part_of_the_tuning_has_to_match(other):
    with pytest.raises(NoCalibrationError, match=r"none of 2 calibrations is of its tuning \(800.000000 GHz USB, fft"):
        chosen(loads(900.0, 1700.0, tuning=replace(TUNING, **other)))
    assert chosen(loads(900.0, 1700.0, tuning=replace(TUNING, lo_hz=8e11 + 999.0))) == [(1,), (2,)]


def test_a_forced_calibration_is_the_only_one_whatever_its_age_but_not_whatever_its_tuning():
    every = [*loads(900.0, -90_000.0), CalibrationScan(9, replace(TUNING, pixels=4), 950.0)]
    assert chosen(every, force_calibration=((7, 2),)) == [(2,)]
    assert chosen(every, force_calibration=((8, 2),)) == [(1,)]
    with pytest.raises(NoCalibrationError, match="scan 7 has to use calibration 5, which is not there"):
        chosen(every, force_calibration=((7, 5),))
    with pytest.raises(NoCalibrationError, match="calibration 9, which is of another tuning"):
        chosen(every, force_calibration=((7, 9),))


def test_where_there_is_nothing_it_is_said():
    with pytest.raises(NoCalibrationError, match="none of 0 calibrations"):
        chosen([])
    with pytest.raises(NoCalibrationError, match="no calibration to choose from"):
        resolve_calibration_load_full(7, 1300.0, [], lambda number: pytest.fail("none was to be made"))


# -- laws -------------------------------------------------------------------------------------------------------------


def age(at: float) -> float:
    return max(0.0, ENDS[0] - at, at - ENDS[1])


@given(times, st.sampled_from(MODES), st.floats(1.0, 5000.0))
def test_all_that_are_in_time_may_serve_each_once_and_no_others(times_s, mode, limit):
    in_time = {1 + n for n, at in enumerate(times_s) if age(at) <= limit}
    assume(in_time)
    found = chosen(loads(*times_s), cal_mode=mode, max_cal_age_s=limit)
    singles = [numbers[0] for numbers in found if len(numbers) == 1]
    assert sorted(singles) == sorted(in_time)
    pairs = [numbers for numbers in found if len(numbers) == 2]
    at = dict(enumerate(times_s, 1))
    both = any(at[n] <= ENDS[1] for n in in_time) and any(at[n] > ENDS[1] for n in in_time)
    assert len(pairs) == (mode == "linear" and both)
    for first, second in pairs:
        assert found[0] == (first, second)
        assert at[first] <= ENDS[1] < at[second]
        assert not any(at[first] < at[n] <= ENDS[0] or ENDS[1] < at[n] < at[second] for n in in_time)


@given(times)
def test_the_first_choice_is_the_nearest_of_the_past_or_of_all(times_s):
    limit = 1e9
    (nearest,) = chosen(loads(*times_s), cal_mode="nearest", max_cal_age_s=limit)[0]
    assert age(times_s[nearest - 1]) == min(age(at) for at in times_s)
    (first,) = chosen(loads(*times_s), max_cal_age_s=limit)[0]
    past = [age(at) for at in times_s if at <= ENDS[1]]
    assert age(times_s[first - 1]) == min(past or [age(at) for at in times_s])


@given(times, st.sampled_from(MODES), st.randoms(use_true_random=False))
def test_neither_the_order_of_calibrations_nor_those_of_other_tunings_matter(times_s, mode, dice):
    # Two of the same age are taken in the order they come in, which is that of their numbers.
    assume(len({age(at) for at in times_s}) == len(times_s))
    every = loads(*times_s)
    foreign = [replace(one, scan=100 + one.scan, tuning=replace(TUNING, backend="acs")) for one in every]
    mixed = [*every, *foreign]
    dice.shuffle(mixed)
    assert chosen(mixed, cal_mode=mode, max_cal_age_s=1e9) == chosen(every, cal_mode=mode, max_cal_age_s=1e9)


# -- calibrations that are not valid ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> dict[int, CalibrationLoadFull]:
    dish = Dish(pixels=2, channels=32, noise=False, gain_drift=0.1)
    return {number: load_of_scan(dish.calibration(number, at_s=at)) for number, at in ((1, 0.0), (2, 900.0))}


def test_what_is_not_valid_is_passed_over_and_what_was_wrong_with_it_is_told(made):
    asked = []

    def load_of(number: int) -> CalibrationLoadFull:
        asked.append(number)
        if number > 2:
            raise GainError(f"the loads of {number} are swapped")
        return made[number]

    load, failed = resolve_calibration_load_full(7, 1300.0, [(3, 1), (3,), (4,), (1,), (2,)], load_of)
    assert load.scans == (1,)
    assert {number: error.what for number, error in failed.items()} == {
        3: "the loads of 3 are swapped", 4: "the loads of 4 are swapped",
    }  # fmt: skip
    assert asked == [3, 1, 4, 1], "none that has failed is made again"


def test_where_none_is_valid_the_error_is_that_of_the_best_one(made):
    def load_of(number: int) -> CalibrationLoadFull:
        raise (GainError if number == 3 else LoadTemperatureError)(f"{number} is wrong", fix="look at it")

    with pytest.raises(GainError, match="scan 7, its calibration 3: 3 is wrong") as caught:
        resolve_calibration_load_full(7, 1300.0, [(3,), (4,)], load_of)
    assert (caught.value.calibrations, caught.value.fix) == ((3, 4), "look at it")


@pytest.mark.parametrize("part", [0.0, 0.25, 1.0])
def test_between_two_calibrations_everything_is_linear_in_time(made, part):
    first, second = made[1], made[2]
    at_s = first.time_s + part * (second.time_s - first.time_s)
    load, _ = resolve_calibration_load_full(7, at_s, [(1, 2)], made.__getitem__)
    assert load.scans == (1, 2)
    for name in ("gamma", "t_rec"):
        one, two = getattr(first.gain, name), getattr(second.gain, name)
        assert getattr(load.gain, name) == pytest.approx((1 - part) * one + part * two, rel=1e-12)
    assert load.sky.j_sky == pytest.approx((1 - part) * first.sky.j_sky + part * second.sky.j_sky, rel=1e-12)
    assert load.gamma_per_s * (second.time_s - first.time_s) == pytest.approx(second.gain.gamma - first.gain.gamma)
    assert np.all(load.gamma_per_s > 0)
