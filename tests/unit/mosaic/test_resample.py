import numpy as np
import pytest
from astropy.wcs import WCS

from nightbeam.mosaic.compute import Block, common_grid, grid_wcs
from nightbeam.mosaic.model import Tile
from nightbeam.mosaic.resample import interpolate, places


def sin_wcs(ra, dec, n=200, cell=0.01):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---SIN", "DEC--SIN"], [ra, dec]
    wcs.wcs.cdelt, wcs.wcs.crpix = [-cell, cell], [n / 2 + 1, n / 2 + 1]
    wcs.wcs.radesys = "ICRS"
    return wcs


def tile(ra, dec):
    return Tile(
        path=f"/{ra}", ra_deg=ra % 360.0, dec_deg=dec, width=200, height=200, cell_arcsec=36.0, beam_minor_arcsec=200.0
    )


@pytest.mark.parametrize("ras", [[359.0, 360.6], [100.0 + 1.3 * k for k in range(20)]])
@pytest.mark.parametrize("dec", [0.0, 54.6, -75.0])
def test_places_are_those_of_astropy_for_every_pixel(ras, dec):
    grid = common_grid([tile(ra, dec) for ra in ras])
    wcs, own = grid_wcs(grid.cards), sin_wcs(ras[0] % 360.0, dec)
    cx, cy = (int(v) for v in wcs.wcs_world2pix(ras[0], dec, 0))
    block = Block(cx - 70, cy - 60, cx + 51, cy + 58)
    x, y = places(block, wcs, own)
    gx, gy = np.meshgrid(np.arange(block.x0, block.x1), np.arange(block.y0, block.y1))
    wanted = own.wcs_world2pix(*wcs.wcs_pix2world(gx.ravel(), gy.ravel(), 0), 0)
    np.testing.assert_allclose(x.ravel(), wanted[0], atol=1e-5)
    np.testing.assert_allclose(y.ravel(), wanted[1], atol=1e-5)


def test_a_block_behind_the_tile_s_sky_has_no_places():
    grid = grid_wcs(common_grid([tile(1.3 * k, 0.0) for k in range(40)]).cards)
    x, _ = places(Block(0, 0, 40, 40), grid, sin_wcs(200.0, 0.0))
    assert (x == -1e6).all()


def test_interpolation_is_that_of_reproject():
    from reproject import reproject_interp

    planes = np.random.default_rng(1).normal(size=(2, 200, 200)).astype(np.float32)
    grid, own = grid_wcs(common_grid([tile(10.0, 30.0)]).cards), sin_wcs(10.0, 30.0)
    ours = interpolate(planes, *places(Block(20, 30, 140, 130), grid, own))
    theirs = reproject_interp(
        (planes, own), grid, shape_out=(2, 130, 140), order="bicubic", roundtrip_coords=False, return_footprint=False
    )
    np.testing.assert_allclose(ours, theirs[:, 30:, 20:], atol=1e-4)


def test_outside_a_tile_there_is_nothing():
    planes = np.ones((1, 20, 20), np.float32)
    found = interpolate(planes, np.array([[-0.6, -0.4, 10.0, 19.4, 19.6]]), np.full((1, 5), 10.0))
    assert np.isnan(found[0, 0]).tolist() == [True, False, False, False, True]
    assert found[0, 0, 2] == pytest.approx(1.0)
