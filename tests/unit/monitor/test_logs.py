"""Logs: their ends only, as text, and of nothing else."""

from __future__ import annotations

import os

from nightbeam.monitor.logs import log_tail, steps_with_logs


def test_the_last_lines_are_shown_and_it_is_said_that_there_are_more(tmp_path):
    (tmp_path / "image.log").write_text("".join(f"line {k}\n" for k in range(500)))
    found = log_tail(tmp_path, "image", lines=200)
    assert found is not None
    assert (len(found.lines), found.lines[0], found.lines[-1], found.cut) == (200, "line 300", "line 499", True)


def test_a_short_log_is_shown_whole(tmp_path):
    (tmp_path / "qa.log").write_text("one\ntwo")
    found = log_tail(tmp_path, "qa")
    assert found is not None
    assert (found.lines, found.cut) == (("one", "two"), False)


def test_of_a_huge_log_no_more_than_its_end_is_read_and_no_half_of_a_line(tmp_path):
    with (tmp_path / "image.log").open("w") as log:
        for k in range(40_000):
            log.write(f"{k:09d}\n")
    found = log_tail(tmp_path, "image", lines=1_000_000)
    assert found is not None
    assert len(found.lines) * 10 <= 128 << 10
    assert all(len(line) == 9 for line in found.lines)
    assert (found.lines[-1], found.cut) == ("000039999", True)


def test_colours_and_what_was_written_over_are_left_out_and_controls_are_harmless(tmp_path):
    (tmp_path / "image.log").write_bytes(b"\x1b[31mred\x1b[0m\n10 %\r20 %\r\nbell\x07\xff\n")
    found = log_tail(tmp_path, "image")
    assert found is not None
    assert found.lines == ("red", "20 %", "bell\ufffd\ufffd")


def test_the_step_that_wrote_last_is_the_last(tmp_path):
    for age, name in ((10, "image.log"), (20, "convert.log")):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (1000.0 - age, 1000.0 - age))
    (tmp_path / "metrics.json").write_text("{}")
    assert steps_with_logs(tmp_path) == ["convert", "image"]


def test_nothing_but_logs_of_that_very_directory_can_be_asked_for(tmp_path):
    (tmp_path / "secret.log").write_text("word")
    inside = tmp_path / "group"
    inside.mkdir()
    (inside / "link.log").symlink_to(tmp_path / "secret.log")
    assert steps_with_logs(inside) == []
    assert [log_tail(inside, step) for step in ("../secret", "link", "", "/etc/passwd")] == [None] * 4


def test_a_group_without_logs_has_none(tmp_path):
    assert steps_with_logs(tmp_path / "none") == []
    assert log_tail(tmp_path / "none", "image") is None
