"""Tables and views of the mirror as CSV, JSON or lines of JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TextIO, get_args

from nightbeam.catalog.elog_schema import VIEWS, ElogBase
from nightbeam.elog.compute import dump_json, encode_text

__all__ = ["FORMATS", "Format", "columns_of", "write_rows"]

Format = Literal["csv", "json", "ndjson"]
FORMATS: tuple[Format, ...] = get_args(Format)

#: With one of these a spreadsheet takes a text for a formula (OWASP, "CSV Injection").
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def columns_of(table: str) -> tuple[str, ...]:
    """Return the keys of the rows that `Logbook.rows` yields of a table or view; none of one that there is not."""
    found = ElogBase.metadata.tables.get(table)
    if found is None:
        return next((tuple(view.columns) for view in VIEWS if view.name.lower() == table.lower()), ())
    columns = tuple(column.name for column in found.columns)
    return ("experiment", *columns) if "experiment_id" in columns and table != "experiments" else columns


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    out: TextIO,
    *,
    form: Format,
    columns: Iterable[str] = (),
    spreadsheet: bool = False,
) -> int:
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
    columns
        The keys, for the first line of CSV where there are no rows.
    spreadsheet
        In CSV, an apostrophe before every text that a spreadsheet would take for a formula.
    """
    return _csv(rows, out, tuple(columns), spreadsheet) if form == "csv" else _json(rows, out, form == "ndjson")


def _csv(rows: Iterable[Mapping[str, Any]], out: TextIO, columns: tuple[str, ...], spreadsheet: bool) -> int:
    writer, count = csv.writer(out), 0
    for row in rows:
        if not count:
            writer.writerow(row)
        writer.writerow([_cell(value, spreadsheet) for value in row.values()])
        count += 1
    if not count and columns:
        writer.writerow(columns)
    return count


def _cell(value: Any, spreadsheet: bool) -> Any:
    if isinstance(value, dict | list):
        return dump_json(value)
    if not isinstance(value, str):
        return value
    return ("'" if spreadsheet and value.startswith(_FORMULA) else "") + encode_text(value)


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
