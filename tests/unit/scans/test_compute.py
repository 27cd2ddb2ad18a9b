"""Loads, sky, water, references, temperatures: worked examples, and laws that hold for every receiver."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.atmosphere import BACKGROUND_K, ClosedFormAtmosphere, airmass_of, planck_j, transmission
from nightbeam.core.errors import ConfigError, UsageError
from nightbeam.scans.compute import (
    SkyTable,
    bin_mean,
    bin_sky,
    both_sidebands,
    fit_pwv,
    flag_spikes,
    load_gain,
    main_beam_temperature,
    match_references,
    radiometer_noise,
    sky_brightness,
    sky_input,
    sky_noise,
    source_divisor,
    system_temperature,
    ta_star_load_scale,
    ta_star_off_scale,
    visits,
    zero_point,
)
from nightbeam.scans.model import (
    AtmosphereFitError,
    Flag,
    GainError,
    LoadTemperatureError,
    MissingOffError,
    ReceiverTemperatureError,
    SaturationError,
    ScanLimits,
)

FREQ = 807.3 + 0.01 * np.arange(400)
IMAGE = 2 * 803.3 - FREQ
LOADS = {"t_hot_k": 293.0, "t_cold_k": 78.0}
AXES = {"freq_ghz": FREQ, "image_ghz": IMAGE}


# -- the worked example of the specification: one channel at 809.3 GHz ---------------------------------------------

ONE = {"freq_ghz": np.array([809.3]), "image_ghz": np.array([797.3])}
TAU_S, TAU_I = 0.08858716 + 0.86904929, 0.08766234 + 1.11381801
HOT, COLD, SKY, ON = (np.array([[counts]]) for counts in (9082929.2239, 4806108.1239, 7311807.6066, 7324846.2891))


def test_the_worked_example_from_counts_to_temperatures():
    gain = load_gain(HOT, COLD, **LOADS, **ONE)
    assert gain.j_hot[0, 0] == pytest.approx(274.14646120, rel=1e-9)
    assert gain.j_cold[0, 0] == pytest.approx(60.30540619, rel=1e-9)
    assert gain.gamma[0, 0] == pytest.approx(2e4, rel=1e-6)
    assert gain.t_rec[0, 0] == pytest.approx(180.0, rel=1e-6)
    tr_s, tr_i = transmission(TAU_S, 1.35), transmission(TAU_I, 1.35)
    assert (tr_s, tr_i) == (pytest.approx(0.27449858, rel=1e-6), pytest.approx(0.19750360, rel=1e-6))
    spill = planck_j([809.3, 797.3], 265.0)
    assert both_sidebands(0.5, *spill) == pytest.approx(246.19108550, rel=1e-9)
    model = sky_input(
        172.74858857, 192.05315050, gain_signal=0.5, forward_eff=0.95, spill_signal=spill[0], spill_image=spill[1]
    )
    assert model == pytest.approx(185.59038033, rel=1e-6)
    assert sky_brightness(SKY, HOT, gain)[0, 0] == pytest.approx(185.59038033, rel=1e-6)
    divisor = source_divisor(tr_s, tr_i, gain_signal=0.5, forward_eff=0.95)
    t_sys = system_temperature(gain.t_rec, model, divisor)
    assert t_sys[0, 0] == pytest.approx(2803.89051, rel=1e-6)
    assert ta_star_off_scale(ON, SKY, t_sys)[0, 0] == pytest.approx(5.0, rel=1e-6)
    assert ta_star_load_scale(ON, SKY, gain.gamma, divisor)[0, 0] == pytest.approx(5.0, rel=1e-6)
    assert main_beam_temperature(5.0, forward_eff=0.95, main_beam_eff=0.8) == 5.9375
    assert (gain.j_hot[0, 0] - model) / divisor == pytest.approx(679.17967, rel=1e-6)
    noise = radiometer_noise(t_sys, bandwidth_hz=1e6, on_s=1.0, off_s=1.0)
    assert noise[0, 0] == pytest.approx(3.96530, rel=1e-5)


@given(st.floats(0.01, 0.5), st.floats(200.0, 290.0), st.floats(20.0, 500.0), st.floats(10.0, 90.0))
def test_with_one_load_and_one_layer_it_is_the_chopper_wheel_formula(tau, t_atm, t_rec, elevation):
    # GBT memo 302: T_cal = (T_atm - T_bg) + (T_vane - T_atm) exp(tau A), with T for J, F = 1 and one sideband. There
    # the sky serves as the second load.
    path, t_vane, nothing = airmass_of(elevation), 293.0, {"freq_ghz": np.array([1e-7]), "image_ghz": np.array([1e-7])}
    through = transmission(tau, path)
    t_sky = float(t_atm * (1 - through) + BACKGROUND_K * through)
    vane, off, on = (np.array([[counts]]) for counts in (t_rec + t_vane, t_rec + t_sky, t_rec + t_sky + 5.0 * through))
    limits = ScanLimits(t_cold_k=(2.0, 292.0), least_load_k=1e-3)
    gain = load_gain(vane, off, t_hot_k=t_vane, t_cold_k=t_sky, gain_signal=1.0, limits=limits, **nothing)
    t_sys = system_temperature(gain.t_rec, t_sky, source_divisor(through, 0.0, gain_signal=1.0, forward_eff=1.0))
    t_cal = (t_atm - BACKGROUND_K) + (t_vane - t_atm) * np.exp(tau * path)
    assert t_sys == pytest.approx(t_cal * off / (vane - off), rel=1e-5)
    assert ta_star_off_scale(on, off, t_sys) == pytest.approx(5.0, rel=1e-5)


# -- loads ----------------------------------------------------------------------------------------------------------


def counts_of(gamma, t_rec, signal, image, gain_signal):
    return gamma * (t_rec + both_sidebands(gain_signal, signal, image))


def loads_of(gamma, t_rec, gain_signal):
    return [
        counts_of(gamma, t_rec, planck_j(FREQ, kelvin), planck_j(IMAGE, kelvin), gain_signal)
        for kelvin in (LOADS["t_hot_k"], LOADS["t_cold_k"])
    ]


@pytest.mark.slow
@given(
    st.floats(1e-3, 1e9), st.lists(st.floats(1.0, 5000.0), min_size=1, max_size=3), st.floats(0.05, 1.0), st.booleans()
)
def test_every_receiver_is_found_from_its_loads(scale, t_rec, gain_signal, each):
    receivers = np.array(t_rec)[:, None] * (1 + 0.2 * np.sin(FREQ))
    gamma = scale * (1 + 0.3 * np.cos(3 * FREQ)) * np.ones_like(receivers)
    g_s = np.full((len(t_rec), 1), gain_signal) if each else gain_signal
    hot, cold = loads_of(gamma, receivers, g_s)
    found = load_gain(hot, cold, gain_signal=g_s, **LOADS, **AXES)
    assert not found.flag.any()
    assert found.gamma == pytest.approx(gamma, rel=1e-9)
    assert found.t_rec == pytest.approx(receivers, rel=1e-6)


@pytest.fixture
def pair():
    return loads_of(np.full((3, 400), 2e4), np.full((3, 400), 180.0), 0.5)


def test_what_is_wrong_with_a_channel_is_its_flag_and_the_others_are_as_they_were(pair):
    hot, cold = (one.copy() for one in pair)
    hot[0, 10], cold[0, 20] = np.nan, np.inf
    hot[0, 30] = cold[0, 31] = 0.0
    hot[1, 40] = cold[1, 40]
    hot[1, 50] = 2e7
    hot[2, 60], cold[2, 60] = cold[2, 60], hot[2, 60]
    hot[2, 70] = cold[2, 70] + 100.0  # a gain of half a count
    cold[2, 80] = hot[2, 80] - 2.2e4 * 214.0
    known = np.zeros(hot.shape, np.uint8)
    known[1, 50] = Flag.SATURATED
    found = load_gain(hot, cold, flag=known, **LOADS, **AXES)
    told = {
        (0, 10): Flag.NOT_FINITE, (0, 20): Flag.NOT_FINITE, (0, 30): Flag.DEAD, (0, 31): Flag.DEAD, (1, 40): Flag.DEAD,
        (1, 50): Flag.SATURATED, (2, 60): Flag.GAIN, (2, 70): Flag.GAIN,
    }  # fmt: skip
    assert {where: found.flag[where] for where in zip(*np.nonzero(found.flag), strict=True)} == told
    assert np.isnan(found.gamma[found.flag != 0]).all()
    clean = load_gain(*pair, **LOADS, **AXES)
    assert np.array_equal(found.gamma[found.flag == 0][:300], clean.gamma[found.flag == 0][:300])


def test_a_channel_whose_receiver_temperature_cannot_be_is_flagged(pair):
    hot, cold = (one.copy() for one in pair)
    hot[1, 5], cold[1, 5] = 4.4e6, 1e5  # as much gain as the others, and nothing of its own
    found = load_gain(hot, cold, **LOADS, **AXES)
    assert found.flag[1, 5] == Flag.RECEIVER
    assert np.count_nonzero(found.flag) == 1


def test_loads_that_were_swapped_are_said(pair):
    with pytest.raises(GainError, match="have the two loads been swapped"):
        load_gain(pair[1], pair[0], **LOADS, **AXES)


def test_a_receiver_that_cannot_be_is_said(pair):
    hot, cold = pair
    with pytest.raises(ReceiverTemperatureError, match=r"-60\.\d K"):
        load_gain(hot - 2e4 * 240, cold - 2e4 * 240, **LOADS, **AXES)
    with pytest.raises(ReceiverTemperatureError, match="between 0 and 100"):
        load_gain(hot, cold, limits=ScanLimits(t_rec_k=100.0), **LOADS, **AXES)


def test_most_channels_at_the_ceiling_or_without_a_gain_are_said(pair):
    hot, cold = pair
    with pytest.raises(SaturationError, match="100%"):
        load_gain(hot, cold, flag=np.full(hot.shape, np.uint8(Flag.SATURATED)), **LOADS, **AXES)
    broken = hot.copy()
    broken[:, :250] = np.nan
    with pytest.raises(GainError, match="62%"):
        load_gain(broken, cold, **LOADS, **AXES)
    with pytest.raises(GainError, match="no channel has counts on both loads"):
        load_gain(np.zeros_like(hot), cold, **LOADS, **AXES)


def test_a_pixel_that_has_died_is_flagged_and_its_neighbours_go_on(pair):
    hot, cold = (one.copy() for one in pair)
    hot[1:], cold[1:] = 0.0, 0.0
    found = load_gain(hot, cold, **LOADS, **AXES)
    assert (found.flag[1:] == Flag.DEAD).all()
    assert np.array_equal(found.gamma[0], load_gain(*pair, **LOADS, **AXES).gamma[0])


def test_what_a_load_does_not_fill_has_the_temperature_of_the_air(pair):
    seen = load_gain(*pair, couplings=(0.9, 0.8), ambient_k=265.0, **LOADS, **AXES)
    full = load_gain(*pair, **LOADS, **AXES)
    beside = both_sidebands(0.5, planck_j(AXES["freq_ghz"], 265.0), planck_j(AXES["image_ghz"], 265.0))
    assert seen.j_hot == pytest.approx(0.9 * full.j_hot + 0.1 * beside)
    assert seen.j_cold == pytest.approx(0.8 * full.j_cold + 0.2 * beside)
    with pytest.raises(UsageError, match="needs the temperature"):
        load_gain(*pair, couplings=(0.9, 1.0), **LOADS, **AXES)


def test_half_a_photon_added_to_every_brightness_goes_out_of_the_receiver_and_nowhere_else(pair):
    plain = load_gain(*pair, **LOADS, **AXES)
    photon = zero_point(AXES["freq_ghz"], AXES["image_ghz"], 0.5)
    j_hot, j_cold = plain.j_hot + photon, plain.j_cold + photon
    gamma = (pair[0] - pair[1]) / (j_hot - j_cold)
    assert gamma == pytest.approx(plain.gamma)
    assert pair[1] / gamma - j_cold == pytest.approx(plain.t_rec - photon)
    assert photon == pytest.approx(19.4, abs=0.3)


@pytest.mark.parametrize(
    ("t_hot_k", "t_cold_k", "said"),
    [
        (20.0, 78.0, "hot load has 20.0 K"),
        (293.0, 0.0, "cold load has 0.0 K"),
        (float("nan"), 78.0, "hot load has nan K"),
        (293.0, float("inf"), "cold load has inf K"),
        (215.0, 200.0, r"differ by 1\d\.\d K"),
    ],
)
def test_temperatures_that_no_load_has_are_said(pair, t_hot_k, t_cold_k, said):
    with pytest.raises(LoadTemperatureError, match=said):
        load_gain(*pair, t_hot_k=t_hot_k, t_cold_k=t_cold_k, **AXES)


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="turn down everything"):
        ScanLimits(tr_min=0.0)


# -- sky and water --------------------------------------------------------------------------------------------------

AIR = ClosedFormAtmosphere()
SPILL = {"spill_signal": planck_j(FREQ, 265.0), "spill_image": planck_j(IMAGE, 265.0)}


def sky_of(pwv_mm, *, gain_signal=0.5, forward_eff=0.95, airmass=1.35):
    air = [AIR.sky(axis, pwv_mm, airmass) for axis in (FREQ, IMAGE)]
    return sky_input(*air, gain_signal=gain_signal, forward_eff=forward_eff, **SPILL)


@pytest.fixture(scope="module")
def table():
    return SkyTable(AIR, FREQ, IMAGE, airmass=1.35)


def fit(seen, table, sigma=0.1, *, gain_signal=0.5, forward_eff=0.95, **more):
    return fit_pwv(
        seen, np.full(np.shape(seen), sigma), table, gain_signal=gain_signal, forward_eff=forward_eff, **SPILL, **more
    )


@pytest.mark.parametrize("pwv_mm", [0.03, 0.1, 0.3, 0.62, 1.2, 2.5])
def test_without_noise_the_water_is_found(table, pwv_mm):
    found = fit(np.tile(sky_of(pwv_mm), (4, 1)), table)
    assert found.pwv_mm == pytest.approx(pwv_mm, rel=5e-4)
    assert found.rms_k == pytest.approx(0.0, abs=5e-3)
    assert not found.at_bound.any()
    assert found.iterations <= 12


def test_a_table_of_33_amounts_is_right_to_a_thousandth_of_a_kelvin(table):
    fine = SkyTable(AIR, FREQ, IMAGE, airmass=1.35, amounts=2049)
    from scipy.interpolate import CubicSpline

    between = CubicSpline(table.log_pwv, table.signal, axis=0)(fine.log_pwv)
    assert np.abs(between - fine.signal).max() < 2e-3


def test_the_error_is_that_of_the_noise(table):
    rng, truth = np.random.default_rng(5), 0.62
    seen = sky_of(truth) + rng.normal(0, 0.5, (400, FREQ.size))
    found = fit(seen, table, 0.5, common=False)
    pulls = (found.pwv_mm - truth) / found.error_mm
    assert abs(pulls.mean()) < 0.15
    assert pulls.std() == pytest.approx(1.0, abs=0.1)
    assert found.rms_k.mean() == pytest.approx(0.5, rel=0.01)
    together = fit(seen, table, 0.5)
    assert np.ptp(together.pwv_mm) == 0
    assert together.error_mm[0] == pytest.approx(found.error_mm[0] / 20, rel=0.02)
    assert abs(together.pwv_mm[0] - truth) < 4 * together.error_mm[0]


def test_each_pixel_may_have_its_own_sideband_gain(table):
    gain_signal = np.array([[0.4], [0.5], [0.62]])
    seen = np.concatenate([np.atleast_2d(sky_of(0.8, gain_signal=g[0])) for g in gain_signal])
    assert fit(seen, table, gain_signal=gain_signal, common=False).pwv_mm == pytest.approx(0.8, rel=1e-4)


@pytest.mark.parametrize("together", [1, 3, 7, 1000])
def test_bins_keep_what_all_channels_say_by_their_weights(together):
    rng = np.random.default_rng(4)
    seen, sigma = rng.normal(100, 5, (2, 100)), rng.uniform(0.5, 2.0, (2, 100))
    seen[0, 10:20], sigma[1, 50] = np.nan, np.inf
    means, noise, gains = bin_sky(seen, sigma, np.full((2, 100), 0.4), together)
    weight = np.where(np.isfinite(seen), 1 / sigma**2, 0.0)
    good = np.isfinite(means)
    assert np.sum(1 / noise[good] ** 2) == pytest.approx(weight.sum())
    assert np.sum(means[good] / noise[good] ** 2) == pytest.approx(np.nansum(weight * np.nan_to_num(seen)))
    assert gains == pytest.approx(0.4)
    assert bin_mean(np.arange(10.0), 4).tolist() == [1.5, 5.5, 8.5]


def test_an_offset_is_found_beside_the_water(table):
    seen = sky_of(0.5) + np.array([[-3.0], [0.0], [7.0]])
    found = fit(seen, table, offset=True)
    assert found.pwv_mm == pytest.approx(0.5, rel=1e-3)
    assert found.offset_k == pytest.approx([-3.0, 0.0, 7.0], abs=0.05)
    assert fit(seen, table, common=False).pwv_mm[2] != pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("pwv_mm", [0.3, 0.62, 1.2, 2.5])
def test_an_offset_that_makes_two_minima_does_not_hide_the_deeper_one(pwv_mm):
    # The slope of the sky over the band, which is all that an offset leaves, rises with the water and falls again.
    freq = 807.3 + 5e-3 * np.arange(800)
    image = 2 * 803.3 - freq
    wide = SkyTable(AIR, freq, image, airmass=1.35)
    ground = {"spill_signal": planck_j(freq, 265.0), "spill_image": planck_j(image, 265.0)}
    seen = sky_input(
        AIR.sky(freq, pwv_mm, 1.35), AIR.sky(image, pwv_mm, 1.35), gain_signal=0.5, forward_eff=0.95, **ground
    )
    for common in (True, False):
        found = fit_pwv(
            np.tile(seen, (2, 1)), np.full((2, 800), 0.05), wide, gain_signal=0.5, forward_eff=0.95, common=common,
            offset=True, **ground,
        )  # fmt: skip
        assert found.pwv_mm == pytest.approx(pwv_mm, rel=5e-3)


def test_bad_channels_are_left_out(table):
    seen = np.tile(sky_of(0.5), (2, 1))
    seen[0, ::3], seen[1, 100:300] = np.nan, np.inf
    found = fit(seen, table)
    assert found.pwv_mm == pytest.approx(0.5, rel=1e-4)
    assert found.channels.tolist() == [266, 200]
    seen[1] = np.nan
    for common in (True, False):
        found = fit(seen, table, common=common)
        assert found.pwv_mm[0] == pytest.approx(0.5, rel=1e-4)
        assert np.isnan(found.rms_k[1]), "a dead pixel does not spoil the others"
    assert np.isnan(found.pwv_mm[1])
    seen[0] = np.nan
    with pytest.raises(AtmosphereFitError, match="no pixel has more than 0 bins"):
        fit(seen, table)


def test_a_sky_brighter_than_any_water_is_no_sky(table):
    with pytest.raises(AtmosphereFitError, match="brighter than with 8 mm"):
        fit(np.full((1, FREQ.size), 290.0), table)


def test_a_sky_darker_than_the_driest_is_no_sky_unless_it_is_of_a_pixel_alone(table):
    with pytest.raises(AtmosphereFitError, match=r"darker than with 0\.02 mm"):
        fit(np.full((1, FREQ.size), 5.0), table)
    seen = np.tile(sky_of(0.5), (3, 1))
    seen[2] = 5.0
    found = fit(seen, table, common=False)
    assert found.at_bound.tolist() == [False, False, True]
    assert found.pwv_mm == pytest.approx([0.5, 0.5, 0.02], rel=1e-3)


def test_a_table_of_nothing_is_refused():
    for more in ({"pwv_range_mm": (0.0, 8.0)}, {"pwv_range_mm": (3.0, 2.0)}, {"amounts": 3}):
        with pytest.raises(UsageError, match="no table"):
            SkyTable(AIR, FREQ, IMAGE, airmass=1.0, **more)


@pytest.mark.slow
def test_the_noise_of_the_sky_is_what_repeated_measurements_scatter():
    rng, gamma, t_rec = np.random.default_rng(7), 2e4, 180.0
    hot, cold = (one[None] for one in loads_of(np.full(400, gamma), np.full(400, t_rec), 0.5))
    sky = gamma * (t_rec + sky_of(0.62))[None]

    def noisy(counts, seconds):
        return counts * (1 + rng.normal(0, 1 / np.sqrt(1e6 * seconds), (2000, 400)))

    found = []
    for one_hot, one_cold, one_sky in zip(noisy(hot, 20), noisy(cold, 10), noisy(sky, 5), strict=True):
        gain = load_gain(one_hot[None], one_cold[None], **LOADS, **AXES)
        found.append(sky_brightness(one_sky[None], one_hot[None], gain)[0])
    gain = load_gain(hot, cold, **LOADS, **AXES)
    expected = sky_noise(sky_brightness(sky, hot, gain), gain, bandwidth_hz=1e6, sky_s=5.0, hot_s=20.0, cold_s=10.0)
    assert np.std(found, axis=0).mean() == pytest.approx(expected.mean(), rel=0.02)


# -- references -----------------------------------------------------------------------------------------------------


def test_dumps_on_the_reference_that_follow_each_other_are_one_visit():
    is_off = np.array([1, 1, 0, 0, 1, 0, 1, 1], bool)
    assert visits(is_off).tolist() == [0, 0, -1, -1, 1, -1, 2, 2]
    assert visits(np.zeros(3, bool)).tolist() == [-1, -1, -1]


OFF_TIMES, OFF_SECONDS = np.array([0.0, 10.0, 30.0]), np.array([4.0, 2.0, 8.0])


@pytest.mark.parametrize(
    ("when", "mode", "before", "after", "weight"),
    [
        (-5.0, "linear", 0, 0, 0.0),
        (0.0, "linear", 0, 0, 0.0),
        (2.5, "linear", 0, 1, 0.25),
        (10.0, "linear", 1, 1, 0.0),
        (25.0, "linear", 1, 2, 0.75),
        (99.0, "linear", 2, 2, 0.0),
        (2.5, "nearest", 0, 0, 0.0),
        (25.0, "nearest", 2, 2, 0.0),
    ],
)
def test_references_are_mixed_in_time_and_never_extrapolated(when, mode, before, after, weight):
    found = match_references(np.array([when]), OFF_TIMES, OFF_SECONDS, mode=mode)
    assert (found.before[0], found.after[0], found.weight_after[0]) == (before, after, pytest.approx(weight))
    expected = 1 / ((1 - weight) ** 2 / OFF_SECONDS[before] + weight**2 / OFF_SECONDS[after])
    assert found.effective_s[0] == pytest.approx(expected)


def test_the_mean_of_all_has_the_time_of_all():
    found = match_references(np.array([5.0, 40.0]), OFF_TIMES, OFF_SECONDS, mode="mean")
    assert found.effective_s.tolist() == [14.0, 14.0]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.floats(-5.0, 5.0), st.floats(-1e3, 1e3))
def test_a_drift_in_a_straight_line_is_followed_between_the_visits(when, slope, begin):
    times = np.sort(np.unique(np.round(when, 3)))
    on = np.linspace(times[0], times[-1], 7)
    found = match_references(on, times, np.ones(times.size))
    values = begin + slope * times
    mixed = (1 - found.weight_after) * values[found.before] + found.weight_after * values[found.after]
    assert mixed == pytest.approx(begin + slope * on, abs=1e-6)
    assert np.all(found.effective_s >= 1 - 1e-9)


def test_without_a_reference_or_in_disorder_nothing_is_matched():
    with pytest.raises(MissingOffError):
        match_references(np.array([1.0]), np.array([]), np.array([]))
    with pytest.raises(UsageError, match="order of time"):
        match_references(np.array([1.0]), OFF_TIMES[::-1], OFF_SECONDS)


# -- temperatures and flags -----------------------------------------------------------------------------------------


@given(st.floats(0.2, 1.0), st.floats(0.05, 1.0), st.floats(0.05, 1.0), st.floats(0.5, 1.0), st.floats(0.5, 2.0))
def test_both_scales_give_the_source_and_a_drift_of_the_gain_spoils_only_one(g_s, tr_s, tr_i, forward, drift):
    gamma, t_rec, j_sky, t_source = 1e4, 150.0, 120.0, 7.0
    divisor = source_divisor(tr_s, tr_i, gain_signal=g_s, forward_eff=forward)
    off = drift * gamma * (t_rec + j_sky)
    on = off + drift * gamma * forward * g_s * tr_s * t_source
    assert ta_star_off_scale(on, off, system_temperature(t_rec, j_sky, divisor)) == pytest.approx(t_source)
    assert ta_star_load_scale(on, off, gamma, divisor) == pytest.approx(drift * t_source)


def test_a_continuum_comes_through_both_sidebands():
    both = source_divisor(0.5, 0.3, gain_signal=0.4, forward_eff=0.9, mode="continuum")
    assert both == pytest.approx(0.9 * (0.4 * 0.5 + 0.6 * 0.3))


@pytest.mark.parametrize("peak", [9.0, 10.0, 12.0, 15.0, 20.0, 40.0])
@pytest.mark.parametrize("fwhm", [2.5, 3.0])
def test_the_peak_of_a_narrow_line_is_no_spike(fwhm, peak):
    rng = np.random.default_rng(8)
    line = peak * np.exp(-4 * np.log(2) * ((np.arange(64) - 30) / fwhm) ** 2)
    outline = np.exp(-0.5 * ((np.arange(40) - 20) / 1.5) ** 2)  # a compact source: most dumps do not see it
    spectra = outline[:, None] * line + 0.5 * rng.standard_normal((40, 64))
    assert not flag_spikes(spectra, np.ones(40)).any()


def test_a_spike_is_flagged_and_a_line_is_not():
    rng = np.random.default_rng(3)
    spectra = rng.normal(0, 1.0, (40, 200))
    spectra[7, 50] += 40.0  # a spike
    spectra[12, 99:101] -= 40.0  # two channels of interference
    spectra[20, 140:150] += 30.0  # a line where the telescope crosses a source
    spectra[:, 10] += 25.0  # there all the time: no spike in time
    found = flag_spikes(spectra, np.ones(40))
    assert set(zip(*np.nonzero(found), strict=True)) == {(7, 50), (12, 99), (12, 100)}
