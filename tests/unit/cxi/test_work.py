from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.cxi.work import HitSettings, assemble, batch_bytes, images_of_rows, process_rows, split_rows
from nightbeam.peaks.model import PeakSettings, Window
from nightbeam.stream.model import BatchError, BatchHeader
from nightbeam.testing.cxi_world import logits

SETTINGS = PeakSettings()
KEEP_ALL = HitSettings(min_num_peak=0)


def header(n_events, form="logits", **kwargs):
    return BatchHeader(
        batch_id="b",
        producer="p",
        sequence=0,
        first_event=0,
        run=None,
        experiment=None,
        n_events=n_events,
        n_panels=2,
        panel_shape=(8, 8),
        network_shape=(8, 8),
        window=Window(0, 0, 8, 8),
        form=form,
        image_kind="network_input",
        timestamps=np.zeros(n_events, np.uint64),
        wall_clock_s=None,
        photon_energy_ev=np.zeros(n_events),
        clen_mm=np.full(n_events, np.nan),
        **kwargs,
    )


def images(n_events):
    rows = n_events * 2
    return np.arange(rows * 64, dtype=np.float32).reshape(rows, 1, 8, 8)


def whole(counts, settings=KEEP_ALL, *, pieces=1, maps=False):
    head, seen = header(len(counts)), images(len(counts))
    parts = [
        process_rows(logits(counts), seen, head, SETTINGS, start, stop, maps)
        for start, stop in split_rows(2 * len(counts), pieces)
    ]
    return assemble(head, parts[::-1], seen, settings)


@pytest.mark.parametrize(
    ("rows", "workers", "expected"),
    [(32, 16, 16), (31, 16, 31), (5, 100, 5), (256, 16, 16), (1, 1, 1), (7, 2, 3)],
)
def test_mini_batches_have_the_size_that_users_know(rows, workers, expected):
    pieces = split_rows(rows, workers)
    assert len(pieces) == expected
    assert {stop - start for start, stop in pieces[:-1]} <= {max(1, rows // workers)}


@given(st.integers(1, 2000), st.integers(1, 300))
def test_the_pieces_cover_every_row_once(rows, workers):
    covered = [row for start, stop in split_rows(rows, workers) for row in range(start, stop)]
    assert covered == list(range(rows))


@given(st.lists(st.integers(0, 16), min_size=1, max_size=5), st.integers(1, 12))
def test_in_how_many_pieces_a_batch_is_cut_makes_no_difference(counts, pieces):
    one, many = whole(counts), whole(counts, pieces=pieces)
    assert [len(event.peaks) for event in many.events] == counts
    for a, b in zip(one.events, many.events, strict=True):
        assert np.array_equal(a.peaks.row, b.peaks.row)
        assert np.array_equal(a.peaks.total, b.peaks.total)


def test_peaks_of_an_event_carry_rows_of_the_batch_and_its_image_is_the_detectors():
    found = whole([1, 10])
    second = found.events[1]
    assert second.index == 1
    assert second.peaks.row.tolist() == [2] * 9 + [3]
    assert np.array_equal(second.image, images(2)[2:, 0])


def test_events_with_too_few_peaks_are_filtered_and_their_images_are_misses():
    found = whole([3, 0, 2], HitSettings(min_num_peak=3))
    assert [event.index for event in found.events] == [0]
    assert (found.filtered, found.truncated) == (2, 0)
    assert np.array_equal(found.misses[0], images(3)[2:4, 0])


def test_of_too_many_peaks_the_strongest_are_kept_in_their_order():
    head, seen = header(1), np.zeros((2, 1, 8, 8), np.float32)
    seen[0, 0, 1, 1], seen[0, 0, 1, 4], seen[0, 0, 4, 1] = 5, 1, 9
    parts = [process_rows(logits([4]), seen, head, PeakSettings(background="none"), 0, 2)]
    found = assemble(head, parts, seen, HitSettings(min_num_peak=1, max_num_peak=2))
    assert found.events[0].peaks.total.tolist() == [5.0, 9.0]
    assert (found.filtered, found.truncated) == (0, 1)


def test_events_above_the_limit_are_dropped_where_that_is_asked():
    found = whole([4, 3], HitSettings(min_num_peak=1, max_num_peak=3, reject_above=True))
    assert [event.index for event in found.events] == [1]
    assert (found.filtered, found.truncated) == (1, 0)


def test_peak_lists_alone_carry_no_image():
    found = whole([3, 0], HitSettings(min_num_peak=1, images=False, misses=False))
    assert found.events[0].image is None
    assert found.misses == ()


def test_maps_are_the_mask_of_the_event():
    found = whole([2, 3], KEEP_ALL, pieces=4, maps=True)
    assert [int(event.segmentation.sum()) for event in found.events] == [2, 3]
    assert found.events[1].segmentation.shape == (2, 8, 8)


@pytest.mark.parametrize("form", ["bits", "pixels"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_compact_forms_give_the_peaks_of_the_logits(form, pieces):
    counts = [3, 11, 0]
    array, seen, head = logits(counts), images(3), header(3, form)
    mask = array[:, 1] > array[:, 0]
    compact = np.packbits(mask, axis=-1) if form == "bits" else np.argwhere(mask).astype(np.int32)
    parts = [process_rows(compact, seen, head, SETTINGS, a, b, True) for a, b in split_rows(6, pieces)]
    found, expected = assemble(head, parts, seen, KEEP_ALL), whole(counts, maps=True)
    for a, b in zip(found.events, expected.events, strict=True):
        assert np.array_equal(a.peaks.row, b.peaks.row)
        assert np.array_equal(a.peaks.x, b.peaks.x)
        assert np.array_equal(a.segmentation, b.segmentation)


def test_normalisation_is_undone_by_row_in_pieces_as_in_the_whole():
    rows = 6
    head = replace(header(3), mean=np.arange(rows, dtype=float), std=np.full(rows, 2.0))
    part = images_of_rows(head, images(3), 3, 5)
    assert np.array_equal(part, images(3)[3:5, 0] * 2 + np.array([3.0, 4.0])[:, None, None])


@pytest.mark.parametrize(
    ("predictions", "reason"),
    [
        (np.zeros((4, 2, 8, 9), np.float32), "bad shape"),
        (np.zeros((4, 2, 8, 8), np.int32), "malformed"),
    ],
)
def test_arrays_that_are_not_what_was_announced_reject_the_batch(predictions, reason):
    with pytest.raises(BatchError) as caught:
        process_rows(predictions, images(2), header(2), SETTINGS, 0, 4)
    assert caught.value.reason == reason


def test_listed_pixels_of_rows_that_are_not_there_reject_the_batch():
    with pytest.raises(BatchError, match="rows 0 to 9"):
        process_rows(np.array([[0, 1, 1], [9, 1, 1]]), images(2), header(2, "pixels"), SETTINGS, 0, 2)


def test_logits_that_are_not_numbers_are_background_and_counted():
    array = logits([3, 3])
    array[0, 1, 1, 1] = np.nan
    found = process_rows(array, images(2), header(2), SETTINGS, 0, 4)
    assert (len(found.peaks), found.peaks.nan_pixels, found.peaks.nan_rows) == (5, 1, 1)


def test_a_batch_of_logits_holds_eight_bytes_of_them_and_four_of_image_for_each_pixel():
    assert batch_bytes(header(2)) == (4 * 64 * 8, 4 * 64 * 4)
