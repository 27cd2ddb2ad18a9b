"""Times, apparent places, angles and beams against published numbers and astropy."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest

from nightbeam.core.errors import UsageError
from nightbeam.sky import (
    DISH_DIAMETER_M,
    OVRO_DSA110,
    SPEED_OF_LIGHT_M_S,
    BeamModel,
    apparent_hadec,
    beam_attenuation,
    beam_first_null_rad,
    beam_fwhm_rad,
    earth_orientation,
    is_alone,
    itrf_from_site,
    lst_rad,
    meridian_icrs,
    offset_position,
    separation,
    uvw_basis,
)

REAL_START_JD = 2460951.992331498
REAL_DEC_RAD = 0.9524855391037991
STEP_DAYS = 12.884901888 / 86400


def test_sidereal_time_is_that_of_the_real_observation():
    assert lst_rad(REAL_START_JD, -118.283) * 12 / np.pi == pytest.approx(4.759695, abs=5e-7)
    assert np.degrees(lst_rad(REAL_START_JD, -118.283)) == pytest.approx(71.39542, abs=1e-5)


def test_the_sidereal_times_of_a_real_header_are_met_within_a_fiftieth_of_an_arcsecond(shared_data: Path):
    layout = json.loads((shared_data / "dsa110" / "real_observation_layout.json").read_text())
    ours = lst_rad(np.array(layout["time_jd"]), OVRO_DSA110.longitude_deg)
    assert np.abs(np.degrees(ours - np.array(layout["lst_rad"]))).max() * 3600 < 0.02


def test_the_site_lies_at_the_array_centre_of_the_survey():
    assert itrf_from_site(OVRO_DSA110) == pytest.approx([-2409555.933, -4478213.615, 3838767.460], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("jd", [REAL_START_JD, 2458849.5, 2461000.25])
@pytest.mark.parametrize("dec_deg", [-20.0, 16.1, 54.57, 88.0])
def test_the_meridian_in_icrs_is_that_of_astropy(jd: float, dec_deg: float):
    import astropy.units as u
    from astropy.coordinates import EarthLocation, HADec, SkyCoord
    from astropy.time import Time
    from astropy.utils import iers

    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("auto_max_age", None):
        place = EarthLocation.from_geodetic(
            OVRO_DSA110.longitude_deg * u.deg, OVRO_DSA110.latitude_deg * u.deg, OVRO_DSA110.height_m * u.m
        )
        frame = HADec(obstime=Time(jd, format="jd", scale="utc"), location=place)
        theirs = SkyCoord(ha=0 * u.deg, dec=dec_deg * u.deg, frame=frame).icrs
        there = (theirs.ra.deg, theirs.dec.deg)
    ours = meridian_icrs(jd, np.radians(dec_deg), OVRO_DSA110)
    assert separation(*ours, *there) * 3600 < 0.05


def test_the_meridian_comes_back_as_hour_angle_zero_for_many_times_at_once():
    jd = REAL_START_JD + np.arange(24) * STEP_DAYS
    ra, dec = meridian_icrs(jd, REAL_DEC_RAD, OVRO_DSA110)
    ha, app = apparent_hadec(jd, ra, dec, OVRO_DSA110)
    assert ra.shape == (24,)
    assert np.abs(ha).max() < 1e-11
    assert app == pytest.approx(REAL_DEC_RAD, abs=1e-11)


def test_the_phase_centre_drifts_as_measured_at_the_telescope():
    jd = REAL_START_JD + np.array([0, 1, 23]) * STEP_DAYS
    ra, dec = meridian_icrs(jd, np.radians(54.57), OVRO_DSA110)
    drift = separation(ra[0], dec[0], ra[1:], dec[1:]) * 3600
    assert drift[0] == pytest.approx(193.8 * np.cos(np.radians(54.57)), abs=0.1)
    assert drift[1] == pytest.approx(2583.7, abs=0.5)


def test_a_source_east_of_the_meridian_has_a_negative_hour_angle():
    ra, dec = meridian_icrs(REAL_START_JD, REAL_DEC_RAD, OVRO_DSA110)
    ha, _ = apparent_hadec(REAL_START_JD, ra + 1.0, dec, OVRO_DSA110)
    assert ha == pytest.approx(-np.radians(1.0), rel=0.01)


def test_beyond_the_table_the_last_orientation_is_used_and_a_warning_logged(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        far = earth_orientation(2480000.0)
        assert np.isfinite(lst_rad(2480000.0, 0.0))
    assert abs(far.dut1_s) < 0.9
    assert "Earth orientation table ends" in caplog.text


def test_sources_with_a_neighbour_that_would_change_their_peak_are_told_from_those_that_are_alone():
    ra, dec, flux = [0.0, 359.999, 5.0, 5.0, 9.0, 9.0], [0.0, 0.0, 60.0, 60.001, 0.0, 0.0009], [1, 0.1, 1, 0.01, 1, 1]
    # 3.6 arcsec from a tenth of it; 3.6 arcsec from a hundredth of it, and that from it; and two that are equal
    assert is_alone(ra, dec, flux, within_arcsec=4.0).tolist() == [False, False, True, False, False, False]
    assert is_alone(ra, dec, flux, within_arcsec=3.5).tolist() == [True, True, True, True, False, False]
    some = is_alone(ra, dec, flux, within_arcsec=4.0, among=np.array([2, 0]))
    assert some.tolist() == [True, False]
    assert is_alone([], [], [], within_arcsec=1.0).tolist() == []


def test_separation_crosses_zero_hours_and_is_exact_for_small_and_opposite_directions():
    assert separation(359.5, 0.0, 0.5, 0.0) == pytest.approx(1.0, abs=1e-12)
    assert separation(10.0, 89.0, 190.0, 89.0) == pytest.approx(2.0, abs=1e-12)
    assert separation(0.0, 0.0, 180.0, 0.0) == pytest.approx(180.0)
    assert separation(100.0, 60.0, 100.0 + 2e-9, 60.0) == pytest.approx(1e-9, rel=1e-4)


def test_an_offset_to_the_east_raises_right_ascension():
    ra, dec = offset_position(359.9, 0.0, 0.5, 90.0)
    assert (ra, dec) == (pytest.approx(0.4), pytest.approx(0.0, abs=1e-12))
    ra, dec = offset_position(10.0, 50.0, 0.5, 0.0)
    assert (ra, dec) == (pytest.approx(10.0), pytest.approx(50.5))


def test_u_points_east_v_north_and_w_to_the_source():
    # At longitude 0 the meridian is the x-z plane of the Earth-fixed frame and east is y.
    basis = uvw_basis(0.0, np.radians(90.0), 0.0)
    assert basis == pytest.approx(np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]), abs=1e-15)
    assert uvw_basis(0.0, 0.0, 0.0)[2] == pytest.approx([1, 0, 0])
    # Six hours west of the meridian of Greenwich, on the equator, is the direction -y.
    assert uvw_basis(np.radians(90.0), 0.0, 0.0)[2] == pytest.approx([0, -1, 0], abs=1e-15)


@pytest.mark.parametrize(("model", "fwhm_deg"), [("dsacalib", 1.86), ("gaussian", 3.2), ("airy", 2.7)])
def test_a_beam_is_as_wide_as_its_source_says(model: BeamModel, fwhm_deg: float):
    width = np.degrees(beam_fwhm_rad(1.405e9, model=model, diameter_m=DISH_DIAMETER_M))
    assert width == pytest.approx(fwhm_deg, abs=0.01)


def test_the_cosine_beam_has_its_limit_where_numerator_and_denominator_vanish():
    theta = 0.5 * SPEED_OF_LIGHT_M_S / (1.2 * 4.65 * 1.4e9)
    value = beam_attenuation(theta, 1.4e9, model="dsacalib", diameter_m=4.65)
    assert value == pytest.approx((np.pi / 4) ** 4, rel=1e-6)


@pytest.mark.parametrize("model", ["dsacalib", "airy"])
def test_a_beam_vanishes_at_its_first_null(model: BeamModel):
    null = beam_first_null_rad(1.4e9, model=model, diameter_m=4.65)
    assert beam_attenuation(null, 1.4e9, model=model, diameter_m=4.65) == pytest.approx(0.0, abs=1e-12)


def test_a_gaussian_beam_has_no_null():
    assert beam_first_null_rad(1.4e9, model="gaussian", diameter_m=4.65) == np.inf


def test_a_beam_nobody_knows_is_refused():
    with pytest.raises(UsageError, match="no beam model 'sinc'") as caught:
        beam_attenuation(0.0, 1.4e9, model="sinc", diameter_m=4.65)  # type: ignore[arg-type]
    assert "dsacalib" in caught.value.fix
