"""How many events of each run were looked at, and how many of them were hits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from nightbeam.stream.model import BatchHeader

__all__ = ["RunTallies", "RunTally"]

#: Runs that are remembered; those that were heard of longest ago are let go.
MOST_RUNS: Final = 200


@dataclass(frozen=True, slots=True)
class RunTally:
    """What came of one run. ``hits`` were given to the files; ``since`` and ``until`` are ISO 8601."""

    experiment: str | None
    run: int | None
    events: int
    hits: int
    peaks: int
    since: str
    until: str

    @property
    def hit_rate(self) -> float | None:
        """Hits over events; None before the first."""
        return self.hits / self.events if self.events else None


class RunTallies:
    """The tallies of a writer, and of those before it that wrote the same files. Not for threads: its user locks."""

    def __init__(self, tallies: Iterable[RunTally] = ()) -> None:
        self._of: dict[tuple[str | None, int | None], RunTally] = {(t.experiment, t.run): t for t in tallies}

    def add(self, header: BatchHeader, *, events: int, hits: int, peaks: int, now: str) -> None:
        """Count a batch, or a part of one; batches that name no run are counted as such."""
        key = (header.experiment, header.run)
        before = self._of.pop(key, None) or RunTally(*key, 0, 0, 0, now, now)
        self._of[key] = replace(
            before,
            events=before.events + events,
            hits=before.hits + hits,
            peaks=before.peaks + peaks,
            until=now,
        )
        if len(self._of) > MOST_RUNS:
            del self._of[next(iter(self._of))]

    def newest(self) -> list[RunTally]:
        """Return the runs, the one heard of last first."""
        return list(reversed(self._of.values()))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the tallies as JSON types, the newest first."""
        names = RunTally.__dataclass_fields__
        return [{name: getattr(t, name) for name in names} | {"hit_rate": t.hit_rate} for t in self.newest()]

    @classmethod
    def from_json(cls, rows: Any) -> RunTallies:
        """Return what `to_json` wrote; what is no tally is left out."""
        found = [tally for row in rows if (tally := _tally(row)) is not None] if isinstance(rows, list) else []
        return cls(reversed(found[:MOST_RUNS]))


def _tally(row: Any) -> RunTally | None:
    if not isinstance(row, dict):
        return None
    experiment, run = row.get("experiment"), row.get("run")
    counts, times = [row.get(n) for n in ("events", "hits", "peaks")], [row.get(n) for n in ("since", "until")]
    known = (
        isinstance(experiment, str | None)
        and (run is None or _is_count(run))
        and all(map(_is_count, counts))
        and all(isinstance(time, str) for time in times)
    )
    told: dict[str, Any] = {name: row.get(name) for name in RunTally.__dataclass_fields__}
    return RunTally(**told) if known else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
