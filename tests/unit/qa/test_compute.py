import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nightbeam.core.errors import UsageError
from nightbeam.gains.model import CalSolutions
from nightbeam.imaging.model import SourceFit
from nightbeam.qa.compute import (
    bandpass_panels,
    by_spacing,
    compare_sources,
    gain_panels,
    gain_points,
    judge,
    largest_gap,
    sum_flags,
    thermal_noise_jy,
    worst_first,
)
from nightbeam.qa.model import FlagCounts, Grade, Limits, Measure, Score, VisibilitySample
from nightbeam.sky import Calibrator


def solutions(values, flags=None, *, antenna, spw, freqs, names=("103", "7", "11"), minutes=None, snr=None):
    values = np.asarray(values)
    rows = len(values)
    return CalSolutions(
        path=Path("x_bpcal"),
        kind_name="B Jones",
        antennas=names,
        antenna=np.array(antenna),
        spw=np.array(spw),
        field_id=np.zeros(rows, int),
        refant=np.zeros(rows, int),
        time_mjd=60951.5 + (np.arange(rows) if minutes is None else np.array(minutes)) / 1440.0,
        values=values,
        flags=np.zeros(values.shape, bool) if flags is None else np.asarray(flags),
        snr=np.ones(values.shape) if snr is None else snr,
        freqs_hz=tuple(np.array(f) for f in freqs),
    )


# -- judging ----------------------------------------------------------------------------------------------------


def judged(value, limits):
    return judge(Measure("x", value, "Jy", limits, "x is so"))


@pytest.mark.parametrize(
    ("value", "score", "verdict"),
    [(0.0, 1.0, "good"), (0.1, 0.75, "good"), (0.2, 0.5, "good"), (0.35, 0.25, "warn"), (0.5, 0.0, "warn"),
     (0.51, 0.0, "bad"), (math.inf, 0.0, "bad"), (-1.0, 1.0, "good")],
)  # fmt: skip
def test_less_is_better_between_the_ideal_and_the_limits(value, score, verdict):
    found = judged(value, Limits(0.2, 0.5, ideal=0.0))
    assert (found.score, found.verdict) == (pytest.approx(score), verdict)


@pytest.mark.parametrize(
    ("snr", "score", "verdict"),
    [(1000.0, 1.0, "good"), (100 / 3, 1.0, "good"), (10.0, 0.5, "good"), (6.5, 0.25, "warn"), (2.9, 0.0, "bad")],
)
def test_more_is_better_and_an_ideal_that_is_not_named_is_as_far_on_as_bad_is_back(snr, score, verdict):
    # 10 is 3.33 times 3; 33.3 is 3.33 times 10
    found = judged(snr, Limits(10.0, 3.0))
    assert (found.score, found.verdict) == (pytest.approx(score), verdict)


@pytest.mark.parametrize("ratio", [1.1, 1 / 1.1])
def test_a_ratio_is_as_far_off_below_one_as_above(ratio):
    found = judged(ratio, Limits(1.2, 1.5, ideal=1.0, of="factor"))
    assert (found.score, found.verdict, found.value) == (pytest.approx(0.75), "good", ratio)
    assert judged(-1.0, Limits(1.2, 1.5, ideal=1.0, of="factor")).verdict == "bad"
    assert judged(0.0, Limits(1.2, 1.5, ideal=1.0, of="factor")).verdict == "bad"


@pytest.mark.parametrize("value", [None, math.nan])
def test_what_could_not_be_measured_is_unknown_and_never_good(value):
    found = judged(value, Limits(0.2, 0.5, ideal=0.0))
    assert (found.value, found.score, found.verdict, found.reason) == (None, None, "unknown", "x is so")


def test_the_reason_has_the_limit():
    limits = Limits(0.2, 0.5, ideal=0.0)
    assert judged(0.3, limits).reason == "x is so (warning above 0.2 Jy)"
    assert judged(0.9, limits).reason == "x is so (bad above 0.5 Jy)"
    assert judged(1.0, Limits(10.0, 3.0)).reason == "x is so (bad below 3 Jy)"


finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.tuples(finite, finite, finite), st.tuples(finite, finite), st.sampled_from(["value", "factor"]))
def test_a_better_value_never_has_a_lower_score_and_the_word_goes_with_the_score(edges, values, of):
    ideal, warn, bad = sorted(edges) if edges[0] < edges[2] else sorted(edges, reverse=True)
    assume(ideal != warn != bad)
    limits = Limits(warn, bad, ideal=ideal, of=of)
    found = [judged(v, limits) for v in values]
    for one in found:
        assert 0.0 <= one.score <= 1.0
        assert (one.score >= 0.5) == (one.verdict is Grade.GOOD)
        if one.verdict is Grade.BAD:
            assert one.score == 0.0
    if of == "value":
        worse, better = sorted(values, reverse=not limits.more_is_better)
        assert judged(worse, limits).score <= judged(better, limits).score


@pytest.mark.parametrize("wrong", [(0.5, 0.5, 0.0), (0.2, 0.5, 0.3), (0.2, -1.0, 0.0), (-1.0, -2.0, None)])
def test_limits_that_do_not_follow_one_another_are_refused(wrong):
    with pytest.raises(UsageError):
        Limits(wrong[0], wrong[1], ideal=wrong[2])


def test_the_worst_is_read_first():
    said = [("a", 0.9, "good"), ("b", None, "unknown"), ("c", 0.2, "warn"), ("d", 0.0, "bad"), ("e", 0.6, "good")]
    scores = [Score(name, 1.0, "", score, Grade(word), "") for name, score, word in said]
    assert [s.name for s in worst_first(scores)] == ["d", "c", "b", "e", "a"]


# -- flags and coverage -----------------------------------------------------------------------------------------


def flag_counts(flagged, *, antennas=("1", "2", "3"), lengths=None):
    """One window, one hand unless ``flagged`` says more: share of 10 samples flagged of each pair i < j."""
    shape = np.asarray(flagged, float)
    n = len(antennas)
    pairs = np.triu(np.ones((n, n)), 1)
    total = np.broadcast_to(10.0 * pairs, shape.shape).copy()
    return FlagCounts(
        antennas=antennas,
        lengths_m=np.full((n, n), 30.0) if lengths is None else np.asarray(lengths, float),
        total=total,
        flagged=10.0 * shape * pairs,
        uv_klambda=np.zeros((0, 2), np.float32),
        width_hz=1e6,
        integration_s=10.0,
    )


def test_a_dead_antenna_is_counted_and_does_not_spoil_what_works():
    # antenna 3 is dead; of the pair 1-2 a fifth is flagged
    found = sum_flags(flag_counts([[[[0, 0.2, 1], [0, 0, 1], [0, 0, 0]]]]))
    assert found.fraction == pytest.approx(0.2)
    assert found.raw_fraction == pytest.approx(22 / 30)
    assert (found.receptors, found.dead_receptors, found.dead_antennas) == (3, 1, ("3",))
    assert found.by_antenna == pytest.approx({"1": 0.2, "2": 0.2})
    assert (found.samples, found.good_samples) == (30, 8)


def test_a_dead_hand_of_an_antenna_is_one_dead_receptor():
    works = [[0, 0, 0], [0, 0, 0], [0, 0, 0]]
    no_third = [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    found = sum_flags(flag_counts([[works, no_third]]))
    assert (found.receptors, found.dead_receptors, found.dead_antennas) == (6, 1, ())
    assert (found.fraction, found.raw_fraction) == (0.0, pytest.approx(20 / 60))


def test_flags_are_told_by_window_and_length():
    clean, half = np.zeros((3, 3)), np.full((3, 3), 0.5)
    lengths = [[0, 60, 5000], [60, 0, 60], [5000, 60, 0]]
    found = sum_flags(flag_counts([[clean], [half]], lengths=lengths))
    assert found.by_window == {"0": 0.0, "1": 0.5}
    assert found.by_length == {"50-100 m": 0.25, "over 3200 m": 0.25}


def test_where_all_is_flagged_nothing_works():
    found = sum_flags(flag_counts([[np.ones((3, 3))]]))
    assert math.isnan(found.fraction)
    assert (found.dead_receptors, found.by_antenna, found.by_window, found.by_length) == (3, {}, {}, {})


def test_the_receivers_leave_a_fifth_of_a_millijansky_in_a_full_observation():
    # 96 antennas, 24 integrations, 768 channels, two hands: about 0.2 mJy/beam, as the telescope's team says
    samples = 4560 * 24 * 768 * 2
    assert thermal_noise_jy(samples, width_hz=244140.625, integration_s=12.884901888) == pytest.approx(2.0e-4, rel=0.01)
    # one sample of bandwidth 1 Hz and half a second has the whole of the flux density
    assert thermal_noise_jy(1, width_hz=1.0, integration_s=0.5, sefd_jy=6500.0) == pytest.approx(6500.0)
    assert math.isnan(thermal_noise_jy(0, width_hz=1.0, integration_s=1.0))


def test_the_largest_gap_is_relative_to_its_outer_edge():
    assert largest_gap(np.array([4.0, 1.0, 2.0, 8.0, 7.0])) == (0.5, 1.0, 2.0)
    assert all(map(math.isnan, largest_gap(np.array([3.0, 3.0, 0.0, np.nan]))))


def sample(spacing, amplitude, phase=None):
    spacing = np.asarray(spacing, float)
    phase = np.zeros(len(spacing)) if phase is None else np.asarray(phase, float)
    return VisibilitySample("DATA", spacing, np.zeros(len(spacing)), np.asarray(amplitude, float), phase)


def test_amplitudes_fall_into_bins_of_equal_number():
    spacing = np.arange(40.0)
    binned = by_spacing(sample(spacing, np.where(spacing < 20, 1.0, 3.0)), bins=2)
    assert binned.amplitude[1].tolist() == [1.0, 3.0]
    assert binned.spacing_klambda.tolist() == [9.5, 29.5]
    assert (binned.amplitude[0] <= binned.amplitude[2]).all()


def test_what_is_not_finite_falls_into_no_bin():
    binned = by_spacing(sample(np.arange(20.0), [1.0] * 19 + [np.inf]))
    assert binned.amplitude.max() == 1.0


def test_phases_around_the_turn_are_near_one_another():
    binned = by_spacing(sample(np.arange(20.0), np.ones(20), [170.0, -170.0] * 10), bins=1)
    assert abs(abs(binned.phase_deg[1, 0]) - 180.0) <= 10.0
    assert np.ptp(binned.phase_deg[:, 0]) <= 20.0


def test_no_visibilities_make_no_bins():
    assert by_spacing(sample([], [])).amplitude.shape == (3, 0)


# -- solutions --------------------------------------------------------------------------------------------------


def test_a_bandpass_lies_by_antenna_and_rising_frequency():
    # two windows of one channel, the second one lower; antenna 7 has no solution and is named apart
    table = solutions(
        [[[2.0 + 0j]], [[1j]], [[5.0]], [[3.0]], [[4.0]], [[6.0]]],
        [[[False]], [[False]], [[True]], [[False]], [[False]], [[True]]],
        antenna=[0, 0, 1, 2, 2, 1], spw=[0, 1, 0, 0, 1, 1], freqs=[[1.4e9], [1.3e9]],
    )  # fmt: skip
    found = bandpass_panels(table)
    assert (found.antennas, found.without) == (("103", "11"), ("7",))
    assert found.x.tolist() == [1300.0, 1400.0]
    assert found.amplitude[0].tolist() == [[1.0, 2.0], [4.0, 3.0]]
    assert found.phase_deg[0, 0].tolist() == pytest.approx([90.0, 0.0])


def test_a_missing_channel_is_nan_and_repeated_times_are_averaged():
    table = solutions(
        [[[2.0], [2.0]], [[4.0], [9.0]]], [[[False], [True]], [[False], [True]]],
        antenna=[0, 0], spw=[0, 0], freqs=[[1.3e9, 1.4e9]],
    )  # fmt: skip
    found = bandpass_panels(table)
    assert found.amplitude[0, 0, 0] == 3.0
    assert np.isnan(found.amplitude[0, 0, 1])


def test_many_channels_are_averaged_by_neighbours():
    values = np.arange(1.0, 101.0)[None, :, None]
    table = solutions(values, antenna=[0], spw=[0], freqs=[1.3e9 + 1e6 * np.arange(100)])
    found = bandpass_panels(table, most_points=10)
    assert found.x.tolist() == pytest.approx([1304.5 + 10 * k for k in range(10)])
    assert found.amplitude[0, 0].tolist() == pytest.approx([5.5 + 10 * k for k in range(10)])


def test_a_large_array_has_no_more_numbers_than_fit():
    names = tuple(map(str, range(117)))
    table = solutions(
        np.ones((117, 768, 2)), antenna=np.arange(117), spw=np.zeros(117, int), freqs=[np.linspace(1.3e9, 1.5e9, 768)],
        names=names,
    )  # fmt: skip
    assert bandpass_panels(table).amplitude.size <= 8_000


def test_gains_in_time_are_averaged_over_windows_but_not_over_minutes():
    table = solutions(
        [[[1.0]], [[3.0]], [[5.0]], [[7.0]]], antenna=[0, 0, 0, 0], spw=[0, 1, 0, 1], freqs=[[1.3e9], [1.4e9]],
        minutes=[0.0, 0.0, 2.0, 2.0],
    )  # fmt: skip
    found = gain_panels(table)
    assert found.x.tolist() == pytest.approx([0.0, 2.0])
    assert found.amplitude[0, 0].tolist() == [2.0, 6.0]


def test_gains_keep_their_antenna_and_their_minute():
    table = solutions(
        [[[2.0, 2j]], [[3.0, 4.0]]], [[[False, False]], [[False, True]]],
        antenna=[2, 0], spw=[0, 0], freqs=[[1.4e9]],
    )  # fmt: skip
    points = gain_points(table)
    assert points.names == ("103", "11")
    assert points.antenna.tolist() == [1, 1, 0]
    assert points.polarization.tolist() == [0, 1, 0]
    assert points.amplitude.tolist() == [2.0, 2.0, 3.0]
    assert points.phase_deg.tolist() == [0.0, 90.0, 0.0]
    assert points.minutes.tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-4)


# -- sources ----------------------------------------------------------------------------------------------------


def test_sources_are_held_against_the_list_across_the_zero_of_right_ascension():
    listed = [Calibrator("a", 359.9999, 60.0, 2.0), Calibrator("b", 10.0, 0.0, 4.0)]
    fits = [
        SourceFit(name="a", ra_deg=359.9999, dec_deg=60.0, found=True, found_ra_deg=0.0001, found_dec_deg=60.001,
                  peak_jy=1.0, snr=15.0),
        SourceFit(name="b", ra_deg=10.0, dec_deg=0.0, found=False, peak_jy=9.0),
    ]  # fmt: skip
    found = compare_sources(fits, listed, catalogue="the list", beam_arcsec=(90.0, 40.0))
    # sqrt(90 x 40) / (2 x 15)
    assert found.error_arcsec[0] == pytest.approx(2.0)
    assert found.ratio[0] == 0.5
    assert found.east_arcsec[0] == pytest.approx(0.0002 * 3600 * 0.5)
    assert found.north_arcsec[0] == pytest.approx(3.6)
    assert np.isnan(found.ratio[1])
    assert found.found.tolist() == [True, False]
