"""Steps of a migration that find out first what is there: files made by the seed pipeline are adopted, not refused."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

__all__ = ["ensure_columns", "ensure_index", "ensure_table", "real", "text", "whole"]


def real() -> sa.Double[float]:
    """Return the 8-byte number, named REAL in SQLite."""
    return sa.Double().with_variant(sa.REAL(), "sqlite")


def whole() -> sa.BigInteger:
    """Return the 8-byte whole number, named INTEGER in SQLite."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def text() -> sa.Text:
    """Return text that is compared by code point everywhere."""
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def ensure_table(name: str, *items: Any) -> None:
    """Create the table, or add to the one that is there the columns that it lacks."""
    if sa.inspect(op.get_bind()).has_table(name):
        ensure_columns(name, *(item for item in items if isinstance(item, sa.Column)))
    else:
        op.create_table(name, *items)


def ensure_columns(table: str, *columns: sa.Column[Any]) -> None:
    """Add the columns that a table lacks."""
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}
    for column in columns:
        if column.name not in there:
            op.add_column(table, column)


def ensure_index(name: str, table: str, columns: list[str], *, unique: bool = False) -> None:
    """Create an index that is not there."""
    if name not in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, columns, unique=unique)
