"""``nightbeam housekeeping`` and ``nightbeam backfill``: what they print and how they end."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightbeam.cli import main
from nightbeam.contimg import Site
from nightbeam.contimg import backfill as library
from nightbeam.contimg.backfill import BackfillOutcome, Unimaged
from nightbeam.core.errors import ToolError

tidy = SimpleNamespace(**runpy.run_path(str(Path(__file__).resolve().parents[2] / "tidy_site.py")))
A, B = tidy.group_name(0), tidy.group_name(1)
LONG_AGO = 1_000_000_000.0


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NIGHTBEAM_STATE_DIR", str(tmp_path / "state"))
    return tidy.new_site(tmp_path / "state")


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    return int(ended.value.code or 0)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_dry_run_prints_what_the_real_one_does_and_does_nothing(site, capsys):
    old = tidy.put_scratch(site.scratch_dir / "stream_old", LONG_AGO)
    before = tidy.tree(site.state_dir)
    assert run("housekeeping", "--dry-run", "--json") == 0
    (told,) = lines(capsys)
    assert tidy.tree(site.state_dir) == before
    assert run("housekeeping", "--json") == 0
    (done,) = lines(capsys)
    (action,) = done["done"]
    assert (action["verb"], action["kind"], action["subject"]) == ("remove", "scratch", str(old))
    assert [(a["verb"], a["subject"]) for a in told["done"]] == [("remove", str(old))]
    assert not old.exists()
    assert run("housekeeping") == 0


def test_the_options_of_the_older_tool_are_known(site, tmp_path, capsys):
    elsewhere = tidy.put_scratch(tmp_path / "tmp" / "stream_old", LONG_AGO)
    tidy.put_group(site, A, "collecting", seen_at=LONG_AGO)
    options = ["--queue-db", str(site.state_dir / "ingest.sqlite3"), "--scratch-dir", str(tmp_path / "tmp")]
    options += ["--in-progress-timeout", "3600", "--collecting-timeout", "86400", "--temp-age", "86400"]
    assert run("housekeeping", *options) == 0
    assert not elsewhere.exists()
    assert site.queue().group(A).state == "failed"
    assert run("housekeeping", "--queue-db", str(tmp_path / "nothing.sqlite3")) == 66
    assert "there is no queue database" in capsys.readouterr().err


def test_what_was_put_aside_is_listed_and_put_back(site, capsys):
    tidy.put_group(site, A, "completed", seen_at=LONG_AGO)
    ms = tidy.put_ms(site, A, made_at=LONG_AGO)
    products = site.products()
    from nightbeam.contimg.quarantine import item_of, put_aside

    put_aside(site, products, item_of(products, "ms", ms), reason="a test", now=tidy.NOW)
    assert run("housekeeping", "--held", "--json") == 0
    (held,) = lines(capsys)
    assert (held["original_path"], held["state"]) == (str(ms), "held")
    assert run("housekeeping", "--restore", held["path"], "--json") == 0
    assert lines(capsys) == [{"restored": str(ms)}]
    assert ms.exists()
    assert run("housekeeping", "--restore", held["path"]) == 66
    assert run("housekeeping", "--restore", held["path"], "--dry-run") == 64


def test_a_clock_that_jumped_is_exit_code_65_until_one_forces_it(site, capsys):
    log = tidy.put_scratch(site.log(A, "image").parent, LONG_AGO)
    (site.state_dir / "housekeeping.json").write_text(json.dumps({"ended_at": LONG_AGO}))
    assert run("housekeeping") == 65
    assert "would be put aside or deleted at once" in capsys.readouterr().err
    assert log.exists()
    assert run("housekeeping", "--force") == 0
    assert not log.exists()


def test_a_backfill_prints_what_became_of_each_and_ends_with_2_when_some_failed(site, monkeypatch, capsys):
    found = [Unimaged(f"/ms/{g}.ms", g, "to do", "it has no image") for g in (A, B)]
    monkeypatch.setattr(library, "find_unimaged", lambda *_args, **_more: found)

    def one(place: Site, wanted: Unimaged, **_more: Any) -> BackfillOutcome:
        if wanted.group_id == B:
            raise ToolError("tclean fell over")
        return BackfillOutcome(wanted.group_id, "imaged", wanted.ms)

    monkeypatch.setattr(library, "backfill_one", one)
    assert run("backfill", "--json") == 2
    said = capsys.readouterr()
    assert [json.loads(line)["state"] for line in said.out.splitlines()] == ["imaged", "failed"]
    assert f"1 of 2 Measurement Sets failed: {B}: tclean fell over" in said.err
    assert run("backfill", "--limit", "1", "--json") == 0
    assert [line["group_id"] for line in lines(capsys)] == [A]


def test_a_dry_run_of_a_backfill_lists_what_has_no_image(site, tmp_path, capsys):
    (tmp_path / "data" / "rubbish.ms").mkdir(parents=True)
    assert run("backfill", str(tmp_path / "data"), "--dry-run", "--json") == 0
    (found,) = lines(capsys)
    assert (found["group_id"], found["state"]) == (None, "to do")
    assert run("backfill", "--ms-dir", str(tmp_path / "data"), "--json") == 2
    (outcome,) = lines(capsys)
    assert outcome["state"] == "failed"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--night", "yesterday"], 65),
        (["/nowhere/at/all"], 66),
        (["/a", "--ms-dir", "/b"], 64),
        (["--limit", "0"], 64),
    ],
)
def test_a_backfill_that_makes_no_sense_is_refused(site, argv, code):
    assert run("backfill", *argv) == code


def test_what_failed_is_printed_beside_what_was_done_and_is_the_exit_code(site, monkeypatch, capsys):
    for name in ("stream_a", "stream_b"):
        tidy.put_scratch(site.scratch_dir / name, LONG_AGO)

    def full(path: Path) -> None:
        if path.name == "stream_a":
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("nightbeam.contimg.housekeeping.remove", full)
    assert run("housekeeping", "--json") == 74
    (said,) = lines(capsys)
    assert [Path(a["subject"]).name for a in said["done"]] == ["stream_b"]
    assert [Path(path).name for path in said["failed"]] == ["stream_a"]
