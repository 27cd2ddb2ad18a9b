"""What follows from the logbook's documents, each case worked out by hand."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from nightbeam.core.errors import InputError
from nightbeam.elog import compute
from nightbeam.elog.model import Production, Summary


def test_a_space_in_a_name_is_an_underscore_in_its_id():
    assert compute.experiment_id_of("Sample Delivery System") == "Sample_Delivery_System"


def test_full_width_signs_are_shown_as_people_write_them():
    assert compute.display_name("MFX:GON:TT\uff0eFLTPOS\uff04") == "MFX:GON:TT.FLTPOS$"


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-02-03T04:05:06+00:00", datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("2026-02-03T04:05:06.250000+00:00", datetime(2026, 2, 3, 4, 5, 6, 250000, tzinfo=UTC)),
        ("2026-02-03T04:05:06Z", datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("2026-02-02T20:05:06-08:00", datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("2026-02-03T04:05:06", datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("Feb/03/2026 04:05:06", None),
        ("0001-01-01T00:00:00+23:00", None),
        ("", None),
        (None, None),
        (1770091506, None),
    ],
)
def test_times_of_the_service_are_read(text: Any, when: datetime | None):
    assert compute.parse_time(text) == when


def test_a_question_about_a_time_always_has_a_fraction_and_a_z():
    assert compute.window_time(datetime(2026, 2, 3, tzinfo=UTC)) == "2026-02-03T00:00:00.000000Z"
    pacific = timezone(timedelta(hours=-8))
    assert compute.window_time(datetime(2026, 2, 2, 20, 5, 6, 250000, pacific)) == "2026-02-03T04:05:06.250000Z"


def test_bare_words_of_the_service_are_numbers():
    found = compute.loads(b'{"a": NaN, "b": [Infinity, -Infinity], "c": "\\u0000", "d": 1, "d": 2}')
    assert math.isnan(found["a"])
    assert (found["b"], found["c"], found["d"]) == ([math.inf, -math.inf], "\0", 2)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a": 1', b"\xff\xfe\xfd", b"[" * 100_000, '{"a":', b"nan"])
def test_what_is_no_json_is_an_error_that_shows_its_beginning(body: Any):
    with pytest.raises(InputError, match="no JSON"):
        compute.loads(body)


# -- text and JSON for databases ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("plain", "plain"),
        ("Größe 😀", "Größe 😀"),
        ("a\0b", "a\U000f00000000b"),
        ("\ud83d", "\U000f0000d83d"),
        ("\U000f0000", "\U000f0000\U000f0000"),
        ("\U000f00000000", "\U000f0000\U000f00000000"),
    ],
)
def test_what_databases_refuse_is_escaped_and_nothing_else(text: str, stored: str):
    assert compute.encode_text(text) == stored
    assert compute.decode_text(stored) == text


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({"b": 1, "a": "ö"}, '{"b":1,"a":"ö"}'),
        ([math.nan, math.inf, -math.inf], '[{"$number":"NaN"},{"$number":"Infinity"},{"$number":"-Infinity"}]'),
        ("NaN", '"NaN"'),
        ({"$number": "NaN"}, '{"$$number":"NaN"}'),
        ({"$$number": 1}, '{"$$$number":1}'),
        ({"a\0": "\0"}, '{"a\U000f00000000":"\U000f00000000"}'),
        ("\\u0000", '"\\\\u0000"'),
        (1e308, "1e+308"),
    ],
)
def test_json_for_databases_is_strict_and_comes_back(value: Any, stored: str):
    assert compute.dump_json(value) == stored
    assert json.dumps(compute.load_json(stored)) == json.dumps(value)


def test_a_digest_tells_documents_apart_and_not_the_order_of_their_keys():
    same = [{"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}]
    assert compute.digest(same[0]) == compute.digest(same[1])
    assert compute.canonical(same[1]) == b'{"a":1,"b":{"c":2,"d":3}}'
    others = [1, 1.0, True, "1", None, [], {}, [1], math.nan, "NaN", "\ud83d\ude00", "\U0001f600", -0.0, 0.0]
    assert len({compute.digest({"a": other}) for other in others}) == len(others)


@pytest.mark.parametrize(
    ("value", "whole"),
    [
        (32, 32),
        ("32", 32),
        (" 32 ", 32),
        ("32.0", 32),
        (32.0, 32),
        ("-5", -5),
        (2**63 - 1, 2**63 - 1),
        (2**63, None),
        ("9" * 30, None),
        (1.5, None),
        ("1.5", None),
        (math.nan, None),
        (math.inf, None),
        (True, None),
        ("", None),
        ("r32", None),
        ("٣", None),
        (None, None),
        ([1], None),
    ],
)
def test_whole_numbers_are_recognised(value: Any, whole: int | None):
    assert compute.whole_number(value) == whole


# -- experiments --------------------------------------------------------------------------------------------------


def test_a_summary_is_read():
    document = {
        "_id": "Sample_Delivery_System",
        "name": "Sample Delivery System",
        "params": {"PNR": "L-1"},
        "run_count": 241,
        "last_run": {"num": 245, "begin_time": "2026-02-05T03:10:00.120000+00:00"},
        "totalFiles": 9640,
        "totalDataSize": 18543,
    }
    found = compute.summary_of(document)
    assert (found.experiment_id, found.name, found.instrument) == (
        "Sample_Delivery_System",
        "Sample Delivery System",
        None,
    )
    assert (found.run_count, found.last_run, found.last_run_begin) == (241, 245, "2026-02-05T03:10:00.120000+00:00")
    assert (found.total_files, found.total_gib, found.params) == (9640, 18543.0, {"PNR": "L-1"})
    assert found.document is document
    bare = compute.summary_of({"_id": "a", "name": "a", "params": None, "last_run": None, "description": 5})
    assert bare == Summary("a", "a", document=bare.document)


@pytest.mark.parametrize(
    ("name", "params", "proposal"),
    [
        ("mfx100012325", {"PNR": "L-10001"}, ("25", "L-10001")),
        ("mfx100012325", {"PNR": "L-10001", "run_period": "24"}, ("24", "L-10001")),
        ("amo01509", {"PNR": "015"}, ("09", "015")),
        ("Installation", {"PNR": "L-1"}, None),
        ("Installation", {"PNR": "L-1", "run_period": "25"}, ("25", "L-1")),
        ("mfx100012325", {"PNR": "N/A"}, None),
        ("mfx100012325", {"PNR": ""}, None),
        ("mfx100012325", {}, None),
        ("mfx100012325", None, None),
    ],
)
def test_the_questionnaire_of_an_experiment(name: str, params: Any, proposal: Any):
    document = {"_id": name, "name": name, "params": params}
    assert compute.proposal_of(document) == proposal
    assert compute.proposal_of(compute.summary_of(document)) == proposal


@pytest.mark.parametrize(
    ("contact", "split"),
    [
        ("Jane Doe (jane@example.org)", ("Jane Doe", "jane@example.org")),
        ("Jane (JD) Doe (jane@example.org) ", ("Jane (JD) Doe", "jane@example.org")),
        ("Jane Doe <jane@example.org>", ("Jane Doe", "jane@example.org")),
        ("Jane Doe (SLAC)", ("Jane Doe (SLAC)", None)),
        ("Jane Doe", ("Jane Doe", None)),
        ("jane@example.org", (None, "jane@example.org")),
        ("(jane@example.org)", (None, "jane@example.org")),
        ("Jane Doe (jane@example.org), Bob", ("Jane Doe (jane@example.org), Bob", None)),
        ("", (None, None)),
        ("  ", (None, None)),
        (None, (None, None)),
        (5, (None, None)),
    ],
)
def test_contacts_are_split(contact: Any, split: tuple[str | None, str | None]):
    assert compute.split_contact(contact) == split


def test_secrets_are_left_out_and_nothing_else():
    params = {
        "PNR": "L-1",
        "zoom_meeting_pwd": "x",
        "PASSWORD": "x",
        "passwd": "x",
        "client_secret": "x",
        "api_Token": "x",
        "url": "https://example.org/j?pwd=x&a=1#token=x",
        "plain": "ask jane for the pwd",
        "list": [{"secret": 1, "ok": 2}],
    }
    assert compute.without_secrets(params) == {
        "PNR": "L-1",
        "url": "https://example.org/j?pwd=&a=1#token=",
        "plain": "ask jane for the pwd",
        "list": [{"ok": 2}],
    }


# -- runs ---------------------------------------------------------------------------------------------------------


def test_production_numbers_of_both_spellings():
    new = {
        "DAQ Detector Totals/Events": 36210,
        "DAQ Detector Totals/Damaged": "3",
        "N dropped Shots": 12.0,
        "Prod_start": "2026-02-03 04:20:00",
        "Prod_end": "2026-02-03 04:31:00",
    }
    said = Production(36210, 3, 12, "2026-02-03 04:20:00", "2026-02-03 04:31:00")
    assert compute.production(new) == said
    old = {"DAQ_Detector_Totals/Events": 7, "DAQ_Detector_Totals/Damaged": 0}
    assert compute.production(old) == Production(7, 0)
    assert compute.production({"DAQ Detector Totals/Events": math.nan, "Prod_end": 5}) == Production()
    assert compute.production(None) == Production()


def test_detectors_of_both_spellings():
    params = {
        "DAQ Detectors/MfxEndstation-0|Epix10ka2M-0": True,
        "DAQ_Detectors/Old": True,
        "DAQ Detectors/Off": False,
        "DAQ Detectors/Odd": "true",
        "DAQ Detector Totals/Events": 5,
    }
    assert compute.detectors(params) == {
        "DAQ Detectors/MfxEndstation-0|Epix10ka2M-0": True,
        "DAQ_Detectors/Old": True,
        "DAQ Detectors/Off": False,
        "DAQ Detectors/Odd": False,
    }
    assert compute.detectors([]) == {}


# -- entries ------------------------------------------------------------------------------------------------------

COPY = {"_id": "c", "parent": "e", "relevance_time": "2026-02-03T05:00:00+00:00"}


@pytest.mark.parametrize(
    ("more", "of"),
    [
        ({"deleted_by": "x", "deleted_time": "2026-02-03T05:00:00+00:00"}, "e"),
        ({"deleted_by": "x", "deleted_time": "2026-02-03T05:00:00.000000Z"}, "e"),
        ({"deleted_by": "x", "deleted_time": "2026-02-03T05:00:00.001000+00:00"}, None),
        ({"deleted_by": "x", "deleted_time": None}, None),
        ({"deleted_time": "2026-02-03T05:00:00+00:00"}, None),
        ({}, None),
        ({"deleted_by": "x", "deleted_time": "2026-02-03T05:00:00+00:00", "parent": None}, None),
        ({"deleted_by": "x", "deleted_time": "odd", "relevance_time": "odd"}, "e"),
        ({"deleted_by": "x", "deleted_time": "odd", "relevance_time": "odder"}, None),
    ],
)
def test_an_earlier_version_is_told_from_a_deleted_reply(more: dict[str, Any], of: str | None):
    assert compute.history_of(COPY | more) == of


@pytest.mark.parametrize(
    ("document", "run"),
    [
        ({"run_num": 32}, 32),
        ({"run_num": 32, "content": "Run number 33: Running DARK"}, 32),
        ({"content": "<b>Run number 33: Running</b> DARK"}, 33),
        ({"content": "Run number 33 was bad"}, None),
        ({"content": None}, None),
    ],
)
def test_the_run_that_an_entry_speaks_of(document: dict[str, Any], run: int | None):
    assert compute.run_hint(document) == run


@pytest.mark.parametrize(
    ("content", "title", "text"),
    [
        ("<p>Jet <b>re</b>started</p><p>now</p>", "T", "Jet restarted\nnow"),
        ("<p>Jet</p>", None, "Jet"),
        ("a&nbsp;b &lt;c&gt; &amp; &#956;m &bogus;", "T", "a b <c> & μm &bogus;"),
        ("x < 5 and y > 3", None, "x < 5 and y > 3"),
        ("a<b and c>d", None, "a<b and c>d"),
        ("a &lt; b", None, "a &lt; b"),
        ('before<img src="data:image/png;base64,iVBORw0KGgo+/=" alt="x">after', None, "before\nafter"),
        ("before data:image/png;base64,iVBORw0KGgo= after", None, "before after"),
        ("a<script>alert('<p>')</script>b<STYLE>p {}</Style >c", "T", "a\nb\nc"),
        ("a<!-- <p>hidden</p> -->b", "T", "a\nb"),
        ("a<!-- never closed <p>b</p>", "T", "a\nnever closed\nb"),
        ("<script>never closed", "T", "never closed"),
        ("a<", "T", "a<"),
        ("a<b", "T", "a<b"),
        ("a\0b\x1b[31mc\ud83dd", None, "a b [31mc d"),
        ("e\u0301", None, "\u00e9"),
        ("one\r\ntwo\n\n\nthree\t four", None, "one\ntwo\nthree four"),
        ("&#" + "9" * 5000 + ";x", "T", "x"),
        ("", None, ""),
        (None, "T", ""),
        (5, "T", ""),
        ({"a": 1}, None, ""),
    ],
)
def test_content_as_people_read_it(content: Any, title: Any, text: str):
    assert compute.plain_text(content, title) == text


def test_text_is_cut_where_an_index_would_refuse_it():
    assert compute.plain_text("a " * 200_000) == ("a " * 100_000)
    assert len(compute.plain_text("μ" * 200_000).encode()) == 200_000
    assert len(compute.plain_text("a" + "μ" * 200_000)) == 100_000  # half a character is none


@pytest.mark.parametrize(
    "content",
    [
        "<" * 1_000_000,
        "<a" * 500_000,
        "<" + "a" * 1_000_000,
        "<!--" * 250_000,
        "<script>" * 130_000,
        "<script>" * 60_000 + "</script>",
        "</a" + " " * 1_000_000,
        "&" * 1_000_000,
        "&#" * 500_000,
        "<p " + "a='" * 300_000,
        "<img src='data:image/png;base64," + "iVBORw0KGgo" * 500_000 + "'>",
        "data:" * 200_000,
        "data:a/b" + ";x" * 300_000,
    ],
    ids=lambda text: text[:12],
)
def test_no_entry_takes_long(content: str):
    began = time.process_time()
    compute.plain_text(content, "T")
    assert time.process_time() - began < 3.0  # what grows with the square takes minutes


# -- searching ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "terms"),
    [
        ("jet nozzle", [(("jet",), False), (("nozzle",), False)]),
        ('"jet nozzle"', [(("jet", "nozzle"), False)]),
        ('"jet noz"* x', [(("jet", "noz"), True), (("x",), False)]),
        ("jet*", [(("jet",), True)]),
        ("mfx-r00*", [(("mfx", "r00"), True)]),
        ('"never closed', [(("never", "closed"), False)]),
        ("e\u0301", [(("\u00e9",), False)]),
        ("a_b", [(("a", "b"), False)]),
        ("* \" '' - ", []),
    ],
)
def test_what_a_search_asks_for(asked: str, terms: Any):
    assert compute.search_terms(asked) == terms


def test_a_snippet_shows_the_first_word_looked_for_as_a_whole_word():
    text = "jets " * 100 + "the\njet  nozzle " + "was " * 100
    assert (
        compute.snippet(text, [(("jet", "nozzle"), False)], length=40) == "… jets the jet nozzle was was was was was …"
    )
    assert compute.snippet("short", [(("nosuch",), False)]) == "short"
    assert compute.snippet("x" * 500, [], length=10) == "x" * 10 + " …"
