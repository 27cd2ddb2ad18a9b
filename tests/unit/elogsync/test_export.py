"""Rows for other programs."""

from __future__ import annotations

import csv
import io
import json

import pytest

from nightbeam.elogsync.export import write_rows

ROWS = [
    {"id": 1, "text": 'a "quoted", line\nand é 🎈', "tags": ["a", "b"], "number": 1.5, "none": None},
    {"id": 2, "text": "nul\0", "tags": [], "number": float("nan"), "none": None},
]


def written(form, rows=ROWS):
    out = io.StringIO(newline="")
    assert write_rows(iter(rows), out, form=form) == len(rows)
    return out.getvalue()


def test_csv_is_read_back_by_a_csv_reader():
    found = list(csv.DictReader(io.StringIO(written("csv"), newline="")))
    assert found[0] == {"id": "1", "text": ROWS[0]["text"], "tags": '["a","b"]', "number": "1.5", "none": ""}
    assert "\0" not in found[1]["text"]


@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_json_is_strict_and_has_every_row(form):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = written(form)
    texts = [text] if form == "json" else text.splitlines()
    found = [json.loads(one, parse_constant=refuse) for one in texts]
    rows = found[0] if form == "json" else found
    assert rows[0] == ROWS[0]
    assert rows[1]["number"] == {"$number": "NaN"}


def test_no_rows_are_an_empty_list_and_no_lines():
    assert written("json", []) == "[]\n"
    assert written("ndjson", []) == ""
    assert written("csv", []) == ""
    out = io.StringIO(newline="")
    assert write_rows([], out, form="csv", columns=("a", "b")) == 0
    assert out.getvalue() == "a,b\r\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_for_a_spreadsheet_text_that_looks_like_a_formula_is_marked(text):
    for asked, seen in ((True, f"'{text}"), (False, text)):
        out = io.StringIO(newline="")
        write_rows([{"text": text, "number": -1.5, "plain": "a=1"}], out, form="csv", spreadsheet=asked)
        (found,) = csv.DictReader(io.StringIO(out.getvalue(), newline=""))
        assert found == {"text": seen, "number": "-1.5", "plain": "a=1"}
