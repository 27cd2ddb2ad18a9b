"""What every answer has and every request must have: a host that we are, a size that we bear, headers, a time taken."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

__all__ = ["POLICY", "SVG_POLICY", "Manners", "Message", "Receive", "Scope", "Send"]

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Observe = Callable[[str, str, int, float], None]

#: What a page may load and do. Nothing is ever fetched from another site.
POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
#: A drawing may hold scripts; where it is opened by itself they are not run.
SVG_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", POLICY.encode()),
    (b"cache-control", b"no-cache"),
)
_LONGEST_TARGET: Final = 8192


class _TooLargeError(Exception):
    """More came than we bear."""


class Manners:
    """Stands before everything else.

    Parameters
    ----------
    app
        What answers.
    allowed_hosts
        Names by which browsers may reach us; ``*`` for any. Another name may have been made to mean this machine.
    most_bytes
        Of a request's body.
    observe
        Is told method, route, status and seconds of every request.
    """

    def __init__(self, app: Any, *, allowed_hosts: Iterable[str], most_bytes: int, observe: Observe) -> None:
        self._app, self._most_bytes, self._observe = app, most_bytes, observe
        self._hosts = frozenset(host.lower().strip("[]") for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, said = time.perf_counter(), [0]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                said[0] = message["status"]
                there = {name.lower() for name, _ in message.get("headers", ())}
                message["headers"] = [*message.get("headers", ()), *(one for one in _HEADERS if one[0] not in there)]
            await send(message)

        method = scope["method"]
        if method == "HEAD":  # as GET, but for the body
            scope["method"] = "GET"
        try:
            await self._guarded(scope, receive, _without_body(answer) if method == "HEAD" else answer, said)
        finally:
            scope["method"] = method
            route = getattr(scope.get("route"), "path", None) or "none"
            self._observe(method, route, said[0] or 500, time.perf_counter() - begin)

    async def _guarded(self, scope: Scope, receive: Receive, answer: Send, said: list[int]) -> None:
        headers = scope["headers"]
        if not self._is_us(headers):
            await _refuse(answer, 400, "this is not the name of this site: see monitor.allowed_hosts")
            return
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > _LONGEST_TARGET:
            await _refuse(answer, 414, "the address is too long")
            return
        length = next((value for name, value in headers if name == b"content-length"), b"0")
        if not length.isdigit() or int(length) > self._most_bytes:
            await _refuse(answer, 413, f"at most {self._most_bytes} bytes are taken")
            return
        came = [0]

        async def measured() -> Message:
            message = await receive()
            came[0] += len(message.get("body", b""))
            if came[0] > self._most_bytes:
                raise _TooLargeError
            return message

        try:
            await self._app(scope, measured, answer)
        except _TooLargeError:
            if not said[0]:
                await _refuse(answer, 413, f"at most {self._most_bytes} bytes are taken")
        except Exception:
            _log.exception("%s %s could not be answered", scope["method"], scope["path"])
            if not said[0]:
                await _refuse(answer, 500, "this is a fault of nightbeam; its log says more")

    def _is_us(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        if "*" in self._hosts:
            return True
        told = [value for name, value in headers if name == b"host"]
        if len(told) != 1:
            return False
        host = told[0].decode("latin-1").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return name in self._hosts


def _without_body(send: Send) -> Send:
    async def told(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return told


async def _refuse(send: Send, status: int, why: str) -> None:
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
