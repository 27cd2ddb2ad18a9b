"""The mirror of the logbook keeps what it was given, on SQLite and on a real PostgreSQL alike."""

from __future__ import annotations

import math
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from nightbeam.catalog import Change, Logbook
from nightbeam.core.errors import BusyError, InputError, MissingError, UsageError
from nightbeam.elog import compute
from nightbeam.elog.model import Resource, Summary

X = "mfx100012325"
NOON = datetime(2026, 2, 3, 12, 0, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)

INFO: dict[str, Any] = {
    "_id": X,
    "name": X,
    "instrument": "MFX",
    "description": "Time-resolved study",
    "registration_time": "2025-11-01T00:00:00+00:00",
    "start_time": "2026-02-01T17:00:00+00:00",
    "leader_account": "jdoe",
    "contact_info": "Jane (JD) Doe (jane@example.org)",
    "posix_group": X,
    "is_locked": True,
    "params": {"PNR": "L-10001", "slack_channels": "#mfx", "analysis_queues": "milano"},
    "latest_setup": {"_id": "65f0", "modified_by": "jdoe"},
}
SUMMARY: dict[str, Any] = {
    **{key: INFO[key] for key in ("_id", "name", "instrument", "description", "contact_info", "posix_group", "params")},
    "players": [X, "uid:jdoe"],
    "run_count": 241,
    "first_run": {"num": 1, "begin_time": "2026-02-01T18:00:00+00:00", "end_time": None},
    "last_run": {"num": 245, "begin_time": "2026-02-05T03:10:00.120000+00:00", "end_time": None},
    "totalFiles": 9640,
    "totalDataSize": 18543.2,
}
FILE = {"_id": "f1", "path": "/x-r0032.xtc2", "run_num": 32, "size": 3805078488, "locations": {"S3DF": {"asof": "t"}}}
DEFINITION = {"_id": "d1", "name": "#smd", "executable": "/sdf/submit.sh", "trigger": "MANUAL", "parameters": "--x 1"}
JOB = {"_id": "j1", "run_num": 32, "def_id": "d1", "status": "DONE", "tool_id": 4005731, "counters": [{"key": "<b>"}]}
QUESTIONS = {
    "xray": [{"id": "xray-energy-1", "val": "9.5", "modified_time": "Feb/03/2026 04:05:06", "modified_uid": "jdoe"}],
    "personnel": [{"id": "personnel-poc-sci1", "val": ""}],
}


def entry(number: int, content: str = "Jet restarted", **more: Any) -> dict[str, Any]:
    when = f"2026-02-03T04:{number // 60:02d}:{number % 60:02d}+00:00"
    basis = {"insert_time": when, "relevance_time": when, "author": "jdoe", "content": content, "content_type": "TEXT"}
    return {"_id": f"67a1b2c3d4e5f607{number:08x}", **basis, **more}


def run(number: int, **more: Any) -> dict[str, Any]:
    begin = "2026-02-03T04:00:00.120000+00:00"
    return {"_id": f"r{number}", "num": number, "type": "DATA", "begin_time": begin, "end_time": None, **more}


@pytest.fixture
def empty(logbook_url: str, open_new: Callable[..., Logbook]) -> Logbook:
    return open_new(Logbook, logbook_url, busy_timeout_s=5.0)


@pytest.fixture
def logbook(empty: Logbook) -> Logbook:
    empty.put_experiment(INFO, now=NOON)
    return empty


def kept(logbook: Logbook, resource: Resource, **options: Any) -> list[dict[str, Any]]:
    return list(logbook.documents(resource, X, **options))


@contextmanager
def statements(logbook: Logbook) -> Iterator[list[str]]:
    """What the database is told meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(" ".join(statement.split()))

    event.listen(logbook.database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(logbook.database.engine, "before_cursor_execute", note)


def tables_written(seen: list[str]) -> set[str]:
    words = [line.replace('"', "").split() for line in seen if line.startswith(("INSERT", "UPDATE", "DELETE"))]
    return {line[1] if line[0] == "UPDATE" else line[2] for line in words}


# -- schema -------------------------------------------------------------------------------------------------------


def test_the_migrations_give_what_the_models_say_there_and_back(logbook: Logbook, logbook_url: str):
    assert logbook.problems() == []
    logbook.database.downgrade("base")
    with logbook.database.read() as connection:
        assert [n for n in _names(connection) if not n.startswith("nightbeam_elog_version")] == []
    again = Logbook(logbook_url)
    assert (again.problems(), again.database.revision(), again.counts()["experiments"]) == ([], "0001", 0)


def _names(connection: Any) -> list[str]:
    if connection.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    else:
        query = "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'public'"
    return list(connection.exec_driver_sql(query).scalars())


def test_a_schema_that_there_is_not_cannot_be_gone_back_to(logbook: Logbook):
    with pytest.raises(InputError, match=r"elog has no schema 0000(.|\n)*one of base, 0001"):
        logbook.database.downgrade("0000")


def test_a_table_that_was_changed_by_hand_is_seen(logbook: Logbook):
    with logbook.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE files ADD COLUMN mine INTEGER")
    (problem,) = logbook.problems()
    assert "mine" in problem


# -- experiments --------------------------------------------------------------------------------------------------


def test_an_experiment_is_kept_with_what_follows_from_it(logbook: Logbook):
    row = logbook.experiment(X)
    assert (row.pi, row.pi_email, row.urawi_proposal, row.run_period) == (
        "Jane (JD) Doe",
        "jane@example.org",
        "L-10001",
        "25",
    )
    assert (row.status, row.updated_at, row.description) == ("ok", "2026-02-03T12:00:00+00:00", "Time-resolved study")
    assert logbook.document(Resource.INFO, X) == INFO
    assert logbook.state(X)[Resource.INFO].full_at == NOON


def test_passwords_of_meetings_are_not_stored(empty: Logbook):
    params = {
        "PNR": "L-1",
        "zoom_meeting_pwd": "s3cr3t",
        "url": "https://example.org/j/1?pwd=s3cr3t&x=1",
        "API_TOKEN": "s3cr3t",
    }
    for document in (INFO | {"params": params}, compute.summary_of(SUMMARY | {"params": params})):
        empty.put_experiment(document)
    assert empty.document(Resource.INFO, X)["params"] == {"PNR": "L-1", "url": "https://example.org/j/1?pwd=&x=1"}
    assert "s3cr3t" not in str(list(empty.rows("experiments")))


def test_the_list_and_the_info_of_an_experiment_are_told_apart(logbook: Logbook):
    assert logbook.put_experiment(compute.summary_of(SUMMARY), now=LATER) == Change(changed=1)
    row = logbook.experiment(X)
    assert (row.run_count, row.last_run, row.total_files, row.total_gib) == (241, 245, 9640, 18543.2)
    assert logbook.document(Resource.INFO, X) == SUMMARY | INFO
    for document in (INFO, compute.summary_of(SUMMARY)) * 2:
        assert logbook.put_experiment(document) == Change(same=1)
    # What was said last holds, and what it does not say is no longer so.
    newer = {key: value for key, value in INFO.items() if key != "contact_info"} | {"description": "Another study"}
    logbook.put_experiment(newer)
    row = logbook.experiment(X)
    assert (row.description, row.pi, row.run_count) == ("Another study", None, 241)


def test_an_experiment_that_is_gone_keeps_its_data_and_may_come_back(logbook: Logbook):
    logbook.put_entries(X, [entry(1)], full=True)
    assert logbook.mark(X, "gone", now=LATER)
    assert not logbook.mark(X, "gone", now=LATER + timedelta(hours=1))
    assert [(r.status, r.status_since) for r in logbook.experiments(status="gone")] == [
        ("gone", "2026-02-03T13:00:00+00:00")
    ]
    assert kept(logbook, Resource.ENTRIES) == [entry(1)]
    assert logbook.put_experiment(INFO) == Change(back=1)
    assert logbook.experiments(status="no access") == []
    assert logbook.experiment(X).status == "ok"


def test_a_spaced_name_finds_its_experiment(empty: Logbook):
    empty.put_experiment({"_id": "Sample_Delivery_System", "name": "Sample Delivery System", "instrument": "MFX"})
    assert empty.experiment("Sample Delivery System").experiment_id == "Sample_Delivery_System"
    assert empty.experiment("Sample_Delivery_System").name == "Sample Delivery System"


def test_two_experiments_of_one_name_are_both_kept(empty: Logbook):
    for key in ("a", "b"):
        empty.put_experiment({"_id": key, "name": "same"})
    assert [(r.experiment_id, r.name) for r in empty.experiments()] == [("a", "same"), ("b", "same (b)")]
    # A renamed one is gone under its old id: the name is then the other's.
    empty.mark("a", "gone")
    empty.put_experiment({"_id": "c", "name": "same"})
    assert [(r.experiment_id, r.name) for r in empty.experiments()] == [
        ("a", "same (a)"),
        ("b", "same (b)"),
        ("c", "same"),
    ]
    assert empty.document(Resource.INFO, "a")["name"] == "same"


@pytest.mark.parametrize("document", [{}, {"_id": "a"}, {"_id": 5, "name": "a"}, {"_id": "", "name": "a"}])
def test_an_experiment_without_id_or_name_is_refused(empty: Logbook, document: Any):
    with pytest.raises(InputError, match="an experiment without _id or name"):
        empty.put_experiment(document)


def test_an_unknown_experiment_is_named(empty: Logbook):
    for call in (
        lambda: empty.put_entries("nosuch", [entry(1)], full=True),
        lambda: empty.put_entries("nosuch", [entry(1)], full=True, body_sha256="a"),
        lambda: empty.failed("nosuch", "elog", "503"),
        lambda: empty.mark("nosuch", "gone"),
        lambda: empty.experiment("nosuch"),
    ):
        with pytest.raises(MissingError, match=r"has no experiment nosuch(.|\n)*nightbeam elog fetch nosuch"):
            call()
    assert empty.state("nosuch") == {}
    assert set(empty.counts().values()) == {0}


# -- lists --------------------------------------------------------------------------------------------------------


def test_new_edited_and_unchanged_entries_are_told_apart_and_updated_in_place(logbook: Logbook):
    assert logbook.put_entries(X, [entry(1), entry(2)], full=True, now=NOON) == Change(new=2)
    before = {row["entry_id"]: row for row in logbook.rows("logbook_entries")}
    change = logbook.put_entries(X, [entry(1), entry(2, "Jet off"), entry(3)], full=True, now=LATER)
    assert change == Change(new=1, changed=1, same=1)
    assert change.written == 2
    assert kept(logbook, Resource.ENTRIES) == [entry(1), entry(2, "Jet off"), entry(3)]
    after = {row["entry_id"]: row for row in logbook.rows("logbook_entries")}
    first, second = entry(1)["_id"], entry(2)["_id"]
    assert after[first] == before[first]
    assert after[second]["id"] == before[second]["id"]
    assert (after[second]["first_seen"], after[second]["changed_at"]) == (
        "2026-02-03T12:00:00+00:00",
        "2026-02-03T13:00:00+00:00",
    )


LISTS: list[tuple[str, Resource, dict[str, Any], dict[str, Any]]] = [
    ("put_entries", Resource.ENTRIES, entry(1), entry(2)),
    ("put_runs", Resource.RUNS, run(1), run(2)),
    ("put_files", Resource.FILES, FILE, FILE | {"_id": "f2", "path": "/y"}),
    ("put_workflows", Resource.WORKFLOWS, DEFINITION, DEFINITION | {"_id": "d2"}),
    ("put_jobs", Resource.JOBS, JOB, JOB | {"_id": "j2"}),
]


@pytest.mark.parametrize(("put", "resource", "first", "second"), LISTS, ids=[row[0] for row in LISTS])
def test_a_full_answer_marks_what_it_lacks_and_keeps_it(
    logbook: Logbook, put: str, resource: Resource, first: Any, second: Any
):
    def store(*documents: Any, now: datetime = NOON) -> Change:
        more = {"full": True} if put == "put_entries" else {}
        return getattr(logbook, put)(X, documents, now=now, **more)

    assert store(first, second) == Change(new=2)
    assert store(second, now=LATER) == Change(same=1, missing=1)
    assert store(second) == Change(same=1)
    assert kept(logbook, resource) == [second]
    assert kept(logbook, resource, missing=True) == [first, second]
    assert logbook.state(X)[resource].rows == 1
    table = {Resource.ENTRIES: "logbook_entries", Resource.WORKFLOWS: "workflow_definitions"}
    table |= {Resource.JOBS: "workflow_jobs"}
    name = table.get(resource, resource.value)
    assert [row["missing_since"] for row in logbook.rows(name)] == ["2026-02-03T13:00:00+00:00", None]
    assert (logbook.counts()[name], logbook.counts(present=True)[name]) == (2, 1)
    assert store() == Change(missing=1)
    assert store(first, second | {"more": 1}) == Change(back=2)
    assert kept(logbook, resource) == [first, second | {"more": 1}]
    assert [row["missing_since"] for row in logbook.rows(name)] == [None, None]


@pytest.mark.parametrize("count", [3, 1200])
def test_a_window_says_nothing_about_what_it_lacks(logbook: Logbook, count: int):
    logbook.put_entries(X, [entry(n) for n in range(count)], full=True)
    window = [entry(n, "edited") for n in range(1, count)] + [entry(count)]
    change = logbook.put_entries(X, window, full=False, window_end=NOON, now=LATER)
    assert change == Change(new=1, changed=count - 1)
    assert logbook.put_entries(X, [], full=False, now=LATER) == Change()
    assert len(kept(logbook, Resource.ENTRIES)) == count + 1
    state = logbook.state(X)[Resource.ENTRIES]
    assert (state.rows, state.window_end, state.synced_at) == (count + 1, NOON, LATER)
    assert state.full_at is not None
    assert state.full_at > LATER  # the full one was read just now, and stays


def test_one_id_twice_in_an_answer_is_one_row_the_last(logbook: Logbook):
    for full in (True, False):
        logbook.put_entries(X, [entry(1, "a"), entry(2), entry(1, "b")], full=full)
        assert kept(logbook, Resource.ENTRIES) == [entry(1, "b"), entry(2)]


def test_an_answer_with_one_bad_document_stores_nothing_of_it(logbook: Logbook):
    logbook.put_runs(X, [run(1)], now=NOON)
    with pytest.raises(InputError, match="a run without a number"):
        logbook.put_runs(X, [run(1, type="DARK"), {"_id": "r"}], now=LATER)
    assert kept(logbook, Resource.RUNS) == [run(1)]
    assert logbook.state(X)[Resource.RUNS].attempted_at == NOON


@pytest.mark.parametrize(
    ("put", "document"),
    [
        ("put_runs", {"num": "FoilHole"}),
        ("put_runs", {"num": True}),
        ("put_runs", {"num": 2**63}),
        ("put_files", {"run_num": 3}),
        ("put_files", {"path": "/x", "run_num": "three"}),
        ("put_files", {"path": "x" * 2001, "run_num": 3}),
        ("put_workflows", {"name": "#smd"}),
        ("put_jobs", {"_id": None}),
    ],
)
def test_what_cannot_be_told_apart_is_refused(logbook: Logbook, put: str, document: Any):
    with pytest.raises(InputError):
        getattr(logbook, put)(X, [document])


def test_rows_and_state_are_written_together_or_not_at_all(logbook: Logbook, monkeypatch: pytest.MonkeyPatch):
    logbook.put_entries(X, [entry(1)], full=True, now=NOON)

    def fail(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Logbook, "_succeeded", fail)
        with pytest.raises(RuntimeError, match="the power is gone"):
            logbook.put_entries(X, [entry(1, "edited"), entry(2)], full=True, now=LATER)
    assert kept(logbook, Resource.ENTRIES) == [entry(1)]
    assert logbook.state(X)[Resource.ENTRIES].synced_at == NOON


def fill(logbook: Logbook, **more: Any) -> list[Change]:
    runs = [run(n, params={"DAQ Detectors/A": True, "x": n}) for n in (1, 32)]
    return [
        logbook.put_experiment(INFO),
        logbook.put_entries(X, [entry(1, attachments=[{"_id": "a", "name": "x.png"}]), entry(2)], full=True, **more),
        logbook.put_runs(X, runs, **more),
        logbook.put_files(X, [FILE], **more),
        logbook.put_workflows(X, [DEFINITION], **more),
        logbook.put_jobs(X, [JOB], **more),
        logbook.put_questionnaire(X, QUESTIONS, period="25", proposal="L-10001", **more),
    ]


@pytest.mark.parametrize("sha", [None, "abc"])
def test_what_is_unchanged_writes_nothing_but_the_state(logbook: Logbook, sha: str | None):
    fill(logbook, body_sha256=sha)
    with statements(logbook) as seen:
        changes = fill(logbook, body_sha256=sha)
    assert sum(changes, Change()) == Change(same=10)
    assert tables_written(seen) == {"sync_state"}


def test_a_body_that_is_the_last_one_again_is_not_compared(logbook: Logbook):
    documents = [entry(1), entry(2)]
    logbook.put_entries(X, documents, full=True, body_sha256="abc", now=NOON)
    assert logbook.put_entries(X, iter(()), full=True, body_sha256="abc", now=LATER) == Change(same=2)
    state = logbook.state(X)[Resource.ENTRIES]
    assert (state.full_at, state.body_sha256, state.rows) == (LATER, "abc", 2)
    # After a window that changed something the rows are no longer those of that body.
    logbook.put_entries(X, [entry(1)], full=False, body_sha256="window")
    assert logbook.state(X)[Resource.ENTRIES].body_sha256 == "abc"
    logbook.put_entries(X, [entry(3)], full=False, body_sha256="window")
    assert logbook.state(X)[Resource.ENTRIES].body_sha256 is None
    assert logbook.put_entries(X, documents, full=True, body_sha256="abc") == Change(same=2, missing=1)


def test_nothing_is_ever_deleted(logbook: Logbook):
    with statements(logbook) as seen:
        fill(logbook)
        for put in (logbook.put_runs, logbook.put_files, logbook.put_workflows, logbook.put_jobs):
            put(X, [])
        logbook.put_entries(X, [], full=True)
        logbook.put_questionnaire(X, {})
        logbook.mark(X, "gone")
        logbook.failed(X, "elog", "503")
    counts = logbook.counts()
    counts.pop("metadata")
    assert [name for name, rows in counts.items() if rows == 0] == []
    assert [line for line in seen if "DELETE" in line or "REPLACE" in line.split("(")[0]] == []


def test_a_failure_is_kept_until_the_next_success(logbook: Logbook):
    logbook.put_runs(X, [run(1)], now=NOON)
    logbook.failed(X, Resource.RUNS, "503 twice", now=LATER)
    state = logbook.failed(X, "runs", "503 again", now=LATER)
    assert (state.status, state.error, state.failures, state.rows) == ("failed", "503 again", 2, 1)
    assert (state.attempted_at, state.synced_at) == (LATER, NOON)
    assert kept(logbook, Resource.RUNS) == [run(1)]
    assert [(s.experiment_id, s.resource) for s in logbook.states(status="failed")] == [(X, Resource.RUNS)]
    logbook.put_runs(X, [run(1)], now=LATER)
    state = logbook.state(X)[Resource.RUNS]
    assert (state.status, state.error, state.failures) == ("ok", None, 0)
    assert logbook.failed(X, "files", "never read").synced_at is None


def test_a_run_that_comes_without_its_parameters_keeps_them(logbook: Logbook):
    full = run(1, params={"MFX:DIA:MMS:07": "1.5", "gone": float("nan")})
    logbook.put_runs(X, [full, run(2)])
    assert logbook.put_runs(X, [run(1), run(2)]) == Change(same=2)
    assert logbook.put_runs(X, [run(1, type="DARK")]) == Change(changed=1, missing=1)
    found = logbook.document("runs", X, 1)
    assert (found["type"], found["params"]["MFX:DIA:MMS:07"]) == ("DARK", "1.5")
    assert logbook.put_runs(X, [run(1, params={})]) == Change(changed=1)
    assert logbook.document("runs", X, 1)["params"] == {}


def test_files_are_told_apart_by_run_and_path(logbook: Logbook):
    paths = [FILE, FILE | {"run_num": 33}, {"path": "/x-r0032.xtc2"}, FILE | {"path": "/y", "run_num": "34"}]
    assert logbook.put_files(X, paths) == Change(new=4)
    assert kept(logbook, Resource.FILES) == paths
    # Registered anew: another document in the place of the old one.
    anew = FILE | {"_id": "f9", "size": 2**40}
    assert logbook.put_files(X, [anew, *paths[1:]]) == Change(changed=1, same=3)
    assert logbook.document("files", X, (32, "/x-r0032.xtc2")) == anew
    assert logbook.document("files", X, (None, "/x-r0032.xtc2")) == {"path": "/x-r0032.xtc2"}


def test_attachments_have_rows_and_stay_in_their_entry(logbook: Logbook):
    first = {"_id": "a1", "name": "snap.png", "type": "image/png", "url": "mongo://x", "preview_url": "mongo://y"}
    second = {"_id": "a2", "name": "run.log"}
    one, two = entry(1, attachments=[first]), entry(1, attachments=[first, second, {"name": "no id"}, "odd"])
    logbook.put_entries(X, [one], full=True)
    logbook.put_entries(X, [two], full=True)
    rows = [
        {k: row[k] for k in ("entry_id", "attachment_id", "name", "type", "has_preview")}
        for row in logbook.rows("attachments")
    ]
    assert [tuple(row.values()) for row in rows] == [
        (one["_id"], "a1", "snap.png", "image/png", 1),
        (one["_id"], "a2", "run.log", None, 0),
    ]
    assert kept(logbook, Resource.ENTRIES) == [two]
    logbook.put_entries(X, [one], full=True, now=LATER)
    assert [row["missing_since"] for row in logbook.rows("attachments")] == [None, "2026-02-03T13:00:00+00:00"]


def test_questionnaires_are_kept_whole_and_field_by_field(logbook: Logbook):
    def put(document: Any) -> Change:
        return logbook.put_questionnaire(X, document, period="25", proposal="L-10001", now=NOON)

    assert put(QUESTIONS) == Change(new=2)
    assert logbook.document(Resource.QUESTIONNAIRE, X) == QUESTIONS
    (row,) = logbook.rows("questionnaires")
    assert (row["experiment"], row["period"], row["proposal"], row["data"]) == (X, "25", "L-10001", QUESTIONS)
    assert put({"xray": QUESTIONS["xray"]}) == Change(same=1, missing=1)
    odd = {"xray": [*QUESTIONS["xray"], {"val": "no id"}, 5], "notes": "no list"}
    assert put(odd) == Change(same=1, changed=1)
    assert logbook.document("questionnaire", X) == odd
    assert put(odd) == Change(same=1)


def test_a_questionnaire_of_another_proposal_or_period_is_another_one(logbook: Logbook):
    def put(document: Any, period: str, proposal: str) -> tuple[Change, Any]:
        said = {"period": period, "proposal": proposal, "body_sha256": "the same"}
        change = logbook.put_questionnaire(X, document, **said)
        rows = [(row["period"], row["proposal"]) for row in logbook.rows("questionnaires")]
        return change, (rows, {row["proposal"] for row in logbook.rows("questionnaire_fields")})

    assert put(QUESTIONS, "25", "L-1") == (Change(new=2), ([("25", "L-1")], {"L-1"}))
    assert put(QUESTIONS, "26", "L-1") == (Change(same=2, changed=1), ([("26", "L-1")], {"L-1"}))
    assert put(QUESTIONS, "26", "L-2") == (Change(changed=2), ([("26", "L-2")], {"L-2"}))
    assert put(QUESTIONS, "26", "L-2") == (Change(same=2), ([("26", "L-2")], {"L-2"}))


def test_an_empty_questionnaire_is_none_of_any_proposal(logbook: Logbook):
    for proposal in ("L-1", "L-2", "L-2"):
        change = logbook.put_questionnaire(X, {}, period="25", proposal=proposal, body_sha256="empty")
        assert change == Change()
    assert list(logbook.rows("questionnaires")) == []


def test_definitions_and_jobs_of_workflows_are_kept(logbook: Logbook):
    assert logbook.put_workflows(X, [DEFINITION], now=NOON) == Change(new=1)
    assert logbook.put_jobs(X, [JOB]) == Change(new=1)
    (row,) = logbook.rows("workflows", experiment=X)
    assert (row["data"], row["updated_at"]) == ({"definitions": [DEFINITION]}, "2026-02-03T12:00:00+00:00")
    assert logbook.document("workflows", X, "d1") == DEFINITION
    assert logbook.document("jobs", X, "j1") == JOB
    with pytest.raises(MissingError, match=f"no workflows d2 of {X}"):
        logbook.document("workflows", X, "d2")


def test_detectors_get_numbers_that_stay(logbook: Logbook):
    logbook.put_runs(X, [run(1, params={"DAQ Detectors/B": True, "DAQ_Detectors/A": True})])
    before = list(logbook.rows("detectors"))
    logbook.put_runs(X, [run(1, params={"DAQ Detectors/A": False, "DAQ Detectors/B": True})])
    after = list(logbook.rows("detectors"))
    assert [row["name"] for row in before] == ["DAQ Detectors/B", "DAQ_Detectors/A"]
    assert after[:2] == before
    assert after[2]["name"] == "DAQ Detectors/A"


# -- everything comes back as it was ------------------------------------------------------------------------------

HARD: dict[str, Any] = {
    "a NUL": "beam\0lost",
    "lone surrogates": "\ud83d and \ude00\ud83d",
    "astral": "𝔘 😀 \U0010ffff",
    "our own escape": "\U000f0000 \U000f0000\U000f0000 \U000f00000000 \U000f0000d83d",
    "umlauts": "Größe, 温度, مرحبا, e\u0301",
    "markup": "<script>alert('1')</script> <img src=x onerror=y> & &amp;",
    "quotes": "'; DROP TABLE runs; -- \" \\ \\u0000 %s :name {x}",
    "lines": "a\r\nb\tc\u2028d\x1b[31m",
    "megabytes": "data:image/png;base64," + "iVBORw0KGgo" * 500_000,
    "nothing": "",
}


@pytest.mark.parametrize("text", HARD.values(), ids=HARD.keys())
def test_any_text_comes_back(logbook: Logbook, text: str):
    document = entry(
        1, text, title=text[:1000], tags=[text[:50]], author=text[:50], **{f"key {text[:50]}": {"x": [text[:99]]}}
    )
    logbook.put_entries(X, [document], full=True)
    assert logbook.document("elog", X, entry(1)["_id"]) == document
    assert logbook.put_entries(X, [document], full=True) == Change(same=1)
    named = run(1, params={text[:50]: text[:50], "x": {"$number": text[:50], "$$number": [text[:50]]}})
    logbook.put_runs(X, [named])
    assert logbook.document("runs", X, 1) == named


def test_numbers_come_back(logbook: Logbook):
    params = {
        "large": 2**53 + 1,
        "larger": 10**40,
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
        "tenth": 0.1 + 0.2,
        "whole": 3.0,
        "flag": True,
        "none": None,
        "inf": [math.inf, -math.inf],
        "like": {"$number": "NaN"},
        "deep": {"$$number": {"$number": 1, "x": 2}},
    }
    logbook.put_runs(X, [run(1, params=params | {"nan": math.nan})])
    found = logbook.document("runs", X, 1)["params"]
    assert math.isnan(found.pop("nan"))
    assert found == params
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in params.items()}


def test_what_does_not_fit_its_column_comes_back_too(logbook: Logbook):
    odd = entry(1) | {
        "title": None,
        "tags": "jet",
        "run_num": "32",
        "author": 5,
        "content": {"a": 1},
        "insert_time": "x" * 100,
        "root": False,
        "extra": 1,
        "id": 7,
        "digest": "x",
        "experiment_id": 3,
    }
    logbook.put_entries(X, [odd], full=True)
    assert kept(logbook, Resource.ENTRIES) == [odd]
    (row,) = logbook.rows("logbook_entries")
    assert (row["run_num"], row["author"], row["created_at"], row["root"]) == (32, "5", None, "false")
    files = [
        FILE | {"size": size, "path": f"/{size}"} for size in (2**33, 2**63 - 1, 2**63, -1, 0, 1.0, 1.5, "7", None)
    ]
    logbook.put_files(X, files)
    assert kept(logbook, Resource.FILES) == files
    assert [row["size"] for row in logbook.rows("files")] == [2**33, 2**63 - 1, None, -1, 0, 1, None, 7, None]


def nested(levels: int, outer: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    deep: Any = math.nan
    for _ in range(levels):
        deep = outer(deep)
    return deep


@pytest.mark.parametrize("levels", [300, 600, 5000])
def test_a_document_nested_too_deeply_is_refused_and_nothing_of_its_list_stored(logbook: Logbook, levels: int):
    deep = nested(levels)
    keyed = nested(levels, lambda inner: {"a": inner})
    before = logbook.experiment(X)
    states = logbook.states()
    for refused in (
        lambda: logbook.put_entries(X, [entry(1), entry(2, x=deep)], full=True),
        lambda: logbook.put_entries(X, [{"x": deep}], full=True),  # not to be told by the name that it has not
        lambda: logbook.put_runs(X, [run(1), run(2, params={"x": keyed})]),
        lambda: logbook.put_files(X, [FILE | {"x": deep}]),
        lambda: logbook.put_workflows(X, [DEFINITION | {"x": keyed}]),
        lambda: logbook.put_jobs(X, [JOB | {"counters": deep}]),
        lambda: logbook.put_questionnaire(X, {"xray": [{"id": "xray-1", "val": deep}]}),
        lambda: logbook.put_experiment(INFO | {"params": {"x": keyed}}),
        lambda: logbook.put_experiment(compute.summary_of(SUMMARY | {"players": deep})),
        lambda: logbook.put_experiment(Summary("", "", None, document={"x": deep})),
    ):
        with pytest.raises(InputError, match=r"nested too deeply, more than 200 levels(.|\n)*fix:"):
            refused()
    counts = logbook.counts()
    assert (counts.pop("experiments"), counts.pop("sync_state"), counts.pop("metadata"), any(counts.values())) == (
        1,
        1,
        1,
        False,
    )
    assert (logbook.experiment(X), logbook.states()) == (before, states)


def test_what_the_service_can_nest_comes_back(logbook: Logbook):
    documents = [run(1, params={"x": nested(150)}), run(2, params=nested(150, lambda inner: {"a": inner}))]
    logbook.put_runs(X, documents)
    assert list(map(compute.canonical, kept(logbook, Resource.RUNS))) == list(map(compute.canonical, documents))


# -- deleted and edited -------------------------------------------------------------------------------------------

EDIT = "2026-02-03T05:00:00.250000+00:00"


def test_deleted_entries_and_earlier_versions_are_kept_marked_and_hidden(logbook: Logbook):
    edited = entry(1, "Jet at 2 mm", previous_version="old", author="asmith")
    old = entry(1, "Jet at 3 mm") | {
        "_id": "old",
        "parent": edited["_id"],
        "relevance_time": EDIT,
        "deleted_time": EDIT,
        "deleted_by": "asmith",
    }
    reply = entry(2, "Jet is fine", parent=edited["_id"], root=edited["_id"], deleted_by="jdoe", deleted_time=EDIT)
    logbook.put_entries(X, [edited, old, reply], full=True)
    assert kept(logbook, Resource.ENTRIES) == [edited, old, reply]
    history = {row["entry_id"]: row["history_of"] for row in logbook.rows("logbook_entries")}
    assert history == {edited["_id"]: None, "old": edited["_id"], reply["_id"]: None}
    assert [row["content"] for row in logbook.rows("Logbook")] == ["Jet at 2 mm"]
    assert [hit.entry_id for hit in logbook.search("jet")] == [edited["_id"]]
    everything = logbook.search("jet", include_deleted=True)
    assert {(hit.entry_id, hit.hidden) for hit in everything} == {
        (edited["_id"], False),
        ("old", True),
        (reply["_id"], True),
    }


# -- search -------------------------------------------------------------------------------------------------------

TEXTS = {
    1: entry(1, "<p>Jet <b>restarted</b> after the nozzle clogged</p>", title="Jet", tags=["DARK"]),
    2: entry(2, "nozzle jet; r0032 at 9.5 keV in /sdf/data/mfx-r0032.xtc2"),
    3: entry(3, 'Düsentrieb: Größe 5 µm, O\'Brien said "no beam"'),
    4: entry(4, "beam no more, MFX:DIA:MMS:07 moved", author="asmith"),
    5: entry(5, "x < 5 and happiness > 3 &amp; jets"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("jet", [2, 1]),
        ("JET", [2, 1]),
        ("jet*", [5, 2, 1]),
        ("jet nozzle", [2, 1]),
        ('"nozzle jet"', [2]),
        ('"jet nozzle"', []),
        ('"jet restarted"', [1]),
        ("restart*", [1]),
        ("restart", []),
        ('"nozzle clo"*', [1]),
        ("happines*", [5]),
        ("no beam", [4, 3]),
        ('"no beam"', [3]),
        ("the", [1]),
        ("dark", [1]),
        ("r0032", [2]),
        ("xtc2", [2]),
        ("mfx-r0032", [2]),
        ("mfx r0032", [2]),
        ("MFX:DIA:MMS:07", [4]),
        ("9.5", [2]),
        ("größe", [3]),
        ("düsen*", [3]),
        ("o'brien", [3]),
        ("b", []),
        ("amp", [5]),  # it has no markup: & is a sign as any other
        ("nosuchword", []),
        ("", []),
        ('"', []),
        ("*", []),
        ("' OR 1=1 --", []),
        ('jet"', [2, 1]),
        ("NEAR(jet nozzle)", []),
        ("search_text:jet", []),
        ("jet AND (", []),
        ("-jet", [2, 1]),
        ("jet ^ + { } [ ] ( ) ! & | : <-> ~ \\ ' ; % _ $", [2, 1]),
        ("jet\0nozzle", [2, 1]),
        ("jet \ud83d", [2, 1]),
        ("\U000f0000", []),
        ("😀", []),
    ],
)
def test_a_search_finds_words_phrases_and_beginnings_and_stumbles_over_nothing(
    logbook: Logbook, asked: str, found: list[int]
):
    logbook.put_entries(X, list(TEXTS.values()), full=True)
    assert [hit.entry_id for hit in logbook.search(asked)] == [entry(n)["_id"] for n in found]


def test_a_search_can_be_narrowed(empty: Logbook):
    for key in ("a", "b"):
        empty.put_experiment({"_id": key, "name": f"name of {key}"})
        empty.put_entries(key, list(TEXTS.values()), full=True)
    assert [hit.experiment_id for hit in empty.search("clogged")] == ["a", "b"]
    assert [hit.experiment_id for hit in empty.search("clogged", experiment="name of b")] == ["b"]
    since = datetime(2026, 2, 3, 4, 0, 2, tzinfo=UTC)
    assert [hit.entry_id for hit in empty.search("jet", experiment="a", since=since)] == [entry(2)["_id"]]
    assert empty.search("jet", since=since + timedelta(microseconds=1)) == []
    assert len(empty.search("jet", limit=3)) == 3
    with pytest.raises(UsageError, match="more than a hundred words"):
        empty.search("word " * 101)
    assert empty.search("word " * 100) == []


def test_a_hit_shows_text_and_no_markup_or_control_characters(logbook: Logbook):
    content = "<p>" + "before " * 100 + "<i>the\x1b[31m needle</i> &lt;b&gt; " + "after " * 100 + "</p>"
    logbook.put_entries(X, [entry(1, content, title="T", tags=["A", "B"], run_num=32)], full=True)
    (hit,) = logbook.search("needle")
    assert "the [31m needle <b> after" in hit.snippet
    assert hit.snippet.startswith("… before")
    assert hit.snippet.endswith("after …")
    assert len(hit.snippet) <= 164
    assert (hit.title, hit.tags, hit.run_num, hit.author, hit.name) == ("T", ("A", "B"), 32, "jdoe", X)


def test_an_edit_is_found_by_its_new_words_alone(logbook: Logbook):
    logbook.put_entries(X, [entry(1, "first wording")], full=True)
    logbook.put_entries(X, [entry(1, "second wording")], full=True)
    assert [len(logbook.search(word)) for word in ("first", "second", "wording")] == [0, 1, 1]
    logbook.put_entries(X, [], full=True)
    assert [len(logbook.search("wording", include_deleted=flag)) for flag in (False, True)] == [0, 1]
    assert logbook.problems() == []


@pytest.mark.parametrize(
    "content",
    [
        " ".join(f"w{n:x}-{n:o}" for n in range(200_000)),
        " ".join(chr(0x20000 + n % 40_000) for n in range(300_000)),
        "x" * 3_000_000,
        " ".join(f"http://h{n}.example.org/p{n}/q" for n in range(60_000)),
    ],
    ids=["words", "astral", "one word", "addresses"],
)
def test_no_entry_is_too_long_for_the_index(logbook: Logbook, content: str):
    document = entry(1, content, title="the needle")
    logbook.put_entries(X, [document], full=True)
    assert kept(logbook, Resource.ENTRIES) == [document]
    assert len(logbook.search("needle")) == 1


# -- the mirror as a whole ----------------------------------------------------------------------------------------


def test_rows_of_a_table_are_those_of_one_experiment_where_asked(empty: Logbook):
    for key in ("a", "b"):
        empty.put_experiment({"_id": key, "name": key})
        empty.put_runs(key, [run(1), run(2)])
    assert [(row["experiment"], row["run_number"]) for row in empty.rows("runs", experiment="b")] == [
        ("b", 1),
        ("b", 2),
    ]
    assert len(list(empty.rows("runs"))) == len(list(empty.rows("Run"))) == 4
    assert [row["experiment_id"] for row in empty.rows("experiments", experiment="b")] == ["b"]
    assert [row["run_number"] for row in empty.rows("run", experiment="a")] == [1, 2]
    for name, experiment, said in [
        ("nosuch", None, r"no table nosuch(.|\n)*logbook_entries(.|\n)*RunProductionData"),
        ("detectors", "a", "does not belong to experiments"),
        ("RunDetector", "a", "does not say of which experiment"),
    ]:
        with pytest.raises(UsageError, match=said):
            empty.rows(name, experiment=experiment)


def test_an_experiment_is_meant_by_its_id_or_its_name_and_has_to_be_there(empty: Logbook):
    empty.put_experiment({"_id": "Sample_Delivery", "name": "Sample Delivery"})
    empty.put_entries("Sample_Delivery", [entry(1)], full=True)
    for name in ("Sample_Delivery", "Sample Delivery"):
        assert [hit.entry_id for hit in empty.search("jet", experiment=name)] == [entry(1)["_id"]]
        assert [len(list(empty.rows(table, experiment=name))) for table in ("logbook_entries", "Logbook")] == [1, 1]
    for ask in (empty.search, empty.rows):
        with pytest.raises(MissingError, match=r"has no experiment nosuch(.|\n)*fix: nightbeam elog fetch nosuch"):
            ask("logbook_entries", experiment="nosuch")
    with pytest.raises(MissingError):
        empty.search("...", experiment="nosuch")


def test_metadata_is_kept_and_read_under_the_old_name(logbook: Logbook):
    logbook.set_metadata(last_update="2026-02-03T04:05:06", hours_lookback="168")
    logbook.set_metadata(last_update="2026-02-03T05:05:06")
    found = logbook.metadata()
    del found["last_change"]
    assert found == {"hours_lookback": "168", "last_update": "2026-02-03T05:05:06"}
    with logbook.database.read() as connection:
        assert connection.exec_driver_sql("SELECT value FROM Metadata WHERE key = 'hours_lookback'").scalar() == "168"


def test_a_snapshot_is_one_file_with_everything(logbook: Logbook, tmp_path: Path):
    fill(logbook)
    logbook.put_entries(X, [entry(n, text) for n, text in enumerate(HARD.values())], full=True)
    logbook.put_entries(X, [entry(1)], full=True)
    logbook.set_metadata(last_update="now")
    snapshot = tmp_path / "out" / "elog_2026_0203_1200.db"
    snapshot.parent.mkdir()
    snapshot.write_text("what was there before")
    assert logbook.backup(snapshot) == snapshot
    assert [path.name for path in snapshot.parent.iterdir()] == [snapshot.name]
    with closing(sqlite3.connect(f"file:{snapshot}?mode=ro&immutable=1", uri=True)) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy = Logbook(f"sqlite:///{snapshot}", create=False)
    for table in logbook.counts():
        assert list(copy.rows(table)) == list(logbook.rows(table)), table
    assert [h.entry_id for h in copy.search("jet")] == [h.entry_id for h in logbook.search("jet")] != []
    assert copy.problems() == []
    assert copy.put_entries(X, [entry(1)], full=True) == Change(same=1)  # it goes on from there
    assert copy.put_runs(X, [run(33)]).new == 1


def test_snapshots_taken_while_others_write_are_each_of_one_moment(logbook: Logbook, tmp_path: Path):
    logbook.put_runs(X, [run(n) for n in range(1, 20)])
    done = threading.Event()
    errors: list[Exception] = []

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            try:  # all runs always have the same type
                logbook.put_runs(X, [run(n, type=f"T{number}") for n in range(1, 20)])
            except Exception as error:
                errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            logbook.backup(tmp_path / f"{number}.db")
    finally:
        done.set()
        writer.join()
    assert errors == []
    for number in range(5):
        with closing(sqlite3.connect(tmp_path / f"{number}.db")) as raw:
            assert raw.execute("SELECT count(DISTINCT run_type), count(*) FROM runs").fetchone() == (1, 19)


def test_many_may_write_at_once(empty: Logbook):
    names = [f"DAQ Detectors/{n}" for n in range(30)]
    errors: list[Exception] = []

    def write(key: str, order: int) -> None:
        try:
            for turn in range(3):
                empty.put_experiment({"_id": key, "name": key, "turn": turn})
                empty.put_entries(key, [entry(n, f"turn {turn}") for n in range(20)], full=True)
                empty.put_runs(key, [run(turn, params=dict.fromkeys(names[::order], True))], full=False)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(f"x{n}", (-1) ** n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    counts = empty.counts()
    assert (counts["experiments"], counts["logbook_entries"], counts["runs"], counts["detectors"]) == (8, 160, 24, 30)


def test_only_one_synchronises_and_the_next_hears_who_it_is(logbook: Logbook, logbook_url: str):
    me = rf"the sync of .* is held by process {os.getpid()} on {re.escape(socket.gethostname())} since 2"
    with logbook.sole_writer():
        with pytest.raises(BusyError, match=me), Logbook(logbook_url).sole_writer():
            raise AssertionError("held twice")
        assert logbook.put_entries(X, [entry(1)], full=True).new == 1  # it does not stand in its own way
        assert Logbook(logbook_url).search("jet")
    with Logbook(logbook_url).sole_writer():
        pass


def test_the_lock_of_one_who_was_killed_is_free(logbook: Logbook, logbook_url: str):
    code = f"""
import sys
from nightbeam.catalog import Logbook
with Logbook({logbook_url!r}).sole_writer():
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match=f"held by process {holder.pid} on"), logbook.sole_writer(wait_s=0.1):
            pass
        holder.kill()
        holder.wait()
        with logbook.sole_writer(wait_s=20.0):
            pass


@pytest.mark.system
def test_a_sync_whose_lock_is_lost_writes_nothing_more(postgresql_url: str):
    import psycopg

    holder, book = Logbook(postgresql_url), Logbook(postgresql_url)
    key = "SELECT {} FROM pg_locks WHERE locktype = 'advisory' AND objid = 1851916290"
    with (
        psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True) as rival,
        holder.sole_writer(),
    ):
        book.put_experiment(INFO, now=NOON)
        book.put_entries(X, [entry(1)], full=True)
        assert rival.execute(key.format("pg_terminate_backend(pid, 5000)")).fetchall() == [(True,)]
        assert rival.execute("SELECT pg_try_advisory_lock(1851916290)").fetchone() == (True,)
        said = r"the sync of .* lost its lock(.|\n)*fix: run it again"
        for refused in (
            lambda: book.put_entries(X, [entry(2)], full=True),
            lambda: book.put_experiment({"_id": "b", "name": "b"}),
            lambda: book.mark(X, "gone"),
            lambda: book.failed(X, Resource.RUNS, "no answer"),
            lambda: book.set_metadata(last_update="now"),
        ):
            with pytest.raises(BusyError, match=said):
                refused()
        assert kept(book, Resource.ENTRIES) == [entry(1)]
        assert (len(book.experiments()), book.experiment(X).status, len(book.state(X))) == (1, "ok", 2)
    with holder.sole_writer():  # the rival's is gone with its connection
        assert book.put_entries(X, [entry(2)], full=True) == Change(new=1, missing=1)
    assert book.put_entries(X, [entry(1), entry(2)], full=True) == Change(same=1, back=1)


def test_a_sync_asks_for_its_lock_on_a_server_alone(logbook: Logbook):
    def asked() -> list[str]:
        with statements(logbook) as seen:
            logbook.put_entries(X, [entry(1)], full=True)
        return [line for line in seen if "pg_locks" in line]

    assert asked() == []
    with logbook.sole_writer():
        assert len(asked()) == (logbook.database.file is None)


@pytest.mark.system
def test_a_server_does_not_end_the_lock_of_a_long_sync(postgresql_url: str):
    import psycopg

    with psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True) as server:
        server.execute("ALTER ROLE CURRENT_USER SET idle_session_timeout = '200ms'")
        try:
            book = Logbook(postgresql_url)
            with book.sole_writer():
                time.sleep(1.0)
                assert book.put_experiment(INFO).new == 1
        finally:
            with psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True) as again:
                again.execute("ALTER ROLE CURRENT_USER RESET idle_session_timeout")


def test_two_who_write_the_same_experiment_do_not_disturb_each_other(logbook: Logbook):
    changes: list[Change] = []
    errors: list[Exception] = []

    def write() -> None:
        try:
            changes.append(logbook.put_entries(X, [entry(n) for n in range(50)], full=True))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(changes, Change()) == Change(new=50, same=250)
