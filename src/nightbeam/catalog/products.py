"""The products: Measurement Sets, images, mosaics and QA artifacts."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from nightbeam.catalog.model import ImageRow, MosaicRow, MsRow, NightRow, QaArtifactRow, QaScoreRow, Scored
from nightbeam.catalog.origins import Origins
from nightbeam.catalog.quarantine import Quarantine
from nightbeam.catalog.remote import Database, upsert
from nightbeam.catalog.schema import ImageTable, MosaicTable, MsTable, NightTable, QaArtifactTable, QaScoreTable
from nightbeam.core.errors import MissingError, UsageError

__all__ = ["SCORE_KINDS", "VERDICTS", "Products"]

#: What is judged.
SCORE_KINDS = ("group", "mosaic")
#: What a judgement comes to, in the order in which it deserves to be read.
VERDICTS = ("bad", "warn", "unknown", "good")

R = TypeVar("R")
_MS = frozenset(f.name for f in dataclasses.fields(MsRow)) - {"path", "stage_updated_at"}
_IMAGE = frozenset(f.name for f in dataclasses.fields(ImageRow)) - {"id", "path"}
_MOSAIC = frozenset(f.name for f in dataclasses.fields(MosaicRow)) - {"id", "name"}
#: What every time lies in: a bound that says nothing is written so, because not every database compares infinities.
_ALWAYS = (-1e9, 1e9)


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
        #: What every product was made of, by whom and with which settings.
        self.origins = Origins(self.database)

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
        self,
        *,
        group_id: str | None = None,
        ms_path: Path | None = None,
        beginning: Path | None = None,
        limit: int | None = None,
    ) -> list[ImageRow]:
        """Return the images, newest first; of a group, of a Measurement Set, or whose path has a beginning."""
        query = sa.select(ImageTable).order_by(ImageTable.created_at.desc(), ImageTable.id.desc())
        if group_id is not None:
            query = query.where(ImageTable.group_id == group_id)
        if ms_path is not None:
            query = query.where(ImageTable.ms_path == str(ms_path))
        if beginning is not None:
            query = query.where(ImageTable.path.startswith(str(beginning), autoescape=True))
        return self._rows(ImageRow, query.limit(limit))

    def image_of_file(self, path: Path) -> ImageRow | None:
        """Return the image of which this is a file: itself, or one that its row names beside it."""
        named = ImageTable.files.contains(json.dumps(str(path)), autoescape=True)
        found = self._rows(ImageRow, sa.select(ImageTable).where(sa.or_(ImageTable.path == str(path), named)).limit(1))
        return found[0] if found else None

    # -- mosaics ------------------------------------------------------------------------------------------------

    def mosaic_of_file(self, path: Path) -> MosaicRow | None:
        """Return the mosaic of which this is a file."""
        named = MosaicTable.files.contains(json.dumps(str(path)), autoescape=True)
        query = sa.select(MosaicTable).where(sa.or_(MosaicTable.output_path == str(path), named)).limit(1)
        found = self._rows(MosaicRow, query)
        return found[0] if found else None

    def tiles_observed(
        self, start_mjd: float | None = None, end_mjd: float | None = None, *, kind: str = "5min"
    ) -> list[ImageRow]:
        """Return the images that were observed in a window, in the order of their times.

        The time is the middle of the observation. A row without one, as older databases have them, gets that of its
        Measurement Set; where that is unknown as well the row comes last, whatever the window, without a time.

        Parameters
        ----------
        start_mjd, end_mjd
            MJD (UTC), from the first and before the second; None: no bound.
        kind
            The images' type.
        """
        low = -math.inf if start_mjd is None else start_mjd
        high = math.inf if end_mjd is None else end_mjd
        timed = sa.select(ImageTable).where(
            ImageTable.mid_mjd >= max(low, _ALWAYS[0]), ImageTable.mid_mjd < min(high, _ALWAYS[1])
        )
        untimed = (
            sa.select(ImageTable, MsTable.mid_mjd.label("ms_mid_mjd"))
            .outerjoin(MsTable, MsTable.path == ImageTable.ms_path)
            .where(ImageTable.mid_mjd.is_(None))
        )
        names = [f.name for f in dataclasses.fields(ImageRow)]
        with self.database.read() as connection:
            found = [dict(row) for row in connection.execute(timed.where(ImageTable.type == kind)).mappings()]
            for row in connection.execute(untimed.where(ImageTable.type == kind)).mappings():
                mid = row["ms_mid_mjd"]
                if mid is None or low <= mid < high:
                    found.append({**row, "mid_mjd": mid})
        rows = [ImageRow(**{name: row[name] for name in names}) for row in found]
        return sorted(rows, key=lambda row: (row.mid_mjd is None, row.mid_mjd or 0.0, row.path))

    def put_plan(self, plan: str, rows: Sequence[Mapping[str, Any]], *, now: float | None = None) -> list[MosaicRow]:
        """Make the rows of a plan what is given: one for each name, the others of the plan gone, all at once.

        A row that keeps its name keeps its key; every other column becomes what is given, or NULL.

        Parameters
        ----------
        plan
            Its name.
        rows
            ``name`` and columns of each.

        Raises
        ------
        UsageError
            If there is no such column, or a name twice.
        """
        names = [str(row["name"]) for row in rows]
        if len(set(names)) < len(names):
            raise UsageError(f"two mosaics of the plan {plan} have one name: {', '.join(names)}")
        empty: dict[str, Any] = dict.fromkeys(_MOSAIC)
        with self.database.write() as connection:
            gone = sa.delete(MosaicTable).where(MosaicTable.plan == plan, MosaicTable.name.not_in(names))
            connection.execute(gone)
            for row in rows:
                values = {name: _plain(value) for name, value in row.items() if name != "name"}
                _only(values, _MOSAIC, "mosaics")
                given = {**empty, "created_at": _now(now), "status": "planned", "tiles": "", **values, "plan": plan}
                upsert(connection, MosaicTable, {"name": row["name"]}, given)
        return self.mosaics(plan=plan)

    def change_mosaic(self, name: str, **values: Any) -> MosaicRow:
        """Change columns of a mosaic's row; None sets NULL.

        Raises
        ------
        UsageError
            If there is no such column.
        MissingError
            If there is no such mosaic.
        """
        _only(values, _MOSAIC, "mosaics")
        given = {column: _plain(value) for column, value in values.items()}
        with self.database.write() as connection:
            changed = connection.execute(sa.update(MosaicTable).where(MosaicTable.name == name).values(**given))
        found = self.mosaic(name)
        if not changed.rowcount or found is None:
            raise MissingError(f"there is no mosaic {name}", fix="plan it first; `nightbeam mosaic show` lists them")
        return found

    def mosaic_built(self, name: str, *, now: float | None = None, **values: Any) -> MosaicRow:
        """Say that a mosaic is there, with what is known of it."""
        return self.change_mosaic(name, status="built", built_at=_now(now), error=None, **values)

    def mosaic_failed(self, name: str, error: str) -> MosaicRow:
        """Say that a mosaic could not be made, and why."""
        return self.change_mosaic(name, status="failed", error=error)

    def mosaic(self, name: str) -> MosaicRow | None:
        """Return the row of a mosaic, or None."""
        found = self._rows(MosaicRow, sa.select(MosaicTable).where(MosaicTable.name == name))
        return found[0] if found else None

    def mosaics(
        self,
        *,
        plan: str | None = None,
        status: str | None = None,
        output_path: Path | None = None,
        limit: int | None = None,
    ) -> list[MosaicRow]:
        """Return the mosaics, the newest data first; those of one plan in the order of its strips."""
        if plan is not None:
            query = sa.select(MosaicTable).where(MosaicTable.plan == plan)
            return self._rows(MosaicRow, query.order_by(MosaicTable.strip, MosaicTable.name).limit(limit))
        newest = sa.func.coalesce(MosaicTable.mid_mjd, 0.0).desc()
        query = sa.select(MosaicTable).order_by(newest, MosaicTable.created_at.desc(), MosaicTable.id.desc())
        if status is not None:
            query = query.where(MosaicTable.status == status)
        if output_path is not None:
            query = query.where(MosaicTable.output_path == str(output_path))
        return self._rows(MosaicRow, query.limit(limit))

    # -- nights -------------------------------------------------------------------------------------------------

    def put_night(
        self,
        night: str,
        state: str,
        *,
        tiles: int | None = None,
        attempts: int = 0,
        error: str | None = None,
        inputs: str | None = None,
        now: float | None = None,
    ) -> None:
        """Make or change the row of a night."""
        values = {"state": state, "tiles": tiles, "attempts": attempts, "error": error, "updated_at": _now(now)}
        values["inputs"] = inputs
        with self.database.write() as connection:
            upsert(connection, NightTable, {"night": night}, values)

    def night(self, night: str) -> NightRow | None:
        """Return the row of a night, or None."""
        found = self._rows(NightRow, sa.select(NightTable).where(NightTable.night == night))
        return found[0] if found else None

    def nights(self, *, limit: int | None = None) -> list[NightRow]:
        """Return the nights, newest first."""
        return self._rows(NightRow, sa.select(NightTable).order_by(NightTable.night.desc()).limit(limit))

    # -- quality ------------------------------------------------------------------------------------------------

    def put_qa_artifact(self, group_id: str, name: str, path: Path, *, now: float | None = None) -> None:
        """Make or change the row of a QA artifact."""
        values = {"path": str(path), "created_at": _now(now)}
        with self.database.write() as connection:
            _one_at_a_time(connection, _table(QaArtifactTable), {"group_id": group_id})
            upsert(connection, QaArtifactTable, {"group_id": group_id, "name": name}, values)

    def qa_artifacts(self, group_id: str | None = None, *, limit: int | None = None) -> list[QaArtifactRow]:
        """Return the QA artifacts of a group or of all, newest first."""
        query = sa.select(QaArtifactTable).order_by(QaArtifactTable.created_at.desc(), QaArtifactTable.name)
        if group_id is not None:
            query = query.where(QaArtifactTable.group_id == group_id)
        return self._rows(QaArtifactRow, query.limit(limit))

    def replace_qa_artifacts(
        self, group_id: str, artifacts: Mapping[str, Path], *, now: float | None = None
    ) -> list[QaArtifactRow]:
        """Let these be all QA artifacts of a group or mosaic, by name, and return the rows that are gone."""
        when = _now(now)
        table = _table(QaArtifactTable)
        rows = [
            {"group_id": group_id, "name": name, "path": str(path), "created_at": when}
            for name, path in artifacts.items()
        ]
        with self.database.write() as connection:
            _one_at_a_time(connection, table, {"group_id": group_id})
            before = connection.execute(sa.select(table).where(table.c.group_id == group_id)).mappings().all()
            _replace(connection, table, {"group_id": group_id}, rows)
        kept = {str(path) for path in artifacts.values()}
        return [QaArtifactRow(**row) for row in before if row["path"] not in kept]

    def put_scores(self, kind: str, subject: str, scores: Iterable[Scored], *, now: float | None = None) -> None:
        """Let these be all scores of a group or a mosaic; those that it had are gone, in the same transaction.

        Parameters
        ----------
        kind
            ``group`` or ``mosaic``.
        subject
            Its id or its name.
        scores
            With names that differ. A value or score that is not finite is kept as unknown.

        Raises
        ------
        UsageError
            If there is no such kind, two have one name, or a verdict is none.
        """
        if kind not in SCORE_KINDS:
            raise UsageError(f"scores of a {kind!r}", fix=f"one of {', '.join(SCORE_KINDS)}")
        when = _now(now)
        rows = [_score_row(kind, subject, score, when) for score in scores]
        names = [row["name"] for row in rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"{subject} has two scores named {', '.join(twice)}")
        wrong = sorted({row["verdict"] for row in rows} - set(VERDICTS))
        if wrong:
            raise UsageError(f"no verdict {', '.join(wrong)}", fix=f"one of {', '.join(VERDICTS)}")
        with self.database.write() as connection:
            _replace(connection, _table(QaScoreTable), {"kind": kind, "subject": subject}, rows)

    def scores(
        self,
        kind: str | None = None,
        subject: str | None = None,
        *,
        verdict: str | None = None,
        limit: int | None = None,
    ) -> list[QaScoreRow]:
        """Return scores in the order in which they deserve to be read: bad, warned of, unknown, good; the lowest first.

        Without a subject, the groups and mosaics that were judged last come first.
        """
        of = QaScoreTable
        newest = [of.created_at.desc(), of.kind, of.subject] if subject is None else []
        order = sa.case({word: place for place, word in enumerate(VERDICTS)}, value=of.verdict, else_=len(VERDICTS))
        unscored = sa.case((of.score.is_(None), 1), else_=0)  # databases differ in where they put NULL
        query = sa.select(of).order_by(*newest, order, unscored, of.score, of.kind, of.name)
        for column, value in ((of.kind, kind), (of.subject, subject), (of.verdict, verdict)):
            if value is not None:
                query = query.where(column == value)
        return self._rows(QaScoreRow, query.limit(limit))

    def _rows(self, kind: type[R], query: sa.Select[Any]) -> list[R]:
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        with self.database.read() as connection:
            return [kind(**{n: row[n] for n in names}) for row in connection.execute(query).mappings()]


def _table(mapped: Any) -> Any:
    """Return the table of a mapped class, in which many rows can be put at once."""
    return mapped.__table__


def _replace(
    connection: sa.Connection, table: Any, which: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Put rows in the place of those that ``which`` names; of two who do that at once, the later one's remain."""
    _one_at_a_time(connection, table, which)
    connection.execute(sa.delete(table).where(*(table.c[name] == value for name, value in which.items())))
    if rows:
        connection.execute(sa.insert(table), list(rows))


def _one_at_a_time(connection: sa.Connection, table: Any, which: Mapping[str, str]) -> None:
    """Keep everybody else who replaces these rows waiting until the end of the transaction."""
    if connection.dialect.name == "sqlite":  # has one writer at a time anyhow
        return
    # No row to lock needs to be there yet, and one put after our look could be neither deleted nor put again. The
    # number is of the name's hash: two names that share one wait for each other, which harms nobody.
    name = "/".join((table.name, *which.values()))
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0))))


def _score_row(kind: str, subject: str, score: Scored, when: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "subject": subject,
        "name": score.name,
        "value": _finite(score.value),
        "unit": score.unit or None,
        "score": _finite(score.score),
        "verdict": str(score.verdict),
        "reason": score.reason or None,
        "created_at": when,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _plain(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping | list | tuple) else value


def _only(values: Mapping[str, Any], known: frozenset[str], table: str) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(f"{table} has no column {', '.join(unknown)}")
