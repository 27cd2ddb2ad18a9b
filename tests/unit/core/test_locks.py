import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from nightbeam.core import locks
from nightbeam.core.errors import BusyError, StorageError
from nightbeam.core.locks import is_held, lock_holder, remove_free_lock, sole_owner

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


def test_only_a_lock_that_nobody_holds_is_removed(tmp_path):
    with sole_owner(tmp_path / "lock"):
        assert not remove_free_lock(tmp_path / "lock")
    assert remove_free_lock(tmp_path / "lock")
    assert remove_free_lock(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


def test_who_waits_for_a_lock_that_is_removed_gets_its_successor(tmp_path):
    counter, stop = tmp_path / "counter", threading.Event()
    counter.write_text("0")

    def add():
        for _ in range(30):
            with sole_owner(tmp_path / "lock", wait_s=60.0):
                counter.write_text(str(int(counter.read_text()) + 1))

    def clean():
        while not stop.is_set():
            remove_free_lock(tmp_path / "lock")

    cleaner = threading.Thread(target=clean)
    workers = [threading.Thread(target=add) for _ in range(4)]
    for thread in (cleaner, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    cleaner.join()
    assert counter.read_text() == "120"


@pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
def test_a_lock_is_taken_on_a_full_disk_too(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with sole_owner(tmp_path / "lock"):
        pass
    monkeypatch.setattr(os, call, full)
    with sole_owner(tmp_path / "lock"):
        assert is_held(tmp_path / "lock")
        with pytest.raises(BusyError), sole_owner(tmp_path / "lock"):
            pass
    assert not is_held(tmp_path / "lock")


def test_who_only_looks_at_a_lock_keeps_nobody_from_it(tmp_path, monkeypatch):
    (tmp_path / "lock").touch()
    looking = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)  # as `is_held` does for an instant
    pauses = []

    def look_away(seconds):
        if not pauses:
            os.close(looking)
        pauses.append(seconds)

    monkeypatch.setattr(locks.time, "sleep", look_away)
    with sole_owner(tmp_path / "lock"):
        assert len(pauses) == 1


def test_a_lock_that_cannot_be_made_is_an_error_of_the_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(StorageError, match="no space left for"), sole_owner(tmp_path / "lock"):
        pass
