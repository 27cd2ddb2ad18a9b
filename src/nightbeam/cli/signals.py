"""What SIGINT and SIGTERM do to a command that has something in hand."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["answered_signals", "stopped_by_signals"]


@contextmanager
def answered_signals(answer: Callable[[int], None]) -> Iterator[None]:
    """Call ``answer`` with the number of the first SIGINT or SIGTERM; the second ends the process at once.

    It runs wherever the main thread happens to be, which may hold any lock: it must not ask for one.
    """

    def tell(number: int, frame: FrameType | None) -> None:
        del frame
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        answer(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, tell)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopped_by_signals(stop: threading.Event, *, saying: str = "") -> Iterator[list[int]]:
    """Set ``stop`` when SIGINT or SIGTERM comes, and yield the list that its number is put into.

    What is in hand is finished; who asks twice does not want to wait for that. ``saying`` goes to standard error.
    """
    told: list[int] = []

    def answer(number: int) -> None:
        told.append(number)
        if saying:
            os.write(2, saying.encode() + b"\n")  # the log's own lock may be held by the code that this interrupts
        # Not set from here: this thread may be inside of that Event's own lock, and would wait for itself.
        threading.Thread(target=stop.set, name="stop").start()

    with answered_signals(answer):
        yield told
