"""Deciding what to read, whether a mirror has shrunk, and which of its snapshots to keep: pure functions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from nightbeam.catalog import Access, ExperimentRow, SyncState
from nightbeam.elog.compute import experiment_id_of, proposal_of
from nightbeam.elog.model import Resource, Summary
from nightbeam.elogsync.model import FAILS_FOR_LONG, Need, Plan, Planned, Policy, Reason

__all__ = ["SNAPSHOT", "excluded", "kept_snapshots", "make_plan", "shrunk", "snapshot_name", "snapshot_time"]

States = Mapping[Resource, SyncState]

_SMALL = 20  # rows that may go without a word: a table of three rows has not shrunk by a third
SNAPSHOT = re.compile(r"elog_(\d{4})_(\d{2})(\d{2})_(\d{2})(\d{2})\.db")


def excluded(name: str, patterns: Iterable[str]) -> bool:
    """Say whether a shell pattern matches the whole of a name, whatever the case of either."""
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def make_plan(
    policy: Policy,
    *,
    recent: Iterable[str],
    summaries: Iterable[Summary] | None,
    known: Iterable[ExperimentRow],
    states: Mapping[str, States],
    now: datetime,
) -> Plan:
    """Return what is read: recently active, changed, due, failed, vanished and configured experiments.

    Parameters
    ----------
    recent
        *Names* of experiments whose latest run began lately.
    summaries
        Of all that the user may read; None where the service does not say.
    known
        What the mirror has.
    states
        By experiment id, how the last readings went.
    now
        Aware.
    """
    listed = {summary.experiment_id: summary for summary in summaries or ()}
    ids = {summary.name: summary.experiment_id for summary in listed.values()}
    rows = {row.experiment_id: row for row in known}
    ids = {row.name: row.experiment_id for row in rows.values()} | ids
    active = {ids.get(name, experiment_id_of(name)) for name in recent}
    asked = {ids.get(name, experiment_id_of(name)) for name in policy.names}
    names = {experiment_id_of(name): name for name in (*recent, *policy.names)}
    candidates = rows.keys() | active | asked | (listed.keys() if policy.everything else set())
    planned, left_out = [], []
    for key in sorted(candidates):
        one = _Candidate(
            key, listed.get(key), rows.get(key), states.get(key, {}), key in active, key in asked, summaries is not None
        )
        found = one.planned(policy, names.get(key, key), now)
        if found is None:
            continue
        if excluded(found.name, policy.exclude) and Reason.ASKED not in found.reasons:
            left_out.append(found.name)
        else:
            planned.append(found)
    due = sorted((one for one in planned if one.reasons == (Reason.DUE,)), key=lambda one: _age_key(states, one))
    postponed = set() if policy.full else {one.experiment_id for one in due[policy.due_most :]}
    kept = tuple(one for one in planned if one.experiment_id not in postponed)
    return Plan(kept, tuple(left_out), len(postponed))


def _age_key(states: Mapping[str, States], one: Planned) -> tuple[str, str]:
    """Sort by the oldest full read of what every experiment has; a questionnaire that never comes is no age."""
    found = states.get(one.experiment_id, {})
    oldest = min((str(found[r].full_at or "") if r in found else "" for r in _LISTS), default="")
    return oldest, one.experiment_id


@dataclass(frozen=True)
class _Candidate:
    """One experiment that may have to be read."""

    key: str
    summary: Summary | None
    row: ExperimentRow | None
    states: States
    active: bool
    asked: bool
    listing: bool  # whether the service has said what there is

    def planned(self, policy: Policy, name: str, now: datetime) -> Planned | None:
        reasons = tuple(self._reasons(policy, now))
        if not reasons:
            return None
        needs = self._needs(policy, reasons, now)
        if policy.only_failed:
            needs = self._owed(needs)
        if not needs:
            return None
        shown = self.summary.name if self.summary else self.row.name if self.row else name
        return Planned(self.key, shown, reasons, needs, self.summary, self.row is not None)

    def _owed(self, needs: Mapping[Resource, Need]) -> dict[Resource, Need]:
        """Return of a plan what failed or was never read, and what has to come with it."""
        owed = {r for r in needs if self._failed(r) or self._unread(r)}
        if not owed and self.row is not None:
            return {}
        # The service's counts are stored after this; what they count must be here then.
        owed |= {Resource.INFO}
        owed |= {Resource.RUNS} if self._more_runs else set()
        owed |= {Resource.FILES} if self._more_files else set()
        return {r: need for r, need in needs.items() if r in owed}

    def _reasons(self, policy: Policy, now: datetime) -> Iterable[Reason]:
        readable = self.row is not None and self.row.status == Access.OK.value
        if self.listing and self.summary is None and not (self.asked or readable):
            return  # active, but others' business: who is active is said to everybody
        if self.asked:
            yield Reason.ASKED
        if self.row is None:
            yield Reason.NEW
        if self.active:
            yield Reason.RECENT
        if self.row is None:
            return
        if self.row.status != Access.OK.value:
            # Its data stay. It is asked for again only if it is listed, or somebody wants it.
            if self.summary is not None and not (self.asked or self.active):
                yield Reason.NEW
            return
        if self.listing and self.summary is None and not self.active:
            yield Reason.VANISHED
        if self._more_runs or self._more_files:
            yield Reason.CHANGED
        if any(state.status == "failed" and self._again(state, policy, now) for state in self.states.values()):
            yield Reason.FAILED
        lists = [*_LISTS, *([Resource.JOBS] if policy.jobs else []), Resource.QUESTIONNAIRE]
        if policy.full or any(self._unread(one) or (one in _LISTS and self._due(one, policy, now)) for one in lists):
            yield Reason.DUE

    def _needs(self, policy: Policy, reasons: Sequence[Reason], now: datetime) -> dict[Resource, Need]:
        full = policy.full or Reason.NEW in reasons
        needs: dict[Resource, Need] = {}
        if self.summary is None or self._failed(Resource.INFO):
            needs[Resource.INFO] = Need()
        alive = bool({Reason.ASKED, Reason.RECENT, Reason.CHANGED} & set(reasons))
        wanted = [Resource.ENTRIES, Resource.RUNS, Resource.FILES, Resource.WORKFLOWS]
        wanted += [Resource.JOBS] if policy.jobs else []
        wanted += [Resource.QUESTIONNAIRE] if self._has_proposal else []
        for resource in wanted:
            if full or self._unread(resource) or self._due(resource, policy, now):
                needs[resource] = Need()
            elif self._failed(resource):
                if self._again(self.states[resource], policy, now):
                    needs[resource] = self._since(resource, policy)
            elif alive and self._moves(resource, policy, now):
                needs[resource] = self._since(resource, policy)
        return needs

    @property
    def _has_proposal(self) -> bool:
        # Where only `info` can tell, whoever reads it decides.
        return self.summary is None or proposal_of(self.summary) is not None

    @property
    def _more_runs(self) -> bool:
        told, stored = self.summary, self.row
        if told is None or stored is None:
            return False
        return (told.run_count, told.last_run) != (stored.run_count, stored.last_run)

    @property
    def _more_files(self) -> bool:
        told, stored = self.summary, self.row
        if told is None or stored is None:
            return False
        return (told.total_files, told.total_gib) != (stored.total_files, stored.total_gib)

    def _moves(self, resource: Resource, policy: Policy, now: datetime) -> bool:
        """Say whether a list of a live experiment may have changed since it was read."""
        if resource in (Resource.ENTRIES, Resource.RUNS):
            return True  # programs add parameters to closed runs, and nothing tells which
        if resource is Resource.FILES:
            return self._more_files or self.summary is None
        state = self.states.get(resource)
        return state is None or state.synced_at is None or now - state.synced_at > timedelta(hours=policy.slow_hours)

    def _since(self, resource: Resource, policy: Policy) -> Need:
        state = self.states.get(resource)
        if resource is not Resource.ENTRIES or state is None or state.window_end is None or state.full_at is None:
            return Need()
        return Need(state.window_end - timedelta(minutes=policy.overlap_minutes))

    def _unread(self, resource: Resource) -> bool:
        state = self.states.get(resource)
        if state is None and resource is Resource.QUESTIONNAIRE:
            return self.summary is not None and self._has_proposal
        if state is None:
            return resource is not Resource.INFO
        return state.full_at is None and state.status != "failed"

    def _failed(self, resource: Resource) -> bool:
        state = self.states.get(resource)
        return state is not None and state.status == "failed"

    def _again(self, state: SyncState, policy: Policy, now: datetime) -> bool:
        """Say whether a list that failed is tried again; some questionnaires never come, which shows after a while."""
        slow = state.resource is Resource.QUESTIONNAIRE and state.failures >= FAILS_FOR_LONG
        return not slow or now - state.attempted_at > timedelta(hours=policy.slow_hours)

    def _due(self, resource: Resource, policy: Policy, now: datetime) -> bool:
        state = self.states.get(resource)
        if state is None or state.status == "failed" or state.full_at is None:
            return False
        return now - state.full_at > timedelta(days=policy.full_days)


#: What every experiment has; a questionnaire or jobs it may have.
_LISTS = (Resource.ENTRIES, Resource.RUNS, Resource.FILES, Resource.WORKFLOWS)


def shrunk(before: Mapping[str, int], after: Mapping[str, int], *, most: float) -> list[str]:
    """Return what has far fewer rows than before, in words; nothing where all is well.

    Parameters
    ----------
    before, after
        Rows by table.
    most
        The fraction of its rows that a table may lose.
    """
    found = []
    for table, rows in sorted(before.items()):
        left = after.get(table, 0)
        if rows - left > max(most * rows, _SMALL if left else 0):
            found.append(f"{table} has {left} rows, the last one had {rows}")
    return found


def snapshot_name(when: datetime) -> str:
    """Return the name of what is published at this (local) time."""
    return when.strftime("elog_%Y_%m%d_%H%M.db")


def snapshot_time(name: str) -> datetime | None:
    """Return the local time in a snapshot's name; None for any other file."""
    found = SNAPSHOT.fullmatch(name)
    if found is None:
        return None
    try:
        year, month, day, hour, minute = (int(part) for part in found.groups())
        return datetime(year, month, day, hour, minute)
    except ValueError:
        return None


def kept_snapshots(names: Collection[str], *, now: datetime) -> set[str]:
    """Return which snapshots stay: all of two days, then the last of each day, week and month.

    Parameters
    ----------
    names
        Of files; what is no snapshot stays.
    now
        Local, without zone, as in the names.

    Notes
    -----
    One a day for two weeks, one a week for two months, one a month for two years, and the newest whatever its age.
    """
    times = {name: when for name in names if (when := snapshot_time(name)) is not None}
    kept = set(names) - times.keys()
    seen: set[tuple[str, int, int]] = set()
    for name, when in sorted(times.items(), key=lambda item: item[1], reverse=True):
        age = now - when
        year, week, _ = when.isocalendar()
        bins: list[tuple[str, int, int]] = []
        if age <= timedelta(days=2) or not seen:
            bins.append((name, 0, 0))
        if age <= timedelta(days=14):
            bins.append(("day", when.year, when.timetuple().tm_yday))
        if age <= timedelta(days=61):
            bins.append(("week", year, week))
        if age <= timedelta(days=731):
            bins.append(("month", when.year, when.month))
        if any(one not in seen for one in bins):
            kept.add(name)
        seen.update(bins)
    return kept
