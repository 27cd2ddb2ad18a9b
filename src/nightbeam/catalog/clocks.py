"""What the clocks of machines said at their last scans, and the ages of groups that follow them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nightbeam.catalog.model import ClockStep, State
from nightbeam.catalog.remote import Database, insert_once
from nightbeam.catalog.schema import ClockTable, QueueTable

__all__ = ["Clocks"]

_T = ClockTable
_Q = QueueTable
#: So far from the present a time may be that was written by the clock as it is now.
_SLACK_S = 1.0


class Clocks:
    """The table ``clocks`` of the queue: one row for each boot of a machine that scans.

    Containers of one machine have its boot in common, and its clock.

    Parameters
    ----------
    database
        The queue.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def follow(self, boot: str, host: str, *, wall: float, since_boot: float, least_step_s: float) -> ClockStep:
        """Compare a clock with what was noted, note it, and let groups that collect keep their age.

        All of it is one transaction, so that whoever is killed, and however many look at once, a step is followed once.

        Parameters
        ----------
        boot, host
            Which machine.
        wall, since_boot
            Epoch seconds, and seconds since the boot.
        least_step_s
            Smaller steps are none.
        """
        now = {"host": host, "wall": wall, "since_boot": since_boot}
        row_of = sa.select(_T).where(_T.boot == boot).with_for_update()
        with self.database.write() as connection:
            row = connection.execute(row_of).mappings().first()
            if row is None:
                if insert_once(connection, _T, {"boot": boot}, {**now, "stepped": 0}):
                    connection.execute(sa.delete(_T).where(_T.host == host, _T.boot != boot))
                    return ClockStep()
                row = connection.execute(row_of).mappings().one()
            elapsed, beats = since_boot - row["since_boot"], _beats(row["beats"])
            if elapsed <= 0.0:  # somebody looked after us, and followed what there was to follow
                return ClockStep(stepped=bool(row["stepped"]), beats=beats)
            step = wall - row["wall"] - elapsed
            step = step if abs(step) > least_step_s else 0.0
            moved = _keep_ages(connection, step, wall, elapsed, self._alone(connection, boot)) if step else 0
            stepped = bool(row["stepped"]) or step != 0.0
            connection.execute(sa.update(_T).where(_T.boot == boot).values(**now, stepped=int(stepped)))
        return ClockStep(step, elapsed, stepped, beats, moved)

    def _alone(self, connection: Connection, boot: str) -> bool:
        others = sa.select(sa.func.count()).select_from(_T).where(_T.boot != boot)
        return connection.execute(others).scalar_one() == 0

    def keep_beats(self, boot: str, beats: Mapping[str, tuple[float, float]]) -> None:
        """Keep what a machine knows of the signs of life of others."""
        text = json.dumps({group: list(beat) for group, beat in sorted(beats.items())})
        with self.database.write() as connection:
            connection.execute(sa.update(_T).where(_T.boot == boot).values(beats=text))


def _keep_ages(connection: Connection, step_s: float, wall: float, elapsed_s: float, alone: bool) -> int:
    """Move the times of the groups that are collecting; those of the last moments are by the clock as it is now.

    Which machine received a group is not known. Where others scan too, only those are moved that grow no older by it
    and do not come to lie in the future: one that another machine received is then given more time, never less.
    """
    other = sa.or_(_Q.received_at < wall - elapsed_s - _SLACK_S, _Q.received_at > wall + _SLACK_S)
    if not alone:
        other = _Q.received_at <= wall - step_s + _SLACK_S if step_s > 0.0 else _Q.received_at > wall + _SLACK_S
    change = sa.update(_Q).where(_Q.state == State.COLLECTING.value, other)
    values = {"received_at": _Q.received_at + step_s, "last_update": _Q.last_update + step_s}
    return connection.execute(change.values(**values)).rowcount


def _beats(text: str | None) -> dict[str, tuple[float, float]]:
    found: dict[str, Any] = json.loads(text) if text else {}
    return {str(group): (float(beat[0]), float(beat[1])) for group, beat in found.items()}
