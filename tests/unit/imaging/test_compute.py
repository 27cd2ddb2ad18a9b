import math
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import InputError
from nightbeam.imaging.compute import (
    Beam,
    averaging_width,
    beam_area_pixels,
    cell_size_arcsec,
    central_quarter,
    choose_cell_arcsec,
    correct_for_beam,
    drift_beam,
    fit_beam,
    fit_source,
    judge_image,
    local_maxima,
    robust_noise,
    smearing_loss,
    synthesized_beam_rad,
    w_planes,
)
from nightbeam.imaging.model import SourceFit


def test_the_longest_dsa_baseline_wants_pixels_of_1_7_arcsec():
    # 0.5 * 0.213375 m / 2602 m / 5 = 8.2005e-6 rad
    assert cell_size_arcsec(2602.0, 1.405e9) == pytest.approx(1.6915, abs=2e-4)


@pytest.mark.parametrize(("uv", "cell"), [(1.0, 60.0), (1e6, 0.1), (0.0, 2.0), (math.nan, 2.0)])
def test_a_pixel_is_never_absurd(uv, cell):
    assert cell_size_arcsec(uv, 1.4e9) == cell


def test_half_a_turn_over_the_band_loses_what_sinc_says():
    # B theta dnu / c = 0.5: sinc(0.5) = 2/pi
    assert smearing_loss(299792458.0 * 0.5, 1.0, 1.0) == pytest.approx(1 - 2 / math.pi)


@pytest.mark.parametrize(
    ("channels", "most", "offset", "width"),
    [
        ([48] * 16, 8, 0.004, 8),
        ([63], 8, 0.0, 7),  # 8 would leave 7 of 63 channels over
        ([48, 64], 48, 0.0, 16),
        ([8] * 16, 1, 0.0, 1),
        ([48] * 16, 8, 0.05, 1),  # sinc(2600 * 0.05 * 0.488e6 / c) = 0.93
    ],
)
def test_channels_are_averaged_as_far_as_nothing_is_lost(channels, most, offset, width):
    found = averaging_width(channels, 244140.625, most=most, uv_max_m=2600.0, offset_rad=offset, max_loss=0.05)
    assert found == width


def test_robust_noise_is_the_scaled_median_deviation():
    assert robust_noise(np.array([1.0, 2.0, 3.0, 4.0, 100.0, np.nan])) == 1.4826


def test_noise_of_nothing_is_an_error():
    with pytest.raises(InputError, match="finite"):
        robust_noise(np.full(4, np.nan))


@given(st.floats(0.01, 100.0), st.floats(-100.0, 100.0))
def test_noise_scales_and_does_not_feel_a_pedestal(scale, pedestal):
    values = np.random.default_rng(0).normal(size=500)
    assert robust_noise(scale * values + pedestal) == pytest.approx(scale * robust_noise(values), rel=1e-6)


def test_the_central_quarter_is_half_of_each_side():
    image = np.arange(64.0).reshape(8, 8)
    assert np.array_equal(central_quarter(image), image[2:6, 2:6])


def test_a_round_beam_of_two_pixels_covers_four_and_a_half():
    assert beam_area_pixels(Beam(2.0, 2.0, 0.0)) == pytest.approx(4.5324, abs=1e-4)  # pi / ln 2


def test_a_source_between_pixels_is_found_with_its_shape(gaussian):
    image = 3.0 * gaussian(60, 31.3, 27.8, 6.0, 4.0, 30.0)
    fit = fit_source(image, 29.0, 30.0, beam=Beam(6.0, 4.0, 30.0), search_px=6.0)
    assert fit == pytest.approx((3.0, 31.3, 27.8, 6.0, 4.0), rel=1e-6)


def test_a_bright_neighbour_does_not_stand_in_for_a_source(gaussian):
    image = 0.3 * gaussian(80, 30, 30, 6, 6, 0) + 1.2 * gaussian(80, 43, 30, 6, 6, 0)
    fit = fit_source(image, 30.0, 30.0, beam=Beam(6, 6, 0), search_px=14.0)
    assert fit.x == pytest.approx(30.0, abs=0.2)
    assert fit_source(image, 38.0, 30.0, beam=Beam(6, 6, 0), search_px=13.0).x == pytest.approx(43.0, abs=0.1)


def test_where_nothing_is_no_source_is_found():
    assert fit_source(np.full((40, 40), -1.0), 20, 20, beam=Beam(5, 5, 0), search_px=5) is None
    assert fit_source(np.full((40, 40), np.nan), 20, 20, beam=Beam(5, 5, 0), search_px=5) is None


def test_two_sources_are_two_maxima_and_their_slopes_none(gaussian):
    image = gaussian(60, 15, 15, 6, 4, 0) + 0.5 * gaussian(60, 40, 35, 6, 4, 0)
    assert local_maxima(image, above=0.1, beam=Beam(6, 4, 0)) == [(15, 15), (35, 40)]


def test_a_drifting_beam_is_the_mean_of_where_it_pointed(header):
    wcs = WCS(header(101, cell=60.0)).celestial
    # Dec 0.5 deg north and south of the centre: a Gaussian of 1.22 lambda/D = 3.208 deg at 1.405 GHz, 4.65 m
    pointings = np.array([[70.9, 54.52 + 0.5], [70.9, 54.52 - 0.5]])
    beam = drift_beam(wcs, (101, 101), pointings, [1.405e9], model="gaussian", diameter_m=4.65)
    assert beam[50, 50] == pytest.approx(math.exp(-4 * math.log(2) * (0.5 / 3.2076) ** 2), abs=1e-4)
    assert beam[80, 50] == pytest.approx(
        0.5 * sum(math.exp(-4 * math.log(2) * (d / 3.2076) ** 2) for d in (0.0, 1.0)), abs=1e-4
    )


def test_the_corrected_image_ends_where_the_beam_is_low():
    corrected = correct_for_beam(np.array([[1.0, 1.0, 1.0]]), np.array([[1.0, 0.5, 0.1]]), limit=-0.2)
    assert corrected[0, :2].tolist() == [1.0, 2.0]
    assert np.isnan(corrected[0, 2])


def product(**changed):
    return SimpleNamespace(**({"peak_jy": 1.0, "noise_jy": 0.01, "deepest_jy": -0.05} | changed))


def test_a_clear_image_is_good():
    assert judge_image(product()).good


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"peak_jy": 0.049}, "4.9 times the noise"),
        ({"noise_jy": 0.0}, "blank"),
        ({"noise_jy": math.nan}, "blank"),
        ({"deepest_jy": -0.8}, "deepest hole"),
    ],
)
def test_an_image_that_shows_nothing_is_not_good(changed, reason):
    verdict = judge_image(product(**changed))
    assert not verdict.good
    assert reason in verdict.reasons[0]


def test_a_calibrator_more_than_a_beam_off_spoils_the_image():
    off = SourceFit(name="3C48", ra_deg=0, dec_deg=0, found=True, offset_arcsec=30.0, offset_beams=1.5)
    verdict = judge_image(product(), calibrator=off)
    assert verdict.reasons == ("the calibrator 3C48 is 30.00 arcsec (1.50 beams) from its place",)


def test_a_calibrator_that_is_not_there_spoils_the_image():
    gone = SourceFit(name="3C48", ra_deg=0, dec_deg=0, found=False, reason="there is no peak near its place")
    assert "not found" in judge_image(product(), calibrator=gone).reasons[0]


def beam_of(uv, weighting, robust=0.0):
    return synthesized_beam_rad(uv, weighting=weighting, robust=robust, field_of_view_rad=0.01)


@pytest.mark.slow
def test_gaussian_coverage_has_the_gaussian_beam_of_the_textbook():
    uv = np.random.default_rng(1).normal(scale=2000.0, size=(200_000, 2))
    assert beam_of(uv, "natural") == pytest.approx(math.sqrt(8 * math.log(2)) / (2 * math.pi * 2000.0), rel=0.02)


@pytest.mark.slow
def test_a_filled_disc_has_the_beam_of_a_uniform_aperture():
    r, angle = 4000.0 * np.sqrt(np.random.default_rng(2).random(400_000)), np.random.default_rng(3).random(400_000)
    uv = np.stack([r * np.cos(2 * np.pi * angle), r * np.sin(2 * np.pi * angle)], axis=1)
    # 2 J1(x) / x = 1/2 at x = 2.2150
    assert beam_of(uv, "uniform") == pytest.approx(2 * 2.2150 / (2 * math.pi * 4000.0), rel=0.02)


@pytest.mark.slow
def test_briggs_lies_between_natural_and_uniform():
    uv = np.random.default_rng(4).normal(scale=2000.0, size=(200_000, 2)) * np.random.default_rng(5).random(
        (200_000, 1)
    )
    natural, uniform = beam_of(uv, "natural"), beam_of(uv, "uniform")
    assert uniform < beam_of(uv, "briggs") < natural
    assert beam_of(uv, "briggs", -2.0) == pytest.approx(uniform, rel=0.02)
    assert beam_of(uv, "briggs", 2.0) == pytest.approx(natural, rel=0.02)


def test_no_baseline_has_no_beam():
    assert math.isnan(beam_of(np.zeros((3, 2)), "natural"))


@pytest.mark.parametrize(
    ("beam", "cell"),
    [
        (40.0, 6696.0 / 1024),  # sampled well enough to see the whole primary beam
        (16.0, 4.0),  # as much of it as four pixels a beam allow
        (5.0, 1.6915),  # the fringe of the longest baseline decides
        (math.nan, 1.6915),
    ],
)
def test_a_pixel_is_as_coarse_as_it_takes_to_see_the_primary_beam_and_no_coarser(beam, cell):
    asked = {"uv_max_m": 2602.0, "freq_hz": 1.405e9, "imsize": 1024, "field_of_view_arcsec": 6696.0}
    assert choose_cell_arcsec(**asked, beam_minor_arcsec=beam) == pytest.approx(cell, abs=2e-4)


def test_the_longest_baseline_stays_on_the_grid_however_small_the_image():
    asked = {"uv_max_m": 2602.0, "freq_hz": 1.405e9, "imsize": 128, "field_of_view_arcsec": 6696.0}
    assert choose_cell_arcsec(**asked, beam_minor_arcsec=90.0) == pytest.approx(4 * 1.6915, abs=1e-3)


def test_w_planes_grow_with_the_field_and_are_never_few():
    asked = {"uv_max_m": 2602.0, "freq_hz": 1.405e9}
    assert w_planes(**asked, field_of_view_rad=0.004) == 16
    # 2602 m are 12194 wavelengths; the corner of 4 degrees is 0.0494 rad away: 14.85 turns
    assert w_planes(**asked, field_of_view_rad=math.radians(4.0)) == 30


@pytest.mark.parametrize(("major", "minor", "pa"), [(6.0, 4.0, 30.0), (9.0, 3.0, -70.0), (30.0, 25.0, 0.0)])
def test_the_restoring_beam_is_that_of_the_main_lobe_whatever_the_sidelobes(gaussian, major, minor, pa):
    psf = gaussian(201, 100, 100, major, minor, pa)
    psf += 0.3 * (gaussian(201, 100, 30, 40.0, 10.0, 90.0) + gaussian(201, 100, 170, 40.0, 10.0, 90.0))
    found = fit_beam(psf, cutoff=0.35)
    assert (found.major_px, found.minor_px, found.pa_deg) == pytest.approx((major, minor, pa), rel=0.01, abs=0.5)


@pytest.mark.parametrize("psf", [np.zeros((9, 9)), np.ones((9, 9))])
def test_a_dirty_beam_without_a_main_lobe_is_refused(psf):
    with pytest.raises(InputError, match="no main lobe"):
        fit_beam(psf, cutoff=0.35)
