"""Tables of events."""

from __future__ import annotations

import numpy as np
import pytest

from nightbeam.cxi.columns import copied_columns


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.array([b"a", b"bc", b"\xff"]), [b"a", b"bc", b"\xff"]),
        (np.array(["a", "\u00e9", "\udc80"]), [b"a", b"\xc3\xa9", b"\\udc80"]),
        (np.array([1, 2, 3]), [1, 2, 3]),
    ],
)
def test_bytes_stay_bytes_and_every_text_can_be_written(make_batch, given, kept):
    columns = copied_columns(make_batch(copied={"note": given}).events)
    assert columns["note"].tolist() == kept


def test_a_batch_without_the_key_leaves_bytes_empty(make_batch):
    events = make_batch(0, copied={"note": np.array([b"a", b"b", b"c"])}).events + make_batch(1).events
    assert copied_columns(events)["note"].tolist() == [b"a", b"b", b"c", b"", b"", b""]
