"""Files of the platform: logs that grow for months, alarms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nightbeam.core.errors import StorageError
from nightbeam.platform import alarms
from nightbeam.platform.alarms import Alarm, alarm_file, read_alarms, record_alarms
from nightbeam.platform.files import trim_logs


def test_a_long_log_begins_anew_and_its_end_stays_whole_lines(tmp_path: Path):
    log, short = tmp_path / "worker-casa.log", tmp_path / "server.log"
    short.write_text("x" * 100)
    with log.open("ab") as service:
        service.write(b"".join(b"line %03d\n" % n for n in range(100)))
        service.flush()
        assert trim_logs(tmp_path, most_bytes=100) == [log]
        service.write(b"after\n")  # as a service does that has it open
        service.flush()
    assert log.read_text() == "after\n"
    kept = (tmp_path / "worker-casa.log.1").read_text().splitlines()
    assert kept == [f"line {n:03d}" for n in range(89, 100)], "eleven lines of nine bytes"
    assert short.read_text() == "x" * 100
    assert trim_logs(tmp_path / "none", most_bytes=1) == []


def test_alarms_are_read_back_and_the_oldest_of_very_many_go(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(alarms, "_MOST", 4)
    monkeypatch.setattr(alarms, "_KEPT", 2)
    assert read_alarms(tmp_path) == []
    for n in range(5):
        record_alarms(tmp_path / "alarms.jsonl", [Alarm(f"2026-01-01T00:00:0{n}Z", f"event {n}", "a\nb")])
    assert [(a.what, a.subject) for a in read_alarms(tmp_path)] == [("event 3", "a\nb"), ("event 4", "a\nb")]


def test_a_line_that_was_cut_short_does_not_swallow_the_next(tmp_path: Path):
    file = tmp_path / "alarms.jsonl"
    record_alarms(file, [Alarm("2026-01-01T00:00:00Z", "first", "")])
    with file.open("a") as torn:
        torn.write('{"at": "2025')
    record_alarms(file, [Alarm("2026-01-01T00:00:01Z", "second", "")])
    assert [alarm.what for alarm in read_alarms(tmp_path)] == ["first", "second"]


def test_a_disk_that_takes_half_of_a_line_is_full(tmp_path: Path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda out, data: write(out, data[:7]))
    with pytest.raises(StorageError, match="no space left"):
        record_alarms(tmp_path / "alarms.jsonl", [Alarm("2026-01-01T00:00:00Z", "first", "")])


def test_alarms_of_all_machines_are_read_in_the_order_in_which_they_happened(tmp_path: Path):
    own, shared = tmp_path / "own", tmp_path / "shared"
    assert alarm_file(own, None, "a") == alarm_file(own, own, "a") == own / "alarms.jsonl"
    for second, machine in ((3, "a"), (1, "b"), (2, "a")):
        record_alarms(alarm_file(own, shared, machine), [Alarm(f"2026-01-01T00:00:0{second}Z", machine, "")])
    assert [alarm.what for alarm in read_alarms(own, shared, shared, None)] == ["b", "a", "a"]
