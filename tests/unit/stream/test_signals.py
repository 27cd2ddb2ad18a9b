"""What was to happen at SIGTERM still happens after a library has put its own handler there, unseen by Python."""

import subprocess
import sys

import pytest

CODE = """
import ctypes, os, signal, sys, threading
from nightbeam.stream.signals import our_signals

asked = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: asked.set())

def library():
    with our_signals():
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.signal(signal.SIGTERM, None)  # the system's default: it ends the process

if sys.argv[1] == "main":
    library()
else:
    thread = threading.Thread(target=library)
    thread.start()
    thread.join()
os.kill(os.getpid(), signal.SIGTERM)
print("drained" if asked.wait(10) else "nothing")
"""


@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_handler_that_c_code_has_replaced_is_there_again(where):
    done = subprocess.run([sys.executable, "-c", CODE, where], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "drained\n"), done.stderr
