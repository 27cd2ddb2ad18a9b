"""Files that were moved out of the input directory: where they lay, where they lie, and what became of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from pathlib import Path

import sqlalchemy as sa

from nightbeam.catalog.model import SetAsideRow
from nightbeam.catalog.remote import Database, upsert
from nightbeam.catalog.schema import BadFileTable, SetAsideTable
from nightbeam.core.errors import MissingError

__all__ = ["SetAside"]

_T = SetAsideTable


class SetAside:
    """The table ``set_aside_files`` of the queue.

    A row's ``state`` is ``moving`` while a file is moved aside, then ``held``; ``restoring`` and ``restored`` where it
    was put back. Those in the middle of something say so, for whoever is killed there is to leave the truth behind.

    Parameters
    ----------
    database
        The queue.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def rows(self, *, states: Collection[str] = ()) -> list[SetAsideRow]:
        """Return what is or was set aside, oldest first; all of it, or in some states."""
        query = sa.select(_T).order_by(_T.moved_at, _T.path)
        return self._select(query.where(_T.state.in_(sorted(states))) if states else query)

    def row(self, path: Path) -> SetAsideRow | None:
        """Return what is or was at a place aside, or None."""
        return next(iter(self._select(sa.select(_T).where(_T.path == str(path)))), None)

    def begin(
        self,
        path: Path,
        *,
        original: Path,
        reason: str,
        size_bytes: int | None,
        mtime: float | None,
        now: float | None = None,
    ) -> None:
        """Note that a file is about to be moved to ``path``."""
        values = {
            "original_path": str(original),
            "reason": reason,
            "size_bytes": size_bytes,
            "mtime": mtime,
            "moved_at": _now(now),
            "state": "moving",
            "ended_at": None,
        }
        with self.database.write() as connection:
            upsert(connection, _T, {"path": str(path)}, values)

    def hold(self, row: SetAsideRow, *, now: float | None = None) -> None:
        """Note that a file lies aside, and is no longer among the bad ones of the input directory."""
        with self.database.write() as connection:
            change = sa.update(_T).where(_T.path == row.path)
            connection.execute(change.values(state="held", moved_at=_now(now), ended_at=None))
            here = (BadFileTable.path == row.original_path, BadFileTable.size_bytes == row.size_bytes)
            connection.execute(sa.delete(BadFileTable).where(*here, BadFileTable.mtime == row.mtime))

    def become(self, path: Path, state: str, *, now: float | None = None) -> None:
        """Change the state of what lies at ``path``; ``restored`` is its end.

        Raises
        ------
        MissingError
            If there is no row of it.
        """
        values = {"state": state, "ended_at": _now(now) if state == "restored" else None}
        with self.database.write() as connection:
            if not connection.execute(sa.update(_T).where(_T.path == str(path)).values(**values)).rowcount:
                raise MissingError(f"nothing that was set aside is at {path}", fix="nightbeam groups bad lists it")

    def forget(self, path: Path) -> None:
        """Strike the row of a file that was never moved."""
        with self.database.write() as connection:
            connection.execute(sa.delete(_T).where(_T.path == str(path)))

    def _select(self, query: sa.Select[tuple[SetAsideTable]]) -> list[SetAsideRow]:
        names = [f.name for f in dataclasses.fields(SetAsideRow)]
        with self.database.read() as connection:
            return [SetAsideRow(**{n: row[n] for n in names}) for row in connection.execute(query).mappings()]


def _now(now: float | None) -> float:
    return time.time() if now is None else now
