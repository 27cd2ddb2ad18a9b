"""Padding, normalising, and the forms of an answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import InputError
from nightbeam.peaks.model import Window
from nightbeam.replay.compute import mask_of, normalize, pad, padded_size, predictions_of


@pytest.mark.parametrize(("style", "window"), [("bottom-right", Window(0, 0, 2, 3)), ("center", Window(1, 2, 2, 3))])
def test_the_pad_is_where_the_style_says_and_the_odd_pixel_at_the_end(style, window):
    frames = np.arange(1, 13, dtype=np.float32).reshape(1, 2, 2, 3)
    rows, found = pad(frames, (5, 8), style)
    assert found == window
    assert rows.shape == (2, 1, 5, 8)
    inside = rows[:, 0, window.top : window.top + 2, window.left : window.left + 3]
    assert np.array_equal(inside, frames[0])
    assert np.count_nonzero(rows) == 12


@given(
    st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 9)] * 2), st.integers(0, 5), st.integers(0, 5),
    st.sampled_from(["bottom-right", "center"]),
)  # fmt: skip
def test_a_row_is_event_times_panels_plus_panel_and_nothing_is_lost(shape, down, across, style):
    b, c, height, width = shape
    frames = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows, w = pad(frames, (height + down, width + across), style)
    back = rows.reshape(b, c, height + down, width + across)
    assert np.array_equal(back[:, :, w.top : w.top + w.height, w.left : w.left + w.width], frames)
    assert 0 <= down - 2 * w.top <= down if style == "center" else w.top == 0


def test_what_needs_no_pad_is_no_copy():
    frames = np.zeros((1, 2, 4, 4), np.float32)
    assert np.shares_memory(pad(frames, (4, 4))[0], frames)


def test_sizes_are_the_next_multiple_or_as_asked():
    assert padded_size((352, 384), multiple=64) == (384, 384)
    assert padded_size((352, 384), multiple=32) == (352, 384)
    assert padded_size((352, 384), size=(512, 512), multiple=7) == (512, 512)
    with pytest.raises(InputError, match="352 x 384 px do not fit into 384 x 352"):
        padded_size((352, 384), size=(384, 352))


def test_normalised_panels_have_mean_0_and_variance_1_and_can_be_undone():
    frames = np.random.default_rng(0).normal(50, 7, (2, 3, 40, 40)).astype(np.float32)
    frames[0, 1] = 5.0  # a dead panel
    ours, mean, std = normalize(frames)
    assert ours.dtype == np.float32
    alive = np.ones((2, 3), bool)
    alive[0, 1] = False
    assert ours.mean((2, 3), dtype=float) == pytest.approx(np.zeros((2, 3)), abs=1e-5)
    assert ours.std((2, 3), dtype=float)[alive] == pytest.approx(np.ones(5), rel=1e-5)
    assert (mean.shape, std[1]) == ((6,), 1.0)
    back = ours.reshape(6, 40, 40) * std[:, None, None] + mean[:, None, None]
    assert back == pytest.approx(frames.reshape(6, 40, 40), rel=1e-5)


def test_a_tie_is_background_and_so_is_what_is_not_a_number():
    nan = float("nan")
    logits = torch.tensor([[[[0.0, 1.0, 1.0, nan, 0.0]], [[1.0, 1.0, 0.0, 1.0, nan]]]])
    assert mask_of(logits).tolist() == [[[True, False, False, False, False]]]


def test_bits_are_packed_along_the_rows_and_pixels_are_in_raster_order():
    mask = np.zeros((2, 3, 10), bool)
    mask[0, 1, [0, 9]] = mask[1, 2, 7] = True
    logits = torch.zeros(2, 2, 3, 10)
    bits = predictions_of(logits, mask, "bits")
    assert bits.shape == (2, 3, 2)
    assert bits[0, 1].tolist() == [128, 64]
    assert bits[1, 2].tolist() == [1, 0]
    pixels = predictions_of(logits, mask, "pixels")
    assert pixels.dtype == np.int32
    assert pixels.tolist() == [[0, 1, 0], [0, 1, 9], [1, 2, 7]]


def test_logits_go_as_an_array_by_reference_and_as_a_tensor_by_value():
    logits = torch.rand(1, 2, 3, 4, dtype=torch.bfloat16)
    mask = mask_of(logits)
    array = predictions_of(logits, mask, "logits")
    assert array.dtype == np.float32
    assert np.array_equal(array, logits.float().numpy())
    assert predictions_of(logits.half(), mask, "logits").dtype == np.float16
    assert isinstance(predictions_of(logits, mask, "logits", by_value=True), torch.Tensor)


def test_pixels_that_are_not_finite_are_left_out_of_mean_and_deviation():
    # Of 1, 3, 1, 3: mean 2, standard deviation 1.
    frames = np.array([[1, 3, np.nan], [1, 3, np.inf]], np.float32).reshape(1, 1, 2, 3)
    ours, mean, std = normalize(frames)
    assert (mean.tolist(), std.tolist()) == ([2.0], [1.0])
    assert ours[0, 0, :, :2].tolist() == [[-1, 1], [-1, 1]]
    assert np.isnan(ours[0, 0, 0, 2])
    assert ours[0, 0, 1, 2] == np.inf


def test_a_panel_without_a_finite_pixel_has_mean_0_and_deviation_1():
    _, mean, std = normalize(np.full((1, 2, 2, 2), np.nan, np.float32))
    assert (mean.tolist(), std.tolist()) == ([0.0, 0.0], [1.0, 1.0])
