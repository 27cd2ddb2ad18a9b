"""Faults of the service: no row is lost, exit code and state tell the truth, the next sync repairs."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import Logbook
from nightbeam.cli import main
from nightbeam.core.errors import AuthError, InputError, UnavailableError
from nightbeam.elog.model import Resource
from nightbeam.elogsync.model import SyncReport
from nightbeam.testing.elog_service import FakeLogbook

pytestmark = pytest.mark.system

_helpers = runpy.run_path(str(Path(__file__).resolve().parents[2] / "elog_mirror.py"))
asker, differences, go, ledger, mirrored, nothing_lost, true = (
    _helpers[name] for name in ("asker", "differences", "go", "ledger", "mirrored", "nothing_lost", "true")
)


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
    fake: FakeLogbook, logbook_url: str, kind: str
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
def test_odd_and_huge_entries_come_as_they_are(fake: FakeLogbook, logbook_url: str, how: str):
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


def test_what_heals_by_asking_again_is_exit_code_0(fake: FakeLogbook, logbook_url: str, elog: Any):
    fake.populate(4, 5, 3, 3, parameters=14, fields=3, seed=23)
    for kind in ("503", "reset", "short-body", "truncated"):
        fake.fail(None, kind, chance=0.03)  # type: ignore[arg-type]
    code, lines, err = elog("update", "--everything")
    assert (code, lines[-1]["failed"], lines[-1]["failures"]) == (0, 0, None), err
    assert lines[-1]["retries"] == fake.hits >= 2
    assert differences(Logbook(logbook_url), fake, without={"jobs"}) == []
    assert elog("status")[1][0]["failing"] == []


def test_what_does_not_is_exit_code_2_named_in_four_places_and_mended_by_retry(
    fake: FakeLogbook, logbook_url: str, place: Path, elog: Any
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
    class Revoking(FakeLogbook):
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
    fake: FakeLogbook, logbook_url: str, elog: Any, wrong: str
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
