from dataclasses import replace

import pytest

from nightbeam.mosaic import Tile
from nightbeam.sky.model import Calibrator
from nightbeam.testing.sky_tiles import SkyTile, write_tile

#: Small and quick: 2.1 degrees in 96 pixels of 80 arcsec.
SMALL = SkyTile(
    ra_deg=10.0,
    dec_deg=16.0,
    mid_mjd=60950.1,
    imsize=96,
    cell_arcsec=80.0,
    beam_major_arcsec=400.0,
    beam_minor_arcsec=320.0,
)
SKY = [
    Calibrator("A", 10.1, 16.1, 1.0),
    Calibrator("B", 9.7, 15.8, 0.5),
    Calibrator("C", 10.3, 15.7, 0.7),
    Calibrator("D", 9.6, 16.3, 0.6),
]


@pytest.fixture
def small_tile(tmp_path):
    """Return a function that writes a small tile and returns it."""

    def make(name="tile", sources=SKY, **changes):
        product = write_tile(tmp_path / "images" / f"{name}.img", replace(SMALL, **changes), sources)
        return Tile.from_image(product, group_id=name)

    return make
