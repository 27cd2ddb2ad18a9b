"""What steps take: held against what was measured, and against the facts of the telescope."""

from dataclasses import replace
from pathlib import Path

import pytest

from nightbeam.contimg.demand import Sizes, mosaic_demand, same_step, step_demand
from nightbeam.contimg.model import STEPS

MB = 1_000_000
OUT, SCRATCH, STATE = Path("/out"), Path("/scratch"), Path("/state")
FULL = Sizes(2_325_577_600, 5_100_000_000)


def demand(step: str, sizes: Sizes, **more: bool):
    return step_demand(step, sizes, output=OUT, scratch=SCRATCH, state=STATE, **more)


# Peak of our process and its child together, in MiB, measured on two cores: 20 antennas with 8 channels, 48 with 16
# (both 16 subbands), and the first with an image of 3000 pixels; ours and child of the full size at their worst.
SMALL, MEDIUM = Sizes(21_624_448, 64_205_333), Sizes(211_859_676, 457_744_972)


@pytest.mark.parametrize(
    ("step", "sizes", "measured_mib"),
    [
        ("convert", SMALL, 330),
        ("calibrate", SMALL, 445),
        ("apply", SMALL, 370 + 251),
        ("image", SMALL, 419 + 321),
        ("qa", SMALL, 492),
        ("convert", MEDIUM, 328),
        ("calibrate", MEDIUM, 531 + 243),
        ("apply", MEDIUM, 495 + 262),
        ("image", MEDIUM, 451 + 363),
        ("image", replace(MEDIUM, engine="wsclean"), 461 + 199),
        ("qa", MEDIUM, 480),
        ("image", replace(SMALL, imsize=3000), 420 + 1139),
        ("image", replace(SMALL, imsize=3000, engine="wsclean"), 1020),
        ("image", FULL, 1031),
        ("calibrate", FULL, 1031),
    ],
)
def test_no_step_was_seen_to_take_more_than_it_asks_for_nor_a_third_of_it(step, sizes, measured_mib):
    asked = demand(step, sizes).memory_bytes / 2**20
    assert measured_mib <= asked <= 3 * measured_mib


def test_two_full_groups_of_any_steps_fit_a_machine_of_24_gib():
    assert 2 * max(demand(step, FULL).memory_bytes for step in STEPS) < 0.75 * 24 * 2**30


def test_a_conversion_asks_for_the_whole_set_and_for_its_staging():
    writes = demand("convert", FULL).writes
    assert writes[OUT] >= 5_100 * MB  # b.3.10: 5.1 GB with MODEL_DATA and CORRECTED_DATA
    assert writes[SCRATCH] >= 2_190 * MB  # 1,787,904 rows of 1,224 bytes
    assert writes[STATE] > 0


def test_directories_that_are_one_are_asked_for_the_sum():
    apart = demand("convert", FULL).writes
    together = step_demand("convert", FULL, output=OUT, scratch=OUT, state=OUT).writes
    assert together == {OUT: sum(apart.values())}


def test_a_column_of_complex_numbers_is_what_applying_adds():
    vis = 1_787_904 * 48 * 2
    assert demand("apply", FULL).writes[OUT] >= 8 * vis
    assert demand("calibrate", FULL).writes[OUT] >= 8 * vis


def test_every_step_says_what_it_writes_in_the_state():
    assert all(demand(step, SMALL).writes[STATE] > 0 for step in STEPS)


def test_more_data_or_pixels_never_take_less():
    for step in STEPS:
        small, large = demand(step, SMALL), demand(step, replace(FULL, imsize=4800))
        assert small.memory_bytes <= large.memory_bytes
        assert all(small.writes[place] <= large.writes[place] for place in small.writes)


def test_a_set_of_others_is_measured_by_its_own_size():
    assert demand("apply", Sizes(0, 5_100_000_000)).memory_bytes == pytest.approx(
        demand("apply", FULL).memory_bytes, rel=0.05
    )


def test_wsclean_never_asks_for_more_pixels_than_it_may_take():
    large = Sizes(MB, MB, imsize=20_000, engine="wsclean", engine_bytes=4_000 * MB)
    assert demand("image", replace(large, engine="tclean")).memory_bytes > 40_000 * MB
    ours = 80 * 20_000**2
    assert demand("image", large).memory_bytes < ours + 1_000 * MB


def test_a_mosaic_takes_what_was_measured():
    assert mosaic_demand(3, imsize=1024, block=1024, workers=2).memory_bytes > 381 * MB
    assert mosaic_demand(48, imsize=1024, block=1024, workers=2).memory_bytes > 541 * MB


@pytest.mark.parametrize(
    ("step", "cores", "threads", "converters", "most"),
    [
        ("image", 2, 1, 4, 2),  # a thread each: two on two cores
        ("image", 2, 2, 4, 1),
        ("convert", 2, 1, 4, 1),  # one conversion keeps both busy
        ("convert", 16, 1, 4, 4),
        ("image", 1, 4, 4, 1),
    ],
)
def test_as_many_steps_of_a_kind_as_have_cores_of_their_own(step, cores, threads, converters, most):
    assert same_step(step, cores=cores, threads=threads, converters=converters) == most
