"""What is done with tables of peaks."""

import numpy as np
import pytest

from nightbeam.core.errors import ConfigError, InputError
from nightbeam.peaks import compute


def table(logits_of, totals, row=0):
    """Peaks of one pixel, side by side, with these totals."""
    mask = np.zeros((row + 1, 1, 2 * len(totals)), bool)
    mask[row, 0, ::2] = True
    images = np.zeros(mask.shape)
    images[row, 0, ::2] = totals
    return compute.find_peaks(logits_of(mask), images)


def test_the_strongest_keep_their_order_and_of_equals_the_first_win(logits_of):
    best = compute.strongest(table(logits_of, [5, 1, 9, 5, 7, 5]), 4)
    assert best.total.tolist() == [5, 9, 5, 7]
    assert best.x.tolist() == [0, 4, 6, 8]
    assert best.box.shape == (4, 4)


def test_few_peaks_are_all_kept_and_none_may_be(logits_of):
    some = table(logits_of, [2, 1])
    assert compute.strongest(some, 2).total.tolist() == [2, 1]
    assert len(compute.strongest(some, 0)) == 0
    with pytest.raises(ConfigError):
        compute.strongest(some, -1)


def test_offsets_of_events(logits_of):
    mask = np.zeros((6, 1, 5), bool)
    mask[0, 0, 0] = mask[1, 0, [0, 2, 4]] = mask[5, 0, 1] = True
    found = compute.find_peaks(logits_of(mask), None)
    assert compute.select_events(found, 3, 2).tolist() == [0, 4, 4, 5]
    assert compute.select_events(found, 6, 1).tolist() == [0, 1, 4, 4, 4, 4, 5]
    assert compute.select_events(found.select(slice(0, 0)), 2, 3).tolist() == [0, 0, 0]


def test_peaks_of_rows_that_are_not_there_are_no_events(logits_of):
    found = table(logits_of, [1, 2], row=3)
    with pytest.raises(InputError, match="rows 3 to 3"):
        compute.select_events(found, 3, 1)
    mixed = compute.join_tables([found, table(logits_of, [1])])
    with pytest.raises(InputError, match="rows 0 to 3"):
        compute.select_events(mixed, 4, 1)


def test_joined_tables_add_up_what_is_no_number():
    logits = np.full((2, 2, 1, 3), np.nan, np.float32)
    one = compute.find_peaks(logits, None)
    both = compute.join_tables([one, one])
    assert (len(both), both.nan_pixels, both.nan_rows) == (0, 12, 4)
    assert len(compute.join_tables([])) == 0
