"""Which calibration tables belong to a set, and which set serves a time. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nightbeam.catalog.model import CalTableRow, TableSpec

__all__ = ["Candidate", "candidates", "rank", "serves_until", "table_kind", "tables_of_prefix"]

#: suffix of a table's name -> (type, place in the chain), as the DSA-110 pipeline writes them, and our ``_gcal``.
SUFFIXES: dict[str, tuple[str, int]] = {
    "_kcal": ("K", 10),
    "_2kcal": ("K", 10),
    "_bacal": ("BA", 20),
    "_bpcal": ("BP", 30),
    "_gacal": ("GA", 40),
    "_gcal": ("G", 40),
    "_gpcal": ("GP", 50),
    "_2gcal": ("2G", 60),
    "_flux.cal": ("FLUX", 70),
    "_fluxcal": ("FLUX", 70),
}
#: A table on the left corrects again what the one on the right has corrected: never apply both.
TWICE: dict[str, str] = {"_2kcal": "_kcal", "_2gcal": "_gpcal"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A whole set as the registry has it; the window is where all of its active tables are valid."""

    set_name: str
    tables: tuple[CalTableRow, ...]
    valid_start_mjd: float
    valid_end_mjd: float
    mid_mjd: float
    dec_deg: float | None
    created_at: float

    def covers(self, mjd: float) -> bool:
        """Return whether the window contains a time."""
        return self.valid_start_mjd <= mjd <= self.valid_end_mjd


def table_kind(name: str) -> tuple[str, int] | None:
    """Return the type and place of a table by the end of its name, or None for any other name."""
    suffix = _suffix(name)
    return None if suffix is None else SUFFIXES[suffix]


def tables_of_prefix(paths: Iterable[Path], *, cal_field: str | None, refant: str | None) -> list[TableSpec]:
    """Return the tables among ``paths`` whose suffix is known, in the order in which they are applied.

    A fast delay beside the slow one, and short gains beside phase gains, are left out: applied
    after the other they would correct the same thing twice.
    """
    known = {path: suffix for path in paths if (suffix := _suffix(path.name)) is not None}
    there = set(known.values())
    specs = [
        TableSpec(path, *SUFFIXES[suffix], cal_field, refant)
        for path, suffix in known.items()
        if TWICE.get(suffix) not in there
    ]
    return sorted(specs, key=lambda spec: (spec.order_index, str(spec.path)))


def candidates(rows: Sequence[CalTableRow]) -> list[Candidate]:
    """Return the sets that active tables form; those without a window are no candidates for any time."""
    by_set: dict[str, list[CalTableRow]] = {}
    for row in rows:
        if row.status == "active":
            by_set.setdefault(row.set_name, []).append(row)
    found = (_candidate(name, tables) for name, tables in by_set.items())
    return [candidate for candidate in found if candidate is not None]


def rank(
    sets: Sequence[Candidate],
    mjd: float,
    *,
    dec_deg: float | None = None,
    dec_tolerance_deg: float = 1.0,
    borrow_days: float = 0.0,
) -> list[Candidate]:
    """Return the sets that may serve a time, best first.

    Sets whose window contains the time come first, the nearest in time before the others and the
    newest before one equally near; then, within ``borrow_days``, those of the same declination that
    would have to be borrowed.
    """

    def key(candidate: Candidate) -> tuple[bool, float, float]:
        return not candidate.covers(mjd), abs(mjd - candidate.mid_mjd), -candidate.created_at

    def may_serve(candidate: Candidate) -> bool:
        same = _same_strip(candidate.dec_deg, dec_deg, dec_tolerance_deg)
        if candidate.covers(mjd):
            return same is not False
        return same is True and abs(mjd - candidate.mid_mjd) <= borrow_days

    return sorted(filter(may_serve, sets), key=key)


def serves_until(
    candidate: Candidate, *, dec_deg: float | None, dec_tolerance_deg: float = 1.0, borrow_days: float = 0.0
) -> float | None:
    """Return the last time (MJD) that `rank` would give a set to, None for a set of another strip."""
    same = _same_strip(candidate.dec_deg, dec_deg, dec_tolerance_deg)
    if same is False:
        return None
    return max(candidate.valid_end_mjd, candidate.mid_mjd + borrow_days) if same else candidate.valid_end_mjd


def _same_strip(one: float | None, other: float | None, tolerance_deg: float) -> bool | None:
    return None if one is None or other is None else abs(one - other) <= tolerance_deg


def _candidate(name: str, tables: list[CalTableRow]) -> Candidate | None:
    starts = [t.valid_start_mjd for t in tables]
    ends = [t.valid_end_mjd for t in tables]
    if None in starts or None in ends:
        return None
    start, end = max(s for s in starts if s is not None), min(e for e in ends if e is not None)
    if not (math.isfinite(start) and math.isfinite(end)) or start > end:
        return None
    mids = [t.mid_mjd for t in tables if t.mid_mjd is not None]
    return Candidate(
        set_name=name,
        tables=tuple(sorted(tables, key=lambda t: (t.order_index, t.id))),
        valid_start_mjd=start,
        valid_end_mjd=end,
        mid_mjd=mids[0] if mids else (start + end) / 2.0,
        dec_deg=next((t.dec_deg for t in tables if t.dec_deg is not None), None),
        created_at=max(t.created_at for t in tables),
    )


def _suffix(name: str) -> str | None:
    # The longest first: `_2gcal` also ends in `gcal`, but no suffix here is the end of another one.
    return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)
