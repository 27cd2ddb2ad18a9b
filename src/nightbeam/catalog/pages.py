"""What the monitor reads: a page of rows at a time, newest first, each by an index, over connections that stay open.

The order is that of the data. Rows of the older pipeline have no time of their data; they come after all others,
by the time at which they were received.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nightbeam.catalog.arrears import read_backlog, read_pressure
from nightbeam.catalog.elog_model import ExperimentRow
from nightbeam.catalog.elog_schema import ExperimentTable, MetadataTable, SyncTable
from nightbeam.catalog.kept import KeptDatabase
from nightbeam.catalog.model import (
    AttemptRow,
    BacklogRow,
    BadFileRow,
    CalSetSummary,
    CalTableRow,
    DuplicateRow,
    GroupRow,
    ImageRow,
    MosaicRow,
    MsRow,
    NightRow,
    PerformanceRow,
    PressureRow,
    QaArtifactRow,
    QaScoreRow,
    QuarantineRow,
    ReceiptRow,
    SetAsideRow,
    State,
    SubbandRow,
)
from nightbeam.catalog.schema import (
    AttemptTable,
    BadFileTable,
    CalSetTable,
    CalTable,
    DuplicateTable,
    ImageTable,
    MosaicTable,
    MsTable,
    NightTable,
    PerformanceTable,
    QaArtifactTable,
    QaScoreTable,
    QuarantineTable,
    QueueTable,
    ReceiptTable,
    SetAsideTable,
    SubbandTable,
)
from nightbeam.core.errors import MissingError
from nightbeam.elog.model import Resource

__all__ = [
    "SEARCHED",
    "AboutGroup",
    "ElogPages",
    "ElogSummary",
    "GroupProducts",
    "ProductPages",
    "QueuePages",
    "RegistryPages",
]

R = TypeVar("R")

#: Groups that are looked through for a text, from the newest of those that are asked for.
SEARCHED = 2000
_Q = QueueTable.__table__
_S = SubbandTable.__table__
_MS = MsTable.__table__
_IMAGES = ImageTable.__table__
_ARTIFACTS = QaArtifactTable.__table__
_SCORES = QaScoreTable.__table__
_MOSAICS = MosaicTable.__table__
#: Besides the id, where a text is looked for.
_WORDS = ("error", "owner", "calibrators")
#: Rounds of a search that ends when it has found enough.
_ROUNDS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class AboutGroup:
    """What the queue knows of a group besides its row; ``older`` and ``newer`` are its neighbours in time."""

    older: str | None
    newer: str | None
    subbands: list[SubbandRow]
    duplicates: list[DuplicateRow]
    attempts: list[AttemptRow]
    receipts: list[ReceiptRow]
    performance: PerformanceRow | None


@dataclasses.dataclass(frozen=True, slots=True)
class GroupProducts:
    """What was made of a group."""

    images: list[ImageRow]
    sets: list[MsRow]
    artifacts: list[QaArtifactRow]
    scores: list[QaScoreRow]


class QueuePages:
    """The queue, to be looked at.

    Parameters
    ----------
    kept
        The database. Every method raises what `KeptDatabase.read` does.
    """

    def __init__(self, kept: KeptDatabase) -> None:
        self.kept = kept

    def counts(self) -> dict[str, int]:
        """Return how many groups are in each state."""
        query = sa.select(_Q.c.state, sa.func.count()).group_by(_Q.c.state)
        with self.kept.read() as connection:
            found = {str(state): int(n) for state, n in connection.execute(query)}
        return {state.value: 0 for state in State} | found

    def arrears(self) -> tuple[PressureRow | None, BacklogRow]:
        """Return how far behind the site was last found to be, and what waits now."""
        with self.kept.read() as connection:
            return read_pressure(connection), read_backlog(connection)

    def groups(
        self,
        *,
        state: str | None = None,
        since_mjd: float | None = None,
        until_mjd: float | None = None,
        text: str | None = None,
        matched: bool = False,
        before: str | None = None,
        limit: int = 50,
    ) -> list[GroupRow]:
        """Return groups, newest data first.

        Parameters
        ----------
        state
            Only in this state.
        since_mjd, until_mjd
            Only with data from this time on, and before this time.
        text
            Only whose id, error, owner or calibrators hold this, among the newest `SEARCHED` of the others.
        matched
            Only with a calibrator.
        before
            Only older than this group; `MissingError` where there is none of this id any more.
        limit
            At most so many.
        """
        where = [_Q.c.state == state] if state is not None else []
        where += [_Q.c.has_calibrator == 1] if matched else []
        with self.kept.read() as connection:
            after = self._place_of(connection, before) if before is not None else None
            if before is not None and after is None:
                raise _gone()
            ids = self._timed(connection, where, since_mjd, until_mjd, text, after, limit)
            if len(ids) < limit and since_mjd is None and until_mjd is None:
                ids += self._untimed(connection, where, text, after, limit - len(ids))
            return self._rows_of(connection, ids)

    def _timed(
        self,
        connection: Connection,
        where: Sequence[Any],
        since: float | None,
        until: float | None,
        text: str | None,
        after: sa.Row[Any] | None,
        limit: int,
    ) -> list[str]:
        if after is not None and after.start_mjd is None:
            return []
        here = [*where, _Q.c.start_mjd.is_not(None)]
        here += [_Q.c.start_mjd >= since] if since is not None else []
        here += [_Q.c.start_mjd < until] if until is not None else []
        if after is not None:
            same = sa.and_(_Q.c.start_mjd == after.start_mjd, _Q.c.group_id >= after.group_id)
            here += [_Q.c.start_mjd <= after.start_mjd, sa.not_(same)]
        return _ids(connection, here, "start_mjd", text, limit)

    def _untimed(
        self, connection: Connection, where: Sequence[Any], text: str | None, after: sa.Row[Any] | None, limit: int
    ) -> list[str]:
        here = [*where, _Q.c.start_mjd.is_(None)]
        if after is not None and after.start_mjd is None:
            same = sa.and_(_Q.c.received_at == after.received_at, _Q.c.group_id >= after.group_id)
            here += [_Q.c.received_at <= after.received_at, sa.not_(same)]
        return _ids(connection, here, "received_at", text, limit)

    def _place_of(self, connection: Connection, group_id: str) -> sa.Row[Any] | None:
        query = sa.select(_Q.c.group_id, _Q.c.start_mjd, _Q.c.received_at).where(_Q.c.group_id == group_id)
        return connection.execute(query).first()

    def _rows_of(self, connection: Connection, ids: Sequence[str]) -> list[GroupRow]:
        if not ids:
            return []
        found = {row.group_id: row for row in _rows(connection, GroupRow, _GROUPS_OF, {"ids": list(ids)})}
        return [found[group_id] for group_id in ids if group_id in found]

    def group(self, group_id: str) -> GroupRow | None:
        """Return one group, or None."""
        with self.kept.read() as connection:
            found = _rows(connection, GroupRow, _GROUP, {"group_id": group_id})
        return found[0] if found else None

    def about(self, row: GroupRow) -> AboutGroup:
        """Return all that the queue knows of a group, in one look; of its attempts the last hundred."""
        this = {"group_id": row.group_id}
        with self.kept.read() as connection:
            older, newer = self._neighbours(connection, row)
            measured = _rows(connection, PerformanceRow, _PERFORMANCE_OF, this)
            return AboutGroup(
                older=older,
                newer=newer,
                subbands=_rows(connection, SubbandRow, _SUBBANDS_OF, this),
                duplicates=_rows(connection, DuplicateRow, _DUPLICATES_OF, this),
                attempts=_rows(connection, AttemptRow, _ATTEMPTS_OF, this)[::-1],
                receipts=_rows(connection, ReceiptRow, _RECEIPTS_OF, this),
                performance=measured[0] if measured else None,
            )

    def _neighbours(self, connection: Connection, row: GroupRow) -> tuple[str | None, str | None]:
        if not isinstance(row.start_mjd, float):
            return None, None
        here = {"start_mjd": row.start_mjd}
        return connection.execute(_OLDER, here).scalar(), connection.execute(_NEWER, here).scalar()

    def bad_files(self, *, limit: int) -> list[BadFileRow]:
        """Return files that are no readable subbands, the last first; of those moved aside, where they are."""
        table, aside = BadFileTable.__table__, SetAsideTable.__table__
        here = _all(BadFileRow, table).order_by(table.c.recorded_at.desc()).limit(limit)
        there = _all(SetAsideRow, aside).where(aside.c.state != "restored").order_by(aside.c.moved_at.desc())
        moved = [
            BadFileRow(row.original_path, row.reason, row.size_bytes, row.mtime, row.moved_at, f"now at {row.path}")
            for row in self._read(SetAsideRow, there.limit(limit))
        ]
        found = [*self._read(BadFileRow, here), *moved]
        return sorted(found, key=_seen_at, reverse=True)[:limit]

    def last_update(self) -> float | None:
        """Return when anything last changed."""
        with self.kept.read() as connection:
            return connection.execute(sa.select(sa.func.max(_Q.c.last_update))).scalar()

    def last_received(self) -> float | None:
        """Return when the newest group began to arrive."""
        with self.kept.read() as connection:
            return connection.execute(sa.select(sa.func.max(_Q.c.received_at))).scalar()

    def oldest(self) -> dict[str, float]:
        """Return when the first group of each state that is none of an end was received."""
        going = (State.COLLECTING.value, State.PENDING.value, State.IN_PROGRESS.value)
        query = sa.select(_Q.c.state, sa.func.min(_Q.c.received_at)).where(_Q.c.state.in_(going))
        with self.kept.read() as connection:
            return {str(state): at for state, at in connection.execute(query.group_by(_Q.c.state))}

    def in_state(self, state: str, *, limit: int) -> list[GroupRow]:
        """Return groups of a state, oldest data first, without counting their subbands."""
        # Databases differ in where NULL comes; what has no time of its data is last, as in `groups`.
        order = (_Q.c.start_mjd.is_(None), _Q.c.start_mjd, _Q.c.group_id)
        query = _GROUPS_BARE.where(_Q.c.state == state).order_by(*order).limit(limit)
        return self._read(GroupRow, query)

    def failed_since(self, since: float, *, limit: int) -> list[GroupRow]:
        """Return the groups that failed since a time (epoch seconds), the last first."""
        query = _GROUPS_BARE.where(_Q.c.last_update >= since, _failed()).order_by(_Q.c.last_update.desc())
        return self._read(GroupRow, query.limit(limit))

    def failures_since(self, since: float) -> int:
        """Return how many groups failed since a time (epoch seconds)."""
        query = sa.select(sa.func.count()).where(_Q.c.last_update >= since, _failed())
        with self.kept.read() as connection:
            return int(connection.execute(query).scalar_one())

    def finished_since(self, since: float) -> int:
        """Return how many groups were completed since a time (epoch seconds)."""
        # By its time, not by its state, which most rows share.
        query = sa.select(_Q.c.state).where(_Q.c.last_update >= since)
        with self.kept.read() as connection:
            return sum(state == State.COMPLETED.value for (state,) in connection.execute(query))

    def _read(self, kind: type[R], query: sa.Select[Any]) -> list[R]:
        with self.kept.read() as connection:
            return _rows(connection, kind, query)


class RegistryPages:
    """The calibration registry, to be looked at."""

    def __init__(self, kept: KeptDatabase) -> None:
        self.kept = kept

    def sets(
        self, *, since_mjd: float | None = None, until_mjd: float | None = None, limit: int = 100
    ) -> list[tuple[CalSetSummary, str | None, float | None, list[CalTableRow]]]:
        """Return sets that were valid between two times, newest first: in short, group, time of the data, tables."""
        table, sets = CalTable.__table__, CalSetTable.__table__
        where = [table.c.valid_end_mjd >= since_mjd] if since_mjd is not None else []
        where += [table.c.valid_start_mjd < until_mjd] if until_mjd is not None else []
        newest = sa.select(sets.c.set_name).order_by(sets.c.created_at.desc(), sets.c.set_name).limit(limit)
        # Of the older pipeline, which has tables alone.
        alone = table.c.set_name.not_in(sa.select(sets.c.set_name))
        bare = sa.select(table.c.set_name).where(alone, *where)
        bare = bare.group_by(table.c.set_name).order_by(sa.func.max(table.c.created_at).desc()).limit(limit)
        if where:
            # One that was turned down has no tables, and no window but the time of its data.
            then = [sets.c.mid_mjd >= since_mjd] if since_mjd is not None else []
            then += [sets.c.mid_mjd < until_mjd] if until_mjd is not None else []
            valid = sets.c.set_name.in_(sa.select(table.c.set_name).where(*where))
            newest = newest.where(sa.or_(valid, sa.and_(sets.c.status == "failed", *then)))
        with self.kept.read() as connection:
            names = list(connection.execute(newest).scalars())
            # Asked first whether there is any, which the index alone can tell: mostly there is none.
            if connection.execute(sa.select(table.c.set_name).where(alone).limit(1)).first() is not None:
                names += connection.execute(bare).scalars()
            of = table.c.set_name.in_(names)
            rows = _rows(connection, CalTableRow, _all(CalTableRow, table).where(of).order_by(table.c.order_index))
            known = {r.set_name: r for r in connection.execute(sa.select(sets).where(sets.c.set_name.in_(names)))}
            by_set: dict[str, list[CalTableRow]] = {name: [] for name in names}
            for row in rows:
                by_set[row.set_name].append(row)
            found = [_in_short(name, tables, known.get(name)) for name, tables in by_set.items()]
        return sorted(found, key=lambda one: (-_sortable(one[0].created_at), one[0].set))[:limit]

    def named(self, name: str) -> tuple[CalSetSummary, str | None, float | None, list[CalTableRow]] | None:
        """Return the set of a name as `sets` does, or None."""
        this = {"set_name": name}
        with self.kept.read() as connection:
            rows = _rows(connection, CalTableRow, _TABLES_OF, this)
            known = connection.execute(_SET, this).first()
            return _in_short(name, rows, known) if rows or known is not None else None


class ProductPages:
    """The products, to be looked at."""

    def __init__(self, kept: KeptDatabase) -> None:
        self.kept = kept

    def images(
        self,
        *,
        since_mjd: float | None = None,
        until_mjd: float | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[ImageRow]:
        """Return images, newest first: by their data where a time is asked for, else by when they were made."""
        query = _all(ImageRow, _IMAGES)
        if since_mjd is not None or until_mjd is not None:
            query = query.where(_IMAGES.c.mid_mjd >= since_mjd) if since_mjd is not None else query
            query = query.where(_IMAGES.c.mid_mjd < until_mjd) if until_mjd is not None else query
            order: Any = _IMAGES.c.mid_mjd
        else:
            order = _IMAGES.c.created_at
        with self.kept.read() as connection:
            if before is not None:
                last = connection.execute(sa.select(order).where(_IMAGES.c.id == before)).scalar()
                if last is None:
                    raise _gone()
                same = sa.and_(order == last, _IMAGES.c.id >= before)
                query = query.where(order <= last, sa.not_(same))
            return _rows(connection, ImageRow, query.order_by(order.desc(), _IMAGES.c.id.desc()).limit(limit))

    def image(self, image_id: int) -> ImageRow | None:
        """Return one image, or None."""
        found = self._read(ImageRow, _all(ImageRow, _IMAGES).where(_IMAGES.c.id == image_id))
        return found[0] if found else None

    def of_group(self, group_id: str) -> GroupProducts:
        """Return what was made of a group, in one look."""
        this = {"group_id": group_id}
        with self.kept.read() as connection:
            return GroupProducts(
                images=_rows(connection, ImageRow, _IMAGES_OF, this),
                sets=_rows(connection, MsRow, _SETS_OF, this),
                artifacts=_rows(connection, QaArtifactRow, _ARTIFACTS_OF, this),
                scores=_rows(connection, QaScoreRow, _SCORES_OF, this),
            )

    def ms_index(self, *, stage: str | None, status: str | None, limit: int) -> list[MsRow]:
        """Return Measurement Sets, the newest change of stage first; those of which none is known come last."""
        query = _all(MsRow, _MS)
        query = query.where(_MS.c.stage == stage) if stage is not None else query
        query = query.where(_MS.c.status == status) if status is not None else query
        dated = query.where(_MS.c.stage_updated_at.is_not(None)).order_by(_MS.c.stage_updated_at.desc(), _MS.c.path)
        undated = query.where(_MS.c.stage_updated_at.is_(None)).order_by(_MS.c.path)
        with self.kept.read() as connection:
            found = _rows(connection, MsRow, dated.limit(limit))
            if len(found) < limit:
                found += _rows(connection, MsRow, undated.limit(limit - len(found)))
        return found

    def artifacts(self, *, group_id: str | None = None, limit: int) -> list[QaArtifactRow]:
        """Return figures and reports of a group or of all, newest first."""
        query = _all(QaArtifactRow, _ARTIFACTS)
        query = query.where(_ARTIFACTS.c.group_id == group_id) if group_id is not None else query
        return self._read(QaArtifactRow, query.order_by(_ARTIFACTS.c.created_at.desc(), _ARTIFACTS.c.name).limit(limit))

    def newest_artifacts(self, *, endings: tuple[str, ...], limit: int) -> list[QaArtifactRow]:
        """Return the newest figure of each group, the newest first.

        Parameters
        ----------
        endings
            Of names that count, in small letters.
        limit
            Groups.
        """
        found: dict[str, QaArtifactRow] = {}
        query, last = _all(QaArtifactRow, _ARTIFACTS), None
        size = max(100, 4 * limit)
        with self.kept.read() as connection:
            for _ in range(_ROUNDS):
                part = query if last is None else query.where(_ARTIFACTS.c.created_at <= last)
                rows = _rows(connection, QaArtifactRow, part.order_by(_ARTIFACTS.c.created_at.desc()).limit(size))
                for row in rows:
                    if row.group_id not in found and str(row.name).lower().endswith(endings):
                        found[row.group_id] = row
                if len(found) >= limit or len(rows) < size or rows[-1].created_at == last:
                    break
                last = rows[-1].created_at
        return list(found.values())[:limit]

    def mosaics(self, *, since_mjd: float | None, until_mjd: float | None, limit: int) -> list[MosaicRow]:
        """Return mosaics, the newest data first; those without a time, such as of the older pipeline, come last."""
        dated = _all(MosaicRow, _MOSAICS).where(_MOSAICS.c.mid_mjd.is_not(None))
        dated = dated.where(_MOSAICS.c.mid_mjd >= since_mjd) if since_mjd is not None else dated
        dated = dated.where(_MOSAICS.c.mid_mjd < until_mjd) if until_mjd is not None else dated
        undated = _all(MosaicRow, _MOSAICS).where(_MOSAICS.c.mid_mjd.is_(None)).order_by(_MOSAICS.c.id.desc())
        with self.kept.read() as connection:
            order = (_MOSAICS.c.mid_mjd.desc(), _MOSAICS.c.id.desc())
            found = _rows(connection, MosaicRow, dated.order_by(*order).limit(limit))
            if len(found) < limit and since_mjd is None and until_mjd is None:
                found += _rows(connection, MosaicRow, undated.limit(limit - len(found)))
        return found

    def mosaic(self, name: str) -> MosaicRow | None:
        """Return the mosaic of a name, or None."""
        query = _all(MosaicRow, _MOSAICS).where(_MOSAICS.c.name == name).order_by(_MOSAICS.c.id.desc()).limit(1)
        found = self._read(MosaicRow, query)
        return found[0] if found else None

    def nights(self, *, limit: int) -> list[NightRow]:
        """Return nights, the last first."""
        table = NightTable.__table__
        return self._read(NightRow, _all(NightRow, table).order_by(table.c.night.desc()).limit(limit))

    def scores(
        self, *, kind: str | None = None, subject: str | None = None, verdict: str | None = None, limit: int
    ) -> list[QaScoreRow]:
        """Return judged measures: of one subject by name, else the last subjects first."""
        query = _all(QaScoreRow, _SCORES)
        query = query.where(_SCORES.c.kind == kind) if kind is not None else query
        query = query.where(_SCORES.c.subject == subject) if subject is not None else query
        query = query.where(_SCORES.c.verdict == verdict) if verdict is not None else query
        order = (_SCORES.c.kind, _SCORES.c.name) if subject is not None else (_SCORES.c.created_at.desc(),)
        return self._read(QaScoreRow, query.order_by(*order).limit(limit))

    def scores_of(self, kind: str, subjects: Sequence[str]) -> list[QaScoreRow]:
        """Return the judged measures of some subjects."""
        query = _all(QaScoreRow, _SCORES).where(_SCORES.c.kind == kind, _SCORES.c.subject.in_(list(subjects)))
        return self._read(QaScoreRow, query.order_by(_SCORES.c.subject, _SCORES.c.name))

    def quarantine(self, *, limit: int) -> list[QuarantineRow]:
        """Return what was put aside, the last first."""
        table = QuarantineTable.__table__
        return self._read(QuarantineRow, _all(QuarantineRow, table).order_by(table.c.moved_at.desc()).limit(limit))

    def put_aside(self, kind: str, paths: Sequence[str]) -> dict[str, float]:
        """Return which products of a kind lie in quarantine or were deleted there, and since when (epoch seconds).

        An image is known by what the names of its files begin with, a mosaic by its image.
        """
        table = QuarantineTable.__table__
        query = sa.select(table.c.original_path, sa.func.max(table.c.moved_at))
        query = query.where(table.c.original_path.in_(list(paths)), table.c.kind == kind, table.c.state != "restored")
        with self.kept.read() as connection:
            return {str(path): at for path, at in connection.execute(query.group_by(table.c.original_path))}

    def _read(self, kind: type[R], query: sa.Select[Any]) -> list[R]:
        with self.kept.read() as connection:
            return _rows(connection, kind, query)


@dataclasses.dataclass(frozen=True, slots=True)
class ElogSummary:
    """What a mirror of the logbook holds, and how its lists are."""

    metadata: dict[str, str | None]
    experiments: int
    entries: int
    runs: int
    ok: int
    failed: int
    last_success: str | None


class ElogPages:
    """The mirror of the logbook, to be looked at."""

    def __init__(self, kept: KeptDatabase) -> None:
        self.kept = kept

    def summary(self) -> ElogSummary:
        """Return what there is to say of the whole mirror."""
        table = SyncTable.__table__
        # What it holds is known from its lists: to count the entries of a large mirror takes long.
        lists = sa.select(
            table.c.resource,
            table.c.status,
            sa.func.count(),
            sa.func.sum(table.c.rows),
            sa.func.max(table.c.synced_at),
        ).group_by(table.c.resource, table.c.status)
        with self.kept.read() as connection:
            said = {r.key: r.value for r in connection.execute(sa.select(MetadataTable.key, MetadataTable.value))}
            count = sa.select(sa.func.count()).select_from(ExperimentTable.__table__)
            experiments = int(connection.execute(count).scalar_one())
            found = connection.execute(lists).all()
        rows: Counter[str] = Counter()
        status: Counter[str] = Counter()
        for resource, word, n, total, _ in found:
            rows[str(resource)] += int(total or 0)
            status[str(word)] += int(n)
        last = max((str(one[4]) for one in found if one[4] is not None), default=None)
        return ElogSummary(
            metadata=said,
            experiments=experiments,
            entries=rows[Resource.ENTRIES.value],
            runs=rows[Resource.RUNS.value],
            ok=status["ok"],
            failed=status["failed"],
            last_success=last,
        )

    def newest(self, *, limit: int) -> list[ExperimentRow]:
        """Return the experiments whose rows changed last."""
        table = ExperimentTable.__table__
        query = _all(ExperimentRow, table).order_by(table.c.updated_at.desc(), table.c.experiment_id).limit(limit)
        with self.kept.read() as connection:
            return _rows(connection, ExperimentRow, query)

    def failures(self, *, limit: int) -> list[dict[str, Any]]:
        """Return the lists whose last reading failed, the last first."""
        table, home = SyncTable.__table__, ExperimentTable.__table__
        names = ("resource", "error", "attempted_at", "synced_at", "failures")
        query = sa.select(home.c.experiment_id, *(table.c[name] for name in names))
        query = query.join(home, home.c.id == table.c.experiment_id).where(table.c.status == "failed")
        with self.kept.read() as connection:
            found = connection.execute(query.order_by(table.c.attempted_at.desc()).limit(limit)).mappings()
            return [dict(row) for row in found]


def _gone() -> MissingError:
    return MissingError("the row to go on from is gone: begin again", fix="leave out `before`")


def _ids(connection: Connection, where: Sequence[Any], by: str, text: str | None, limit: int) -> list[str]:
    """Return ids, the newest by a column first and of equal ones the last id: as `before` goes on from a row."""
    order = (_Q.c[by].desc(), _Q.c.group_id.desc())
    if not text:
        return list(connection.execute(sa.select(_Q.c.group_id).where(*where).order_by(*order).limit(limit)).scalars())
    newest = sa.select(_Q.c.group_id, _Q.c.start_mjd, _Q.c.received_at, *(_Q.c[name] for name in _WORDS))
    some = newest.where(*where).order_by(*order).limit(SEARCHED).subquery()
    wanted = "%" + re.sub(r"([\\%_])", r"\\\1", text.lower()) + "%"
    columns = (some.c.group_id, *(some.c[name] for name in _WORDS))
    holds = [sa.func.lower(column).like(wanted, escape="\\") for column in columns]
    found = sa.select(some.c.group_id).where(sa.or_(*holds))
    in_order = found.order_by(some.c[by].desc(), some.c.group_id.desc())
    return list(connection.execute(in_order.limit(limit)).scalars())


def _failed() -> Any:
    return _Q.c.state == State.FAILED.value


def _columns(kind: type[Any], table: Any) -> list[Any]:
    return [table.c[field.name] for field in dataclasses.fields(kind) if field.name in table.c]


def _seen_at(row: BadFileRow) -> float:
    # SQLite's columns hold whatever somebody has put there.
    seen: object = row.recorded_at
    return seen if isinstance(seen, float) else 0.0


def _all(kind: type[Any], table: Any) -> sa.Select[Any]:
    return sa.select(*_columns(kind, table))


def _rows(
    connection: Connection, kind: type[R], query: sa.Select[Any], values: Mapping[str, Any] | None = None
) -> list[R]:
    # The columns are selected in the order of the fields.
    return [kind(*row) for row in connection.execute(query, values).all()]


def _in_short(
    name: str, tables: list[CalTableRow], known: Any
) -> tuple[CalSetSummary, str | None, float | None, list[CalTableRow]]:
    active = sum(row.status == "active" for row in tables)
    short = CalSetSummary(
        set=name,
        rows=len(tables),
        active=active,
        min_order=_least(row.order_index for row in tables),
        status=known.status if known is not None else ("active" if active else tables[0].status),
        valid_start_mjd=max((r.valid_start_mjd for r in tables if r.valid_start_mjd is not None), default=None),
        valid_end_mjd=min((r.valid_end_mjd for r in tables if r.valid_end_mjd is not None), default=None),
        dec_deg=next((r.dec_deg for r in tables if r.dec_deg is not None), known.dec_deg if known else None),
        created_at=known.created_at if known is not None else max(r.created_at for r in tables),
        calibrator=known.calibrator if known is not None else None,
        reason=known.reason if known is not None else tables[0].notes,
    )
    mid = known.mid_mjd if known is not None else next((r.mid_mjd for r in tables if r.mid_mjd is not None), None)
    return short, known.group_id if known is not None else None, mid, tables


def _least(numbers: Iterable[int]) -> int | None:
    return min(numbers, default=None)


def _sortable(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


_PRESENT = (
    sa.select(sa.func.count())
    .select_from(_S)
    .where(_S.c.group_id == _Q.c.group_id)
    .correlate(_Q)
    .scalar_subquery()
    .label("subbands_present")
)
_GROUPS = sa.select(*_columns(GroupRow, _Q), _PRESENT)
_GROUPS_BARE = sa.select(*_columns(GroupRow, _Q))

# Made once: to build a statement, and to find it in SQLAlchemy's cache, takes longer than to run it.
_THIS = sa.bindparam("group_id", type_=sa.Text)
_THEN = sa.bindparam("start_mjd", type_=sa.Double)
_GROUP = _GROUPS.where(_Q.c.group_id == _THIS)
_GROUPS_OF = _GROUPS.where(_Q.c.group_id.in_(sa.bindparam("ids", expanding=True)))
_OLDER = sa.select(_Q.c.group_id).where(_Q.c.start_mjd < _THEN).order_by(_Q.c.start_mjd.desc()).limit(1)
_NEWER = sa.select(_Q.c.group_id).where(_Q.c.start_mjd > _THEN).order_by(_Q.c.start_mjd).limit(1)


def _of(kind: type[Any], table: Any, *order: Any, limit: int) -> sa.Select[Any]:
    return _all(kind, table).where(table.c.group_id == _THIS).order_by(*order).limit(limit)


_SUBBANDS_OF = _of(SubbandRow, _S, _S.c.subband_idx, limit=1000)
_DUPLICATES_OF = _of(DuplicateRow, DuplicateTable.__table__, DuplicateTable.path, limit=1000)
_ATTEMPTS_OF = _of(AttemptRow, AttemptTable.__table__, AttemptTable.attempt.desc(), limit=100)
_RECEIPTS_OF = _of(ReceiptRow, ReceiptTable.__table__, ReceiptTable.finished_at, limit=100)
_PERFORMANCE_OF = _of(PerformanceRow, PerformanceTable.__table__, limit=1)
_IMAGES_OF = _of(ImageRow, _IMAGES, _IMAGES.c.created_at.desc(), limit=100)
_SETS_OF = _of(MsRow, _MS, _MS.c.path, limit=100)
_ARTIFACTS_OF = _of(QaArtifactRow, _ARTIFACTS, _ARTIFACTS.c.name, limit=200)
_SCORES_OF = _all(QaScoreRow, _SCORES).where(_SCORES.c.kind == "group", _SCORES.c.subject == _THIS)
_SCORES_OF = _SCORES_OF.order_by(_SCORES.c.name).limit(200)
_NAMED = sa.bindparam("set_name", type_=sa.Text)
_TABLES_OF = _all(CalTableRow, CalTable.__table__).where(CalTable.set_name == _NAMED).order_by(CalTable.order_index)
_SET = sa.select(CalSetTable.__table__).where(CalSetTable.set_name == _NAMED)
