"""A mirror of the logbook compared with what the logbook holds, document by document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from nightbeam.catalog import Logbook
from nightbeam.core.errors import MissingError
from nightbeam.elog.model import Resource
from nightbeam.elog.remote import LogbookClient, NoAuth
from nightbeam.elogsync.model import Policy, SyncReport
from nightbeam.elogsync.worker import look_around, sync
from nightbeam.testing.elog_service import FakeLogbook

#: What the service says of an experiment in its list of experiments and in ``info`` alike.
_ABOUT = (
    "_id", "name", "instrument", "description", "start_time", "end_time", "leader_account", "contact_info",
    "posix_group",
)  # fmt: skip


def _plain(documents: dict[Any, Any]) -> dict[str, str]:
    # NaN is not equal to itself, but its text is.
    return {str(key): json.dumps(document, sort_keys=True) for key, document in documents.items()}


def _about(document: dict[str, Any]) -> dict[str, Any]:
    params = {key: value for key, value in document.get("params", {}).items() if "pwd" not in key}
    return {key: document.get(key) for key in _ABOUT} | {"params": params}


def _whole(book: Logbook, resource: Resource, experiment: str) -> dict[str, Any]:
    try:
        return book.document(resource, experiment)
    except MissingError:
        return {}


def mirrored(book: Logbook, experiment: str) -> dict[str, dict[str, str]]:
    """What the mirror holds of an experiment and believes to be there still, in the form of `true`."""
    of = lambda resource: list(book.documents(resource, experiment))  # noqa: E731
    asked = _whole(book, Resource.QUESTIONNAIRE, experiment)
    fields = {field["id"]: {"category": category, **field} for category, some in asked.items() for field in some}
    rows = {row["field_id"]: row for row in book.rows("questionnaire_fields", experiment=experiment)} if fields else {}
    for key, field in fields.items():
        row = rows[key]
        assert (row["field_value"], row["modified_time"], row["missing_since"]) == (
            field["val"],
            field["modified_time"],
            None,
        )
    return {
        "info": _plain({"": _about(_whole(book, Resource.INFO, experiment))}),
        "elog": _plain({d["_id"]: d for d in of(Resource.ENTRIES)}),
        "runs": _plain({d["num"]: d for d in of(Resource.RUNS)}),
        "files": _plain({(d["run_num"], d["path"]): d for d in of(Resource.FILES)}),
        "workflows": _plain({d["_id"]: d for d in of(Resource.WORKFLOWS)}),
        "jobs": _plain({d["_id"]: d for d in of(Resource.JOBS)}),
        "questionnaire": _plain(fields),
    }


def true(fake: FakeLogbook, experiment: str) -> dict[str, dict[str, str]]:
    """What the service holds of an experiment: by list, and in each by what identifies a document."""
    truth = fake.truth(experiment)
    return {
        "info": _plain({"": _about(truth.info)}),
        "elog": _plain(truth.entries),
        "runs": _plain(truth.runs),
        "files": _plain(truth.files),
        "workflows": _plain(truth.workflow_definitions),
        "jobs": _plain(truth.workflow_jobs),
        "questionnaire": _plain(truth.questionnaire),
    }


def differences(
    book: Logbook, fake: FakeLogbook, experiments: Iterable[str] | None = None, *, without: Iterable[str] = ()
) -> list[str]:
    """Say in which documents the mirror differs from the truth."""
    found = []
    for experiment in fake.experiments if experiments is None else experiments:
        ours, theirs = mirrored(book, experiment), true(fake, experiment)
        for name in theirs.keys() - set(without):
            for key in ours[name].keys() | theirs[name].keys():
                here, there = ours[name].get(key), theirs[name].get(key)
                if here != there:
                    found.append(f"{experiment} {name} {key}: {str(here)[:300]} is {str(there)[:300]}")
    return sorted(found)


def ledger(book: Logbook) -> dict[tuple[str, int], str | None]:
    """Return every row that is stored, by table and number, with the moment in which it was first seen."""
    found: dict[tuple[str, int], str | None] = {}
    with book.database.read() as connection:
        for name in book.counts().keys() - {"sync_state", "metadata"}:
            when = "NULL" if name in ("attachments", "detectors", "questionnaires", "workflows") else "first_seen"
            rows = connection.exec_driver_sql(f"SELECT id, {when} FROM {name}")
            found |= {(name, number): seen for number, seen in rows}
    return found


def nothing_lost(before: dict[Any, Any], book: Logbook) -> dict[Any, Any]:
    """Compare the rows that there are with those that there were, and return them."""
    after = ledger(book)
    assert before.items() <= after.items()
    return after


def content(book: Logbook) -> list[Any]:
    """Every row of a mirror or of a snapshot of it."""
    tables = [table for table in book.counts() if table not in ("sync_state", "metadata")]
    return [(table, list(book.rows(table))) for table in tables]


def asker(fake: FakeLogbook, attempts: int = 4, read_s: float = 10.0) -> LogbookClient:
    """Return a client that does not wait long before it asks again."""
    return LogbookClient(fake.url, auth=NoAuth(), attempts=attempts, backoff_s=0.01, read_s=read_s)


def go(client: LogbookClient, book: Logbook, **policy: Any) -> SyncReport:
    """Bring a mirror up to date, every experiment and every list of it."""
    usual: dict[str, Any] = {"everything": True, "jobs": True, "slow_hours": 0.0}
    return sync(client, book, look_around(client, book, Policy(**usual | policy)), jobs=4)


def start(fake: FakeLogbook, *arguments: Any, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Begin an update in a process of its own."""
    argv = [sys.executable, "-m", "nightbeam", "elog", "update", "--everything", "--base-url", fake.url]
    return subprocess.Popen(
        [*argv, *map(str, arguments)],
        env={**os.environ, **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
