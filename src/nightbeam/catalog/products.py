"""The products: Measurement Sets, images, mosaics and QA artifacts."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from nightbeam.catalog.model import ImageRow, MsRow, QaArtifactRow
from nightbeam.catalog.quarantine import Quarantine
from nightbeam.catalog.remote import Database, upsert
from nightbeam.catalog.schema import ImageTable, MsTable, QaArtifactTable
from nightbeam.core.errors import UsageError

__all__ = ["Products"]

R = TypeVar("R")
_MS = frozenset(f.name for f in dataclasses.fields(MsRow)) - {"path", "stage_updated_at"}
_IMAGE = frozenset(f.name for f in dataclasses.fields(ImageRow)) - {"id", "path"}


class Products:
    """The products of one site.

    Parameters
    ----------
    url
        SQLAlchemy URL.
    busy_timeout_s
        How long a locked SQLite file is waited for.
    create
        Whether a SQLite file that is not there is made.
    migrate
        Whether a database that an older nightbeam made is brought up to date.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = 30.0, create: bool = True, migrate: bool = True) -> None:
        self.database = Database(url, "products", busy_timeout_s=busy_timeout_s, create=create, migrate=migrate)
        #: What was put aside, and what became of it.
        self.quarantine = Quarantine(self.database)

    def upsert_ms(self, path: Path, *, now: float | None = None, **values: Any) -> MsRow:
        """Make or change the row of a Measurement Set; a value that is None or not given stays as it was.

        ``stage_updated_at`` follows whenever a stage is given. ``cal_applied`` is only touched by who
        says it: an earlier 1 is not overwritten by a caller that has no opinion.

        Raises
        ------
        UsageError
            If there is no such column.
        """
        _only(values, _MS, "ms_index")
        given = {name: value for name, value in values.items() if value is not None}
        if "stage" in given:
            given["stage_updated_at"] = _now(now)
        with self.database.write() as connection:
            upsert(connection, MsTable, {"path": str(path)}, given)
        found = self.ms(path)
        assert found is not None  # written in the lines above
        return found

    def ms(self, path: Path) -> MsRow | None:
        """Return the row of a Measurement Set, or None."""
        found = self._rows(MsRow, sa.select(MsTable).where(MsTable.path == str(path)))
        return found[0] if found else None

    def ms_index(self, *, stage: str | None = None, status: str | None = None, limit: int | None = None) -> list[MsRow]:
        """Return the Measurement Sets, the newest change of stage first."""
        query = sa.select(MsTable).order_by(sa.func.coalesce(MsTable.stage_updated_at, 0.0).desc(), MsTable.path)
        if stage is not None:
            query = query.where(MsTable.stage == stage)
        if status is not None:
            query = query.where(MsTable.status == status)
        return self._rows(MsRow, query.limit(limit))

    def upsert_image(self, path: Path, *, ms_path: Path, now: float | None = None, **values: Any) -> ImageRow:
        """Make or change the one row of an image; mappings and lists are stored as JSON.

        Raises
        ------
        UsageError
            If there is no such column.
        """
        _only(values, _IMAGE, "images")
        given = {
            "type": "5min",
            "created_at": _now(now),
            **{name: _plain(value) for name, value in values.items() if value is not None},
            "ms_path": str(ms_path),
        }
        with self.database.write() as connection:
            upsert(connection, ImageTable, {"path": str(path)}, given)
        (found,) = self._rows(ImageRow, sa.select(ImageTable).where(ImageTable.path == str(path)))
        return found

    def images(
        self, *, group_id: str | None = None, ms_path: Path | None = None, limit: int | None = None
    ) -> list[ImageRow]:
        """Return the images, newest first."""
        query = sa.select(ImageTable).order_by(ImageTable.created_at.desc(), ImageTable.id.desc())
        if group_id is not None:
            query = query.where(ImageTable.group_id == group_id)
        if ms_path is not None:
            query = query.where(ImageTable.ms_path == str(ms_path))
        return self._rows(ImageRow, query.limit(limit))

    def put_qa_artifact(self, group_id: str, name: str, path: Path, *, now: float | None = None) -> None:
        """Make or change the row of a QA artifact."""
        values = {"path": str(path), "created_at": _now(now)}
        with self.database.write() as connection:
            upsert(connection, QaArtifactTable, {"group_id": group_id, "name": name}, values)

    def qa_artifacts(self, group_id: str | None = None, *, limit: int | None = None) -> list[QaArtifactRow]:
        """Return the QA artifacts of a group or of all, newest first."""
        query = sa.select(QaArtifactTable).order_by(QaArtifactTable.created_at.desc(), QaArtifactTable.name)
        if group_id is not None:
            query = query.where(QaArtifactTable.group_id == group_id)
        return self._rows(QaArtifactRow, query.limit(limit))

    def _rows(self, kind: type[R], query: sa.Select[Any]) -> list[R]:
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        with self.database.read() as connection:
            return [kind(**{n: row[n] for n in names}) for row in connection.execute(query).mappings()]


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _plain(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping | list | tuple) else value


def _only(values: Mapping[str, Any], known: frozenset[str], table: str) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(f"{table} has no column {', '.join(unknown)}")
