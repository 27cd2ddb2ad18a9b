"""What needs no cluster; the rest is in tests/system/test_stream.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nightbeam.stream import arrays
from nightbeam.stream.arrays import fetch
from nightbeam.stream.model import PipelineOutput


def test_arrays_inside_a_message_need_no_cluster():
    direct = PipelineOutput(predictions=torch.ones(2, 2, 3, 3), original_image_ref=np.ones((2, 1, 3, 3)))
    assert fetch(direct).images.shape == (2, 1, 3, 3)
    without = SimpleNamespace(image_kind="none")
    assert fetch(direct, without).images is None


@pytest.mark.parametrize(("header", "limit_s"), [(None, 10.0), (SimpleNamespace(image_kind="none"), 120.0)])
def test_arrays_that_the_loop_itself_waits_for_must_come_soon(header, limit_s, monkeypatch):
    asked = []
    monkeypatch.setattr(arrays, "_fetch_all", lambda values, _, limit: asked.append(limit) or values)
    fetch(PipelineOutput(predictions=torch.ones(1)), header)
    assert asked == [limit_s]
