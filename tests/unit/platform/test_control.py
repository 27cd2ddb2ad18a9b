"""Two platforms on one state directory: the second is told of the first, and nothing of that is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightbeam.core.errors import BusyError
from nightbeam.core.locks import is_held, sole_owner
from nightbeam.core.settings import Settings
from nightbeam.platform import Layout, control
from nightbeam.platform.files import write_report
from nightbeam.platform.model import Phase, Report

HOLD = """
import sys
from pathlib import Path
from nightbeam.core.locks import sole_owner
with sole_owner(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"state_dir": tmp_path / "state"}).resolved()


@pytest.fixture
def first(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the platform's lock, as its supervisor does, and has written its report."""
    layout = Layout(settings.state_dir)
    child = subprocess.Popen([sys.executable, "-c", HOLD, layout.lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.communicate()


def files(settings: Settings) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(settings.state_dir.rglob("*")) if p.is_file()}


def test_a_second_platform_in_the_foreground_is_refused_with_the_process_of_the_first(
    settings: Settings, first: subprocess.Popen[bytes]
):
    before = files(settings)
    with pytest.raises(BusyError, match=f"the platform of {settings.state_dir} is held by process {first.pid} on "):
        control.run_in_foreground(settings)
    assert files(settings) == before


def test_a_second_up_says_which_process_it_found_and_changes_nothing(
    settings: Settings, first: subprocess.Popen[bytes]
):
    layout = Layout(settings.state_dir)
    write_report(layout, Report(Phase.RUNNING, first.pid, "http://127.0.0.1:4999/api"))
    before = files(settings)
    found = control.start(settings)
    assert (found.already_running, found.pid, found.api_url) == (True, first.pid, "http://127.0.0.1:4999/api")
    assert files(settings) == before


def test_the_lock_of_a_first_platform_that_was_killed_stops_nobody(settings: Settings, first: subprocess.Popen[bytes]):
    lock = Layout(settings.state_dir).lock
    first.kill()
    first.wait()
    assert lock.exists()
    assert not is_held(lock)
    with sole_owner(lock):
        assert is_held(lock)
