"""The geometry beside a CXI file: what CrystFEL 0.12 takes, with every pixel where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nightbeam.core.errors import InputError
from nightbeam.geometry.compute import bad_pixels, crystfel_complaints, for_cxi, pixel_maps
from nightbeam.geometry.files import format_geometry, parse_geometry, read_geometry
from nightbeam.geometry.model import Mask, Quantity

REAL = (
    "epix10k2M-mfx.geom",
    "jungfrau4M-extra-geom.geom",
    "cspad-cxiformat.geom",
    "jf-swissfel-16M.geom",
    "lcls-dec-pnccd.geom",
    "pilatus6M.geom",
    "agipd",
)
MASK = Mask(0, "/entry_1/data_1/mask", None, 0, 0xFFFF)


@pytest.fixture
def detector(request, real, agipd):
    return agipd if request.param == "agipd" else real(request.param)


real_detectors = pytest.mark.parametrize("detector", REAL, indirect=True)


@real_detectors
def test_crystfel_takes_the_companion_of_a_real_detector(detector):
    written = parse_geometry(format_geometry(for_cxi(detector)))
    assert crystfel_complaints(written) == ()
    assert written == for_cxi(detector)


@pytest.mark.slow
@real_detectors
def test_every_pixel_of_a_real_detector_is_where_it_was(detector):
    before, after = (pixel_maps(g, clen_m=0.1) for g in (detector, parse_geometry(format_geometry(for_cxi(detector)))))
    for axis in ("x", "y", "z"):
        assert np.array_equal(getattr(before, axis), getattr(after, axis), equal_nan=True)


@real_detectors
def test_every_bad_pixel_of_a_real_detector_is_where_it_was(detector):
    assert np.array_equal(bad_pixels(for_cxi(detector)), bad_pixels(detector))


@real_detectors
def test_panels_of_the_companion_point_into_the_file(detector):
    companion = for_cxi(detector)
    assert (companion.peak_list, companion.peak_list_type) == ("/entry_1/result_1", "cxi")
    assert {(p.data, p.dims, p.masks[0]) for p in companion.panels} == {
        ("/entry_1/data_1/data", ("%", "ss", "fs"), MASK)
    }
    assert not any("badrow_direction" in p.extra for p in companion.panels)


def test_the_companion_of_the_epix_has_what_crystfel_asked_for(real):
    companion = for_cxi(real("epix10k2M-mfx.geom"))
    assert companion.clen == Quantity("/LCLS/detector_1/EncoderValue", "mm")
    assert companion.photon_energy == Quantity("/LCLS/photon_energy_eV", "eV")
    assert {p.adu_per_photon for p in companion.panels} == {1.0}


def test_the_text_of_the_companion_has_the_lines_that_users_look_for(real):
    lines = format_geometry(for_cxi(real("epix10k2M-mfx.geom"))).splitlines()
    wanted = {
        "clen = /LCLS/detector_1/EncoderValue", "photon_energy = /LCLS/photon_energy_eV", "peak_list_type = cxi",
        "peak_list = /entry_1/result_1", "data = /entry_1/data_1/data", "dim0 = %", "dim1 = ss", "dim2 = fs",
        "mask = /entry_1/data_1/mask", "mask_good = 0x0000", "mask_bad = 0xffff", "adu_per_photon = 1.0",
    }  # fmt: skip
    assert wanted <= set(lines)


def test_numbers_and_gains_that_are_given_stay(real):
    companion = for_cxi(real("jf-swissfel-16M.geom"))
    assert (companion.clen, companion.photon_energy) == (Quantity(95.3, "mm"), Quantity(4570.0, "eV"))
    assert {p.adu_per_photon for p in companion.panels} == {1.0}
    assert {p.adu_per_ev for p in for_cxi(real("cspad-cxiformat.geom")).panels} == {0.00338}


def test_masks_in_files_of_their_own_stay_behind_ours(real, geom):
    companion = for_cxi(real("jf-swissfel-16M.geom"))
    own = Mask(1, "/mask", str(geom.absolute() / "run47.JF06T32V01.mask.h5"), 1, 0)
    assert {p.masks for p in companion.panels} == {(MASK, own)}
    assert {p.masks for p in for_cxi(real("jf-swissfel-16M.geom"), mask=None).panels} == {(replace(own, number=0),)}


def test_masks_in_data_of_another_layout_are_left_out_and_it_is_said(real):
    companion = for_cxi(real("lcls-dec-pnccd.geom"))
    assert {p.masks for p in companion.panels} == {(MASK,)}
    assert "the mask /processing/hitfinder/masks of the data file is left out" in companion.warnings


def test_paths_of_another_layout_are_replaced_and_it_is_said(real):
    companion = for_cxi(real("pilatus6M.geom"))
    assert companion.clen == Quantity("/LCLS/detector_1/EncoderValue", "mm")
    assert companion.photon_energy == Quantity(9800.0, "eV")
    said = "clen is read from /LCLS/detector_1/EncoderValue (mm), not from /LCLS/detectorPosition (mm)"
    assert companion.warnings == (said,)


@pytest.mark.parametrize(
    ("asked", "clen"),
    [(0.25, Quantity(0.25, "m")), ("250 mm", Quantity(250.0, "mm")), ("/a/b", Quantity("/a/b", "mm"))],
)
def test_what_is_asked_for_wins(real, asked, clen):
    companion = for_cxi(real("jf-swissfel-16M.geom"), clen=asked, photon_energy="9.5 keV", data="/d", peak_list="/r")
    assert (companion.clen, companion.photon_energy) == (clen, Quantity(9.5, "keV"))
    assert (companion.panels[0].data, companion.peak_list) == ("/d", "/r")


def test_an_energy_that_is_asked_for_replaces_a_wavelength(panel):
    geometry = parse_geometry("res = 1\nwavelength = 1.3 A\nclen = 1\n" + panel())
    assert for_cxi(geometry).wavelength == Quantity(1.3, "A")
    asked = for_cxi(geometry, photon_energy=9000)
    assert (asked.wavelength, asked.photon_energy) == (None, Quantity(9000.0, "eV"))


def test_a_wavelength_in_another_file_is_read_as_our_energy(panel):
    companion = for_cxi(parse_geometry("res = 1\nwavelength = /w A\nclen = 1\n" + panel()))
    assert (companion.wavelength, companion.photon_energy) == (None, Quantity("/LCLS/photon_energy_eV", "eV"))


# -- groups -------------------------------------------------------------------------------------------------------


def test_modules_of_128_panels_become_groups(agipd):
    groups = for_cxi(agipd).groups
    assert groups["g0_3"] == tuple(f"p3a{n}" for n in range(8))
    assert groups["all"] == tuple(f"g0_{n}" for n in range(16))
    assert len(groups) == 17


def test_groups_that_there_are_stay(real):
    geometry = real("cspad-cxiformat.geom")
    assert for_cxi(geometry).groups == geometry.groups


@pytest.mark.parametrize("count", [65, 100, 4096, 5000])
def test_any_number_of_panels_goes_into_groups(panel, count):
    lines = [panel(f"{n}x", min_ss=2 * n, max_ss=2 * n + 1) for n in range(count)]
    groups = for_cxi(parse_geometry("res = 1\n" + "".join(lines))).groups
    assert max(map(len, groups.values())) <= 64
    members = [m for g in groups.values() for m in g]
    # Each panel, and each group but the last, is a member once.
    assert sorted(members) == sorted([*(f"{n}x" for n in range(count)), *list(groups)[:-1]])
    assert list(groups)[-1] == "all"


def test_groups_have_names_that_no_panel_has(panel):
    names = ["all", "g0_0", *(f"{n}x" for n in range(70))]
    lines = [panel(name, min_ss=2 * n, max_ss=2 * n + 1) for n, name in enumerate(names)]
    companion = for_cxi(parse_geometry("res = 1\n" + "".join(lines)))
    assert {"all_", "g0_0_"} <= set(companion.groups)
    assert parse_geometry(format_geometry(companion)) == companion


# -- what cannot be -----------------------------------------------------------------------------------------------


def test_a_panel_axis_is_refused(real):
    with pytest.raises(
        InputError, match=r"two-panels-dim2\.geom: panel panelA has dim2 = 0; CXI peak lists know one slab"
    ):
        for_cxi(real("two-panels-dim2.geom"))


def test_panels_in_one_place_are_refused(panel, geometry_of):
    with pytest.raises(InputError, match="panels a and b have pixels of the slab in common"):
        for_cxi(geometry_of(panel("a"), panel("b")))


def test_camera_lengths_of_panels_become_one_and_differences(panel):
    text = (
        "res = 1\nphoton_energy = 9\n"
        + panel("a", clen=0.5, coffset=0.01)
        + panel("b", min_ss=2, max_ss=3, clen="600 mm")
    )
    companion = for_cxi(parse_geometry(text))
    assert companion.clen == Quantity(0.5, "m")
    assert [p.coffset for p in companion.panels] == [0.01, pytest.approx(0.1)]
    assert crystfel_complaints(companion) == ()


def test_a_common_camera_length_in_a_file_becomes_that_of_all(panel):
    text = "res = 1\n" + panel("a", clen="/LCLS/detector_1/EncoderValue")
    assert for_cxi(parse_geometry(text)).clen == Quantity("/LCLS/detector_1/EncoderValue", "mm")


def test_camera_lengths_at_several_places_of_a_file_are_refused(panel):
    text = "res = 1\n" + panel("a", clen="/e1") + panel("b", min_ss=2, max_ss=3, clen="/e2")
    with pytest.raises(InputError, match="camera lengths at several places"):
        for_cxi(parse_geometry(text))


def test_more_masks_than_crystfel_has_places_for_are_refused(panel, geometry_of):
    lines = "".join(f"mask{n}_data = /m\nmask{n}_file = f.h5\n" for n in range(8))
    with pytest.raises(InputError, match="8 masks in files"):
        for_cxi(geometry_of(lines, panel()))
    assert len(for_cxi(geometry_of(lines, panel()), mask=None).panels[0].masks) == 8


def test_what_else_points_into_the_file_is_said(panel, geometry_of):
    companion = for_cxi(geometry_of("detector_shift_x = /s mm\nsaturation_map = /sat\n", panel()))
    assert companion.panels[0].saturation_map is None
    assert companion.warnings == (
        "the saturation map /sat of the data file is left out",
        "detector_shift_x is read from /s, which the file must have",
    )


FILES = "mask0_data = /m\nmask0_file = masks/a.h5\nmask1_data = /m\nmask1_file = /b/b.h5\n"


def files_of(companion):
    return [m.file for m in companion.panels[0].masks]


def test_files_beside_the_geometry_are_found_from_everywhere(panel, tmp_path, monkeypatch):
    path = tmp_path / "in" / "a.geom"
    path.parent.mkdir()
    path.write_text("res = 1\n" + FILES + "saturation_map = /s\nsaturation_map_file = s.h5\n" + panel())
    monkeypatch.chdir(tmp_path)
    companion = for_cxi(read_geometry(Path("in/a.geom")))
    assert files_of(companion) == [None, str(tmp_path / "in/masks/a.h5"), "/b/b.h5"]
    assert companion.panels[0].saturation_map_file == str(tmp_path / "in/s.h5")


def test_a_geometry_that_came_from_no_file_keeps_its_names_or_is_told_where_they_start(panel, geometry_of):
    assert files_of(for_cxi(geometry_of(FILES, panel()))) == [None, "masks/a.h5", "/b/b.h5"]
    assert files_of(for_cxi(geometry_of(FILES, panel()), base=Path("/c"))) == [None, "/c/masks/a.h5", "/b/b.h5"]
