import math

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from nightbeam.core.errors import InputError, MissingError, RejectedError, ToolError
from nightbeam.imaging.files import check_image, find_sources, measure_sources, open_image

BEAM = (6.0, 4.0)  # 18 x 12 arcsec in pixels of 3


@pytest.fixture
def field(write_fits, header, gaussian):
    """Noise of 1 mJy and two sources, one 0.16 degrees from the centre, at places from astropy."""
    n = 400
    wcs = WCS(header(n)).celestial
    places = [(70.9, 54.52), (71.08, 54.64)]
    image = np.random.default_rng(3).normal(0, 1e-3, (n, n))
    for (ra, dec), flux in zip(places, (1.0, 0.2), strict=True):
        x, y = wcs.world_to_pixel(SkyCoord(ra, dec, unit="deg"))
        image += flux * gaussian(n, float(x), float(y), *BEAM, 30.0)
    return write_fits(image), places


def test_sources_are_measured_where_they_are(field):
    path, places = field
    one, two = measure_sources(path, places, names=["one", "two"])
    assert (one.name, one.found, two.found) == ("one", True, True)
    assert one.peak_jy == pytest.approx(1.0, abs=0.005)
    assert one.integrated_jy == pytest.approx(1.0, abs=0.01)
    assert (one.major_arcsec, one.minor_arcsec) == pytest.approx((18.0, 12.0), rel=0.01)
    assert one.noise_jy == pytest.approx(1e-3, rel=0.1)
    assert two.peak_jy == pytest.approx(0.2, abs=0.005)
    assert max(one.offset_beams, two.offset_beams) < 0.01


def test_an_offset_is_given_in_arcsec_and_in_beams(field):
    path, _ = field
    (found,) = measure_sources(path, [(70.9, 54.52 + 10 / 3600)])
    assert found.offset_arcsec == pytest.approx(10.0, abs=0.05)
    assert found.offset_beams == pytest.approx(10.0 / math.sqrt(18.0 * 12.0), rel=0.01)


def test_fluxes_are_divided_by_the_beam_at_the_source(field, write_fits):
    path, places = field
    pb = write_fits(np.full((400, 400), 0.5), "pb.fits")
    (found,) = measure_sources(path, places[:1], pb=pb)
    assert (found.peak_jy, found.pb) == (pytest.approx(2.0, abs=0.01), 0.5)
    assert found.snr == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize(
    ("place", "reason"),
    [((80.0, 54.52), "outside the image"), ((250.9, -54.52), "outside the image"), ((71.0, 54.40), "local noise")],
)
def test_a_source_that_is_not_there_says_why(field, place, reason):
    (found,) = measure_sources(field[0], [place])
    assert not found.found
    assert reason in found.reason


def test_a_faint_peak_counts_when_asked(field):
    (found,) = measure_sources(field[0], [(71.0, 54.40)], min_snr=0.5)
    assert found.found


def test_the_two_sources_are_found_blind_and_no_more(field):
    path, places = field
    found = find_sources(path)
    assert [f.peak_jy for f in found] == pytest.approx([1.0, 0.2], abs=0.01)
    for fit, (ra, dec) in zip(found, places, strict=True):
        assert SkyCoord(fit.found_ra_deg, fit.found_dec_deg, unit="deg").separation(
            SkyCoord(ra, dec, unit="deg")
        ).arcsec == pytest.approx(0, abs=0.1)
    assert found[0].name == "J044336.0+543112"


def test_degenerate_axes_are_taken_off(field):
    sky = open_image(field[0])
    assert sky.data.shape == (400, 400)
    assert sky.to_pixel(70.9, 54.52) == pytest.approx((200.0, 200.0))
    assert sky.to_sky(200.0, 200.0) == pytest.approx((70.9, 54.52))


def test_a_cube_is_refused(tmp_path, header):
    fits.writeto(tmp_path / "cube.fits", np.zeros((1, 3, 200, 200), np.float32), header())
    with pytest.raises(InputError, match=r"wanted one plane"):
        open_image(tmp_path / "cube.fits")


def test_what_is_no_fits_is_refused(tmp_path):
    (tmp_path / "x.fits").write_bytes(b"not an image")
    with pytest.raises(InputError, match="not a FITS image"):
        open_image(tmp_path / "x.fits")
    with pytest.raises(MissingError, match=r"y\.fits"):
        open_image(tmp_path / "y.fits")


def test_an_image_without_a_beam_cannot_be_measured(tmp_path, header):
    card = header()
    del card["BMAJ"]
    fits.writeto(tmp_path / "x.fits", np.ones((1, 1, 200, 200), np.float32), card)
    with pytest.raises(InputError, match="restoring beam"):
        measure_sources(tmp_path / "x.fits", [(70.9, 54.52)])


def blank(value):
    return np.full((200, 200), value)


@pytest.mark.parametrize(
    ("data", "kind", "error", "word"),
    [
        (blank(0.0), "image", RejectedError, "zero everywhere"),
        (blank(np.nan), "image", RejectedError, "not finite"),
        (blank(np.nan), "pbcor", RejectedError, "blank"),
        (np.ones((100, 100)), "image", ToolError, "wanted 200 x 200"),
    ],
)
def test_an_unusable_image_is_told_from_a_failed_imager(write_fits, data, kind, error, word):
    with pytest.raises(error, match=word):
        check_image(write_fits(data), kind, imsize=200)


def test_a_missing_image_is_the_imagers_failure(tmp_path):
    with pytest.raises(ToolError, match="left no usable residual"):
        check_image(tmp_path / "none.fits", "residual", imsize=200)


def test_a_model_may_be_empty(write_fits):
    assert check_image(write_fits(blank(0.0)), "model", imsize=200).data.sum() == 0
