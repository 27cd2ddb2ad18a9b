"""``nightbeam groups``: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import FileFact, GroupFact, Owner, Queue
from nightbeam.cli import main

G = "2025-10-02T01:02:03"
LATER = "2025-10-02T01:07:12"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NIGHTBEAM_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def queue(state: Path) -> Queue:
    queue = Queue(f"sqlite:///{state}/ingest.sqlite3")
    for n, group_id in enumerate((G, LATER)):
        files = [FileFact(sb, Path(f"/in/{group_id}_sb{sb:02d}.hdf5")) for sb in range(16 - n)]
        queue.record(GroupFact(group_id, 60950.043 + n, dec_deg=33.0), files)
    return queue


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    return int(ended.value.code or 0)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_groups_are_listed_newest_first_and_by_state(queue: Queue, capsys: pytest.CaptureFixture[str]):
    assert run("groups", "list", "--json") == 0
    found = lines(capsys)
    assert [(g["group"], g["state"], g["subbands"]) for g in found] == [
        (LATER, "collecting", "15/16"), (G, "pending", "16/16")
    ]  # fmt: skip
    assert run("groups", "list", "--state", "pending", "--json") == 0
    assert [g["group"] for g in lines(capsys)] == [G]
    assert run("groups", "list") == 0
    assert G in capsys.readouterr().out


def test_a_group_is_shown_with_the_error_of_every_attempt(queue: Queue, capsys: pytest.CaptureFixture[str]):
    for n in range(2):
        queue.claim(G, Owner("me"))
        queue.fail(G, Owner("me"), f"tclean fell over {n}")
    assert run("groups", "show", G, "--json") == 0
    (report,) = lines(capsys)
    assert [a["error"] for a in report["attempts"]] == ["tclean fell over 0", "tclean fell over 1"]
    assert len(report["files"]) == 16
    assert run("groups", "show", G) == 0
    assert "tclean fell over 0" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("command", ["show", "reprocess", "run", "run --dry-run", "reprocess --dry-run"])
def test_an_unknown_group_is_exit_code_66(queue: Queue, command: str, capsys: pytest.CaptureFixture[str]):
    assert run("groups", *command.split(), "1999-01-01T00:00:00") == 66
    assert "the queue has no group 1999-01-01T00:00:00" in capsys.readouterr().err


def test_what_is_no_group_is_exit_code_65(queue: Queue, capsys: pytest.CaptureFixture[str]):
    assert run("groups", "show", "yesterday") == 65
    assert "write it like 2025-10-02T01:02:03" in capsys.readouterr().err


def test_reprocess_says_what_became_of_it_and_dry_run_changes_nothing(queue: Queue, capsys: pytest.CaptureFixture[str]):
    queue.claim(G, Owner("me"))
    queue.complete(G, Owner("me"))
    assert run("groups", "reprocess", G, "--dry-run", "--json") == 0
    assert lines(capsys)[0]["state"] == queue.group(G).state == "completed"
    assert run("groups", "reprocess", G, "--json") == 0
    assert (lines(capsys)[0]["state"], queue.group(G).retry_count) == ("pending", 1)


def test_reprocessing_an_incomplete_group_needs_force(queue: Queue, capsys: pytest.CaptureFixture[str]):
    assert run("groups", "reprocess", LATER) == 65
    assert "has 15 of 16 subbands" in capsys.readouterr().err
    assert run("groups", "reprocess", LATER, "--force") == 0
    assert queue.group(LATER).partial == 1


def test_a_dry_run_names_the_steps(queue: Queue, capsys: pytest.CaptureFixture[str]):
    queue.claim(G, Owner("me"))
    queue.put_receipt(G, Owner("me"), "convert", {})
    assert run("groups", "run", G, "--dry-run", "--json") == 0
    found = lines(capsys)
    assert [f["step"] for f in found] == ["convert", "calibrate", "apply", "image", "record", "qa"]
    assert [f["what"] for f in found[:2]] == ["finished before", "to be done"]


def test_a_group_that_somebody_has_is_exit_code_75(queue: Queue, capsys: pytest.CaptureFixture[str]):
    queue.claim(G, Owner("flow-run-7"))
    assert run("groups", "run", G) == 75
    assert "is being worked on by flow-run-7" in capsys.readouterr().err


def test_run_wants_a_group_or_next(queue: Queue, capsys: pytest.CaptureFixture[str]):
    assert run("groups", "run") == 64
    queue.claim(G, Owner("me"))
    assert run("groups", "run", "--next") == 66
    assert "no group is pending" in capsys.readouterr().err


def test_a_scan_of_a_missing_directory_is_exit_code_66(state: Path, capsys: pytest.CaptureFixture[str]):
    assert run("groups", "scan") == 66
    (state / "incoming").mkdir()
    assert run("groups", "scan", "--json") == 0
    assert lines(capsys)[0]["new_files"] == 0


def test_a_dry_scan_records_nothing(state: Path, capsys: pytest.CaptureFixture[str]):
    (state / "incoming").mkdir(parents=True)
    (state / "incoming" / "2025-10-02T01:02:03_sb00.hdf5").write_text("")
    assert run("groups", "scan", "--dry-run", "--json") == 0
    (line,) = lines(capsys)
    assert "not ready" in line["what"] or "bad" in line["what"]
    assert Queue(f"sqlite:///{state}/ingest.sqlite3").bad_files() == []


def test_a_bad_file_is_listed_moved_listed_there_and_put_back(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("NIGHTBEAM_CONTIMG__INGEST__SETTLE_S", "0")
    monkeypatch.setenv("NIGHTBEAM_CONTIMG__INGEST__BAD_FILE_WAIT_S", "1e6")
    bad = state / "incoming" / "2025-10-02T01:02:03_sb00.hdf5"
    bad.parent.mkdir(parents=True)
    bad.write_text("")
    assert run("groups", "scan") == 0
    capsys.readouterr()
    assert run("groups", "bad", "--json") == 0
    assert lines(capsys) == [{"file": str(bad), "why": "0 bytes", "what": "waits"}]
    monkeypatch.setenv("NIGHTBEAM_CONTIMG__INGEST__BAD_FILE_WAIT_S", "0")
    assert run("groups", "scan") == 0
    assert f"moved aside: {bad}" in capsys.readouterr().err
    assert run("groups", "bad", "--json") == 0
    (line,) = lines(capsys)
    assert line["what"].startswith(f"held: {bad.parent}/.set-aside/")
    assert run("groups", "restore", str(bad), "--dry-run") == 0
    assert not bad.exists()
    assert run("groups", "restore", str(bad)) == 0
    assert bad.exists()
    assert run("groups", "restore", str(bad)) == 66
    assert "nothing that was set aside" in capsys.readouterr().err


def test_the_backlog_is_shown_in_groups_and_minutes_of_sky(queue: Queue, capsys: pytest.CaptureFixture[str]):
    assert run("groups", "backlog", "--json") == 0
    (found,) = lines(capsys)
    assert (found["pressure"], found["waiting"], found["minutes"], found["in_work"]) == ("calm", 1, 5.0, 0)
    assert queue.arrears.pressure() is None, "who looks changes nothing"


def test_a_person_says_how_a_group_is_imaged(queue: Queue, capsys: pytest.CaptureFixture[str]):
    assert run("groups", "imaging", "quick", G, "--dry-run", "--json") == 0
    assert lines(capsys)[0]["imaging"] is None
    assert run("groups", "imaging", "quick", G, "--json") == 0
    assert lines(capsys)[0]["imaging"] == "quick"
    queue.claim(G, Owner("me"))
    assert run("groups", "imaging", "full", G) == 75
    queue.complete(G, Owner("me"))
    assert run("groups", "list") == 0
    assert "quick image" in capsys.readouterr().out
    assert run("groups", "imaging", "full", G) == 65
    assert run("groups", "imaging", "full", "2025-10-02T09:09:09") == 66
