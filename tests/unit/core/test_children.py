import subprocess
import sys
import time

import psutil
import pytest

from nightbeam.core.children import log_tail, run_child
from nightbeam.core.errors import ToolError

PARENT = """
import sys
from pathlib import Path
from nightbeam.core.children import run_child
run_child([sys.executable, "-c", "import time; time.sleep(60)"], log=Path(sys.argv[1]), timeout_s=60)
"""


def run(code, tmp_path, **options):
    run_child([sys.executable, "-c", code], log=tmp_path / "child.log", **{"timeout_s": 30, **options})


def test_what_a_child_says_is_in_its_log(tmp_path):
    run("import sys; print('out'); print('err', file=sys.stderr)", tmp_path)
    assert sorted((tmp_path / "child.log").read_text().split()) == ["err", "out"]


def test_a_failing_child_is_quoted_with_its_exit_code(tmp_path):
    with pytest.raises(ToolError, match="exit code 3; it last said:\nno such table"):
        run("print('no such table'); raise SystemExit(3)", tmp_path)


def test_a_child_that_hangs_is_stopped_with_its_own_children(tmp_path):
    hang = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    with pytest.raises(ToolError, match="longer than 1 s"):
        run(hang, tmp_path, timeout_s=1.0)
    grandchild = int((tmp_path / "child.log").read_text())
    time.sleep(0.2)
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE


def test_a_program_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ToolError, match="no-such-program"):
        run_child(["no-such-program"], log=tmp_path / "log", timeout_s=1)


@pytest.mark.slow
def test_a_child_dies_with_a_parent_that_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path / "log"])
    try:
        until = time.monotonic() + 20
        while not (children := psutil.Process(parent.pid).children()) and time.monotonic() < until:
            time.sleep(0.05)
        assert children
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_the_tail_of_a_log_is_bounded(tmp_path):
    (tmp_path / "log").write_text("\n".join(str(i) for i in range(100)))
    assert log_tail(tmp_path / "log", lines=2) == "98\n99"
    assert log_tail(tmp_path / "none") == ""
