import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from nightbeam.core.errors import BusyError, InputError, RejectedError, StorageError
from nightbeam.core.locks import sole_owner
from nightbeam.imaging import measure_sources, open_image
from nightbeam.mosaic import MosaicOptions, Tile, build_mosaic, read_mosaic
from nightbeam.sky import separation
from nightbeam.sky.model import Calibrator
from nightbeam.testing.sky_tiles import SkyTile, drift_night, random_sky, write_tile

SKY = [Calibrator("A", 10.1, 16.1, 1.0), Calibrator("B", 11.0, 15.8, 0.5), Calibrator("C", 11.5, 16.2, 0.7)]
SMALL = SkyTile(
    ra_deg=10.0,
    dec_deg=16.0,
    mid_mjd=60950.1,
    imsize=96,
    cell_arcsec=80.0,
    beam_major_arcsec=400.0,
    beam_minor_arcsec=320.0,
)


def plane(path):
    return fits.getdata(path)[0, 0]


def tiles_of(products):
    return [Tile.from_image(p, group_id=p.stem.name) for p in products]


@pytest.fixture
def three(tmp_path):
    made = drift_night(tmp_path / "images", SKY, tiles=3, first_ra_deg=10.0, dec_deg=16.0, like=SMALL)
    return tiles_of(made)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return a function that builds a mosaic, without its picture unless one is asked for: that takes longest."""

    def run(tiles, options=None, *, stem="night", picture=False, **more):
        if not picture:
            monkeypatch.setattr("nightbeam.mosaic.product.draw_image", lambda *_args, **_more: None)
            monkeypatch.setattr("nightbeam.mosaic.product.save_png", lambda _figure, path: path.write_bytes(b"png"))
        return build_mosaic(
            tiles, tmp_path / "mosaics" / stem, options, scratch=tmp_path / "scratch", name="night", **more
        )

    return run


def left_behind(tmp_path, *, lock=".night.lock"):
    """Return what lies about beside finished products: nothing, it is hoped."""
    beside = [p.name for p in (tmp_path / "mosaics").glob(".*") if p.name != lock]
    return beside + [p.name for p in (tmp_path / "scratch").glob("*")]


# -- the night -----------------------------------------------------------------------------------------------------

NOISES = [2e-3, 1e-3, 4e-3, 60e-3, 2e-3, 1.5e-3, 3e-3, 2e-3]
BAD = 3


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Eight tiles at Dec 54.6 from 23 h 46 m to 0 h 23 m, one of them 30 times as noisy; and the same without a sky."""
    root = tmp_path_factory.mktemp("night")
    like = SkyTile(ra_deg=0.0, dec_deg=54.6, mid_mjd=0.0, imsize=256, cell_arcsec=40.0)
    sky = random_sky(90, ra_deg=(355.0, 368.0), dec_deg=(53.6, 55.6), flux_jy=(0.05, 2.0), apart_deg=0.3, seed=11)
    found = {}
    for name, sources in (("sky", sky), ("empty", [])):
        made = drift_night(root / name, sources, tiles=8, first_ra_deg=356.6, dec_deg=54.6, noises_jy=NOISES, like=like)
        options = MosaicOptions(min_dynamic_range=0.0 if name == "empty" else 5.0)
        found[name] = build_mosaic(
            tiles_of(made), root / "mosaics" / name, options, scratch=root / "scratch", name=name, catalogue=sources
        )
    return found["sky"], found["empty"], sky


@pytest.mark.slow
def test_the_bad_tile_is_rejected_with_its_reason_and_no_other(night):
    mosaic, _, _ = night
    assert [v.accepted for v in mosaic.verdicts] == [k != BAD for k in range(8)]
    (reason,) = mosaic.verdicts[BAD].reasons
    assert str(reason.code) == "noise"
    assert "60 mJy/beam is 30.0 times the median of 8 tiles (2 mJy/beam)" in reason.text
    assert len(mosaic.tiles) == 7


@pytest.mark.slow
def test_the_strip_crosses_0_h_on_a_grid_no_larger_than_it(night):
    mosaic, _, _ = night
    assert mosaic.ra_deg == pytest.approx(356.6 + 3.5 * 1.2916 - 360.0, abs=0.2)
    # Eight tiles in steps of 1.29 degrees of right ascension at Dec 54.6, and the 2.84 degrees of one tile.
    assert mosaic.width * 40.0 / 3600.0 == pytest.approx(7 * 1.2916 * math.cos(math.radians(54.6)) + 2.84, rel=0.04)


def sources_inside(mosaic, sky, margin_px=12):
    noise = plane(mosaic.fits["noise"])
    wcs = WCS(fits.getheader(mosaic.fits["image"])).celestial
    inside = []
    for source in sky:
        x, y = (round(float(v)) for v in wcs.wcs_world2pix(source.ra_deg, source.dec_deg, 0))
        if margin_px <= x < mosaic.width - margin_px and margin_px <= y < mosaic.height - margin_px:
            about = noise[y - margin_px : y + margin_px + 1, x - margin_px : x + margin_px + 1]
            if np.isfinite(about).all():
                inside.append((source, float(noise[y, x])))
    return inside


@pytest.mark.slow
def test_every_source_is_within_a_fifth_of_a_beam_of_its_place_and_fluxes_are_within_their_errors(night):
    mosaic, _, sky = night
    inside = [(s, n) for s, n in sources_inside(mosaic, sky) if s.flux_jy > 8 * n]
    assert len(inside) > 40
    fits_ = measure_sources(mosaic.fits["image"], [(s.ra_deg, s.dec_deg) for s, _ in inside])
    assert all(f.found for f in fits_), [f.reason for f in fits_ if not f.found]
    assert max(f.offset_beams for f in fits_) < 0.2
    pulls = np.array([(f.peak_jy - s.flux_jy) / n for f, (s, n) in zip(fits_, inside, strict=True)])
    # Standard errors for n sources: 1 / sqrt(n) of the mean and 1 / sqrt(2 n) of the spread; three of each.
    # Measured on this night: 85 pulls of mean -0.25 and spread 1.06, the largest 3.6; on two others -0.20 and -0.09.
    assert abs(pulls.mean()) < 3.0 / math.sqrt(len(pulls))
    assert abs(pulls.std() - 1.0) < 3.0 / math.sqrt(2 * len(pulls))
    assert abs(pulls).max() < 4.0


@pytest.mark.slow
def test_overlaps_are_where_sources_are(night):
    """Most of the sources measured above lie on two tiles or more: the night tests overlaps, not lone tiles."""
    mosaic, _, sky = night
    inside = [s for s, _ in sources_inside(mosaic, sky)]
    centres = [v.tile for v in mosaic.verdicts if v.accepted]
    on = [sum(float(separation(s.ra_deg, s.dec_deg, t.ra_deg, t.dec_deg)) < 1.2 for t in centres) for s in inside]
    assert np.mean([n >= 2 for n in on]) > 0.6


@pytest.mark.slow
def test_the_noise_map_is_the_measured_rms_within_a_tenth_everywhere(night):
    """On the sky without sources every pixel is noise, and its ratio to the map has a standard deviation of 1."""
    _, empty, _ = night
    ratio = plane(empty.fits["image"]) / plane(empty.fits["noise"])
    assert np.nanstd(ratio) == pytest.approx(1.0, abs=0.02)
    # 3 x 8 parts of the strip: each has some three hundred beams, which leaves a chance of 4 %.
    parts = [p for row in np.array_split(ratio, 3) for p in np.array_split(row, 8, axis=1)]
    spreads = [np.nanstd(p) for p in parts if np.isfinite(p).mean() > 0.7]
    assert len(spreads) > 12
    assert np.median(spreads) == pytest.approx(1.0, abs=0.02)
    assert max(abs(np.array(spreads) - 1.0)) < 0.1


@pytest.mark.slow
def test_weights_are_the_inverse_square_of_the_noise_and_shares_add_up(night):
    mosaic, _, _ = night
    weight, noise = plane(mosaic.fits["weight"]), plane(mosaic.fits["noise"])
    covered = weight > 0
    np.testing.assert_allclose(noise[covered], 1.0 / np.sqrt(weight[covered]), rtol=1e-5)
    assert np.isnan(noise[~covered]).all()
    assert np.isnan(plane(mosaic.fits["image"])[~covered]).all()
    assert sum(t.share for t in mosaic.tiles) == pytest.approx(1.0)
    shares = {t.noise_jy: t.share for t in mosaic.tiles}
    assert shares[1e-3] / shares[4e-3] == pytest.approx(16.0, rel=0.05)


@pytest.mark.slow
def test_every_check_of_a_sound_night_passes(night):
    mosaic, _, _ = night
    assert {c.name: c.passed for c in mosaic.checks} == dict.fromkeys(
        ("coverage", "negative_pixels", "rms_variation", "noise_jy", "flux_ratio", "astrometry_arcsec", "completeness"),
        True,
    )
    assert mosaic.good


@pytest.mark.slow
def test_a_tile_whose_sources_are_beside_their_places_is_rejected(tmp_path, build):
    sky = random_sky(40, ra_deg=(8.5, 14.0), dec_deg=(15.0, 17.0), flux_jy=(0.3, 2.0), seed=4)
    tiles = tiles_of(drift_night(tmp_path / "i", sky, tiles=3, first_ra_deg=10.0, dec_deg=16.0, like=SMALL))
    crooked = replace(SMALL, ra_deg=tiles[1].ra_deg, mid_mjd=tiles[1].mid_mjd, shift_arcsec=(30.0, 0.0))
    write_tile(tmp_path / "i" / "tile001.img", crooked, sky)
    mosaic = build(tiles, catalogue=sky)
    assert [v.accepted for v in mosaic.verdicts] == [True, False, True]
    assert [str(r.code) for r in mosaic.verdicts[1].reasons] == ["astrometry"]


# -- what is made --------------------------------------------------------------------------------------------------


def test_the_product_can_be_read_back_and_is_not_made_again(three, build, tmp_path):
    mosaic = build(three)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "mosaics").iterdir() if not p.name.startswith(".")}
    assert {p.name for p in stamps} == {
        f"night.{k}" for k in ("image.fits", "weight.fits", "noise.fits", "png", "json")
    }
    assert read_mosaic(mosaic.stem) == mosaic
    assert build(three) == mosaic
    assert all(p.stat().st_mtime_ns == then for p, then in stamps.items())
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("what", ["options", "tile", "tiles", "damage", "force"])
def test_it_is_made_again_when_something_has_changed(three, build, what):
    first = build(three)
    if what == "tile":
        os.utime(three[0].path, ns=(1, 1))
    if what == "damage":
        with first.fits["noise"].open("r+b") as out:
            out.seek(9000)
            out.write(b"xxxx")
    options = MosaicOptions(pb_cut=0.3) if what == "options" else None
    again = build(three[:2] if what == "tiles" else three, options, force=what == "force")
    assert again.made_at > first.made_at
    assert read_mosaic(again.stem) == again


def test_headers_say_what_it_is(three, build):
    mosaic = build([*three, replace(three[0], path=Path("/nowhere/x.fits"), group_id="x")], provenance={"flow": "f-7"})
    for kind, unit in (("image", "Jy/beam"), ("weight", "beam2/Jy2"), ("noise", "Jy/beam")):
        header = fits.getheader(mosaic.fits[kind])
        assert (header["BUNIT"], header["NAXIS"], header["RADESYS"]) == (unit, 4, "ICRS")
        assert (header["NTILES"], header["NREJECT"], header["MOSAIC"]) == (3, 1, "weighted")
        assert header["BMAJ"] * 3600 == pytest.approx(400.0)
        assert header["CRVAL3"] == 1.405e9
        assert header["NOISE"] == pytest.approx(mosaic.noise_median_jy)
        assert header["MJD-OBS"] == pytest.approx(three[0].start_mjd)
        assert header["MJD-END"] == pytest.approx(three[-1].mid_mjd + 0.5 * 309.12 / 86400, abs=1e-3)
        history = "".join(header["HISTORY"])
        assert "flow = f-7" in history
        assert "tile002.img.image.pbcor.fits: noise 2 mJy/beam" in history
        assert "not used: x.fits: missing" in history.replace("\n", "")
    with fits.open(mosaic.fits["image"]) as hdus:
        hdus.verify("exception")
        assert hdus[0].data.shape == (1, 1, mosaic.height, mosaic.width)


@pytest.mark.slow
def test_there_is_a_picture_of_it_in_which_a_lone_bright_pixel_survives(three, build, monkeypatch):
    from nightbeam.mosaic.files import open_plane
    from nightbeam.mosaic.product import _small

    mosaic = build(three, picture=True)
    assert mosaic.png.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("nightbeam.mosaic.product._MOST_PICTURE_PX", 20)
    small, whole = _small(open_plane(mosaic.path), 30), open_image(mosaic.path)
    np.testing.assert_array_equal(small.data, _small(open_plane(mosaic.path), 4096).data)
    assert max(small.data.shape) <= 20
    assert np.nanmax(small.data) == np.nanmax(whole.data)
    y, x = np.unravel_index(np.nanargmax(small.data), small.data.shape)
    assert float(separation(*small.to_sky(float(x), float(y)), mosaic.peak_ra_deg, mosaic.peak_dec_deg)) < 0.15
    assert small.cell_arcsec == pytest.approx(80.0 * math.ceil(mosaic.width / 20))


def test_our_own_door_reads_it(three, build):
    mosaic = build(three)
    sky = open_image(mosaic.path)
    assert sky.cell_arcsec == pytest.approx(80.0)
    assert sky.beam.major_px == pytest.approx(5.0)
    (fit,) = measure_sources(mosaic.path, [(SKY[0].ra_deg, SKY[0].dec_deg)])
    assert fit.peak_jy == pytest.approx(1.0, abs=0.02)
    assert fit.integrated_jy == pytest.approx(1.0, abs=0.03)


def test_blocks_and_workers_change_nothing(three, build):
    whole = build(three, block_pixels=1024, workers=1, stem="a")
    pieces = build(three, block_pixels=97, workers=3, stem="b")
    for kind in ("image", "noise"):
        one, other = plane(whole.fits[kind]), plane(pieces.fits[kind])
        np.testing.assert_allclose(one, other, atol=1e-6 if kind == "image" else 1e-8, equal_nan=True)
    again = build(three, block_pixels=97, workers=1, stem="c")
    np.testing.assert_array_equal(plane(pieces.fits["image"]), plane(again.fits["image"]))


def test_no_piece_that_is_read_or_written_is_larger_than_a_block_and_its_margin(three, build, monkeypatch):
    """Memory is bounded by blocks: neither the tiles (96 x 96) nor the mosaic (twice as wide) are ever held whole."""
    from nightbeam.mosaic import product
    from nightbeam.mosaic.files import PlaneFile, PlaneWriter

    read, write = PlaneFile.read, PlaneWriter.write
    pieces, blocks = [], []

    def reading(self, piece):
        pieces.append(piece.shape)
        return read(self, piece)

    def writing(self, block, data):
        blocks.append(data.shape)
        write(self, block, data)

    monkeypatch.setattr(product, "_LEAST_PART_PX", 24)
    monkeypatch.setattr(product, "_PART_BEAMS", 1)
    monkeypatch.setattr(product, "middle_piece", lambda _: product.Block(30, 30, 70, 70))
    monkeypatch.setattr(PlaneFile, "read", reading)
    monkeypatch.setattr(PlaneWriter, "write", writing)
    mosaic = build(three, block_pixels=24)
    assert mosaic.width > 150
    assert max(max(shape) for shape in blocks) == 24
    # 24 pixels of the grid are as many of a tile, turned by a degree; 12 more on each side for the spline.
    assert max(max(shape) for shape in pieces) <= max(40, 24 + 2 * 12 + 4)


def test_the_order_of_tiles_is_no_matter(three, build):
    there, back = build(three, stem="a"), build(three[::-1], stem="b")
    np.testing.assert_allclose(plane(there.path), plane(back.path), atol=1e-6, equal_nan=True)


@pytest.mark.slow
def test_a_long_strip_keeps_its_sources_on_a_cylinder(tmp_path, build):
    sky = [Calibrator("W", 350.2, 29.9, 1.0), Calibrator("M", 359.9, 30.1, 1.0), Calibrator("E", 18.0, 30.2, 1.0)]
    like = replace(SMALL, imsize=64, cell_arcsec=120.0, beam_major_arcsec=600.0, beam_minor_arcsec=480.0)
    made = drift_night(tmp_path / "i", sky, tiles=23, first_ra_deg=350.0, dec_deg=30.0, like=like)
    mosaic = build(tiles_of(made), MosaicOptions(min_dynamic_range=0.0))
    assert mosaic.projection == "CEA"
    fits_ = measure_sources(mosaic.path, [(s.ra_deg, s.dec_deg) for s in sky])
    assert [f.peak_jy for f in fits_] == pytest.approx([1.0] * 3, abs=0.03)
    assert [f.integrated_jy for f in fits_] == pytest.approx([1.0] * 3, abs=0.06)
    assert max(f.offset_beams for f in fits_) < 0.05


def test_beams_that_differ_are_averaged_and_told_and_peaks_stay(tmp_path, build):
    wide = replace(SMALL, beam_major_arcsec=440.0, beam_minor_arcsec=352.0, seed=7)
    tiles = tiles_of(
        [
            write_tile(tmp_path / "i" / "a.img", SMALL, SKY),
            write_tile(tmp_path / "i" / "b.img", replace(wide, mid_mjd=60951.0), SKY),
        ]
    )
    mosaic = build(tiles)
    assert mosaic.beam_major_arcsec == pytest.approx(math.sqrt(0.5 * (400**2 + 440**2)), rel=1e-3)
    assert [t.beam_major_arcsec for t in mosaic.tiles] == [400.0, 440.0]
    (fit,) = measure_sources(mosaic.path, [(SKY[0].ra_deg, SKY[0].dec_deg)])
    assert fit.peak_jy == pytest.approx(1.0, abs=0.015)
    assert fit.integrated_jy == pytest.approx(1.0, abs=0.03)


def test_an_uncorrected_tile_gives_the_same_mosaic(three, build):
    flat = [replace(t, path=t.path.with_name(t.path.name.replace(".pbcor", "")), pbcor=False) for t in three]
    one = build(three, stem="a")
    other = build(flat, MosaicOptions(include_unpbcor=True), stem="b")
    both = np.isfinite(plane(one.path))
    # The corrected image ends at 0.2 of its beam, the flat one is used down to the cut.
    assert np.isfinite(plane(other.path))[both].all()
    only_here = plane(one.path)[both] - plane(other.path)[both]
    assert np.median(abs(only_here)) < 1e-6
    with pytest.raises(RejectedError, match="not corrected for the primary beam"):
        build(flat, stem="c")


# -- the plain mean ------------------------------------------------------------------------------------------------


def test_tiles_of_unknown_frequency_make_a_mosaic_that_names_none(three, build):
    for tile in three:
        for path in (tile.path, tile.pb_path):
            fits.delval(path, "CRVAL3")
            fits.delval(path, "RESTFRQ")
    mosaic = build([replace(tile, freq_hz=None) for tile in three])
    assert mosaic.freq_hz is None
    header = fits.getheader(mosaic.path)
    assert "RESTFRQ" not in header
    assert "CRVAL3" not in header
    assert header["NOISE"] == pytest.approx(mosaic.noise_median_jy)
    assert Tile.from_json(mosaic.verdicts[0].tile.to_json()).freq_hz is None
    assert read_mosaic(mosaic.stem) == mosaic


def test_a_plain_mean_of_aligned_tiles_is_their_mean(tmp_path, build):
    made = [write_tile(tmp_path / "i" / f"{k}.img", replace(SMALL, seed=k, mid_mjd=60950.1 + k), SKY) for k in range(3)]
    mosaic = build(tiles_of(made), MosaicOptions(method="mean"))
    images = [plane(p.path) for p in made]
    np.testing.assert_allclose(plane(mosaic.path), np.mean(images, axis=0), atol=1e-6, equal_nan=True)
    pb = plane(made[0].fits["pb"])
    covered = np.isfinite(images[0])
    np.testing.assert_allclose(plane(mosaic.fits["noise"])[covered], (2e-3 / pb / math.sqrt(3))[covered], rtol=1e-4)
    theirs, ours = fits.getheader(made[0].path), fits.getheader(mosaic.path)
    assert ours["CTYPE1"] == theirs["CTYPE1"]
    for card in ("CRVAL1", "CRVAL2", "CRPIX1", "CDELT1", "NAXIS1"):
        assert ours[card] == pytest.approx(theirs[card], rel=1e-12)


def test_a_plain_mean_of_tiles_with_other_centres_is_refused(three, build, tmp_path):
    with pytest.raises(InputError, match="do not share their pixels") as caught:
        build(three, MosaicOptions(method="mean"))
    assert "method weighted" in caught.value.fix
    assert left_behind(tmp_path) == []


def test_a_plain_mean_of_tiles_whose_headers_turn_is_refused(tmp_path, build):
    made = [write_tile(tmp_path / "i" / f"{k}.img", replace(SMALL, mid_mjd=60950.1 + k), SKY) for k in range(2)]
    for kind in ("pbcor", "pb"):
        fits.setval(made[1].fits[kind], "CROTA2", value=3.0)
    with pytest.raises(InputError, match="do not share their pixels"):
        build(tiles_of(made), MosaicOptions(method="mean"))


# -- bad input -----------------------------------------------------------------------------------------------------


def test_no_tile_is_told(build, tmp_path):
    with pytest.raises(InputError, match="no tile to make the mosaic night of"):
        build([])
    assert not (tmp_path / "mosaics").exists()


def test_tiles_of_two_strips_are_told_apart(three, build, tmp_path):
    far = Tile.from_image(write_tile(tmp_path / "i" / "far.img", replace(SMALL, ra_deg=80.0), SKY), group_id="far")
    with pytest.raises(InputError, match="more than one strip") as caught:
        build([*three, far])
    assert "far: at RA 80.000" in caught.value.what
    assert left_behind(tmp_path) == []


def test_where_every_tile_is_bad_every_reason_is_told(three, build, tmp_path):
    three[0].path.unlink()
    three[1].path.write_bytes(three[1].path.read_bytes()[:9999])
    fits.delval(three[2].path, "BMAJ")
    with pytest.raises(RejectedError) as caught:
        build(three)
    for said in (
        "none of 3 tiles",
        "tile000.img: it is not there",
        "tile001.img: it was cut short",
        "no restoring beam",
    ):
        assert said in caught.value.what
    assert left_behind(tmp_path) == []


def test_one_bad_tile_does_not_stop_the_others(three, build):
    fits.delval(three[1].path, "CTYPE1")
    fits.delval(three[1].path, "CTYPE2")
    mosaic = build(three)
    assert [str(r.code) for v in mosaic.verdicts for r in v.reasons] == ["no_wcs"]
    assert len(mosaic.tiles) == 2


def test_blank_pixels_within_a_tile_are_left_out_and_nothing_beside_them_is_bent(tmp_path, build):
    quiet = replace(SMALL, noise_jy=1e-3)
    tile = Tile.from_image(write_tile(tmp_path / "i" / "a.img", quiet, SKY), group_id="a")
    whole = build([tile], stem="whole")
    image = fits.getdata(tile.path)
    image[0, 0, 40:44, 50:55] = np.nan
    fits.writeto(tile.path, image, fits.getheader(tile.path), overwrite=True)
    holed = build([tile], stem="holed")
    one, other = plane(whole.path), plane(holed.path)
    gone = np.isfinite(one) & ~np.isfinite(other)
    assert 20 <= np.count_nonzero(gone) <= 13 * 14
    here = np.isfinite(other)
    assert abs(one - other)[here].max() < 1e-2 * quiet.noise_jy


def test_a_tile_with_a_hole_in_its_middle_is_used_for_what_it_has(three, build):
    image = fits.getdata(three[1].path)
    image[0, 0, 22:74, 22:74] = np.nan
    fits.writeto(three[1].path, image, fits.getheader(three[1].path), overwrite=True)
    mosaic = build(three)
    assert len(mosaic.tiles) == 3


def test_a_tile_that_reaches_beyond_the_sky_stops_no_other(three, build):
    for path in (three[2].path, three[2].pb_path):
        fits.setval(path, "CDELT1", value=-80.0 / 3600.0 * 50)
        fits.setval(path, "CDELT2", value=80.0 / 3600.0 * 50)
    mosaic = build(three)
    assert [str(r.code) for r in mosaic.verdicts[2].reasons] == ["no_wcs"]
    assert len(mosaic.tiles) == 2


@pytest.mark.parametrize("which", ["path", "pb_path"])
def test_a_file_that_is_taken_away_meanwhile_is_named(three, build, tmp_path, monkeypatch, which):
    from nightbeam.mosaic import product

    fill = product._fill

    def take(*args, **more):
        getattr(three[1], which).unlink()
        return fill(*args, **more)

    monkeypatch.setattr(product, "_fill", take)
    with pytest.raises(InputError, match=rf"{getattr(three[1], which).name} was taken away while it was read"):
        build(three)
    assert left_behind(tmp_path) == []


def test_a_tile_that_its_disk_does_not_give_is_named_and_not_the_mosaic(three, build, tmp_path, monkeypatch):
    from nightbeam.mosaic import product

    fill, read = product._fill, np.fromfile

    def failing(path, *args, **more):
        if Path(path) == three[1].path:
            raise OSError(errno.EIO, "Input/output error")
        return read(path, *args, **more)

    def fail(*args, **more):
        monkeypatch.setattr(np, "fromfile", failing)
        return fill(*args, **more)

    monkeypatch.setattr(product, "_fill", fail)
    with pytest.raises(InputError, match=rf"{three[1].path.name} cannot be read: Input/output error") as told:
        build(three)
    assert not told.value.retry
    assert left_behind(tmp_path) == []


def test_what_another_mosaic_of_a_longer_name_is_being_written_of_is_left_alone(three, build, tmp_path):
    directory = tmp_path / "mosaics"
    directory.mkdir()
    other = directory / ".night.v2.image.fits.123.0a0b0c0d.part"
    mine = directory / ".night.image.fits.123.0a0b0c0d.part"
    for path in (other, mine):
        path.write_bytes(b"half")
    build(three)
    assert (other.exists(), mine.exists()) == (True, False)


def test_what_cannot_be_described_leaves_the_old_mosaic_whole(three, build, monkeypatch):
    old = build(three)

    def fail(_product):
        raise ValueError("Out of range float values are not JSON compliant")

    with monkeypatch.context() as patch:
        patch.setattr("nightbeam.mosaic.product.describe_mosaic", fail)
        with pytest.raises(ValueError, match="Out of range"):
            build(three, MosaicOptions(pb_cut=0.3))
    assert build(three) == old


def test_a_disk_without_room_is_told_before_anything_is_made(three, build, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("nightbeam.core.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="the mosaic night needs"):
        build(three)
    assert left_behind(tmp_path) == []


def test_a_disk_that_fills_up_leaves_the_old_mosaic_as_it_was(three, build, tmp_path):
    old = build(three)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, usual[1]))
    try:
        with pytest.raises(StorageError, match="no space left"):
            build(three, MosaicOptions(pb_cut=0.3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert left_behind(tmp_path) == []
    assert build(three) == old


def test_a_tile_that_changes_meanwhile_is_noticed(three, build, tmp_path, monkeypatch):
    from nightbeam.mosaic import product

    fill = product._fill

    def touch(*args, **more):
        os.utime(three[0].path, ns=(1, 1))
        return fill(*args, **more)

    monkeypatch.setattr(product, "_fill", touch)
    with pytest.raises(InputError, match="was changed while it was read"):
        build(three)
    assert left_behind(tmp_path) == []
    assert not (tmp_path / "mosaics" / "night.json").exists()


def test_two_cannot_make_the_same_mosaic(three, build, tmp_path):
    with sole_owner(tmp_path / "mosaics" / ".night.lock"), pytest.raises(BusyError, match="the mosaic night"):
        build(three)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["_fill", "write_mosaic"])
def test_one_that_is_killed_is_made_by_the_next(three, build, tmp_path, where):
    """While it writes pixels, and between the renames and the description, when it hurts most."""
    plain = tmp_path / "tiles.json"
    plain.write_text(json.dumps([t.to_json() for t in three]))
    code = f"""
        import json, os, signal
        from pathlib import Path
        from nightbeam.mosaic import Tile, build_mosaic, product
        def die(*args, **more):
            os.kill(os.getpid(), signal.SIGKILL)
        product.{where} = die
        tiles = [Tile.from_json(t) for t in json.loads(Path({str(plain)!r}).read_text())]
        build_mosaic(tiles, Path({str(tmp_path / "mosaics" / "night")!r}), scratch=Path({str(tmp_path / "scratch")!r}),
                     name="night")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "mosaics" / "night.json").exists()
    mosaic = build(three)
    assert read_mosaic(mosaic.stem) == mosaic
    assert list((tmp_path / "mosaics").glob(".*.part")) == []
