"""Pixels find their place: in the slab, in the laboratory, and back."""

from __future__ import annotations

import math
import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import InputError
from nightbeam.geometry.compute import (
    bad_pixels,
    beam_radius_px,
    explicit_origins,
    panel_index,
    pixel_maps,
    slab_of,
    stacked_origins,
    tile_origins,
    to_panel,
    to_slab,
)
from nightbeam.geometry.files import parse_geometry
from nightbeam.geometry.model import BadRegion, Geometry, Panel

#: Real detectors: file, shape of one event, slab, modules one below the other.
REAL = {
    "epix10k2M-mfx.geom": ((16, 352, 384), (5632, 384), 16),
    "jungfrau4M-extra-geom.geom": ((8, 512, 1024), (4096, 1024), 8),
    "cspad-cxiformat.geom": ((32, 185, 388), (1480, 1552), 8),
    "jf-swissfel-16M.geom": ((32, 514, 1030), (16448, 1030), 32),
    "agipd": ((16, 512, 128), (8192, 128), 16),
}


@pytest.fixture
def detector(request, real, agipd):
    return agipd if request.param == "agipd" else real(request.param)


real_detectors = pytest.mark.parametrize(
    ("detector", "shape", "slab", "below"), [(n, *v) for n, v in REAL.items()], ids=list(REAL), indirect=["detector"]
)


# -- the rule of tiles --------------------------------------------------------------------------------------------


@real_detectors
def test_modules_of_real_detectors_go_down_and_then_to_the_right(detector, shape, slab, below):
    # For the CSPAD this is the rule of LCLS: row 185 (seg mod 8), column 388 (seg div 8).
    origins = tile_origins(detector, shape)
    assert origins.dtype == np.intp
    assert origins.tolist() == [[shape[1] * (p % below), shape[2] * (p // below)] for p in range(shape[0])]
    assert slab_of(origins, shape) == slab == detector.slab_shape


@real_detectors
def test_modules_fill_the_slab_of_real_detectors(detector, shape, slab, below):
    owner = np.full(slab, -1)
    for number, (ss0, fs0) in enumerate(tile_origins(detector, shape)):
        owner[ss0 : ss0 + shape[1], fs0 : fs0 + shape[2]] = number
    assert (owner >= 0).all()
    per_module = [{int(n) for n in np.unique(owner[panel.slices])} for panel in detector.panels]
    assert all(len(owners) == 1 for owners in per_module)


def test_panels_of_the_epix_lie_in_the_module_of_their_name(real):
    geometry = real("epix10k2M-mfx.geom")
    origins = tile_origins(geometry, (16, 352, 384))
    for panel in geometry.panels:
        module = int(panel.name[1:].split("a")[0])
        assert panel.min_ss // 352 == origins[module][0] // 352


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            (16, 350, 384),
            r"shape \(16, 350, 384\) do not fit the geometry .*epix10k2M-mfx\.geom: its slab of 5632 x 384",
        ),
        ((16, 352, 100), "cannot be cut into 352 x 100"),
        ((15, 352, 384), "16 of its tiles hold panels, not 15"),
        ((64, 88, 384), "its panel p0a0 crosses a border of 88 x 384"),
        ((16, 352, 768), "cannot be cut"),
    ],
)
def test_a_shape_that_does_not_fit_is_named_with_the_file(real, shape, said):
    with pytest.raises(InputError, match=said) as told:
        tile_origins(real("epix10k2M-mfx.geom"), shape)
    assert "geometry.panel_map" in told.value.fix


@pytest.mark.parametrize(
    "shape", [(0, 1, 1), (1, -1, 1), (1, 1), (1, 1, 1, 1), (1.0, 1, 1), (True, 1, 1), (1, 10**9, 10**9), (10**6, 1, 1)]
)
def test_a_shape_that_is_none_is_refused(agipd, shape):
    with pytest.raises(InputError, match=r"shape"):
        tile_origins(agipd, shape)


def test_tiles_without_panels_are_passed_over(panel, geometry_of):
    geometry = geometry_of(panel("a"), panel("b", min_fs=4, max_fs=7, min_ss=2, max_ss=3))
    assert tile_origins(geometry, (2, 2, 4)).tolist() == [[0, 0], [2, 4]]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"dim2": 1}, "panels a and b have pixels of the slab in common, they differ in dataset or index"),
        ({}, "common$"),
    ],
)
def test_panels_in_one_place_have_no_slab(panel, geometry_of, own, said):
    geometry = geometry_of("dim0 = ss\ndim1 = fs\ndim2 = 0\n", panel("a"), panel("b", min_fs=3, max_fs=6, **own))
    for use in (panel_index, bad_pixels, beam_radius_px, lambda g: tile_origins(g, (1, 2, 4))):
        with pytest.raises(InputError) as told:
            use(geometry)
        assert re.search(said, told.value.what)


def test_panels_that_only_differ_in_their_index_have_no_slab(real):
    with pytest.raises(InputError, match="panels panelA and panelB have pixels of the slab in common"):
        pixel_maps(real("two-panels-dim2.geom"), clen_m=0.05)


@given(st.lists(st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 5)] * 2), min_size=1, max_size=6))
def test_overlaps_are_found(places):
    panels = [
        Panel(f"p{n}", fs, fs + columns - 1, ss, ss + rows - 1, 0, 0, (1, 0, 0), (0, 1, 0), 1)
        for n, (ss, fs, rows, columns) in enumerate(places)
    ]
    count = np.zeros((20, 20), int)
    for p in panels:
        count[p.slices] += 1
    geometry = Geometry(tuple(panels))
    if count.max() > 1:
        with pytest.raises(InputError, match="in common"):
            panel_index(geometry)
    else:
        assert (np.bincount(panel_index(geometry).ravel() + 1)[1:] == [p.shape[0] * p.shape[1] for p in panels]).all()


# -- without a geometry, and places by hand -----------------------------------------------------------------------


def test_without_a_geometry_panels_are_stacked():
    origins = stacked_origins((3, 5, 7))
    assert origins.tolist() == [[0, 0], [5, 0], [10, 0]]
    assert slab_of(origins, (3, 5, 7)) == (15, 7)


def test_places_by_hand_may_be_anywhere():
    origins = explicit_origins([[10, 0], (0, 3)], (2, 5, 7))
    assert origins.tolist() == [[10, 0], [0, 3]]
    assert slab_of(origins, (2, 5, 7)) == (15, 10)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([[0, 0]], "has 1 places, the data have 2 panels"),
        ([[0, 0], [4, 6]], "lets panels 0 and 1 of 5 x 7 overlap"),
        ([[0, 0], [0, -1]], "a place below 0"),
        ([[0, 0], [20, 0]], "leads to 25 x 7, the slab is 20 x 20"),
        ([[0, 0], [0, 10**7]], "leads to|larger than"),
        ([[0, 0], [10**30, 0]], "no list of pairs"),
        ([[0, 0], [0.5, 0]], "no list of pairs"),
        ([[0, 0], [0, 0, 0]], "no list of pairs"),
        ([[0, 0], 5], "no list of pairs"),
        ([[0, 0], ["a", "b"]], "no list of pairs"),
        (5, "no list of pairs"),
        ([], "has 0 places"),
    ],
)
def test_places_by_hand_are_checked(places, said):
    with pytest.raises(InputError, match=said):
        explicit_origins(places, (2, 5, 7), slab=(20, 20))


def test_places_by_hand_make_no_enormous_slab():
    with pytest.raises(InputError, match="is larger than 268435456 pixels"):
        explicit_origins([[0, 0], [2**27, 2**27]], (2, 5, 7))


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_point_of_a_panel_goes_to_the_slab_and_back(count, height, width, data):
    shape = (count, height, width)
    order = data.draw(st.permutations(range(count)))
    origins = explicit_origins([[height * k + k, 3 * k] for k in order], shape)
    panel = data.draw(st.integers(0, count - 1))
    y = data.draw(st.floats(0, height - 1))
    x = data.draw(st.floats(0, width - 1))
    ss, fs = to_slab(origins, panel, y, x)
    found = to_panel(origins, shape, ss, fs)
    assert [float(v[0]) for v in found] == [panel, pytest.approx(y, abs=1e-9), pytest.approx(x, abs=1e-9)]


def test_a_point_between_panels_is_of_none():
    origins = explicit_origins([[0, 0], [5, 0]], (2, 4, 3))
    panel, y, x = to_panel(origins, (2, 4, 3), [3.4, 3.5, 4.49, 4.5, -0.5, -0.6], [0, 0, 0, 2.4, 0, 0])
    assert panel.tolist() == [0, -1, -1, 1, 0, -1]
    assert y[3] == -0.5
    assert math.isnan(x[1])


# -- the laboratory -----------------------------------------------------------------------------------------------


def test_a_panel_that_is_turned_by_90_degrees_is_where_it_should_be(panel, geometry_of):
    # fs leads up, ss to the left; corner at (10, -20); the first pixel's centre is half a pixel along both.
    geometry = geometry_of(panel(fs="y", ss="-x", corner_x=10, corner_y=-20, coffset=0.003))
    maps = pixel_maps(geometry, clen_m=0.1)
    assert maps.x * 1e4 == pytest.approx(np.array([[9.5] * 4, [8.5] * 4]), rel=1e-6)
    assert maps.y * 1e4 == pytest.approx(np.array([[-19.5, -18.5, -17.5, -16.5]] * 2), rel=1e-6)
    assert maps.z == pytest.approx(np.full((2, 4), 0.103), rel=1e-6)


def test_a_panel_that_is_tilted_reaches_along_the_beam(panel, geometry_of):
    # 30 degrees about y: cos 30 = 0.8660254 in x, sin 30 = 0.5 in z; res is 10000 pixels per metre.
    maps = pixel_maps(geometry_of(panel(fs="0.8660254x +0.5z")), clen_m=0.2)
    assert maps.x[0, 3] == pytest.approx(3.5 * 0.8660254e-4, rel=1e-6)
    assert maps.y[0, 3] == pytest.approx(0.5e-4, rel=1e-6)
    assert maps.z[0, 3] == pytest.approx(0.2 + 1.75e-4, rel=1e-7)


def test_the_radius_is_to_the_centre_of_a_pixel(panel, geometry_of):
    # First centre at (2.5 + 0.5, 3.5 + 0.5) = (3, 4).
    radius = beam_radius_px(geometry_of(panel(corner_x=2.5, corner_y=3.5)))
    assert radius.dtype == np.float32
    assert radius[0, 0] == 5.0
    assert radius[1, 2] == pytest.approx(math.hypot(5, 5))


def test_between_panels_there_is_no_place(panel, geometry_of):
    geometry = geometry_of(panel("a"), panel("b", min_ss=3, max_ss=4))
    index = panel_index(geometry)
    assert index.dtype == np.int16
    assert index[:, 0].tolist() == [0, 0, -1, 1, 1]
    for array in (*vars_of(pixel_maps(geometry, clen_m=0.1)), beam_radius_px(geometry)):
        assert np.isnan(array[:, 0]).tolist() == [False, False, True, False, False]


def vars_of(maps):
    return maps.x, maps.y, maps.z


def test_a_large_panel_is_worked_on_in_parts_without_a_seam(panel, geometry_of):
    maps = pixel_maps(geometry_of(panel(max_ss=1999, fs="0.5x+0.1y+0.01z", ss="0.2x-y+0.3z")), clen_m=0.0)
    ss, fs = np.mgrid[0.5:2000, 0.5:4]
    assert maps.x == pytest.approx((0.5 * fs + 0.2 * ss) / 1e4, rel=1e-6)
    assert maps.y == pytest.approx((0.1 * fs - ss) / 1e4, rel=1e-6)
    assert maps.z == pytest.approx((0.01 * fs + 0.3 * ss) / 1e4, rel=1e-6)


def test_a_camera_length_that_is_none_is_refused(agipd):
    with pytest.raises(InputError, match="metres are wanted"):
        pixel_maps(agipd, clen_m=math.nan)


# -- bad pixels ---------------------------------------------------------------------------------------------------


def test_limits_of_the_laboratory_are_excluded_and_of_the_slab_included(panel, geometry_of):
    lab = geometry_of(panel(), "bad_1/min_x = 1\nbad_1/max_x = 3\nbad_1/min_y = -1\nbad_1/max_y = 1\n")
    assert bad_pixels(lab).astype(int).tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    slab = geometry_of(panel(), "bad_1/min_fs = 1\nbad_1/max_fs = 3\nbad_1/min_ss = 0\nbad_1/max_ss = 0\n")
    assert bad_pixels(slab).astype(int).tolist() == [[0, 1, 1, 1], [0, 0, 0, 0]]


def test_gaps_borders_and_panels_left_out_are_bad(panel, geometry_of):
    geometry = geometry_of(
        panel("a", max_ss=2, mask_edge_pixels=1),
        panel("b", min_ss=4, max_ss=4, no_index=1),
        panel("c", min_ss=5, max_ss=5),
    )
    assert bad_pixels(geometry).astype(int).tolist() == [[1] * 4, [1, 0, 0, 1], [1] * 4, [1] * 4, [1] * 4, [0] * 4]


def test_a_border_wider_than_the_panel_leaves_nothing(panel, geometry_of):
    assert bad_pixels(geometry_of(panel(mask_edge_pixels=10**8))).all()


def test_a_region_of_the_laboratory_without_all_limits_marks_nothing(panel, geometry_of):
    assert not bad_pixels(geometry_of(panel(), "bad_1/min_x = -9\nbad_1/max_x = 9\nbad_1/min_y = -9\n")).any()


def test_a_region_of_the_laboratory_is_over_all_panels(panel, geometry_of):
    limits = "bad_1/min_x = -1\nbad_1/max_x = 1\nbad_1/min_y = -1\nbad_1/max_y = 1\n"
    geometry = geometry_of(limits, panel("a"), panel("b", min_ss=2, max_ss=3, fs="-x"))
    assert np.argwhere(bad_pixels(geometry)).tolist() == [[0, 0], [2, 0]]


def test_bad_pixels_of_the_pilatus_are_as_many_as_one_counts(real):
    # 4 strips of 7 columns and 11 of 17 rows, less where they cross; then the beam stop, columns 0 to 1372 and rows
    # 1204 to 1343, less what two strips of columns and one of rows have of it.
    strips = 28 * 2527 + 187 * 2463 - 28 * 187
    stop = 1373 * 140 - (14 * 140 + 17 * 1373 - 14 * 17)
    assert bad_pixels(real("pilatus6M.geom")).sum() == strips + stop


def test_bad_pixels_of_the_jungfrau_are_as_many_as_one_counts(real):
    assert bad_pixels(real("jf-swissfel-16M.geom")).sum() == 140 * 61 + 73 * 118 + 136 * 51 + 61 * 128


angles = st.floats(0, 6.3)
limits = st.floats(-30, 30)


@given(angles, st.floats(0.3, 2), angles, limits, limits, st.tuples(limits, limits, limits, limits))
def test_regions_of_the_laboratory_are_those_of_a_look_at_every_pixel(turn, size, skew, corner_x, corner_y, region):
    fs = (size * math.cos(turn), size * math.sin(turn), 0.0)
    ss = (math.cos(skew), math.sin(skew), 0.0)  # may be along fs
    panel = Panel("p", 2, 14, 1, 9, corner_x, corner_y, fs, ss, 1.0)
    min_x, max_x = sorted(region[:2])
    min_y, max_y = sorted(region[2:])
    geometry = Geometry((panel,), (BadRegion("bad", None, min_x, max_x, min_y, max_y),))
    wanted = np.ones((10, 15), bool)
    for row in range(9):
        for column in range(13):
            x = corner_x + column * fs[0] + row * ss[0]
            y = corner_y + column * fs[1] + row * ss[1]
            wanted[row + 1, column + 2] = min_x < x < max_x and min_y < y < max_y
    assert (bad_pixels(geometry) == wanted).all()


@pytest.mark.parametrize(("fs", "ss"), [("x", "x"), ("0x", "y"), ("0x", "0x"), ("x", "z"), ("x+0.0000001y", "x")])
def test_panels_whose_axes_are_alike_are_looked_at_whole(panel, geometry_of, fs, ss):
    geometry = geometry_of(
        panel(fs=fs, ss=ss), "bad/min_x = -1e300\nbad/max_x = 1e300\nbad/min_y = -1\nbad/max_y = 9\n"
    )
    assert bad_pixels(geometry).all()


def test_regions_as_large_as_numbers_go_are_no_harm(panel, geometry_of):
    text = "bad/min_x = -1.7e308\nbad/max_x = 1.7e308\nbad/min_y = -1.7e308\nbad/max_y = 1.7e308\n"
    assert bad_pixels(geometry_of(panel(fs="0.0001x", corner_x=-1e9), text)).all()


# -- large ones ---------------------------------------------------------------------------------------------------


def test_maps_of_17_megapixels_take_little_more_memory_than_they_have(real):
    geometry = real("jf-swissfel-16M.geom")
    pixels = 16448 * 1030
    tracemalloc.start()
    for make, bytes_each in ((bad_pixels, 1), (panel_index, 2), (beam_radius_px, 4)):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        made = make(geometry)
        assert tracemalloc.get_traced_memory()[1] - before < bytes_each * pixels + 4e7
        del made
    tracemalloc.stop()


def test_thousands_of_panels_are_no_trouble(panel):
    lines = [panel(f"p{n}", min_ss=2 * n, max_ss=2 * n + 1, corner_y=2 * n) for n in range(5000)]
    regions = [f"bad{n}/min_x = 0\nbad{n}/max_x = 2\nbad{n}/min_y = {n}\nbad{n}/max_y = {n + 2}\n" for n in range(500)]
    geometry = parse_geometry("res = 1\n" + "".join([*lines, *regions]))
    assert tile_origins(geometry, (5000, 2, 4))[-1].tolist() == [9998, 0]
    # Columns 1 of rows 1 to 500.
    assert bad_pixels(geometry).sum() == 500
    assert panel_index(geometry)[-1, 0] == 4999


def test_more_panels_than_can_be_counted_are_refused(panel):
    lines = [f"p{n}/res = 1\n" for n in range(2**15)]
    with pytest.raises(InputError, match="more than 32767 panels"):
        parse_geometry("".join(lines))


def test_a_slab_made_by_hand_is_checked_before_anything_is_allocated(agipd):
    large = replace(agipd.panels[0], max_ss=2**27, max_fs=2**27)
    for use in (panel_index, bad_pixels, beam_radius_px):
        with pytest.raises(InputError, match="more than 268435456 pixels"):
            use(replace(agipd, panels=(large,)))


def test_a_shift_of_the_detector_moves_every_panel_as_crystfel_does(panel, geometry_of):
    # 1 mm at 10 pixels a mm: the first centre is at (0.5 + 10, 0.5 - 5). A shift in the data file is not known.
    shifted = geometry_of("detector_shift_x = 1 mm\ndetector_shift_y = -0.0005\n", panel())
    maps = pixel_maps(shifted, clen_m=0.1)
    assert (maps.x[0, 0], maps.y[0, 0]) == pytest.approx((10.5e-4, -4.5e-4), rel=1e-6)
    assert beam_radius_px(shifted)[0, 0] == pytest.approx(math.hypot(10.5, 4.5))
    away = geometry_of("detector_shift_x = /a\n", panel())
    assert beam_radius_px(away)[0, 0] == pytest.approx(math.hypot(0.5, 0.5))


def test_bad_regions_of_the_laboratory_stay_there_when_the_detector_is_shifted(panel, geometry_of):
    # First corners of the columns are at 10, 11, 12, 13 then.
    region = "bad/min_x = 10.5\nbad/max_x = 12.5\nbad/min_y = -9\nbad/max_y = 9\n"
    shifted = geometry_of("detector_shift_x = 1 mm\n", panel(), region)
    assert bad_pixels(shifted).tolist() == [[False, True, True, False]] * 2
