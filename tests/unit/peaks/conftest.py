"""Masks and logits to look for peaks in."""

import numpy as np
import pytest

from nightbeam.peaks import compute, slow


@pytest.fixture(params=[compute, slow], ids=["compiled", "scipy"])
def engine(request):
    """Both ways to find peaks; each must pass the same tests."""
    return request.param


@pytest.fixture
def logits_of():
    """Logits (rows, 2, H, W) whose class 1 wins where a mask (rows, H, W) is true."""

    def made(mask):
        mask = np.asarray(mask, bool)
        return np.stack([np.zeros(mask.shape, np.float32), np.where(mask, 1, -1).astype(np.float32)], axis=1)

    return made
