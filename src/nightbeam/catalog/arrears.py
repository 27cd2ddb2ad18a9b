"""What waits in the queue and what groups are owed, counted and changed in single statements."""

from __future__ import annotations

import time

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nightbeam.catalog.model import BacklogRow, Imaging, Owed, Owner, PressureRow, Stage, State
from nightbeam.catalog.remote import Database, insert_once
from nightbeam.catalog.schema import PressureTable, QueueTable
from nightbeam.core.errors import BusyError, InputError, MissingError

__all__ = ["Arrears", "read_backlog", "read_pressure"]

_Q = QueueTable
_P = PressureTable
_ONE = 1
#: Rows of the seed pipeline have no data time; their arrival, as MJD, is the nearest thing.
_DATA_TIME = sa.func.coalesce(_Q.start_mjd, _Q.received_at / 86400.0 + 40587.0)
_FOR_GAINS = sa.func.coalesce(_Q.processing_stage, "") == Stage.WAITING_FOR_GAINS.value
_OWED = (_Q.state == State.COMPLETED.value, _Q.owed.in_([owed.value for owed in Owed]))
_NOT_IMAGED = (State.COLLECTING.value, State.PENDING.value)


class Arrears:
    """The columns ``imaging`` and ``owed`` of the queue, and the table ``pressure``.

    Parameters
    ----------
    database
        The queue.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def backlog(self) -> BacklogRow:
        """Count the groups that wait, that are worked on and that are owed something."""
        with self.database.read() as connection:
            return read_backlog(connection)

    def pressure(self) -> PressureRow | None:
        """Return how far behind the site was last found to be; None where nobody has looked."""
        with self.database.read() as connection:
            return read_pressure(connection)

    def put_pressure(self, level: str, *, before: PressureRow | None, waiting: int, now: float | None = None) -> bool:
        """Note a change of level; returns False where somebody else has noted one since ``before`` was read."""
        values = {"level": level, "since": _now(now), "waiting": waiting}
        with self.database.write() as connection:
            if before is None:
                return insert_once(connection, _P, {"id": _ONE}, values)
            same = (_P.id == _ONE, _P.level == before.level, _P.since == before.since)
            return connection.execute(sa.update(_P).where(*same).values(**values)).rowcount > 0

    def decide(self, group_id: str, owner: Owner, imaging: Imaging, *, change: bool = False) -> Imaging:
        """Let the image of a group be made so, unless that was decided before; returns what holds.

        Parameters
        ----------
        group_id, owner
            The group, and who has it.
        imaging
            What it would be.
        change
            Also where something else was decided.

        Raises
        ------
        BusyError
            If the group is no longer the owner's.
        """
        mine = (_Q.group_id == group_id, _Q.state == State.IN_PROGRESS.value, _Q.owner == owner.name)
        free = () if change else (_Q.imaging.is_(None),)
        with self.database.write() as connection:
            connection.execute(sa.update(_Q).where(*mine, *free).values(imaging=imaging.value))
            found = connection.execute(sa.select(_Q.imaging).where(*mine)).scalar()
        if found is None:
            raise BusyError(f"group {group_id} is no longer held by {owner}", fix="stop working on it")
        return Imaging(found)

    def force(self, group_id: str, imaging: Imaging, *, now: float | None = None) -> None:
        """Let the image of a group be made so, whatever the pressure; one that is owed its full image gets it now.

        Raises
        ------
        MissingError
            If there is no such group.
        BusyError
            If it is being worked on.
        InputError
            If its image was made, and the full one is not owed.
        """
        here = (_Q.group_id == group_id,)
        with self.database.write() as connection:
            row = connection.execute(sa.select(_Q.state, _Q.owed).where(*here).with_for_update()).first()
            if row is None:
                raise MissingError(f"the queue has no group {group_id}", fix="nightbeam groups list")
            if row.state == State.IN_PROGRESS.value:
                raise BusyError(f"group {group_id} is being worked on", fix="wait for it to end")
            if row.state in _NOT_IMAGED:
                connection.execute(sa.update(_Q).where(*here).values(imaging=imaging.value))
            elif row.state == State.COMPLETED.value and row.owed == Owed.IMAGE.value and imaging is Imaging.FULL:
                # Nothing is owed any more: it is a group like any other, in the order of its data.
                connection.execute(sa.update(_Q).where(*here).values(**_again(_now(now)), imaging="full", owed=None))
            else:
                raise InputError(
                    f"group {group_id} is {row.state} and owed no image",
                    fix=f"to do it again: nightbeam groups reprocess {group_id}",
                )

    def owed(self, *, limit: int | None = None) -> list[tuple[str, Owed]]:
        """Return the completed groups that are owed something, oldest data first."""
        query = sa.select(_Q.group_id, _Q.owed).where(*_OWED).order_by(_DATA_TIME, _Q.group_id).limit(limit)
        with self.database.read() as connection:
            return [(str(row.group_id), Owed(row.owed)) for row in connection.execute(query)]

    def take_up(self, group_id: str, *, now: float | None = None) -> bool:
        """Make a completed group pending again for what it is owed, keeping what it finished; returns whether it is.

        It is not where groups wait that are not imaged yet, or somebody works on one, or another one was taken up and
        is not begun.
        """
        image = sa.case((_Q.owed == Owed.IMAGE.value, Imaging.FULL.value), else_=_Q.imaging)
        change = sa.update(_Q).where(_Q.group_id == group_id, *_OWED)
        with self.database.write() as connection:
            found = read_backlog(connection)
            if found.waiting or found.in_work or found.owed_waiting:
                return False
            return connection.execute(change.values(**_again(_now(now)), imaging=image)).rowcount > 0

    def pay(self, group_id: str, owed: Owed) -> None:
        """Note that a completed group is owed this no longer."""
        here = (_Q.group_id == group_id, _Q.state == State.COMPLETED.value, _Q.owed == owed.value)
        with self.database.write() as connection:
            connection.execute(sa.update(_Q).where(*here).values(owed=None))


def read_backlog(connection: Connection) -> BacklogRow:
    """Return what `Arrears.backlog` does, over a connection."""

    def count(*conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((sa.and_(*conditions), 1), else_=0)), 0)

    pending, working = _Q.state == State.PENDING.value, _Q.state == State.IN_PROGRESS.value
    waits = sa.and_(pending, ~_FOR_GAINS, _Q.owed.is_(None))
    living = sa.select(
        count(waits),
        count(working, _Q.owed.is_(None)),
        count(pending, _FOR_GAINS),
        count(pending, ~_FOR_GAINS, _Q.owed.is_not(None)),
        count(working, _Q.owed.is_not(None)),
        sa.func.min(sa.case((waits, _DATA_TIME))),
    ).where(_Q.state.in_([State.PENDING.value, State.IN_PROGRESS.value]))
    owed = sa.select(_Q.owed, sa.func.count()).where(*_OWED).group_by(_Q.owed)
    waiting, in_work, for_gains, owed_waiting, owed_in_work, oldest = connection.execute(living).one()
    counts = {str(what): int(n) for what, n in connection.execute(owed)}
    return BacklogRow(
        int(waiting),
        int(in_work),
        int(for_gains),
        int(owed_waiting),
        int(owed_in_work),
        counts.get(Owed.IMAGE, 0),
        counts.get(Owed.FIGURES, 0),
        None if oldest is None else float(oldest),
    )


def read_pressure(connection: Connection) -> PressureRow | None:
    """Return what `Arrears.pressure` does, over a connection."""
    row = connection.execute(sa.select(_P.level, _P.since, _P.waiting).where(_P.id == _ONE)).first()
    return None if row is None else PressureRow(str(row.level), float(row.since), int(row.waiting))


def _again(now: float) -> dict[str, object]:
    """Return the columns of a completed group that is pending again with a new set of attempts."""
    return {
        "state": State.PENDING.value,
        "processing_stage": Stage.RESUMING.value,
        "retry_count": _Q.retry_count + 1,
        "retry_base": _Q.retry_count + 1,
        "dispatched_at": None,
        "dispatch_key": None,
        "current_step": None,
        "last_update": now,
        "finished_at": None,
        "error": None,
    }


def _now(now: float | None) -> float:
    return time.time() if now is None else now
