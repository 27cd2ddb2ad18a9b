import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nightbeam.mosaic.compute import Block, BlockFigures, CatalogueFigures, Combination, measure_block
from nightbeam.mosaic.judging import judge_mosaic, judge_tiles
from nightbeam.mosaic.model import MosaicOptions, Reason, ReasonCode, Tile, TileFacts


def tile(name, ra, dec=16.0, *, degrees=2.0, **more):
    known = {
        "width": 256,
        "height": 256,
        "cell_arcsec": degrees * 3600.0 / 256,
        "beam_major_arcsec": 200.0,
        "beam_minor_arcsec": 160.0,
        "beam_pa_deg": 0.0,
        "noise_jy": 2e-3,
        "dynamic_range": 100.0,
        "freq_hz": 1.4e9,
        "calibration_set": "A",
    }
    return Tile(path=Path(f"/t/{name}.fits"), group_id=name, ra_deg=ra, dec_deg=dec, **(known | more))


# -- verdicts ------------------------------------------------------------------------------------------------------

GOOD = [tile(f"g{k}", 10.0 + 1.3 * k) for k in range(6)]


def verdict_on(odd, **options):
    facts = [TileFacts(tile=t) for t in [*GOOD, *([] if odd is None else [odd])]]
    found = judge_tiles(facts, MosaicOptions(**options))
    assert all(v.accepted for v in found[:6]), [v.reasons for v in found]
    return found[-1]


def odd(**more):
    return tile("odd", 17.8, **more)


def test_tiles_that_are_alike_are_all_accepted():
    assert verdict_on(odd()).reasons == ()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"noise_jy": 11e-3}, "noise", r"11 mJy/beam is 5.5 times the median of 7 tiles \(2 mJy/beam\), at most 5"),
        ({"noise_jy": math.nan}, "noise", "cannot be weighed"),
        ({"noise_jy": None}, "noise", "cannot be weighed"),
        ({"dynamic_range": 4.2}, "dynamic_range", "4.20 times its noise, at least 5"),
        ({"beam_major_arcsec": 250.0}, "beam", r"250.0 x 160.0 arcsec is 25 % .*\(200.0 x 160.0\), at most 20 %"),
        ({"beam_minor_arcsec": 120.0}, "beam", "is 25 % from"),
        ({"freq_hz": 1.46e9}, "frequency", r"1460.0 MHz is 60.0 MHz .*\(1400.0 MHz\), at most 50 MHz"),
        ({"freq_hz": None}, "frequency", "not known"),
        ({"calibration_set": None}, "calibration", "names no calibration set, 6 other tiles"),
        ({"cal_borrowed": True, "cal_age_days": 3.5}, "calibration", "3.50 days old, at most 1 days"),
        ({"cal_borrowed": True}, "calibration", "of unknown age"),
        ({"cell_arcsec": 28.125 / 1.3}, "pixel_size", r"21.63 arcsec are 23 % .*\(28.12 arcsec\), at most 20 %"),
        ({"pbcor": False}, "not_pbcor", "not corrected for the primary beam"),
        ({"dec_deg": 20.0}, "strip", "Dec .20.000 deg it does not lie in the strip of the 6 others"),
    ],
)
def test_a_tile_is_rejected_with_what_was_found_and_what_is_wanted(change, code, said):
    found = verdict_on(replace(odd(), **change))
    assert not found.accepted
    assert [str(r.code) for r in found.reasons] == [code]
    assert re.search(said, found.reasons[0].text), found.reasons[0].text


def test_a_tile_has_every_reason_that_there_is_against_it():
    found = verdict_on(odd(noise_jy=0.1, dynamic_range=1.0, freq_hz=1.6e9))
    assert {str(r.code) for r in found.reasons} == {"noise", "dynamic_range", "frequency"}


def test_a_tile_just_inside_every_limit_is_accepted():
    change = {"noise_jy": 9.9e-3, "dynamic_range": 5.0, "beam_major_arcsec": 239.0, "freq_hz": 1.449e9}
    assert verdict_on(odd(**change, cal_borrowed=True, cal_age_days=0.9, calibration_set="B")).accepted


def test_of_two_tiles_the_noisier_is_compared_with_the_other():
    facts = [TileFacts(tile=GOOD[0]), TileFacts(tile=replace(GOOD[1], noise_jy=1.0))]
    assert [v.accepted for v in judge_tiles(facts, MosaicOptions())] == [True, False]


def test_another_calibration_set_counts_only_when_one_is_wanted():
    assert verdict_on(odd(calibration_set="B")).accepted
    (reason,) = verdict_on(odd(calibration_set="B"), same_calibration=True).reasons
    assert reason.code is ReasonCode.CALIBRATION


def test_where_no_tile_names_a_calibration_set_none_is_missed():
    facts = [TileFacts(tile=replace(t, calibration_set=None)) for t in GOOD]
    assert all(v.accepted for v in judge_tiles(facts, MosaicOptions()))


def test_an_uncorrected_tile_is_welcome_when_asked_for():
    assert verdict_on(odd(pbcor=False), include_unpbcor=True).accepted


def test_the_same_path_and_the_same_observation_count_once():
    facts = [TileFacts(tile=t) for t in [*GOOD, GOOD[0], replace(GOOD[1], path=Path("/t/again.fits"))]]
    found = judge_tiles(facts, MosaicOptions())
    assert [v.accepted for v in found] == [True] * 6 + [False] * 2
    assert [str(v.reasons[0].code) for v in found[6:]] == ["duplicate", "duplicate"]


def test_an_image_that_cannot_be_read_hides_no_other_of_its_observation():
    broken = TileFacts(tile=GOOD[0], problems=(Reason(ReasonCode.UNREADABLE, "cut short"),))
    again = TileFacts(tile=replace(GOOD[0], path=Path("/t/again.fits")))
    assert [v.accepted for v in judge_tiles([broken, again], MosaicOptions())] == [False, True]


def test_a_tile_that_cannot_be_read_does_not_shift_the_medians():
    broken = TileFacts(tile=odd(noise_jy=1e3), problems=(Reason(ReasonCode.UNREADABLE, "cut short"),))
    found = judge_tiles([*(TileFacts(tile=t) for t in GOOD[-2:]), broken], MosaicOptions())
    assert [v.accepted for v in found] == [True, True, False]
    assert [str(r.code) for r in found[2].reasons] == ["unreadable"]


def test_astrometry_counts_only_beyond_its_own_error_and_with_enough_sources():
    def judged(offset, error, sources):
        facts = TileFacts(tile=GOOD[0], sources=sources, astrometry_arcsec=offset, astrometry_error_arcsec=error)
        return judge_tiles([facts], MosaicOptions())[0]

    assert [str(r.code) for r in judged(5.0, 0.5, 3).reasons] == ["astrometry"]
    assert "5.00 +- 0.50 arcsec" in judged(5.0, 0.5, 3).reasons[0].text
    assert judged(5.0, 1.1, 3).accepted
    assert judged(5.0, 0.5, 2).accepted


def test_a_plain_mean_refuses_tiles_with_other_centres():
    facts = [TileFacts(tile=t) for t in (GOOD[0], replace(GOOD[0], path=Path("/t/2"), group_id="2"), GOOD[1])]
    found = judge_tiles(facts, MosaicOptions(method="mean"))
    assert [v.accepted for v in found] == [True, True, False]
    assert found[2].reasons[0].code is ReasonCode.NOT_ALIGNED


# -- checks --------------------------------------------------------------------------------------------------------


def measured(image, weight, **more):
    found = Combination(np.asarray(image, np.float32), np.asarray(weight, np.float32))
    return measure_block(found, Block(100, 200, 100 + image.shape[1], 200 + image.shape[0]), part_px=64, **more)


def checks(blocks, pixels, against=None, **options):
    return {c.name: c for c in judge_mosaic(blocks, pixels, against, MosaicOptions(**options))}


def noise_block(scale=1.0, holes=0):
    image = np.random.default_rng(2).normal(0.0, scale, (64, 64))
    image.flat[:holes] = -10.0
    return measured(image * 1e-3, np.full((64, 64), 1e6))


def test_a_sound_mosaic_passes_and_what_cannot_be_judged_is_not_passed():
    found = checks([noise_block(), noise_block()], 2 * 64 * 64)
    assert all(found[n].passed for n in ("coverage", "negative_pixels", "rms_variation", "noise_jy"))
    assert found["flux_ratio"].passed is None
    assert "no catalogue" in found["flux_ratio"].text


def test_the_variation_of_the_noise_does_not_grow_with_the_number_of_parts():
    rng = np.random.default_rng(0)

    def variation(ratios):
        block = BlockFigures(1, 0, 1.0, 0, 0, 1e-3, np.ones(1, np.float32), tuple(ratios))
        return checks([block], 1)["rms_variation"]

    # parts of a hundred beams each know their noise to a tenth: 1.645 times that either way are a twentieth of them
    many = variation(rng.normal(1.0, 0.12, 2000))
    assert many.value == pytest.approx((1 + 1.645 * 0.12) / (1 - 1.645 * 0.12), rel=0.03)
    assert many.passed
    assert "in nine tenths of 2000 parts" in many.text
    # a tenth of the mosaic that is noisier is none of chance
    assert not variation(np.append(rng.normal(1.0, 0.05, 900), rng.normal(2.5, 0.1, 100))).passed
    # of few parts each counts
    assert variation([1.0, 1.1, 2.2]).value == pytest.approx(2.2)


def test_each_fault_fails_its_own_check():
    assert checks([noise_block()], 11 * 64 * 64)["coverage"].passed is False
    assert checks([noise_block(), noise_block(2.2)], 2 * 64 * 64)["rms_variation"].passed is False
    assert checks([noise_block(holes=100)], 64 * 64)["negative_pixels"].passed is False
    assert checks([noise_block()], 64 * 64, max_noise_jy=5e-4)["noise_jy"].passed is False


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, None),
        ({"flux_ratio": 0.7}, "flux_ratio"),
        ({"flux_ratio": 1.3}, "flux_ratio"),
        ({"offset_arcsec": 4.0}, "astrometry_arcsec"),
        ({"found": 5}, "completeness"),
    ],
)
def test_the_catalogue_judges_flux_place_and_completeness(change, fails):
    good = CatalogueFigures(looked_for=10, found=10, flux_ratio=1.0, offset_arcsec=0.5, offset_error_arcsec=0.2)
    found = checks([noise_block()], 64 * 64, replace(good, **change))
    assert [n for n, c in found.items() if c.passed is False] == ([fails] if fails else [])


def test_too_few_sources_judge_nothing():
    few = CatalogueFigures(looked_for=2, found=2, flux_ratio=0.1, offset_arcsec=9.0, offset_error_arcsec=0.1)
    assert checks([noise_block()], 64 * 64, few)["flux_ratio"].passed is None
