"""CASA runs in children that leave nothing behind, end in time and say why they failed."""

import os
import sys
import time
from pathlib import Path

import pytest

from nightbeam.casa import CasaCall, run_casa
from nightbeam.casa.tables import array_column, new_ms, open_table
from nightbeam.core.errors import ToolError, UsageError

pytestmark = pytest.mark.system


def tree(path: Path) -> list[str]:
    return sorted(str(p) for p in path.rglob("*"))


@pytest.fixture
def places(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / ".casa").mkdir(parents=True)
    (home / ".casa/config.py").write_text("raise SystemExit('the user configuration was read')\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "argv", ["program", "--config", "/nonexistent.py", "--no"])
    return tmp_path


def test_nothing_is_written_to_the_working_directory_or_the_home(places):
    ms = places / "empty.ms"
    new_ms(ms, columns=[array_column("DATA", 1j, ndim=2)])
    before = tree(places / "home"), tree(Path.cwd())
    log = places / "logs/casa.log"
    values = run_casa(
        [CasaCall("flagmanager", {"vis": ms, "mode": "list"})], work_dir=places / "work", log=log, timeout_s=120
    )
    assert len(values) == 1
    assert isinstance(values[0], dict)
    assert (tree(places / "home"), tree(Path.cwd())) == before
    assert tree(places / "work") == []
    assert "Begin Task: flagmanager" in log.read_text()


def test_a_failing_task_quotes_the_end_of_its_log(places):
    with pytest.raises(ToolError, match="exit code 3") as caught:
        run_casa(
            [CasaCall("importuvfits", {"fitsfile": "/no/such.fits", "vis": str(places / "x.ms")})],
            work_dir=places / "work",
            log=places / "casa.log",
            timeout_s=120,
        )
    assert "/no/such.fits" in str(caught.value)
    assert tree(places / "work") == []


def test_a_time_limit_kills_the_child(places):
    begin = time.monotonic()
    with pytest.raises(ToolError, match="ran longer than 1 s"):
        run_casa(
            [CasaCall("listobs", {"vis": "/no/such.ms"})],
            work_dir=places / "work",
            log=places / "casa.log",
            timeout_s=0.6,
        )
    assert time.monotonic() - begin < 15
    assert not [p for p in Path("/proc").iterdir() if p.name.isdigit() and _is_child_of_ours(p, places)]


def _is_child_of_ours(proc: Path, places: Path) -> bool:
    try:
        return str(places).encode() in (proc / "cmdline").read_bytes() and int(proc.name) != os.getpid()
    except OSError:
        return False


def test_a_name_that_is_no_task_never_starts_a_child(places):
    with pytest.raises(UsageError):
        run_casa([CasaCall("os.system", {})], work_dir=places / "work", log=places / "casa.log", timeout_s=10)
    assert not (places / "casa.log").exists()


def test_setjy_without_its_standards_is_a_failure_although_it_returns(places, shared_data):
    ms = places / "m.ms"
    log = places / "casa.log"
    where = {"work_dir": places / "work", "log": log, "timeout_s": 120}
    run_casa([CasaCall("importuvfits", {"fitsfile": str(shared_data / "radio/mojave.uvfits"), "vis": ms})], **where)
    with open_table(ms) as table:
        assert table.nrows() > 1000
    with pytest.raises(ToolError, match=r"SEVERE|exit code"):
        run_casa([CasaCall("setjy", {"vis": ms, "standard": "Perley-Butler 2017", "usescratch": True})], **where)
