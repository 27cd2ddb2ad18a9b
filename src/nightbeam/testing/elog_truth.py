"""What a logbook holds and how it changes: the truth that a mirror is compared with. No network here.

The rules are those of the service (edits leave a history copy, deletion is a mark, a cross-post keeps old times);
it shares no code with any client, so that a mistake in one of them shows.
"""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from nightbeam.core.errors import MissingError, UsageError

__all__ = ["Attachment", "Holding", "LogbookTruth", "Truth", "written"]

Document = dict[str, Any]
_T = TypeVar("_T")

_NESTED: Final = frozenset((dict, list))
_NO_PROPOSAL: Final = ("", "N/A", None)
_TRIGGERS: Final = (
    "MANUAL", "START_OF_RUN", "END_OF_RUN", "FIRST_FILE_TRANSFERRED", "ALL_FILES_TRANSFERRED",
    "ALL_NONREC_FILES_TRANSFERRED", "RUN_PARAM_IS_VALUE",
)  # fmt: skip


def written(moment: datetime) -> str:
    """Return a time as the service writes it: UTC with offset, milliseconds, and no fraction where it is zero."""
    utc = moment.astimezone(UTC)
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000).isoformat()


def copied(document: _T) -> _T:
    """Return a deep copy of what JSON can hold."""
    if isinstance(document, dict):
        # Most are flat, and thousands of parameters are not looked at one by one.
        flat = _NESTED.isdisjoint(map(type, document.values()))
        return document.copy() if flat else {key: copied(one) for key, one in document.items()}  # type: ignore[return-value]
    return [copied(one) for one in document] if isinstance(document, list) else document  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Attachment:
    """What somebody puts under an entry; without ``preview`` the service shows an icon."""

    name: str
    type: str
    data: bytes
    preview: bytes | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """All that the logbook holds of one experiment, copied: each document as the service gives it, by its key.

    Attributes
    ----------
    info
        The experiment's document, all parameters included.
    entries, workflow_definitions, workflow_jobs
        By ``_id``. Deleted entries and history copies are there; jobs whose definition is gone are not.
    runs
        By ``num``, with ``params``.
    files
        By (``run_num``, ``path``).
    questionnaire
        By field ``id``; each field has its ``category`` beside what the service sends.
    """

    info: Document
    entries: dict[str, Document]
    runs: dict[int, Document]
    files: dict[tuple[int, str], Document]
    workflow_definitions: dict[str, Document]
    workflow_jobs: dict[str, Document]
    questionnaire: dict[str, Document]


@dataclass(slots=True)
class Holding:
    """One experiment as `LogbookTruth` keeps it; ``version`` is another after every change."""

    info: Document
    standing: bool
    version: int
    entries: dict[str, Document] = field(default_factory=dict)
    runs: dict[int, Document] = field(default_factory=dict)
    files: dict[tuple[int, str], Document] = field(default_factory=dict)
    definitions: dict[str, Document] = field(default_factory=dict)
    jobs: dict[str, Document] = field(default_factory=dict)
    denied: set[str | None] = field(default_factory=set)

    @property
    def id(self) -> str:
        """The ``_id`` of the experiment."""
        return str(self.info["_id"])

    @property
    def name(self) -> str:
        """The name of the experiment."""
        return str(self.info["name"])

    @property
    def proposal(self) -> tuple[str, str] | None:
        """Run period and proposal, under which the questionnaire is kept; None where there is none."""
        params = self.info.get("params", {})
        period, proposal = params.get("run_period") or self.name[-2:], params.get("PNR")
        return None if proposal in _NO_PROPOSAL or not period.isdigit() else (period, proposal)

    def readable_by(self, user: str) -> bool:
        """Whether a user has the privilege ``read``."""
        return None not in self.denied and user not in self.denied


class LogbookTruth:
    """What a logbook holds, with the operations of its users.

    Wherever an operation takes an experiment, its name or its ``_id`` will do. Operations return copies of the
    documents that they made or changed. ``changes`` of an operation are keys of the document to be overwritten,
    whatever the rules say; a value of None removes the key.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held: dict[str, Holding] = {}
        self._gone: dict[str, int] = {}
        self._stored: dict[str, Attachment] = {}
        self._fields: dict[tuple[str, str], dict[str, Document]] = {}
        self._active: dict[tuple[str, str], str] = {}
        self._numbers = itertools.count(1)
        self._clock: datetime | None = None
        self._ahead = timedelta()

    # Time

    @property
    def now(self) -> datetime:
        """What the logbook's clock shows: the true time until `set_clock`."""
        with self._lock:
            return (self._clock or datetime.now(UTC)) + self._ahead

    def set_clock(self, moment: datetime | None) -> None:
        """Stop the clock at a moment; None lets it go with the true time again."""
        with self._lock:
            self._clock, self._ahead = moment and moment.astimezone(UTC), timedelta()

    def advance(self, seconds: float) -> None:
        """Put the clock forward, stopped or not."""
        with self._lock:
            self._ahead += timedelta(seconds=seconds)

    # Experiments

    def add_experiment(
        self,
        name: str,
        *,
        instrument: str | None = None,
        params: Mapping[str, str] | None = None,
        standing: bool = False,
        changes: Mapping[str, Any] | None = None,
    ) -> Document:
        """Register an experiment, and return its document.

        Parameters
        ----------
        name
            In its ``_id`` spaces become underscores.
        instrument
            By default the first three letters.
        params
            All values are strings: ``PNR``, ``run_period``, ``zoom_meeting_pwd``...
        standing
            Whether it is a standing logbook, which is never among the recently active.
        """
        now = self.now
        info: Document = {
            "_id": name.replace(" ", "_"), "name": name, "instrument": instrument or name[:3].upper(),
            "description": f"About {name}", "registration_time": written(now - timedelta(days=90)),
            "start_time": written(now - timedelta(days=2)), "end_time": written(now + timedelta(days=3)),
            "leader_account": "jdoe", "contact_info": "Jane Doe (jane@example.org)",
            "posix_group": name.replace(" ", "_"), "params": dict(params or {}),
        }  # fmt: skip
        with self._lock:
            if info["_id"] in self._held:
                raise UsageError(f"there is an experiment {name!r} already")
            self._gone.pop(info["_id"], None)
            self._held[info["_id"]] = Holding(_with(info, changes), standing, next(self._numbers))
            return copied(self._held[info["_id"]].info)

    @property
    def experiments(self) -> list[str]:
        """The ``_id`` of every experiment, in the order of registration."""
        with self._lock:
            return list(self._held)

    def change_info(self, experiment: str, **changes: Any) -> Document:
        """Overwrite keys of an experiment's document (``params`` as a whole); None removes a key."""
        with self._changing(experiment) as held:
            held.info = _with(held.info, changes)
            return copied(held.info)

    def rename(self, experiment: str, name: str, *, errors: int = 0) -> None:
        """Give an experiment another name and ``_id``; its documents keep theirs.

        Parameters
        ----------
        errors
            How many requests for the old one are answered 500 before it is 404.
        """
        with self._changing(experiment) as held:
            if name.replace(" ", "_") in self._held:
                raise UsageError(f"there is an experiment {name!r} already")
            del self._held[held.id]
            self._gone[held.id] = errors
            held.info = {**held.info, "_id": name.replace(" ", "_"), "name": name}
            self._gone.pop(held.id, None)
            self._held[held.id] = held

    def delete_experiment(self, experiment: str, *, errors: int = 0) -> None:
        """Remove an experiment and all that belongs to it; ``errors`` as in `rename`."""
        with self._changing(experiment) as held:
            del self._held[held.id]
            self._gone[held.id] = errors

    def deny(self, experiment: str, user: str | None = None) -> None:
        """Take the privilege ``read`` from a user; from everybody where none is named."""
        with self._changing(experiment) as held:
            held.denied.add(user)

    def allow(self, experiment: str, user: str | None = None) -> None:
        """Take `deny` back; all of them where no user is named."""
        with self._changing(experiment) as held:
            if user is None:
                held.denied.clear()
            held.denied.discard(user)

    def set_active(self, experiment: str, *, station: int = 0) -> None:
        """Say that an experiment is the one that a station of its instrument runs now."""
        with self._changing(experiment) as held:
            self._active[held.info["instrument"], str(station)] = held.id

    # Entries

    def post(
        self,
        experiment: str,
        content: str,
        *,
        author: str = "jdoe",
        title: str | None = None,
        tags: Sequence[str] = (),
        run_num: int | None = None,
        attachments: Iterable[Attachment] = (),
        to: Sequence[str] = (),
        email_to: Sequence[str] = (),
        at: datetime | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Document:
        """Write an entry.

        Parameters
        ----------
        to
            Experiments that get a copy at once.
        at
            When; default now.
        """
        with self._changing(experiment) as held:
            moment = at or self.now
            others = [self.find(other) for other in to]
            entry: Document = {
                "_id": self._new_id(moment), "insert_time": written(moment), "relevance_time": written(moment),
                "author": author, "content": content, "content_type": "TEXT", "title": title, "tags": list(tags),
                "run_num": run_num, "email_to": list(email_to), "post_to_elogs": [other.id for other in others],
                "attachments": self._attach(attachments, moment),
            }  # fmt: skip
            entry = _with(_without_empty(entry), changes)
            held.entries[entry["_id"]] = entry
            for other in others:
                self.cross_post(held.id, entry["_id"], other.id, at=moment)
            return copied(entry)

    def reply(self, experiment: str, entry_id: str, content: str, **more: Any) -> Document:
        """Answer an entry; ``more`` is what `post` takes."""
        with self._lock:
            entry = self._entry(self.find(experiment), entry_id)
            thread = {"root": entry.get("root", entry["_id"]), "parent": entry["_id"]}
            return self.post(experiment, content, **{**more, "changes": {**thread, **(more.get("changes") or {})}})

    def edit(
        self,
        experiment: str,
        entry_id: str,
        content: str | None = None,
        *,
        editor: str = "jdoe",
        title: str | None = None,
        tags: Sequence[str] | None = None,
        run_num: int | None = None,
        attachments: Iterable[Attachment] = (),
        at: datetime | None = None,
    ) -> Document:
        """Change an entry in place, and return the history copy that stays of what it was.

        The entry keeps its id and its times, its author becomes the editor, and attachments are added. The copy has
        a new id, the old ``insert_time``, the entry as ``parent``, and is deleted: ``relevance_time`` and
        ``deleted_time`` are the moment of the edit.
        """
        with self._changing(experiment) as held:
            entry, moment = self._entry(held, entry_id), at or self.now
            copy: Document = copied(entry)
            copy |= {"_id": self._new_id(moment), "parent": entry_id, "relevance_time": written(moment)}
            copy |= {"deleted_time": written(moment), "deleted_by": editor}
            held.entries[copy["_id"]] = copy
            new = {"content": content, "title": title, "tags": tags and list(tags), "run_num": run_num}
            entry |= {key: value for key, value in new.items() if value is not None}
            entry |= {"author": editor, "previous_version": copy["_id"]}
            if added := self._attach(attachments, moment):
                entry["attachments"] = entry.get("attachments", []) + added
            return copied(copy)

    def delete_entry(self, experiment: str, entry_id: str, *, by: str = "jdoe", at: datetime | None = None) -> Document:
        """Mark an entry as deleted; nothing else of it changes, and it stays."""
        with self._changing(experiment) as held:
            entry = self._entry(held, entry_id)
            entry |= {"deleted_by": by, "deleted_time": written(at or self.now)}
            return copied(entry)

    def cross_post(self, experiment: str, entry_id: str, to: str, *, at: datetime | None = None) -> Document:
        """Copy an entry into another logbook, at any later time: a new id and the times of the source."""
        with self._changing(to) as other:
            held = self.find(experiment)
            entry = copied(self._entry(held, entry_id))
            own = ("root", "parent", "shift", "previous_version", "post_to_elogs", "email_to")
            copy: Document = {key: value for key, value in entry.items() if key not in own}
            copy |= {"_id": self._new_id(at or self.now), "src_expname": held.name, "src_id": entry_id}
            other.entries[copy["_id"]] = copy
            return copied(copy)

    def change_entry(self, experiment: str, entry_id: str, **changes: Any) -> Document:
        """Overwrite keys of an entry against all rules, without history; None removes a key."""
        with self._changing(experiment) as held:
            held.entries[entry_id] = _with(self._entry(held, entry_id), changes)
            return copied(held.entries[entry_id])

    def _attach(self, attachments: Iterable[Attachment], moment: datetime) -> list[Document]:
        documents = []
        for one in attachments:
            document = {"_id": self._new_id(moment), "name": one.name, "type": one.type}
            document["url"] = f"mongo://{self._new_id(moment)}"
            if one.preview is not None:
                document["preview_url"] = f"mongo://{self._new_id(moment)}"
            self._stored[document["_id"]] = one
            documents.append(document)
        return documents

    # Runs

    def start_run(
        self,
        experiment: str,
        num: int | None = None,
        *,
        kind: str = "DATA",
        params: Mapping[str, Any] | None = None,
        sample: str | None = None,
        at: datetime | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Document:
        """Start a run, by default the next; it is open until `end_run`."""
        with self._changing(experiment) as held:
            moment, num = at or self.now, max(held.runs, default=0) + 1 if num is None else num
            if num in held.runs:
                raise UsageError(f"{held.name} has a run {num} already")
            run: Document = {
                "_id": self._new_id(moment), "num": num, "type": kind, "begin_time": written(moment), "end_time": None,
                "params": dict(params or {}), "editable_params": {},
            }  # fmt: skip
            if sample is not None:
                run["sample"] = {
                    "_id": f"{zlib.crc32(sample.encode()):024x}",
                    "name": sample,
                    "description": "",
                    "params": {},
                }
            held.runs[num] = _with(run, changes)
            return copied(held.runs[num])

    def end_run(self, experiment: str, num: int | None = None, *, at: datetime | None = None) -> Document:
        """End a run, by default the current one."""
        with self._changing(experiment) as held:
            run = self._run(held, max(held.runs, default=0) if num is None else num)
            run["end_time"] = written(at or self.now)
            return copied(run)

    def set_params(self, experiment: str, num: int, params: Mapping[str, Any]) -> Document:
        """Add or alter parameters of a run, also of one that has ended; None removes one."""
        with self._changing(experiment) as held:
            run = self._run(held, num)
            run["params"] = _with(run["params"], params)
            return copied(run)

    def set_editable(self, experiment: str, num: int, name: str, value: str, *, by: str = "jdoe") -> Document:
        """Write an editable parameter of a run, e.g. ``comment``."""
        with self._changing(experiment) as held:
            run = self._run(held, num)
            run["editable_params"][name] = {"value": value, "modified_by": by, "modified_time": written(self.now)}
            return copied(run)

    # Files

    def register_file(
        self,
        experiment: str,
        path: str,
        run_num: int,
        size: int | None = None,
        *,
        at: datetime | None = None,
        old_times: bool = False,
        changes: Mapping[str, Any] | None = None,
    ) -> Document:
        """Register a file of a run; one with the same path and run is replaced (new size and times).

        Parameters
        ----------
        size
            Bytes; without it the key is missing.
        old_times
            Whether the times are those of old records: ``YYYY-MM-DDTHH:MM:SSZ``.
        """
        with self._changing(experiment) as held:
            moment, before = at or self.now, held.files.get((run_num, path), {})
            stamp = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if old_times else written(moment)
            known: Document = {
                "_id": before.get("_id") or self._new_id(moment), "path": path,
                "absolute_path": f"/u2/pcds/pds{path}", "hostname": "daq-node01", "gen": before.get("gen", 0) + 1,
                "run_num": run_num, "size": size, "checksum": f"{next(self._numbers):032x}",
                "create_timestamp": stamp, "modify_timestamp": stamp, "locations": {},
            }  # fmt: skip
            known = {key: value for key, value in known.items() if value is not None}
            held.files[run_num, path] = _with(known, changes)
            return copied(held.files[run_num, path])

    def locate_file(self, experiment: str, path: str, run_num: int, location: str) -> Document:
        """Say that a file is at a location now."""
        with self._changing(experiment) as held:
            if (run_num, path) not in held.files:
                raise MissingError(f"{held.name} has no file {path} of run {run_num}")
            document = held.files[run_num, path]
            document["locations"][location] = {"asof": written(self.now)}
            return copied(document)

    # Workflows

    def define_workflow(
        self,
        experiment: str,
        name: str,
        *,
        trigger: str = "MANUAL",
        executable: str = "/sdf/group/lcls/ds/tools/arp/submit.sh",
        parameters: str = "--queue milano",
        location: str = "S3DF",
        run_as_user: str = "jdoe",
        changes: Mapping[str, Any] | None = None,
    ) -> Document:
        """Define a workflow; with ``RUN_PARAM_IS_VALUE`` the ``run_param_*`` keys are in ``changes``."""
        if trigger not in _TRIGGERS:
            raise UsageError(f"no trigger is called {trigger!r}", fix=f"one of {', '.join(_TRIGGERS)}")
        with self._changing(experiment) as held:
            definition: Document = {
                "_id": self._new_id(self.now), "name": name, "executable": executable, "parameters": parameters,
                "trigger": trigger, "location": location, "run_as_user": run_as_user,
            }  # fmt: skip
            held.definitions[definition["_id"]] = _with(definition, changes)
            return copied(held.definitions[definition["_id"]])

    def alter_workflow(self, experiment: str, definition_id: str, **changes: Any) -> Document:
        """Change a definition; None removes a key."""
        with self._changing(experiment) as held:
            held.definitions[definition_id] = _with(_among(held.definitions, definition_id), changes)
            return copied(held.definitions[definition_id])

    def drop_workflow(self, experiment: str, definition_id: str, *, even_with_jobs: bool = False) -> None:
        """Remove a definition; the service refuses where there are jobs, which would no longer be listed."""
        with self._changing(experiment) as held:
            if not even_with_jobs and any(job["def_id"] == definition_id for job in held.jobs.values()):
                raise UsageError("the definition has jobs", fix="even_with_jobs=True")
            held.definitions.pop(definition_id)

    def submit_job(
        self, experiment: str, definition_id: str, run_num: int, *, user: str = "jdoe", at: datetime | None = None
    ) -> Document:
        """Submit a job of a definition for a run, and return it as it is listed."""
        with self._changing(experiment) as held:
            _among(held.definitions, definition_id)
            moment = at or self.now
            job: Document = {
                "_id": self._new_id(moment), "run_num": run_num, "def_id": definition_id, "user": user,
                "status": "START", "submit_time": written(moment), "tool_id": 4_000_000 + len(held.jobs),
                "log_file_path": f"/sdf/home/j/{user}/{run_num}.log", "counters": [],
            }  # fmt: skip
            held.jobs[job["_id"]] = job
            return listed_job(held, job)

    def alter_job(self, experiment: str, job_id: str, **changes: Any) -> Document:
        """Change a job, e.g. ``status`` and ``counters``, and return it as it is listed."""
        with self._changing(experiment) as held:
            held.jobs[job_id] = _with(_among(held.jobs, job_id), changes)
            return listed_job(held, held.jobs[job_id])

    # Questionnaire

    def set_field(
        self, experiment: str, field_id: str, value: str, *, by: str = "jdoe", modified_time: str | None = None
    ) -> Document:
        """Fill in a field of the proposal's questionnaire, which experiments with one proposal share.

        Parameters
        ----------
        field_id
            Its category, a dash, and more: ``xray-energy-1``.
        modified_time
            Text in any form.
        """
        with self._lock:
            held = self.find(experiment)
            if held.proposal is None:
                raise UsageError(f"{held.name} has no proposal", fix="give it params PNR, and run_period or digits")
            text = self.now.strftime("%b/%d/%Y %H:%M:%S") if modified_time is None else modified_time
            document = {"id": field_id, "val": value, "modified_time": text, "modified_uid": by}
            self._fields.setdefault(held.proposal, {})[field_id] = document
            return dict(document)

    # What it holds

    def truth(self, experiment: str) -> Truth:
        """Return all that is held of an experiment, to be compared with a mirror."""
        with self._lock:
            held = self.find(experiment)
            jobs = [listed_job(held, job) for job in held.jobs.values() if job["def_id"] in held.definitions]
            fields = self._fields.get(held.proposal, {}) if held.proposal and held.info["instrument"] != "UED" else {}
            return Truth(
                info=copied(held.info),
                entries=copied(held.entries),
                runs={num: copied(run) for num, run in held.runs.items()},
                files={key: copied(document) for key, document in held.files.items()},
                workflow_definitions=copied(held.definitions),
                workflow_jobs={job["_id"]: job for job in jobs},
                questionnaire={key: {"category": category(key), **value} for key, value in fields.items()},
            )

    # Inside

    @contextmanager
    def _changing(self, experiment: str) -> Iterator[Holding]:
        with self._lock:
            held = self.find(experiment)
            try:
                yield held
            finally:
                held.version = next(self._numbers)

    def find(self, experiment: str) -> Holding:
        """Return what is held of an experiment, not copied: to be looked at only."""
        held = self._held.get(experiment) or self._held.get(experiment.replace(" ", "_"))
        if held is None:
            raise MissingError(f"the logbook has no experiment {experiment!r}")
        return held

    def _entry(self, held: Holding, entry_id: str) -> Document:
        return _among(held.entries, entry_id)

    def _run(self, held: Holding, num: int) -> Document:
        return _among(held.runs, num)

    def _new_id(self, moment: datetime) -> str:
        return f"{int(moment.timestamp()):08x}{next(self._numbers):016x}"


def category(field_id: str) -> str:
    """Return the category of a questionnaire's field: what stands before the first dash."""
    return field_id.partition("-")[0]


def listed_job(held: Holding, job: Mapping[str, Any]) -> Document:
    """Return a job as the service lists it, with its definition inside."""
    return copied({**job, "experiment": held.name, "def": held.definitions.get(job["def_id"])})


def _among(documents: Mapping[Any, Document], key: Any) -> Document:
    if key not in documents:
        raise MissingError(f"there is no document {key!r}")
    return documents[key]


def _with(document: Mapping[str, Any], changes: Mapping[str, Any] | None) -> Document:
    """Return a document with keys overwritten, and those removed whose new value is None."""
    if not changes:
        return copied(dict(document))
    removed = {key for key, value in changes.items() if value is None}
    return copied({key: value for key, value in {**document, **changes}.items() if key not in removed})


def _without_empty(document: Mapping[str, Any]) -> Document:
    """Return a document without the keys that the service leaves out when they are not set."""
    return {key: value for key, value in document.items() if value not in (None, [])}
