"""Pixels on the slab, in the type of the file."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from nightbeam.cxi.detector import Slabs, describe_detector, radius_px
from nightbeam.geometry.files import parse_geometry

NAN, INF = float("nan"), float("inf")
MOST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("given", "wanted", "kept", "counts"),
    [
        # given, type of the file, what it holds, (clipped, rounded, not finite)
        (np.array([NAN, INF, -INF, 1e39, -1e39, 0.1, 0.5]), "float32",
         [NAN, INF, -INF, MOST, -MOST, float(np.float32(0.1)), 0.5], (2, 1, 3)),
        (np.array([NAN, INF, -INF, 1e9, -1e9, 2049, 0.5], np.float32), "float16",
         [NAN, INF, -INF, 65504, -65504, 2048, 0.5], (2, 1, 3)),
        (np.array([NAN, INF, -INF, 1e9, -1e9, 0.5, 7], np.float32), "int16",
         [0, 32767, -32768, 32767, -32768, 0, 7], (2, 1, 3)),
        (np.array([NAN, INF, 3e9, 2147483647.0]), "int32", [0, 2147483647, 2147483647, 2147483647], (1, 0, 2)),
        (np.array([2**24 + 1, 2**24, -5], np.int32), "float32", [2**24, 2**24, -5], (0, 1, 0)),
        (np.array([2**60 + 1, 2**60], np.int64), "float32", [2**60, 2**60], (0, 1, 0)),
        (np.array([70000, 2049, 3], np.int32), "float16", [65504, 2048, 3], (1, 1, 0)),
        (np.array([70000, -1, 3], np.int32), "uint16", [65535, 0, 3], (2, 0, 0)),
        (np.array([65535, 3], np.uint16), "int16", [32767, 3], (1, 0, 0)),
        (np.array([65535, 3], np.uint16), "float32", [65535, 3], (0, 0, 0)),
        (np.array([NAN, INF, 0.1], np.float16), "float32", [NAN, INF, float(np.float16(0.1))], (0, 0, 0)),
    ],
)  # fmt: skip
def test_each_pixel_that_the_file_cannot_hold_is_counted_once(given, wanted, kept, counts):
    slabs = Slabs(describe_detector((1, 1, given.size)), np.dtype(wanted))
    assert np.array_equal(slabs.of(given.reshape(1, 1, -1)).ravel(), np.array(kept, wanted), equal_nan=True)
    assert astuple(slabs.counts) == counts


def test_the_radius_of_a_peak_knows_the_shift_of_the_detector(geom_text):
    # Panel p0a0 begins at (-27, 23); 10 pixels a mm. Its first centre is then at (-27 + 0.5 + 20, 23 - 0.5 - 10).
    moved = parse_geometry("detector_shift_x = 2 mm\ndetector_shift_y = -1 mm\n" + geom_text())
    assert radius_px(moved, np.zeros(1), np.zeros(1)) == pytest.approx(np.hypot(6.5, 12.5))
