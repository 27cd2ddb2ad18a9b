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
