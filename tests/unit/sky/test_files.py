"""Calibrator lists in their three forms."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from nightbeam.core.errors import InputError, MissingError
from nightbeam.sky import find_calibrator, read_calibrators
from nightbeam.sky.files import nrao_sources

NRAO = """IAU NAME EQUINOX  PC RA(hh,mm,ss)    DEC(ddd,mm,ss)   POS.REF ALT.NAME
===================================================================

0003-174   J2000  T 00h03m21.9969s   -17d27'11.781"
0000-177   B1950  T 00h00m48.4200s   -17d43'54.000"
-----------------------------------------------------
BAND        A B C D    FLUX(Jy)    UVMIN(kL)  UVMAX(kL)
=====================================================
 90cm    P  X S S S          7                        7
 20cm    L  X X X S        2.2                        7

0006-063   J2000  A 00h06m13.892894s -06d23'35.335300"  Aug01
0003-066   B1950  A 00h03m40.288800s -06d40'17.300000"
-----------------------------------------------------
BAND        A B C D    FLUX(Jy)    UVMIN(kL)  UVMAX(kL)
=====================================================
 20cm    L  S X X X       1.60           45
  6cm    C  P P P P       1.30

0137+331   J2000  A 01h37m41.299431s  33d09'35.132990"  Aug01  3C48
0134+329   B1950  A 01h34m49.826400s  32d54'20.259000"
-----------------------------------------------------
BAND        A B C D    FLUX(Jy)    UVMIN(kL)  UVMAX(kL)
=====================================================
 20cm L  P P P P      16.50                       visplot

0200+000   J2000  A 02h00m00.0s  00d00'00.0"
0158+000   B1950  A 01h58m00.0s  00d00'00.0"
-----------------------------------------------------
BAND        A B C D    FLUX(Jy)    UVMIN(kL)  UVMAX(kL)
=====================================================
 20cm    L  P P P P          ?
"""

PARSED = (
    "J2000_NAME,B1950_NAME,PC_J2000,PC_B1950,RA_J2000,DEC_J2000,POS_REF,ALT_NAME,"
    "BAND,BAND_CODE,A,B,C,D,FLUX_JY,UVMIN_kL,UVMAX_kL\n"
    '0137+331,0134+329,A,A,01h37m41.299431s,"33d09\'35.132990""",Aug01,3C48,20cm,L,P,P,P,P,16.5,,40\n'
    '0137+331,0134+329,A,A,01h37m41.299431s,"33d09\'35.132990""",Aug01,3C48,6cm,C,P,P,P,P,5.48,,\n'
    '0003-174,0000-177,T,T,00h03m21.9969s,"-17d27\'11.781""",,,20cm,L,X,X,X,S,2.2,,7\n'
)


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.txt"
    path.write_text(text)
    return path


def test_the_column_alone_tells_uvmin_from_uvmax(tmp_path: Path):
    first, second, third = read_calibrators(_file(tmp_path, NRAO))
    assert (first.uvmin_klambda, first.uvmax_klambda) == (None, 7.0)
    assert (second.uvmin_klambda, second.uvmax_klambda) == (45.0, None)
    assert (third.uvmin_klambda, third.uvmax_klambda) == (None, None)


def test_a_source_without_a_flux_is_left_out_but_counted(tmp_path: Path):
    assert [c.name for c in read_calibrators(_file(tmp_path, NRAO))] == ["0003-174", "0006-063", "0137+331"]
    assert len(list(nrao_sources(NRAO))) == 4


def test_sexagesimal_positions_become_degrees(tmp_path: Path):
    first, _, third = read_calibrators(_file(tmp_path, NRAO))
    assert (third.ra_deg, third.dec_deg) == (pytest.approx(24.42208096, abs=1e-8), pytest.approx(33.15975916, abs=1e-8))
    assert first.dec_deg == pytest.approx(-(17 + 27 / 60 + 11.781 / 3600))
    assert (third.alt, third.position_code, third.flux_jy) == ("3C48", "A", 16.5)


def test_the_parsed_table_reads_like_the_text(tmp_path: Path):
    found = read_calibrators(_file(tmp_path, PARSED))
    assert [(c.name, c.flux_jy, c.uvmax_klambda) for c in found] == [("0137+331", 16.5, 40.0), ("0003-174", 2.2, 7.0)]
    assert found[0].dec_deg == pytest.approx(33.15975916, abs=1e-8)
    assert found[1].dec_deg == pytest.approx(-17.4532725)


def test_plain_degrees_are_enough(tmp_path: Path):
    found = read_calibrators(_file(tmp_path, "name,ra_deg,dec_deg,flux_jy\nA,10.5,-3.25,1.5\nB,0,89,?\n"))
    assert [(c.name, c.ra_deg, c.dec_deg, c.flux_jy) for c in found] == [("A", 10.5, -3.25, 1.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "no calibrator list that we know"),
        ("name,ra_deg,dec_deg,flux_jy\nA,ten,0,1\n", "line 2 cannot be read"),
        ("name,ra_deg,dec_deg,flux_jy\nA,400,0,1\n", "line 2: .* is no direction"),
        ("name,ra_deg,flux_jy\nA,40,1\n", "has no column dec_deg"),
        ("name,ra_deg,dec_deg,flux_jy\n", "no source with a flux"),
        (PARSED.replace("01h37m41.299431s", "1:37:41"), "'1:37:41' is no right ascension"),
        (NRAO.replace("-17d27'11.781\"", "-17:27"), "'-17:27' is no declination"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_with_the_place(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=message) as caught:
        read_calibrators(_file(tmp_path, text))
    assert caught.value.fix


def test_a_list_that_is_not_there_is_missed(tmp_path: Path):
    with pytest.raises(MissingError, match="no calibrator list"):
        read_calibrators(tmp_path / "none.csv")


def test_bytes_are_no_list(tmp_path: Path):
    (tmp_path / "b").write_bytes(b"\x89HDF\xff\xfe")
    with pytest.raises(InputError, match="cannot read the calibrator list"):
        read_calibrators(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "ra_deg", "dec_deg"),
    [("3C48", 24.42208096, 33.15975916), ("3c 286", 202.78453327, 30.50915524), ("3C454.3", 343.49061638, 16.14821136)],
)
def test_the_shipped_list_knows_the_standard_calibrators(name: str, ra_deg: float, dec_deg: float):
    found = find_calibrator(read_calibrators(), name)
    assert (found.ra_deg, found.dec_deg) == (pytest.approx(ra_deg, abs=1e-7), pytest.approx(dec_deg, abs=1e-7))


def test_a_name_that_is_unknown_brings_its_neighbours():
    with pytest.raises(MissingError, match="no calibrator '3C4899'") as caught:
        find_calibrator(read_calibrators(), "3C4899")
    assert "did you mean" in caught.value.fix


def test_all_of_nraos_list_is_read(shared_data: Path):
    path = shared_data / "dsa110" / "vlacalibrators.txt"
    assert sum(1 for _ in nrao_sources(path.read_text())) == 1865
    assert len(read_calibrators(path)) == len(read_calibrators()) == 1041


def test_our_reading_agrees_with_the_independently_parsed_table(shared_data: Path):
    ours = {c.name: c for c in read_calibrators(shared_data / "dsa110" / "vlacalibrators.txt")}
    with (shared_data / "dsa110" / "vla_calibrators_20cm.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == len(ours) == 1041
    for row in rows:
        source = ours[row["name"]]
        assert source.flux_jy == float(row["flux_jy"])
        assert (source.uvmin_klambda or 0.0) == float(row["uvmin_klambda"] or 0)
        assert (source.uvmax_klambda or 0.0) == float(row["uvmax_klambda"] or 0)
        assert source.ra_deg == pytest.approx(float(row["ra_deg"]), abs=1e-7)
        assert source.dec_deg == pytest.approx(float(row["dec_deg"]), abs=1e-7)


@pytest.mark.parametrize(("dec_deg", "within", "above_1_jy"), [(16.1, 12, 6), (33.0, 15, 11), (54.57, 17, 9)])
def test_strips_hold_as_many_calibrators_as_were_counted(dec_deg: float, within: int, above_1_jy: int):
    strip = [c for c in read_calibrators() if abs(c.dec_deg - dec_deg) <= 1.0]
    assert (len(strip), sum(c.flux_jy > 1.0 for c in strip)) == (within, above_1_jy)


@pytest.mark.parametrize("nothing", ["", " ", "J"])
def test_no_name_finds_no_calibrator(nothing):
    with pytest.raises(MissingError, match="no calibrator"):
        find_calibrator(read_calibrators(), nothing)
