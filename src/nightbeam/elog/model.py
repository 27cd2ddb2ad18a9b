"""What the logbook's service speaks of: its documents, and the lists that they come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Answer", "Document", "Production", "Resource", "Summary", "Traffic"]

#: One document as the service gave it: JSON values, NaN as a float, NUL inside strings.
Document = Mapping[str, Any]


class Resource(StrEnum):
    """The lists that one experiment has."""

    INFO = "info"
    ENTRIES = "elog"
    RUNS = "runs"
    FILES = "files"
    WORKFLOWS = "workflows"
    JOBS = "jobs"
    QUESTIONNAIRE = "questionnaire"


@dataclass(frozen=True, slots=True)
class Summary:
    """One experiment in the list of those that the user may read.

    Attributes
    ----------
    experiment_id
        The document's ``_id``, which addresses are made of; ``name`` can hold spaces.
    run_count, last_run, total_files, total_gib
        None where the experiment has no runs, or no files.
    last_run_begin
        As the service writes it.
    document
        The whole of it. ``params`` can hold the passwords of meetings.
    """

    experiment_id: str
    name: str
    instrument: str | None = None
    description: str | None = None
    start_time: str | None = None
    end_time: str | None = None
    leader_account: str | None = None
    contact_info: str | None = None
    posix_group: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    run_count: int | None = None
    last_run: int | None = None
    total_files: int | None = None
    total_gib: float | None = None
    last_run_begin: str | None = None
    document: Document = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Production:
    """What the data acquisition and the file mover say of a run in its parameters; None where they do not."""

    n_events: int | None = None
    n_damaged: int | None = None
    n_dropped: int | None = None
    prod_start: str | None = None
    prod_end: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service answered to one question, whole.

    Attributes
    ----------
    documents
        In the service's order, and as often as it gave them: the same ``_id`` can be there twice. One for `INFO`
        and `QUESTIONNAIRE`.
    nbytes, sha256
        Of the body as it was sent: with an equal ``sha256`` nothing has changed.
    requests
        How many it took.
    refused
        How many documents are left out because they have no ``_id`` that is a text, or are none.
    """

    resource: Resource
    documents: tuple[Document, ...]
    nbytes: int
    sha256: str
    requests: int = 1
    refused: int = 0

    @property
    def document(self) -> Document:
        """The one document of an answer that is no list."""
        return self.documents[0]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a client has asked so far.

    Attributes
    ----------
    requests
        All, repetitions among them.
    retries
        Those that were made because one before failed.
    nbytes
        Of the bodies of answers that came whole.
    most_in_flight
        How many requests were being made at once, at most.
    """

    requests: int = 0
    retries: int = 0
    nbytes: int = 0
    most_in_flight: int = 0
