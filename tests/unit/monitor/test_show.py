"""Words, marks and drawings, worked out by hand."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.catalog import Stage, State
from nightbeam.monitor import show, tags
from nightbeam.monitor.model import GroupFile, Standing
from nightbeam.monitor.show import Tone

NOW = datetime(2026, 11, 21, 6, 15, 2, tzinfo=UTC)
STYLE = (Path(show.__file__).parent / "static" / "style.css").read_text()


# -- states -------------------------------------------------------------------------------------------------------


def test_every_state_of_a_group_and_a_system_has_a_tone_of_its_own_mind():
    foreseen = [
        *State,
        *(set(Stage) - {Stage.FRESH, Stage.RESUMING}),
        *(set(Standing) - {Standing.OFF, Standing.UNKNOWN}),
    ]
    assert [s for s in foreseen if show.mark(s.value).tone is Tone.OFF] == []
    assert show.mark("failed").tone is Tone.BAD
    assert show.mark("completed").tone is Tone.GOOD


def test_a_state_that_nobody_foresaw_is_shown_by_its_name_and_not_judged():
    assert show.mark("half_baked") == show.Mark("half baked", Tone.OFF)
    assert show.mark(None) == show.Mark("unknown", Tone.OFF)


def test_what_is_bad_comes_first_and_equals_stay_in_their_order():
    states = ["completed", "pending", "failed", "in_progress", "waiting_for_gains", "lost"]
    found = show.worst_first(states, lambda s: show.mark(s).tone)
    assert found == ["failed", "lost", "waiting_for_gains", "in_progress", "pending", "completed"]


@pytest.mark.parametrize("tone", [tone for tone in Tone if tone is not Tone.OFF])
def test_every_tone_has_a_shape_of_its_own_in_its_own_colour(tone):
    assert f".mark.tone-{tone} .body" in STYLE
    others = {str(tags.icon(other)).partition(">")[2] for other in Tone if other is not tone}
    assert str(tags.icon(tone)).partition(">")[2] not in others


def _luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _colours() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    return {
        name: dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", text))
        for name, text in (("light", light), ("dark", dark))
    }


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_can_be_read_on_every_ground(mode):
    c = _colours()[mode]
    grounds = ("ground", "panel", "shade", "bad-ground", "warn-ground")
    pairs = [(text, ground) for text in ("ink", "soft", "link") for ground in grounds]
    assert {p: _contrast(c[p[0]], c[p[1]]) for p in pairs if _contrast(c[p[0]], c[p[1]]) < 4.5} == {}
    assert _contrast(c["on-tone"], c["work"]) >= 4.5, "the button"


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_shapes_stand_out_from_their_ground(mode):
    c = _colours()[mode]
    # What is doubtful is orange with an outline of ink, and what waits is a ring with a hand of ink.
    tones = [name for name in ("bad", "work", "good", "off") if _contrast(c[name], c["panel"]) < 3.0]
    assert tones == []


def test_the_colours_of_states_by_day_are_those_of_okabe_and_ito():
    light = _colours()["light"]
    # Okabe and Ito, Color Universal Design (2008): vermilion, orange, blue, reddish purple, bluish green.
    assert [light[n] for n in ("bad", "warn", "work", "wait", "good")] == [
        "#d55e00", "#e69f00", "#0072b2", "#cc79a7", "#009e73",
    ]  # fmt: skip


# -- times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "now"), (0.4, "now"), (1, "1 s ago"), (59, "59 s ago"), (90, "2 min ago"), (600, "10 min ago"),
        (5399, "90 min ago"), (5400, "2 h ago"), (10800, "3 h ago"), (172799, "48 h ago"), (172800, "2 d ago"),
        (-300, "in 5 min"), (-7200, "in 2 h"),
    ],
)  # fmt: skip
def test_how_long_ago_is_said_in_one_unit(seconds, words):
    assert show.ago(NOW - timedelta(seconds=seconds), NOW) == words


def test_what_never_was_is_never_ago():
    assert show.ago(None, NOW) == "never"


@given(st.timedeltas(timedelta(seconds=1), timedelta(days=20000)))
def test_what_was_long_ago_is_never_said_to_come(span):
    words = show.ago(datetime(2500, 1, 1, tzinfo=UTC) - span, datetime(2500, 1, 1, tzinfo=UTC))
    value, unit, _ = words.split()
    size = {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]
    assert abs(float(value) * size - span.total_seconds()) <= size / 2 + 1e-6


def test_times_are_shown_in_utc_wherever_they_were_made():
    east = datetime(2026, 11, 21, 4, 15, 2, tzinfo=timezone(timedelta(hours=1)))
    assert show.utc(east) == "2026-11-21 03:15:02Z"
    assert show.iso(east) == "2026-11-21T03:15:02Z"
    assert show.instant("2026-11-21T04:15:02+01:00") == east
    assert show.instant("2026-11-21T03:15:02") == east
    assert show.instant(0.0) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("odd", [None, "", "yesterday", True, [], 1e300, float("nan")])
def test_what_is_no_time_is_none(odd):
    assert show.instant(odd) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.42, "0.4 s"), (9.96, "10 s"), (42.4, "42 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (272, "4 min 32 s"),
        (3600, "1 h 00 min"), (11100, "3 h 05 min"), (12 * 86400 + 4 * 3600, "12 d 4 h"), (None, "–"),
        (-90, "-1 min 30 s"),
    ],
)  # fmt: skip
def test_a_span_has_at_most_two_units(seconds, words):
    assert show.duration(seconds) == words


# -- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jy", "words"),
    [
        (16.28, "16.3 Jy"), (0.0131, "13.1 mJy"), (0.0004, "400 µJy"), (0.0, "0.00 Jy"), (None, "–"),
        (float("nan"), "–"), (-0.002, "-2.00 mJy"),
    ],
)  # fmt: skip
def test_a_flux_density_is_in_the_unit_that_suits_it(jy, words):
    assert show.jansky(jy) == words


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (145_348_600, "145 MB"), (2_330_000_000, "2.33 GB"), (None, "–"),
    ],
)  # fmt: skip
def test_sizes_are_decimal(n, words):
    assert show.byte_size(n) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1234.6, "1235"), (12.345, "12.3"), (0.5, "0.500"), (0.0, "0.00"), (3.2e-7, "3.20e-07"), (5.4e9, "5.40e+09"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_that_count(value, words):
    assert show.number(value) == words


def test_places_on_the_sky_are_written_as_astronomers_do():
    # 3C48 is at 24.4221, +33.1597: 01h37m41.3s +33d09m35s (NED).
    assert (show.hms(24.4221), show.dms(33.1597)) == ("01h37m41s", "+33°10′")
    assert (show.hms(359.9999), show.dms(-0.001), show.dms(-16.5)) == ("00h00m00s", "+00°00′", "-16°30′")


def test_a_beam_says_what_is_known_of_it():
    assert show.beam(31.2, 28.0, 12.4) == "31.2″ × 28.0″ @ 12°"
    assert show.beam(31.2, None, None) == "31.2″"
    assert show.beam(None, 28.0, 12.0) == "–"


@pytest.mark.parametrize(
    ("value", "words"), [(25984, "25,984"), (0.1226, "0.123"), (True, "yes"), (None, "–"), ("x" * 400, "x" * 299 + "…")]
)  # fmt: skip
def test_whatever_a_system_says_of_itself_is_short_text(value, words):
    assert show.fact(value) == words


# -- arrival ------------------------------------------------------------------------------------------------------


def test_subbands_are_counted_from_the_first_that_came():
    at = NOW - timedelta(hours=1)
    files = [
        GroupFile(subband=0, path="/a", arrived_at=at + timedelta(seconds=4)),
        GroupFile(subband=1, path="/b", arrived_at=at, duplicates=["/b2"]),
        GroupFile(subband=2, missing=True),
        GroupFile(subband=3, path="/d", arrived_at=at + timedelta(hours=1), late=True),
    ]
    assert [(c.subband, c.state, c.after_s) for c in show.arrival_cells(files)] == [
        (0, "arrived", 4.0), (1, "duplicate", 0.0), (2, "missing", None), (3, "late", 3600.0),
    ]  # fmt: skip


# -- drawings -----------------------------------------------------------------------------------------------------


def test_stages_are_as_wide_as_they_took_and_the_next_group_is_marked():
    bar = show.stage_bar([("convert", 50.0), ("image", 100.0), ("qa", None)], cadence_s=200.0, width=1000.0)
    assert [(s.name, s.x, s.width) for s in bar.spans] == [("convert", 0.0, 250.0), ("image", 250.0, 500.0)]
    assert (bar.total_s, bar.cadence_x) == (150.0, 1000.0)


def test_stages_that_take_longer_than_the_sky_show_by_how_much():
    bar = show.stage_bar([("image", 400.0)], cadence_s=300.0, width=1000.0)
    assert (bar.spans[0].width, bar.cadence_x) == (1000.0, 750.0)


def _window(name, start, end, dec=33.2):
    return {"name": name, "tone": "good", "title": name, "start_mjd": start, "end_mjd": end, "dec_deg": dec}


def test_windows_stand_where_their_times_are_and_the_present_where_it_is():
    line = show.time_line(
        [_window("a", 100.25, 100.5)], [], start_mjd=100.0, end_mjd=101.0, now_mjd=100.75, width=1000.0, left=0.0
    )
    (bar,) = line.lanes[0].bars
    assert (bar.x, bar.width, line.now_x, line.lanes[0].label) == (250.0, 250.0, 750.0, "+33.2°")


def test_windows_at_one_time_stand_below_each_other_and_one_after_another_in_a_row():
    windows = [_window("a", 100.0, 100.5), _window("b", 100.2, 100.7), _window("c", 100.5, 100.9)]
    (lane,) = show.time_line(windows, [], start_mjd=100.0, end_mjd=101.0, now_mjd=200.0).lanes
    y = {bar.name: bar.y for bar in lane.bars}
    assert y["a"] == y["c"] < y["b"]


def test_strips_apart_in_declination_have_lanes_of_their_own_and_groups_are_dots_in_theirs():
    windows = [
        _window("north", 100.0, 100.5),
        _window("south", 100.0, 100.5, dec=16.1),
        _window("any", 100.0, 100.5, dec=None),
    ]
    groups = [{"name": "g", "mjd": 100.5, "dec_deg": 16.3}, {"name": "before", "mjd": 99.0, "dec_deg": 16.3}]
    line = show.time_line(windows, groups, start_mjd=100.0, end_mjd=101.0, now_mjd=200.0, left=0.0)
    assert [lane.label for lane in line.lanes] == ["+16.1°", "+33.2°", "any Dec"]
    assert [[d.label for d in lane.dots] for lane in line.lanes] == [["g"], [], []]
    assert line.now_x is None


def test_a_window_is_cut_at_the_edges_and_says_so():
    (lane,) = show.time_line(
        [_window("a", 90.0, 110.0)], [], start_mjd=100.0, end_mjd=101.0, now_mjd=100.0, width=1000.0, left=0.0
    ).lanes
    (bar,) = lane.bars
    assert (bar.x, bar.width, bar.from_before, bar.to_after) == (0.0, 1000.0, True, True)


def test_ticks_are_at_whole_hours_or_days():
    line = show.time_line([], [], start_mjd=100.01, end_mjd=100.51, now_mjd=0.0)
    # MJD 100 is 1859-02-25; 0.5 d are 12 h: one tick every two hours.
    assert [t.label for t in line.ticks] == ["02:00", "04:00", "06:00", "08:00", "10:00", "12:00"]
    days = show.time_line([], [], start_mjd=100.0, end_mjd=107.0, now_mjd=0.0)
    assert [t.label for t in days.ticks][:2] == ["02-25", "02-26"]


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.one_of(st.none(), st.floats(-90, 90))), max_size=12))
def test_no_two_windows_of_a_strip_lie_on_each_other_and_none_outside(raw):
    windows = [_window(str(k), min(a, b), max(a, b), dec) for k, (a, b, dec) in enumerate(raw)]
    line = show.time_line(windows, [], start_mjd=0.0, end_mjd=10.0, now_mjd=5.0, left=70.0)
    drawn = [bar.name for lane in line.lanes for bar in lane.bars]
    assert sorted(drawn) == sorted(w["name"] for w in windows)
    by_name = {w["name"]: w for w in windows}
    for lane in line.lanes:
        assert all(70.0 <= bar.x <= line.width for bar in lane.bars)
        rows: dict[float, list] = {}
        for bar in lane.bars:
            rows.setdefault(bar.y, []).append(by_name[bar.name])
        for row in rows.values():
            row.sort(key=lambda w: (w["start_mjd"], w["end_mjd"]))
            assert all(a["end_mjd"] <= b["start_mjd"] for a, b in itertools.pairwise(row))
