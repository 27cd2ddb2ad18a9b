"""Snapshots, the list of failures, elogfetch's configuration."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from nightbeam.catalog import Logbook
from nightbeam.core.errors import BusyError, ConfigError, InputError, MissingError, RejectedError
from nightbeam.elog.model import Resource
from nightbeam.elogsync.files import (
    FAILED,
    latest_snapshot,
    outdated,
    publish,
    read_config,
    read_failed,
    snapshots,
    write_failed,
)
from nightbeam.elogsync.model import Outcome

NOON = datetime(2026, 11, 21, 12)
KNOWN = {"hours_lookback", "exclude_patterns", "database_dir", "database", "parallel_jobs"}


def fill(book: Logbook, entries: int) -> None:
    book.put_experiment({"_id": "mfx1", "name": "mfx1"})
    documents = [{"_id": f"e{n}", "content": "x", "insert_time": "2026-01-01T00:00:00+00:00"} for n in range(entries)]
    book.put_entries("mfx1", documents, full=True)


def test_a_snapshot_is_one_file_with_all_rows_that_needs_no_other(book, tmp_path):
    fill(book, 40)
    made = publish(book, tmp_path / "out", now=lambda: NOON)
    assert made.path.name == "elog_2026_1121_1200.db"
    assert [p.name for p in made.path.parent.iterdir()] == [made.path.name]
    with sqlite3.connect(made.path) as copy:
        assert copy.execute("SELECT count(*) FROM logbook_entries").fetchone() == (40,)
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert latest_snapshot(made.path.parent) == made.path


def test_a_mirror_that_has_shrunk_is_not_published_and_the_last_one_stays(book, tmp_path):
    fill(book, 100)
    first = publish(book, tmp_path, now=lambda: NOON)
    small = Logbook(f"sqlite:///{tmp_path}/small.db")
    fill(small, 30)
    with pytest.raises(RejectedError, match="logbook_entries has 30 rows, the last one had 100"):
        publish(small, tmp_path, now=lambda: NOON + timedelta(hours=1))
    assert snapshots(tmp_path) == [first.path]
    assert publish(small, tmp_path, shrink=True, now=lambda: NOON + timedelta(hours=1)).path.exists()


def test_old_snapshots_go_by_their_age_and_other_files_stay(book, tmp_path):
    fill(book, 1)
    first = publish(book, tmp_path / "out", now=lambda: NOON).path
    old = [tmp_path / (NOON - timedelta(days=d)).strftime("elog_%Y_%m%d_%H%M.db") for d in range(30, 900, 7)]
    for path in old:
        shutil.copy(first, path)
    (tmp_path / "notes.db").touch()
    made = publish(book, tmp_path, now=lambda: NOON)
    assert made.removed
    assert all(not path.exists() for path in made.removed)
    assert (tmp_path / "notes.db").exists()
    assert not old[-1].exists()
    assert old[0].exists()


def test_databases_of_the_older_tool_are_neither_removed_nor_replaced_nor_compared_with(book, tmp_path):
    fill(book, 30)
    theirs = [
        tmp_path / name for name in ("elog_2021_0101_0000.db", "elog_2023_0101_0000.db", "elog_2026_1121_1200.db")
    ]
    for path in theirs:
        with closing(sqlite3.connect(path)) as made, made:
            made.execute("CREATE TABLE Logbook (log_id INTEGER)")
            made.executemany("INSERT INTO Logbook VALUES (?)", [(n,) for n in range(500)])
    before = [path.read_bytes() for path in theirs]
    made = publish(book, tmp_path, now=lambda: NOON)
    assert (made.path.name, made.removed) == ("elog_2026_1121_1201.db", ())
    assert [path.read_bytes() for path in theirs] == before


def test_a_mirror_with_the_name_of_a_snapshot_among_them_is_refused_before_it_is_one(tmp_path):
    book = Logbook(f"sqlite:///{tmp_path}/elog_2026_0101_0100.db")
    fill(book, 1)
    with pytest.raises(ConfigError, match="has the name of a snapshot"):
        publish(book, tmp_path, now=lambda: NOON)
    assert publish(book, tmp_path / "out", now=lambda: NOON).path.exists()
    assert book.database.file.exists()


def test_rows_that_the_service_has_no_more_are_missed_although_the_mirror_keeps_them(book, tmp_path):
    fill(book, 100)
    publish(book, tmp_path, now=lambda: NOON)
    fill(book, 0)  # success, and an empty list
    assert book.counts()["logbook_entries"] == 100
    with pytest.raises(RejectedError, match="logbook_entries has 0 rows, the last one had 100"):
        publish(book, tmp_path, now=lambda: NOON + timedelta(hours=1))


def test_a_snapshot_that_cannot_be_read_is_passed_over_for_the_one_before(book, tmp_path):
    fill(book, 100)
    publish(book, tmp_path, now=lambda: NOON)
    damaged = publish(book, tmp_path, now=lambda: NOON + timedelta(hours=1)).path
    os.truncate(damaged, 8192)
    fill(book, 0)
    with pytest.raises(RejectedError, match=r"had 100 \(.*elog_2026_1121_1200.db"):
        publish(book, tmp_path, now=lambda: NOON + timedelta(hours=2))
    assert damaged.exists()


def test_a_snapshots_rows_are_looked_at_without_touching_it(book, tmp_path):
    fill(book, 30)
    path = publish(book, tmp_path, now=lambda: NOON).path
    before = path.read_bytes()
    publish(book, tmp_path, now=lambda: NOON + timedelta(minutes=1))
    assert path.read_bytes() == before


def test_a_second_sync_hears_who_has_the_mirror(book):
    with book.sole_writer(), pytest.raises(BusyError, match="process"), book.sole_writer():
        pass


def test_failures_are_listed_as_elogfetch_does_and_the_list_goes_when_there_are_none(tmp_path):
    bad = Outcome("mfx1", "mfx1", errors={Resource.FILES: "HTTP status 503"})
    late = Outcome("mfx2", "mfx2", attempted=False)
    path = write_failed(tmp_path, [bad, late, Outcome("mfx3", "mfx3")])
    assert path == tmp_path / FAILED
    found = json.loads(path.read_text())
    assert [(item["experiment_id"], item["error"]) for item in found] == [
        ("mfx1", "files: HTTP status 503"),
        ("mfx2", "not attempted"),
    ]
    assert read_failed(path) == ["mfx1", "mfx2"]
    assert write_failed(tmp_path, [Outcome("mfx3", "mfx3")]) is None
    with pytest.raises(MissingError):
        read_failed(path)


def test_who_was_not_tried_stays_in_the_list_where_it_is_asked_for(tmp_path):
    write_failed(tmp_path, [Outcome("mfx1", "mfx1", attempted=False), Outcome("mfx2", "mfx2", attempted=False)])
    write_failed(tmp_path, [Outcome("mfx1", "mfx1"), Outcome("mfx3", "mfx3", attempted=False)], others=True)
    assert read_failed(tmp_path / FAILED) == ["mfx2", "mfx3"]
    write_failed(tmp_path, [Outcome("mfx4", "mfx4", attempted=False)])
    assert read_failed(tmp_path / FAILED) == ["mfx4"]
    (tmp_path / FAILED).write_text("no list")
    assert write_failed(tmp_path, [Outcome("mfx1", "mfx1")], others=True) is None


def test_a_snapshot_is_outdated_as_soon_as_anything_of_the_mirror_has_changed(book, tmp_path):
    out = tmp_path / "out"
    fill(book, 3)
    assert outdated(book, out)
    made = publish(book, out, now=lambda: NOON)
    assert not outdated(book, out)
    fill(book, 3)
    book.failed("mfx1", Resource.RUNS, "HTTP status 503")
    book.set_metadata(last_update="2026-11-21")
    assert not outdated(book, out)
    book.mark("mfx1", "gone")
    assert outdated(book, out)
    publish(book, out, now=lambda: NOON)
    assert not outdated(book, out)
    fill(book, 4)
    assert outdated(book, out)
    made.path.write_text("no snapshot")
    assert outdated(book, out)


def test_what_the_dead_left_half_written_is_removed_and_nothing_else(book, tmp_path):
    fill(book, 1)
    process = subprocess.Popen(["true"])
    process.wait()
    dead, alive = process.pid, os.getpid()
    names = [f".elog_2026_1121_1200.db.{{}}.0123abcd.part{end}" for end in ("", "-journal", "-wal")]
    names += [f".{FAILED}.{{}}.0123abcd.part", "..elog_2026_1121_1200.db.{}.0123abcd.part.lock"]
    others = {name.format(alive) for name in names} | {f".notes.db.{dead}.0123abcd.part", f"elog.db.{dead}.part"}
    out = tmp_path / "out"
    out.mkdir()
    for name in {name.format(dead) for name in names} | others:
        (out / name).touch()
    made = publish(book, out, now=lambda: NOON)
    assert {path.name for path in out.iterdir()} == others | {made.path.name}


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"experiment": "x"}]', '[{"experiment_id": 5}]', "[" * 100_000])
def test_what_is_no_list_of_failures_is_said(tmp_path, text):
    (tmp_path / FAILED).write_text(text)
    with pytest.raises(InputError, match="no list of failures"):
        read_failed(tmp_path / FAILED)


def config(tmp_path: Path, text: str) -> dict[str, object]:
    place = tmp_path / "elogfetch" / "config.yaml"
    place.parent.mkdir(exist_ok=True)
    place.write_text(text)
    return read_config(None, {"XDG_CONFIG_HOME": str(tmp_path)}, KNOWN)


def test_elogfetchs_keys_are_ours(tmp_path):
    text = "database_path: ~/elog.db\nhours_lookback: 24\nqueue_size: 100\nexclude_patterns: [xcs*]\n"
    assert config(tmp_path, text) == {
        "elog.database": "~/elog.db",
        "elog.hours_lookback": 24,
        "elog.exclude_patterns": ["xcs*"],
    }
    assert config(tmp_path, "") == {}


def test_a_misspelt_key_is_an_error_that_names_the_right_one(tmp_path):
    with pytest.raises(ConfigError, match="hours_lokback") as raised:
        config(tmp_path, "hours_lokback: 24\n")
    assert "hours_lookback" in raised.value.fix


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_holds_no_settings_is_said(tmp_path, text):
    with pytest.raises(ConfigError):
        config(tmp_path, text)


def test_a_file_that_was_named_must_be_there_the_usual_one_need_not(tmp_path):
    assert read_config(None, {"HOME": str(tmp_path)}, KNOWN) == {}
    with pytest.raises(ConfigError, match="no configuration file"):
        read_config(tmp_path / "no.yaml", {}, KNOWN)
