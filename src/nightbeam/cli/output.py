"""How every command renders: data to stdout (a table for people, JSON lines for programs), talk to stderr."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import click

from nightbeam.core.settings import Settings, load_settings
from nightbeam.core.times import iso_z

__all__ = ["dry_run_option", "json_option", "plain", "printable", "settings_of", "show", "talk"]

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
    """Print rows (mappings or dataclasses) as JSON lines, or as one table."""
    items = [plain(row) for row in rows]
    if as_json:
        for item in items:
            click.echo(json.dumps(item, allow_nan=False))
        return
    _table(items, title)


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

    table = Table(title=shown(title, "table.title") if title else None)
    names = list(dict.fromkeys(name for item in items for name in item))
    for name in names:
        table.add_column(shown(name.replace("_", " ")), overflow="fold")
    for item in items:
        table.add_row(*(shown(_cell(item.get(name))) for name in names))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)
