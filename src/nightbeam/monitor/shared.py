"""One answer for all who ask the same within a second.

Fifty people who look at one page have it made once. An answer is at most a second old; whoever changes something here
has all of them made anew.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from nightbeam.monitor.manners import Message, Receive, Scope, Send

__all__ = ["Shared"]

_KEEP_S: Final = 1.0
_MOST_ANSWERS: Final = 512
#: A larger answer is made for each; and of all together no more are kept.
_MOST_BYTES: Final = 1 << 20
_MOST_BYTES_OF_ALL: Final = 64 << 20
#: Headers on which an answer depends.
_ASKED: Final = frozenset({b"host", b"cookie", b"authorization", b"accept", b"if-none-match", b"x-forwarded-proto"})

_Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    """A whole answer, and the route that gave it."""

    until: float
    start: Message
    body: bytes
    route: Any


class Shared:
    """Keeps answers to GET for a second.

    Parameters
    ----------
    app
        What makes them.
    keep_s
        How old they may be; 0: nothing is shared.
    clock
        Seconds that go on, for tests.
    """

    def __init__(self, app: Any, *, keep_s: float = _KEEP_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._keep_s, self._clock = app, keep_s, clock
        self._answers: OrderedDict[_Key, _Answer] = OrderedDict()
        self._bytes = 0
        self._made: dict[_Key, asyncio.Event] = {}
        self._changes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or self._keep_s <= 0:
            await self._app(scope, receive, send)
        elif scope["method"] == "GET":
            await self._shared(scope, receive, send)
        elif scope["method"] == "POST":
            await self._changing(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _changing(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what may change something; where it was refused, nothing has."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._forget_all()
            await send(message)

        await self._app(scope, receive, told)

    async def _shared(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = tuple(sorted((name, value) for name, value in scope["headers"] if name in _ASKED))
        key = (scope.get("raw_path") or scope["path"], scope["query_string"], asked)
        while (found := self._known(key)) is None:
            making = self._made.get(key)
            if making is None:
                await self._make(key, scope, receive, send)
                return
            await making.wait()
            if self._known(key) is None and key not in self._made:
                # It is none that can be shared: each gets one of its own, and they do not wait for each other.
                await self._app(scope, receive, send)
                return
        scope["route"] = found.route
        await send({**found.start, "headers": list(found.start["headers"])})
        await send({"type": "http.response.body", "body": found.body})

    async def _make(self, key: _Key, scope: Scope, receive: Receive, send: Send) -> None:
        start: list[Message] = []
        parts: list[bytes] = []
        ended: list[bool] = []
        changes, making = self._changes, asyncio.Event()
        self._made[key] = making

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.append({**message, "headers": list(message.get("headers", ()))})
            elif sum(map(len, parts)) <= _MOST_BYTES:
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    ended.append(True)
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            body = b"".join(parts)
            whole = bool(start and ended) and len(body) <= _MOST_BYTES
            # What was asked before a change may not be kept after it.
            if whole and start[0]["status"] == 200 and changes == self._changes and not _sets_cookie(start[0]):
                self._keep(key, _Answer(self._clock() + self._keep_s, start[0], body, scope.get("route")))
            del self._made[key]
            making.set()

    def _known(self, key: _Key) -> _Answer | None:
        found = self._answers.get(key)
        if found is not None and self._clock() >= found.until:
            self._drop(key)
            return None
        return found

    def _keep(self, key: _Key, answer: _Answer) -> None:
        self._drop(key)
        self._answers[key] = answer
        self._bytes += len(answer.body)
        while len(self._answers) > _MOST_ANSWERS or self._bytes > _MOST_BYTES_OF_ALL:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: _Key) -> None:
        gone = self._answers.pop(key, None)
        if gone is not None:
            self._bytes -= len(gone.body)

    def _forget_all(self) -> None:
        self._changes += 1
        self._answers.clear()
        self._bytes = 0


def _sets_cookie(start: Message) -> bool:
    return any(name.lower() == b"set-cookie" for name, _ in start["headers"])
