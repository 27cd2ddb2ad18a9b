"""Which pixels are of a peak."""

import numpy as np
import pytest

from nightbeam.core.errors import ConfigError, InputError
from nightbeam.peaks import compute
from nightbeam.peaks.model import PeakSettings, Window


def panel(low, high):
    return np.array([[[low], [high]]], np.float32)


def test_a_tie_is_background_and_the_least_excess_is_not(engine):
    above = np.nextafter(np.float32(1), np.float32(2))
    table = engine.find_peaks(panel([1, 1, 1], [1, above, 0.5]), None)
    assert table.x.tolist() == [1.0]


def test_infinite_logits_are_compared_like_others(engine):
    table = engine.find_peaks(panel([np.inf, -np.inf, -np.inf, 0], [np.inf, np.inf, -np.inf, np.inf]), None)
    assert table.box[:, 2:].tolist() == [[1, 1], [3, 3]]
    assert table.nan_pixels == 0


@pytest.mark.parametrize("width", [5, 32, 33, 70])
@pytest.mark.parametrize("probability", [0.5, 0.7])
def test_a_pixel_with_a_logit_that_is_no_number_is_background_and_counted(engine, width, probability):
    logits = np.zeros((3, 2, 2, width), np.float32)
    logits[:, 1] = 5
    logits[0, 0, 0, 0] = logits[2, 1, 1, width - 1] = logits[2, 0, 1, width - 1] = logits[2, 1, 0, 3] = np.nan
    table = engine.find_peaks(logits, None, settings=PeakSettings(min_probability=probability))
    assert (table.nan_pixels, table.nan_rows) == (3, 2)
    assert table.n_pixels.tolist() == [2 * width - 1, 2 * width, 2 * width - 2]


def test_what_is_no_number_outside_the_window_does_not_count(engine):
    logits = np.full((1, 2, 4, 40), np.nan, np.float32)
    logits[0, :, 1:3, 2:37] = 0
    table = engine.find_peaks(logits, None, window=Window(1, 2, 2, 35))
    assert (len(table), table.nan_pixels, table.nan_rows) == (0, 0, 0)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_probability_is_a_step_between_logits_and_reaching_it_is_enough(engine, kind):
    # softmax(0, ln 3) = (1/4, 3/4); of p = 3/4 the step is ln 3.
    step = np.log(3.0)
    up, down = (np.nextafter(kind(step), kind(to)) for to in (9, 0))
    logits = np.array([[[[0, 0, 0, 0]], [[up, down, 0, 9]]]], kind)
    table = engine.find_peaks(logits, None, settings=PeakSettings(min_probability=0.75))
    assert table.box[:, 2].tolist() == [0, 3]


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.9])
def test_the_step_agrees_with_softmax(engine, probability):
    dice = np.random.default_rng(3)
    logits = dice.normal(0, 3, (2, 2, 9, 50)).astype(np.float32)
    power = np.exp(logits.astype(float))
    expected = power[:, 1] / power.sum(axis=1) >= probability
    assert np.array_equal(compute.masks(logits, settings=PeakSettings(min_probability=probability)), expected)
    table = engine.find_peaks(logits, None, settings=PeakSettings(min_probability=probability))
    assert table.n_pixels.sum() == expected.sum()


def test_of_three_classes_the_second_must_exceed_both_others(engine):
    logits = np.array([[[[0, 5, 1, 0, 0]], [[3, 3, 3, 3, 3]], [[1, 1, 5, 3, np.nan]]]], np.float32)
    table = engine.find_peaks(logits, None)
    assert table.x.tolist() == [0.0]
    assert table.nan_pixels == 1


def test_a_probability_of_three_classes_is_refused(engine):
    with pytest.raises(ConfigError, match="3 classes"):
        engine.find_peaks(np.zeros((1, 3, 2, 2), np.float32), None, settings=PeakSettings(min_probability=0.6))


@pytest.mark.parametrize("kind", [np.float16, np.float64, ">f4", ">f8"])
def test_other_kinds_of_reals_give_the_same(engine, kind):
    logits = np.random.default_rng(1).integers(-8, 8, (2, 2, 7, 41)).astype(np.float32)
    plain, other = engine.find_peaks(logits, None), engine.find_peaks(logits.astype(kind), None)
    assert np.array_equal(plain.x, other.x)
    assert np.array_equal(plain.n_pixels, other.n_pixels)


def test_doubles_are_not_rounded_before_they_are_compared(engine):
    logits = np.array([[[[1.0]], [[1.0 + 1e-12]]]])
    assert len(engine.find_peaks(logits, None)) == 1


def test_logits_with_gaps_in_memory_give_the_same(engine):
    logits = np.random.default_rng(2).normal(size=(2, 2, 12, 80)).astype(np.float32)
    assert np.array_equal(
        engine.find_peaks(logits[..., ::2], None).x, engine.find_peaks(logits[..., ::2].copy(), None).x
    )


def test_a_window_is_cut_out_before_components_are_joined(engine, logits_of):
    mask = np.zeros((1, 4, 8), bool)
    mask[0, 1, 1:7] = True  # across both borders of the window
    table = engine.find_peaks(logits_of(mask), np.ones((1, 3, 4)), window=Window(1, 2, 3, 4))
    assert (table.y[0], table.x[0], table.n_pixels[0]) == (0.0, 1.5, 4)
    assert table.box.tolist() == [[0, 0, 0, 3]]


@pytest.mark.parametrize(
    "window",
    [Window(-1, 0, 2, 2), Window(0, 0, 5, 2), Window(3, 0, 2, 2), Window(0, 3, 2, 2), Window(0, 0, -1, 2),
     Window(0, 9, 1, 1)],
)  # fmt: skip
def test_a_window_beyond_the_panel_is_refused(engine, logits_of, window):
    with pytest.raises(InputError, match="does not lie in a panel of 4 x 4"):
        engine.find_peaks(logits_of(np.zeros((1, 4, 4))), None, window=window)


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros((2, 2, 4), np.float32), np.zeros((1, 2, 4, 4), int), np.zeros((1, 2, 4, 4), complex),
        np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 0, 4, 4), np.float32), np.zeros((1, 2, 4, 4), object),
        np.zeros((1, 2, 4, 4), np.longdouble), [[[[1.0]], [[2.0]]]], None,
    ],
    ids=lambda one: f"{getattr(one, 'dtype', type(one))} {getattr(one, 'shape', '')}",
)  # fmt: skip
def test_what_are_no_logits_is_refused(engine, logits):
    with pytest.raises(InputError, match="logits"):
        engine.find_peaks(logits, None)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 4, 5)), np.zeros((2, 4, 4)), np.zeros((1, 1, 4, 4)), np.zeros((1, 4, 4), complex), [[0]]]
)
def test_images_that_do_not_fit_are_refused(engine, logits_of, images):
    with pytest.raises(InputError, match=r"\(1, 4, 4\)"):
        engine.find_peaks(logits_of(np.zeros((1, 4, 4))), images)


def test_masks_are_where_class_1_wins_within_the_window(logits_of):
    mask = np.random.default_rng(4).random((3, 9, 11)) < 0.5
    logits, window = logits_of(mask), Window(2, 3, 5, 7)
    assert np.array_equal(compute.masks(logits, window), mask[:, 2:7, 3:10])
    assert np.array_equal(compute.masks_in_bits(np.packbits(mask, axis=2), 11, window), mask[:, 2:7, 3:10])
    assert np.array_equal(compute.masks_in_pixels(np.argwhere(mask), 3, (9, 11), window), mask[:, 2:7, 3:10])
    assert not compute.masks(np.full((1, 2, 2, 2), np.nan, np.float32)).any()


# -- compact forms --


@pytest.mark.parametrize(
    ("bits", "width"),
    [(np.zeros((1, 4, 2), np.uint8), 17), (np.zeros((1, 4, 2), np.uint8), 8), (np.zeros((1, 4, 2), np.int8), 16),
     (np.zeros((4, 2), np.uint8), 16), (np.zeros((1, 4, 0), np.uint8), -3), ([1], 8)],
)  # fmt: skip
def test_bits_that_do_not_fit_are_refused(engine, bits, width):
    with pytest.raises(InputError):
        engine.find_peaks_in_bits(bits, width, None)


def test_bits_beyond_the_width_are_no_pixels(engine):
    table = engine.find_peaks_in_bits(np.full((1, 1, 2), 255, np.uint8), 11, None)
    assert table.n_pixels.tolist() == [11]


@pytest.mark.parametrize(
    "pixels",
    [[[0, 0, 8]], [[0, 4, 0]], [[2, 0, 0]], [[-1, 0, 0]], [[0, -1, 0]], [[0, 0, -1]], [[0, 0]],
     [[0.0, 0.0, 0.0]], [0, 0, 0]],
)  # fmt: skip
def test_pixels_that_lie_outside_are_refused(engine, pixels):
    with pytest.raises(InputError):
        engine.find_peaks_in_pixels(np.array(pixels), 2, (4, 8), None)


def test_pixels_that_only_an_overflow_brings_inside_are_refused(engine):
    with pytest.raises(InputError):
        engine.find_peaks_in_pixels(np.array([[0, 0, 2**32]]), 1, (4, 8), None)


@pytest.mark.parametrize("shape", [(-1, 8), (4, 2**31), (2**40, 2**40)])
def test_a_panel_of_no_sensible_size_is_refused(engine, shape):
    with pytest.raises(InputError):
        engine.find_peaks_in_pixels(np.zeros((0, 3), np.int32), 1, shape, None)


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.uint64, ">i4"])
def test_pixels_may_come_in_any_order_and_twice(engine, kind):
    pixels = np.array([[1, 2, 4], [0, 1, 1], [1, 2, 3], [0, 1, 1]], kind)
    table = engine.find_peaks_in_pixels(pixels, 2, (4, 8), None)
    assert (table.row.tolist(), table.x.tolist(), table.n_pixels.tolist()) == ([0, 1], [1.0, 3.5], [1, 2])
