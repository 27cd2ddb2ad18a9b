"""A logbook, a place for its mirror, and the command."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam.cli import main
from nightbeam.testing.elog_service import FakeLogbook


@pytest.fixture(autouse=True)
def _plain(_clean_environ: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith(("FETCH_ELOG_", "XDG_CONFIG", "KRB5"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def fake() -> Iterator[FakeLogbook]:
    with FakeLogbook(everyone="jdoe") as service:
        yield service


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


@pytest.fixture
def elog(fake: FakeLogbook, place: Path, logbook_url: str, capsys: pytest.CaptureFixture[str]):
    """Run a command on the logbook and the mirror; returns exit code, lines of JSON, standard error."""

    def run(command: str, *arguments: Any) -> tuple[int, list[dict[str, Any]], str]:
        argv = ["elog", command, *map(str, arguments), "--database", logbook_url, "--database-dir", str(place)]
        if command in ("update", "fetch", "retry"):
            argv += ["--base-url", fake.url, *([] if "--auth" in argv else ["--auth", "none"])]
        with pytest.raises(SystemExit) as ended:
            main([*argv, "--json"])
        said = capsys.readouterr()
        return int(ended.value.code or 0), [json.loads(line) for line in said.out.splitlines()], said.err

    return run
