"""How files get into the queue: each in its group, where the majority says which observation that is.

All of it happens in the transaction of whoever calls, with the group's row locked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nightbeam.catalog.model import FileFact, GroupFact, Recorded, Stage, State
from nightbeam.catalog.remote import insert_once, upsert
from nightbeam.catalog.schema import BadFileTable, DuplicateTable, QueueTable, SubbandTable
from nightbeam.ingest.compute import difference, is_alike, majority
from nightbeam.ingest.model import Kind, Majority

__all__ = ["contradicting", "decide", "free_duplicates", "is_of_one_mind", "make_group", "note_bad", "record_files"]

_Q = QueueTable
_ROW = (_Q.group_id, _Q.state, _Q.processing_stage, _Q.expected_subbands, _Q.start_mjd, _Q.start_source, _Q.mid_mjd,
        _Q.dec_deg)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a group: one that is recorded, or one that is offered."""

    subband: int
    path: str
    kind: Kind
    mid_mjd: float | None = None
    size_bytes: int | None = None
    mtime: float | None = None


def make_group(
    connection: Connection, group: GroupFact, expected: int, chunk_minutes: float | None, now: float
) -> sa.RowMapping:
    """Return the row of a group, locked; it is made where there is none."""
    facts = _facts(group)
    query = sa.select(*_ROW).where(_Q.group_id == group.group_id).with_for_update()
    row = connection.execute(query).mappings().first()
    if row is None:
        values = {
            "state": State.COLLECTING.value,
            "received_at": now,
            "last_update": now,
            "expected_subbands": expected,
            "processing_stage": Stage.COLLECTING.value,
            "chunk_minutes": chunk_minutes,
        }
        insert_once(connection, _Q, {"group_id": group.group_id}, {**values, **facts})
        row = connection.execute(query).mappings().one()
    elif row["start_mjd"] is None or (row["start_source"] != "header" and group.start_source == "header"):
        connection.execute(sa.update(_Q).where(_Q.group_id == group.group_id).values(**facts))
        row = connection.execute(query).mappings().one()
    return row


def record_files(
    connection: Connection, row: sa.RowMapping, group: GroupFact, files: Iterable[FileFact], now: float
) -> tuple[dict[Path, Recorded], bool]:
    """Record files of a group; returns what became of each, and whether the group is of one mind.

    As long as nothing is said by more than half of the subbands that are expected, all are recorded. Then what
    contradicts the majority is bad, be it new or recorded before; which it is does not depend on who came first. A
    group that somebody has begun with stays what it is.
    """
    there, behind = _recorded(connection, row), _duplicates(connection, row["group_id"])
    offered = [_offered(file, group) for file in files]
    open_still = row["state"] in (State.COLLECTING.value, State.FAILED.value)
    found = _majority([*there, *behind])
    if found is None or (open_still and not _is_certain(found, row)):
        found = _majority([*there, *behind, *offered])
    assert found is not None
    # What comes to a group that was given up is judged as it would have been at its end.
    over = row["state"] == State.FAILED.value and not found.tied
    certain = not open_still or over or _is_certain(found, row)
    result: dict[Path, Recorded] = {}
    if certain and open_still:
        result = _evict(connection, row["group_id"], there, behind, found.kind, now)
    taken = _was_taken(row)
    firsts = {file.subband: file.path for file in there if result.get(Path(file.path)) is not Recorded.ODD}
    for file in offered:
        if certain and not is_alike(file.kind, found.kind):
            _note_odd(connection, row["group_id"], file, found.kind, now)
            result[Path(file.path)] = Recorded.ODD
        else:
            first = firsts.get(file.subband)
            result[Path(file.path)] = _record_one(connection, row["group_id"], file, first, now, taken=taken)
            firsts.setdefault(file.subband, file.path)
    if open_still:
        _keep_facts(connection, row, [*there, *offered], found.kind)
    return result, certain


def contradicting(connection: Connection, older_than: float) -> list[str]:
    """Return the groups that have been collecting since before a time and hold files that contradict each other."""
    kinds = (SubbandTable.start_mjd, SubbandTable.dec_deg, SubbandTable.layout)
    query = (
        sa.select(_Q.group_id)
        .join(SubbandTable, SubbandTable.group_id == _Q.group_id)
        .where(_Q.state == State.COLLECTING.value, _Q.received_at < older_than)
        .group_by(_Q.group_id)
        .having(sa.or_(*(sa.func.count(sa.distinct(kind)) > 1 for kind in kinds)))
        .order_by(_Q.group_id)
    )
    return list(connection.execute(query).scalars())


def decide(connection: Connection, group_id: str, now: float) -> dict[Path, Recorded]:
    """Have the most of the files of a group that collects be right, few as they are; the group of a tie is failed."""
    row = connection.execute(sa.select(*_ROW).where(_Q.group_id == group_id).with_for_update()).mappings().first()
    if row is None or row["state"] != State.COLLECTING.value:
        return {}
    there, behind = _recorded(connection, row), _duplicates(connection, group_id)
    found = _majority([*there, *behind])
    odd = [] if found is None else [file for file in there if not is_alike(file.kind, found.kind)]
    if found is None or not odd:
        return {}
    if found.tied:
        values = {
            "state": State.FAILED.value,
            "processing_stage": Stage.FAILED.value,
            "error": "its files contradict each other, as many one way as another: of "
            f"{Path(odd[0].path).name}, {difference(odd[0].kind, found.kind)}",
            "last_update": now,
            "finished_at": now,
        }
        connection.execute(sa.update(_Q).where(_Q.group_id == group_id).values(**values))
        return {}
    result = _evict(connection, group_id, there, behind, found.kind, now)
    _keep_facts(connection, row, there, found.kind)
    return result


def is_of_one_mind(connection: Connection, group_id: str) -> bool:
    """Return whether no file of a group contradicts most of them; its row is locked."""
    row = connection.execute(sa.select(*_ROW).where(_Q.group_id == group_id).with_for_update()).mappings().first()
    there = [] if row is None else _recorded(connection, row)
    found = _majority([*there, *_duplicates(connection, group_id)])
    return found is None or all(is_alike(file.kind, found.kind) for file in there)


def free_duplicates(connection: Connection, group_id: str, subbands: Iterable[int]) -> list[Path]:
    """Forget the second files of some subbands, whose first is gone, so that they are looked at as new ones."""
    here = (DuplicateTable.group_id == group_id, DuplicateTable.subband_idx.in_(sorted(set(subbands))))
    paths = connection.execute(sa.select(DuplicateTable.path).where(*here)).scalars().all()
    if paths:
        connection.execute(sa.delete(DuplicateTable).where(*here))
    return [Path(path) for path in paths]


def note_bad(connection: Connection, path: str, values: Mapping[str, Any]) -> None:
    """Note that a file is no subband that can be used."""
    upsert(connection, BadFileTable, {"path": path}, {"not_moved": None, "group_id": None, **values})


# -- inside -----------------------------------------------------------------------------------------------------


def _facts(group: GroupFact) -> dict[str, Any]:
    return {
        "start_mjd": group.start_mjd,
        "start_source": group.start_source,
        "mid_mjd": group.mid_mjd,
        "dec_deg": group.dec_deg,
    }


def _offered(file: FileFact, group: GroupFact) -> _File:
    start = group.start_mjd if file.start_mjd is None and group.start_source == "header" else file.start_mjd
    dec = group.dec_deg if file.dec_deg is None else file.dec_deg
    mid = group.mid_mjd if file.mid_mjd is None else file.mid_mjd
    kind = Kind(start, dec, file.layout or None)
    return _File(file.subband, str(file.path), kind, mid, file.size_bytes, file.mtime)


def _recorded(connection: Connection, row: sa.RowMapping) -> list[_File]:
    query = sa.select(SubbandTable.__table__).where(SubbandTable.group_id == row["group_id"])
    start = row["start_mjd"] if row["start_source"] == "header" else None
    found = []
    for file in connection.execute(query.order_by(SubbandTable.subband_idx)).mappings():
        # Of an older nightbeam: what it took for granted.
        before = file["start_mjd"] is None
        kind = Kind(start, row["dec_deg"]) if before else Kind(file["start_mjd"], file["dec_deg"], file["layout"])
        mid = row["mid_mjd"] if before else file["mid_mjd"]
        found.append(_File(file["subband_idx"], file["path"], kind, mid, file["size_bytes"], file["mtime"]))
    return found


def _duplicates(connection: Connection, group_id: str) -> list[_File]:
    query = sa.select(DuplicateTable.__table__).where(DuplicateTable.group_id == group_id)
    return [
        _File(file["subband_idx"], file["path"], Kind(file["start_mjd"], file["dec_deg"], file["layout"]))
        for file in connection.execute(query).mappings()
    ]


def _majority(files: list[_File]) -> Majority | None:
    return majority((file.subband, file.kind) for file in files)


def _is_certain(found: Majority, row: sa.RowMapping) -> bool:
    """Return whether no other files that may come can be more."""
    return 2 * found.subbands > (row["expected_subbands"] or 1)


def _evict(
    connection: Connection, group_id: str, there: list[_File], behind: list[_File], right: Kind, now: float
) -> dict[Path, Recorded]:
    """Let a group go of what contradicts it; returns that, and what is to be looked at anew."""
    odd = [file for file in there if not is_alike(file.kind, right)]
    odd_behind = [file.path for file in behind if not is_alike(file.kind, right)]
    freed = [Path(path) for path in odd_behind]
    if odd_behind:
        connection.execute(sa.delete(DuplicateTable).where(DuplicateTable.path.in_(odd_behind)))
    if odd:
        # Some of these were odd to those who are odd now.
        here = BadFileTable.group_id == group_id
        freed += [Path(path) for path in connection.execute(sa.select(BadFileTable.path).where(here)).scalars()]
        connection.execute(sa.delete(BadFileTable).where(here))
        freed += free_duplicates(connection, group_id, (file.subband for file in odd))
    for file in odd:
        same = (SubbandTable.group_id == group_id, SubbandTable.subband_idx == file.subband)
        connection.execute(sa.delete(SubbandTable).where(*same, SubbandTable.path == file.path))
        _note_odd(connection, group_id, file, right, now)
    return {**dict.fromkeys(freed, Recorded.FREED), **{Path(file.path): Recorded.ODD for file in odd}}


def _note_odd(connection: Connection, group_id: str, file: _File, right: Kind, now: float) -> None:
    reason = f"{Path(file.path).name} is no part of group {group_id}: {difference(file.kind, right)}"
    values = {"reason": reason, "size_bytes": file.size_bytes, "mtime": file.mtime, "recorded_at": now}
    note_bad(connection, file.path, {**values, "group_id": group_id})


def _record_one(
    connection: Connection, group_id: str, file: _File, first: str | None, now: float, *, taken: bool
) -> Recorded:
    """Record a file; ``first`` is what is recorded of its subband, if anything."""
    kind = {"start_mjd": file.kind.start_mjd, "dec_deg": file.kind.dec_deg, "layout": file.kind.layout}
    if first is None:
        connection.execute(
            sa.insert(SubbandTable).values(
                group_id=group_id,
                subband_idx=file.subband,
                path=file.path,
                size_bytes=file.size_bytes,
                mtime=file.mtime,
                recorded_at=now,
                late=int(taken),
                mid_mjd=file.mid_mjd,
                **kind,
            )
        )
        return Recorded.LATE if taken else Recorded.NEW
    if first == file.path:
        return Recorded.KNOWN
    values = {"group_id": group_id, "subband_idx": file.subband, "first_path": first, "recorded_at": now, **kind}
    known = not upsert(connection, DuplicateTable, {"path": file.path}, values)
    return Recorded.KNOWN if known else Recorded.DUPLICATE


def _was_taken(row: sa.RowMapping) -> bool:
    """Return whether somebody has begun with a group, or given it up: what comes now comes late."""
    if row["state"] == State.COLLECTING.value:
        return False
    return not (row["state"] == State.PENDING.value and row["processing_stage"] == Stage.FRESH.value)


def _keep_facts(connection: Connection, row: sa.RowMapping, files: list[_File], right: Kind) -> None:
    """Have the group's row say what most of its files do."""
    alike = [file for file in files if file.kind.start_mjd is not None and is_alike(file.kind, right)]
    if not alike:
        return
    one = min(alike, key=lambda file: file.path)
    facts = {"start_mjd": one.kind.start_mjd, "mid_mjd": one.mid_mjd, "dec_deg": one.kind.dec_deg}
    changed = {name: value for name, value in facts.items() if value is not None and value != row[name]}
    if changed:
        connection.execute(sa.update(_Q).where(_Q.group_id == row["group_id"]).values(**changed, start_source="header"))
