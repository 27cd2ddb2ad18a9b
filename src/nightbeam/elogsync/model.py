"""What a sync is going to read, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from nightbeam.catalog import Change
from nightbeam.core.errors import NightbeamError
from nightbeam.elog.model import Resource, Summary

__all__ = ["FAILS_FOR_LONG", "Need", "Outcome", "Plan", "Planned", "Policy", "Reason", "SyncReport"]

#: A questionnaire that failed so often is tried once a day; a service that says that it has none has failed so often.
FAILS_FOR_LONG = 3


class Reason(StrEnum):
    """Why an experiment is read."""

    ASKED = "asked for"
    NEW = "not read before"
    RECENT = "recently active"
    CHANGED = "runs or files were added"
    FAILED = "failed last time"
    DUE = "due for a full read"
    VANISHED = "no longer listed"


@dataclass(frozen=True, slots=True)
class Need:
    """How one list is to be read: whole, or what has changed since a moment."""

    since: datetime | None = None

    @property
    def full(self) -> bool:
        """Whether all of it is read."""
        return self.since is None


@dataclass(frozen=True, slots=True)
class Policy:
    """How much is read how often.

    Attributes
    ----------
    hours
        How far back an experiment counts as recently active; the service adds some (see `nightbeam.elog`).
    full_days
        A list is read whole at least this often, which finds deletions and late cross-posts.
    slow_hours
        Workflows and questionnaires of active experiments are read this often.
    overlap_minutes
        A window begins this long before the last one ended: clocks differ.
    due_most
        At most so many experiments are read for no other reason than that they are due.
    jobs
        Whether the jobs of workflows are read: one more request for each experiment.
    names
        Always read: standing logbooks, which the service never calls active.
    exclude
        Shell patterns of names that are never read, whatever their case.
    everything
        Also experiments that the user may read and that nobody has been active in.
    full
        Read every experiment of the mirror, and all of it.
    only_failed
        Read nothing but what failed last time or was never read: a second attempt.
    """

    hours: float = 168.0
    full_days: float = 7.0
    slow_hours: float = 24.0
    overlap_minutes: float = 60.0
    due_most: int = 100
    jobs: bool = False
    names: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    everything: bool = False
    full: bool = False
    only_failed: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """One experiment that is read.

    Attributes
    ----------
    summary
        As the service lists it; None where it does not.
    known
        Whether the mirror has it already.
    """

    experiment_id: str
    name: str
    reasons: tuple[Reason, ...]
    needs: Mapping[Resource, Need]
    summary: Summary | None = None
    known: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a sync reads, and what it leaves out.

    Attributes
    ----------
    excluded
        Names that a pattern leaves out although they would be read.
    postponed
        How many are due but wait for the next sync.
    """

    planned: tuple[Planned, ...]
    excluded: tuple[str, ...] = ()
    postponed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of reading one experiment.

    Attributes
    ----------
    changes
        By list, what was written.
    errors
        By list, why it could not be read; what is stored of it stays.
    notes
        What is worth knowing and no failure: an experiment that is gone, a questionnaire that the service cannot give.
    attempted
        False where the sync ended before its turn.
    """

    experiment_id: str
    name: str
    reasons: tuple[Reason, ...] = ()
    changes: Mapping[Resource, Change] = field(default_factory=dict)
    errors: Mapping[Resource, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    requests: int = 0
    seconds: float = 0.0
    attempted: bool = True

    @property
    def failed(self) -> bool:
        """Whether something of it could not be read."""
        return bool(self.errors) or not self.attempted

    @property
    def change(self) -> Change:
        """What was written, all lists together."""
        return sum(self.changes.values(), Change())


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did.

    Attributes
    ----------
    requests
        All of them, those for lists of experiments and repetitions among them.
    most_in_flight
        How many were being asked at once, at most.
    stopped
        What ended the sync before all experiments had their turn: no credential, a full disk.
    """

    outcomes: tuple[Outcome, ...]
    plan: Plan
    started: datetime
    seconds: float
    requests: int
    retries: int
    most_in_flight: int
    stopped: NightbeamError | None = None

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The experiments that could not be read, or not all of them."""
        return tuple(outcome for outcome in self.outcomes if outcome.failed)

    @property
    def change(self) -> Change:
        """What was written in all."""
        return sum((outcome.change for outcome in self.outcomes), Change())
