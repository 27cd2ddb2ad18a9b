"""The mirror of the logbook against a truth that is known: changes, faults, kills, rivals, tickets, full disks."""

from __future__ import annotations

import json
import os
import random
import runpy
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import Access, Logbook
from nightbeam.catalog.elog_snapshot import snapshot_counts
from nightbeam.cli import main
from nightbeam.core.errors import AuthError, InputError, UnavailableError
from nightbeam.core.locks import is_held
from nightbeam.elog.model import Resource
from nightbeam.elog.remote import LogbookClient, NoAuth
from nightbeam.elogsync.files import snapshots
from nightbeam.elogsync.model import Policy, SyncReport
from nightbeam.elogsync.worker import look_around, sync
from nightbeam.testing.elog_service import FakeLogbook
from nightbeam.testing.kerberos import Acceptor, Realm, missing_programs

pytestmark = pytest.mark.system

_helpers = runpy.run_path(str(Path(__file__).resolve().parents[1] / "elog_mirror.py"))
differences, ledger, mirrored, true = (_helpers[name] for name in ("differences", "ledger", "mirrored", "true"))


class CountingLogbook(FakeLogbook):
    """A logbook that says how often a fault has hit."""

    hits = 0

    def _is_hit(self, plan: Any, place: str) -> bool:
        hit = super()._is_hit(plan, place)
        self.hits += hit
        return hit


@pytest.fixture(autouse=True)
def _plain(_clean_environ: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith(("FETCH_ELOG_", "XDG_CONFIG", "KRB5"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def fake() -> Iterator[CountingLogbook]:
    with CountingLogbook(everyone="jdoe") as service:
        yield service


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


def asker(fake: FakeLogbook, attempts: int = 4, read_s: float = 10.0) -> LogbookClient:
    return LogbookClient(fake.url, auth=NoAuth(), attempts=attempts, backoff_s=0.01, read_s=read_s)


def go(client: LogbookClient, book: Logbook, **policy: Any) -> SyncReport:
    usual: dict[str, Any] = {"everything": True, "jobs": True, "slow_hours": 0.0}
    return sync(client, book, look_around(client, book, Policy(**usual | policy)), jobs=4)


def nothing_lost(before: dict[Any, Any], book: Logbook) -> dict[Any, Any]:
    """Compare the rows that there are with those that there were, and return them."""
    after = ledger(book)
    assert before.items() <= after.items()
    return after


# -- 1. The truth, row by row ------------------------------------------------------------------------------------


def threads(fake: FakeLogbook, x: list[str]) -> None:
    first = fake.post(x[0], "<p>Ice?</p>", title="Ice", tags=["jet", "Σ"], run_num=2)
    answer = fake.reply(x[0], first["_id"], "Yes")
    fake.reply(x[0], answer["_id"], "No more")
    fake.reply(x[0], next(iter(fake.truth(x[0]).entries)), "to an old one")


def edits(fake: FakeLogbook, x: list[str]) -> None:
    oldest = next(iter(fake.truth(x[1]).entries))
    for n in range(3):
        fake.edit(x[1], oldest, f"version {n}", editor="zoë", title="Étape", tags=[f"v{n}"], run_num=n + 1)


def deletions(fake: FakeLogbook, x: list[str]) -> None:
    for entry in list(fake.truth(x[1]).entries)[::3]:
        fake.delete_entry(x[1], entry, by="cleaner")


def runs(fake: FakeLogbook, x: list[str]) -> None:
    fake.end_run(x[0])
    fake.start_run(x[0], params={"DAQ Detectors/New|Epix-0": True, "DAQ Detector Totals/Events": 7}, sample="ice")
    fake.start_run(x[1], 99)
    fake.set_params(x[0], 1, {"late": float("nan"), "nul\0": "\0", "beam on": None, "big": 2**70})
    fake.set_editable(x[0], 1, "comment", "bad")


def new_files(fake: FakeLogbook, x: list[str]) -> None:
    fake.register_file(x[0], "/new/é.h5", 1, 2**40)
    fake.register_file(x[0], "/new/no-size.h5", 2, None, old_times=True)


def files_again(fake: FakeLogbook, x: list[str]) -> None:
    for run, path in list(fake.truth(x[1]).files)[:3]:
        fake.register_file(x[1], path, run, 5)


def located_files(fake: FakeLogbook, x: list[str]) -> None:
    for run, path in fake.truth(x[0]).files:
        fake.locate_file(x[0], path, run, "TAPE")


def workflows(fake: FakeLogbook, x: list[str]) -> None:
    made = fake.define_workflow(x[0], "#new", trigger="END_OF_RUN", changes={"run_param_val": "x"})
    fake.alter_workflow(x[0], next(iter(fake.truth(x[0]).workflow_definitions)), parameters="--other", location=None)
    job = fake.submit_job(x[0], made["_id"], 1)
    fake.alter_job(x[0], job["_id"], status="OUT_OF_ME\0MORY", counters=[{"key": "<b>n</b>", "value": "1"}])


def dropped_workflow(fake: FakeLogbook, x: list[str]) -> None:
    fake.drop_workflow(x[0], next(iter(fake.truth(x[0]).workflow_definitions)), even_with_jobs=True)


def answers(fake: FakeLogbook, x: list[str]) -> None:
    fake.set_field(x[0], "xray-energy-1", "9.5 keV", modified_time="whenever")
    fake.set_field(x[0], next(iter(fake.truth(x[0]).questionnaire)), "", by="zoë")


def another_proposal(fake: FakeLogbook, x: list[str]) -> None:
    fake.change_info(x[1], params={"PNR": "L-77777", "run_period": "26"}, contact_info="Zoë (z@example.org)")
    fake.set_field(x[1], "sample-name-1", "lysozyme")


def early_cross_posts(fake: FakeLogbook, x: list[str]) -> None:
    fake.post(x[0], "to all", to=[x[1], "Sample_Delivery_System"])


def late_cross_posts(fake: FakeLogbook, x: list[str]) -> None:
    for entry in list(fake.truth(x[0]).entries)[:3]:
        fake.cross_post(x[0], entry, "Sample_Delivery_System")


def standing_entries(fake: FakeLogbook, x: list[str]) -> None:
    fake.post("Sample Delivery System", "<p>pump</p>")


def new_experiment(fake: FakeLogbook, x: list[str]) -> None:
    fake.populate(1, 4, 2, 3, parameters=14, fields=3, odd=0.5, seed=77)


#: What is changed, and whether a full reading is needed to see it.
CHANGES: tuple[tuple[Callable[[FakeLogbook, list[str]], None], bool], ...] = (
    (threads, False), (edits, False), (deletions, True), (runs, False), (new_files, False), (files_again, False),
    (located_files, True), (workflows, False), (dropped_workflow, False), (answers, False), (another_proposal, False),
    (early_cross_posts, False), (late_cross_posts, True), (standing_entries, False), (new_experiment, False),
)  # fmt: skip


def test_after_every_change_the_mirror_is_the_truth_and_nothing_stored_disappears(
    fake: CountingLogbook, logbook_url: str
):
    experiments = fake.populate(3, 12, 4, 8, parameters=16, fields=6, jobs=4, standing=1, odd=0.2, seed=11)
    book = Logbook(logbook_url)
    with asker(fake) as client:
        report = go(client, book)
        assert (report.failed, differences(book, fake)) == ((), [])
        rows = ledger(book)
        assert len(rows) > 100
        for change, full in CHANGES:
            change(fake, experiments)
            assert differences(book, fake) != [], change.__name__
            report = go(client, book, full=full, names=("Sample Delivery System",))
            assert (change.__name__, report.failed, differences(book, fake)) == (change.__name__, (), [])
            assert report.change.written > 0, change.__name__
            before, rows = rows, nothing_lost(rows, book)
            assert len(rows) > len(before) or change in (
                deletions, files_again, located_files, dropped_workflow,
            ), change.__name__  # fmt: skip
        for full in (False, True):
            calm = go(client, book, full=full, names=("Sample Delivery System",))
            assert (calm.failed, calm.change.written, ledger(book)) == ((), 0, rows)
    assert book.problems() == []
    assert fake.traffic.writes == ()


def test_renamed_lost_and_removed_experiments_stay_as_they_were(fake: CountingLogbook, logbook_url: str):
    a, b, c, d = fake.populate(4, 8, 3, 4, parameters=14, fields=4, seed=12)
    book = Logbook(logbook_url)
    status = lambda: {row.experiment_id: row.status for row in book.experiments()}  # noqa: E731
    with asker(fake) as client:
        go(client, book)
        rows, known = ledger(book), {key: mirrored(book, key) for key in (a, b, c, d)}

        fake.rename(a, "mfx999999925", errors=3)
        fake.deny(b)
        fake.delete_experiment(c)
        fake.post("mfx999999925", "after the renaming")
        first = go(client, book)
        assert first.failed == () or [(o.experiment_id, *o.errors) for o in first.failed] == [(a, Resource.INFO)]
        second = go(client, book)
        assert second.failed == ()
        assert status() == {
            a: Access.GONE, b: Access.NO_ACCESS, c: Access.GONE, d: Access.OK, "mfx999999925": Access.OK,
        }  # fmt: skip
        assert differences(book, fake, ["mfx999999925", d]) == []
        for key in (b, c):
            assert mirrored(book, key) == known[key]
        assert {k: v for k, v in mirrored(book, a).items() if k != "info"} == {
            k: v for k, v in known[a].items() if k != "info"
        }
        rows = nothing_lost(rows, book)

        fake.forget()
        go(client, book)
        assert not {a, b, c} & set(fake.traffic.by_experiment), "what is lost is asked for again and again"

        fake.allow(b)
        fake.post(b, "back")
        fake.rename("mfx999999925", a)
        report = go(client, book)
        assert report.failed == ()
        assert (status()[a], status()[b], status()["mfx999999925"]) == (Access.OK, Access.OK, Access.GONE)
        assert differences(book, fake) == []
        nothing_lost(rows, book)


def test_a_right_that_is_lost_in_the_middle_of_a_sync_takes_nothing_away(fake: CountingLogbook, logbook_url: str):
    experiments = fake.populate(3, 6, 3, 4, parameters=14, fields=3, seed=13)
    book = Logbook(logbook_url)
    with asker(fake) as client:
        go(client, book)
        rows = ledger(book)
        fake.stir(10, seed=1)
        fake.fail(None, "403", route=f"^{experiments[0]}/runs")
        fake.fail(None, "404", route=f"^{experiments[1]}/files")
        report = go(client, book, full=True)
        assert report.failed == ()
        assert sum("what is stored stays" in note for o in report.outcomes for note in o.notes) == 2
        rows = nothing_lost(rows, book)
        fake.recover()
        assert go(client, book, full=True).failed == ()
        assert {row.status for row in book.experiments()} == {Access.OK}
        assert differences(book, fake) == []
        nothing_lost(rows, book)


# -- 2. Faults ----------------------------------------------------------------------------------------------------

#: By name: how many requests are hit, and how.
FAULTS: dict[str, dict[str, Any]] = {
    "503": {"chance": 0.1},
    "reset": {"chance": 0.1},
    "short-body": {"chance": 0.1},
    "truncated": {"chance": 0.1},
    "html": {"chance": 0.1},
    "slow": {"chance": 0.1, "seconds": 1.0},
    "401": {"chance": 0.1},
    "duplicates": {"chance": 0.1},
    "500": {"chance": 0.1},
    "refused": {"chance": 0.05},
}
SOME = ("503", "short-body", "401", "duplicates")


#: What differs where a server keeps the mirror is seen with some of them.
ON_BOTH = [(kind, url) for kind in FAULTS for url in ("sqlite", "postgresql") if url == "sqlite" or kind in SOME]


@pytest.mark.parametrize(("kind", "logbook_url"), ON_BOTH, indirect=["logbook_url"])
def test_a_fault_takes_no_row_away_and_is_told_of_and_the_next_sync_repairs(
    fake: CountingLogbook, logbook_url: str, kind: str
):
    experiments = fake.populate(4, 6, 3, 4, parameters=14, fields=4, jobs=2, odd=0.05, seed=21)
    book, read_s = Logbook(logbook_url), 0.4 if kind == "slow" else 10.0
    told: Counter[str] = Counter()
    # Who asks once only has a failure for every fault; who asks again has hardly any.
    with asker(fake, 1, read_s) as impatient, asker(fake, 4, read_s) as patient:
        assert go(patient, book).failed == ()
        rows, before = ledger(book), {key: mirrored(book, key) for key in experiments}
        for n, client in enumerate((impatient, patient, impatient, patient)):
            fake.stir(15, seed=n)
            fake.fail(None, kind, **FAULTS[kind])  # type: ignore[arg-type]
            try:
                report = go(client, book, full=True)
            except (UnavailableError, InputError, AuthError):
                told["refused"] += 1  # the list of experiments itself
            else:
                told += truthful(report, book, fake, before)
            fake.recover()
            rows, before = nothing_lost(rows, book), {key: mirrored(book, key) for key in experiments}
        told["retries"] = patient.traffic.retries + impatient.traffic.retries
        assert go(patient, book, full=True).failed == ()
    assert differences(book, fake) == []
    assert book.states(status="failed") == []
    nothing_lost(rows, book)
    assert fake.hits >= 2
    failures = told["failed"] + told["refused"] + told["stopped"]
    assert kind == "401" or (failures == 0) == (kind == "duplicates")  # nearly every 401 is healed by asking once more
    assert (told["retries"] > 0) == (kind not in ("duplicates", "html", "refused"))
    assert told["read"] > 20 or kind == "html"  # which ends a sync at once


def truthful(
    report: SyncReport, book: Logbook, fake: FakeLogbook, before: dict[str, dict[str, dict[str, str]]]
) -> Counter[str]:
    """Compare what a sync says of each list with what the mirror has of it."""
    told: Counter[str] = Counter(stopped=report.stopped is not None)
    for outcome in report.outcomes:
        ours, theirs = mirrored(book, outcome.experiment_id), true(fake, outcome.experiment_id)
        states = book.state(outcome.experiment_id)
        for resource in set(Resource) - {Resource.INFO}:
            name, state = resource.value, states.get(resource)
            wrong = outcome.errors.get(resource)
            if wrong is None and resource is Resource.QUESTIONNAIRE and state is not None and state.status == "failed":
                wrong = state.error  # worth a note, no failure of the experiment
                assert any(str(wrong) in note for note in outcome.notes)
            if wrong is not None:
                assert ours[name] == before[outcome.experiment_id][name]
                assert report.stopped is not None or (state is not None and state.error == wrong)
                told["failed"] += 1
            elif report.stopped is None:
                assert ours[name] == theirs[name], f"{outcome.experiment_id} {name} is said to be read"
                assert state is None or (state.status, state.error) == ("ok", None)
                told["read"] += 1
            else:
                assert ours[name] in (before[outcome.experiment_id][name], theirs[name])
    if report.stopped is not None:
        assert isinstance(report.stopped, AuthError)
        assert report.failed
    return told


@pytest.mark.parametrize("how", ["window", "full"])
def test_odd_and_huge_entries_come_as_they_are(fake: CountingLogbook, logbook_url: str, how: str):
    (experiment,) = fake.populate(1, 3, 2, 2, parameters=14, fields=2, odd=1.0, huge=1, seed=22)
    book = Logbook(logbook_url)
    with asker(fake) as client:
        go(client, book)
        for content in ("\0", "a\0b" * 1000, "é" * (5 << 20), "\ud83d \U000f00000000", "<p>" * 1_700_000):
            fake.post(experiment, content, title=content[:50], tags=[content[:9]])
        fake.set_params(experiment, 1, {"x": float("nan"), "y": float("-inf"), "$number": "NaN", "z\0": {"q": [None]}})
        assert go(client, book, full=how == "full").failed == ()
        assert differences(book, fake) == []
        assert go(client, book, full=True).change.written == 0
    assert book.problems() == []


@pytest.fixture
def elog(fake: CountingLogbook, place: Path, logbook_url: str, capsys: pytest.CaptureFixture[str]):
    """Run a command on the logbook and the mirror; returns exit code, lines of JSON, standard error."""

    def run(command: str, *arguments: Any) -> tuple[int, list[dict[str, Any]], str]:
        argv = ["elog", command, *map(str, arguments), "--database", logbook_url, "--database-dir", str(place)]
        if command in ("update", "fetch", "retry"):
            argv += ["--base-url", fake.url, *([] if "--auth" in argv else ["--auth", "none"])]
        with pytest.raises(SystemExit) as ended:
            main([*argv, "--json"])
        said = capsys.readouterr()
        return int(ended.value.code or 0), [json.loads(line) for line in said.out.splitlines()], said.err

    return run


def test_what_heals_by_asking_again_is_exit_code_0(fake: CountingLogbook, logbook_url: str, elog: Any):
    fake.populate(4, 5, 3, 3, parameters=14, fields=3, seed=23)
    for kind in ("503", "reset", "short-body", "truncated"):
        fake.fail(None, kind, chance=0.03)  # type: ignore[arg-type]
    code, lines, err = elog("update", "--everything")
    assert (code, lines[-1]["failed"], lines[-1]["failures"]) == (0, 0, None), err
    assert lines[-1]["retries"] == fake.hits >= 2
    assert differences(Logbook(logbook_url), fake, without={"jobs"}) == []
    assert elog("status")[1][0]["failing"] == []


def test_what_does_not_is_exit_code_2_named_in_four_places_and_mended_by_retry(
    fake: CountingLogbook, logbook_url: str, place: Path, elog: Any
):
    experiments = fake.populate(4, 5, 3, 3, parameters=14, fields=3, seed=24)
    assert elog("update", "--everything")[0] == 0
    book = Logbook(logbook_url)
    rows, before = ledger(book), {key: mirrored(book, key) for key in experiments}
    fake.stir(20, seed=1)
    fake.fail(None, "500", route=f"^({experiments[0]}|{experiments[2]})/runs$")
    code, lines, err = elog("update", "--full")
    assert code == 2
    failed = {line["experiment"]: line["errors"] for line in lines[:-1] if line["errors"]}
    assert {key: set(errors) for key, errors in failed.items()} == {experiments[0]: {"runs"}, experiments[2]: {"runs"}}
    assert all("HTTP status 500: as told" in errors["runs"] for errors in failed.values())
    assert lines[-1]["failed"] == 2
    assert "2 of 4 experiments" in err
    assert all(key in err for key in failed)
    listed = json.loads((place / "failed_experiments.json").read_text())
    assert {one["experiment_id"]: one["error"] for one in listed} == {
        key: f"runs: {errors['runs']}" for key, errors in failed.items()
    }
    assert [line.partition(":")[0] for line in elog("status")[1][0]["failing"]] == [
        f"{experiments[0]} runs", f"{experiments[2]} runs",
    ]  # fmt: skip
    for key in failed:
        assert mirrored(book, key)["runs"] == before[key]["runs"]
    rows = nothing_lost(rows, book)
    assert {line.split()[1] for line in differences(book, fake, without={"jobs"})} <= {"runs"}

    fake.recover()
    fake.forget()
    assert elog("fetch", experiments[1])[0] == 0
    code, lines, _ = elog("retry")
    assert (code, {line["experiment"] for line in lines[:-1]}) == (0, {experiments[0], experiments[2]})
    assert differences(book, fake, without={"jobs"}) == []
    assert not (place / "failed_experiments.json").exists()
    assert elog("status")[1][0]["failing"] == []
    nothing_lost(rows, book)


def test_a_token_that_is_revoked_in_the_middle_is_exit_code_77_and_keeps_what_came(
    logbook_url: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    class Revoking(CountingLogbook):
        left = -1

        def _identify(self, prefix: str, shown: str | None) -> Any:
            if prefix == "ws-jwt":
                self.left -= 1
                if self.left == 0:
                    self.revoke_token("a.b.c")
            return super()._identify(prefix, shown)

    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("a.b.c")
    with Revoking(token="a.b.c") as fake:
        fake.populate(5, 5, 3, 3, parameters=14, fields=3, seed=25)

        def update(*more: str) -> tuple[int, list[dict[str, Any]], str]:
            argv = ["elog", "update", "--base-url", fake.url, "--auth", "bearer", "--token-file", str(token), *more]
            with pytest.raises(SystemExit) as ended:
                main([*argv, "--database", logbook_url, "--database-dir", str(place), "--json", "--jobs", "1"])
            said = capsys.readouterr()
            return int(ended.value.code or 0), [json.loads(line) for line in said.out.splitlines()], said.err

        fake.left = 14
        code, lines, err = update("--everything")
        assert code == 77
        assert "HTTP status 401" in err
        assert "fix: log in" in err
        book = Logbook(logbook_url)
        *each, whole = lines
        assert (whole["experiments"], len(each)) == (5, 5)
        assert 3 <= whole["failed"] <= 4
        assert whole["failed"] == len([line for line in each if line["errors"] or "not attempted" in line["notes"]])
        listed = json.loads((place / "failed_experiments.json").read_text())
        assert len(listed) == whole["failed"]
        # What came before that moment is stored, counted and published.
        counts = book.counts()
        content = ("experiments", "logbook_entries", "runs", "files", "workflow_definitions", "questionnaire_fields")
        assert whole["new"] == sum(counts[table] for table in content) > 10
        assert book.metadata().get("last_update") is None
        rows = ledger(book)
        fake.allow_token("a.b.c")
        assert update("--everything")[0] == 0
        assert differences(book, fake, without={"jobs"}) == []
        nothing_lost(rows, book)
        assert not (place / "failed_experiments.json").exists()


@pytest.mark.parametrize("wrong", ["name", "id", "nothing"])
def test_an_experiment_whose_document_makes_no_sense_does_not_stop_the_others(
    fake: CountingLogbook, logbook_url: str, elog: Any, wrong: str
):
    experiments = fake.populate(3, 4, 2, 2, parameters=14, fields=2, seed=26)
    with asker(fake) as client:
        names = fake.experiments
        book = Logbook(logbook_url)
        held = fake._held[experiments[0]]
        good = held.info
        held.info = good | {"name": {"name": None}, "id": {"_id": "other"}, "nothing": {"_id": None}}[wrong]
        held.version = -1
        code, lines, err = elog("fetch", *names)
        assert code == 2, err
        assert [line["experiment"] for line in lines[:-1] if line["errors"]] == [experiments[0]]
        assert [row.experiment_id for row in book.experiments()] == sorted(experiments[1:])
        assert differences(book, fake, experiments[1:], without={"jobs"}) == []
        held.info, held.version = good, -2
        assert elog("retry")[0] == 0
        assert go(client, book).failed == ()
    assert differences(book, fake) == []


# -- 3. kill -9 ---------------------------------------------------------------------------------------------------

#: Reads lines of JSON: what to run, and when to kill it: in which phase, how often that has begun, and how long ago.
#: Says how it ended, and in which phases it was then. Phases are counted in memory that survives.
KILLED = """
import ctypes, json, mmap, os, signal, sys, threading, time
from contextlib import contextmanager
from nightbeam.catalog.remote import Database
from nightbeam.cli import main
from nightbeam.elog.remote import LogbookClient
from nightbeam.elogsync import files, worker

PHASES = ("starting", "looking around", "fetching", "writing", "publishing")
memory = mmap.mmap(-1, 4096)
begun, running = [(ctypes.c_int * 8).from_buffer(memory, at) for at in (0, 1024)]
lock = threading.Lock()

@contextmanager
def during(phase):
    n = PHASES.index(phase)
    with lock:
        begun[n] += 1
        running[n] += 1
    try:
        yield
    finally:
        with lock:
            running[n] -= 1

def counted(owner, name, phase, manager=False):
    function = getattr(owner, name)
    def call(*args, **options):
        with during(phase):
            return function(*args, **options)
    @contextmanager
    def enter(*args, **options):
        with during(phase), function(*args, **options) as found:
            yield found
    setattr(owner, name, enter if manager else call)

counted(Database, "_open", "starting")
counted(worker, "look_around", "looking around")
counted(LogbookClient, "_try", "fetching")
counted(Database, "write", "writing", manager=True)
counted(files, "publish", "publishing")

def run(argv):
    try:
        main(argv)
    except SystemExit as ended:
        return ended.code or 0

def child(argv):
    sys.stdout = open(os.devnull, "w")
    os._exit(run(argv))

def kill(pid, order):
    n, ended = PHASES.index(order["phase"]), 0
    while begun[n] < order["times"] and not ended:
        time.sleep(0.0002)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        time.sleep(order["later"])
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return status

said, sys.stdout = sys.stdout, sys.stderr
run(json.loads(sys.argv[1]))  # everything is imported now
assert threading.active_count() == 1
for line in sys.stdin:
    order = json.loads(line)
    memory.seek(0)
    memory.write(bytes(2048))
    pid = os.fork()
    if pid == 0:
        child(order["argv"])
    status = kill(pid, order) if "phase" in order else os.waitpid(pid, 0)[1]
    ended = "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    found = {"ended": ended, "pid": pid, "during": [p for p, n in zip(PHASES, running) if n], "begun": list(begun)}
    print(json.dumps(found), file=said, flush=True)
"""

KILLS, KILLS_ON_A_SERVER = 52, 20
#: How often a phase begins in a small update, at most; and how long one takes, roughly.
MOMENTS = {
    "starting": (2, 0.01),
    "looking around": (1, 0.02),
    "fetching": (15, 0.005),
    "writing": (22, 0.005),
    "publishing": (1, 0.06),
}


class Victim:
    """A process that runs commands, and kills them when it is told to."""

    def __init__(self, *warm: Any) -> None:
        argv = [sys.executable, "-c", KILLED, json.dumps([str(one) for one in warm])]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, argv: list[Any], **moment: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"argv": [str(one) for one in argv], **moment}) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        self.process.communicate(timeout=10)


@pytest.fixture
def victim(fake: CountingLogbook, tmp_path: Path) -> Iterator[Victim]:
    service = ("--base-url", fake.url, "--auth", "none")
    found = Victim("elog", "update", "--everything", *service, "--database-dir", tmp_path / "warm")
    yield found
    found.close()


def is_free(url: str) -> bool:
    file = Logbook(url).database.file
    if file is not None:
        return not is_held(file.with_name(f".{file.name}.sync.lock"))
    until = time.monotonic() + 5  # the server sees that its client is gone a moment later
    while time.monotonic() < until:
        with Logbook(url).database.read() as connection:
            if connection.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").scalar() == 0:
                return True
        time.sleep(0.01)
    return False


def look_through_snapshots(place: Path) -> None:
    """Look through every snapshot, as a reader that has no other file than that."""
    for path in snapshots(place):
        assert snapshot_counts(path)["experiments"] > 0
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def content(book: Logbook) -> list[Any]:
    """Every row of a mirror or of a snapshot of it."""
    tables = [table for table in book.counts() if table not in ("sync_state", "metadata")]
    return [(table, list(book.rows(table))) for table in tables]


def test_an_update_killed_at_fifty_random_moments_harms_nothing(
    fake: CountingLogbook, logbook_url: str, place: Path, victim: Victim
):
    fake.populate(3, 6, 3, 4, parameters=14, fields=4, definitions=1, jobs=1, odd=0.1, seed=31)
    fake.latency_s = 0.003
    service = ["--base-url", fake.url, "--auth", "none", "--jobs", "3"]
    where = ["--database", logbook_url, "--database-dir", place]
    update = ["elog", "update", "--everything", *service]
    dice, died, ends, leftovers = random.Random(3), Counter[str](), Counter[Any](), 0
    rows: dict[Any, Any] = {}
    file = Logbook(logbook_url).database.file
    kills = KILLS if file else KILLS_ON_A_SERVER
    for n in range(10 * kills):
        if ends["killed"] == kills:
            break
        phase = (*MOMENTS, "writing")[n % (len(MOMENTS) + 1)]
        times, later = MOMENTS[phase]
        moment = {"phase": phase, "times": dice.randint(1, times), "later": dice.uniform(0, later)}
        new = place.parent / f"new{n}"  # a mirror that is just being made
        made_now = file is not None and phase == "starting"
        there = ["--database-dir", new] if made_now else where
        found = victim([*update, *there, *(["--full"] if dice.random() < 0.5 else [])], **moment)
        ends[found["ended"]] += 1
        if found["ended"] == "killed":
            died.update(found["during"] or ["between"])
        if made_now:
            assert victim([*update, *there])["ended"] == 0
            assert differences(Logbook(f"sqlite:///{new}/elog.db"), fake, without={"jobs"}) == []
            shutil.rmtree(new)
        book = Logbook(logbook_url)
        assert is_free(logbook_url)
        rows = nothing_lost(rows, book)
        look_through_snapshots(place)
        leftovers += any(".part" in path.name for path in place.glob(".*"))
        if n % 14 == 13:  # nothing is left to be done but to publish
            victim([*update, *where, "--full"], phase="publishing", times=1, later=0)
        if n % 7 == 6 or "writing" in found["during"]:
            assert victim([*update, *where, "--full"])["ended"] == 0
            assert differences(book, fake, without={"jobs"}) == []
        if n % 7 == 6:
            assert content(Logbook(f"sqlite:///{snapshots(place)[-1]}")) == content(book)
            assert victim(["elog", "verify", *where])["ended"] == 0
            names = {path.name for path in place.iterdir()} - {path.name for path in snapshots(place)}
            names |= {path.name for path in file.parent.iterdir() if path.is_file()} if file else set()
            assert names <= {"elog.db", ".elog.db.lock", ".elog.db.sync.lock"}
        fake.stir(12, seed=n)
    assert set(ends) <= {"killed", 0}
    assert ends["killed"] == kills, "too many updates ended before their signal"
    assert all(died[phase] >= kills // 20 for phase in MOMENTS), died
    assert leftovers >= 1 or not file, "no kill fell into the writing of a file"


# -- 4. Two at once ----------------------------------------------------------------------------------------------


def start(fake: FakeLogbook, *arguments: Any, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "nightbeam", "elog", "update", "--everything", "--base-url", fake.url]
    return subprocess.Popen(
        [*argv, *map(str, arguments)],
        env={**os.environ, **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("known", [True, False])
def test_the_second_of_two_updates_hears_who_is_at_it_and_the_first_goes_on(
    fake: CountingLogbook, logbook_url: str, place: Path, elog: Any, until: Callable[..., Any], known: bool
):
    fake.populate(2, 4, 2, 2, parameters=14, fields=2, seed=41)
    if known:
        assert elog("update", "--everything")[0] == 0
        fake.post(fake.experiments[0], "since then")
    held = threading.Event()
    answer, fake._answer = fake._answer, lambda *asked: (held.wait(15), answer(*asked))[1]  # type: ignore[method-assign]
    where = ("--database", logbook_url, "--database-dir", place)
    first = start(fake, "--auth", "none", *where)
    try:
        until(lambda: fake._in_flight, 60, every_s=0.02)
        fake.forget()
        code, _, err = elog("update", "--everything")
        assert code == 75
        assert f"is held by process {first.pid} on {socket.gethostname()}" in err
        assert fake.traffic.most_in_flight == 1, "the second has asked something"
        assert elog("fetch", fake.experiments[0])[0] == 75
    finally:
        held.set()
        said = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert differences(Logbook(logbook_url), fake, without={"jobs"}) == []


def test_a_look_around_that_ends_does_not_remove_the_mirror_that_an_update_begins_to_fill(
    fake: CountingLogbook, tmp_path: Path, place: Path, until: Callable[..., Any]
):
    fake.populate(2, 4, 2, 2, parameters=14, fields=2, seed=43)
    gates, asking, answer = (threading.Event(), threading.Event()), dict[int, int](), fake._answer

    def wait(*asked: Any) -> Any:
        # Each connection has a thread; whose is the first to ask is the look-around.
        gates[min(asking.setdefault(threading.get_ident(), len(asking)), 1)].wait(30)
        return answer(*asked)

    fake._answer = wait  # type: ignore[method-assign]
    file = tmp_path / "elog.db"
    where = ("--auth", "none", "--database", file, "--database-dir", place)
    look = start(fake, "--dry-run", *where)
    until(lambda: fake._in_flight == 1, 30, every_s=0.02)
    update = start(fake, *where)
    until(lambda: fake._in_flight == 2, 30, every_s=0.02)
    gates[0].set()
    assert (look.communicate(timeout=60)[0] != "", look.returncode) == (True, 0)
    assert is_held(tmp_path / ".elog.db.sync.lock")
    gates[1].set()
    said = update.communicate(timeout=60)
    assert update.returncode == 0, said
    assert differences(Logbook(f"sqlite:///{file}"), fake, without={"jobs"}) == []


def test_of_many_updates_that_begin_at_once_those_that_fail_say_why_and_the_mirror_is_whole(
    fake: CountingLogbook, logbook_url: str, place: Path, elog: Any
):
    fake.populate(3, 5, 3, 3, parameters=14, fields=3, seed=42)
    fake.latency_s = 0.02
    where = ("--auth", "none", "--database", logbook_url, "--database-dir", place)
    started = [start(fake, *where) for _ in range(4)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert {code for _, code in ended} <= {0, 75}, ended
    assert 0 in {code for _, code in ended}
    assert all("is held by process" in err for err, code in ended if code == 75)
    book = Logbook(logbook_url)
    assert differences(book, fake, without={"jobs"}) == []
    assert content(Logbook(f"sqlite:///{snapshots(place)[-1]}")) == content(book)
    assert elog("verify")[0] == 0


# -- 5. Tickets --------------------------------------------------------------------------------------------------

needs_kerberos = pytest.mark.skipif(
    bool(missing_programs()), reason=f"no {', '.join(missing_programs())}: apt-get install krb5-kdc"
)


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    pytest.importorskip("gssapi", reason="the Kerberos libraries are not installed", exc_type=ImportError)
    with Realm(tmp_path_factory.mktemp("realm")) as found:
        found.add_principal("HTTP/localhost")
        found.add_principal("svc-elog")
        yield found


@pytest.fixture
def guarded(realm: Realm) -> Iterator[FakeLogbook]:
    """A logbook that lets nobody in without a ticket, and takes no token twice."""
    with FakeLogbook(gate=Acceptor(realm.directory / "HTTP_localhost.keytab"), host="localhost") as service:
        service.populate(12, 5, 3, 3, parameters=14, fields=3, seed=51)
        yield service


@pytest.fixture
def ask(realm: Realm, guarded: FakeLogbook, tmp_path: Path, place: Path):
    """Run an update with the tickets of a cache."""

    def run(cache: str, *arguments: Any, **environ: str) -> tuple[int, list[dict[str, Any]], str]:
        where = ("--database", f"sqlite:///{tmp_path}/elog.db", "--database-dir", place)
        tickets = {**realm.environ(tmp_path / cache), **environ}
        process = start(guarded, "--auth", "kerberos", "--json", *where, *arguments, environ=tickets)
        out, err = process.communicate(timeout=120)
        return process.returncode, [json.loads(line) for line in out.splitlines()], err

    return run


@needs_kerberos
def test_ten_threads_with_a_ticket_from_a_keytab_are_never_turned_away(
    realm: Realm, guarded: FakeLogbook, ask: Any, tmp_path: Path
):
    realm.kinit("svc-elog", keytab=realm.directory / "svc-elog.keytab", cache=tmp_path / "cc")
    guarded.latency_s = 0.15
    code, lines, err = ask("cc", "--jobs", "10")
    assert (code, lines[-1]["failed"], lines[-1]["retries"]) == (0, 0, 0), err
    assert differences(Logbook(f"sqlite:///{tmp_path}/elog.db"), guarded, without={"jobs"}) == []
    asked = [request for request in guarded.requests if request.prefix == "ws-kerb"]
    # Some proposals are of UED, whose questionnaires are answered with 500.
    assert {r.status for r in asked} - {500} == {200}
    assert len({r.authorization for r in asked}) == len(asked) >= 50
    assert 8 <= guarded.traffic.most_in_flight <= 10
    assert guarded.traffic.users == {"svc-elog"}


@needs_kerberos
def test_without_a_ticket_it_is_exit_code_77_with_kinit_for_a_remedy(guarded: FakeLogbook, ask: Any, tmp_path: Path):
    code, lines, err = ask("none")
    assert (code, lines) == (77, [])
    assert "there is no Kerberos ticket" in err
    assert "fix: run kinit" in err
    assert guarded.requests == []
    assert not list(tmp_path.glob("*elog*"))


@needs_kerberos
def test_a_ticket_that_expires_in_the_middle_ends_the_update_and_the_next_one_goes_on(
    realm: Realm, guarded: FakeLogbook, ask: Any, tmp_path: Path, place: Path
):
    keytab = realm.directory / "svc-elog.keytab"
    guarded.latency_s = 0.5
    realm.kinit("svc-elog", keytab=keytab, cache=tmp_path / "cc", lifetime="6s")
    code, lines, err = ask("cc", "--jobs", "2")
    assert code == 77, err
    assert "the Kerberos ticket has expired" in err
    assert "fix: run kinit" in err
    book = Logbook(f"sqlite:///{tmp_path}/elog.db")
    rows = ledger(book)
    assert rows
    assert 0 < lines[-1]["failed"] <= 12
    assert len(json.loads((place / "failed_experiments.json").read_text())) == lines[-1]["failed"]
    assert all(request.status in (200, 500) for request in guarded.requests), "an expired ticket was shown"
    guarded.latency_s = 0.0
    realm.kinit("svc-elog", keytab=keytab, cache=tmp_path / "cc")
    assert ask("cc")[0] == 0
    assert differences(book, guarded, without={"jobs"}) == []
    nothing_lost(rows, book)


#: A sync with a hook that gets a new ticket; prints how often it did, and what came.
RENEWING = """
import json, subprocess, sys
from nightbeam.catalog import Logbook
from nightbeam.elog.remote import KerberosAuth, LogbookClient
from nightbeam.elogsync.model import Policy
from nightbeam.elogsync.worker import look_around, sync
url, database, renew = json.loads(sys.argv[1])
renewed = []
auth = KerberosAuth(renew=lambda: renewed.append(subprocess.run(renew, check=True)))
book = Logbook(database)
with LogbookClient(url, auth=auth) as client:
    report = sync(client, book, look_around(client, book, Policy(everything=True)), jobs=10)
print(json.dumps([len(renewed), len(report.failed), report.seconds, str(report.stopped)]))
"""


@needs_kerberos
@pytest.mark.parametrize("how", ["hook", "keytab"])
def test_a_ticket_that_expires_in_the_middle_is_renewed_and_nobody_notices(
    realm: Realm, guarded: FakeLogbook, ask: Any, tmp_path: Path, how: str
):
    keytab, database = realm.directory / "svc-elog.keytab", f"sqlite:///{tmp_path}/elog.db"
    guarded.latency_s = 0.8
    realm.kinit("svc-elog", keytab=keytab, cache=tmp_path / "cc", lifetime="4s")
    if how == "hook":
        renew = ["kinit", "-l", "4s", "-k", "-t", str(keytab), "svc-elog"]
        done = subprocess.run(
            [sys.executable, "-c", RENEWING, json.dumps([guarded.url, database, renew])],
            env={**os.environ, **realm.environ(tmp_path / "cc")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        renewed, failed, seconds, stopped = json.loads(done.stdout)
        assert (failed, stopped) == (0, "None")
        assert 1 <= renewed <= seconds
    else:
        code, lines, err = ask("cc", "--jobs", "10", KRB5_CLIENT_KTNAME=f"FILE:{keytab}")
        assert (code, lines[-1]["failed"]) == (0, 0), err
        seconds = lines[-1]["seconds"]
    assert seconds > 4, "the ticket had no time to expire"
    assert differences(Logbook(database), guarded, without={"jobs"}) == []
    assert all(request.status in (200, 500) for request in guarded.requests)


# -- 6. Disks, addresses, databases ------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system in memory, whose options can be changed while it is there."""
    where = tmp_path / "disk"
    where.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if where.is_mount() else ""
        argv = ["mount", "-t", "tmpfs", "-o", f"{again}{options}", "none", str(where)]
        if subprocess.run(argv, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here; tests/unit/elogsync fills a disk by injection")
        return where

    yield mount
    if where.is_mount():
        subprocess.run(["umount", str(where)], check=True)


@pytest.fixture
def at(fake: CountingLogbook, capsys: pytest.CaptureFixture[str]):
    """Update a mirror in a directory; returns exit code and standard error."""

    def run(directory: Path, *arguments: Any, base_url: str = "") -> tuple[int, str]:
        argv = ["elog", "update", "--everything", "--base-url", base_url or fake.url, "--auth", "none"]
        with pytest.raises(SystemExit) as ended:
            main([*argv, "--database-dir", str(directory), *map(str, arguments)])
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def test_a_disk_that_is_full_keeps_what_it_has_and_goes_on_when_there_is_space(
    fake: CountingLogbook, disk: Callable[[str], Path], at: Any
):
    fake.populate(3, 5, 3, 3, parameters=14, fields=3, seed=61)
    where = disk("size=3m")
    assert at(where)[0] == 0
    book = Logbook(f"sqlite:///{where}/elog.db")
    rows, whole = ledger(book), content(book)
    for experiment in fake.experiments:
        fake.post(experiment, "x" * 3_000_000)
        fake.start_run(experiment)
    code, err = at(where)
    assert code == 74
    assert str(where) in err
    assert "full" in err or "no space left" in err
    rows = nothing_lost(rows, book)
    assert book.problems() == []
    (snapshot,) = snapshots(where)
    assert content(Logbook(f"sqlite:///{snapshot}")) == whole
    assert not list(where.glob(".*.part*"))
    disk("size=64m")
    assert at(where)[0] == 0
    assert differences(book, fake, without={"jobs"}) == []
    assert content(Logbook(f"sqlite:///{snapshots(where)[-1]}")) == content(book)
    nothing_lost(rows, book)


def test_a_snapshot_that_has_no_space_leaves_the_last_one_and_comes_with_the_next_update(
    fake: CountingLogbook, disk: Callable[[str], Path], at: Any, tmp_path: Path
):
    fake.populate(2, 4, 2, 2, parameters=14, fields=2, seed=62)
    where, database = disk("size=2m"), tmp_path / "elog.db"
    assert at(where, "--database", database)[0] == 0
    (before,) = snapshots(where)
    book, whole = Logbook(f"sqlite:///{database}"), before.read_bytes()
    fake.post(fake.experiments[0], "y" * 3_000_000)
    code, err = at(where, "--database", database)
    assert code == 74
    assert str(where) in err
    assert (snapshots(where), before.read_bytes()) == ([before], whole)
    assert [path.name for path in where.iterdir()] == [before.name]
    assert differences(book, fake, without={"jobs"}) == []
    disk("size=64m")
    fake.forget()
    assert at(where, "--database", database)[0] == 0
    assert content(Logbook(f"sqlite:///{snapshots(where)[-1]}")) == content(book)


@pytest.mark.parametrize("known", [True, False])
def test_a_directory_that_cannot_be_written_is_named(
    fake: CountingLogbook, disk: Callable[[str], Path], at: Any, known: bool
):
    fake.populate(2, 4, 2, 2, parameters=14, fields=2, seed=63)
    where = disk("size=16m")
    if known:
        assert at(where)[0] == 0
        book = Logbook(f"sqlite:///{where}/elog.db")
        rows = ledger(book)
    fake.stir(10)
    disk("ro")
    fake.forget()
    code, err = at(where)
    assert code == 74
    assert str(where) in err
    assert "fix:" in err
    assert fake.requests == [], "the logbook is asked although nothing can be stored"
    disk("rw")
    assert known or list(where.iterdir()) == []
    assert at(where, "--full")[0] == 0
    book = Logbook(f"sqlite:///{where}/elog.db")
    assert differences(book, fake, without={"jobs"}) == []
    if known:
        nothing_lost(rows, book)


def test_an_address_without_a_service_is_named_and_leaves_nothing(at: Any, tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        code, err = at(tmp_path / "mirror", base_url=address)
    assert code == 69
    assert f"at {address}" in err
    assert "Connection refused" in err
    assert "fix:" in err
    assert list((tmp_path / "mirror").iterdir()) == []


def test_an_address_of_something_else_is_named_and_the_mirror_stays_as_it_was(
    fake: CountingLogbook, at: Any, tmp_path: Path
):
    fake.populate(2, 4, 2, 2, parameters=14, fields=2, seed=64)
    where = tmp_path / "mirror"
    assert at(where)[0] == 0
    book = Logbook(f"sqlite:///{where}/elog.db")
    before, states = content(book), book.states()
    code, err = at(where, base_url=f"{fake.url}/elsewhere")
    assert code == 66
    assert f"{fake.url}/elsewhere" in err
    assert "check the service's address" in err
    assert (content(book), book.states()) == (before, states)


def test_a_mirror_of_a_newer_nightbeam_is_left_alone_and_it_is_said_what_helps(
    fake: CountingLogbook, logbook_url: str, elog: Any
):
    fake.populate(1, 3, 2, 2, parameters=14, fields=2, seed=65)
    assert elog("update", "--everything")[0] == 0
    book = Logbook(logbook_url)
    with book.database.write() as connection:
        connection.exec_driver_sql("UPDATE nightbeam_elog_version SET version_num = '0999'")
    before = content(book)
    fake.post(fake.experiments[0], "new")
    fake.forget()
    for command in ("update", "status", "verify"):
        code, lines, err = elog(command)
        assert (command, code, lines) == (command, 65, [])
        assert "has schema 0999" in err
        assert "fix: upgrade nightbeam" in err
    assert fake.requests == []
    assert content(book) == before
