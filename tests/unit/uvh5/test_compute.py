from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nightbeam.core.errors import InputError
from nightbeam.sky import separation
from nightbeam.uvh5 import check_subband
from nightbeam.uvh5.compute import (
    conjugate_rows,
    group_observation,
    phase_track,
    subband_edges,
    subband_of_frequency,
)


@pytest.fixture(scope="module")
def headers(group_files):
    return [check_subband(f) for f in group_files]


def with_one(headers, **changes):
    changed = [h for h in headers if h.subband != 7]
    odd = next(h for h in headers if h.subband == 7)
    return [*changed, dataclasses.replace(odd, **changes)]


def test_subbands_come_in_ascending_frequency_whatever_the_order(headers):
    rng = np.random.default_rng(0)
    shuffled = [headers[k] for k in rng.permutation(len(headers))]
    observation = group_observation(shuffled)
    assert observation.subbands == tuple(range(15, -1, -1))
    assert np.all(np.diff([h.freqs_hz.mean() for h in observation.headers]) > 0)


def test_missing_subbands_are_listed(headers):
    observation = group_observation([h for h in headers if h.subband not in (3, 11)])
    assert observation.missing == (3, 11)
    assert len(observation.headers) == 14


def test_edges_of_the_band_are_those_of_the_instrument():
    # shared/spec: 1311.265 to 1498.765 MHz
    assert subband_edges(0)[1] == pytest.approx(1498.765e6, abs=1e3)
    assert subband_edges(15)[0] == pytest.approx(1311.265e6, abs=1e3)
    assert subband_of_frequency(1405e6) == 8
    assert subband_of_frequency(1500e6) is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"start_jd": 2460951.9959}, "no part of the group: it starts"),
        ({"integration_s": 10.0}, "integrations last 10.000000 s, but 12.88"),
        ({"dec_rad": 0.9}, "it points to Dec 51.5662 deg, but 54.57"),
        ({"times_jd": (1.0,) * 23}, "integrations 23, but 24"),
        ({"ant_numbers": (1, 2)}, "antennas 2, but 8"),
        ({"subband": 6}, "subband 06 is"),
        ({"polarizations": (-5,)}, "polarizations"),
        ({"antenna_positions_m": np.ones((117, 3))}, "antenna positions up to"),
        ({"longitude_deg": -118.2817}, "site"),
        ({"channel_width_hz": 1.0}, "channels 8 x 1.000 Hz"),
        ({"freqs_hz": np.array([1.7e9, 1.8e9]), "subband": None}, "outside the band"),
    ],
)
def test_one_file_that_does_not_belong_is_named(headers, changes, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        group_observation(with_one(headers, **changes))
    assert "sb07" in str(caught.value)


def test_a_subband_given_twice_is_refused(headers):
    with pytest.raises(InputError, match="subband 00 is there twice"):
        group_observation([*headers, next(h for h in headers if h.subband == 0)])


def test_nothing_is_no_group():
    with pytest.raises(InputError, match="no files"):
        group_observation([])


def test_the_meridian_drifts_as_far_as_was_measured_at_the_telescope(headers):
    # Dec 54.57 deg, 24 integrations: 2583.71 arcsec measured upstream, 193.8 arcsec * cos(Dec) each.
    header = dataclasses.replace(headers[0], dec_rad=0.9524855391037991)
    ra, dec = phase_track(header).pointing_deg.T
    steps = 3600 * separation(ra[:-1], dec[:-1], ra[1:], dec[1:])
    assert steps == pytest.approx(193.8 * np.cos(header.dec_rad), rel=2e-3)
    assert 3600 * separation(ra[0], dec[0], ra[-1], dec[-1]) == pytest.approx(2583.7, abs=2.0)


@pytest.mark.slow
def test_uvw_are_those_of_pyuvdata(headers):
    from pyuvdata import utils
    from pyuvdata.utils import phasing

    header = headers[0]
    track = phase_track(header)
    from astropy.coordinates import EarthLocation

    where = EarthLocation.from_geodetic(header.longitude_deg, header.latitude_deg, header.altitude_m)
    times = np.array(header.times_jd)
    ra, dec = np.radians([track.ra_deg, track.dec_deg])
    app_ra, app_dec = phasing.calc_app_coords(
        lon_coord=ra, lat_coord=dec, coord_frame="icrs", coord_type="sidereal", time_array=times,
        telescope_loc=where,
    )  # fmt: skip
    lst = utils.get_lst_for_time(times, telescope_loc=where, astrometry_library="erfa")
    pa = phasing.calc_frame_pos_angle(
        time_array=times, app_ra=app_ra, app_dec=app_dec, telescope_loc=where, ref_frame="icrs",
        offset_pos=1e-6,  # by default half a degree, across which meridians converge by 5e-5 rad
    )  # fmt: skip
    wanted = np.array(
        [
            phasing.calc_uvw(
                app_ra=np.full(header.n_bls, app_ra[k]), app_dec=np.full(header.n_bls, app_dec[k]),
                frame_pa=np.full(header.n_bls, pa[k]), lst_array=np.full(header.n_bls, lst[k]),
                use_ant_pos=True, antenna_positions=header.antenna_positions_m,
                antenna_numbers=np.arange(117), ant_1_array=header.ant_1, ant_2_array=header.ant_2,
                telescope_lat=np.radians(header.latitude_deg), telescope_lon=np.radians(header.longitude_deg),
            )
            for k in range(len(times))
        ]
    )  # fmt: skip
    longest = np.linalg.norm(wanted, axis=-1).max()
    assert np.abs(track.uvw_m - wanted).max() < 1e-7 * longest


def test_uvw_are_those_of_vector_algebra_without_angles_of_north(headers):
    # Independent of hour angles and of finite differences: the ICRS axes at the centre go along with the
    # aberration (which is conformal and moves along great circles, so its turn is the shortest), and the
    # IAU matrix of the date takes them to the Earth-fixed frame.
    import erfa

    from nightbeam.sky import earth_orientation

    header = headers[0]
    track = phase_track(header)
    ra, dec = np.radians([track.ra_deg, track.dec_deg])
    source, east = erfa.s2c(ra, dec), np.array([-np.sin(ra), np.cos(ra), 0.0])
    axes = np.array([east, np.cross(source, east), source])
    place = erfa.gd2gc(1, np.radians(header.longitude_deg), np.radians(header.latitude_deg), header.altitude_m)
    apart = header.antenna_positions_m[header.ant_2] - header.antenna_positions_m[header.ant_1]
    longest = np.linalg.norm(apart, axis=1).max()
    for k, jd in enumerate(header.times_jd):
        day, part, earth = np.floor(jd), jd % 1.0, earth_orientation(jd)
        tt = erfa.taitt(*erfa.utctai(day, part))
        to_earth = erfa.c2t06a(
            *tt, *erfa.utcut1(day, part, earth.dut1_s), float(earth.pole_x_rad), float(earth.pole_y_rad)
        )
        heliocentric, barycentric = erfa.epv00(*tt)
        spin = to_earth.T @ np.cross([0.0, 0.0, 7.292115e-5], place) / 299792458.0
        velocity = barycentric["v"] * (149597870.7 / 299792.458 / 86400.0) + spin
        seen = erfa.ab(source, velocity, np.linalg.norm(heliocentric["p"]), np.sqrt(1.0 - velocity @ velocity))
        axis = np.cross(source, seen)
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        turn = np.eye(3) + cross + cross @ cross / (1.0 + source @ seen)
        wanted = apart @ (to_earth @ turn @ axes.T)
        assert np.abs(track.uvw_m[k] - wanted).max() < 2e-8 * longest


def test_lengths_of_baselines_do_not_change_with_the_centre(headers):
    header = headers[0]
    track = phase_track(header)
    apart = header.antenna_positions_m[header.ant_2] - header.antenna_positions_m[header.ant_1]
    lengths = np.linalg.norm(apart, axis=1)
    assert np.linalg.norm(track.uvw_m, axis=2) == pytest.approx(np.tile(lengths, (24, 1)), abs=1e-6)


def test_no_path_is_taken_out_twice(headers):
    # At the meridian itself, in the middle, the new centre is the old one.
    header = headers[0]
    odd = dataclasses.replace(header, times_jd=header.times_jd[:1], mid_jd=header.start_jd)
    assert np.abs(phase_track(odd).path_m).max() < 1e-6


def test_rows_are_conjugated_or_exchanged_never_both():
    one, two = np.array([3, 5, 4]), np.array([5, 3, 4])
    assert conjugate_rows(one, two).tolist() == [True, False, True]


def test_header_paths_are_kept(headers, group_files):
    assert {Path(h.path) for h in headers} == set(group_files)


def test_all_files_of_an_observation_have_one_layout_which_names_its_stations(headers):
    assert len({h.layout for h in headers}) == 1
    odd = dataclasses.replace(headers[0], ant_numbers=(11, 0, 2, 1))
    assert "4 antennas (1-3 12)," in odd.layout
    shorter = dataclasses.replace(headers[0], times_jd=headers[0].times_jd[:-1])
    assert shorter.layout != headers[0].layout
