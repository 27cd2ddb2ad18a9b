"""Looking into a published snapshot without changing it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from nightbeam.core.errors import InputError, MissingError

__all__ = ["snapshot_counts"]


def snapshot_counts(path: Path) -> dict[str, int]:
    """Return how many rows each table of a snapshot has; it is opened read-only, whatever its schema's age.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is no SQLite database, or none that this program has written.
    """
    if not path.exists():
        raise MissingError(f"there is no snapshot {path}", fix="correct its name")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as copy:
            names = [str(row[0]) for row in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if "nightbeam_elog_version" not in names:
                raise InputError(f"{path} is no snapshot of ours", fix="move it away, or publish elsewhere")
            ours = [name for name in names if not name.startswith(("sqlite_", "nightbeam_")) and "_fts" not in name]
            return {
                name: int(copy.execute('SELECT count(*) FROM "' + name.replace('"', '""') + '"').fetchone()[0])
                for name in ours
            }
    except sqlite3.Error as error:
        raise InputError(f"{path} is no snapshot of ours: {error}", fix="move it away, or publish elsewhere") from error
