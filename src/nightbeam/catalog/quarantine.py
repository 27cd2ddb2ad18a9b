"""What was put aside: where it lay, where it lies, and what became of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nightbeam.catalog.model import QuarantineRow
from nightbeam.catalog.remote import Database, upsert
from nightbeam.catalog.schema import QuarantineTable
from nightbeam.core.errors import MissingError

__all__ = ["Quarantine"]

_T = QuarantineTable
#: Those in the middle of something say so, for whoever is killed there is to leave the truth behind.
ENDED = ("restored", "deleted")


class Quarantine:
    """The table ``quarantine`` of the products.

    A row's ``state`` is ``moving`` while a product is put aside, then ``held``; ``restoring`` and ``restored`` where it
    was put back; ``deleting`` and ``deleted`` where it is gone for good.

    Parameters
    ----------
    database
        The products.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def rows(self, *, states: Collection[str] = (), original: Path | None = None) -> list[QuarantineRow]:
        """Return what is or was in quarantine, oldest first; all of it, or in some states, or of one product."""
        query = sa.select(_T).order_by(_T.moved_at, _T.path)
        if states:
            query = query.where(_T.state.in_(sorted(states)))
        if original is not None:
            query = query.where(_T.original_path == str(original))
        return self._select(query)

    def row(self, path: Path) -> QuarantineRow | None:
        """Return what is or was at a place in quarantine, or None."""
        return next(iter(self._select(sa.select(_T).where(_T.path == str(path)))), None)

    def begin(
        self, path: Path, *, original: Path, kind: str, reason: str, size_bytes: int | None, now: float | None = None
    ) -> None:
        """Note that a product is about to be moved to ``path``."""
        values = {
            "original_path": str(original),
            "kind": kind,
            "reason": reason,
            "size_bytes": size_bytes,
            "moved_at": _now(now),
            "state": "moving",
            "ended_at": None,
        }
        with self.database.write() as connection:
            upsert(connection, _T, {"path": str(path)}, values)

    def become(self, path: Path, state: str, *, moved: bool = False, now: float | None = None) -> None:
        """Change the state of what lies at ``path``; ``restored`` and ``deleted`` are its end.

        Parameters
        ----------
        path, state
            What, and its new state.
        moved
            It came here only now, so that its time in quarantine begins.
        now
            Epoch seconds.

        Raises
        ------
        MissingError
            If there is no row of it.
        """
        now = _now(now)
        values: dict[str, object] = {"state": state, "ended_at": now if state in ENDED else None}
        if moved:
            values["moved_at"] = now
        with self.database.write() as connection:
            if not connection.execute(sa.update(_T).where(_T.path == str(path)).values(**values)).rowcount:
                raise MissingError(f"nothing in quarantine is at {path}", fix="nightbeam housekeeping --held lists it")

    def forget(self, path: Path) -> None:
        """Strike the row of something that was never moved."""
        with self.database.write() as connection:
            connection.execute(sa.delete(_T).where(_T.path == str(path)))

    def _select(self, query: sa.Select[Any]) -> list[QuarantineRow]:
        names = [f.name for f in dataclasses.fields(QuarantineRow)]
        with self.database.read() as connection:
            return [QuarantineRow(**{n: row[n] for n in names}) for row in connection.execute(query).mappings()]


def _now(now: float | None) -> float:
    return time.time() if now is None else now
