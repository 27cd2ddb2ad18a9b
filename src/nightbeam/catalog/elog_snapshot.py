"""Looking into a published snapshot without changing it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from nightbeam.catalog.elog_model import LAST_CHANGE
from nightbeam.core.errors import InputError, MissingError

__all__ = ["is_snapshot", "snapshot_counts", "snapshot_mark"]


def snapshot_counts(path: Path, *, present: bool = False) -> dict[str, int]:
    """Return how many rows each table of a snapshot has; it is opened read-only, whatever its schema's age.

    Parameters
    ----------
    present
        Without those of what the service did not have any more.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is no SQLite database, or none that this program has written.
    """
    with _looked_into(path) as (copy, names):
        ours = [name for name in names if not name.startswith(("sqlite_", "nightbeam_")) and "_fts" not in name]
        return {name: _count(copy, name, present) for name in ours}


def _count(copy: sqlite3.Connection, table: str, present: bool) -> int:
    quoted = '"' + table.replace('"', '""') + '"'
    columns = {row[1] for row in copy.execute(f"PRAGMA table_info({quoted})")}
    where = " WHERE missing_since IS NULL" if present and "missing_since" in columns else ""
    return int(copy.execute(f"SELECT count(*) FROM {quoted}{where}").fetchone()[0])


def is_snapshot(path: Path) -> bool:
    """Say whether a file is a whole database of ours; other programs give their files the same names."""
    try:
        with _looked_into(path):
            return True
    except (InputError, MissingError):
        return False


def snapshot_mark(path: Path) -> str | None:
    """Return the mark of the last change that a snapshot has in it; None where it says nothing of that.

    Raises
    ------
    MissingError, InputError
        As `snapshot_counts`.
    """
    with _looked_into(path) as (copy, _):
        found = copy.execute("SELECT value FROM metadata WHERE key = ?", (LAST_CHANGE,)).fetchone()
        return None if found is None else str(found[0])


@contextmanager
def _looked_into(path: Path) -> Iterator[tuple[sqlite3.Connection, list[str]]]:
    if not path.exists():
        raise MissingError(f"there is no snapshot {path}", fix="correct its name")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as copy:
            names = [str(row[0]) for row in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if "nightbeam_elog_version" not in names:
                raise InputError(f"{path} is no snapshot of ours", fix="move it away, or publish elsewhere")
            yield copy, names
    except sqlite3.Error as error:
        raise InputError(f"{path} is no snapshot of ours: {error}", fix="move it away, or publish elsewhere") from error
