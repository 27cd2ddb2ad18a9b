import math

import pytest

from nightbeam.demo.compute import check_sources, flux_at, judge_sources, sources_in_reach
from nightbeam.demo.model import SourceCheck
from nightbeam.imaging import SourceFit
from nightbeam.simulate import SkySource


def source(name="a", ra=10.0, dec=33.0, flux=1.0, index=0.0):
    return SkySource(name, ra, dec, flux, index)


def fit(**values):
    return SourceFit(**{"name": "a", "ra_deg": 10.0, "dec_deg": 33.0, "found": True, "offset_beams": 0.0} | values)


def checks(fits, sources, noise=0.001):
    return check_sources(fits, sources, freq_hz=1.4e9, reference_hz=1.4e9, noise_jy=noise)


def test_a_steep_source_is_weaker_at_twice_the_frequency():
    assert flux_at(source(index=-1.0), 2.8e9, reference_hz=1.4e9) == pytest.approx(0.5)


def test_only_sources_inside_the_image_are_asked_for_nearest_first():
    far, near, nearest = source("far", dec=34.0), source("near", dec=33.4), source("nearest", dec=32.9)
    found = sources_in_reach([far, near, nearest], ra_deg=10.0, dec_deg=33.0, radius_deg=0.5)
    assert [s.name for s in found] == ["nearest", "near"]


def test_a_source_in_the_beams_edge_may_be_too_faint_to_be_certain():
    assert len(checks([fit(pb=0.5, peak_jy=0.04)], [source(flux=0.041)])) == 1
    assert not checks([fit(pb=0.4, peak_jy=0.04)], [source(flux=0.041)])
    assert not checks([fit(pb=math.nan, peak_jy=0.04)], [source(flux=0.041)])


def test_an_image_that_agrees_has_no_problem():
    assert judge_sources(checks([fit(peak_jy=0.99)], [source()])) == ()


@pytest.mark.parametrize(
    ("check", "word"),
    [
        (SourceCheck("a", 1.0, False, math.nan, math.nan), "not in the image"),
        (SourceCheck("a", 1.0, True, 1.0, 0.8), "0.80 beams"),
        (SourceCheck("a", 1.0, True, 0.9, 0.0), "0.900 of the truth"),
    ],
)
def test_what_disagrees_with_the_truth_is_said(check, word):
    assert any(word in problem for problem in judge_sources([check]))


def test_an_image_with_nothing_to_check_proves_nothing():
    assert judge_sources([])


def test_around_a_calibrator_the_others_may_lose_some_flux_but_not_the_calibrator():
    weak, strong = SourceCheck("a", 1.0, True, 0.92, 0.0), SourceCheck("3C48", 16.5, True, 1.0, 0.0)
    assert judge_sources([weak, strong], calibrator="3C48") == ()
    assert judge_sources([weak, strong])
    assert judge_sources([SourceCheck("3C48", 16.5, True, 0.95, 0.0)], calibrator="3C48")
