"""How every command renders: data to stdout (a table for people, JSON lines for programs), talk to stderr."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from nightbeam.core.settings import Settings, load_settings
from nightbeam.core.times import iso_z

__all__ = ["dry_run_option", "json_option", "plain", "printable", "settings_of", "show", "talk"]

#: So many times as wide as the terminal, with a line for each word: such a table can be neither read nor copied from.
_TOO_WIDE: Final = 1.5

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """Give a command ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")(function)


def dry_run_option(function: F) -> F:
    """Give a command ``--dry-run``."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")(function)


def settings_of(ctx: click.Context, **overrides: Any) -> Settings:
    """Return the resolved settings; keywords name settings with ``__`` for the dot."""
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_settings(config=(ctx.obj or {}).get("config"), overrides=dotted).resolved()


def show(rows: Iterable[Any], *, as_json: bool = False, title: str = "") -> None:
    """Print rows (mappings or dataclasses) as JSON lines, or as one table.

    Rows whose words are much too long for the terminal are printed below each other, a value a line, so that what one
    has to copy is not broken. Where there is no row, that is said on stderr.
    """
    items = [plain(row) for row in rows]
    if as_json:
        for item in items:
            click.echo(json.dumps(item, allow_nan=False))
    elif items:
        _table(items, title)
    else:
        talk(f"{title or 'found'}: none")


def talk(message: str) -> None:
    """Say something to the person at the terminal."""
    click.echo(printable(message, keep="\n\t"), err=True)


def printable(text: str, *, keep: str = "\n") -> str:
    """Return ``text`` with an escape in place of every character that would do something rather than be seen.

    Names and serials come from files that anybody may have written, and ESC begins an order to the terminal.
    Bytes of a file's name that are no text are escaped as well.

    Parameters
    ----------
    text
        Any text.
    keep
        Characters that are meant, such as line breaks.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def plain(value: Any) -> Any:
    """Return ``value`` as JSON types: ISO times with Z, paths as text, NaN as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, datetime):
        return iso_z(value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Iterable) and not isinstance(value, Path):
        return [plain(v) for v in value]
    if hasattr(value, "item"):  # a numpy scalar
        return plain(value.item())
    return str(value)


def _table(items: list[Any], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()

    def shown(text: str, style: str = "") -> Text:
        # As Text: in a str, rich takes [brackets] for orders. And what the terminal has no letters for is no error.
        seen = printable(text).encode(console.encoding, "backslashreplace").decode(console.encoding)
        return Text(seen, style=style)

    names = list(dict.fromkeys(name for item in items for name in item))
    heads = {name: shown(name.replace("_", " ")) for name in names}
    cells = [{name: shown(_cell(item.get(name))) for name in names} for item in items]
    if len(names) > 2 and _width(heads, cells) > _TOO_WIDE * console.width:
        left = max(head.cell_len for head in heads.values())
        for number, row in enumerate(cells):
            head = shown(f"{title} {number + 1} of {len(cells)}".strip(), "table.title")
            console.print(head, soft_wrap=True)
            for name in names:
                console.print(
                    Text.assemble("  ", heads[name], " " * (left - heads[name].cell_len + 2), row[name]), soft_wrap=True
                )
        return
    table = Table(title=shown(title, "table.title") if title else None)
    for name in names:
        table.add_column(heads[name], overflow="fold")
    for row in cells:
        table.add_row(*row.values())
    console.print(table)


def _width(heads: Mapping[str, Any], cells: list[dict[str, Any]]) -> int:
    """Return how wide a table is in which no word is broken; paths, ids and times are words."""
    rows = [heads, *cells]
    return sum(3 + max(max(map(len, row[name].plain.split()), default=0) for row in rows) for name in heads)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(one)}" for name, one in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "-"
    return str(value)
