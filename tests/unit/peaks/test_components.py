"""Components, their order, size and centroid, against scipy."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nightbeam.peaks import compute, kernel, slow
from nightbeam.peaks.model import PeakSettings, Window

ENGINES = pytest.mark.parametrize("engine", [compute, slow], ids=["compiled", "scipy"])


def by_scipy(mask, connectivity):
    """Row, first pixel, size and centre of each component of (rows, H, W), in the order that is asked for."""
    structure = np.ones((3, 3)) if connectivity == 8 else None
    found = []
    for row, one in enumerate(mask):
        labels, number = ndimage.label(one, structure=structure)
        index = np.arange(1, number + 1)
        sizes = ndimage.sum_labels(one, labels, index)
        centres = ndimage.center_of_mass(one, labels, index)
        boxes = ndimage.find_objects(labels)
        for k in range(number):
            first = int(np.flatnonzero(labels.ravel() == k + 1)[0])
            y, x = boxes[k]
            found.append((row, first, int(sizes[k]), *centres[k], y.start, y.stop - 1, x.start, x.stop - 1))
    return sorted(found)


def three_forms(engine, mask, **more):
    """The same mask as logits, bits and pixels."""
    logits = np.stack([np.zeros(mask.shape, np.float32), np.where(mask, 1, -1).astype(np.float32)], axis=1)
    rows, height, width = mask.shape
    return [
        engine.find_peaks(logits, None, **more),
        engine.find_peaks_in_bits(np.packbits(mask, axis=2), width, None, **more),
        engine.find_peaks_in_pixels(np.argwhere(mask).astype(np.int32), rows, (height, width), None, **more),
    ]


@st.composite
def panels(draw):
    size = st.one_of(st.just(1), st.integers(1, 9), st.sampled_from([31, 32, 33, 64, 65]))
    shape = (draw(st.integers(1, 3)), draw(size), draw(size))
    density = draw(st.sampled_from([0.001, 0.02, 0.1, 0.3, 0.5, 0.6, 0.8, 0.95]))
    return np.random.default_rng(draw(st.integers(0, 2**32))).random(shape) < density


@ENGINES
@settings(max_examples=120)
@given(mask=panels(), connectivity=st.sampled_from([4, 8]))
def test_components_are_those_of_scipy_in_all_three_forms(engine, mask, connectivity):
    expected = by_scipy(mask, connectivity)
    for table in three_forms(engine, mask, settings=PeakSettings(connectivity=connectivity)):
        assert len(table) == len(expected)
        assert table.row.tolist() == [one[0] for one in expected]
        assert table.n_pixels.tolist() == [one[2] for one in expected]
        assert table.box.tolist() == [list(one[5:]) for one in expected]
        np.testing.assert_allclose(table.y, [one[3] for one in expected], rtol=0, atol=1e-10)
        np.testing.assert_allclose(table.x, [one[4] for one in expected], rtol=0, atol=1e-10)


@ENGINES
@given(mask=panels(), data=st.data())
def test_a_window_is_as_good_as_a_smaller_panel(engine, mask, data):
    _, height, width = mask.shape
    top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    at = Window(top, left, data.draw(st.integers(0, height - top)), data.draw(st.integers(0, width - left)))
    small = three_forms(engine, np.ascontiguousarray(mask[:, top : top + at.height, left : left + at.width]))[0]
    for table in three_forms(engine, mask, window=at):
        for name in ("row", "y", "x", "n_pixels", "box"):
            assert np.array_equal(getattr(table, name), getattr(small, name))


def test_centroids_are_exact_quotients_of_whole_numbers(engine, logits_of):
    mask = np.zeros((1, 2000, 1800), bool)
    mask[0, 1990:1993, 1700:1797] = True
    mask[0, 1993, 1700] = True
    y = (97 * (1990 + 1991 + 1992) + 1993) / 292
    x = (3 * sum(range(1700, 1797)) + 1700) / 292
    table = engine.find_peaks(logits_of(mask), None)
    assert (table.y[0], table.x[0]) == (y, x)


def test_peaks_are_ordered_by_row_then_by_their_first_pixel(engine, logits_of):
    mask = np.zeros((2, 4, 9), bool)
    mask[1, 0, 8] = mask[1, 1:4, 1] = True
    mask[0, 3, 0] = True
    mask[1, 0, 4] = mask[1, 1, 3] = mask[1, 2, 3] = True  # begins at (0, 4): before (0, 8), which is before (1, 1)
    table = engine.find_peaks(logits_of(mask), None, first_row=6)
    assert table.row.tolist() == [6, 7, 7, 7]
    assert table.box[:, :1].ravel().tolist() == [3, 0, 0, 1]
    assert table.n_pixels.tolist() == [1, 3, 1, 3]


def test_corners_join_only_if_asked_and_only_of_neighbours(engine, logits_of):
    mask = np.zeros((1, 3, 9), bool)
    mask[0, 0, :3] = mask[0, 1, 3:5] = mask[0, 2, 5] = True
    logits = logits_of(mask)
    assert engine.find_peaks(logits, None).n_pixels.tolist() == [6]
    assert engine.find_peaks(logits, None, settings=PeakSettings(connectivity=4)).n_pixels.tolist() == [3, 2, 1]


def test_components_of_different_rows_never_join(engine, logits_of):
    mask = np.zeros((2, 2, 3), bool)
    mask[0, 1], mask[1, 0] = True, True
    assert engine.find_peaks(logits_of(mask), None).row.tolist() == [0, 1]


def test_a_line_of_a_panel_does_not_join_the_next_around_the_edge(engine, logits_of):
    mask = np.zeros((1, 4, 32), bool)
    mask[0, 0, 31] = mask[0, 2, 0] = True
    assert len(engine.find_peaks(logits_of(mask), None)) == 2


@pytest.mark.parametrize("width", [1, 31, 32, 33, 64, 384])
def test_runs_go_on_from_block_to_block(engine, logits_of, width):
    table = engine.find_peaks(logits_of(np.ones((1, 1, width))), None)
    assert table.box.tolist() == [[0, 0, 0, width - 1]]


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (2, 4, 0), (0, 0, 0)])
def test_where_there_is_nothing_nothing_is_found(engine, shape):
    for table in three_forms(engine, np.ones(shape, bool)):
        assert len(table) == 0
        assert table.box.shape == (0, 4)
    with_image = engine.find_peaks(np.zeros((shape[0], 2, *shape[1:]), np.float32), np.zeros(shape))
    assert len(with_image) == 0


def test_a_full_panel_is_one_component(engine):
    for table in three_forms(engine, np.ones((2, 352, 384), bool)):
        assert table.n_pixels.tolist() == [135168, 135168]
        assert table.y.tolist() == [175.5, 175.5]
        assert table.x.tolist() == [191.5, 191.5]


def test_a_checkerboard_is_one_component_or_as_many_as_pixels():
    mask = np.indices((1, 352, 384)).sum(axis=0) % 2 == 0
    for connectivity, number in ((8, 1), (4, 352 * 384 // 2)):
        for table in three_forms(compute, mask, settings=PeakSettings(connectivity=connectivity)):
            assert len(table) == number
            assert table.n_pixels.sum() == 352 * 384 // 2


def spiral(size):
    """A path one pixel wide from the outside to the middle, with gaps of one pixel."""
    mask, y, x, dy, dx = np.zeros((size, size), bool), 0, 0, 0, 1
    mask[0, 0] = True

    def free(y, x):
        return 0 <= y < size and 0 <= x < size and not mask[y, x]

    while True:
        ahead = free(y + dy, x + dx) and (
            not (0 <= y + 2 * dy < size and 0 <= x + 2 * dx < size) or free(y + 2 * dy, x + 2 * dx)
        )
        if not ahead:
            dy, dx = dx, -dy
            if not (free(y + dy, x + dx) and free(y + 2 * dy, x + 2 * dx)):
                return mask
        y, x = y + dy, x + dx
        mask[y, x] = True


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_a_long_spiral_is_one_component(engine, turn):
    mask = np.rot90(spiral(151), turn)[None]
    assert mask.sum() > 10000
    for table in three_forms(engine, np.ascontiguousarray(mask), settings=PeakSettings(connectivity=4)):
        assert table.n_pixels.tolist() == [mask.sum()]


def test_teeth_that_meet_in_the_last_line_are_one_component(engine):
    mask = np.zeros((1, 100, 301), bool)
    mask[0, :, ::2] = mask[0, -1] = True
    assert [len(table) for table in three_forms(engine, mask, settings=PeakSettings(connectivity=4))] == [1, 1, 1]


def test_too_small_and_too_large_components_are_no_peaks(engine, logits_of):
    mask = np.zeros((1, 5, 20), bool)
    mask[0, 0, 0] = mask[0, 2, 5:8] = mask[0, 4, 10:16] = True
    table = engine.find_peaks(logits_of(mask), None, settings=PeakSettings(min_pixels=2, max_pixels=3))
    assert (table.n_pixels.tolist(), table.x.tolist()) == ([3], [6.0])


def test_nothing_is_compiled_again_for_the_next_batch():
    dice = np.random.default_rng(0)

    def look(rows, shape, kind):
        logits = dice.normal(size=(rows, 2, *shape)).astype(kind)
        images = dice.normal(size=(rows, *shape)).astype(np.float32)
        logits.flags.writeable = rows % 2 == 0
        compute.find_peaks(logits, images, first_row=rows)
        compute.find_peaks(logits, None, settings=PeakSettings(min_probability=0.3, max_pixels=5, connectivity=4))
        compute.find_peaks_in_bits(np.packbits(logits[:, 1] > 0, axis=2), shape[1], images)
        compute.find_peaks_in_pixels(np.argwhere(logits[:, 1] > 0), rows, shape, images)

    look(1, (8, 40), np.float32)
    entries = [kernel.runs_of_logits, kernel.runs_of_bits, kernel.runs_of_pixels, kernel.measure]
    before = [len(one.signatures) for one in entries]
    for rows, shape, kind in ((2, (9, 9), np.float32), (3, (1, 70), np.float16), (4, (33, 1), np.float32)):
        look(rows, shape, kind)
    assert [len(one.signatures) for one in entries] == before


@pytest.mark.slow  # compiles them all
def test_kinds_of_images_have_few_compiled_versions():
    kinds = ["f4", "f8", "u2", "f2", "i1", "u1", "i2", "i4", "i8", "u4", "u8", "?", ">f4", ">u2"]
    for kind in kinds:
        images = np.zeros((1, 8, 16), kind)
        for view in (images, images[:, :4, :8], images[:, ::2, ::2], images[..., ::-1]):
            compute.find_peaks(np.zeros((1, 2, *view.shape[1:]), np.float32), view)
    assert len(kernel.measure.signatures) <= 2 * 3


def test_both_engines_have_the_same_signatures():
    for name in slow.__all__:
        assert inspect.signature(getattr(slow, name)) == inspect.signature(getattr(compute, name))
