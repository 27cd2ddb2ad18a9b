from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import InputError
from nightbeam.ms.compute import cross_uv_range, row_runs


def test_rows_of_one_label_come_together():
    runs = [r.tolist() for r in row_runs(np.array([0, 1, 0, 0, 1]), 2)]
    assert runs == [[0, 2], [3], [1, 4]]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 7))
def test_every_row_comes_once_and_blocks_are_pure(labels, most):
    values = np.array(labels, np.int32)
    runs = list(row_runs(values, most))
    assert sorted(int(r) for run in runs for r in run) == list(range(len(labels)))
    assert all(len(run) <= most and len(set(values[run])) == 1 for run in runs)


def test_spacings_leave_out_autocorrelations_and_w():
    uvw = np.array([[0.0, 0, 0], [3, 4, 100], [6, 8, 0]])
    assert cross_uv_range(uvw, np.array([0, 0, 1]), np.array([0, 1, 2])) == (5.0, 10.0)


def test_only_autocorrelations_have_no_spacing():
    with pytest.raises(InputError, match="only autocorrelations"):
        cross_uv_range(np.zeros((2, 3)), np.array([0, 1]), np.array([0, 1]))
