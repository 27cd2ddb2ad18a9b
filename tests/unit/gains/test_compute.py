"""Ranking, prediction and judgement, on numbers worked out by hand or published."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.gains import Acceptance, CalSolutions, ModelSource, match_calibrators, table_stats
from nightbeam.gains.compute import (
    accept,
    averaging_interval_s,
    choose_refant,
    direction_cosines,
    divide_gains,
    field_sources,
    gain_cube,
    match_sources,
    model_ratio,
    pointing_track,
    predict_block,
    source_spectrum,
)
from nightbeam.sky import OVRO_DSA110, meridian_icrs, read_calibrators


@dataclass
class Listed:
    name: str
    ra_deg: float
    dec_deg: float
    flux_jy: float | None


def flat(theta):
    return np.ones_like(theta)


def falling(theta):
    return np.clip(1 - np.degrees(theta) / 2, 0, 1)


# --- calibrators ---------------------------------------------------------------------------------------------


def test_3c48_is_the_calibrator_of_its_field():
    matches = match_calibrators(read_calibrators(), ra_deg=24.4221, dec_deg=33.1598)
    assert matches[0].name == "0137+331"
    assert matches[0].flux_jy == 16.5
    assert matches[0].sep_deg < 1e-3
    assert matches[0].weighted_flux == pytest.approx(16.5, abs=0.01)
    assert set(matches[0].stored()) == {"name", "ra_deg", "dec_deg", "sep_deg", "weighted_flux"}


def test_a_calibrator_across_zero_hours_is_found():
    near = match_sources([Listed("a", 0.2, 33.0, 2.0)], ra_deg=359.8, dec_deg=33.0, beam=flat)
    # 0.4 deg of right ascension at Dec 33: 0.4 cos 33 = 0.33547
    assert near[0].sep_deg == pytest.approx(0.33547, abs=1e-4)


def test_near_the_pole_the_angle_counts_and_not_the_right_ascension():
    assert match_sources([Listed("a", 180.0, 89.8, 1.0)], ra_deg=0.0, dec_deg=89.8, beam=flat)[0].sep_deg < 0.401


def test_flux_times_beam_decides_then_the_separation():
    listed = [
        Listed("faint, near", 10.1, 0.0, 1.0),
        Listed("bright, far", 10.9, 0.0, 3.0),
        Listed("same, nearer", 10.2, 0.0, 2.0),
        Listed("same, farther", 9.7, 0.0, 2.0 * 0.9 / 0.85),
        Listed("unknown flux", 10.0, 0.0, None),
        Listed("outside", 11.2, 0.0, 90.0),
    ]
    found = match_sources(listed, ra_deg=10.0, dec_deg=0.0, beam=falling, topn=4)
    assert [m.name for m in found] == ["same, nearer", "same, farther", "bright, far", "faint, near"]
    assert found[2].weighted_flux == pytest.approx(3.0 * 0.55)
    assert len(match_sources(listed, ra_deg=10.0, dec_deg=0.0, beam=falling, topn=2)) == 2


def test_a_calibrator_must_hold_its_share_of_the_field():
    listed = [Listed("a", 10.0, 0.0, 1.0), Listed("other", 12.0, 0.0, 9.0)]
    found = match_sources(listed, ra_deg=10.0, dec_deg=0.0, beam=flat)
    assert found[0].field_fraction == pytest.approx(0.1)
    assert match_sources(listed, ra_deg=10.0, dec_deg=0.0, beam=flat, min_field_fraction=0.15) == []
    assert match_sources(listed, ra_deg=10.0, dec_deg=0.0, beam=flat, min_weighted_jy=2.0) == []


def test_the_model_holds_what_else_is_bright_in_the_beam():
    # 3C286 is 1331+305; 1326+319 (4.8 Jy, 1.74 deg away) is seen through 8 % of the beam: 2 % of 15 Jy.
    catalogue = read_calibrators()
    (calibrator,) = match_calibrators(catalogue, ra_deg=202.78, dec_deg=30.51, topn=1)
    (other,) = field_sources(catalogue, calibrator, ra_deg=202.78, dec_deg=30.51)
    assert (other.name, other.flux_jy) == ("1326+319", 4.8)
    assert field_sources(catalogue, calibrator, ra_deg=202.78, dec_deg=30.51, min_share=0.05) == []


def test_a_second_entry_of_the_calibrator_is_not_in_the_model_twice():
    listed = [Listed("a", 10.0, 0.0, 4.0), Listed("a again", 10.01, 0.0, 4.0), Listed("b", 10.5, 0.0, 0.1)]
    (calibrator,) = match_calibrators(listed, ra_deg=10.0, dec_deg=0.0, topn=1)
    assert [s.name for s in field_sources(listed, calibrator, ra_deg=10.0, dec_deg=0.0)] == ["b"]
    listed[2] = Listed("b", 10.5, 0.0, 0.04)  # 1 % of 4 Jy, but for the beam
    assert field_sources(listed, calibrator, ra_deg=10.0, dec_deg=0.0) == []


def test_the_meridian_of_date_names_the_same_field_as_its_icrs_direction():
    mjd, dec = 60951.5, np.radians(33.3)
    ra_deg, dec_deg = (float(x) for x in meridian_icrs(mjd + 2400000.5, dec, OVRO_DSA110))
    listed = [Listed("a", ra_deg + 0.5, dec_deg, 1.0)]
    by_time = match_calibrators(listed, mid_mjd=mjd, dec_apparent_rad=dec)
    assert by_time == match_calibrators(listed, ra_deg=ra_deg, dec_deg=dec_deg)
    # a quarter of a century of precession at this place: a tenth of a degree, and the catalogue is not shifted by it
    assert by_time[0].sep_deg == pytest.approx(0.5 * np.cos(np.radians(dec_deg)), abs=1e-4)


def test_a_field_named_twice_or_not_at_all_is_refused():
    with pytest.raises(UsageError):
        match_calibrators([])
    with pytest.raises(UsageError):
        match_calibrators([], ra_deg=1.0, dec_deg=2.0, dec_apparent_rad=0.1, mid_mjd=6e4)
    with pytest.raises(UsageError, match="needs a time"):
        match_calibrators([], dec_apparent_rad=0.1)
    with pytest.raises(UsageError, match="no beam model"):
        match_calibrators([Listed("a", 1.0, 2.0, 1.0)], ra_deg=1.0, dec_deg=2.0, beam_model="square")
    with pytest.raises(InputError, match="no direction"):
        match_sources([], ra_deg=1.0, dec_deg=95.0, beam=flat)


# --- the model -----------------------------------------------------------------------------------------------


@given(st.floats(0, 360), st.floats(-80, 80), st.floats(-1.5, 1.5), st.floats(-1.5, 1.5))
def test_direction_cosines_lie_on_the_sphere_and_grow_east_and_north(ra, dec, east, north):
    l_cos, m_cos, n_less = direction_cosines(ra + east, dec + north, ra, dec)
    assert l_cos**2 + m_cos**2 + (n_less + 1) ** 2 == pytest.approx(1.0, abs=1e-12)
    assert l_cos * east >= 0
    if abs(east) < 1e-3:
        assert m_cos * north >= -1e-12


def test_a_quarter_of_a_fringe_is_a_quarter_of_a_turn():
    # u of 1000 wavelengths and l of 1/4000: V = exp(2 pi i / 4) = i; towards negative l: -i
    freqs = np.array([299_792_458.0])
    for sign in (1.0, -1.0):
        v = predict_block(
            np.array([[1000.0, 0, 0]]), freqs, np.array([[sign / 4000, 0, 0]]), np.ones((1, 1, 1)), np.zeros(1, int)
        )
        assert v[0, 0] == pytest.approx(sign * 1j, abs=1e-5)


def test_channels_uneven_or_not_and_times_take_their_own_amplitude():
    rng = np.random.default_rng(0)
    uvw, lmn = rng.normal(size=(5, 3)) * 500, rng.normal(size=(2, 3)) * 1e-3
    amplitude, when = rng.random((2, 3, 4)), np.array([0, 2, 1, 1, 0])
    for freqs in (1.4e9 + np.arange(4) * 1e6, 1.4e9 + np.array([0, 1, 5, 6]) * 1e6):
        turns = np.einsum("rk,sk->rs", uvw, lmn)[:, :, None] * freqs / 299_792_458.0
        expected = np.einsum("srf,rsf->rf", amplitude[:, when], np.exp(2j * np.pi * turns))
        assert np.allclose(predict_block(uvw, freqs, lmn, amplitude, when), expected, atol=1e-5)


def test_a_spectrum_is_a_power_law_about_its_reference():
    source = ModelSource("s", 0.0, 0.0, 4.0, spectral_index=-0.5, reference_hz=1e9)
    assert source_spectrum(source, np.array([1e9, 4e9])) == pytest.approx([4.0, 2.0])


def test_a_drifting_beam_moves_a_degree_and_a_quarter_in_five_minutes():
    times = 60951.5 + np.array([0.0, 296.35272 / 86400.0])
    ra0, dec0 = (float(x) for x in meridian_icrs(times.mean() + 2400000.5, np.radians(54.57), OVRO_DSA110))
    ra, dec = pointing_track(times, (ra0, dec0), site=OVRO_DSA110)
    # 23 steps of 12.884901888 s at 15.041 arcsec/s
    east = ((ra[1] - ra[0] + 180) % 360 - 180) * np.cos(np.radians(dec0)) * 3600
    assert east == pytest.approx(296.35272 * 15.041 * np.cos(np.radians(54.57)), rel=2e-3)
    assert abs(dec[1] - dec[0]) < 0.01


# --- reference antennas --------------------------------------------------------------------------------------

NAMES = ["1", "2", "3", "4"]
XYZ = np.array([[0.0, 0, 0], [10, 0, 0], [12, 0, 0], [900, 0, 0]])


def test_the_first_preferred_antenna_with_data_is_taken():
    assert choose_refant(NAMES, XYZ, dict.fromkeys(NAMES, 3), ("4", "1")).name == "4"
    assert choose_refant(NAMES, XYZ, {"1": 3, "2": 3, "3": 3, "4": 0}, ("4", "1")).name == "1"
    assert choose_refant(NAMES, XYZ, {"1": 3, "2": 3, "3": 3, "4": 1}, ("9", "4", "3")).name == "3"


def test_without_a_preference_the_best_connected_of_the_core_is_taken():
    choice = choose_refant(NAMES, XYZ, dict.fromkeys(NAMES, 3))
    assert (choice.name, choice.index) in {("2", 1), ("3", 2)}
    assert choose_refant(NAMES, XYZ, {"1": 1, "2": 1, "3": 1, "4": 3}).name == "4"


def test_an_absent_reference_antenna_and_an_array_without_data_are_refused():
    with pytest.raises(MissingError, match="no antenna named 77"):
        choose_refant(NAMES, XYZ, dict.fromkeys(NAMES, 3), ("77",))
    with pytest.raises(InputError, match="no antenna has unflagged data"):
        choose_refant(NAMES, XYZ, {}, ("1",))


# --- judging solutions ---------------------------------------------------------------------------------------


def solutions(flags, *, antennas=None, snr=100.0, values=None):
    rows, chans, _ = flags.shape
    n = antennas or rows
    return CalSolutions(
        path=Path("x_bpcal"),
        kind_name="B Jones",
        antennas=tuple(str(i) for i in range(n)),
        antenna=np.arange(rows) % n,
        spw=np.arange(rows) // n,
        field_id=np.zeros(rows, int),
        refant=np.zeros(rows, int),
        time_mjd=np.full(rows, 60000.0),
        values=np.ones(flags.shape, complex) if values is None else values,
        flags=flags,
        snr=np.full(flags.shape, snr),
        freqs_hz=(np.arange(chans) * 1.0,) * max(1, rows // n),
    )


def test_the_accounting_of_a_real_bandpass_leaves_its_dead_receptors_out():
    # Published figures of 2026-01-25: 117 antennas x 16 windows, 48 channels, 2 polarizations; 49,752 flagged;
    # 63 receptors dead.
    flags = np.zeros((1872, 48, 2), bool)
    antenna = np.arange(1872) % 117
    dead = [(k // 2, k % 2) for k in range(63)]
    for ant, pol in dead:
        flags[antenna == ant, :, pol] = True
    live = np.argwhere(~flags)
    flags[tuple(live[:: len(live) // 1368][:1368].T)] = True
    stats = table_stats(solutions(flags, antennas=117), name="x_bpcal", kind="BP")
    assert (stats.solutions, stats.flagged) == (179_712, 49_752)
    assert 100 * stats.raw_flagged_fraction == pytest.approx(27.684, abs=5e-4)
    assert (stats.receptors, stats.dead_receptors) == (234, 63)
    assert (stats.working_solutions, stats.working_flagged) == (131_328, 1_368)
    assert 100 * stats.flagged_fraction == pytest.approx(1.0417, abs=5e-5)
    reasons, warnings = accept([stats], Acceptance())
    assert (reasons, warnings) == ([], [])


def stats(**change):
    base = table_stats(solutions(np.zeros((20, 4, 2), bool)), name="t", kind="GA")
    return replace(base, **change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"median_snr": 2.9}, "median SNR 2.9"),
        ({"median_snr": float("nan")}, "median SNR nan"),
        ({"median_snr": None}, "no SNR"),
        ({"flagged_fraction": 0.51}, "51.0% of working receptors"),
        ({"kind": "BP", "flagged_fraction": 0.21}, "21.0% of working receptors"),
        ({"antennas_with_solutions": 9}, "9 antennas have solutions, fewer than 10"),
        ({"unsolved_fraction": 0.6}, "60.0% of receptors with data have no solution"),
        ({"working_solutions": 0, "working_flagged": 0}, "every solution is flagged"),
    ],
)
def test_each_limit_rejects_with_its_figure(change, reason):
    reasons, _ = accept([stats(**change)], Acceptance())
    assert len(reasons) == 1
    assert reason in reasons[0]


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"median_snr": 9.9}, "median SNR 9.9"),
        ({"flagged_fraction": 0.21}, "21.0%"),
        ({"kind": "BP", "flagged_fraction": 0.031}, "3.1%"),
    ],
)
def test_each_softer_limit_only_warns(change, warning):
    reasons, warnings = accept([stats(**change)], Acceptance())
    assert reasons == []
    assert warning in warnings[0]


@pytest.mark.parametrize(
    ("ratio", "rejected", "warned"),
    [(1.0, 0, 0), (1.6, 0, 1), (0.6, 0, 1), (5.1, 1, 0), (0.19, 1, 0), (-1.0, 1, 0), (float("nan"), 1, 0)],
)
def test_the_calibrators_flux_must_come_out(ratio, rejected, warned):
    reasons, warnings = accept([stats()], Acceptance(), corrected_over_model=ratio)
    assert (len(reasons), len(warnings)) == (rejected, warned)


def test_no_table_and_no_fringe_are_reasons():
    assert accept([], Acceptance())[0] == ["no table was solved"]
    assert "no coherent fringe" in accept([stats()], Acceptance(), coherence=0.02)[0][0]


def test_a_receptor_that_has_data_and_no_solution_is_not_called_dead_and_forgotten():
    flags = np.zeros((20, 4, 2), bool)
    flags[:12] = True
    with_data = np.ones((20, 2), bool)
    found = table_stats(solutions(flags), name="t", kind="GA", receptors_with_data=with_data)
    assert found.flagged_fraction == 0.0
    assert found.unsolved_fraction == pytest.approx(0.6)
    with_data[:12] = False
    found = table_stats(solutions(flags), name="t", kind="GA", receptors_with_data=with_data)
    assert found.unsolved_fraction == 0.0


# --- dividing gains out --------------------------------------------------------------------------------------


def test_gains_divided_out_leave_the_model():
    rng = np.random.default_rng(2)
    gains = rng.normal(size=(4, 3, 2)) + 1j * rng.normal(size=(4, 3, 2))
    flags = np.zeros((4, 3, 2), bool)
    flags[3, 1, 0] = True
    cube, bad = gain_cube(solutions(flags, values=gains), 0, np.arange(3.0), 60000.0)
    i, j = np.array([0, 1, 2]), np.array([1, 2, 3])
    corrected, out = divide_gains(gains[i] * gains[j].conj() * 2.5, np.zeros((3, 3, 2), bool), i, j, cube, bad)
    assert np.allclose(corrected[~out], 2.5)
    assert np.argwhere(out).tolist() == [[2, 1, 0]]


def test_an_antenna_without_a_row_flags_its_data():
    found = replace(solutions(np.zeros((2, 1, 2), bool)), antennas=("a", "b", "c"))
    _, bad = gain_cube(found, 0, np.arange(4.0), 60000.0)
    assert bad[2].all()
    assert not bad[:2].any()


def test_the_nearest_time_is_used_and_a_delay_turns_the_phase_along_the_band():
    found = replace(
        solutions(np.zeros((2, 1, 2), bool), values=np.full((2, 1, 2), 1.0) * [[[10.0]], [[20.0]]]),
        antennas=("a",),
        antenna=np.zeros(2, int),
        spw=np.zeros(2, int),
        time_mjd=np.array([60000.0, 60001.0]),
        freqs_hz=(np.array([1.4e9]),),
    )
    cube, _ = gain_cube(found, 0, np.array([1.4e9, 1.4125e9]), 60000.9)
    # 20 ns over 12.5 MHz: a quarter of a turn
    assert cube[0, :, 0] == pytest.approx([1.0, 1j])


def test_the_ratio_is_the_flux_in_units_of_the_model_and_noise_has_no_coherence():
    rng = np.random.default_rng(4)
    model = rng.normal(size=20000) + 1j * rng.normal(size=20000)
    good = np.ones(20000, bool)
    assert model_ratio(2 * model, model, good) == pytest.approx((2.0, 1.0))
    noise = rng.normal(size=20000) + 1j * rng.normal(size=20000)
    assert model_ratio(noise, model, good)[1] < 0.03
    assert model_ratio(model, model, ~good) == (None, None)


@pytest.mark.parametrize(
    ("intervals", "seconds"),
    [(["60s", "inf", None], 60.0), (["2min", "30s"], 30.0), (["int", "60s"], None), (["inf"], None), (["45"], 45.0)],
)
def test_data_are_averaged_over_the_shortest_interval_that_is_solved_for(intervals, seconds):
    assert averaging_interval_s(intervals) == seconds


def test_what_is_no_interval_is_refused():
    with pytest.raises(UsageError, match="no solution interval"):
        averaging_interval_s(["soon"])
