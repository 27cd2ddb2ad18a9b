"""Geometry files: every line means what CrystFEL means by it, and what is none is said by its line."""

from __future__ import annotations

import contextlib
import math
import os
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightbeam.core.errors import InputError, MissingError
from nightbeam.geometry.compute import crystfel_complaints
from nightbeam.geometry.files import format_geometry, parse_geometry, read_geometry, write_geometry
from nightbeam.geometry.model import BadRegion, Flag, Geometry, Mask, Panel, Quantity

FILES = (
    "cspad-cxiformat.geom",
    "epix10k2M-mfx.geom",
    "jf-swissfel-16M.geom",
    "jungfrau4M-extra-geom.geom",
    "lcls-dec-pnccd.geom",
    "pilatus6M.geom",
    "two-panels-dim2.geom",
)


# -- real files ---------------------------------------------------------------------------------------------------


def test_every_real_file_is_tested(expected):
    assert sorted(expected) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_counts_and_sums_of_real_files_are_right(real, expected, name):
    geometry, wanted = real(name), expected[name]
    assert {
        "n_panels": len(geometry.panels),
        "n_bad": len(geometry.bad),
        "n_bad_xy": sum(region.is_lab for region in geometry.bad),
        "groups": {n: len(m) for n, m in geometry.groups.items()},
        "rigid_groups": {n: len(m) for n, m in geometry.rigid_groups.items()},
        "rigid_group_collections": {n: len(m) for n, m in geometry.rigid_group_collections.items()},
        "slab_shape": list(geometry.slab_shape),
        "n_pixels": sum(rows * columns for rows, columns in (p.shape for p in geometry.panels)),
        "sum_corner_x": pytest.approx(sum(p.corner_x for p in geometry.panels), abs=1e-6),
        "sum_corner_y": pytest.approx(sum(p.corner_y for p in geometry.panels), abs=1e-6),
        "data": geometry.panels[0].data,
        "dims_first_panel": {f"dim{n}": str(axis) for n, axis in enumerate(geometry.panels[0].dims)},
    } == {key: wanted[key] for key in wanted if key not in ("top", "first", "last", "crystfel_0_12")}


@pytest.mark.parametrize("name", FILES)
def test_first_and_last_panel_of_real_files_are_right(real, expected, name):
    for panel, wanted in zip((real(name).panels[0], real(name).panels[-1]), ("first", "last"), strict=False):
        assert {
            "name": panel.name,
            "roi": [panel.min_fs, panel.max_fs, panel.min_ss, panel.max_ss],
            "fs": list(panel.fs),
            "ss": list(panel.ss),
            "corner": [panel.corner_x, panel.corner_y],
            "coffset": panel.coffset,
            "res": panel.res,
        } == expected[name][wanted]


@pytest.mark.parametrize("name", FILES)
def test_camera_length_and_energy_of_real_files_are_right(real, expected, name):
    geometry = real(name)
    given = {key: getattr(geometry, key) for key in ("clen", "photon_energy", "wavelength")}
    wanted = {key: Quantity.parse(key, text) for key, text in expected[name]["top"].items()}
    assert {key: value for key, value in given.items() if value is not None} == wanted


@pytest.mark.parametrize("name", FILES)
def test_crystfel_is_said_to_refuse_what_it_refuses(real, expected, name):
    assert (crystfel_complaints(real(name)) == ()) == expected[name]["crystfel_0_12"]["accepted"]


@pytest.mark.parametrize("name", FILES)
def test_with_the_lines_that_crystfel_asks_for_it_is_content(geom, expected, name):
    added = expected[name]["crystfel_0_12"]["lines_added_to_check"]
    text = "\n".join(added) + "\n" + (geom / name).read_text()
    assert crystfel_complaints(parse_geometry(text)) == ()


@pytest.mark.parametrize("name", FILES)
def test_real_files_come_back_as_they_were_written(real, tmp_path, name):
    write_geometry(real(name), tmp_path / "copy.geom")
    assert read_geometry(tmp_path / "copy.geom") == real(name)


def test_the_warnings_of_crystfel_about_the_pilatus_are_ours(real):
    assumed = [text for text in real("pilatus6M.geom").warnings if "must be 0" in text]
    assert len(assumed) == 15


def test_obsolete_fields_are_warned_about_once(real):
    assert "badrow_direction is obsolete and not used (2 panels)" in real("lcls-dec-pnccd.geom").warnings


# -- lines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_lines_end_as_they_like(panel, end):
    text = ("res = 10000 ; pixels\n; nothing\n\n   clen=0.2\n" + panel()).replace("\n", end)
    geometry = parse_geometry(text)
    assert (geometry.panels[0].res, geometry.clen) == (10000.0, Quantity(0.2, "m"))


def test_a_file_in_the_marks_of_a_stream_is_read(panel):
    text = "CrystFEL stream format 2.3\n----- Begin geometry file -----\nres = 5\n" + panel()
    assert parse_geometry(text + "----- End geometry file -----\nChunk\n").panels[0].res == 5


def test_a_file_whose_end_mark_is_missing_is_cut_off(panel):
    with pytest.raises(InputError, match="cut off"):
        parse_geometry("----- Begin geometry file -----\nres = 5\n" + panel())


def test_a_stream_of_any_size_is_read_for_its_geometry(panel, tmp_path):
    path = tmp_path / "large.stream"
    path.write_text(f"----- Begin geometry file -----\nres = 5\n{panel()}----- End geometry file -----\n")
    os.truncate(path, 10**9)
    assert read_geometry(path).panels[0].res == 5


def test_the_first_equals_sign_and_the_first_slash_of_the_key_divide(panel, geometry_of):
    found = geometry_of(panel("a b_1.2"), "a b_1.2/data = /a=b/%/c,d\n").panels[0]
    assert (found.name, found.data) == ("a b_1.2", "/a=b/%/c,d")


def test_later_lines_win(panel, geometry_of):
    found = geometry_of(panel(), "p/dim0 = %\np/dim0 = ss\np/corner_x = 1\np/corner_x = 2.5\n").panels[0]
    assert (found.dims, found.corner_x) == (("ss", "fs"), 2.5)


def test_a_panel_has_the_defaults_of_its_first_mention(panel, geometry_of):
    geometry = geometry_of("coffset = 1\n", "a/min_fs = 0\n", "coffset = 2\n", panel("b"), panel("a"))
    assert [(p.name, p.coffset) for p in geometry.panels] == [("a", 1.0), ("b", 2.0)]


def test_defaults_of_one_panel_are_not_shared_with_the_next(panel, geometry_of):
    geometry = geometry_of("mask = /m\nflag_equal = 1\n", panel("a"), "a/mask_bad = 4\na/flag_equal = 2\n", panel("b"))
    assert [p.masks[0].bad for p in geometry.panels] == [4, 0]
    assert [len(p.flags) for p in geometry.panels] == [2, 1]


def test_defaults_behind_the_last_panel_are_accepted_and_complained_about(panel, geometry_of):
    geometry = geometry_of(panel(), "max_adu = 5\n")
    assert geometry.panels[0].max_adu == math.inf
    assert crystfel_complaints(geometry) == ("defaults behind the last panel: max_adu",)
    assert any("max_adu" in text for text in geometry.warnings)


def test_a_gain_replaces_the_other_one(panel, geometry_of):
    found = geometry_of("adu_per_eV = 3\n", panel(), "p/adu_per_photon = 4\n").panels[0]
    assert (found.adu_per_ev, found.adu_per_photon) == (None, 4.0)


def test_the_range_of_a_panel_may_have_a_decimal_point(panel, geometry_of):
    assert geometry_of(panel(max_fs="193.0", min_fs="0.0")).panels[0].shape == (2, 194)


def test_masks_have_old_names_and_new_ones(panel, geometry_of):
    lines = "mask = /m\nmask_good = 0x0000\nmask_bad = 0xFFFF\nmask0_file = f.h5\nmask7_data = /n\nmask7_goodbits = 7\n"
    assert geometry_of(lines, panel()).panels[0].masks == (Mask(0, "/m", "f.h5", 0, 0xFFFF), Mask(7, "/n", None, 7, 0))


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("2.0", True), ("false", False), ("0", False)]
)
def test_a_panel_may_be_left_out(panel, geometry_of, text, value):
    assert geometry_of(panel(no_index=text)).panels[0].no_index is value


@pytest.mark.parametrize(
    ("text", "vector"),
    [
        ("x", (1, 0, 0)),
        ("-y", (0, -1, 0)),
        ("+0.0048x +0.99y", (0.0048, 0.99, 0)),
        ("0.1z-1.0x", (-1.0, 0, 0.1)),
        ("- 1.5 x + .5y", (-1.5, 0.5, 0)),
        ("x+x-3.y+0.5x", (2.5, -3, 0)),
    ],
)
def test_directions_are_sums_of_terms(panel, geometry_of, text, vector):
    assert geometry_of(panel(fs=text)).panels[0].fs == vector


@pytest.mark.parametrize("text", ["", "1e-3x", "x y", "2", "x+", "++x", "1.2.3x", "w", "xx", "9" * 400 + "x", "nanx"])
def test_what_is_no_direction_is_refused(panel, geometry_of, text):
    with pytest.raises(InputError, match=r"line \d+: fs: |line \d+: 'p/fs': "):
        geometry_of(panel(fs=text))


@pytest.mark.parametrize(
    ("line", "value", "base"),
    [
        ("clen = 0.1", Quantity(0.1, "m"), 0.1),
        ("clen = 95.3 mm", Quantity(95.3, "mm"), 0.0953),
        ("clen = /LCLS/e", Quantity("/LCLS/e", "mm"), None),
        ("clen = /LCLS/e m", Quantity("/LCLS/e", "m"), None),
        ("photon_energy = 9.5 keV", Quantity(9.5, "keV"), 9500.0),
        ("photon_energy = /a/b", Quantity("/a/b", "eV"), None),
        ("wavelength = 1.3 A", Quantity(1.3, "A"), 1.3e-10),
        ("wavelength = /w m", Quantity("/w", "m"), None),
        ("electron_voltage = 200 kV", Quantity(200.0, "kV"), 2e5),
        ("detector_shift_x = 2 mm", Quantity(2.0, "mm"), 0.002),
        ("detector_shift_y = /s", Quantity("/s", "m"), None),
    ],
)
def test_units_are_given_or_understood(panel, line, value, base):
    geometry = parse_geometry(f"res = 1\n{line}\n{panel()}")
    found = getattr(geometry, line.partition(" ")[0])
    assert found == value
    assert (found.base, found.path) == (pytest.approx(base) if base else None, None if base else value.value)
    assert parse_geometry(format_geometry(geometry)) == geometry


def test_a_path_without_unit_is_in_millimetres(panel, geometry_of):
    clen = geometry_of("clen = /LCLS/detector_1/EncoderValue\n", panel()).clen
    assert clen is not None
    assert clen.scale == 1e-3


@pytest.mark.parametrize(
    "line",
    ["wavelength = 1.3", "electron_voltage = 200", "photon_energy = 9 ev", "clen = 1 cm", "clen = 0,1", "clen = 0.1mm"],
)
def test_a_missing_or_unknown_unit_is_an_error(panel, geometry_of, line):
    with pytest.raises(InputError, match=f"line 5: {line.partition(' ')[0]} "):
        geometry_of(line + "\n", panel())


def test_a_camera_length_of_a_panel_is_accepted_and_complained_about(panel, geometry_of):
    geometry = geometry_of(panel(clen="0.2"))
    assert geometry.panels[0].clen == Quantity(0.2, "m")
    assert crystfel_complaints(geometry) == ("clen belongs to the top level, not to panel p",)
    assert any("clen belongs" in text for text in geometry.warnings)


def test_a_camera_length_that_is_given_twice_is_complained_about(panel, geometry_of):
    geometry = geometry_of("clen = 0.3\n", panel())
    assert geometry.clen == Quantity(0.3, "m")
    assert crystfel_complaints(geometry) == ("clen is given twice",)


def test_what_is_unknown_is_kept_and_warned_about(panel, geometry_of):
    lines = "colour = blue\n", panel(), "p/flavour = sweet\n", "bad_1/min_x = 1\nbad_1/mood = good\n"
    geometry = geometry_of(*lines)
    assert geometry.extra == {"colour": "blue"}
    assert geometry.panels[0].extra == {"flavour": "sweet"}
    assert geometry.bad[0].extra == {"mood": "good"}
    assert [any(word in text for text in geometry.warnings) for word in ("colour", "flavour", "mood")] == [True] * 3
    assert parse_geometry(format_geometry(geometry)) == geometry


# -- groups -------------------------------------------------------------------------------------------------------


def test_groups_may_stand_before_the_panels(panel, geometry_of):
    geometry = geometry_of("group_a = p,q\ngroup_all = a\n", panel("p"), panel("q"))
    assert geometry.groups == {"a": ("p", "q"), "all": ("a",)}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("group_a = p,lost\n", "'lost' is no panel and no group before it"),
        ("group_a = b\ngroup_b = a\n", "'b' is no panel and no group before it"),
        ("group_a = a\n", "'a' is no panel and no group before it"),
        ("group_a = p\ngroup_a = q\n", "there is a group of this name already"),
        ("group_a = p,q,p\n", "'p' is a member twice"),
        ("group_a = p,,q\n", "has an empty member"),
        ("group_p = q\n", "a panel has this name"),
        ("group_ = q\n", "has no name"),
    ],
)
def test_groups_that_make_no_sense_are_refused(panel, geometry_of, lines, said):
    with pytest.raises(InputError, match=said):
        geometry_of(lines, panel("p"), panel("q"))


def test_more_than_64_members_or_panels_without_groups_are_complained_about(panel, geometry_of):
    panels = [panel(f"p{n}", min_ss=2 * n, max_ss=2 * n + 1) for n in range(65)]
    names = ",".join(f"p{n}" for n in range(65))
    assert any("65 panels without groups" in text for text in crystfel_complaints(geometry_of(*panels)))
    large = crystfel_complaints(geometry_of(*panels, f"group_all = {names}\n"))
    assert large == ("more than 64 members in group all",)
    assert crystfel_complaints(geometry_of(*panels[:64])) == ()


def test_more_than_512_groups_are_complained_about(panel, geometry_of):
    lines = "".join(f"group_{n} = p\n" for n in range(513))
    assert crystfel_complaints(geometry_of(panel(), lines)) == ("513 groups, 512 at most",)


def test_rigid_groups_with_lost_members_are_no_error(panel, geometry_of):
    geometry = geometry_of("rigid_group_a = p,lost\nrigid_group_collection_c = a\n", panel())
    assert geometry.rigid_groups == {"a": ("p", "lost")}
    assert geometry.rigid_group_collections == {"c": ("a",)}
    assert "rigid_group_a has members that there are not" in geometry.warnings


# -- bad regions --------------------------------------------------------------------------------------------------


RANGE = "bad_1/min_fs = 1\nbad_1/max_fs = 2\nbad_1/min_ss = 0\nbad_1/max_ss = 0\n"


def test_the_only_panel_is_filled_in(panel, geometry_of):
    geometry = geometry_of(RANGE, panel("0"))
    assert geometry.bad == (BadRegion("bad_1", "0", min_fs=1, max_fs=2, min_ss=0, max_ss=0),)
    assert "'bad_1' names no panel: that must be 0" in geometry.warnings


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (RANGE, "names no panel"),
        (RANGE + "bad_1/panel = r\n", "names the panel 'r', which is not there"),
        (RANGE + "bad_1/panel = p\nbad_1/max_fs = 4\n", "fs 1 to 4 is outside of p, 0 to 3"),
        (RANGE + "bad_1/panel = q\n", "ss 0 to 0 is outside of q, 2 to 3"),
        (RANGE + "bad_1/panel = p\nbad_1/min_x = 4\n", "limits of two kinds, min_x and min_fs"),
        ("bad_1/min_fs = 1\nbad_1/panel = p\n", "has no max_fs, min_ss, max_ss"),
        ("bad_1/panel = p\n", "has no limits"),
    ],
)
def test_regions_that_make_no_sense_are_refused(panel, geometry_of, lines, said):
    with pytest.raises(InputError, match=said):
        geometry_of(lines, panel("p"), panel("q", min_ss=2, max_ss=3))


def test_a_region_of_the_laboratory_with_a_missing_limit_is_warned_about(panel, geometry_of):
    geometry = geometry_of("bad_1/min_x = 1\nbad_1/max_x = 2\nbad_1/min_y = 3\n", panel())
    assert geometry.bad[0].lab is None
    assert any("marks nothing" in text for text in geometry.warnings)


# -- what is none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("p/min_fs = 0.5", "no whole number"),
        ("p/min_fs = -1", "no whole number"),
        ("p/min_fs = 1e300", "no whole number"),
        ("p/max_fs = 99999999999", "no whole number"),
        ("p/min_fs = 3\np/max_fs = 2", "has no pixels"),
        ("p/corner_x = nan", "'nan' is no finite number"),
        ("p/corner_x = inf", "'inf' is no finite number"),
        ("p/corner_x = 1e999", "is no finite number"),
        ("p/corner_x = 1e300", "is beyond 1e\\+09"),
        ("p/corner_x = 1_0", "is no finite number"),
        ("p/corner_x = ١", "is no finite number"),
        ("p/corner_x =", "'' is no finite number"),
        ("p/res = 0", "is no resolution"),
        ("p/res = -5", "is no resolution"),
        ("p/coffset = 1e9", "is beyond"),
        ("p/max_adu = nan", "no finite number"),
        ("p/dim0 = fs", "ss and, behind it, fs are wanted"),
        ("p/dim0 = fs\np/dim1 = ss", "ss and, behind it, fs are wanted"),
        ("p/dim3 = 0", "has dim3 but no dim2"),
        ("p/dim16 = 0", "16 axes at most"),
        ("p/dim0 = slow", "no finite number"),
        ("p/mask_good = 0xg", "no pattern of bits"),
        ("p/mask =", "nothing behind the ="),
        ("p/no_index = maybe", "no finite number"),
        ("p/data =", "nothing behind the ="),
        ("p/flag_equal = 1\n" * 17, "more than 16 flags"),
        ("clen = nan", "no finite number"),
        ("clen = 1e999", "no finite number"),
        ("clen = a b c", "clen is 'a b c'"),
        ("peak_list_type = xml", "peak_list_type is 'xml'"),
        ("bandwidth = wide", "no finite number"),
        ("no equals sign", "has no ="),
        ("= 5", "is no key"),
        ("/min_fs = 5", "is no key"),
        ("p/ = 5", "is no key"),
        ("p/corner_x = 1\x00", "this is no text"),
    ],
)
def test_a_line_that_makes_no_sense_is_one_error(panel, geometry_of, line, said):
    with pytest.raises(InputError, match=said):
        geometry_of(panel(), line + "\n")


def test_the_line_is_named(panel):
    with pytest.raises(InputError, match=r"^x\.geom, line 2: 'p/corner_x': 'far' is no finite number"):
        parse_geometry("res = 1\np/corner_x = far\n", source="x.geom")


def test_a_panel_says_all_that_it_lacks():
    with pytest.raises(InputError, match="panel 'p' has no max_fs, min_ss, max_ss, corner_y, ss, res"):
        parse_geometry("p/min_fs = 1\np/corner_x = 1\np/fs = x\n")


def test_a_file_without_panels_is_none():
    with pytest.raises(InputError, match="no panel is described"):
        parse_geometry("clen = 1\n")


def test_an_enormous_slab_is_refused_before_anything_is_allocated(panel, geometry_of):
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a slab of 200000000 x 200000000 has more than 268435456 pixels"):
        geometry_of(panel(max_fs=199999999, max_ss=199999999))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_a_large_file_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "large.geom"
    path.touch()
    os.truncate(path, 10**8)
    with pytest.raises(InputError, match="larger than 16 MiB"):
        read_geometry(path)


@pytest.mark.parametrize("data", [bytes(range(256)) * 4, b"\x89HDF\r\n\x1a\n" + bytes(500), b"\xff\xfe=\x00", b""])
def test_binary_files_are_refused(tmp_path, data):
    (tmp_path / "x.geom").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.geom"):
        read_geometry(tmp_path / "x.geom")


def test_comments_may_be_in_any_encoding_but_names_may_not(panel, tmp_path):
    path = tmp_path / "x.geom"
    path.write_bytes(b"res = 10000 ; 100 \xb5m\n" + panel().encode())
    assert read_geometry(path).panels[0].res == 10000
    path.write_bytes(b"res = 10000\n" + panel("\u00b5").encode("latin-1"))
    with pytest.raises(InputError, match="line 2: this is no text"):
        read_geometry(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(panel, tmp_path):
    (tmp_path / "x.geom").write_text("\ufeffres = 7\n" + panel())
    assert read_geometry(tmp_path / "x.geom").panels[0].res == 7


def test_what_is_no_file_is_said(tmp_path):
    with pytest.raises(MissingError, match="no geometry file"):
        read_geometry(tmp_path / "x.geom")
    with pytest.raises(InputError, match="is no file"):
        read_geometry(tmp_path)


def test_a_long_line_does_not_make_a_long_message(panel, geometry_of):
    for line in ("x" * 10**6, f"p/corner_x = {'9' * 10**6}", f"clen = {'9' * 10**6}", f"group_a = {'b' * 10**6}"):
        with pytest.raises(InputError) as told:
            geometry_of(panel(), line + "\n")
        assert len(str(told.value)) < 500


@pytest.mark.parametrize("value", ["1" * 10**6, "1" * 10**6 + "e", "+" + " " * 10**6 + "q", "." * 10**6, "x " * 10**5])
def test_a_long_value_is_refused_in_time_that_grows_as_its_length(panel, geometry_of, value):
    # A pattern that tries every way to divide it would take hours.
    for field in ("fs", "corner_x", "mask_good", "clen", "data/x"):
        with contextlib.suppress(InputError):
            geometry_of(panel(), f"p/{field} = {value}\n")


def test_thousands_of_unknown_keys_are_told_briefly(panel, geometry_of):
    geometry = geometry_of(panel(), "".join(f"p/u{n} = 1\n" for n in range(5000)))
    assert len(geometry.panels[0].extra) == 5000
    assert "4980 other keys are unknown and not used" in geometry.warnings


# -- there and back -----------------------------------------------------------------------------------------------


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_ .µ-]{0,6}[a-z0-9]", fullmatch=True).filter(lambda n: n[:3] != "bad")
paths = st.from_regex(r"(/[a-z%=0-9]{1,6}){1,3}", fullmatch=True)
pixels = st.floats(-1e6, 1e6)
steps = st.floats(-2, 2)
vectors = st.tuples(steps, steps, steps)
numbers = st.floats(allow_nan=False, allow_infinity=False)
maybe = st.one_of
quantities = {
    "clen": ("m", "mm"), "photon_energy": ("eV", "keV"), "wavelength": ("m", "A"), "electron_voltage": ("V", "kV"),
    "detector_shift_x": ("m", "mm"), "detector_shift_y": ("m", "mm"),
}  # fmt: skip
gains = st.tuples(st.none() | numbers, st.none() | numbers).filter(lambda pair: None in pair)
masks = st.lists(
    st.builds(Mask, st.integers(0, 7), paths | st.none(), paths | st.none(), st.integers(0, 2**32), st.integers(0, 9)),
    max_size=3, unique_by=lambda mask: mask.number,
)  # fmt: skip
flags = st.lists(st.builds(Flag, st.sampled_from(["lessthan", "morethan", "equal"]), numbers), max_size=3)
dims = st.sampled_from([("ss", "fs"), ("%", "ss", "fs"), (3, "ss", "fs"), ("ss", 0, "fs", "%")])


def value_of(name):
    return st.none() | st.builds(Quantity, paths | numbers, st.sampled_from(quantities[name]))


@st.composite
def panels(draw, name, number):
    rows, columns = draw(st.integers(1, 50)), draw(st.integers(1, 50))
    min_fs, min_ss = draw(st.integers(0, 9)), number * 60
    ev, photon = draw(gains)
    return Panel(
        name, min_fs, min_fs + columns - 1, min_ss, min_ss + rows - 1, draw(pixels), draw(pixels), draw(vectors),
        draw(vectors), draw(st.floats(1, 1e6)), draw(pixels), draw(paths), draw(dims), ev, photon,
        tuple(sorted(draw(masks), key=lambda mask: mask.number)), draw(st.none() | paths), draw(st.none() | paths),
        draw(st.just(math.inf) | numbers), tuple(draw(flags)), draw(st.integers(0, 9)), draw(st.booleans()),
        draw(value_of("clen")), draw(st.sampled_from([{}, {"odd": "x = y"}, {"badrow_direction": "y"}])),
    )  # fmt: skip


@st.composite
def regions(draw, number, panel):
    if draw(st.booleans()):
        limits = {n: draw(st.none() | numbers) for n in ("max_x", "min_y", "max_y")}
        return BadRegion(f"bad{number}", draw(st.none() | st.just(panel.name)), min_x=draw(numbers), **limits)
    fs = sorted((draw(st.integers(panel.min_fs, panel.max_fs)), draw(st.integers(panel.min_fs, panel.max_fs))))
    ss = panel.min_ss, draw(st.integers(panel.min_ss, panel.max_ss))
    return BadRegion(f"bad{number}", panel.name, min_fs=fs[0], max_fs=fs[1], min_ss=ss[0], max_ss=ss[1])


@st.composite
def geometries(draw):
    called = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    some = [draw(panels(name, number)) for number, name in enumerate(called)]
    if draw(st.booleans()):  # alike in all but their place
        some = [replace(some[0], name=p.name, min_ss=p.min_ss, max_ss=p.max_ss) for p in some]
    bad = tuple(draw(regions(n, draw(st.sampled_from(some)))) for n in range(draw(st.integers(0, 3))))
    groups = {"_all": tuple(called), "_more": ("_all", called[0])} if draw(st.booleans()) else {}
    return Geometry(
        tuple(some), bad, **{name: draw(value_of(name)) for name in quantities},
        bandwidth=draw(st.none() | numbers), peak_list=draw(st.none() | paths),
        peak_list_type=draw(st.sampled_from([None, "auto", "cxi", "list3"])), groups=groups,
        rigid_groups=draw(st.sampled_from([{}, {"r": (called[0],)}])),
        rigid_group_collections=draw(st.sampled_from([{}, {"c": ("r",)}])),
        extra=draw(st.sampled_from([{}, {"colour": "blue, or = red"}])),
    )  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60)
@given(geometries())
def test_every_geometry_comes_back_as_it_was_written(geometry):
    assert parse_geometry(format_geometry(geometry)) == geometry


@given(st.lists(st.floats(-1e3, 1e3) | st.floats(-1e-300, 1e-300), min_size=3, max_size=3).map(tuple))
def test_directions_are_written_without_exponents(vector):
    panel = Panel("p", 0, 0, 0, 0, 0.0, 0.0, vector, vector, 1.0)
    text = format_geometry(Geometry((panel,)))
    lines = [line for line in text.splitlines() if line.startswith(("p/fs", "p/ss"))]
    assert len(lines) == 2
    assert not any("e" in line.lower() for line in lines)
    assert parse_geometry(text).panels[0].ss == vector


@given(st.text(max_size=200) | st.lists(st.sampled_from("p/fs = \n;\r-+xe%dim0bad1,_gou"), max_size=80).map("".join))
def test_any_text_is_a_geometry_or_one_error(text):
    with contextlib.suppress(InputError):
        assert parse_geometry(text).panels


@pytest.mark.parametrize(
    "changes",
    [{"data": "/a;b"}, {"data": "/a\nb"}, {"name": "bad_p"}, {"name": "a/b"}, {"name": "a=b"}, {"data": "/\udcff"}],
)
def test_what_would_not_come_back_is_not_written(panel, geometry_of, changes):
    geometry = geometry_of(panel())
    geometry = replace(geometry, panels=(replace(geometry.panels[0], **changes),))
    with pytest.raises(InputError, match="cannot be"):
        format_geometry(geometry)


def test_a_strange_name_of_the_source_is_no_harm(panel, geometry_of):
    geometry = replace(geometry_of(panel()), source="x\nclen = 5\udcff")
    assert parse_geometry(format_geometry(geometry)) == geometry
