import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io.fits import Header
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import InputError
from nightbeam.mosaic.compute import (
    Block,
    Combination,
    circular_mean_deg,
    combine,
    common_grid,
    cut_strip,
    footprint,
    grid_blocks,
    interpolation_factor,
    mean_beam,
    measure_block,
    sampled_noise,
    split_strips,
    tile_outline,
)
from nightbeam.mosaic.model import Tile
from nightbeam.testing.sky_tiles import TILE_STEP_DEG


def tile(name, ra, dec=16.0, *, degrees=2.0, **more):
    known = {
        "width": 256,
        "height": 256,
        "cell_arcsec": degrees * 3600.0 / 256,
        "beam_major_arcsec": 200.0,
        "beam_minor_arcsec": 160.0,
        "beam_pa_deg": 0.0,
        "noise_jy": 2e-3,
        "dynamic_range": 100.0,
        "freq_hz": 1.4e9,
        "calibration_set": "A",
    }
    return Tile(path=Path(f"/t/{name}.fits"), group_id=name, ra_deg=ra, dec_deg=dec, **(known | more))


def names(strips):
    return [[t.group_id for t in s.tiles] for s in strips]


# -- angles --------------------------------------------------------------------------------------------------------


def test_the_mean_of_359_and_1_degrees_is_0():
    assert circular_mean_deg([359.0, 1.0]) % 360.0 == pytest.approx(0.0, abs=1e-9)


def test_right_ascensions_all_around_have_no_mean():
    with pytest.raises(InputError, match="all around"):
        circular_mean_deg([0.0, 120.0, 240.0])


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=9), st.floats(0, 360))
def test_the_mean_turns_with_the_sky(offsets, turn):
    still, turned = circular_mean_deg(offsets), circular_mean_deg([o + turn for o in offsets])
    assert (turned - still - turn + 180.0) % 360.0 - 180.0 == pytest.approx(0.0, abs=1e-6)


# -- strips --------------------------------------------------------------------------------------------------------


def test_tiles_side_by_side_are_one_strip_from_west_to_east():
    assert names(split_strips([tile("c", 12.6), tile("a", 10.0), tile("b", 11.3)])) == [["a", "b", "c"]]


def test_a_strip_across_0_h_stays_in_one_piece():
    tiles = [tile("c", 0.3), tile("a", 357.7), tile("d", 1.6), tile("b", 359.0)]
    assert names(split_strips(tiles)) == [["a", "b", "c", "d"]]


def test_tiles_of_two_declinations_are_two_strips():
    tiles = [tile("a", 10.0), tile("x", 10.0, 17.5), tile("b", 11.3), tile("y", 11.3, 17.5)]
    assert names(split_strips(tiles)) == [["a", "b"], ["x", "y"]]


def test_a_tile_elsewhere_tears_no_strip_apart():
    # 16.0 to 16.6 are within a degree; one at 15.5 far away must not lay the limit through them.
    tiles = [tile("a", 10.0, 16.0), tile("b", 11.3, 16.6), tile("c", 12.6, 16.1), tile("far", 80.0, 15.5)]
    assert sorted(names(split_strips(tiles))) == [["a", "b", "c"], ["far"]]


def test_what_climbs_beyond_the_limit_is_cut_in_declination():
    tiles = [tile(f"{k}", 10.0 + 0.5 * k, 16.0 + 0.4 * k) for k in range(5)]
    strips = split_strips(tiles)
    assert len(strips) == 2
    assert all(max(t.dec_deg for t in s.tiles) - min(t.dec_deg for t in s.tiles) <= 1.0 for s in strips)


def test_a_gap_in_right_ascension_makes_two_strips_in_the_order_of_observation():
    tiles = [tile("a", 10.0, mid_mjd=2.0), tile("b", 11.3, mid_mjd=2.1), tile("x", 50.0, mid_mjd=1.0)]
    assert names(split_strips(tiles)) == [["x"], ["a", "b"]]


def test_neighbours_that_must_overlap_by_half_do_not_when_they_overlap_by_a_third():
    apart = 1.34 / math.cos(math.radians(16.0))
    tiles = [tile("a", 10.0), tile("b", 10.0 + apart)]
    assert len(split_strips(tiles, min_overlap=0.3)) == 1
    assert len(split_strips(tiles, min_overlap=0.5)) == 2


def test_right_ascension_shrinks_towards_the_pole():
    # 3.4 degrees of right ascension at Dec 60 are 1.7 on the sky, at Dec 16 they are 3.3.
    assert len(split_strips([tile("a", 10.0, 60.0), tile("b", 13.4, 60.0)])) == 1
    assert len(split_strips([tile("a", 10.0, 16.0), tile("b", 13.4, 16.0)])) == 2


def test_a_strip_all_around_the_sky_begins_after_its_widest_gap():
    ras = [k * 1.2 for k in range(300)]
    ras[100] += 0.3
    (strip,) = split_strips([tile(f"{k}", ra % 360.0) for k, ra in enumerate(ras)])
    assert len(strip.tiles) == 300
    assert strip.tiles[0].group_id == "100"


def test_a_tile_whose_place_is_not_known_cannot_be_put_into_a_strip():
    with pytest.raises(InputError, match="where a lies"):
        split_strips([Tile(path=Path("a"), group_id="a")])


# -- pieces of long strips -----------------------------------------------------------------------------------------

#: One day of drifting at the real cadence, and tiles of 4800 pixels of 3 arcsec, as the imager makes them at most.
DAY = 280
REAL = {"width": 4800, "height": 4800, "cell_arcsec": 3.0, "beam_major_arcsec": 40.0, "beam_minor_arcsec": 25.0}


def day(dec, *, first=77.0, tiles=DAY, without=()):
    ras = [(first + k * TILE_STEP_DEG) % 360.0 for k in range(tiles)]
    return [
        tile(f"{k}", ra, dec, mid_mjd=60950.0 + k * 309.12 / 86400.0, **REAL)
        for k, ra in enumerate(ras)
        if k not in without
    ]


def pieces_of(tiles, *, max_span_deg=60.0, overlap_tiles=2):
    (strip,) = split_strips(tiles)
    return cut_strip(strip, max_span_deg=max_span_deg, overlap_tiles=overlap_tiles)


@pytest.mark.parametrize("dec", [0.0, 16.0, 54.6, 60.0, 71.6, 85.0])
def test_a_whole_day_has_grids_that_can_be_made(dec):
    pieces = pieces_of(day(dec))
    grids = [common_grid(piece.tiles) for piece in pieces]
    assert len(pieces) == 6
    assert max(grid.width * grid.height for grid in grids) < 0.5e9


@pytest.mark.parametrize("dec", [0.0, 54.6, 85.0])
def test_around_the_whole_sky_every_two_neighbours_are_together_in_a_piece(dec):
    tiles = day(dec)
    (strip,) = split_strips(tiles)
    pieces = pieces_of(tiles)
    together = {(a.group_id, b.group_id) for p in pieces for a, b in itertools.pairwise(p.tiles)}
    around = [*strip.tiles, strip.tiles[0]]
    assert {(a.group_id, b.group_id) for a, b in itertools.pairwise(around)} <= together
    assert sum(len(piece.tiles) for piece in pieces) == DAY + 6 * 2


@pytest.mark.parametrize(("first", "tiles"), [(77.0, DAY), (310.0, 150), (0.1, 100)])
@pytest.mark.parametrize("late", [3, 45, 60, 98])
def test_a_late_tile_changes_its_own_piece_and_at_most_the_one_before(first, tiles, late):
    before = {p.tiles for p in pieces_of(day(30.0, first=first, tiles=tiles, without=(late,)))}
    after = {p.tiles for p in pieces_of(day(30.0, first=first, tiles=tiles))}
    assert 1 <= len(after - before) <= 2
    assert len(before - after) <= 2


def test_a_piece_has_the_first_tiles_of_the_next_and_slivers_join_their_neighbours():
    # The lattice cuts at 60 and 120 degrees: 50 to 58 and 120 to 130 are slivers, 120 to 150 is none.
    tiles = [tile(f"{ra}", float(ra)) for ra in range(50, 131, 2)]
    assert names(pieces_of(tiles, max_span_deg=60.0)) == [[f"{ra}" for ra in range(50, 131, 2)]]
    longer = [tile(f"{ra}", float(ra)) for ra in range(50, 151, 2)]
    one, other = names(pieces_of(longer, max_span_deg=60.0))
    assert (one[0], one[-1], other[0], other[-1]) == ("50", "122", "120", "150")
    assert names(pieces_of(longer, overlap_tiles=0))[0][-1] == "118"


def test_a_strip_that_is_short_enough_is_not_cut_wherever_it_lies():
    tiles = [tile(f"{k}", (340.0 + 1.5 * k) % 360.0) for k in range(40)]
    (strip,) = split_strips(tiles)
    assert cut_strip(strip, max_span_deg=60.0) == [strip]


def test_a_long_strip_across_0_h_is_cut_there():
    tiles = [tile(f"{k}", (330.0 + 1.5 * k) % 360.0) for k in range(60)]
    one, other = names(pieces_of(tiles))
    assert (one[0], one[-1], other[0], other[-1]) == ("0", "21", "20", "59")


@pytest.mark.slow
@given(st.floats(0, 360), st.integers(2, 300), st.floats(5, 360), st.integers(0, 5))
def test_no_tile_is_lost_and_no_piece_too_long_whatever_is_asked_for(first, tiles, span, overlap):
    many = [tile(f"{k}", (first + k * 1.2) % 360.0, 30.0) for k in range(tiles)]
    (strip,) = split_strips(many)
    pieces = cut_strip(strip, max_span_deg=span, overlap_tiles=overlap)
    assert {t.group_id for p in pieces for t in p.tiles} == {t.group_id for t in many}
    assert all(len(p.tiles) * 1.2 <= 1.5 * span + (overlap + 2) * 1.2 for p in pieces)


# -- the grid ------------------------------------------------------------------------------------------------------


def laid_out(ras, dec, **more):
    tiles = [tile(str(ra), ra % 360.0, dec, **more) for ra in ras]
    grid = common_grid(tiles)
    return tiles, grid, WCS(Header(grid.cards))


STRIPS = {
    "compact": ([359.0, 360.3, 361.6], 16.0, "ZEA"),
    "compact at Dec 54": ([100.0 + 1.3 * k for k in range(12)], 54.6, "ZEA"),
    "long": ([340.0 + 1.3 * k for k in range(48)], 16.0, "CEA"),
    "long at Dec -40": ([10.0 + 1.3 * k for k in range(48)], -40.0, "CEA"),
    "polar": ([300.0 + 1.3 * k for k in range(80)], 75.0, "ZEA"),
    "polar south": ([300.0 + 1.3 * k for k in range(80)], -75.0, "ZEA"),
}


@pytest.mark.parametrize("which", STRIPS)
def test_the_grid_holds_every_corner_of_every_tile(which):
    ras, dec, projection = STRIPS[which]
    tiles, grid, wcs = laid_out(ras, dec)
    assert grid.projection == projection
    for one in tiles:
        x, y = wcs.wcs_world2pix(*tile_outline(one).T, 0)
        assert x.min() >= 0
        assert x.max() <= grid.width - 1
        assert y.min() >= 0
        assert y.max() <= grid.height - 1


@pytest.mark.parametrize("which", STRIPS)
def test_a_pixel_has_the_same_solid_angle_everywhere(which):
    ras, dec, _ = STRIPS[which]
    tiles, grid, wcs = laid_out(ras, dec)
    for one in (tiles[0], tiles[len(tiles) // 2], tiles[-1]):
        x, y = (float(v) for v in wcs.wcs_world2pix(one.ra_deg, one.dec_deg, 0))
        ra, d = (np.radians(v) for v in wcs.wcs_pix2world([x - 5, x + 5, x, x], [y, y, y - 5, y + 5], 0))
        # Sides of the parallelogram of ten pixels, as vectors on the sphere.
        v = np.stack([np.cos(d) * np.cos(ra), np.cos(d) * np.sin(ra), np.sin(d)], axis=-1)
        area = np.linalg.norm(np.cross(v[1] - v[0], v[3] - v[2]))
        assert area == pytest.approx((10 * math.radians(grid.cell_arcsec / 3600)) ** 2, rel=1e-4)


@pytest.mark.parametrize("which", STRIPS)
def test_north_is_up_and_east_to_the_left_in_the_middle_of_the_strip(which):
    ras, dec, _ = STRIPS[which]
    _, _, wcs = laid_out(ras, dec)
    middle = 0.5 * (ras[0] + ras[-1])
    x, y = wcs.wcs_world2pix([middle % 360.0] * 2, [dec, dec + 0.1], 0)
    assert y[1] > y[0]
    assert abs(x[1] - x[0]) < 0.02 * (y[1] - y[0])
    east, _ = wcs.wcs_world2pix((middle + 0.1) % 360.0, dec, 0)
    assert east < x[0]


def test_north_is_up_everywhere_on_a_cylinder():
    tiles, _, wcs = laid_out(*STRIPS["long"][:2])
    for one in tiles:
        x, _ = wcs.wcs_world2pix([one.ra_deg] * 2, [one.dec_deg, one.dec_deg + 1.0], 0)
        assert x[0] == pytest.approx(x[1], abs=1e-6)


def test_a_long_strip_does_not_cost_more_than_its_tiles():
    # 48 tiles of 256 x 256 pixels, one 1.3 degrees after the other: as many columns as lie between, not more.
    _, grid, _ = laid_out([10.0 + 1.3 * k for k in range(48)], 16.0)
    cell = 2.0 / 256
    assert grid.width * cell == pytest.approx(
        (47 * 1.3 + 2.0 / math.cos(math.radians(16))) * math.cos(math.radians(16)), rel=0.02
    )
    assert grid.height * cell == pytest.approx(2.0, rel=0.03)


def test_a_strip_all_around_the_sky_is_no_wider_than_the_sky():
    _, grid, _ = laid_out([1.2 * k for k in range(300)], 0.0)
    assert grid.width == 360 * 128


def test_a_grid_samples_the_narrowest_beam_by_three_pixels():
    tiles = [tile("a", 10.0), tile("b", 11.3, beam_minor_arcsec=60.0)]
    assert common_grid(tiles).cell_arcsec == pytest.approx(20.0)
    assert common_grid(tiles[:1]).cell_arcsec == pytest.approx(2.0 * 3600 / 256)


def test_no_tile_has_no_grid():
    with pytest.raises(InputError, match="no tile"):
        common_grid([])


def test_the_outline_of_a_tile_is_that_of_its_own_projection():
    one = tile("a", 359.5, 54.6, degrees=3.0)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---SIN", "DEC--SIN"], [359.5, 54.6]
    wcs.wcs.cdelt, wcs.wcs.crpix = [-3.0 / 256, 3.0 / 256], [128.5, 128.5]
    x, y = wcs.wcs_world2pix(*tile_outline(one).T, 1)
    assert np.maximum(abs(x - 128.5), abs(y - 128.5)) == pytest.approx(128.0, abs=1e-6)


def test_a_tile_on_the_seam_lies_on_both_ends_of_the_grid():
    tiles = [tile(str(k), 1.2 * k, 0.0) for k in range(300)]
    grid = common_grid(tiles)
    seam = replace(tiles[0], ra_deg=(grid.ra_deg + 180.0) % 360.0)
    left, right = sorted(footprint(grid, tile_outline(seam)))
    assert left.x0 == 0
    assert right.x1 == grid.width
    assert (left.x1 - left.x0) + (right.x1 - right.x0) == pytest.approx(256, abs=8)


@pytest.mark.slow
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 130))
def test_blocks_cover_every_pixel_once(width, height, side):
    count = np.zeros((height, width), int)
    for b in grid_blocks(width, height, side):
        count[b.y0 : b.y1, b.x0 : b.x1] += 1
    assert (count == 1).all()


def test_blocks_that_touch_have_nothing_in_common():
    assert Block(0, 0, 5, 5).meet(Block(5, 0, 9, 5)) is None
    assert Block(0, 0, 5, 5).meet(Block(3, 4, 9, 9)) == Block(3, 4, 5, 5)


# -- weights -------------------------------------------------------------------------------------------------------


def test_two_tiles_are_weighed_by_beam_and_noise():
    # Tile 1: I = 3, B = 1, s = 1: weight 1. Tile 2: I = 1, B = 0.5, s = 0.5: weight 1. Mean 2, noise 1/sqrt(2).
    found = combine([np.array([[3.0]]), np.array([[0.5]])], [np.array([[1.0]]), np.array([[0.5]])], [1.0, 0.5], cut=0.1)
    assert found.image[0, 0] == pytest.approx(2.0)
    assert found.weight[0, 0] == pytest.approx(2.0)


def test_a_tile_below_the_cut_or_blank_does_not_count():
    images = [np.array([[2.0, 2.0, 2.0]]), np.array([[9.0, math.nan, 9.0]])]
    beams = [np.array([[1.0, 1.0, 0.1]]), np.array([[0.14, 1.0, math.nan]])]
    found = combine(images, beams, [1.0, 1.0], cut=0.15)
    assert found.image[0, :2] == pytest.approx([2.0, 2.0])
    assert math.isnan(found.image[0, 2])
    assert found.weight[0, 2] == 0


@given(st.lists(st.tuples(st.floats(0.2, 1.0), st.floats(0.1, 10.0)), min_size=1, max_size=8), st.floats(-5, 5))
def test_a_sky_that_all_tiles_agree_on_is_what_comes_out(tiles, sky):
    found = combine(
        [np.array([[sky * b]]) for b, _ in tiles], [np.array([[b]]) for b, _ in tiles], [s for _, s in tiles], cut=0.1
    )
    assert found.image[0, 0] == pytest.approx(sky, rel=1e-5, abs=1e-6)
    assert found.weight[0, 0] == pytest.approx(sum((b / s) ** 2 for b, s in tiles), rel=1e-5)


def test_white_noise_loses_what_the_spline_takes_from_it():
    # The cardinal cubic spline has the transfer function sinc^4 (3 / (2 + cos 2 pi f)); the mean square over all
    # positions of white noise is the integral of its square, along each axis.
    f = (np.arange(400_000) + 0.5) / 100_000 - 2.0
    cardinal = np.sinc(f) ** 4 * 3.0 / (2.0 + np.cos(2 * np.pi * f))
    along = float((cardinal**2).sum() / 100_000)
    noise = np.random.default_rng(1).normal(size=(400, 400))
    assert interpolation_factor(noise) == pytest.approx(along, rel=0.01)


def test_noise_that_is_sampled_well_loses_nothing():
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(1).normal(size=(400, 400)), 1.7)  # a beam of 4 pixels
    assert interpolation_factor(noise) == pytest.approx(1.0, abs=0.005)


def test_a_hole_in_the_middle_leaves_nothing_to_measure():
    noise = np.random.default_rng(1).normal(size=(192, 192))
    noise[31:161, 31:161] = np.nan
    assert interpolation_factor(noise) == 1.0


@pytest.mark.parametrize("pa", [0.0, 30.0, -75.0, 90.0])
def test_the_mean_of_equal_beams_is_that_beam(pa):
    major, minor, angle = mean_beam([(40.0, 20.0, pa), (40.0, 20.0, pa + 180.0)], [1.0, 3.0])
    assert (major, minor) == pytest.approx((40.0, 20.0))
    assert (angle - pa) % 180.0 == pytest.approx(0.0, abs=1e-6) or (angle - pa) % 180.0 == pytest.approx(180.0)


def test_beams_across_each_other_average_to_a_round_one():
    major, minor, _ = mean_beam([(40.0, 20.0, 0.0), (40.0, 20.0, 90.0)], [1.0, 1.0])
    assert major == pytest.approx(minor) == pytest.approx(math.sqrt(0.5 * (1600 + 400)))


# -- what comes out ------------------------------------------------------------------------------------------------


def measured(image, weight, **more):
    found = Combination(np.asarray(image, np.float32), np.asarray(weight, np.float32))
    return measure_block(found, Block(100, 200, 100 + image.shape[1], 200 + image.shape[0]), part_px=64, **more)


def test_a_block_is_measured():
    image = np.random.default_rng(5).normal(0.0, 0.5, (128, 128))
    image[30, 40], image[7, 8] = 50.0, -20.0
    weight = np.full(image.shape, 4.0)
    weight[:, 64:], image[:, 64:] = 0.0, np.nan
    found = measured(image, weight)
    assert (found.covered, found.negative) == (64 * 128, 1)
    assert (found.peak_x, found.peak_y, found.peak_jy) == (140, 230, 50.0)
    assert found.noise_least_jy == pytest.approx(0.5)
    assert found.ratios == pytest.approx([1.0, 1.0], abs=0.05)


@pytest.mark.parametrize("samples", [100, 5000])
def test_of_a_large_noise_map_no_more_is_kept_than_asked_for(samples):
    image = np.zeros((640, 640))
    found = measured(image, np.full(image.shape, 4.0), samples=samples)
    assert 0.5 * samples <= found.noise_jy.size <= samples
    assert sampled_noise([found, found]) == pytest.approx(np.full(2 * found.noise_jy.size, 0.5))


def test_an_empty_block_has_nothing_to_tell():
    found = measured(np.full((64, 64), np.nan), np.zeros((64, 64)))
    assert (found.covered, found.ratios) == (0, ())


def test_sky_coordinates_of_the_grid_are_icrs():
    _, _, wcs = laid_out([10.0, 11.3], 16.0)
    from astropy.wcs.utils import skycoord_to_pixel

    here = SkyCoord(10.5, 16.2, unit="deg", frame="icrs")
    assert np.allclose(skycoord_to_pixel(here, wcs), wcs.wcs_world2pix(10.5, 16.2, 0), atol=1e-9)
