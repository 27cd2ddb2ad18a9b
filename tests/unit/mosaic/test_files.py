import errno
import math
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits

from nightbeam.core.errors import InputError, MissingError, StorageError
from nightbeam.mosaic import MosaicOptions, Tile, inspect_tile
from nightbeam.mosaic.compute import Block
from nightbeam.mosaic.files import PlaneWriter, _alone, open_plane, read_mosaic
from nightbeam.sky.model import Calibrator

SKY = [
    Calibrator("A", 10.1, 16.1, 1.0),
    Calibrator("B", 9.7, 15.8, 0.5),
    Calibrator("C", 10.3, 15.7, 0.7),
    Calibrator("D", 9.6, 16.3, 0.6),
]


def code_and_text(facts):
    (reason,) = facts.problems
    return str(reason.code), reason.text


def change(path, *, drop=(), data=None, **cards):
    with fits.open(path, mode="update") as hdus:
        for name in drop:
            hdus[0].header.remove(name)
        hdus[0].header.update(cards)
        if data is not None:
            hdus[0].data = data
    return path


def test_a_tile_is_described_by_its_files(small_tile):
    made = small_tile()
    facts = inspect_tile(Tile(path=made.path, pb_path=made.pb_path))
    tile = facts.tile
    assert facts.problems == ()
    assert (tile.width, tile.height) == (96, 96)
    assert (tile.ra_deg, tile.dec_deg) == pytest.approx((10.0, 16.0), abs=1e-6)
    assert tile.cell_arcsec == pytest.approx(80.0)
    assert (tile.beam_major_arcsec, tile.beam_minor_arcsec, tile.beam_pa_deg) == pytest.approx((400.0, 320.0, 30.0))
    assert (tile.noise_jy, tile.freq_hz, tile.mid_mjd) == pytest.approx((2e-3, 1.405e9, 60950.1))
    assert (tile.start_mjd, tile.end_mjd) == pytest.approx((made.start_mjd, made.end_mjd), abs=1e-7)
    assert tile.calibration_set == "3C286_2025-10-02"
    assert facts.pb_max == pytest.approx(1.0, abs=0.15)
    assert facts.pb_min >= 0.15


def test_noise_and_dynamic_range_are_measured_where_the_header_is_silent(small_tile):
    made = small_tile(noise_jy=5e-3)
    change(made.path, drop=("NOISE", "DYNRANGE"))
    tile = inspect_tile(Tile(path=made.path, pb_path=made.pb_path)).tile
    assert tile.noise_jy == pytest.approx(5e-3, rel=0.15)
    assert tile.dynamic_range == pytest.approx(1.0 / 5e-3, rel=0.3)


def test_a_header_is_believed_more_than_what_was_said(small_tile):
    tile = replace(small_tile(), ra_deg=200.0, noise_jy=9.0, width=5)
    found = inspect_tile(tile).tile
    assert (found.ra_deg, found.noise_jy, found.width) == (pytest.approx(10.0), 2e-3, 96)


def test_a_tile_that_is_not_there_is_missing(small_tile):
    tile = small_tile()
    tile.path.unlink()
    assert code_and_text(inspect_tile(tile))[0] == "missing"


@pytest.mark.parametrize("left", [0, 100, 2880, 5760, 20000])
@pytest.mark.parametrize("which", ["path", "pb_path"])
def test_a_truncated_file_is_found_wherever_it_ends(small_tile, left, which):
    tile = small_tile()
    path = getattr(tile, which)
    path.write_bytes(path.read_bytes()[:left])
    code, text = code_and_text(inspect_tile(tile))
    assert code == "unreadable"
    if left >= 5760:
        assert f"cut short: {left} bytes of" in text


@pytest.mark.parametrize("content", [b"not fits", b"\x00" * 5000, b"SIMPLE  =" * 700])
def test_a_file_of_anything_is_unreadable(small_tile, content):
    tile = small_tile()
    tile.path.write_bytes(content)
    assert code_and_text(inspect_tile(tile))[0] == "unreadable"


def test_a_directory_is_told_from_a_fits_file(small_tile, tmp_path):
    tile = replace(small_tile(), path=tmp_path)
    assert code_and_text(inspect_tile(tile)) == ("unreadable", "it is a directory, not a FITS file")


def test_a_tile_without_a_beam_is_found(small_tile):
    tile = small_tile()
    change(tile.path, drop=("BMAJ",))
    code, text = code_and_text(inspect_tile(tile))
    assert (code, "BMAJ" in text) == ("no_beam", True)
    change(tile.path, BMAJ=0.0)
    assert code_and_text(inspect_tile(tile))[0] == "no_beam"


def test_a_tile_without_coordinates_is_found(small_tile):
    tile = small_tile()
    change(tile.path, drop=("CTYPE1", "CTYPE2"))
    assert code_and_text(inspect_tile(tile))[0] == "no_wcs"


def test_a_header_that_is_nonsense_is_no_coordinates(small_tile):
    tile = small_tile()
    change(tile.path, CTYPE1="RA---TAN", CTYPE2="GLAT-SIN")
    assert code_and_text(inspect_tile(tile))[0] == "no_wcs"


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_a_blank_tile_is_found(small_tile, value):
    tile = small_tile()
    change(tile.path, data=np.full((1, 1, 96, 96), value, np.float32))
    assert code_and_text(inspect_tile(tile))[0] == "all_nan"


def test_a_tile_without_its_primary_beam_is_found(small_tile):
    tile = small_tile()
    assert code_and_text(inspect_tile(replace(tile, pb_path=None)))[0] == "no_pb"
    tile.pb_path.unlink()
    code, text = code_and_text(inspect_tile(tile))
    assert (code, "tile.img.pb.fits" in text) == ("no_pb", True)


def test_a_plain_mean_needs_no_primary_beam(small_tile):
    tile = replace(small_tile(), pb_path=None)
    assert inspect_tile(tile, options=MosaicOptions(method="mean")).problems == ()


@pytest.mark.parametrize(
    ("beam", "said"),
    [
        (np.ones((1, 1, 90, 96), np.float32), "96 x 90 pixels, the image 96 x 96"),
        (np.full((1, 1, 96, 96), 0.1, np.float32), "reaches 0.1"),
        (np.full((1, 1, 96, 96), 80.0, np.float32), "reaches 80"),
        (np.full((1, 1, 96, 96), np.nan, np.float32), "reaches nan"),
    ],
)
def test_a_primary_beam_that_cannot_be_is_found(small_tile, beam, said):
    tile = small_tile()
    change(tile.pb_path, data=beam)
    code, text = code_and_text(inspect_tile(tile))
    assert (code, said in text) == ("primary_beam", True), text


def test_an_image_that_is_only_called_corrected_is_found(small_tile):
    tile = small_tile()
    flat = tile.path.with_name("tile.img.image.fits")
    tile.path.write_bytes(flat.read_bytes())
    code, text = code_and_text(inspect_tile(tile))
    assert (code, "times its primary beam it is not" in text) == ("not_pbcor", True)


def test_sources_in_their_places_pass_and_their_fluxes_are_told(small_tile):
    facts = inspect_tile(small_tile(), catalogue=SKY)
    assert facts.sources == 4
    assert facts.astrometry_arcsec < 3.0 * facts.astrometry_error_arcsec + 0.5
    assert facts.flux_ratio == pytest.approx(1.0, abs=0.02)


def test_a_shift_and_a_wrong_scale_are_measured(small_tile):
    facts = inspect_tile(small_tile(shift_arcsec=(30.0, -40.0), flux_scale=1.3), catalogue=SKY)
    assert facts.astrometry_arcsec == pytest.approx(50.0, abs=3.0)
    assert facts.flux_ratio == pytest.approx(1.3, abs=0.03)


def test_sources_that_are_faint_or_crowded_are_not_looked_for(small_tile):
    faint = [Calibrator("F", 10.0, 16.0, 0.012)]  # 6 sigma
    crowd = [SKY[0], Calibrator("A2", 10.1 + 0.05, 16.1, 0.9)]
    assert inspect_tile(small_tile(), catalogue=faint).sources == 0
    assert inspect_tile(small_tile(), catalogue=crowd).sources == 0


@pytest.mark.parametrize("ra", [10.0, 359.5])
def test_sources_are_alone_that_have_no_neighbour_which_counts(ra):
    chance = np.random.default_rng(3)
    n = 400
    spots = zip(
        (ra + chance.uniform(-2, 2, n)) % 360, chance.uniform(14, 18, n), chance.uniform(0.01, 1, n), strict=True
    )
    sky = [Calibrator(f"{k}", *map(float, spot)) for k, spot in enumerate(spots)]
    places = SkyCoord([s.ra_deg for s in sky], [s.dec_deg for s in sky], unit="deg")
    apart = places[:, None].separation(places[None, :]).arcsec
    alone = [
        s.name
        for k, s in enumerate(sky)
        if not any(apart[k, j] < 400.0 and o.flux_jy > 0.02 * s.flux_jy for j, o in enumerate(sky) if j != k)
    ]
    assert 50 < len(alone) < 350
    assert [s.name for s in _alone(sky, sky, 400.0)] == alone


def test_no_more_sources_are_looked_at_than_are_wanted(small_tile, monkeypatch):
    from nightbeam.mosaic import files

    looked, usual = [], files.measure_plane

    def watch(sky, places, **more):
        looked.append(more["names"][0])
        return usual(sky, places, **more)

    monkeypatch.setattr(files, "measure_plane", watch)
    monkeypatch.setattr(files, "_MOST_ON_TILE", 2)
    elsewhere = [Calibrator(f"X{k}", 200.0 + 0.01 * k, 16.0, 9.0) for k in range(50)]
    inspect_tile(small_tile(), catalogue=[*elsewhere, *SKY])
    assert looked == ["A", "C"]


def test_the_flat_image_is_measured_through_its_beam(small_tile):
    tile = small_tile()
    flat = replace(tile, path=tile.path.with_name("tile.img.image.fits"), pbcor=False)
    assert inspect_tile(flat, catalogue=SKY).flux_ratio == pytest.approx(1.0, abs=0.02)


def test_a_piece_of_a_plane_is_what_astropy_reads_there(small_tile):
    tile = small_tile()
    whole = fits.getdata(tile.path)[0, 0]
    plane = open_plane(tile.path)
    np.testing.assert_array_equal(plane.read(Block(10, 20, 50, 90)), whole[20:90, 10:50])
    np.testing.assert_array_equal(plane.rows(10), whole[5::10])


def test_of_a_wide_plane_no_more_is_read_than_is_asked_for(small_tile, monkeypatch):
    plane = open_plane(small_tile().path)
    whole = fits.getdata(plane.path)[0, 0]

    def whole_rows(*_asked, **_more):
        raise AssertionError("rows are read in their full width")

    monkeypatch.setattr("nightbeam.mosaic.files.np.fromfile", whole_rows)
    np.testing.assert_array_equal(plane.read(Block(10, 20, 30, 90)), whole[20:90, 10:30])
    np.testing.assert_array_equal(plane.read(Block(95, 95, 96, 96)), whole[95:, 95:])


def test_a_plane_that_ends_meanwhile_is_named(small_tile):
    plane = open_plane(small_tile().path)
    plane.path.write_bytes(plane.path.read_bytes()[: plane.start + 4 * 96 * 50])
    for piece in (Block(0, 0, 96, 60), Block(0, 40, 10, 60)):
        with pytest.raises(InputError, match="ends before row"):
            plane.read(piece)
    with pytest.raises(InputError, match="ends before row"):
        plane.rows(1)


def test_a_tile_that_its_disk_does_not_give_is_unreadable(small_tile, monkeypatch):
    tile, opened = small_tile(), Path.open

    def failing(self, *args, **more):
        if self == tile.pb_path:
            raise OSError(errno.EIO, "Input/output error")
        return opened(self, *args, **more)

    monkeypatch.setattr(Path, "open", failing)
    code, text = code_and_text(inspect_tile(tile))
    assert (code, "Input/output error" in text) == ("unreadable", True)


def test_a_tile_larger_than_the_sky_has_no_place_on_it(small_tile):
    tile = small_tile()
    change(tile.path, CDELT1=-80.0 / 3600 * 50, CDELT2=80.0 / 3600 * 50)
    code, text = code_and_text(inspect_tile(tile))
    assert (code, "beyond the sky" in text) == ("no_wcs", True)


def test_doubles_are_read_and_whole_numbers_are_refused(small_tile):
    tile = small_tile()
    change(tile.path, data=fits.getdata(tile.path).astype(np.float64))
    assert inspect_tile(tile).problems == ()
    change(tile.path, data=np.ones((1, 1, 96, 96), np.int16))
    assert "BITPIX 16" in code_and_text(inspect_tile(tile))[1]


def test_several_planes_are_refused(small_tile):
    tile = small_tile()
    change(tile.path, data=np.ones((1, 2, 96, 96), np.float32))
    assert "one plane is wanted" in code_and_text(inspect_tile(tile))[1]


def test_pieces_written_in_any_order_make_a_fits_file(tmp_path):
    data = np.random.default_rng(1).normal(size=(70, 50)).astype(np.float32)
    header = fits.Header({"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": 50, "NAXIS2": 70})
    writer = PlaneWriter(tmp_path / "a.fits", header, 50, 70)
    for b in (Block(20, 30, 50, 70), Block(0, 0, 50, 30), Block(0, 30, 20, 70)):
        writer.write(b, data[b.y0 : b.y1, b.x0 : b.x1])
    writer.close()
    with fits.open(tmp_path / "a.fits", checksum=True) as hdus:
        hdus.verify("exception")
        np.testing.assert_array_equal(hdus[0].data, data)
    assert (tmp_path / "a.fits").stat().st_size % 2880 == 0


def test_a_file_that_may_not_grow_so_large_is_refused_before_anything_is_written(tmp_path):
    header = fits.Header({"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": 500, "NAXIS2": 500})
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    handles = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, usual[1]))
    try:
        with pytest.raises(StorageError, match="no space left"):
            PlaneWriter(tmp_path / "a.fits", header, 500, 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert len(list(Path("/proc/self/fd").iterdir())) == handles


def test_a_disk_that_fills_up_is_told_as_such(tmp_path, monkeypatch):
    header = fits.Header({"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": 50, "NAXIS2": 50})
    writer = PlaneWriter(tmp_path / "a.fits", header, 50, 50)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nightbeam.mosaic.files.os.pwrite", full)
    with pytest.raises(StorageError, match="no space left"):
        writer.write(Block(0, 0, 50, 50), np.zeros((50, 50)))
    writer.close()


def test_a_description_that_is_not_there_or_damaged_is_told(tmp_path):
    with pytest.raises(MissingError, match=r"night\.json is not there"):
        read_mosaic(tmp_path / "night")
    for text in ("{", '{"version": 1}', '{"version": 1, "mosaic": {}}', '{"version": 99, "mosaic": {}}', "[]"):
        (tmp_path / "night.json").write_text(text)
        with pytest.raises(InputError):
            read_mosaic(tmp_path / "night")
