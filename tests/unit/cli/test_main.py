import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from nightbeam.cli import main, nightbeam
from nightbeam.cli.output import plain, show
from nightbeam.core.errors import MissingError


def run(*argv):
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    return stopped.value.code


def test_a_usage_error_is_64_for_2_means_something_else(capsys):
    assert run("no-such-command") == 64
    assert "no-such-command" in capsys.readouterr().err


def test_our_errors_become_two_lines_and_their_exit_code(monkeypatch, capsys):
    @click.command("fail")
    def fail():
        raise MissingError("no group 2025-10-02T01:02:03", fix="nightbeam groups list")

    monkeypatch.setitem(nightbeam.commands, "fail", fail)
    assert run("fail") == 66
    assert capsys.readouterr().err.splitlines() == [
        "nightbeam: no group 2025-10-02T01:02:03",
        "  fix: nightbeam groups list",
    ]


@pytest.mark.parametrize("argv", [("up",), ("status",), ("monitor", "serve"), ("monitor", "token")])
def test_a_file_where_a_directory_is_wanted_is_said_and_no_traceback(tmp_path, capsys, argv):
    (tmp_path / "afile").touch()
    assert run(*argv, "--state-dir", str(tmp_path / "afile")) in (64, 74)
    said = capsys.readouterr().err
    assert ("afile" in said, "fix" in said, "Traceback" in said) == (True, True, False), said


def test_a_fault_of_ours_is_not_taken_for_one_of_the_disk(monkeypatch):
    @click.command("fail")
    def fail():
        raise FileNotFoundError(2, "No such file or directory", "x")

    monkeypatch.setitem(nightbeam.commands, "fail", fail)
    with pytest.raises(FileNotFoundError):
        main(["fail"])


def test_a_wrong_configuration_is_78(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("contmig: {}")
    assert run("--config", str(tmp_path / "bad.yaml"), "doctor") == 78
    assert "contmig" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    assert run("--version") == 0
    assert "nightbeam" in capsys.readouterr().out


@dataclass
class Row:
    when: datetime
    path: Path
    noise: float


def test_json_has_utc_times_plain_paths_and_no_nan(capsys):
    show([Row(datetime(2025, 10, 2, tzinfo=UTC), Path("/a"), float("nan"))], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"when": "2025-10-02T00:00:00Z", "path": "/a", "noise": None}


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    assert plain({"a": numpy.float32(0.5), "b": numpy.arange(2)}) == {"a": 0.5, "b": [0, 1]}
