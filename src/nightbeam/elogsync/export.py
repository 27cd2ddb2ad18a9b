"""Tables and views of the mirror as CSV, JSON or lines of JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TextIO, get_args

from nightbeam.elog.compute import dump_json, encode_text

__all__ = ["FORMATS", "Format", "write_rows"]

Format = Literal["csv", "json", "ndjson"]
FORMATS: tuple[Format, ...] = get_args(Format)


def write_rows(rows: Iterable[Mapping[str, Any]], out: TextIO, *, form: Format) -> int:
    """Write rows as they come, holding one at a time; returns how many.

    JSON is strict: what no other program could read (NaN, lone surrogates, NUL) is written as in the database. In CSV,
    lists and objects are JSON, and no value is empty text.

    Parameters
    ----------
    rows
        All with the same keys.
    out
        Text, opened with ``newline=""`` for CSV.
    form
        ``csv``, ``json`` (one list) or ``ndjson`` (one object a line).
    """
    return _csv(rows, out) if form == "csv" else _json(rows, out, form == "ndjson")


def _csv(rows: Iterable[Mapping[str, Any]], out: TextIO) -> int:
    writer, count = csv.writer(out), 0
    for row in rows:
        if not count:
            writer.writerow(row)
        writer.writerow([_cell(value) for value in row.values()])
        count += 1
    return count


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return dump_json(value)
    return encode_text(value) if isinstance(value, str) else value


def _json(rows: Iterable[Mapping[str, Any]], out: TextIO, lines: bool) -> int:
    count = 0
    for row in rows:
        out.write("" if lines else "[\n" if not count else ",\n")
        out.write(dump_json(dict(row)))
        out.write("\n" if lines else "")
        count += 1
    if not lines:
        out.write("\n]\n" if count else "[]\n")
    return count
