import os
import signal
import subprocess
import sys

import pytest

from nightbeam.core.errors import BusyError
from nightbeam.core.locks import lock_holder, sole_owner

HOLD = """
import sys, time
from pathlib import Path
from nightbeam.core.locks import sole_owner
with sole_owner(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_owner_is_told_who_holds_it(tmp_path):
    second = sole_owner(tmp_path / "lock", what="the output")
    with sole_owner(tmp_path / "lock"), pytest.raises(BusyError, match=f"process {os.getpid()}"):
        second.__enter__()


def test_a_lock_of_a_killed_process_is_free_at_once(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(BusyError), sole_owner(tmp_path / "lock"):
        pass
    assert lock_holder(tmp_path / "lock")["pid"] == child.pid
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with sole_owner(tmp_path / "lock"):
        assert lock_holder(tmp_path / "lock")["pid"] == os.getpid()


def test_nobody_holds_a_lock_that_never_was(tmp_path):
    assert lock_holder(tmp_path / "lock") == {}
