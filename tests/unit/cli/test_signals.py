import signal
import subprocess
import sys
import threading

import pytest

from nightbeam.cli.signals import stopped_by_signals

BOTH = [signal.SIGINT, signal.SIGTERM]

PROGRAM = """
import sys, threading, time
from nightbeam.cli.signals import stopped_by_signals

stop = threading.Event()
with stopped_by_signals(stop, saying="stopping"):
    print("ready", flush=True)
    stop.wait(60)
    print("stopped", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", BOTH)
def test_what_is_in_hand_is_finished(number, capfd):
    before, stop = [signal.getsignal(each) for each in BOTH], threading.Event()
    with stopped_by_signals(stop, saying="stopping: wait") as told:
        signal.raise_signal(number)
        assert stop.wait(60)
    assert told == [number]
    assert capfd.readouterr().err == "stopping: wait\n"
    assert [signal.getsignal(each) for each in BOTH] == before


def test_a_signal_is_no_trap_for_who_holds_the_events_own_lock():
    stop = threading.Event()
    with stopped_by_signals(stop):
        with stop._cond:
            signal.raise_signal(signal.SIGTERM)
        assert stop.wait(60)


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_the_second_signal_ends_the_process_at_once(first, second):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as out:
        assert out.readline() == "ready\n"
        process.send_signal(first)
        assert out.readline() == "stopped\n"
        process.send_signal(second)
        assert process.wait(60) == -second
