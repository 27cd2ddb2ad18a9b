"""Files of the platform: logs that grow for months, alarms."""

from __future__ import annotations

from pathlib import Path

from nightbeam.platform import alarms
from nightbeam.platform.alarms import read_alarms, record_alarm
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
        record_alarm(tmp_path, f"event {n}", "a\nb")
    assert [(a.what, a.subject) for a in read_alarms(tmp_path)] == [("event 3", "a\nb"), ("event 4", "a\nb")]
    with (tmp_path / "alarms.jsonl").open("a") as file:
        file.write('{"at": "2025')
    assert len(read_alarms(tmp_path)) == 2
