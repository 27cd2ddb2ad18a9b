"""Plain rows of the logbook's mirror."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from nightbeam.elog.model import Resource

__all__ = ["LAST_CHANGE", "Access", "Change", "ExperimentRow", "Hit", "SyncState"]

#: What of a mirror's metadata is another one after every change of its content.
LAST_CHANGE: Final = "last_change"


class Access(StrEnum):
    """Whether an experiment can still be read; what was read before is kept in any case."""

    OK = "ok"
    GONE = "gone"
    NO_ACCESS = "no access"


@dataclass(frozen=True, slots=True)
class Change:
    """What an answer changed; each row is counted once.

    Attributes
    ----------
    new, changed, same
        Rows that were added, that differ from what was stored, that do not.
    missing
        Rows that a full answer no longer has; they are kept and marked.
    back
        Rows that were marked so and are there again.
    """

    new: int = 0
    changed: int = 0
    same: int = 0
    missing: int = 0
    back: int = 0

    @property
    def written(self) -> int:
        """Rows that were written."""
        return self.new + self.changed + self.missing + self.back

    def __add__(self, other: Change) -> Change:
        return Change(
            self.new + other.new,
            self.changed + other.changed,
            self.same + other.same,
            self.missing + other.missing,
            self.back + other.back,
        )


@dataclass(frozen=True, slots=True)
class SyncState:
    """How the last reading of one list of one experiment went.

    Attributes
    ----------
    status
        ``ok`` or ``failed``; ``error`` says why.
    attempted_at, synced_at, full_at
        Last attempt, last success, last success with everything there is.
    window_end
        Up to where a window was read; the next one begins there.
    body_sha256
        Of the last full answer, as long as the rows are exactly those of it.
    rows
        Rows of this list that the service has, as far as is known.
    failures
        Failures since the last success.
    """

    experiment_id: str
    resource: Resource
    status: str
    error: str | None
    attempted_at: datetime
    synced_at: datetime | None
    full_at: datetime | None
    window_end: datetime | None
    body_sha256: str | None
    rows: int
    failures: int


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """One experiment. Its times are as the service writes them; ``updated_at`` is when its row last changed."""

    experiment_id: str
    name: str
    instrument: str | None
    description: str | None
    start_time: str | None
    end_time: str | None
    pi: str | None
    pi_email: str | None
    leader_account: str | None
    posix_group: str | None
    urawi_proposal: str | None
    run_period: str | None
    run_count: int | None
    last_run: int | None
    total_files: int | None
    total_gib: float | None
    status: str
    status_since: str
    updated_at: str


@dataclass(frozen=True, slots=True)
class Hit:
    """An entry that a search found.

    ``snippet`` is text, not markup: who shows it in a page escapes it. ``hidden`` tells deleted entries and
    earlier versions of edited ones.
    """

    experiment_id: str
    name: str
    entry_id: str
    created_at: str | None
    author: str | None
    title: str | None
    run_num: int | None
    tags: tuple[str, ...]
    snippet: str
    hidden: bool
