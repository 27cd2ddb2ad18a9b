"""The ingest queue: which groups there are, who works on them, and how every attempt ended.

Each change of state is one UPDATE that names the state it comes from, so that of two who try it
at the same time one succeeds and the other is told. Whoever changes an attempt too has its group's
row locked before, or two would wait for each other.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from nightbeam.catalog.arrears import Arrears
from nightbeam.catalog.clocks import Clocks
from nightbeam.catalog.model import (
    AttemptRow,
    BadFileRow,
    Dispatch,
    DuplicateRow,
    FileFact,
    GroupFact,
    GroupRow,
    KnownFile,
    Owed,
    Owner,
    PerformanceRow,
    ReceiptRow,
    Recorded,
    Stage,
    State,
    SubbandRow,
)
from nightbeam.catalog.recording import (
    contradicting,
    decide,
    free_duplicates,
    is_of_one_mind,
    make_group,
    note_bad,
    record_files,
)
from nightbeam.catalog.remote import Database, upsert
from nightbeam.catalog.schema import (
    AttemptTable,
    BadFileTable,
    DuplicateTable,
    PerformanceTable,
    QueueTable,
    ReceiptTable,
    SubbandTable,
)
from nightbeam.catalog.set_aside import SetAside
from nightbeam.core.errors import BusyError, InputError, MissingError
from nightbeam.ingest.model import BadFile

__all__ = ["Queue"]

logger = logging.getLogger(__name__)

R = TypeVar("R")
_Q = QueueTable
_FREE: Mapping[str, None] = {
    "owner": None,
    "owner_host": None,
    "owner_pid": None,
    "owner_started": None,
    "owner_birth": None,
    "heartbeat_at": None,
    "dispatched_at": None,
    "dispatch_key": None,
    "current_step": None,
}


class Queue:
    """The queue of one site.

    Parameters
    ----------
    url
        SQLAlchemy URL.
    max_retries
        Attempts (since the group came or was last requeued) after which it is failed for good.
    busy_timeout_s
        How long a locked SQLite file is waited for.
    create
        Whether a SQLite file that is not there is made.
    migrate
        Whether a database that an older nightbeam made is brought up to date.
    """

    def __init__(
        self, url: str, *, max_retries: int = 3, busy_timeout_s: float = 30.0, create: bool = True, migrate: bool = True
    ) -> None:
        self.max_retries = max_retries
        self.database = Database(url, "queue", busy_timeout_s=busy_timeout_s, create=create, migrate=migrate)
        self.set_aside = SetAside(self.database)
        self.clocks = Clocks(self.database)
        #: What waits, how images are made, and what groups are owed.
        self.arrears = Arrears(self.database)

    # -- what came ----------------------------------------------------------------------------------------------

    def record(
        self,
        group: GroupFact,
        files: Iterable[FileFact],
        *,
        expected_subbands: int = 16,
        chunk_minutes: float | None = None,
        now: float | None = None,
    ) -> dict[Path, Recorded]:
        """Record files of one group, making it if it is new; a full group becomes ``pending``.

        A file for a group that was taken already never changes its state: it is noted as late. The
        same path again is nothing new; another path for the same subband is noted as a duplicate. A file that
        contradicts most of its group is bad, also one that was recorded before the others came.

        Returns
        -------
        dict
            For each path what became of it; also for those recorded before of which the group let go (`Recorded.ODD`,
            `Recorded.FREED`).
        """
        now = _now(now)
        with self.database.write() as connection:
            row = make_group(connection, group, expected_subbands, chunk_minutes, now)
            result, certain = record_files(connection, row, group, files, now)
            if Recorded.NEW in result.values():
                self._grown(connection, group.group_id, now, of_one_mind=certain)
        return result

    def decide_contradictions(self, older_than_s: float, *, now: float | None = None) -> dict[Path, Recorded]:
        """Let the most of the files be right in groups that have been incomplete for longer than this.

        Returns what became of files, as `record` does. A group whose files are as many one way as another is failed.
        """
        now = _now(now)
        with self.database.read() as connection:
            found = contradicting(connection, now - older_than_s)
        result: dict[Path, Recorded] = {}
        for group_id in found:
            with self.database.write() as connection:
                result |= decide(connection, group_id, now)
        return result

    def _grown(self, connection: Connection, group_id: str, now: float, *, of_one_mind: bool) -> None:
        present = sa.select(sa.func.count()).select_from(SubbandTable).where(SubbandTable.group_id == group_id)
        here = (_Q.group_id == group_id, _Q.state == State.COLLECTING.value)
        connection.execute(sa.update(_Q).where(*here).values(last_update=now))
        if not of_one_mind:
            return
        is_full = _Q.expected_subbands <= present.scalar_subquery()
        values = {"state": State.PENDING.value, "processing_stage": Stage.FRESH.value}
        connection.execute(sa.update(_Q).where(*here, is_full).values(**values))
        waits = (_Q.group_id == group_id, _Q.state == State.PENDING.value, _Q.partial == 1)
        connection.execute(sa.update(_Q).where(*waits, is_full).values(partial=0, last_update=now))

    def record_bad_file(
        self,
        path: Path,
        reason: str,
        *,
        size_bytes: int | None = None,
        mtime: float | None = None,
        now: float | None = None,
    ) -> None:
        """Note that a file is no readable subband, and why."""
        values = {"reason": reason, "size_bytes": size_bytes, "mtime": mtime, "recorded_at": _now(now)}
        with self.database.write() as connection:
            note_bad(connection, str(path), values)

    def record_bad_files(self, files: Iterable[BadFile], *, now: float | None = None) -> None:
        """Note the same of many files at once."""
        now = _now(now)
        with self.database.write() as connection:
            for file in files:
                values = {"reason": file.reason, "size_bytes": file.size_bytes, "mtime": file.mtime}
                note_bad(connection, str(file.path), {**values, "recorded_at": now})

    def note_not_moved(self, path: Path, why: str) -> bool:
        """Note why a bad file stays where it is; returns whether that is news."""
        here = (BadFileTable.path == str(path), sa.func.coalesce(BadFileTable.not_moved, "") != why)
        with self.database.write() as connection:
            return connection.execute(sa.update(BadFileTable).where(*here).values(not_moved=why)).rowcount > 0

    def forget_bad_file(self, path: Path) -> None:
        """Strike a file from the bad ones, since it became readable or is gone."""
        with self.database.write() as connection:
            connection.execute(sa.delete(BadFileTable).where(BadFileTable.path == str(path)))

    def bad_files(self) -> list[BadFileRow]:
        """Return the files that are no readable subbands."""
        return self._rows(BadFileRow, sa.select(BadFileTable).order_by(BadFileTable.path))

    def bad_among(self, paths: Iterable[str]) -> list[BadFileRow]:
        """Return those of some paths that are no readable subbands."""
        names = [f.name for f in dataclasses.fields(BadFileRow)]
        table = BadFileTable.__table__
        with self.database.read() as connection:
            here = _among(connection, table.c.path, sorted(set(paths)))
            found = connection.execute(sa.select(table).where(here).order_by(table.c.path)).mappings()
            return [BadFileRow(**{n: row[n] for n in names}) for row in found]

    def known_among(self, paths: Iterable[str]) -> set[str]:
        """Return those of some paths that were recorded, duplicates too.

        It costs as much as there are paths, not as much as the queue remembers.
        """
        wanted, known = set(paths), set[str]()
        with self.database.read() as connection:
            for table in (SubbandTable.__table__, DuplicateTable.__table__):
                here = _among(connection, table.c.path, sorted(wanted - known))
                known.update(connection.execute(sa.select(table.c.path).where(here)).scalars())
        return known

    def living_files(self, ended_since: float) -> list[KnownFile]:
        """Return the files of groups that have not ended, or not before ``ended_since`` (epoch seconds)."""
        names = ("group_id", "subband_idx", "path", "size_bytes", "mtime")
        columns = [getattr(SubbandTable, name) for name in names]
        ended = (State.COMPLETED.value, State.FAILED.value)
        living = sa.or_(_Q.state.not_in(ended), _Q.last_update >= ended_since)
        query = sa.select(*columns, _Q.state).join(_Q, _Q.group_id == SubbandTable.group_id).where(living)
        with self.database.read() as connection:
            return [KnownFile(*row) for row in connection.execute(query.order_by(SubbandTable.path))]

    def file_changed(self, file: KnownFile, size_bytes: int, mtime: float, *, now: float | None = None) -> bool:
        """Note that a recorded file is another one than it was; returns whether its group lets go of it.

        While the group is collecting it does, and the file is looked at as a new one, as are the second files of its
        subband: one of them takes its place where it is bad now. Later it keeps what it has, and
        that the file was rewritten is written down.
        """
        here = (SubbandTable.group_id == file.group_id, SubbandTable.subband_idx == file.subband_idx)
        same = (*here, SubbandTable.path == file.path)
        with self.database.write() as connection:
            state = connection.execute(
                sa.select(_Q.state).where(_Q.group_id == file.group_id).with_for_update()
            ).scalar()
            if state == State.COLLECTING.value:
                gone = connection.execute(sa.delete(SubbandTable).where(*same)).rowcount > 0
                if gone:
                    free_duplicates(connection, file.group_id, [file.subband_idx])
                return gone
            values = {"size_bytes": size_bytes, "mtime": mtime, "changed_at": _now(now)}
            connection.execute(sa.update(SubbandTable).where(*same).values(**values))
        return False

    # -- reading ------------------------------------------------------------------------------------------------

    def groups(self, *, state: str | None = None, limit: int | None = None) -> list[GroupRow]:
        """Return the groups in the order of their data, newest first when limited."""
        query = _groups()
        if state is not None:
            query = query.where(_Q.state == str(state))
        if limit is None:
            return self._rows(GroupRow, query.order_by(*_CHRONOLOGICAL))
        newest = query.order_by(sa.desc(_DATA_TIME), sa.desc(_Q.group_id)).limit(limit)
        return self._rows(GroupRow, newest)

    def ids(self, state: str) -> set[str]:
        """Return the names of the groups in a state."""
        with self.database.read() as connection:
            return set(connection.execute(sa.select(_Q.group_id).where(_Q.state == str(state))).scalars())

    def group(self, group_id: str) -> GroupRow:
        """Return one group.

        Raises
        ------
        MissingError
            If there is none of that name.
        """
        found = self._rows(GroupRow, _groups().where(_Q.group_id == group_id))
        if not found:
            raise self._missing(group_id)
        return found[0]

    def counts(self) -> dict[str, int]:
        """Return how many groups are in each state, and their total."""
        with self.database.read() as connection:
            found = connection.execute(sa.select(_Q.state, sa.func.count()).group_by(_Q.state)).all()
        counts = {state.value: 0 for state in State}
        counts.update({str(state): int(n) for state, n in found})
        return {"total": sum(counts.values()), **counts}

    def subbands(self, group_id: str) -> list[SubbandRow]:
        """Return the files of a group in the order of their subbands."""
        query = sa.select(SubbandTable).where(SubbandTable.group_id == group_id).order_by(SubbandTable.subband_idx)
        return self._rows(SubbandRow, query)

    def duplicates(self, group_id: str | None = None) -> list[DuplicateRow]:
        """Return the second files, of one group or of all."""
        query = sa.select(DuplicateTable).order_by(DuplicateTable.group_id, DuplicateTable.path)
        return self._rows(DuplicateRow, query if group_id is None else query.where(DuplicateTable.group_id == group_id))

    def attempts(self, group_id: str) -> list[AttemptRow]:
        """Return every attempt at a group with its error, first to last."""
        query = sa.select(AttemptTable).where(AttemptTable.group_id == group_id).order_by(AttemptTable.attempt)
        return self._rows(AttemptRow, query)

    # -- dispatch -----------------------------------------------------------------------------------------------

    def take_dispatchable(
        self, limit: int, *, converted: bool = False, resend_after_s: float | None = None, now: float | None = None
    ) -> list[Dispatch]:
        """Take pending groups, to be started by somebody else: oldest data first, and last those only owed something.

        With ``converted`` only those that have their Measurement Set.

        Each is taken once. With ``resend_after_s`` one that was taken that long ago and never claimed
        is given again **with the same key**, for the taker may have died before it sent it. Groups that
        wait for gains are left out.
        """
        now = _now(now)
        fresh = _Q.dispatched_at.is_(None)
        due = fresh if resend_after_s is None else sa.or_(fresh, _Q.dispatched_at < now - resend_after_s)
        wanted = (_Q.state == State.PENDING.value, _NOT_WAITING, due, *((_CONVERTED,) if converted else ()))
        columns = sa.select(_Q.group_id, _Q.dispatches, _Q.dispatched_at, _Q.dispatch_key)
        taken = []
        with self.database.write() as connection:
            # What another dispatcher is taking at this moment is passed over, or both would ask for the same few.
            first = columns.where(*wanted).order_by(*_TURN).limit(limit).with_for_update(skip_locked=True)
            for row in connection.execute(first).all():
                number = row.dispatches if row.dispatch_key is not None else row.dispatches + 1
                dispatch = Dispatch(row.group_id, number, row.dispatch_key or f"{row.group_id}#{number}")
                same = (
                    _Q.dispatched_at.is_(None) if row.dispatched_at is None else _Q.dispatched_at == row.dispatched_at
                )
                change = sa.update(_Q).where(_Q.group_id == row.group_id, _Q.state == State.PENDING.value, same)
                values = {"dispatched_at": now, "dispatch_key": dispatch.idempotency_key, "dispatches": number}
                if connection.execute(change.values(**values)).rowcount:
                    taken.append(dispatch)
        return taken

    def forget_dispatch(self, dispatch: Dispatch) -> bool:
        """Let a group be dispatched anew, under another key, since what was started ended without claiming it.

        Where it is not known whether anything was started, leave it: it is sent again with its key.
        Returns whether it was still unclaimed.
        """
        with self.database.write() as connection:
            here = (_Q.group_id == dispatch.group_id, _Q.dispatch_key == dispatch.idempotency_key)
            change = sa.update(_Q).where(*here, _Q.state == State.PENDING.value)
            return connection.execute(change.values(dispatched_at=None, dispatch_key=None)).rowcount > 0

    # -- work ---------------------------------------------------------------------------------------------------

    def claim(self, group_id: str, owner: Owner, *, now: float | None = None) -> GroupRow:
        """Take a pending group for ``owner``; one that it holds already stays its own.

        Raises
        ------
        MissingError
            If there is no such group.
        BusyError
            If somebody else has it.
        InputError
            If it is not there to be taken: still collecting, completed or failed.
        """
        now = _now(now)
        with self.database.write() as connection:
            if not self._take(connection, group_id, owner, now):
                self._retake(connection, group_id, owner, now)
        return self.group(group_id)

    def claim_next(self, owner: Owner, *, now: float | None = None) -> GroupRow | None:
        """Take the pending group with the oldest data, or nothing where there is none."""
        now = _now(now)
        query = sa.select(_Q.group_id).where(_Q.state == State.PENDING.value, _NOT_WAITING).order_by(*_TURN)
        while True:
            with self.database.write() as connection:
                group_id = connection.execute(query.limit(1)).scalar()
                if group_id is None:
                    return None
                taken = self._take(connection, group_id, owner, now)
            if taken:
                return self.group(group_id)

    def _take(self, connection: Connection, group_id: str, owner: Owner, now: float) -> bool:
        resuming = sa.select(ReceiptTable.step).where(ReceiptTable.group_id == group_id).exists()
        stage = sa.case((sa.or_(_Q.attempts > 0, resuming), Stage.RESUMING.value), else_=Stage.FRESH.value)
        change = sa.update(_Q).where(_Q.group_id == group_id, _Q.state == State.PENDING.value)
        values = {
            "state": State.IN_PROGRESS.value,
            "processing_stage": stage,
            "attempts": _Q.attempts + 1,
            "current_step": None,
            "error": None,
            **_held_by(owner, now),
        }
        if not connection.execute(change.values(**values)).rowcount:
            return False
        attempt = connection.execute(sa.select(_Q.attempts).where(_Q.group_id == group_id)).scalar_one()
        connection.execute(
            sa.insert(AttemptTable).values(
                group_id=group_id, attempt=attempt, owner=str(owner), started_at=now, outcome="running"
            )
        )
        return True

    def _retake(self, connection: Connection, group_id: str, owner: Owner, now: float) -> None:
        mine = (_Q.group_id == group_id, _Q.state == State.IN_PROGRESS.value, _Q.owner == owner.name)
        if connection.execute(sa.update(_Q).where(*mine).values(**_held_by(owner, now))).rowcount:
            return
        row = connection.execute(sa.select(_Q).where(_Q.group_id == group_id)).mappings().first()
        if row is None:
            raise self._missing(group_id)
        if row["state"] == State.IN_PROGRESS.value:
            raise BusyError(f"group {group_id} is being worked on by {row['owner']}", fix="wait for it to end")
        raise InputError(
            f"group {group_id} is {row['state']}, not pending",
            fix="wait for its subbands"
            if row["state"] == State.COLLECTING.value
            else f"to do it again: nightbeam groups reprocess {group_id}",
        )

    def heartbeat(self, group_id: str, owner: Owner, *, step: str | None = None, now: float | None = None) -> None:
        """Renew the lease, and say what is being done.

        Raises
        ------
        BusyError
            If the group is no longer the owner's: stop working on it.
        """
        now = _now(now)
        values: dict[str, Any] = {"heartbeat_at": now, "last_update": now}
        if step is not None:
            values["current_step"] = step
        with self.database.write() as connection:
            self._change_mine(connection, group_id, owner, values)

    def complete(self, group_id: str, owner: Owner, *, owed: Owed | None = None, now: float | None = None) -> None:
        """End the work on a group with success; what it is ``owed`` is made when nothing else waits."""
        now = _now(now)
        values = {
            "state": State.COMPLETED.value,
            "processing_stage": Stage.COMPLETED.value,
            "last_update": now,
            "finished_at": now,
            "error": None,
            "owed": None if owed is None else owed.value,
        }
        with self.database.write() as connection:
            self._mine(connection, group_id, owner)
            self._end_attempt(connection, group_id, "completed", None, now)
            self._change_mine(connection, group_id, owner, {**_FREE, **values})

    def fail(
        self,
        group_id: str,
        owner: Owner,
        error: str,
        *,
        final: bool = False,
        short_of: Literal["disk", "memory"] | None = None,
        now: float | None = None,
    ) -> GroupRow:
        """End an attempt with an error: the group is pending again, or failed after the last attempt.

        Parameters
        ----------
        group_id, owner
            The group, and who had it.
        error
            What went wrong; kept with the attempt and with the group.
        final
            No other attempt can end differently: the data themselves are at fault.
        short_of
            What the machine had too little of. Such an attempt is none of those that a group has, or all groups of a
            night would be failed by a full disk; `stopped` has them.
        now
            Epoch seconds.
        """
        now = _now(now)
        if short_of is not None and not final:
            return self._stopped(group_id, owner, short_of, error, now)
        with self.database.write() as connection:
            row = self._mine(connection, group_id, owner)
            over = final or self._is_over(connection, row, "failed")
            self._end_attempt(connection, group_id, "failed", error, now)
            self._change_mine(connection, group_id, owner, self._after_failure(row, error, over, now))
        return self.group(group_id)

    def _stopped(self, group_id: str, owner: Owner, short_of: str, error: str, now: float) -> GroupRow:
        with self.database.write() as connection:
            step = self._mine(connection, group_id, owner)["current_step"]
            self._end_attempt(connection, group_id, short_of, error, now)
            values = {**_FREE, "state": State.PENDING.value, "processing_stage": Stage.RESUMING.value, "error": error}
            self._change_mine(connection, group_id, owner, {**values, "last_update": now, "current_step": step})
        return self.group(group_id)

    def stopped(self) -> list[AttemptRow]:
        """Return the last attempts at pending groups that a bad disk or want of memory ended, oldest data first."""
        query = (
            sa.select(AttemptTable)
            .join(_Q, sa.and_(_Q.group_id == AttemptTable.group_id, _Q.attempts == AttemptTable.attempt))
            .where(_Q.state == State.PENDING.value, AttemptTable.outcome.in_(("disk", "memory")))
        )
        return self._rows(AttemptRow, query.order_by(*_CHRONOLOGICAL))

    def bytes_of(self, group_ids: Sequence[str]) -> dict[str, int]:
        """Return how many bytes the subbands of some groups had when they were recorded."""
        here = SubbandTable.group_id.in_(list(group_ids))
        size = sa.func.coalesce(sa.func.sum(SubbandTable.size_bytes), 0)
        with self.database.read() as connection:
            found = connection.execute(
                sa.select(SubbandTable.group_id, size).where(here).group_by(SubbandTable.group_id)
            )
            return {str(group_id): int(n) for group_id, n in found}

    def next_pending(self, *, converted: bool | None = None) -> str | None:
        """Return the pending group with the oldest data that does not wait for gains.

        With ``converted`` given, only among those that have their Measurement Set, or that have not.
        """
        query = sa.select(_Q.group_id).where(_Q.state == State.PENDING.value, _NOT_WAITING).order_by(*_CHRONOLOGICAL)
        if converted is not None:
            query = query.where(_CONVERTED if converted else ~_CONVERTED)
        with self.database.read() as connection:
            return connection.execute(query.limit(1)).scalar()

    def release(self, group_id: str, owner: Owner, *, reason: str = "released", now: float | None = None) -> None:
        """Give a group back unfinished, without counting it against the group."""
        now = _now(now)
        with self.database.write() as connection:
            self._mine(connection, group_id, owner)
            self._end_attempt(connection, group_id, "released", reason, now)
            values = {**_FREE, "state": State.PENDING.value, "processing_stage": Stage.RESUMING.value}
            self._change_mine(connection, group_id, owner, {**values, "last_update": now})

    def wait_for_gains(self, group_id: str, owner: Owner, reason: str, *, now: float | None = None) -> None:
        """Put a group aside until the registry has tables for its time; see `wake`."""
        now = _now(now)
        with self.database.write() as connection:
            self._mine(connection, group_id, owner)
            self._end_attempt(connection, group_id, "waiting", reason, now)
            values = {**_FREE, "state": State.PENDING.value, "processing_stage": Stage.WAITING_FOR_GAINS.value}
            self._change_mine(connection, group_id, owner, {**values, "last_update": now, "error": reason})

    def waiting_for_gains(self) -> list[GroupRow]:
        """Return the groups that wait for gains, oldest data first."""
        here = (_Q.state == State.PENDING.value, _Q.processing_stage == Stage.WAITING_FOR_GAINS.value)
        return self._rows(GroupRow, _groups().where(*here).order_by(*_CHRONOLOGICAL))

    def wake(self, group_id: str, *, now: float | None = None) -> bool:
        """Let a group that waits for gains be dispatched; returns whether it was waiting."""
        here = (_Q.group_id == group_id, _Q.processing_stage == Stage.WAITING_FOR_GAINS.value)
        change = sa.update(_Q).where(*here, _Q.state == State.PENDING.value)
        values = {"processing_stage": Stage.RESUMING.value, "last_update": _now(now), "error": None}
        with self.database.write() as connection:
            return connection.execute(change.values(**values)).rowcount > 0

    def reprocess(self, group_id: str, *, force: bool = False, now: float | None = None) -> GroupRow:
        """Make a group pending again, with a new set of attempts and nothing remembered of the old.

        Parameters
        ----------
        group_id
            The group.
        force
            Also one that somebody works on (it loses it), and one that is not full (it becomes partial).
        now
            Epoch seconds.

        Raises
        ------
        MissingError
            If there is no such group.
        BusyError
            If it is being worked on.
        InputError
            If it still lacks subbands.
        """
        now = _now(now)
        with self.database.write() as connection:
            self._reprocess(connection, self._locked(connection, group_id), now, force=force, partial=force)
        return self.group(group_id)

    def requeue(self, group_id: str, *, now: float | None = None) -> GroupRow:
        """Make a completed or failed group pending again with a new set of attempts, keeping what it finished.

        Unlike `reprocess` it forgets no receipt: a step whose receipt is there and whose product is still good
        is not done again.

        Raises
        ------
        MissingError
            If there is no such group.
        InputError
            If it is neither completed nor failed.
        """
        now = _now(now)
        values = {
            **_FREE,
            "state": State.PENDING.value,
            "processing_stage": Stage.RESUMING.value,
            "retry_count": _Q.retry_count + 1,
            "retry_base": _Q.retry_count + 1,
            "last_update": now,
            "finished_at": None,
            "error": None,
        }
        ended = (State.COMPLETED.value, State.FAILED.value)
        change = sa.update(_Q).where(_Q.group_id == group_id, _Q.state.in_(ended)).values(**values)
        with self.database.write() as connection:
            changed = connection.execute(change).rowcount
        row = self.group(group_id)
        if not changed:
            raise InputError(f"group {group_id} is {row.state}, not completed or failed", fix="let it come to its end")
        return row

    def reprocess_and_dispatch(
        self, group_id: str, *, partial: bool = False, now: float | None = None
    ) -> tuple[Dispatch, bool]:
        """Make a group pending again as `reprocess` does, and take it to be started, in one.

        One that is pending already is not asked for twice: whoever asks again gets the dispatch of the first.

        Parameters
        ----------
        group_id
            The group; it is never taken from whoever works on it.
        partial
            Also one that is not full (it becomes partial).
        now
            Epoch seconds.

        Returns
        -------
        dispatch
            To be sent, which may be done more than once.
        new
            Whether it is another one than before.

        Raises
        ------
        MissingError, BusyError, InputError
            As `reprocess`.
        """
        now = _now(now)
        with self.database.write() as connection:
            row = self._locked(connection, group_id)
            waits = row["processing_stage"] == Stage.WAITING_FOR_GAINS.value
            if row["state"] == State.PENDING.value and not waits:
                if row["dispatch_key"] is not None:
                    return Dispatch(group_id, row["dispatches"], row["dispatch_key"]), False
            else:
                self._reprocess(connection, row, now, partial=partial)
            number = row["dispatches"] + 1
            dispatch = Dispatch(group_id, number, f"{group_id}#{number}")
            values = {"dispatched_at": now, "dispatch_key": dispatch.idempotency_key, "dispatches": number}
            connection.execute(sa.update(_Q).where(_Q.group_id == group_id).values(**values))
        return dispatch, True

    def _locked(self, connection: Connection, group_id: str) -> sa.RowMapping:
        row = connection.execute(sa.select(_Q).where(_Q.group_id == group_id).with_for_update()).mappings().first()
        if row is None:
            raise self._missing(group_id)
        return row

    def _reprocess(
        self, connection: Connection, row: sa.RowMapping, now: float, *, force: bool = False, partial: bool = False
    ) -> None:
        group_id = str(row["group_id"])
        present = _present(connection, group_id)
        lacking = present < (row["expected_subbands"] or 0)
        self._may_reprocess(row, present, force=force, partial=partial)
        if row["state"] == State.IN_PROGRESS.value:
            self._end_attempt(connection, group_id, "released", "taken away by a request to reprocess", now)
        connection.execute(sa.delete(ReceiptTable).where(ReceiptTable.group_id == group_id))
        # From the beginning: with every file that has come since.
        connection.execute(sa.update(SubbandTable).where(SubbandTable.group_id == group_id).values(late=0))
        values = {
            **_FREE,
            "state": State.PENDING.value,
            "processing_stage": Stage.FRESH.value,
            "retry_count": _Q.retry_count + 1,
            "retry_base": _Q.retry_count + 1,
            "partial": int(lacking),
            "last_update": now,
            "finished_at": None,
            "error": None,
            "imaging": None,
            "owed": None,
        }
        connection.execute(sa.update(_Q).where(_Q.group_id == group_id).values(**values))

    def _may_reprocess(self, row: sa.RowMapping, present: int, *, force: bool, partial: bool) -> None:
        if row["state"] == State.IN_PROGRESS.value and not force:
            raise BusyError(
                f"group {row['group_id']} is being worked on by {row['owner']}",
                fix="wait for it to end, or take it away with --force",
            )
        if present < (row["expected_subbands"] or 0) and not partial:
            raise InputError(
                f"group {row['group_id']} has {present} of {row['expected_subbands']} subbands",
                fix="wait for the rest, or process it as partial with --force",
            )

    # -- housekeeping -------------------------------------------------------------------------------------------

    def recover(
        self,
        is_dead: Callable[[GroupRow], bool],
        *,
        lease_s: float | None = None,
        is_alive: Callable[[GroupRow], bool] = lambda _row: False,
        full: str = "",
        now: float | None = None,
    ) -> list[str]:
        """Take groups back from owners that died, or were silent for longer than ``lease_s`` and are not known to live.

        It counts as a retry; after the last one the group is failed. While a disk is ``full``, which is said here, the
        death of a process is put down to that and is not counted.
        """
        now = _now(now)
        recovered = []
        for row in self.groups(state=State.IN_PROGRESS):
            silent = now - (row.heartbeat_at or row.last_update)
            expired = lease_s is not None and silent > lease_s and not is_alive(row)
            if not expired and not is_dead(row):
                continue
            why = f"silent for {silent:.0f} s" if expired else "its process is gone"
            why += f"; no space left ({full})" if full else ""
            if self.take_back(row, why, counted=not full, now=now):
                recovered.append(row.group_id)
        return recovered

    def take_back(self, row: GroupRow, why: str, *, counted: bool = True, now: float | None = None) -> bool:
        """Take a group back from its owner, unless that has given a sign of life since ``row`` was read.

        It counts as a retry; after the last one the group is failed. It does not if not ``counted``, where the disk has
        ended its owner. Returns whether it was taken back.
        """
        now = _now(now)
        error = f"lost by {row.owner or 'an unknown worker'}: {why}"
        beat = _Q.heartbeat_at.is_(None) if row.heartbeat_at is None else _Q.heartbeat_at == row.heartbeat_at
        owner = _Q.owner.is_(None) if row.owner is None else _Q.owner == row.owner
        same = (owner, beat, _Q.last_update == row.last_update)
        here = (_Q.group_id == row.group_id, _Q.state == State.IN_PROGRESS.value, *same)
        with self.database.write() as connection:
            now_row = connection.execute(sa.select(_Q).where(*here).with_for_update()).mappings().first()
            if now_row is None:
                return False
            over = counted and self._is_over(connection, now_row, "lost")
            self._end_attempt(connection, row.group_id, "lost" if counted else "disk", error, now)
            values = self._after_failure(now_row, error, over, now)
            if not counted:
                values["retry_count"] = now_row["retry_count"]
            return connection.execute(sa.update(_Q).where(*here).values(**values)).rowcount > 0

    def stale_collecting(self, older_than_s: float, *, now: float | None = None) -> list[GroupRow]:
        """Return the groups that have been incomplete for longer than this."""
        here = (_Q.state == State.COLLECTING.value, _Q.received_at < _now(now) - older_than_s)
        return self._rows(GroupRow, _groups().where(*here).order_by(*_CHRONOLOGICAL))

    def expire_collecting(self, older_than_s: float, *, now: float | None = None) -> list[str]:
        """Fail the groups that have been incomplete for longer than this, saying what they lack."""
        now = _now(now)
        stale = self.stale_collecting(older_than_s, now=now)
        return [row.group_id for row in stale if self.expire(row, now=now)]

    def expire(self, row: GroupRow, *, now: float | None = None) -> bool:
        """Fail a group that has been incomplete for too long, saying what it lacks; returns whether it still was."""
        now = _now(now)
        there = {s.subband_idx for s in self.subbands(row.group_id)}
        expected = row.expected_subbands or 0
        lacking = ", ".join(f"sb{n:02d}" for n in range(expected) if n not in there)
        values = {
            "state": State.FAILED.value,
            "processing_stage": Stage.FAILED.value,
            "error": f"Collecting timeout: {len(there)} of {expected} subbands, missing {lacking}",
            "last_update": now,
            "finished_at": now,
        }
        here = (_Q.group_id == row.group_id, _Q.state == State.COLLECTING.value)
        with self.database.write() as connection:
            return connection.execute(sa.update(_Q).where(*here).values(**values)).rowcount > 0

    def let_partial_go(self, min_subbands: int, older_than_s: float, *, now: float | None = None) -> list[str]:
        """Make groups pending that have been incomplete for longer than this and have so many subbands.

        Their products are partial. One that is filled before somebody takes it is whole again. One whose files
        contradict each other waits until that is decided (`decide_contradictions`).
        """
        now = _now(now)
        gone = []
        for row in self.stale_collecting(older_than_s, now=now):
            if row.subbands_present < min_subbands:
                continue
            values = {"state": State.PENDING.value, "processing_stage": Stage.FRESH.value, "partial": 1}
            here = (_Q.group_id == row.group_id, _Q.state == State.COLLECTING.value)
            with self.database.write() as connection:
                if not is_of_one_mind(connection, row.group_id):
                    continue
                if connection.execute(sa.update(_Q).where(*here).values(**values, last_update=now)).rowcount:
                    gone.append(row.group_id)
        return gone

    # -- what the steps leave -----------------------------------------------------------------------------------

    def set_calibrators(self, group_id: str, matches: Sequence[Mapping[str, Any]]) -> None:
        """Store the calibrators found in the field of a group; none found is 0, unknown is NULL."""
        values = {"has_calibrator": int(bool(matches)), "calibrators": json.dumps(list(matches))}
        with self.database.write() as connection:
            connection.execute(sa.update(_Q).where(_Q.group_id == group_id).values(**values))

    def put_receipt(
        self,
        group_id: str,
        owner: Owner,
        step: str,
        content: Mapping[str, Any],
        *,
        seconds: float | None = None,
        now: float | None = None,
    ) -> None:
        """Store what a finished step left behind; only the group's owner can."""
        now = _now(now)
        with self.database.write() as connection:
            row = self._mine(connection, group_id, owner)
            values = {
                "attempt": row["attempts"],
                "finished_at": now,
                "seconds": seconds,
                "content": json.dumps(content, sort_keys=True),
            }
            upsert(connection, ReceiptTable, {"group_id": group_id, "step": step}, values)
            self._change_mine(connection, group_id, owner, {"heartbeat_at": now, "last_update": now})

    def receipt(self, group_id: str, step: str) -> dict[str, Any] | None:
        """Return what a finished step left behind, or None."""
        here = (ReceiptTable.group_id == group_id, ReceiptTable.step == step)
        with self.database.read() as connection:
            content = connection.execute(sa.select(ReceiptTable.content).where(*here)).scalar()
        return None if content is None else dict(json.loads(content))

    def receipts(self, group_id: str) -> list[ReceiptRow]:
        """Return the receipts of a group in the order in which they were made."""
        query = sa.select(ReceiptTable).where(ReceiptTable.group_id == group_id)
        return self._rows(ReceiptRow, query.order_by(ReceiptTable.finished_at))

    def drop_receipts(self, group_id: str, steps: Sequence[str]) -> None:
        """Forget finished steps, since what they left is gone or out of date."""
        here = (ReceiptTable.group_id == group_id, ReceiptTable.step.in_(list(steps)))
        with self.database.write() as connection:
            connection.execute(sa.delete(ReceiptTable).where(*here))

    def put_performance(self, group_id: str, *, now: float | None = None, **values: float | str | None) -> None:
        """Store measured seconds of a group's stages; what is not given stays."""
        given = {name: value for name, value in values.items() if value is not None}
        with self.database.write() as connection:
            upsert(connection, PerformanceTable, {"group_id": group_id}, {**given, "recorded_at": _now(now)})

    def performance(self, group_id: str) -> PerformanceRow | None:
        """Return the measured seconds of a group, or None."""
        found = self._rows(PerformanceRow, sa.select(PerformanceTable).where(PerformanceTable.group_id == group_id))
        return found[0] if found else None

    # -- inside -------------------------------------------------------------------------------------------------

    def _rows(self, kind: type[R], query: sa.Select[Any]) -> list[R]:
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        with self.database.read() as connection:
            return [kind(**{n: row[n] for n in names}) for row in connection.execute(query).mappings()]

    def _missing(self, group_id: str) -> MissingError:
        return MissingError(f"the queue has no group {group_id}", fix="nightbeam groups list shows those there are")

    def _is_over(self, connection: Connection, row: sa.RowMapping, outcome: str) -> bool:
        """Return whether an attempt that ends so is the last one.

        It is after ``max_retries`` failures, or after as many attempts that ended at the same step for
        whatever reason. Workers that die at one step after the other do not use a group up: each of
        them brought it further.
        """
        since_requeue = row["retry_count"] - row["retry_base"]
        ended = (
            sa.select(AttemptTable.outcome, AttemptTable.step)
            .where(AttemptTable.group_id == row["group_id"], AttemptTable.attempt < row["attempts"])
            .where(AttemptTable.outcome.in_(["failed", "lost"]))
            .order_by(AttemptTable.attempt.desc())
            .limit(since_requeue)
        )
        before = connection.execute(ended).all()
        failures = sum(attempt.outcome == "failed" for attempt in before) + (outcome == "failed")
        at_this_step = sum(attempt.step == row["current_step"] for attempt in before) + 1
        return bool(max(failures, at_this_step) >= self.max_retries)

    def _after_failure(self, row: sa.RowMapping, error: str, over: bool, now: float) -> dict[str, Any]:
        return {
            **_FREE,
            "state": State.FAILED.value if over else State.PENDING.value,
            "processing_stage": Stage.FAILED.value if over else Stage.RESUMING.value,
            "retry_count": row["retry_count"] + 1,
            "error": error,
            "last_update": now,
            "finished_at": now if over else None,
            "current_step": row["current_step"],
        }

    def _mine(self, connection: Connection, group_id: str, owner: Owner) -> sa.RowMapping:
        here = (_Q.group_id == group_id, _Q.state == State.IN_PROGRESS.value, _Q.owner == owner.name)
        row = connection.execute(sa.select(_Q).where(*here).with_for_update()).mappings().first()
        if row is None:
            raise self._lost(connection, group_id, owner)
        return row

    def _change_mine(self, connection: Connection, group_id: str, owner: Owner, values: Mapping[str, Any]) -> None:
        here = (_Q.group_id == group_id, _Q.state == State.IN_PROGRESS.value, _Q.owner == owner.name)
        if not connection.execute(sa.update(_Q).where(*here).values(**values)).rowcount:
            raise self._lost(connection, group_id, owner)

    def _lost(self, connection: Connection, group_id: str, owner: Owner) -> BusyError | MissingError:
        row = connection.execute(sa.select(_Q.state, _Q.owner).where(_Q.group_id == group_id)).first()
        if row is None:
            return self._missing(group_id)
        return BusyError(
            f"group {group_id} is no longer held by {owner}: it is {row.state}, owner {row.owner or 'nobody'}",
            fix="stop working on it; whoever has it now goes on",
        )

    def _end_attempt(self, connection: Connection, group_id: str, outcome: str, error: str | None, now: float) -> None:
        row = connection.execute(sa.select(_Q.attempts, _Q.current_step).where(_Q.group_id == group_id)).first()
        if row is None:
            raise self._missing(group_id)
        here = (AttemptTable.group_id == group_id, AttemptTable.attempt == row.attempts)
        values = {"ended_at": now, "outcome": outcome, "step": row.current_step, "error": error}
        connection.execute(sa.update(AttemptTable).where(*here).values(**values))


#: Rows of the seed pipeline have no data time; their arrival, as MJD, is the nearest thing.
_DATA_TIME = sa.func.coalesce(_Q.start_mjd, _Q.received_at / 86400.0 + 40587.0)
_CHRONOLOGICAL = (_DATA_TIME, _Q.group_id)
_TURN = (sa.case((_Q.owed.is_(None), 0), else_=1), *_CHRONOLOGICAL)
_CONVERTED = (
    sa.select(ReceiptTable.step)
    .where(ReceiptTable.group_id == _Q.group_id, ReceiptTable.step == "convert")
    .correlate(_Q)
    .exists()
)
_NOT_WAITING = sa.func.coalesce(_Q.processing_stage, "") != Stage.WAITING_FOR_GAINS.value


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _groups() -> sa.Select[Any]:
    present = (
        sa.select(sa.func.count())
        .select_from(SubbandTable)
        .where(SubbandTable.group_id == _Q.group_id)
        .correlate(_Q)
        .scalar_subquery()
        .label("subbands_present")
    )
    return sa.select(*_Q.__table__.columns, present)


def _among(connection: Connection, column: sa.ColumnElement[str], values: list[str]) -> sa.ColumnElement[bool]:
    """Return whether a column is one of very many values, which travel as one."""
    if connection.dialect.name == "postgresql":
        return column == sa.any_(sa.literal(values, postgresql.ARRAY(sa.Text)))
    one = sa.func.json_each(json.dumps(values)).table_valued("value")
    return column.in_(sa.select(one.c.value))


def _present(connection: Connection, group_id: str) -> int:
    query = sa.select(sa.func.count()).select_from(SubbandTable).where(SubbandTable.group_id == group_id)
    return int(connection.execute(query).scalar_one())


def _held_by(owner: Owner, now: float) -> dict[str, Any]:
    return {
        "owner": owner.name,
        "owner_host": owner.host,
        "owner_pid": owner.pid,
        "owner_started": owner.started,
        "owner_birth": owner.birth,
        "heartbeat_at": now,
        "last_update": now,
    }
