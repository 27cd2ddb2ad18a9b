"""From rows to answers: nothing in a row is trusted."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nightbeam.catalog.model import MosaicRow
from nightbeam.monitor import compute


@pytest.mark.parametrize(
    ("written", "period"),
    [
        ("2025", (60676.0, 61041.0)),  # 2025-01-01 is MJD 60676, and 2025 has 365 days
        ("2024-02", (60341.0, 60370.0)),  # 29 days
        ("2025-10-03", (60951.0, 60952.0)),
        ("2025-10-03T12", (60951.5, 60951.5 + 1 / 24)),
        ("2025-10-03T12:30", (60951.5 + 30 / 1440, 60951.5 + 31 / 1440)),
        ("2025-12", (61010.0, 61041.0)),
    ],
)
def test_a_part_of_a_date_is_a_time_from_and_to(written: str, period: tuple[float, float]):
    assert compute.period_of_text(written) == pytest.approx(period, abs=1e-9)


@pytest.mark.parametrize(
    "written", ["3C48", "", "2025-13", "2025-02-30", "0000", "9999", "2025-10-03T25", "-5", "99999"]
)
def test_what_is_no_part_of_a_date_is_a_text(written: str):
    assert compute.period_of_text(written) is None


@pytest.mark.parametrize("value", [None, "x", float("nan"), float("inf"), 1e300, -1e300, True, b"x", 10**400, 1e18])
def test_a_time_that_is_none_is_none(value: object):
    assert compute.instant_of_time(value) is None
    assert compute.instant_of_mjd(value) is None


def test_times_are_aware_and_in_utc():
    assert compute.instant_of_time(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert compute.instant_of_mjd(60951.5) == datetime(2025, 10, 3, 12, tzinfo=UTC)
    assert compute.instant_of_text("2025-10-03T12:00:00+02:00") == datetime(2025, 10, 3, 10, tzinfo=UTC)
    assert compute.instant_of_text("2025-10-03T12:00:00Z") == compute.instant_of_text("2025-10-03T12:00:00")
    assert compute.instant_of_text("yesterday") is None
    assert compute.instant_of_text(5) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1.0, "just now"), (45.0, "45 s ago"), (600.0, "10 min ago"), (7200.0, "2.0 h ago"), (864_000.0, "10 days ago"),
     (-30.0, "30 s ahead of the clock"), (-7200.0, "2.0 h ahead of the clock")],
)  # fmt: skip
def test_an_age_is_said_in_words_also_one_of_the_future(seconds: float, words: str):
    assert compute.age_words(seconds) == words


@pytest.mark.parametrize("written", ["{", "NaN", "[" * 100_000, 5, None, '{"a": 1}', '"3C48"', "[1, null]"])
def test_calibrators_that_are_none_are_none(written: object):
    assert compute.matches_of(written) in (None, [])


def test_calibrators_keep_what_is_a_number():
    found = compute.matches_of('[{"name": "3C48", "ra_deg": "x", "dec_deg": 33.2, "sep_deg": NaN}]')
    assert found is not None
    assert (found[0].name, found[0].ra_deg, found[0].dec_deg, found[0].sep_deg) == ("3C48", None, 33.2, None)


def test_a_name_that_nobody_serves_has_no_address():
    assert compute.qa_url("2025-10-02T00:00:00", "a b.png") == "/api/qa/file/2025-10-02T00%3A00%3A00/a%20b.png"
    for group, name in (("a/b", "c.png"), ("a", "../c.png"), ("..", "c.png"), ("a", "c.fits"), ("", "c.png")):
        assert compute.qa_url(group, name) is None


def test_tiles_are_lines_or_the_list_of_the_older_pipeline():
    assert compute.tiles_of("/a\n/b\n") == ["/a", "/b"]
    assert compute.tiles_of('["/a", "/b"]') == ["/a", "/b"]
    assert compute.tiles_of(None) == []


def test_a_mosaic_is_told_with_its_picture_where_it_has_one():
    empty = dict.fromkeys(MosaicRow.__dataclass_fields__)
    row = MosaicRow(
        **(
            empty
            | {"id": 1, "name": "a b", "status": "built", "tiles": "", "mid_mjd": 60951.0, "files": '{"png": "/x"}'}
        )
    )
    found = compute.mosaic_of(row)
    assert (found.png_url, found.start, found.mid_mjd) == ("/api/mosaics/a%20b/png", None, 60951.0)
