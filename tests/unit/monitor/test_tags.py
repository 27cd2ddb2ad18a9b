from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser

import pytest

from nightbeam.monitor import tags

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


class _Read(HTMLParser):
    """The text of a piece of HTML, its tags and what they say."""

    def __init__(self, piece: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(piece)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_a_time_is_said_in_utc_for_people_and_for_programs_and_how_long_ago_it_was():
    found = _Read(tags.when(NOW - timedelta(hours=3), NOW))
    assert found.text == "2026-11-21 09:00:00Z 3 h ago"
    assert found.tags[0] == ("time", {"class": "nowrap", "datetime": "2026-11-21T09:00:00Z"})
    assert _Read(tags.when(NOW)).text == "2026-11-21 12:00:00Z"


def test_a_time_in_another_zone_is_shown_in_utc():
    there = (NOW + timedelta(microseconds=999_999)).astimezone(timezone(timedelta(hours=-8)))
    assert _Read(tags.when(there)).text == "2026-11-21 12:00:00Z"


def test_how_long_ago_has_the_time_itself_at_hand():
    found = _Read(tags.since(NOW - timedelta(minutes=5), NOW))
    assert found.text == "5 min ago"
    said = {"class": "nowrap", "datetime": "2026-11-21T11:55:00Z", "title": "2026-11-21 11:55:00Z"}
    assert found.tags == [("time", said)]


def test_no_time_is_a_dash():
    assert _Read(tags.when(None, NOW)).text == _Read(tags.since(None, NOW)).text == "–"


@pytest.mark.parametrize(("value", "word"), [("<script>alert(1)</script>", None), ("failed", "<b onclick=x>")])
def test_a_state_from_a_database_is_text_and_never_html(value, word):
    found = _Read(tags.state(value, word=word))
    assert found.text == (word or value)
    assert {tag for tag, _ in found.tags} <= {"span", "svg", "path", "rect", "circle"}


def test_a_state_has_shape_and_word():
    found = _Read(tags.state("in_progress"))
    assert found.text == "in progress"
    assert ("svg", "mark tone-work") in [(tag, said.get("class")) for tag, said in found.tags]


def test_a_state_that_nobody_foresaw_is_shown_without_judgement():
    found = _Read(tags.state(None))
    assert found.text == "unknown"
    assert ("svg", "mark tone-off") in [(tag, said.get("class")) for tag, said in found.tags]
