"""Measures of groups and mosaics with numbers that are known: real ones of DSA-110, and made-up ones worked by hand."""

import json
import math
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nightbeam.catalog.model import MosaicRow
from nightbeam.core.errors import UsageError
from nightbeam.core.settings import QaSettings, Settings
from nightbeam.gains.compute import table_stats
from nightbeam.gains.model import CalSolutions
from nightbeam.mosaic.compute import BlockFigures, CatalogueFigures
from nightbeam.mosaic.judging import judge_mosaic as made_checks
from nightbeam.mosaic.model import MosaicOptions
from nightbeam.qa.compute import FlagSummary, judge
from nightbeam.qa.measures import (
    Unread,
    calibration_measures,
    corrected_measures,
    coverage_measures,
    flag_measures,
    image_measures,
    judge_mosaic,
    source_measures,
    subband_measures,
    table_measures,
)
from nightbeam.qa.model import CalibrationUse, QaLimits, SourceComparison
from nightbeam.simulate.files import read_stations
from nightbeam.sky import OVRO_DSA110, uvw_basis

LIMITS = QaLimits()


def scores(measures):
    return {score.name: score for score in map(judge, measures)}


def real_bandpass():
    """The flags of the bandpass table of 2026-01-25 by their counts.

    117 antennas x 16 windows, 48 channels, 2 receptors; 63 receptors dead; 1,368 more solutions flagged: 49,752 in all.
    """
    rows = 117 * 16
    flags = np.zeros((rows, 48, 2), bool)
    antenna = np.tile(np.arange(117), 16)
    dead = {(k, p) for k in range(31) for p in (0, 1)} | {(31, 0)}
    for k, pol in dead:
        flags[antenna == k, :, pol] = True
    left = 1368
    for row in range(rows):
        if antenna[row] >= 32 and left:
            take = min(left, 24)  # a part of the channels, so that nobody dies of it
            flags[row, :take, 0] = True
            left -= take
    names = tuple(str(k + 1) for k in range(117))
    return CalSolutions(
        path=Path("x_bpcal"), kind_name="B Jones", antennas=names, antenna=antenna, spw=np.repeat(np.arange(16), 117),
        field_id=np.zeros(rows, int), refant=np.full(rows, 102), time_mjd=np.full(rows, 61065.0),
        values=np.ones((rows, 48, 2), complex), flags=flags, snr=np.full((rows, 48, 2), 97.66),
        freqs_hz=tuple(1.311e9 + 1.17e7 * w + 2.44e5 * np.arange(48) for w in range(16)),
    )  # fmt: skip


def test_the_real_bandpass_is_one_per_cent_flagged_once_its_63_dead_receptors_are_left_out():
    table = real_bandpass()
    assert (table.flags.size, table.flags.sum()) == (179_712, 49_752)
    recorded = np.zeros((117, 2), bool)
    recorded[21:] = True  # 96 antennas of the 117 were recorded that day
    stats = table_stats(table, name="bpcal", kind="BP", receptors_with_data=recorded)
    found = scores(table_measures(stats, LIMITS, name="bpcal", kind="BP", with_data=192, antennas=96))
    flagged = found["bpcal_flagged"]
    assert flagged.value == pytest.approx(1368 / 131_328)
    assert (flagged.verdict, found["bpcal_dead_receptors"].value) == ("good", 63)
    assert "1368 of 131328" in flagged.reason
    assert "27.7 %" in flagged.reason
    assert found["bpcal_dead_receptors"].verdict == "good"
    assert (found["bpcal_snr"].value, found["bpcal_snr"].score) == (pytest.approx(97.66), 1.0)
    assert found["bpcal_antennas"].value == 86


def test_receptors_that_were_never_recorded_are_not_held_against_a_table():
    table = real_bandpass()
    recorded = np.zeros((117, 2), bool)
    recorded[32:40] = True  # eight antennas observed, all with solutions
    stats = table_stats(table, name="g", kind="GA", receptors_with_data=recorded)
    found = scores(table_measures(stats, LIMITS, name="g", kind="GA", with_data=16))["g_dead_receptors"]
    assert (found.value, found.score) == (63, 1.0)
    recorded[:31] = True  # 62 dead ones were recorded: 62 of 78 is more than seven tenths
    stats = table_stats(table, name="g", kind="GA", receptors_with_data=recorded)
    assert scores(table_measures(stats, LIMITS, name="g", kind="GA", with_data=78))["g_dead_receptors"].verdict == "bad"


def test_a_table_without_solutions_for_many_of_the_antennas_that_were_recorded_is_not_good():
    table = real_bandpass()
    recorded = np.zeros((117, 2), bool)
    recorded[21:] = True
    for missing, verdict in ((10, "good"), (18, "warn"), (36, "bad")):
        table.flags[:] = np.isin(table.antenna, np.arange(21 + missing))[:, None, None]
        stats = table_stats(table, name="b", kind="BP", receptors_with_data=recorded)
        found = scores(table_measures(stats, LIMITS, name="b", kind="BP", with_data=192, antennas=96))
        assert (found["b_dead_receptors"].verdict, found["b_antennas"].verdict) == (verdict, verdict)
        assert f"{96 - missing} of 96 antennas that were recorded" in found["b_antennas"].reason
    table.flags[:] = np.isin(table.antenna, np.arange(106))[:, None, None]
    few = table_stats(table, name="b", kind="BP")  # 11 antennas, whatever was recorded
    assert scores(table_measures(few, LIMITS, name="b", kind="BP", antennas=11))["b_antennas"].verdict == "warn"


def test_noise_that_no_receiver_can_have_is_bad_for_its_own_reason():
    # 6500 Jy: 0.2 mJy/beam; a flux scale that is ten times too low
    def judged(noise_jy):
        product = SimpleNamespace(
            noise_jy=noise_jy, peak_jy=0.5, deepest_jy=-0.01, beam_major_arcsec=18.0, beam_minor_arcsec=14.0,
            peak_ra_deg=0.0, peak_dec_deg=0.0,
        )  # fmt: skip
        return scores(image_measures(product, LIMITS, thermal_jy=2e-4, expected_beam_arcsec=14.0))["thermal_factor"]

    low = judged(2e-5)
    assert (low.value, low.verdict, low.score) == (pytest.approx(0.1), "bad", 0.0)
    assert "less than receivers can leave" in low.reason
    assert [judged(2e-4 * factor).verdict for factor in (0.6, 0.8, 0.9, 1.0, 50.0, 200.0)] == [
        "bad", "warn", "good", "good", "good", "warn",
    ]  # fmt: skip


def test_one_antenna_has_no_cross_correlations_and_is_not_called_flagged():
    alone = summary(
        raw_fraction=math.nan, fraction=math.nan, receptors=0, dead_receptors=0, dead_antennas=(), by_antenna={},
        by_window={}, by_length={}, samples=0, good_samples=0,
    )  # fmt: skip
    found = scores(flag_measures(alone, LIMITS))
    assert {(s.verdict, s.reason) for s in found.values()} == {("unknown", "there are no cross-correlations")}


def test_where_it_is_not_known_what_was_recorded_the_dead_are_not_judged():
    stats = table_stats(real_bandpass(), name="g", kind="GA")
    found = scores(table_measures(stats, LIMITS, name="g", kind="GA", with_data=Unread("the data are gone")))
    assert found["g_dead_receptors"].verdict == "unknown"
    assert found["g_dead_receptors"].reason.startswith("g: 63 of 234 receptors have no solution")
    assert found["g_dead_receptors"].reason.endswith("the data are gone")
    assert found["g_flagged"].verdict == "good"


def test_a_table_of_which_all_is_flagged_is_bad_and_the_rest_unknown():
    table = real_bandpass()
    table.flags[:] = True
    found = scores(table_measures(table_stats(table, name="b", kind="BP"), LIMITS, name="b", kind="BP"))
    words = {name: str(score.verdict) for name, score in found.items()}
    assert words == {
        "b_flagged": "bad", "b_dead_receptors": "bad", "b_antennas": "bad", "b_snr": "unknown", "b_scatter": "unknown",
        "b_phase_scatter": "unknown",
    }  # fmt: skip
    assert "every solution is flagged" in found["b_snr"].reason


def test_a_table_that_cannot_be_read_is_unknown_in_all_that_it_would_say():
    found = scores(table_measures(Unread("x_bpcal is damaged"), LIMITS, name="b", kind="BP"))
    assert {(s.verdict, s.reason) for s in found.values()} == {("unknown", "x_bpcal is damaged")}
    assert len(found) == 6
    assert set(scores(table_measures(Unread(""), LIMITS, name="k", kind="K"))) == {
        "k_flagged",
        "k_dead_receptors",
        "k_antennas",
    }


def summary(**changed):
    plain = {
        "raw_fraction": 0.3, "fraction": 0.1, "receptors": 10, "dead_receptors": 2, "dead_antennas": ("5",),
        "by_antenna": {"1": 0.0, "2": 0.9, "3": 0.1, "4": 0.0}, "by_window": {"0": 0.1, "1": 0.1},
        "by_length": {"0-50 m": 0.1}, "samples": 100, "good_samples": 90,
    }  # fmt: skip
    return FlagSummary(**plain | changed)


def test_antennas_of_which_most_is_flagged_are_counted_and_named():
    found = scores(flag_measures(summary(), LIMITS))
    assert (found["flagged"].value, found["flagged"].verdict) == (0.1, "good")
    assert (found["flagged_antennas"].value, found["flagged_antennas"].verdict) == (0.25, "warn")
    assert "1 of 4 antennas are flagged by more than 50 %: 2" in found["flagged_antennas"].reason
    assert "the worst, 0, by 10 %" in found["flagged_windows"].reason
    assert (found["dead_receptors"].value, found["dead_receptors"].verdict) == (2, "good")
    assert "5" in found["dead_receptors"].reason


def test_data_of_which_all_is_flagged_are_bad():
    nothing = summary(fraction=math.nan, dead_receptors=10, by_antenna={}, by_window={}, by_length={})
    found = scores(flag_measures(nothing, LIMITS))
    assert (found["flagged"].verdict, found["dead_receptors"].verdict) == ("bad", "bad")
    assert {found[name].verdict for name in ("flagged_antennas", "flagged_windows", "flagged_lengths")} == {"unknown"}
    unread = scores(flag_measures(Unread("gone"), LIMITS))
    assert set(unread) == set(found)
    assert {s.verdict for s in unread.values()} == {"unknown"}


def test_coverage_correction_subbands_and_calibration_have_their_say():
    gap = scores(coverage_measures(np.array([[1.0, 0.0], [0.0, 1.2], [1.8, 2.4]]), LIMITS))["uv_gap"]
    assert (gap.value, gap.verdict) == (pytest.approx(0.6), "warn")
    assert {s.verdict for s in scores(coverage_measures(np.zeros((0, 2)), LIMITS)).values()} == {"unknown"}
    assert scores(corrected_measures("DATA", 1.0))["corrected_data"].verdict == "bad"
    assert scores(corrected_measures("CORRECTED_DATA", 0.0))["corrected_data"].verdict == "bad"
    assert scores(corrected_measures("CORRECTED_DATA", math.nan))["corrected_data"].verdict == "unknown"
    missing = scores(subband_measures((3, 7), 16, LIMITS))["missing_subbands"]
    assert (missing.value, missing.verdict) == (0.125, "warn")
    assert "sb03, sb07" in missing.reason
    found = scores(calibration_measures(CalibrationUse("set", age_hours=-6.0, borrowed=True, ratio=0.5), LIMITS))
    assert {name: str(s.verdict) for name, s in found.items()} == {
        "calibration_age": "warn", "calibration_borrowed": "warn", "calibrator_flux_ratio": "warn",
    }  # fmt: skip
    assert found["calibration_age"].value == 6.0
    unread = scores(calibration_measures(CalibrationUse("set"), LIMITS))
    assert unread["calibrator_flux_ratio"].verdict == unread["calibration_age"].verdict == "unknown"


def coverage_of(choose, dec_deg):
    """Return the uv coverage of the real stations over five minutes about the meridian, at both ends of the band."""
    table = read_stations()
    chosen = table.active & np.array([choose(arm) for arm in table.arm])
    first, second = np.triu_indices(int(chosen.sum()), 1)
    places = table.positions_m[chosen]
    uv = []
    for hour_deg in (-0.64, 0.0, 0.64):
        basis = uvw_basis(math.radians(hour_deg), math.radians(dec_deg), OVRO_DSA110.longitude_deg)
        metres = (places[second] - places[first]) @ basis.T
        uv += [metres[:, :2] / wavelength / 1e3 for wavelength in (0.2000, 0.2287)]
    return np.concatenate(uv)


@pytest.mark.parametrize("dec_deg", [54.57, 33.0, 0.0, -20.0])
def test_a_missing_arm_of_the_real_array_is_seen_wherever_it_looks(dec_deg):
    whole = scores(coverage_measures(coverage_of(lambda arm: True, dec_deg), LIMITS))
    assert {s.verdict for s in whole.values()} == {"good"}
    for arm in ("E-W", "N-S"):
        rest = scores(coverage_measures(coverage_of(lambda a, arm=arm: a != arm, dec_deg), LIMITS))
        assert rest["uv_elongation"].verdict == "bad"
    line = scores(coverage_measures(np.array([[0.0, 1.0], [0.0, 2.0]]), LIMITS))["uv_elongation"]
    assert (line.value, line.verdict) == (None, "bad")


def test_a_band_of_one_subband_is_told_by_the_subbands_that_are_missing():
    assert scores(subband_measures(range(1, 16), 16, LIMITS))["missing_subbands"].verdict == "bad"


def compared(ratio, east, found=None, *, error=0.0):
    n = len(ratio)
    ratio, east = np.array(ratio, float), np.array(east, float)
    return SourceComparison(
        "the list", tuple("abcdefgh"[:n]), np.ones(n), np.ones(n, bool) if found is None else np.array(found),
        ratio, ratio, east, np.zeros(n), np.full(n, error),
    )  # fmt: skip


def test_sources_are_judged_by_their_medians():
    found = scores(source_measures(compared([0.7, 0.8, 5.0], [1.0, 4.0, 3.0]), LIMITS))
    assert (found["flux_ratio"].value, found["flux_ratio"].verdict) == (pytest.approx(0.8), "warn")
    assert (found["astrometry"].value, found["astrometry"].verdict) == (3.0, "warn")
    assert found["completeness"].score == 1.0


def test_offsets_in_all_directions_are_no_offset_of_the_image():
    found = scores(source_measures(compared([1.0] * 5, [-6.0, 6.0, 0.5, 8.0, -8.0]), LIMITS))["astrometry"]
    assert (found.value, found.verdict) == (0.5, "good")


def test_places_are_held_against_an_image_only_beyond_three_times_their_error():
    # the median of 4 offsets with an error of 2 arcsec each has one of 1.2533 x 2 / sqrt(4) = 1.2533 arcsec
    within = scores(source_measures(compared([1.0] * 4, [3.5] * 4, error=2.0), LIMITS))["astrometry"]
    assert (within.value, within.score) == (0.0, 1.0)
    assert "3.50 +- 1.25 arcsec" in within.reason
    beyond = scores(source_measures(compared([1.0] * 4, [9.0] * 4, error=2.0), LIMITS))["astrometry"]
    assert (beyond.value, beyond.verdict) == (pytest.approx(9.0 - 3.7599), "bad")


def test_a_calibrator_alone_tells_where_an_image_is_as_far_as_its_error_lets_it():
    alone = scores(source_measures(compared([1.0], [5.0], error=1.0), LIMITS))["astrometry"]
    assert (alone.value, "5.00 +- 1.00 arcsec" in alone.reason) == (pytest.approx(2.0), True)
    faint = scores(source_measures(compared([1.0], [5.0], error=2.0), LIMITS))["astrometry"]
    assert (faint.value, faint.verdict) == (0.0, "good")
    nowhere = scores(source_measures(compared([1.0] * 3, [0.0] * 3, error=math.nan), LIMITS))["astrometry"]
    assert nowhere.verdict == "unknown"


def test_sources_that_are_not_found_count_and_are_named():
    found = scores(source_measures(compared([1.0, np.nan], [0.0, np.nan], [True, False]), LIMITS))
    assert (found["completeness"].value, found["completeness"].verdict) == (0.5, "bad")
    assert "not b" in found["completeness"].reason
    none = scores(source_measures(compared([np.nan], [np.nan], [False]), LIMITS))
    assert {name: str(s.verdict) for name, s in none.items()} == {
        "completeness": "bad", "flux_ratio": "unknown", "astrometry": "unknown",
    }  # fmt: skip
    assert {str(s.verdict) for s in scores(source_measures(compared([], []), LIMITS)).values()} == {"unknown"}


# -- mosaics ----------------------------------------------------------------------------------------------------


def mosaic(**said):
    return MosaicRow(**dict.fromkeys((f.name for f in fields(MosaicRow)), None) | {"status": "built"} | said)


AGAINST = CatalogueFigures(looked_for=20, found=20, flux_ratio=1.0, offset_arcsec=0.0, offset_error_arcsec=0.1)


def check_scores(pixels=6400, **figures):
    """Score the checks as the maker of mosaics writes them, on 6400 covered pixels."""
    block = BlockFigures(6400, 0, 1.0, 0, 0, 0.0, np.zeros(64, np.float32), (1.0, 1.0, 1.0))
    made = made_checks([block], pixels, replace(AGAINST, **figures), MosaicOptions())
    scores = judge_mosaic(mosaic(checks=json.dumps([asdict(check) for check in made])))
    return {s.name.removeprefix("check_"): s for s in scores if s.name.startswith("check_")}


def test_a_mosaic_is_judged_by_its_row_and_its_checks():
    # the real mosaic of 2026-01-25: 11 tiles, 8.78 mJy, 16.2755 Jy
    checks = [
        {"name": "coverage", "value": 0.4, "limit": 0.1, "passed": True, "text": "40 % is covered", "ideal": 1.0},
        {"name": "negative", "value": 0.02, "limit": 0.01, "passed": False, "text": "2 % beyond -5 sigma"},
        {"name": "files", "value": None, "limit": None, "passed": True, "text": "all are there"},
        {"name": "old", "value": 0.4, "limit": 0.1, "passed": True, "text": "of a check without an ideal"},
        {"name": "sources", "value": None, "limit": 0.6, "passed": None, "text": "no catalogue"},
    ]
    row = mosaic(
        noise_jy=8.78e-3, peak_jy=16.2755, tiles_used=11, tiles_rejected=1, beam_major_arcsec=40.0,
        beam_minor_arcsec=20.0, checks=json.dumps(checks),
        verdicts=json.dumps({"a.fits": [], "b.fits": ["its noise is 6 times the median"]}),
    )  # fmt: skip
    found = {s.name: s for s in judge_mosaic(row)}
    assert found["noise"].value == pytest.approx(8.78)
    assert found["noise"].reason.startswith("the least noise of the map is 8.78 mJy/beam")
    assert "times the least noise of the map" in found["dynamic_range"].reason
    assert found["dynamic_range"].value == pytest.approx(1854, rel=1e-3)
    assert found["rejected_tiles"].value == pytest.approx(1 / 12)
    assert "its noise is 6 times the median" in found["rejected_tiles"].reason
    assert found["beam_elongation"].value == 2.0
    # a third of the way from its limit, 0.1, to its ideal, 1
    assert (found["check_coverage"].verdict, found["check_coverage"].score) == ("good", pytest.approx(2 / 3))
    assert (found["check_negative"].verdict, found["check_negative"].score) == ("bad", 0.0)
    assert (found["check_files"].score, found["check_old"].score) == (1.0, 0.5)
    assert (found["check_sources"].verdict, found["check_sources"].score) == ("unknown", None)


def test_a_mosaic_without_a_fault_has_nothing_left_to_wish_for():
    assert {name: s.score for name, s in check_scores().items()} == dict.fromkeys(
        ("coverage", "negative_pixels", "rms_variation", "noise_jy", "flux_ratio", "astrometry_arcsec", "completeness"),
        1.0,
    )


@pytest.mark.parametrize(
    ("check", "figure", "values"),
    [
        ("flux_ratio", "flux_ratio", (1.0, 0.95, 0.85, 0.8)),
        ("flux_ratio", "flux_ratio", (1.0, 1.05, 1.15, 1.2)),
        ("astrometry_arcsec", "offset_arcsec", (0.0, 0.5, 1.0, 2.0)),
        ("completeness", "found", (20, 18, 15, 12)),
    ],
)
def test_what_is_nearer_its_ideal_never_has_the_lower_score(check, figure, values):
    scores = [check_scores(**{figure: value})[check].score for value in values]
    assert scores[0] == 1.0
    assert scores[-1] == pytest.approx(0.5)
    assert all(near > far for near, far in pairwise(scores))


def test_what_passed_beyond_its_limit_within_its_error_has_no_more_than_at_its_limit():
    found = check_scores(offset_arcsec=20.0, offset_error_arcsec=7.0)["astrometry_arcsec"]
    assert (found.verdict, found.score) == ("good", 0.5)


@pytest.mark.parametrize("checks", [None, "", "[1]", "{", '{"a": 1}', '[{"value": 1}]'])
def test_checks_that_are_missing_or_damaged_are_unknown(checks):
    found = {s.name: s for s in judge_mosaic(mosaic(noise_jy=0.01, checks=checks, verdicts="{"))}
    assert found["checks"].verdict == "unknown"
    assert found["rejected_tiles"].verdict == found["dynamic_range"].verdict == "unknown"


def test_a_mosaic_that_failed_is_bad_and_says_why():
    found = {s.name: s for s in judge_mosaic(mosaic(status="failed", error="the disk is full"))}
    assert (found["built"].verdict, found["built"].score) == ("bad", 0.0)
    assert all("the disk is full" in s.reason for s in found.values())
    planned = judge_mosaic(mosaic(status="planned"))
    assert {str(s.verdict) for s in planned} == {"unknown"}


# -- limits -----------------------------------------------------------------------------------------------------


def test_the_settings_have_the_limits_of_the_library():
    assert QaLimits.from_mapping(QaSettings().model_dump()) == QaLimits()
    with pytest.raises(UsageError, match="no limit noise"):
        QaLimits.from_mapping({"noise": (1.0, 2.0)})


@pytest.mark.parametrize(
    ("name", "pair"),
    [("flagged_fraction", (0.5, 0.2)), ("solution_snr", (3.0, 10.0)), ("noise_mjy", (0.0, 1.0)),
     ("noise_mjy", (5.0, 5.0)), ("flux_ratio", (0.8, 1.2)), ("completeness", (1.0, 0.5)),
     ("noise_mjy", (1.0, float("inf")))],
)  # fmt: skip
def test_limits_that_cannot_be_are_refused_with_the_settings(name, pair):
    with pytest.raises(ValueError, match=name):
        Settings.model_validate({"contimg": {"qa": {name: pair}}})
