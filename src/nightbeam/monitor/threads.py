"""How many requests are worked on at a time: one while it gets on, more where one waits for a disk or a server.

Nearly all of a request's work is Python's, of which a process does one thing at a time: four threads that fight for it
answer half as many requests a second as one. But whoever waits for a database that does not answer holds nobody up.
"""

from __future__ import annotations

from typing import Any, Final

import anyio

__all__ = ["Lanes"]

#: Who has not ended after this waits for something, and another may begin beside it.
_LOOK_S: Final = 0.05


class Lanes:
    """Widens a limiter by one for each that was at work at the last look already.

    Parameters
    ----------
    limiter
        Of threads. It is set to 1.
    most
        Threads, whatever happens.
    """

    def __init__(self, limiter: anyio.CapacityLimiter, *, most: int) -> None:
        self._limiter, self._most = limiter, most
        self._before: frozenset[Any] = frozenset()
        limiter.total_tokens = 1

    def look(self) -> None:
        """Look once who is at work."""
        now = frozenset(map(id, self._limiter.statistics().borrowers))
        self._limiter.total_tokens = min(self._most, 1 + len(now & self._before))
        self._before = now

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            self.look()
            await anyio.sleep(_LOOK_S)
