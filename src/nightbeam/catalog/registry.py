"""The calibration registry: sets of tables, where they are valid, and the right one for a time."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nightbeam.catalog.compute import Candidate, candidates, rank, tables_of_prefix
from nightbeam.catalog.model import CalSet, CalSetSummary, CalTableRow, SetSpec, TableSpec
from nightbeam.catalog.remote import Database, upsert
from nightbeam.catalog.schema import CalSetTable, CalTable
from nightbeam.core.errors import InputError, MissingError, NightbeamError
from nightbeam.core.files import sha256

__all__ = ["Registry", "check_table"]

logger = logging.getLogger(__name__)

_T = CalTable
_STATUSES = ("active", "retired", "failed")


def check_table(path: Path) -> None:
    """Refuse what is no calibration table with rows.

    Raises
    ------
    MissingError
        If there is no such directory.
    InputError
        If casacore cannot open it, or it is empty.
    """
    if not path.is_dir():
        raise MissingError(f"no calibration table {path}", fix="solve it first, or correct the path")
    from nightbeam.casa.tables import open_table

    with open_table(path) as table:
        rows = int(table.nrows())
    if not rows:
        raise InputError(f"the calibration table {path} has no rows", fix="solve it again")


class Registry:
    """The calibration registry of one site.

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
    check
        Raises for a path that is no usable calibration table; `check_table` by default.
    """

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_s: float = 30.0,
        create: bool = True,
        migrate: bool = True,
        check: Callable[[Path], None] | None = None,
    ) -> None:
        self.database = Database(url, "registry", busy_timeout_s=busy_timeout_s, create=create, migrate=migrate)
        self._check = check or check_table

    # -- writing ------------------------------------------------------------------------------------------------

    def register_set(self, spec: SetSpec, *, now: float | None = None) -> list[CalTableRow]:
        """Register a set as a whole, once all of its tables exist and open; an older one of the name goes.

        Raises
        ------
        InputError
            If the window is missing or empty, there are no tables or one of them twice, or the status is unknown.
        MissingError
            If a table does not exist.
        """
        now = time.time() if now is None else now
        _sound(spec)
        for table in spec.tables:
            self._check(table.path)
        sums = {table.path: sha256(table.path) for table in spec.tables}
        values = {
            "status": spec.status,
            "group_id": spec.group_id,
            "calibrator": spec.calibrator,
            "mid_mjd": _mid(spec),
            "dec_deg": spec.dec_deg,
            "reason": None,
            "report": json.dumps(dict(spec.report)) if spec.report else None,
            "created_at": now,
        }
        with self.database.write() as connection:
            paths = [str(t.path.absolute()) for t in spec.tables]
            connection.execute(sa.delete(_T).where(sa.or_(_T.set_name == spec.name, _T.path.in_(paths))))
            for table in spec.tables:
                connection.execute(sa.insert(_T).values(**_row(spec, table, sums[table.path], now)))
            upsert(connection, CalSetTable, {"set_name": spec.name}, values)
        logger.info("registered %s: %d tables, %s", spec.name, len(spec.tables), spec.status)
        return self.tables(spec.name)

    def register_prefix(
        self,
        prefix: Path,
        *,
        name: str,
        valid_start_mjd: float | None,
        valid_end_mjd: float | None,
        cal_field: str | None = None,
        refant: str | None = None,
        status: str = "active",
        now: float | None = None,
    ) -> list[CalTableRow]:
        """Register the directories ``prefix*`` whose suffix is known (see `tables_of_prefix`) as one set.

        Raises
        ------
        MissingError
            If there is none.
        InputError
            As for `register_set`.
        """
        specs = tables_of_prefix(self.tables_at(prefix), cal_field=cal_field, refant=refant)
        if not specs:
            raise MissingError(
                f"no calibration table {prefix}*", fix="names end in _kcal, _bpcal, _gcal and so on: see the manual"
            )
        if valid_start_mjd is None or valid_end_mjd is None:
            raise InputError(f"the set {name} has no window", fix="give --valid-start and --valid-end (MJD)")
        spec = SetSpec(name, tuple(specs), valid_start_mjd, valid_end_mjd, status)
        return self.register_set(spec, now=now)

    @staticmethod
    def tables_at(prefix: Path) -> list[Path]:
        """Return the directories whose path begins with ``prefix``."""
        prefix = prefix.expanduser().absolute()
        if not prefix.parent.is_dir():
            return []
        return sorted(p for p in prefix.parent.iterdir() if p.name.startswith(prefix.name) and p.is_dir())

    def register_failure(
        self,
        name: str,
        reason: str,
        *,
        group_id: str | None = None,
        calibrator: str | None = None,
        mid_mjd: float | None = None,
        dec_deg: float | None = None,
        report: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> None:
        """Note that a set was turned down; tables of an earlier one of that name are failed with it."""
        values = {
            "status": "failed",
            "group_id": group_id,
            "calibrator": calibrator,
            "mid_mjd": mid_mjd,
            "dec_deg": dec_deg,
            "reason": reason,
            "report": json.dumps(dict(report)) if report else None,
            "created_at": time.time() if now is None else now,
        }
        with self.database.write() as connection:
            upsert(connection, CalSetTable, {"set_name": name}, values)
            connection.execute(sa.update(_T).where(_T.set_name == name).values(status="failed", notes=reason))

    def retire(self, name: str, reason: str) -> int:
        """Retire all tables of a set; returns how many. The reason is added to their notes.

        Raises
        ------
        MissingError
            If there is no such set.
        """
        self.require_set(name)
        with self.database.write() as connection:
            rows = self._select(connection, sa.select(_T).where(_T.set_name == name))
            for row in rows:
                notes = f"{row.notes}; {reason}" if row.notes else reason
                connection.execute(sa.update(_T).where(_T.id == row.id).values(status="retired", notes=notes))
            known = sa.update(CalSetTable).where(CalSetTable.set_name == name)
            connection.execute(known.values(status="retired", reason=reason))
        return len(rows)

    def require_set(self, name: str) -> None:
        """Raise MissingError unless there is a set of this name, with tables or turned down."""
        if name not in {line.set for line in self.sets()}:
            raise MissingError(f"the registry has no set {name}", fix="nightbeam registry list shows those there are")

    # -- reading ------------------------------------------------------------------------------------------------

    def tables(self, name: str | None = None) -> list[CalTableRow]:
        """Return the tables of a set, or of all sets, in their order."""
        query = sa.select(_T).order_by(_T.set_name, _T.order_index, _T.id)
        with self.database.read() as connection:
            return self._select(connection, query if name is None else query.where(_T.set_name == name))

    def find_set(
        self,
        mjd: float,
        *,
        dec_deg: float | None = None,
        dec_tolerance_deg: float = 1.0,
        borrow_days: float = 0.0,
        verify: bool = True,
    ) -> CalSet | None:
        """Return the set for a time, or None.

        Among the active sets whose window contains the time (and whose declination, where both are
        known, agrees) it is the nearest in time, of two equally near the newest. Failing that one of
        the same declination and at most ``borrow_days`` away, marked as borrowed. A set whose tables
        are gone or changed is passed over.

        Parameters
        ----------
        mjd
            Time of the data, days (UTC).
        dec_deg, dec_tolerance_deg
            Pointing of the data, and how far another strip begins.
        borrow_days
            How far in time a set may be borrowed; 0: never.
        verify
            Whether to look at the tables and their checksums.
        """
        ranked = self._ranked(mjd, dec_deg, dec_tolerance_deg, borrow_days)
        passed_over: list[str] = []
        for candidate in ranked:
            fault = self._fault(candidate) if verify else None
            if fault is None:
                return _chosen(candidate, mjd, tuple(passed_over))
            logger.warning("passing over %s: %s", candidate.set_name, fault)
            passed_over.append(f"{candidate.set_name}: {fault}")
        return None

    def broken_sets(
        self, mjd: float, *, dec_deg: float | None = None, dec_tolerance_deg: float = 1.0, borrow_days: float = 0.0
    ) -> list[tuple[str, str]]:
        """Return the sets that `find_set` passes over for a time, the nearest first, each with its fault."""
        ranked = self._ranked(mjd, dec_deg, dec_tolerance_deg, borrow_days)
        faults = [(candidate.set_name, self._fault(candidate)) for candidate in ranked]
        return [(name, fault) for name, fault in faults if fault is not None]

    def _ranked(
        self, mjd: float, dec_deg: float | None, dec_tolerance_deg: float, borrow_days: float
    ) -> list[Candidate]:
        return rank(
            candidates(self._near(mjd, borrow_days)),
            mjd,
            dec_deg=dec_deg,
            dec_tolerance_deg=dec_tolerance_deg,
            borrow_days=borrow_days,
        )

    def active_paths(self, *, mjd: float | None = None, name: str | None = None) -> list[Path]:
        """Return the active tables of a set, or of the set for a time, in the order in which they are applied."""
        if name is not None:
            return [Path(t.path) for t in self.tables(name) if t.status == "active"]
        if mjd is None or not math.isfinite(mjd):
            raise InputError(f"{mjd} is no time to look tables up for", fix="give an MJD in days, or the name of a set")
        found = self.find_set(mjd)
        return [] if found is None else list(found.paths)

    def sets(self) -> list[CalSetSummary]:
        """Return one line per set, also of those that were turned down; what active ones have lost is their reason."""
        with self.database.read() as connection:
            known = {r["set_name"]: r for r in connection.execute(sa.select(CalSetTable)).mappings()}
        by_set: dict[str, list[CalTableRow]] = {name: [] for name in known}
        for row in self.tables():
            by_set.setdefault(row.set_name, []).append(row)
        lines = [_summary(name, rows, known.get(name)) for name, rows in by_set.items()]
        return sorted(lines, key=lambda line: (line.valid_start_mjd or math.inf, line.created_at, line.set))

    def set_report(self, name: str) -> dict[str, Any] | None:
        """Return the solution report that was stored with a set."""
        with self.database.read() as connection:
            text = connection.execute(sa.select(CalSetTable.report).where(CalSetTable.set_name == name)).scalar()
        return None if text is None else dict(json.loads(text))

    def verify(self, tables: tuple[CalTableRow, ...]) -> None:
        """Refuse tables that are gone, do not open or have changed since they were registered.

        Raises
        ------
        MissingError, InputError
            Naming the table.
        """
        for table in tables:
            path = Path(table.path)
            self._check(path)
            if table.sha256 is not None and sha256(path) != table.sha256:
                raise InputError(f"{path} has changed since it was registered", fix="retire the set and solve it again")

    def _near(self, mjd: float, days: float) -> list[CalTableRow]:
        here = (_T.status == "active", _T.valid_start_mjd <= mjd + days, _T.valid_end_mjd >= mjd - days)
        names = sa.select(_T.set_name).where(*here)
        with self.database.read() as connection:
            return self._select(connection, sa.select(_T).where(_T.set_name.in_(names)))

    def _fault(self, candidate: Candidate) -> str | None:
        try:
            self.verify(candidate.tables)
        except NightbeamError as error:
            return error.what
        return None

    def _select(self, connection: Connection, query: sa.Select[Any]) -> list[CalTableRow]:
        names = [f.name for f in dataclasses.fields(CalTableRow)]
        return [CalTableRow(**{n: row[n] for n in names}) for row in connection.execute(query).mappings()]


def _sound(spec: SetSpec) -> None:
    start, end = spec.valid_start_mjd, spec.valid_end_mjd
    if not spec.tables:
        raise InputError(f"the set {spec.name} has no tables", fix="solve it first")
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        raise InputError(f"the set {spec.name} has the window {start} to {end}", fix="give a start before an end (MJD)")
    if spec.status not in _STATUSES:
        raise InputError(f"{spec.status!r} is no status of a set", fix=f"use one of {', '.join(_STATUSES)}")
    paths = [t.path for t in spec.tables]
    if len(set(paths)) < len(paths):
        raise InputError(f"the set {spec.name} names a table twice", fix="name each once")


def _mid(spec: SetSpec) -> float:
    return (spec.valid_start_mjd + spec.valid_end_mjd) / 2.0 if spec.mid_mjd is None else spec.mid_mjd


def _row(spec: SetSpec, table: TableSpec, digest: str, now: float) -> dict[str, Any]:
    return {
        "set_name": spec.name,
        "path": str(table.path.absolute()),
        "table_type": table.table_type,
        "order_index": table.order_index,
        "cal_field": table.cal_field,
        "refant": table.refant,
        "created_at": now,
        "valid_start_mjd": spec.valid_start_mjd,
        "valid_end_mjd": spec.valid_end_mjd,
        "status": spec.status,
        "notes": spec.notes,
        "sha256": digest,
        "mid_mjd": _mid(spec),
        "dec_deg": spec.dec_deg,
    }


def _chosen(candidate: Candidate, mjd: float, passed_over: tuple[str, ...]) -> CalSet:
    return CalSet(
        set_name=candidate.set_name,
        tables=candidate.tables,
        mid_mjd=candidate.mid_mjd,
        created_at=candidate.created_at,
        age_days=mjd - candidate.mid_mjd,
        borrowed=not candidate.covers(mjd),
        passed_over=passed_over,
    )


def _summary(name: str, rows: list[CalTableRow], known: sa.RowMapping | None) -> CalSetSummary:
    active = sum(row.status == "active" for row in rows)
    starts = [r.valid_start_mjd for r in rows if r.valid_start_mjd is not None]
    ends = [r.valid_end_mjd for r in rows if r.valid_end_mjd is not None]
    status = known["status"] if known is not None else ("active" if active else rows[0].status)
    return CalSetSummary(
        set=name,
        rows=len(rows),
        active=active,
        min_order=min((r.order_index for r in rows), default=None),
        status=status,
        valid_start_mjd=max(starts, default=None),
        valid_end_mjd=min(ends, default=None),
        dec_deg=next((r.dec_deg for r in rows if r.dec_deg is not None), None),
        created_at=known["created_at"] if known is not None else max(r.created_at for r in rows),
        calibrator=known["calibrator"] if known is not None else None,
        reason=_lost_tables(rows) or (known["reason"] if known is not None else rows[0].notes),
    )


def _lost_tables(rows: list[CalTableRow]) -> str | None:
    active = [row.path for row in rows if row.status == "active"]
    gone = [path for path in active if not Path(path).is_dir()]
    return f"{len(gone)} of {len(active)} tables are gone: {gone[0]}" if gone else None
