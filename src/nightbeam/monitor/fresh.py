"""Values that are made anew at most every so often, by one thread, while the others get the last one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Fresh"]

T = TypeVar("T")

#: What is older than so many times its age is not given to those who do not want to wait.
_MOST_TIMES = 5


class Fresh(Generic[T]):
    """One value.

    Parameters
    ----------
    make
        Makes it; what it raises is raised by `get`, and nothing is kept.
    keep_s
        How old it may be.
    clock
        Seconds that go on, for tests.
    """

    def __init__(self, make: Callable[[], T], *, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._make, self._keep_s, self._clock = make, keep_s, clock
        self._lock = threading.Lock()
        self._found: tuple[float, T] | None = None

    def get(self) -> T:
        """Return the value; while another thread makes it, the one before, unless nobody has asked for long."""
        found = self._found
        if found is not None and self._clock() < found[0] + self._keep_s:
            return found[1]
        old = found is None or self._clock() > found[0] + _MOST_TIMES * self._keep_s
        if not self._lock.acquire(blocking=old):
            assert found is not None
            return found[1]
        try:
            found = self._found
            if found is None or self._clock() >= found[0] + self._keep_s:
                value = self._make()
                self._found = found = (self._clock(), value)
            return found[1]
        finally:
            self._lock.release()

    def forget(self) -> None:
        """Have it made anew next time."""
        self._found = None
