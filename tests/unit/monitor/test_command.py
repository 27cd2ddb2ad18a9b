"""``nightbeam monitor``: the token from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from nightbeam.cli import nightbeam
from nightbeam.core.errors import InputError


@pytest.fixture(autouse=True)
def _clean(_clean_environ: None) -> None:
    """Without settings of the shell."""


def run(*words: str) -> tuple[str, str]:
    done = CliRunner().invoke(nightbeam, ["monitor", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout, done.stderr


def test_the_token_is_made_once_and_printed_alone(tmp_path: Path):
    state = str(tmp_path / "state")
    word, said = run("token", "--state-dir", state)
    assert len(word.strip()) >= 32
    assert "made " in said
    assert run("token", "--state-dir", state) == (word, "")
    assert run("token", "--state-dir", state, "--path")[0].strip() == str(tmp_path / "state" / "monitor.token")


def test_a_token_that_others_may_read_is_one_error(tmp_path: Path):
    run("token", "--state-dir", str(tmp_path))
    (tmp_path / "monitor.token").chmod(0o604)
    with pytest.raises(InputError, match="others may read"):
        run("token", "--state-dir", str(tmp_path))


def test_a_port_that_is_none_is_refused(tmp_path: Path):
    done = CliRunner().invoke(nightbeam, ["monitor", "serve", "--state-dir", str(tmp_path), "--port", "70000"])
    assert done.exit_code != 0
    assert not (tmp_path / "monitor").exists()
