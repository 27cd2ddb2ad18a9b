"""Backgrounds, totals, maxima and weighted centroids."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import ConfigError
from nightbeam.peaks import compute, slow
from nightbeam.peaks.model import PeakSettings


def spot(logits_of, size=21):
    """A cross of five pixels in the middle of a flat image of 10."""
    mask = np.zeros((1, size, size), bool)
    c = size // 2
    mask[0, c, c - 1 : c + 2] = mask[0, c - 1 : c + 2, c] = True
    image = np.full((1, size, size), 10.0)
    image[mask] = 30.0
    image[0, c, c] = 110.0
    return logits_of(mask), image


def test_the_background_of_the_ring_is_taken_off(engine, logits_of):
    logits, image = spot(logits_of)
    table = engine.find_peaks(logits, image)
    assert (table.background[0], table.sigma[0], table.total[0]) == (10.0, 0.0, 4 * 20.0 + 100.0)
    assert (table.maximum[0], table.snr[0], table.n_pixels[0]) == (110.0, 0.0, 5)


def test_without_a_background_everything_counts(engine, logits_of):
    logits, image = spot(logits_of)
    table = engine.find_peaks(logits, image, settings=PeakSettings(background="none"))
    assert (table.background[0], table.total[0], table.maximum[0]) == (0.0, 230.0, 110.0)


def test_without_an_image_intensities_are_zero(engine, logits_of):
    table = engine.find_peaks(spot(logits_of)[0], None, settings=PeakSettings(centroid="intensity"))
    for name in ("total", "maximum", "background", "sigma", "snr"):
        assert getattr(table, name).tolist() == [0.0]
    assert (table.y[0], table.x[0]) == (10.0, 10.0)


def test_the_ring_has_the_pixels_from_5_to_7_and_no_others(engine, logits_of):
    mask = np.zeros((1, 21, 21), bool)
    mask[0, 10, 10] = True
    y, x = np.mgrid[:21, :21] - 10
    square = y**2 + x**2
    # 3-4-5 and 0-7-7: both bounds are met exactly by some pixels.
    ring = (square >= 25) & (square <= 49)
    assert ring[13, 14]
    assert ring[17, 10]
    image = np.where(ring, 2.0, 1e6)[None]
    table = engine.find_peaks(logits_of(mask), image)
    assert (table.background[0], table.sigma[0]) == (2.0, 0.0)
    one = engine.find_peaks(
        logits_of(mask), ring.astype(np.uint16)[None], settings=PeakSettings(background="ring-mean")
    )
    assert one.background[0] == 1.0


def test_the_spread_of_the_ring_is_that_of_all_its_pixels(engine, logits_of):
    mask = np.zeros((1, 1, 15), bool)
    mask[0, 0, 7] = True
    image = np.zeros((1, 1, 15))
    image[0, 0, [0, 1, 2, 12, 13, 14]] = [1, 2, 3, 4, 5, 15]  # the ring on one line
    image[0, 0, 7] = 13.5
    table = engine.find_peaks(logits_of(mask), image)
    # mean 5, squares 16 + 9 + 4 + 1 + 0 + 100 = 130
    assert table.background[0] == 3.5
    assert table.sigma[0] == pytest.approx(np.sqrt(130 / 6), rel=1e-14)
    assert table.total[0] == 10.0
    assert table.snr[0] == pytest.approx(10.0 / np.sqrt(130 / 6), rel=1e-14)
    mean = engine.find_peaks(logits_of(mask), image, settings=PeakSettings(background="ring-mean"))
    assert mean.background[0] == pytest.approx(5.0, rel=1e-14)


def test_pixels_of_other_components_are_no_background_even_if_those_are_no_peaks(engine, logits_of):
    logits, image = spot(logits_of)
    mask = logits[:, 1] > 0
    mask[0, 4:6, :] = True  # crosses the ring
    image[0, 4:6, :] = 1e6
    table = engine.find_peaks(logits_of(mask), image, settings=PeakSettings(max_pixels=10))
    assert (len(table), table.background[0]) == (1, 10.0)


def test_an_empty_ring_is_no_background(engine, logits_of):
    mask = np.zeros((1, 3, 3), bool)
    mask[0, 1, 1] = True
    table = engine.find_peaks(logits_of(mask), np.full((1, 3, 3), 7.0))
    assert (table.background[0], table.sigma[0], table.total[0], table.snr[0]) == (0.0, 0.0, 7.0, 0.0)


def test_pixels_that_are_not_finite_are_left_out(engine, logits_of):
    logits, image = spot(logits_of)
    image[0, 10, 11], image[0, 11, 10] = np.nan, np.inf
    image[0, 10, 16], image[0, 16, 10] = np.nan, -np.inf
    table = engine.find_peaks(logits, image, settings=PeakSettings(centroid="intensity"))
    assert (table.total[0], table.maximum[0], table.background[0], table.n_pixels[0]) == (140.0, 110.0, 10.0, 5)
    # weights 100 in the middle, 20 to the left, 20 above
    assert (table.y[0], table.x[0]) == (pytest.approx(10 - 20 / 140), pytest.approx(10 - 20 / 140))


def test_a_component_of_nothing_finite_has_no_intensity(engine, logits_of):
    logits, image = spot(logits_of)
    image[logits[:, 1] > 0] = np.nan
    table = engine.find_peaks(logits, image, settings=PeakSettings(centroid="intensity"))
    assert (table.total[0], table.maximum[0], table.snr[0], table.y[0]) == (0.0, 0.0, 0.0, 10.0)


def test_the_maximum_may_be_negative(engine, logits_of):
    logits, image = spot(logits_of)
    assert engine.find_peaks(logits, image - 500.0).maximum.tolist() == [-390.0]


def test_a_weighted_centroid_leans_towards_the_brighter_pixel(engine, logits_of):
    mask = np.zeros((1, 30, 30), bool)
    mask[0, 15, 14:16] = True
    image = np.full((1, 30, 30), 4.0)
    image[0, 15, 14:16] = 5.0, 7.0
    table = engine.find_peaks(logits_of(mask), image, settings=PeakSettings(centroid="intensity"))
    assert (table.y[0], table.x[0]) == (15.0, 14.75)
    assert engine.find_peaks(logits_of(mask), image).x[0] == 14.5


def test_a_component_below_its_background_keeps_its_unweighted_centroid(engine, logits_of):
    logits, image = spot(logits_of)
    image[:] = 10.0
    image[0, 10, 11] = 3.0
    table = engine.find_peaks(logits, image, settings=PeakSettings(centroid="intensity"))
    assert (table.y[0], table.x[0], table.total[0]) == (10.0, 10.0, -7.0)


@pytest.mark.parametrize("kind", ["f4", "f8", "f2", "u2", "u1", "i2", "i4", "i8", "u8", ">f4", ">u2"])
def test_images_of_any_type_and_strides_give_the_same(engine, logits_of, kind):
    dice = np.random.default_rng(5)
    mask = dice.random((3, 17, 40)) < 0.1
    image = dice.integers(0, 100, (3, 34, 120)).astype(kind)
    plain = engine.find_peaks(logits_of(mask), image[:, ::2, ::3].astype(float))
    table = engine.find_peaks(logits_of(mask), image[:, ::2, ::3])
    backwards = engine.find_peaks(logits_of(mask), image[:, ::2, ::3][..., ::-1].copy()[..., ::-1])
    for one in (table, backwards):
        for f in ("total", "maximum", "background", "sigma", "snr"):
            np.testing.assert_array_equal(getattr(one, f), getattr(plain, f))


def test_arrays_that_cannot_be_written_are_read_and_left_alone(engine, logits_of):
    logits, image = spot(logits_of)
    before = logits.copy(), image.copy()
    logits.flags.writeable = image.flags.writeable = False
    engine.find_peaks(logits, image)
    assert np.array_equal(logits, before[0])
    assert np.array_equal(image, before[1])


@given(
    seed=st.integers(0, 2**32),
    density=st.sampled_from([0.001, 0.01, 0.05, 0.2, 0.5]),
    shape=st.sampled_from([(1, 1), (1, 40), (40, 1), (3, 50), (40, 45), (8, 8), (64, 33)]),
    chosen=st.builds(
        PeakSettings,
        connectivity=st.sampled_from([4, 8]),
        centroid=st.sampled_from(["mass", "intensity"]),
        background=st.sampled_from(["ring", "ring-mean", "none"]),
        min_pixels=st.integers(1, 3),
        max_pixels=st.sampled_from([None, 3, 20]),
        ring_px=st.sampled_from([(5.0, 7.0), (0.0, 0.0), (0.0, 2.5), (3.0, 3.0), (2.0, 30.0), (100.0, 2000.0)]),
    ),
    levels=st.sampled_from([0, 1, 3, 1000]),
)
def test_both_engines_measure_the_same(seed, density, shape, chosen, levels):
    dice = np.random.default_rng(seed)
    mask = dice.random((2, *shape)) < density
    image = dice.integers(0, levels + 1, mask.shape).astype(np.float32) + dice.exponential(30, mask.shape) * (
        dice.random(mask.shape) < 0.1
    )
    image[dice.random(mask.shape) < 0.01] = np.nan
    bits = np.packbits(mask, axis=2)
    ours = compute.find_peaks_in_bits(bits, shape[1], image, settings=chosen)
    plain = slow.find_peaks_in_bits(bits, shape[1], image, settings=chosen)
    for f in fields(ours):
        np.testing.assert_allclose(getattr(ours, f.name), getattr(plain, f.name), rtol=1e-9, atol=1e-9, err_msg=f.name)
    np.testing.assert_array_equal(ours.maximum, plain.maximum)
    if chosen.background == "ring":
        np.testing.assert_array_equal(ours.background, plain.background)


@pytest.mark.parametrize("tail", ["even", "one far out", "half far out", "two values"])
@pytest.mark.parametrize("number", [1, 2, 3, 47, 75, 76])
def test_the_median_is_that_of_numpy_whatever_is_in_the_ring(logits_of, tail, number):
    dice = np.random.default_rng(number)
    values = dice.normal(0, 1, number)
    if tail == "one far out":
        values[0] = 1e9
    if tail == "half far out":
        values[: (number + 1) // 2] += 1e6
    if tail == "two values":
        values = np.where(values > 0.4, 1.0, 0.1)
    image = np.full((1, 1, 301), np.nan)
    image[0, 0, dice.choice(np.r_[0:140, 161:301], number, replace=False)] = values
    mask = np.zeros((1, 1, 301), bool)
    mask[0, 0, 150] = True
    table = compute.find_peaks(logits_of(mask), image, settings=PeakSettings(ring_px=(5.0, 150.0)))
    assert table.background[0] == np.median(values)


def test_two_threads_give_what_one_gives(logits_of):
    dice = np.random.default_rng(9)
    logits = logits_of(dice.random((16, 60, 70)) < 0.05)
    images = dice.normal(10, 2, (16, 60, 70)).astype(np.float32)
    whole = compute.find_peaks(logits, images)
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(
            lambda at: compute.find_peaks(logits[at : at + 2], images[at : at + 2], first_row=at), range(0, 16, 2)
        )
        joined = compute.join_tables(list(parts))
    for f in fields(whole):
        assert np.array_equal(getattr(whole, f.name), getattr(joined, f.name)), f.name


@pytest.mark.parametrize(
    "wrong",
    [{"ring_px": (7.0, 5.0)}, {"ring_px": (-1.0, 5.0)}, {"ring_px": (5.0, np.inf)}, {"ring_px": (np.nan, 7.0)},
     {"centroid": "mean"}, {"background": "median"}, {"min_probability": 1.0}, {"min_probability": np.nan},
     {"connectivity": 6}, {"min_pixels": 0}, {"min_pixels": 3, "max_pixels": 2}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        PeakSettings(**wrong)
