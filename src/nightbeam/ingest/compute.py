"""Which files belong together. Pure: names and header times in, groups out, in whatever order they came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from nightbeam.core.errors import InputError
from nightbeam.core.keys import GroupId
from nightbeam.core.times import datetime_from_jd
from nightbeam.ingest.model import Arrival, SubbandGroup

__all__ = ["chain", "group_arrivals"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def group_arrivals(arrivals: Iterable[Arrival], *, gap_s: float = 90.0) -> list[SubbandGroup]:
    """Return the groups that files form, in the order of their times.

    Files whose header was read belong together when they start at the same time, rounded to 1 ms:
    the header times of one observation are bit-identical in its 16 files, while their names differ by
    up to 82 s. Files without a header are chained by name, a gap longer than ``gap_s`` beginning a
    new group; where such a chain holds files with a header, they join the nearest of those.

    Parameters
    ----------
    arrivals
        The files, in any order.
    gap_s
        Any value from 30 to 200 s separates the 2,231 observations of the real inventory.

    Returns
    -------
    list of SubbandGroup
        Sorted by time; the same for every order of ``arrivals``.

    Raises
    ------
    InputError
        If a file has neither a header time nor a name with a time.
    """
    items = sorted(set(arrivals), key=_order)
    groups = []
    for link in chain(items, gap_s=gap_s):
        groups += _split(link)
    return sorted(_joined(groups), key=lambda g: (g.group_id, g.start_jd or 0.0))


def chain(arrivals: Sequence[Arrival], *, gap_s: float = 90.0) -> list[list[Arrival]]:
    """Return the arrivals in runs whose neighbouring names lie no further apart than ``gap_s``."""
    runs: list[list[Arrival]] = []
    last: datetime | None = None
    for arrival in sorted(arrivals, key=_order):
        when = _when(arrival)
        if last is None or when - last > timedelta(seconds=gap_s):
            runs.append([])
        runs[-1].append(arrival)
        last = when
    return runs


def _joined(groups: list[SubbandGroup]) -> list[SubbandGroup]:
    """Return the groups with those in one that start together, however far a clock has taken their names apart."""
    by_start: dict[int, list[Arrival]] = {}
    for group in groups:
        if group.start_jd is not None:
            by_start.setdefault(_milliseconds(datetime_from_jd(group.start_jd)), []).extend(group.arrivals)
    by_names = [group for group in groups if group.start_jd is None]
    return [*by_names, *(_confirmed(files) for files in by_start.values())]


def _split(run: list[Arrival]) -> list[SubbandGroup]:
    by_start: dict[int, list[Arrival]] = {}
    for arrival in run:
        if arrival.start_jd is not None:
            by_start.setdefault(_milliseconds(datetime_from_jd(arrival.start_jd)), []).append(arrival)
    nameless = [a for a in run if a.start_jd is None]
    if not by_start:
        return [SubbandGroup(GroupId.from_name(min(_when(a) for a in nameless)), _sorted(nameless), None)]
    # By the names that each start had in the beginning, so that the order of joining makes no difference.
    centres = {start: [_milliseconds(_when(a)) for a in files] for start, files in by_start.items()}
    for arrival in nameless:
        here = _milliseconds(_when(arrival))
        nearest = min(sorted(centres), key=lambda start: min(abs(here - there) for there in centres[start]))
        by_start[nearest].append(arrival)
    return [_confirmed(files) for _, files in sorted(by_start.items())]


def _confirmed(files: list[Arrival]) -> SubbandGroup:
    start = min(a.start_jd for a in files if a.start_jd is not None)
    return SubbandGroup(GroupId.from_jd(start), _sorted(files), start)


def _sorted(files: list[Arrival]) -> tuple[Arrival, ...]:
    return tuple(sorted(files, key=lambda a: (a.subband, *_order(a))))


def _order(arrival: Arrival) -> tuple[datetime, int, str]:
    return _when(arrival), arrival.subband, str(arrival.path)


def _when(arrival: Arrival) -> datetime:
    if arrival.stamp is not None:
        return arrival.stamp
    if arrival.start_jd is not None:
        return datetime_from_jd(arrival.start_jd)
    raise InputError(
        f"{arrival.path} has neither a header nor a name with a time", fix="name it YYYY-MM-DDTHH:MM:SS_sbNN.hdf5"
    )


def _milliseconds(when: datetime) -> int:
    return round((when - _EPOCH) / timedelta(milliseconds=1))
