"""Which files belong together. Pure: names and header times in, groups out, in whatever order they came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from nightbeam.core.errors import InputError
from nightbeam.core.keys import GroupId
from nightbeam.core.times import datetime_from_jd
from nightbeam.ingest.model import Arrival, Kind, Majority, SubbandGroup

__all__ = ["chain", "difference", "group_arrivals", "is_alike", "majority"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: As the conversion wants them: the times of one observation are bit-identical, and so is its pointing.
_SAME_START_DAYS = 1e-3 / 86400.0
_SAME_DEC_DEG = 6e-5


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


def is_alike(one: Kind, other: Kind) -> bool:
    """Return whether two files may be of one observation, by what is known of both."""
    return (
        _near(one.start_mjd, other.start_mjd, _SAME_START_DAYS)
        and _near(one.dec_deg, other.dec_deg, _SAME_DEC_DEG)
        and (not one.layout or not other.layout or one.layout == other.layout)
    )


def majority(files: Iterable[tuple[int, Kind]]) -> Majority | None:
    """Return what most of some files say, each subband counting once; the same in whatever order they come.

    Parameters
    ----------
    files
        The subband of each, and what it says. Without any there is no majority.
    """
    files = list(files)
    said = {kind for _, kind in files if kind.start_mjd is not None} or {kind for _, kind in files}
    votes = {kind: len({subband for subband, other in files if is_alike(kind, other)}) for kind in said}
    if not votes:
        return None
    first = min(votes, key=lambda kind: (-votes[kind], _known_last(kind)))
    tied = any(votes[kind] == votes[first] and not is_alike(kind, first) for kind in votes)
    return Majority(first, votes[first], tied)


def difference(kind: Kind, others: Kind) -> str:
    """Return in words in what a file contradicts the others of its group."""
    if kind.start_mjd is not None and others.start_mjd is not None:
        late_s = (kind.start_mjd - others.start_mjd) * 86400.0
        if abs(late_s) > _SAME_START_DAYS * 86400.0:
            return f"it starts {late_s:+.3f} s from the others"
    if kind.dec_deg is not None and others.dec_deg is not None and abs(kind.dec_deg - others.dec_deg) > _SAME_DEC_DEG:
        return f"its pointing is Dec {kind.dec_deg:.4f} deg, that of the others {others.dec_deg:.4f} deg"
    return f"it holds {kind.layout}, the others {others.layout}"


def _near(one: float | None, other: float | None, within: float) -> bool:
    return one is None or other is None or abs(one - other) <= within


def _known_last(kind: Kind) -> tuple[tuple[bool, float], tuple[bool, float], str]:
    """Return what orders kinds of as many subbands: those of which more is known come first."""
    start, dec = ((value is None, value or 0.0) for value in (kind.start_mjd, kind.dec_deg))
    return start, dec, kind.layout or "\uffff"


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
