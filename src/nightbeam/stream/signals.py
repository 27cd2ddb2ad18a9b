"""Handlers of signals that survive a library which puts its own in their place."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from typing import Final

__all__ = ["our_signals"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: More than a struct sigaction has on any machine.
_ROOM: Final = 512
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def our_signals() -> Iterator[None]:
    """Keep the handlers of SIGTERM and SIGINT through the block, in whatever thread it is.

    Ray sets handlers twice: in Python where it is started in the main thread, and always in C++, where Python does not
    see it: SIGTERM then ends the process at once. When it is left, the C++ side takes the system's default.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS} if in_main else {}
    actions = {number: _action(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: it was not set from Python
                signal.signal(number, handler)
        for number, action in actions.items():
            _libc.sigaction(int(number), action, None)


def _action(number: signal.Signals) -> ctypes.Array[ctypes.c_char]:
    action = ctypes.create_string_buffer(_ROOM)
    if _libc.sigaction(int(number), None, action) != 0:
        raise OSError(ctypes.get_errno(), f"sigaction({number.name})")
    return action
