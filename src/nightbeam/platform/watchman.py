"""Watches a platform from its supervisor, which outlives pools and servers, and says what a person must see."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from nightbeam.core.errors import NightbeamError, StorageError, UnavailableError
from nightbeam.core.files import write_text
from nightbeam.core.times import iso_z
from nightbeam.platform.alarms import Alarm, AlarmBook
from nightbeam.platform.model import PartState, PartStatus

__all__ = ["FAILING", "PUNCTUAL", "Watched", "Watchman"]

logger = logging.getLogger(__name__)

#: Flows of which each run that fails or crashes is told, and those of which a run must begin when it is due.
FAILING = ("group-imaging", "ingest-subbands", "nightly-mosaic", "housekeeping", "flight-check", "canary-group")
PUNCTUAL = ("ingest-subbands", "nightly-mosaic", "housekeeping", "flight-check", "sweep-zombies")
#: A run of them that began longer ago than this, in seconds, hangs; by flow.
LONG_S = {
    "ingest-subbands": 900.0,
    "nightly-mosaic": 6 * 3600.0,
    "housekeeping": 2 * 3600.0,
    "flight-check": 1800.0,
    "sweep-zombies": 900.0,
}
#: A run may wait, and a pool be without a worker, for so long: no restart of a worker takes it.
LATE_S = 600.0
#: A server that is started again is back sooner.
SILENT_S = 120.0
#: Of one flow failures are told at most so often; those between are told together.
QUIET_S = 600.0
#: Ends of runs are asked for from so long before the last that was told: one that could not reach the server tells it
#: of its end when it can, with the time of its end.
_OVERLAP_S = 3600.0
#: By which the keys begin of what only the server can tell.
_OF_THE_SERVER = ("late ", "hangs ", "pool ")
#: More that could not be told to anybody are not kept for them; all are in the file.
_MOST_UNTOLD = 100


class Watched(Protocol):
    """What the watchman asks of a Prefect server; each may raise NightbeamError."""

    def flow_names(self, names: Sequence[str]) -> dict[str, str]:
        """Return the names of flows by their ids."""
        ...

    def runs_of(
        self,
        flows: Sequence[str],
        *,
        types: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
        ended_after: str | None = None,
        started_after: str | None = None,
        started: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Return the runs of some flows, those that ended last first."""
        ...

    def pools(self) -> list[dict[str, Any]]:
        """Return all work pools."""
        ...


@dataclass(frozen=True)
class _Seen:
    """How far the ends of runs have been told: until when all were, and the states since some time before that.

    What was before ``since``, when the first watch began, is nobody's night. ``ready`` are the pools that have had a
    worker: nobody waits for one in a pool that never had.
    """

    since: float
    until: float
    states: frozenset[str] = frozenset()
    ready: frozenset[str] = frozenset()


class Watchman:
    """Looks at parts, server, pools and runs again and again; what is odd is written down once.

    Parameters
    ----------
    server
        Is asked.
    file, shared
        Where alarms are written: on this machine, and beside that where all machines see them.
    memory
        Where the watchman remembers how far it has seen, so that what happened while nobody watched is told, too.
    machine
        This one's name.
    pools
        Those of this machine, which must have a worker; none where another machine's watchman looks at them.
    runs
        Whether runs are looked at, and all pools, whosever they are: by one machine for each server.
    notify
        Tells people, or raises; None: nobody is told.
    clock, elapsed
        Epoch seconds, and seconds that no setting of the clock changes.
    """

    def __init__(
        self,
        server: Watched,
        *,
        file: Path,
        memory: Path,
        machine: str,
        pools: Iterable[str],
        runs: bool,
        clock: Callable[[], float],
        elapsed: Callable[[], float],
        notify: Callable[[str], None] | None = None,
        shared: Path | None = None,
    ) -> None:
        self._server, self._memory, self._machine = server, memory, machine
        self._own, self._shared = AlarmBook(file), None if shared is None else AlarmBook(shared)
        self._pools, self._runs, self._notify = tuple(pools), runs, notify
        self._clock, self._elapsed = clock, elapsed
        self._seen: _Seen | None = None
        self._next: _Seen | None = None
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._told: dict[str, float] = {}
        self._standing: set[str] = set()
        self._since: dict[str, tuple[float, float]] = {}
        self._untold: list[str] = []

    def look(self, parts: Sequence[PartStatus]) -> list[Alarm]:
        """Look once; return what was new, after it was written down and told."""
        standing = {
            f"part {part.name}": Alarm(self._now(), "a part was given up", part.name, part.last_exit)
            for part in parts
            if part.state is PartState.GIVEN_UP
        }
        alarms: list[Alarm] = []
        try:
            if self._runs:
                alarms += self._failures()
                standing |= self._late() | self._hanging()
            standing |= self._without_worker()
            self._since.pop("server", None)
        except UnavailableError as error:
            standing |= self._lasts("server", SILENT_S, "the server does not answer", "", error.what)
            # What stood before is not known to be over: it is not told again when the server is back.
            standing |= {key: Alarm("", "", "") for key in self._standing if key.startswith(_OF_THE_SERVER)}
        except NightbeamError as error:
            standing["asking"] = Alarm(self._now(), "runs and pools cannot be looked at", "", error.what)
        alarms += [alarm for key, alarm in standing.items() if key not in self._standing]
        self._standing = set(standing)
        alarms = [replace(alarm, machine=self._machine) for alarm in alarms]
        self._say(alarms)
        if self._next is not None:
            self._remember(self._next)
            self._next = None
        return alarms

    # -- what is odd ------------------------------------------------------------------------------------------------

    def _failures(self) -> list[Alarm]:
        seen = self._remembered()
        after = _iso(max(seen.since, seen.until - _OVERLAP_S))
        runs = self._server.runs_of(FAILING, types=("FAILED", "CRASHED"), ended_after=after)
        names = self._server.flow_names(FAILING) if runs else {}
        known = {run["state_id"] for waiting in self._waiting.values() for run in waiting} | seen.states
        for run in reversed(runs):
            if run["state_id"] not in known:
                self._waiting.setdefault(names.get(run["flow_id"], "a flow"), []).append(run)
        now, due, told = self._elapsed(), [], set()
        for flow in [flow for flow in self._waiting if now - self._told.get(flow, -QUIET_S) >= QUIET_S]:
            ended = self._waiting.pop(flow)
            told |= {run["state_id"] for run in ended}
            due.append(_failed(flow, ended))
            self._told[flow] = now
        if told:  # what still waits to be told must be found again by a watchman after this one
            waits = [_ended(run) for waiting in self._waiting.values() for run in waiting]
            # A machine whose clock was set wrong may tell of an end to come, before which nothing more would be told.
            until = min(self._clock(), max(seen.until, min(waits, default=max(_ended(run) for run in runs))))
            self._next = replace(seen, until=until, states=(seen.states & {run["state_id"] for run in runs}) | told)
        return due

    def _late(self) -> dict[str, Alarm]:
        now = self._clock()
        late = self._server.runs_of(PUNCTUAL, names=("Late",))
        if not late:
            return {}
        names = self._server.flow_names(PUNCTUAL)
        oldest: dict[str, float] = {}
        for run in late:
            flow, due = names.get(run["flow_id"], "a flow"), _epoch(run["expected_start_time"])
            oldest[flow] = min(due, oldest.get(flow, due))
        found = {}
        for flow, due in oldest.items():
            if now - due > LATE_S and not self._goes_on(flow, now):
                said = f"due at {_iso(due)}, and none has begun for {LATE_S / 60:.0f} minutes"
                found[f"late {flow}"] = Alarm(_iso(due), "runs are late", flow, said)
        return found

    def _goes_on(self, flow: str, now: float) -> bool:
        if self._server.runs_of((flow,), types=("RUNNING", "PENDING")):
            return True
        return bool(self._server.runs_of((flow,), started_after=_iso(now - LATE_S), started=True))

    def _hanging(self) -> dict[str, Alarm]:
        """Return the flows of which a run takes longer than it ever should: what hangs fails no more than it ends."""
        now = self._clock()
        active = self._server.runs_of(PUNCTUAL, types=("RUNNING", "CANCELLING"))
        names = self._server.flow_names(PUNCTUAL) if active else {}
        found = {}
        for run in active:
            flow = names.get(run["flow_id"], "")
            began = _epoch(run.get("start_time") or run["state"]["timestamp"])
            if now - began > LONG_S.get(flow, math.inf):
                said = f"it began at {_iso(began)} and has not ended after {LONG_S[flow] / 60:.0f} minutes"
                found[f"hangs {run['id']}"] = Alarm(
                    _iso(began + LONG_S[flow]), "a run hangs", f"{flow} {run['name']}", said
                )
        return found

    def _without_worker(self) -> dict[str, Alarm]:
        found: dict[str, Alarm] = {}
        pools = self._server.pools() if self._pools or self._runs else []
        wanted = {*self._pools, *self._once_ready(pools)}
        for pool in pools:
            key, name = f"pool {pool['name']}", pool["name"]
            if name in wanted and pool.get("status") == "NOT_READY":
                found |= self._lasts(key, LATE_S, "a pool has no worker", name, "nothing of it starts")
            else:
                self._since.pop(key, None)
        return found

    def _once_ready(self, pools: Sequence[dict[str, Any]]) -> frozenset[str]:
        """Return the pools, whosever they are, that have had a worker since they were made."""
        if not self._runs:
            return frozenset()
        seen = self._next or self._remembered()
        ready = {pool["name"] for pool in pools if pool.get("status") == "READY"}
        known = frozenset(ready | (seen.ready & {pool["name"] for pool in pools}))
        if known != seen.ready:
            self._next = replace(seen, ready=known)
        return known

    def _lasts(self, key: str, for_s: float, what: str, subject: str, detail: str) -> dict[str, Alarm]:
        began, elapsed = self._since.setdefault(key, (self._clock(), self._elapsed()))
        if self._elapsed() - elapsed < for_s:
            return {}
        return {key: Alarm(_iso(began), what, subject, detail)}

    # -- what is remembered and told --------------------------------------------------------------------------------

    def _remembered(self) -> _Seen:
        if self._seen is None:
            try:
                told = json.loads(self._memory.read_text())
                states, ready = (frozenset(map(str, told.get(name, ()))) for name in ("states", "ready"))
                self._seen = _Seen(float(told["since"]), float(told["until"]), states, ready)
            except FileNotFoundError:
                self._remember(_Seen(self._clock(), self._clock()))
            except (ValueError, TypeError, KeyError) as error:
                logger.warning("%s says nothing (%s): the watch begins anew", self._memory, error)
                self._remember(_Seen(self._clock(), self._clock()))
        assert self._seen is not None
        now = self._clock()
        if max(self._seen.since, self._seen.until) > now:  # of a clock that went ahead and was set back
            self._remember(replace(self._seen, since=min(self._seen.since, now), until=min(self._seen.until, now)))
        return self._seen

    def _remember(self, seen: _Seen) -> None:
        self._seen = seen
        told = {"since": seen.since, "until": seen.until, "states": sorted(seen.states), "ready": sorted(seen.ready)}
        try:
            write_text(self._memory, json.dumps(told) + "\n")
        except StorageError as error:
            logger.error("what was seen is not remembered: %s", error.what)

    def _say(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            logger.error("alarm: %s", alarm.sentence())
        said = [alarm.sentence() for alarm in alarms]
        if alarms and (wrong := self._own.add(alarms)):
            # A full disk is a reason to tell somebody, not to keep silent.
            logger.error("alarms are not written down: %s", wrong)
            said = [f"{one} (not written down: {wrong})" for one in said]
        self._tell(said)
        # Last of all: a directory that is gone keeps whoever asks for it.
        if alarms and self._shared is not None and (wrong := self._shared.add(alarms)):
            logger.error("alarms are not written down where all machines see them: %s", wrong)

    def _tell(self, said: Sequence[str]) -> None:
        if self._notify is None:
            return
        self._untold = [*self._untold, *said][-_MOST_UNTOLD:]
        if self._untold:
            try:
                self._notify("\n".join(self._untold))
                self._untold = []
            except NightbeamError as error:  # tried again with the next look: the block is on the server
                logger.error("nobody could be told: %s", error.what)

    def _now(self) -> str:
        return _iso(self._clock())


def _failed(flow: str, runs: Sequence[dict[str, Any]]) -> Alarm:
    """Return one alarm for runs of a flow, oldest first, that ended badly."""
    last = runs[-1]
    how = "crashed" if last["state"]["type"] == "CRASHED" else "failed"
    when = sorted(_ended(run) for run in runs)
    what = f"a run {how}" if len(runs) == 1 else f"{len(runs)} runs failed or crashed, the last"
    detail = str(last["state"].get("message") or "").strip().partition("\n")[0]
    return Alarm(_iso(when[-1]), what, f"{flow} {last['name']}", detail, count=len(runs), first_at=_iso(when[0]))


def _ended(run: dict[str, Any]) -> float:
    return _epoch(run["state"]["timestamp"])


def _epoch(told: str) -> float:
    return datetime.fromisoformat(told).timestamp()


def _iso(epoch: float) -> str:
    return iso_z(datetime.fromtimestamp(epoch, UTC))
