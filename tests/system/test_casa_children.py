"""CASA runs in children that leave nothing behind, end in time and say why they failed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nightbeam.casa import CasaCall, run_casa
from nightbeam.casa.config import child_environment
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
    ms = places / "empty.ms"
    new_ms(ms, columns=[array_column("DATA", 1j, ndim=2)])
    with pytest.raises(ToolError, match="ran longer than 1 s"):
        run_casa(
            [CasaCall("flagmanager", {"vis": ms, "mode": "list"})] * 10_000,  # many times the limit
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


def test_a_child_loads_the_tasks_that_it_is_to_call_and_the_others_when_they_are_called(tmp_path):
    looked = tmp_path / "looked.json"
    code = f"""
import json, sys
from pathlib import Path
from nightbeam.casa.child import PutOff
sys.meta_path.insert(0, PutOff(["applycal"]))
import casatasks

def loaded(): return sorted(m.split("task_")[1] for m in sys.modules if "private.task_" in m and "logging" not in m)

found = dict(begin=loaded(), drawing="matplotlib.figure" in sys.modules)
from casatasks.private import partitionhelper, task_uvcontsub_old
try:
    casatasks.listobs(vis="/nowhere.ms")
except Exception as error:
    found["said"] = str(error)
found["then"] = loaded()
found["name"] = [type(one).__module__ for one in (casatasks.listobs, casatasks.applycal)]
try:
    task_uvcontsub_old.virtualconcat(vis=["/nowhere.ms"], concatvis="/not/there.ms")
except Exception as error:
    found["said by another"] = str(error)
found["at last"] = loaded()
partitionhelper.plt.figure()
found["drawn"] = "matplotlib.figure" in sys.modules
Path({str(looked)!r}).write_text(json.dumps(found))
"""
    env = child_environment(tmp_path / "casa", threads=1)
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120, cwd=tmp_path)
    found = json.loads(looked.read_text())
    assert (found["begin"], found["drawing"]) == (["applycal"], False)
    assert found["then"] == ["applycal", "listobs", "uvcontsub_old"]
    assert found["name"] == ["casatasks.listobs", "casatasks.applycal"]
    assert "/nowhere.ms" in found["said"]
    assert "/nowhere.ms" in found["said by another"]
    assert found["at last"] == ["applycal", "listobs", "uvcontsub_old", "virtualconcat"]
    assert found["drawn"] is True


def test_every_task_that_we_use_is_one_of_casas(tmp_path):
    code = """
import sys
from nightbeam.casa.child import PutOff
from nightbeam.casa.model import TASKS
sys.meta_path.insert(0, PutOff(TASKS))
import casatasks
print([name for name in TASKS if type(getattr(casatasks, name)).__name__ != f"_{name}"])
"""
    env = child_environment(tmp_path / "casa", threads=1)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
