"""``nightbeam registry`` with the seed's options and the seed's JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nightbeam.cli import main


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAL_REGISTRY_DB", str(tmp_path / "reg.sqlite3"))
    monkeypatch.setattr("nightbeam.catalog.registry.check_table", lambda path: None)
    for suffix in ("_gacal", "_bpcal"):
        path = tmp_path / f"obs_0{suffix}"
        path.mkdir()
        (path / "table.dat").write_text(suffix)
    return tmp_path / "obs_0"


def run(*argv: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["registry", *map(str, argv)])
    return int(ended.value.code or 0)


def register(tables: Path, *more: str) -> int:
    window = ("--valid-start", "60000.0", "--valid-end", "60000.1")
    return run(
        "register-prefix", "--name", "a", "--prefix", tables, "--cal-field", "0", "--refant", "103", *window, *more
    )


def test_a_prefix_is_registered_looked_up_and_retired(tables: Path, capsys: pytest.CaptureFixture[str]):
    assert run("init") == 0
    assert register(tables) == 0
    capsys.readouterr()
    assert run("active", "--mjd", "60000.05") == 0
    wanted = [f"{tables}_bpcal", f"{tables}_gacal"]
    assert json.loads(capsys.readouterr().out) == {"applylist": wanted}
    assert run("active", "--set", "a") == 0
    assert json.loads(capsys.readouterr().out) == {"applylist": wanted}
    assert run("list-sets") == 0
    assert json.loads(capsys.readouterr().out) == [{"set": "a", "rows": 2, "active": 2, "min_order": 30}]
    assert run("retire", "--name", "a", "--reason", "bad refant") == 0
    capsys.readouterr()
    assert run("list", "--json") == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["status"], line["reason"], line["active"]) == ("retired", "bad refant", 0)


def test_nothing_to_apply_is_exit_code_1(tables: Path, capsys: pytest.CaptureFixture[str]):
    assert run("active", "--mjd", "1.0") == 1
    assert json.loads(capsys.readouterr().out) == {"applylist": []}
    assert run("active") == 64


def test_a_set_needs_its_window_and_its_tables(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("register", "--name", "a", "--prefix", tables) == 65
    assert "has no window" in capsys.readouterr().err
    assert run("register", "--name", "a", "--prefix", tmp_path / "none", "--valid-start", "1", "--valid-end", "2") == 66
    assert run("retire", "--name", "zzz", "--reason", "x") == 66


def test_a_dry_run_registers_nothing(tables: Path, capsys: pytest.CaptureFixture[str]):
    assert register(tables, "--dry-run", "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(f["table_type"], f["order_index"]) for f in found] == [("BP", 30), ("GA", 40)]
    assert run("active", "--set", "a") == 1


def test_db_names_another_registry(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "deep" / "other.sqlite3"
    assert run("init", "--db", other) == 0
    assert other.is_file()
    assert "other.sqlite3 is at schema" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [("active", "--mjd", "1.0"), ("list",), ("list-sets",), ("retire", "--name", "a", "--reason", "x")]
)
def test_a_mistyped_registry_is_named_and_not_made(
    tables: Path, tmp_path: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    typo = tmp_path / "regg.sqlite3"
    assert run(*command, "--db", typo) == 66
    assert f"no registry database {typo}" in capsys.readouterr().err
    assert not typo.exists()
