"""``nightbeam calib inspect``, as it is typed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nightbeam.cli import main
from nightbeam.testing.xtc2_files import detector, write_xtc2
from nightbeam.xtc2 import ChunkInfo, Transition

EPIX = detector("epix", "epix10ka", ["11-22", "33-44"], first_segment=4)
GOOD = {
    "status": "has events",
    "detectors": [
        {"name": "epix", "type": "epix10ka", "unique_id": "epix10ka_11-22_33-44", "segments": [4, 5]},
    ],
    "datagrams": {
        "Configure": 1, "BeginRun": 1, "EndRun": 1, "BeginStep": 1, "EndStep": 1, "Enable": 1, "Disable": 1,
        "L1Accept": 3,
    },
    "runs": [{"experiment": "mfx1", "run": 12}],
}  # fmt: skip


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["calib", "inspect", *map(str, words)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_xtc2(tmp_path / "good.xtc2", [EPIX], experiment="mfx1", run=12)


def test_a_file_is_one_line_of_json(capsys, good):
    code, out, err = typed(capsys, good, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"path": str(good), **GOOD}


def test_a_bad_file_is_reported_with_the_others_and_gives_65(capsys, tmp_path, good):
    bad, cut = tmp_path / "bad.xtc2", tmp_path / "cut.xtc2"
    bad.write_bytes(b"<html>no</html>" * 10)
    cut.write_bytes(good.read_bytes()[:1500])
    code, out, err = typed(capsys, bad, good, cut, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 65
    assert [row["status"] for row in rows] == ["not xtc2", "has events", "partial configure"]
    assert rows[1] == {"path": str(good), **GOOD}
    assert [list(row) for row in rows] == [["path", "status", "detectors", "datagrams", "runs"]] * 3
    assert str(bad) in err
    assert f"{cut}: truncated: the Configure at 0" in err


def test_what_is_missing_or_no_file_gives_65_and_the_status_says_which(capsys, tmp_path, good):
    code, out, err = typed(capsys, tmp_path / "none.xtc2", good, "--json")
    assert code == 65
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["no file", "has events"]
    assert f"nightbeam: no file {tmp_path}/none.xtc2\n  fix: " in err
    code, out, err = typed(capsys, tmp_path, good, "--json")
    assert code == 65
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["not xtc2", "has events"]
    assert "no regular file" in err


def test_a_file_that_may_not_be_read_gives_65_and_hides_no_other(capsys, tmp_path, good, monkeypatch):
    closed = write_xtc2(tmp_path / "closed.xtc2", [EPIX])
    access, opened = os.access, os.open

    def allowed(path: object, mode: int, **options: bool) -> bool:
        return str(path) != str(closed) and access(path, mode, **options)

    def opening(path: object, *rest: object, **options: object) -> int:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **options)

    monkeypatch.setattr(os, "access", allowed)
    monkeypatch.setattr(os, "open", opening)
    code, out, err = typed(capsys, closed, good, "--json")
    assert code == 65
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["unreadable", "has events"]
    assert f"cannot read {closed}: Permission denied" in err


@pytest.mark.parametrize("serial", ["[/b]", "[red]12", ":x:", "\\[/b]"])
def test_people_see_the_serial_that_is_in_the_file(capsys, tmp_path, monkeypatch, serial):
    monkeypatch.setenv("COLUMNS", "200")
    path = write_xtc2(tmp_path / "a.xtc2", [detector("epix", "epix10ka", [serial])])
    code, out, _ = typed(capsys, path)
    assert code == 0
    assert f"epix = epix10ka_{serial} [0]" in out


@pytest.mark.parametrize("name", ["[red].xtc2", "\x1b[2J.xtc2", "a\nb.xtc2", os.fsdecode(b"\xff.xtc2")])
def test_people_see_a_files_name_whatever_it_is(capsys, tmp_path, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "300")
    bad, cut = tmp_path / f"bad{name}", tmp_path / f"cut{name}"
    bad.mkdir()
    write_xtc2(cut, [EPIX], cut_bytes=3)
    code, out, err = typed(capsys, bad, cut, tmp_path / f"none{name}")
    assert code == 65
    shown = name.encode("unicode_escape").decode()
    for text in (out, err):
        assert [text.count(f"{kind}{shown}") for kind in ("bad", "cut", "none")] == [1, 1, 1]
        assert "\x1b" not in text


def test_orders_to_the_terminal_that_are_in_a_file_do_not_reach_it(capsys, tmp_path):
    path = write_xtc2(tmp_path / "a.xtc2", [EPIX], experiment="\x1b[2J", next_chunk=ChunkInfo(1, "\x1b]0;x\x07"))
    code, out, err = typed(capsys, path)
    assert code == 0
    assert "unreadable" in err
    assert not {"\x1b", "\x07"} & set(out + err)


def test_an_unfinished_end_is_noted_and_no_failure(capsys, tmp_path):
    path = write_xtc2(tmp_path / "a.xtc2", [EPIX], cut_bytes=3, next_chunk=ChunkInfo(1, "b.xtc2"))
    code, _, err = typed(capsys, path, "--json")
    assert code == 0
    assert f"{path}: truncated: the Enable at" in err


def test_a_later_chunk_can_be_read(capsys, tmp_path):
    path = write_xtc2(tmp_path / "a.xtc2", [EPIX], configure=False, until=Transition.L1Accept)
    code, out, _ = typed(capsys, path, "--json")
    assert code == 0
    row = json.loads(out)
    assert (row["status"], row["datagrams"], row["detectors"]) == ("continuation", {"L1Accept": 3}, [])


def test_pseudo_detectors_are_shown_on_request(capsys, good):
    _, out, _ = typed(capsys, good, "--json", "--all")
    assert [d["name"] for d in json.loads(out)["detectors"]] == ["epix", "runinfo"]


def test_people_see_a_table(capsys, good):
    code, out, _ = typed(capsys, good)
    assert code == 0
    assert "has events" in out
    assert "3 L1Accept" in out
    assert "mfx1 12" in out


def test_no_file_at_all_is_a_mistake(capsys):
    code, _, err = typed(capsys)
    assert code == 64
    assert "FILE" in err


def test_the_real_files_are_all_readable(capsys, shared_data):
    files = sorted((shared_data / "xtc2").rglob("*.xtc2"))
    code, out, _ = typed(capsys, *files, "--json")
    assert code == 0
    real = {d["unique_id"] for line in out.splitlines() for d in json.loads(line)["detectors"]}
    assert real == {
        "cspad_detnum1234_detnum1234",
        "hsd_detnum1234",
        "hsd_detnum1234_detnum1234",
        "hsd_serial1234_serial1234",
        "ts_serial1234",
    }
