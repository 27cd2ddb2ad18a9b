"""Reading what a plan says into the mirror, many experiments at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from nightbeam.catalog import Access, Change, Logbook, SyncState
from nightbeam.core.errors import (
    AuthError,
    InputError,
    MissingError,
    NightbeamError,
    RejectedError,
    UnavailableError,
)
from nightbeam.core.times import utc_now
from nightbeam.elog.compute import experiment_id_of, proposal_of, summary_of
from nightbeam.elog.model import Answer, Document, Resource, Summary
from nightbeam.elog.remote import LogbookClient, ServiceDownError
from nightbeam.elogsync.compute import make_plan
from nightbeam.elogsync.model import FAILS_FOR_LONG, Need, Outcome, Plan, Planned, Policy, Reason, SyncReport

__all__ = ["look_around", "plan_of", "sync", "sync_experiment"]

_log = logging.getLogger(__name__)

#: After these there is no use in asking for anything else.
_END_ALL = (AuthError, ServiceDownError)

_ORDER = (
    Resource.ENTRIES,
    Resource.RUNS,
    Resource.FILES,
    Resource.WORKFLOWS,
    Resource.JOBS,
    Resource.QUESTIONNAIRE,
)
_AT_ONCE = 3
#: Entries can have been given times that lie ahead of ours.
_AHEAD = timedelta(days=1)


def look_around(client: LogbookClient, logbook: Logbook, policy: Policy, *, now: datetime | None = None) -> Plan:
    """Ask the service what there is and return what has to be read: two requests.

    Without a credential the service does not say what the user may read; the plan then has recently active and
    configured experiments only, and each is asked for itself.

    Raises
    ------
    NightbeamError
        As the client's.
    """
    try:
        summaries: list[Summary] | None = client.summaries()
    except RejectedError as error:
        _log.info("no list of what may be read: %s", error.what)
        summaries = None
    states: dict[str, dict[Resource, SyncState]] = {}
    for state in logbook.states():
        states.setdefault(state.experiment_id, {})[state.resource] = state
    return make_plan(
        policy,
        recent=client.recent(policy.hours),
        summaries=summaries,
        known=logbook.experiments(),
        states=states,
        now=now or utc_now(),
    )


def plan_of(names: Iterable[str], logbook: Logbook, *, jobs: bool = False, reason: Reason = Reason.ASKED) -> Plan:
    """Return a plan that reads these experiments whole, active or not, whatever the service lists.

    One that is named twice, or by its id and by its name, is read once.
    """
    known = {row.experiment_id: row.name for row in logbook.experiments()}
    ids = {name: key for key, name in known.items()}
    wanted = (Resource.INFO, *(resource for resource in _ORDER if jobs or resource is not Resource.JOBS))
    planned: dict[str, Planned] = {}
    for name in names:
        key = name if name in known else ids.get(name, experiment_id_of(name))
        needs = {resource: Need() for resource in wanted}
        planned[key] = Planned(key, known.get(key, name), (reason,), needs, None, key in known)
    return Plan(tuple(planned.values()))


def sync(
    client: LogbookClient,
    logbook: Logbook,
    plan: Plan,
    *,
    jobs: int = 10,
    on_outcome: Callable[[Outcome], None] | None = None,
    stop: threading.Event | None = None,
) -> SyncReport:
    """Read what a plan says.

    What one experiment cannot give is noted and the others go on; without a credential, with a service that answers
    nothing any more or with a disk that is full, nothing can go on and the sync ends. What was read before that is
    stored.

    Parameters
    ----------
    jobs
        Requests at a time. Three times as many experiments are in work: while some are asked for, others are stored.
    on_outcome
        Called after each experiment, in this thread.
    stop
        Ends the sync after the lists that are being read.
    """
    begin, started, before = time.monotonic(), utc_now(), client.traffic
    stop = stop or threading.Event()
    reader = _Reader(client, logbook, stop, threading.Semaphore(jobs))
    outcomes: list[Outcome] = []
    with logbook.database.kept_open(), ThreadPoolExecutor(_AT_ONCE * jobs, thread_name_prefix="elog") as pool:
        futures: list[Future[Outcome]] = [pool.submit(reader.read, planned) for planned in plan.planned]
        try:
            for future in as_completed(futures):
                outcomes.append(future.result())
                if on_outcome is not None:
                    on_outcome(outcomes[-1])
        except BaseException:
            stop.set()
            raise
    traffic = client.traffic
    outcomes.sort(key=lambda outcome: outcome.experiment_id)
    return SyncReport(
        tuple(outcomes),
        plan,
        started,
        time.monotonic() - begin,
        traffic.requests - before.requests,
        traffic.retries - before.retries,
        traffic.most_in_flight,
        reader.stopped,
    )


def sync_experiment(client: LogbookClient, logbook: Logbook, planned: Planned) -> Outcome:
    """Read one experiment.

    Raises
    ------
    AuthError
        If there is no usable credential.
    ServiceDownError
        If the service has answered nothing for long.
    NightbeamError
        If the mirror cannot be written.
    """
    return _Reading(client, logbook, planned, threading.Lock(), nullcontext(), threading.Event()).all()


@dataclass
class _Reader:
    """Reads experiments until something ends it for all."""

    client: LogbookClient
    logbook: Logbook
    stop: threading.Event
    asking: threading.Semaphore
    stopped: NightbeamError | None = None
    # SQLite has one writer; who waits here does not wait in there, polling.
    turn: threading.Lock = field(default_factory=threading.Lock)

    def read(self, planned: Planned) -> Outcome:
        if self.stop.is_set():
            return _unread(planned)
        reading = _Reading(self.client, self.logbook, planned, self.turn, self.asking, self.stop)
        try:
            return reading.all()
        except NightbeamError as error:
            self.stopped = self.stopped or error
            self.stop.set()
            reading.errors[reading.at] = error.what
            return reading.outcome()  # with what was written before that


def _unread(planned: Planned) -> Outcome:
    return Outcome(planned.experiment_id, planned.name, planned.reasons, attempted=False)


class _EndError(Exception):
    """There is no more to be had from this experiment."""


@dataclass
class _Reading:
    """The reading of one experiment."""

    client: LogbookClient
    logbook: Logbook
    planned: Planned
    turn: threading.Lock
    asking: AbstractContextManager[object]
    stop: threading.Event
    changes: dict[Resource, Change] = field(default_factory=dict)
    errors: dict[Resource, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    requests: int = 0
    document: Document = field(default_factory=dict)
    at: Resource = Resource.INFO
    begin: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> str:
        return self.planned.experiment_id

    def all(self) -> Outcome:
        try:
            self._begin()
            for resource in _ORDER:
                if resource in self.planned.needs:
                    self.at = resource
                    self._list(resource, self.planned.needs[resource])
            self._end()
        except _EndError:
            pass
        return self.outcome()

    def outcome(self) -> Outcome:
        """Return what has come so far."""
        return Outcome(
            self.key,
            self.planned.name,
            self.planned.reasons,
            self.changes,
            self.errors,
            tuple(self.notes),
            self.requests,
            time.monotonic() - self.begin,
        )

    def _begin(self) -> None:
        """Have the experiment itself in the mirror."""
        if Resource.INFO in self.planned.needs:
            with self._asking(Resource.INFO), self._turn_to_ask(Resource.INFO):
                answer = self.client.info(self.key)
                if (told := summary_of(answer.document).experiment_id) != self.key:
                    raise InputError(f"asked for {self.key}, the service tells of {told}")
            self.requests += answer.requests
            self.document = answer.document
            self._put(Resource.INFO, lambda: self.logbook.put_experiment(answer.document, body_sha256=answer.sha256))
        elif self.planned.summary is not None:
            self.document = self.planned.summary.document
            if not self.planned.known:
                self._put_summary()

    def _end(self) -> None:
        """Believe the service's counts only when all that they count is here; a kill before that reads again."""
        if self.planned.summary is not None and self.planned.known and not self.errors:
            self._put_summary()

    def _put_summary(self) -> None:
        summary = self.planned.summary
        assert summary is not None
        self._put(Resource.INFO, lambda: self.logbook.put_experiment(summary))

    def _list(self, resource: Resource, need: Need) -> None:
        # Known before the answer is asked for: what changes meanwhile belongs to the next window.
        asked_at = utc_now()
        if resource is Resource.QUESTIONNAIRE:
            self._questionnaire()
            return
        try:
            with self._asking(resource), self._turn_to_ask(resource):
                answer = self._ask(resource, need, asked_at)
        except _END_ALL:
            raise
        except (UnavailableError, InputError, MissingError, RejectedError) as error:
            self._failed(resource, error)
            return
        self.requests += answer.requests
        self._store(resource, answer, need, asked_at)

    def _store(self, resource: Resource, answer: Answer, need: Need, asked_at: datetime) -> None:
        documents, full, sha256 = answer.documents, need.full, answer.sha256 if need.full else None
        if answer.refused:
            self.notes.append(f"{answer.refused} documents of {resource.value} make no sense and are left out")
            full, sha256 = False, None  # what they are is not known, so nothing that is stored is missing
        book, key = self.logbook, self.key
        put: dict[Resource, Callable[[], Change]] = {
            Resource.ENTRIES: lambda: book.put_entries(
                key, documents, full=full, window_end=asked_at, body_sha256=sha256
            ),
            Resource.RUNS: lambda: book.put_runs(key, documents, full=full, body_sha256=sha256),
            Resource.FILES: lambda: book.put_files(key, documents, full=full, body_sha256=sha256),
            Resource.WORKFLOWS: lambda: book.put_workflows(key, documents, full=full, body_sha256=sha256),
            Resource.JOBS: lambda: book.put_jobs(key, documents, full=full, body_sha256=sha256),
        }
        self._put(resource, put[resource])
        change = self.changes.get(resource)
        if resource is Resource.ENTRIES and change is not None and change.missing:
            # The service marks what is deleted and goes on listing it, so this is odd whoever did it.
            self.notes.append(f"{change.missing} entries are no longer in the logbook; what is stored of them stays")

    def _ask(self, resource: Resource, need: Need, asked_at: datetime) -> Answer:
        client, key = self.client, self.key
        if resource is Resource.ENTRIES and need.since is not None:
            return client.entries_between(key, need.since, asked_at + _AHEAD)
        ask = {
            Resource.ENTRIES: client.entries,
            Resource.RUNS: client.runs,
            Resource.FILES: client.files,
            Resource.WORKFLOWS: client.workflow_definitions,
            Resource.JOBS: client.workflow_jobs,
        }
        return ask[resource](key)

    def _questionnaire(self) -> None:
        found = proposal_of(self.document)
        if found is None:
            return
        period, proposal = found
        try:
            with self._turn_to_ask(Resource.QUESTIONNAIRE):
                answer = self.client.questionnaire(period, proposal)
        except ServiceDownError:
            raise
        except (InputError, MissingError, RejectedError) as error:
            # Some instruments have theirs elsewhere, and the service says so with a 500.
            self.notes.append(f"no questionnaire: {error.what}")
            with self.turn:
                self.logbook.failed(self.key, Resource.QUESTIONNAIRE, error.what, times=FAILS_FOR_LONG)
            return
        except (UnavailableError, AuthError) as error:
            # Another service, whose login page is no news of the logbook; that one says so itself.
            self._failed(Resource.QUESTIONNAIRE, error)
            return
        self.requests += answer.requests
        self._put(
            Resource.QUESTIONNAIRE,
            lambda: self.logbook.put_questionnaire(
                self.key, answer.document, period=period, proposal=proposal, body_sha256=answer.sha256
            ),
        )

    @contextmanager
    def _turn_to_ask(self, resource: Resource) -> Iterator[None]:
        """Wait for one's turn; who has waited until the sync was ended does not ask any more."""
        with self.asking:
            if self.stop.is_set():
                owed = [one for one in self.planned.needs if one not in self.changes and one not in self.errors]
                self.errors |= dict.fromkeys([resource, *owed], "not asked for: the sync was ended before")
                raise _EndError
            yield

    @contextmanager
    def _asking(self, resource: Resource) -> Iterator[None]:
        """Tell an experiment that cannot be read from a list that cannot."""
        try:
            yield
        except _END_ALL:
            raise
        except (MissingError, RejectedError) as error:
            refused = error if resource is Resource.INFO else self._refused()
            if refused is None:
                raise
            self._lost(refused)
            raise _EndError from error
        except (UnavailableError, InputError) as error:
            if resource is not Resource.INFO:
                raise
            self._unusable(error)
            raise _EndError from error

    def _refused(self) -> NightbeamError | None:
        """Ask whether the experiment itself is gone or closed to us, and not a list of it alone."""
        try:
            with self.asking:
                self.requests += self.client.info(self.key).requests
        except (MissingError, RejectedError) as error:
            return error
        except InputError:
            pass
        return None

    def _unusable(self, error: NightbeamError) -> None:
        """Note that the experiment itself cannot be had; one that the mirror has not is not noted there."""
        if self.planned.known or Resource.INFO in self.changes:
            self._failed(Resource.INFO, error)
        else:
            self.errors[Resource.INFO] = error.what

    def _lost(self, error: NightbeamError) -> None:
        if not self.planned.known and Resource.INFO not in self.changes:
            self.errors[Resource.INFO] = error.what
            return
        gone = isinstance(error, MissingError)
        with self.turn:
            self.logbook.mark(self.key, Access.GONE if gone else Access.NO_ACCESS)
        note = "the service has it no more" if gone else "it may not be read any more"
        self.notes.append(f"{note}: {error.what}; what is stored stays")
        if Reason.ASKED in self.planned.reasons:
            self.errors[Resource.INFO] = error.what  # who asks for it by name is told

    def _failed(self, resource: Resource, error: NightbeamError) -> None:
        self.errors[resource] = error.what
        with self.turn:
            self.logbook.failed(self.key, resource, error.what)

    def _put(self, resource: Resource, put: Callable[[], Change]) -> None:
        try:
            with self.turn:
                change = put()
        except InputError as error:
            if resource is Resource.INFO:
                self._unusable(error)
                raise _EndError from error
            self._failed(resource, error)
            return
        self.changes[resource] = self.changes.get(resource, Change()) + change
