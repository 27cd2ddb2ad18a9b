"""A picture is as long as its sky, and the numbers at its bar can be read."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nightbeam.imaging.figures import draw_image
from nightbeam.imaging.files import SkyImage, open_image
from nightbeam.testing.sky_tiles import SkyTile, write_tile


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory) -> SkyImage:
    stem = tmp_path_factory.mktemp("tile") / "t"
    write_tile(stem, SkyTile(ra_deg=0.2, dec_deg=33.0, mid_mjd=60951.5, imsize=120), [])
    return open_image(next(Path(stem.parent).glob("t*.image.fits")))


def _cut(tile: SkyImage, high: int, peak: float) -> SkyImage:
    data = np.random.default_rng(1).normal(0.0, 1e-3, (high, 120)).astype(np.float32)
    data[high // 2, 60] = peak
    return SkyImage(tile.path, data, tile.header, tile.wcs)


@pytest.mark.parametrize("high", [120, 60, 20, 4])
@pytest.mark.parametrize("peak", [0.02, 1.0, 90.0])
def test_no_number_of_the_bar_touches_another_and_a_strip_is_no_higher_than_it_needs(
    tile: SkyImage, high: int, peak: float
):
    figure = draw_image(_cut(tile, high, peak), title="a strip")
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    assert (width > 1.4 * height) == (high < 120), (width, height)
    bar = figure.axes[1]
    labels = [one for axis in (bar.xaxis, bar.yaxis) for one in axis.get_ticklabels() if one.get_text()]
    boxes = [one.get_window_extent() for one in labels]
    assert len(boxes) >= 2
    assert not any(one.overlaps(other) for one, other in pairwise(boxes)), [one.get_text() for one in labels]
