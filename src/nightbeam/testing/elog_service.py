"""A logbook on this machine: the real one's addresses, answers and rules, and its ways to fail.

What it holds and how that changes is in `nightbeam.testing.elog_truth`, what each address answers in
`nightbeam.testing.elog_routes`. It shares no code with the client, so that a mistake in one of them shows.
"""

from __future__ import annotations

import base64
import json
import random
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from http.cookies import CookieError, SimpleCookie
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args
from urllib.parse import parse_qsl, unquote

from nightbeam.core.errors import UsageError
from nightbeam.testing.elog_population import populate, stir
from nightbeam.testing.elog_routes import (
    EXPERIMENT_ROUTES,
    QUESTIONNAIRE_ROUTES,
    SITE_ROUTES,
    Ask,
    Blob,
    NoSuccessError,
    NotFoundError,
    Route,
    SentenceError,
    match,
    summarise,
)
from nightbeam.testing.elog_truth import Attachment, Document, Holding, LogbookTruth, Truth
from nightbeam.testing.loopback import LoopbackHandler, LoopbackServer

__all__ = ["Attachment", "FakeLogbook", "Fault", "Gate", "Received", "Traffic", "Truth"]

Fault = Literal[
    "500", "502", "503", "504", "429", "401", "403", "404", "redirect", "html", "empty", "refused", "drop", "reset",
    "short-body", "truncated", "duplicates", "slow",
]  # fmt: skip

#: Given the header ``Authorization``, returns what is added to the answer's headers, or None for "who asks?".
#: ``X-User`` among them is who asks; of a principal (``alice@ELOG.TEST``) what is before the ``@``.
Gate = Callable[[str | None], Mapping[str, str] | None]

_Headers = tuple[tuple[str, str], ...]

_PREFIXES: Final = ("ws", "ws-kerb", "ws-jwt", "ws-auth")
_LIES: Final = "application/json; charset=utf-8"
_JSON: Final = "application/json"
_HTML: Final = "text/html; charset=iso-8859-1"
_PAGE: Final = b"<!DOCTYPE html><html><body>Please log in</body></html>"
_MOST_COOKIE_BYTES: Final = 8190
_MOST_KEPT_BYTES: Final = 256 << 20
#: Faults that need an answer to spoil, and those that an application behind the proxy would send.
_SPOILING: Final = ("short-body", "truncated", "duplicates", "slow", "reset")
_FROM_BEHIND: Final = ("500", "403", "404", "refused")


@dataclass(frozen=True, slots=True)
class Received:
    """One request that came in.

    Attributes
    ----------
    method, prefix
        ``GET``; ``ws``, ``ws-kerb``...
    experiment
        As it was written in the address; empty for calls that are about none.
    route
        The call as its table has it: ``elog``, ``runs/{num}``; the whole path where there is no such route.
    args
        Parameters.
    status
        What was answered; 0 where the connection was dropped.
    sent_bytes
        Length of the answer's body.
    user
        Who asked, None where nobody was recognised.
    authorization
        The header, as it came.
    cookie_bytes
        Length of the header ``Cookie``.
    writes
        Whether the request changes state, or would have.
    """

    method: str
    prefix: str
    experiment: str
    route: str
    args: Mapping[str, str]
    status: int
    sent_bytes: int
    user: str | None
    authorization: str | None
    cookie_bytes: int
    writes: bool

    @property
    def place(self) -> str:
        """What faults choose by: experiment, slash, route."""
        return f"{self.experiment}/{self.route}"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was asked since the start or `FakeLogbook.forget`.

    Attributes
    ----------
    writes
        Requests that change state, or would have.
    most_in_flight
        How many were being answered at once, at most.
    """

    requests: int
    sent_bytes: int
    most_in_flight: int
    by_route: Mapping[str, int]
    by_experiment: Mapping[str, int]
    by_status: Mapping[int, int]
    users: frozenset[str]
    writes: tuple[Received, ...]


@dataclass
class _Plan:
    number: int
    kind: Fault
    left: int | None
    route: re.Pattern[str]
    chance: float
    seconds: float
    retry_after: str | None
    hits: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    type: str
    body: bytes
    headers: _Headers = ()


@dataclass(frozen=True, slots=True)
class _Token:
    user: str
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class _Address:
    """What a path means. ``area``: site, experiment, run_control, questionnaire, login, redirect, or nothing."""

    area: str
    prefix: str
    experiment: str
    call: str

    @property
    def routes(self) -> Mapping[str, Route]:
        if self.area in ("experiment", "run_control"):
            return EXPERIMENT_ROUTES
        return {"site": SITE_ROUTES, "questionnaire": QUESTIONNAIRE_ROUTES}.get(self.area, {})


class FakeLogbook(LogbookTruth):
    """A logbook on 127.0.0.1, as a context manager; `LogbookTruth` has the operations of its users.

    Without ``gate`` and ``token`` the prefixes ``ws-kerb``, ``ws-jwt`` and ``ws-auth`` let everybody in. Prefix
    ``ws`` answers what is open, as the real one does.

    Parameters
    ----------
    gate
        Lets requests in under ``ws-kerb`` by their header ``Authorization`` (`nightbeam.testing.kerberos.Acceptor`).
    token
        Lets requests in under ``ws-jwt``; `allow_token` adds more.
    user
        Who those are whom the gate does not name, or that need no credential.
    everyone
        User for whom prefix ``ws`` stands, against the real one's rule that it is nobody.
    host
        How the address names this machine; Kerberos needs ``localhost``.
    latency_s
        How long every answer waits at least; can be set at any time.
    cache_s
        How old the lists of experiments may be, by the logbook's clock; 0: they are never old.
    slack_s
        How much longer the window of recent experiments is than asked for.
    unknown_proposal
        Status for the questionnaire of a proposal that nobody has: 200, 404 or 500.
    application
        The first ``lgbk`` of addresses: ``devlgbk`` for a development instance.
    seed
        Decides which requests are hit by a fault with a chance.

    Examples
    --------
    >>> with FakeLogbook(token="abc") as logbook:  # doctest: +SKIP
    ...     logbook.add_experiment("mfx100012325", params={"PNR": "L-10001"})
    ...     logbook.post("mfx100012325", "Jet restarted", tags=["jet"])
    ...     logbook.fail(None, "503", route="/elog$", chance=0.05)
    ...     client = LogbookClient(logbook.url, auth=BearerAuth("abc"))
    """

    def __init__(
        self,
        *,
        gate: Gate | None = None,
        token: str | None = None,
        user: str = "jdoe",
        everyone: str | None = None,
        host: str = "127.0.0.1",
        latency_s: float = 0.0,
        cache_s: float = 0.0,
        slack_s: float = 0.0,
        unknown_proposal: Literal[200, 404, 500] = 404,
        application: str = "lgbk",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.latency_s = latency_s
        self._gate, self._user, self._everyone, self._host = gate, user, everyone, host
        self._cache, self._slack = timedelta(seconds=cache_s), timedelta(seconds=slack_s)
        self._unknown_proposal, self._application, self._seed = unknown_proposal, application, seed
        self._tokens: dict[str, _Token] = {}
        self._needs_credential = gate is not None or token is not None
        if token is not None:
            self.allow_token(token)
        self._plans: list[_Plan] = []
        self._planned = 0
        #: How often a fault has hit so far.
        self.hits = 0
        self._log: list[Received] = []
        self._in_flight = self._most_in_flight = 0
        self._summaries: dict[int, Document] = {}
        self._list: tuple[datetime, list[tuple[Document, bool]]] | None = None
        self._kept: dict[tuple[Any, ...], bytes] = {}
        self._kept_bytes = 0
        self._server: LoopbackServer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to answer, on a port that is free."""
        self._server = LoopbackServer(_Handler, self)

    def stop(self) -> None:
        """Drop every connection and stop; returns when nothing runs any more."""
        if self._server is not None:
            server, self._server = self._server, None
            server.stop()

    @property
    def url(self) -> str:
        """The address to give to a client: all before the prefix."""
        if self._server is None:
            raise UsageError("the logbook has not been started", fix="use it in a with statement")
        return f"http://{self._host}:{self._server.port}"

    # Who may ask

    def allow_token(self, token: str, user: str | None = None, *, expires: datetime | None = None) -> None:
        """Accept a bearer token, until the logbook's clock passes ``expires``."""
        with self._lock:
            self._needs_credential = True
            self._tokens[token] = _Token(user or self._user, expires)

    def revoke_token(self, token: str) -> None:
        """Accept a bearer token no more."""
        with self._lock:
            self._tokens.pop(token, None)

    def _identify(self, prefix: str, shown: str | None) -> tuple[str | None, Mapping[str, str]] | _Reply:
        """Return who asks and what is added to the answer; or the proxy's refusal."""
        if prefix == "ws":
            return self._everyone, {}
        if not self._needs_credential:
            return self._user, {}
        if prefix == "ws-jwt":
            return self._identify_bearer(shown)
        granted = self._gate(shown) if prefix == "ws-kerb" and self._gate else None
        if granted is None:
            return self._unauthorized(prefix)
        return granted.get("X-User", self._user).partition("@")[0], granted

    def _identify_bearer(self, shown: str | None) -> tuple[str, Mapping[str, str]] | _Reply:
        kind, _, text = (shown or "").partition(" ")
        with self._lock:
            token, now = self._tokens.get(text), self.now
        if kind == "Bearer" and token is not None and (token.expires is None or now < token.expires):
            return token.user, {}
        malformed = kind == "Bearer" and token is None and text.count(".") != 2
        return self._unauthorized("ws-jwt", "Invalid token" if malformed else "Unauthorized")

    def _unauthorized(self, prefix: str, words: str = "Unauthorized") -> _Reply:
        if prefix == "ws-jwt":
            return _Reply(401, _JSON, json.dumps({"error": words}).encode())
        scheme = "Negotiate" if prefix == "ws-kerb" else 'Basic realm="LCLS"'
        return _Reply(401, _HTML, b"<html><body>401 Unauthorized</body></html>", (("WWW-Authenticate", scheme),))

    # What it was asked

    @property
    def requests(self) -> list[Received]:
        """Every request so far, oldest first."""
        with self._lock:
            return list(self._log)

    @property
    def connections(self) -> int:
        """How many connections were opened so far."""
        return 0 if self._server is None else self._server.opened

    @property
    def traffic(self) -> Traffic:
        """The requests so far, summed up."""
        with self._lock:
            log, most = list(self._log), self._most_in_flight
        return Traffic(
            requests=len(log),
            sent_bytes=sum(one.sent_bytes for one in log),
            most_in_flight=most,
            by_route=Counter(one.route for one in log),
            by_experiment=Counter(one.experiment for one in log if one.experiment),
            by_status=Counter(one.status for one in log),
            users=frozenset(one.user for one in log if one.user),
            writes=tuple(one for one in log if one.writes),
        )

    def forget(self) -> None:
        """Empty the list of requests, and count the most in flight anew."""
        with self._lock:
            self._log.clear()
            self._most_in_flight = self._in_flight

    # How it fails

    def fail(
        self,
        times: int | None,
        kind: Fault | int,
        *,
        route: str = "",
        chance: float = 1.0,
        seconds: float = 0.0,
        retry_after: str | int | None = None,
    ) -> None:
        """Answer the next requests wrongly.

        A request that has no usable credential is refused as ever and is no "next request"; of the faults that fit
        a request, the one told first hits it.

        Parameters
        ----------
        times
            How many; None: until `recover`.
        kind
            - A status. ``502``, ``503``, ``504``, ``429`` and ``401`` come from the proxy; ``500``, ``403`` and
              ``404`` from the application, with text labelled as JSON.
            - ``redirect``: 302 to a login page; ``html``: the login page itself with status 200.
            - ``refused``: 200 with ``success: false``; ``empty``: 200 with nothing.
            - ``drop``: the connection is closed without an answer.
            - ``reset``: it is reset in the middle of the body. ``short-body``: it is closed there, although more was
              announced. ``truncated``: half of the body, announced honestly.
            - ``duplicates``: every third document of a list is there twice.
            - ``slow``: the right answer after ``seconds``.
        route
            Only requests whose experiment, slash and route have a match of this regular expression:
            ``/elog$``, ``^mfx.*/runs``, ``^/experiments$``.
        chance
            How probable it is that a request is hit. Whether the nth request of a route and an experiment is hit
            depends on ``n`` and the seed alone, not on how threads take turns.
        seconds
            How long the answer, whatever it is, waits before.
        retry_after
            Header of a status: seconds, or a date.
        """
        name = str(kind)
        if name not in get_args(Fault):
            raise UsageError(f"no fault is called {name!r}", fix=f"one of {', '.join(get_args(Fault))}")
        text = None if retry_after is None else str(retry_after)
        with self._lock:
            self._planned += 1
            pattern = re.compile(route)
            self._plans.append(_Plan(self._planned, name, times, pattern, chance, seconds, text))  # type: ignore[arg-type]

    def recover(self) -> None:
        """Fail no more."""
        with self._lock:
            self._plans.clear()

    def _fault(self, received: Received) -> _Plan | None:
        if received.status == 401:
            return None
        with self._lock:
            for plan in self._plans:
                if plan.left == 0 or not plan.route.search(received.place):
                    continue
                if plan.kind in _SPOILING and received.status != 200:
                    continue
                if self._is_hit(plan, received.place):
                    self.hits += 1
                    plan.left = None if plan.left is None else plan.left - 1
                    return plan
            return None

    def _is_hit(self, plan: _Plan, place: str) -> bool:
        plan.hits[place] += 1
        return random.Random(f"{self._seed} {plan.number} {place} {plan.hits[place]}").random() < plan.chance

    # What it holds in bulk

    def populate(
        self, experiments: int = 50, entries: int = 200, runs: int = 50, files: int = 200, **more: Any
    ) -> list[str]:
        """Fill the logbook, and return every new ``_id``: see `nightbeam.testing.elog_population.populate`."""
        return populate(self, experiments, entries, runs, files, **more)

    def stir(self, changes: int = 20, *, seed: int = 0) -> None:
        """Let users change things at random: see `nightbeam.testing.elog_population.stir`."""
        stir(self, changes, seed=seed)

    # What it answers

    @contextmanager
    def _answering(self) -> Iterator[None]:
        with self._lock:
            self._in_flight += 1
            self._most_in_flight = max(self._most_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1

    def _note(self, received: Received) -> None:
        with self._lock:
            self._log.append(received)

    def _answer(self, method: str, target: str, shown: str | None, cookie: str | None) -> tuple[Received, _Reply]:
        path, _, query = target.partition("?")
        address = self._address(unquote(path))
        args = dict(reversed(parse_qsl(query, keep_blank_values=True)))
        found = match(address.routes, address.call)
        writes = method not in ("GET", "HEAD") or "legacy_cutoff" in args or (found is not None and found[1].writes)
        writes = writes or address.area == "run_control"
        user, reply = None, self._proxy(address, cookie)
        if reply is None:
            who = self._identify(address.prefix, shown)
            if isinstance(who, _Reply):
                reply = who
            else:
                user, extra = who
                reply = self._application_answer(method, address, found, args, user, cookie)
                reply = replace(reply, headers=(*reply.headers, *extra.items()))
        route, size = found[0] if found else address.call, len(cookie or "")
        received = Received(
            method, address.prefix, address.experiment, route, args, reply.status, len(reply.body), user, shown, size,
            writes,
        )  # fmt: skip
        return received, reply

    def _address(self, path: str) -> _Address:
        pieces = path.removeprefix("/").split("/")
        match pieces:
            case ["login"]:
                return _Address("login", "", "", path)
            case ["ws-token" | "lgbk" | "devlgbk", *_]:
                return _Address("redirect", pieces[0], "", path)
            case [prefix, *_] if prefix not in _PREFIXES or not all(pieces):
                return _Address("", "", "", path)
            case [prefix, application, "lgbk", "ws", *call] if application == self._application:
                return _Address("site", prefix, "", "/".join(call))
            case [prefix, application, "lgbk", experiment, "ws", *call] if application == self._application:
                return _Address("experiment", prefix, experiment, "/".join(call))
            case [prefix, application, "run_control", experiment, "ws", *call] if application == self._application:
                return _Address("run_control", prefix, experiment, "/".join(call))
            case [prefix, "questionnaire", "ws", *call]:
                return _Address("questionnaire", prefix, "", "/".join(call))
        return _Address("", pieces[0], "", path)

    def _proxy(self, address: _Address, cookie: str | None) -> _Reply | None:
        """Return what the proxy answers by itself."""
        if len(cookie or "") > _MOST_COOKIE_BYTES:
            return _Reply(400, _HTML, b"<html><body>Request Header Or Cookie Too Large</body></html>")
        if address.area == "redirect":
            return self._to_login()
        if address.area == "login":
            return _Reply(200, _HTML, _PAGE)
        return None if address.prefix else _Reply(404, _HTML, b"<html><body>404 Not Found</body></html>")

    def _to_login(self) -> _Reply:
        # Another host, as far as a client can tell.
        assert self._server is not None
        host = "localhost" if self._host == "127.0.0.1" else "127.0.0.1"
        return _Reply(302, _HTML, b"", (("Location", f"http://{host}:{self._server.port}/login"),))

    def _application_answer(
        self,
        method: str,
        address: _Address,
        found: tuple[str, Route, Mapping[str, str]] | None,
        args: Mapping[str, str],
        user: str | None,
        cookie: str | None,
    ) -> _Reply:
        if found is None:
            return _sentence(404, "<h1>Not Found</h1>")
        if method not in ("GET", "HEAD"):
            return _sentence(405, "<h1>Method Not Allowed</h1>")
        _, route, parts = found
        if user is None and not route.open:
            return _sentence(403, "<h1>Forbidden</h1>")
        with self._lock:
            held = self._held.get(address.experiment)
            if address.experiment and (refusal := self._refusal(address.experiment, held, route, user)):
                return refusal
            ask = Ask(self, held, args, parts, user, self._listed, self._slack, self._unknown_proposal)
            reply = self._outcome(route, address.call, ask)
        if address.experiment and not route.open:
            return replace(reply, headers=_roles(cookie, address.experiment))
        return reply

    def _refusal(self, experiment: str, held: Holding | None, route: Route, user: str | None) -> _Reply | None:
        if " " in experiment:
            return _sentence(500, "Internal Server Error: invalid database name")
        if held is None and self._gone.get(experiment, 0) > 0:
            self._gone[experiment] -= 1
            return _sentence(500, "Internal Server Error: the experiment has just gone")
        if held is None:
            return _sentence(404, f"Cannot find the experiment {experiment}")
        if not route.open and not held.readable_by(user or ""):
            return _sentence(403, "<h1>Forbidden</h1>")
        return None

    def _outcome(self, route: Route, call: str, ask: Ask) -> _Reply:
        key = (ask.held.version, call, *sorted(ask.args.items())) if ask.held and route.kept else None
        if key in self._kept:
            return _Reply(200, _JSON, self._kept[key])
        try:
            value = route.answer(ask)
        except NoSuccessError as error:
            return _refused(str(error))
        except NotFoundError as error:
            return _sentence(404, str(error))
        except SentenceError as error:
            return _sentence(500, str(error))
        except Exception as error:  # as the service does
            return _sentence(500, f"Internal Server Error: {error!r}")
        if isinstance(value, Blob):
            return _Reply(200, value.type, value.data)
        body = json.dumps(value if route.bare else {"success": True, "value": value}).encode()
        if key is not None:
            self._keep(key, body)
        return _Reply(200, _JSON, body)

    def _keep(self, key: tuple[Any, ...], body: bytes) -> None:
        if self._kept_bytes + len(body) > _MOST_KEPT_BYTES:
            self._kept.clear()
            self._kept_bytes = 0
        self._kept[key] = body
        self._kept_bytes += len(body)

    def _listed(self) -> list[tuple[Document, bool]]:
        now = self.now
        if self._list is None or not now - self._list[0] < self._cache:
            held = list(self._held.values())
            self._summaries = {one.version: self._summaries.get(one.version) or summarise(one) for one in held}
            self._list = now, [(self._summaries[one.version], one.standing) for one in held]
        return self._list[1]


def _sentence(status: int, words: str) -> _Reply:
    """Return an error of the application: no JSON, whatever its label says."""
    return _Reply(status, _LIES, words.encode())


def _refused(words: str) -> _Reply:
    return _Reply(200, _JSON, json.dumps({"success": False, "errormsg": words, "value": None}).encode())


def _roles(cookie: str | None, experiment: str) -> _Headers:
    """Return the session cookie with an experiment more in it; nothing where it was there already."""
    try:
        jar = SimpleCookie(cookie or "")
        packed = base64.urlsafe_b64decode(jar["session"].value) if "session" in jar else zlib.compress(b"[]")
        known = json.loads(zlib.decompress(packed))
    except (CookieError, ValueError, zlib.error):
        known = []
    if experiment in known:
        return ()
    value = base64.urlsafe_b64encode(zlib.compress(json.dumps([*known, experiment]).encode())).decode()
    return (("Set-Cookie", f"session={value}; HttpOnly; Path=/"),)


def _twice(body: bytes) -> bytes:
    """Return an answer in which every third document of a list is there twice."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body
    value = answer.get("value") if isinstance(answer, dict) else None
    if not isinstance(value, list):
        return body
    value = [one for n, document in enumerate(value) for one in [document] * (2 if n % 3 == 0 else 1)]
    return json.dumps({**answer, "value": value}).encode()


class _Handler(LoopbackHandler):
    def answer(self) -> None:
        logbook: FakeLogbook = self.server.owner
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with logbook._answering():
            begin = time.monotonic()
            cookie, shown = self.headers.get("Cookie"), self.headers.get("Authorization")
            received, reply = logbook._answer(self.command, self.path, shown, cookie)
            plan = logbook._fault(received)
            self.server.stopping.wait(logbook.latency_s + (plan.seconds if plan else 0) - (time.monotonic() - begin))
        # In flight until the answer starts: a client that has all of it may ask again before this thread goes on.
        if plan is None or plan.kind == "slow":
            self._send(received, reply)
        elif plan.kind in ("drop", "reset", "short-body"):
            self._cut(received, reply, plan.kind)
        else:
            self._send(received, self._spoilt(plan, received, reply))

    def _spoilt(self, plan: _Plan, received: Received, reply: _Reply) -> _Reply:
        logbook: FakeLogbook = self.server.owner
        if plan.kind == "truncated":
            return replace(reply, body=reply.body[: len(reply.body) // 2])
        if plan.kind == "duplicates":
            return replace(reply, body=_twice(reply.body))
        if plan.kind == "redirect":
            return logbook._to_login()
        if plan.kind == "401":
            return logbook._unauthorized(received.prefix)
        if plan.kind in ("html", "empty"):
            return _Reply(200, _HTML if plan.kind == "html" else _JSON, _PAGE if plan.kind == "html" else b"")
        extra = () if plan.retry_after is None else (("Retry-After", plan.retry_after),)
        if plan.kind == "refused":
            return replace(_refused("as told"), headers=reply.headers)
        if plan.kind in _FROM_BEHIND:
            return replace(_sentence(int(plan.kind), "as told"), headers=(*reply.headers, *extra))
        return _Reply(int(plan.kind), _HTML, b"<html><body>as told</body></html>", extra)

    def _cut(self, received: Received, reply: _Reply, kind: Fault) -> None:
        half = b"" if kind == "drop" else reply.body[: len(reply.body) // 2]
        self.server.owner._note(replace(received, status=0, sent_bytes=len(half)))
        if kind != "drop":
            self._head(reply)
            self.wfile.write(half)
        self.hang_up(reset=kind == "reset")

    def _send(self, received: Received, reply: _Reply) -> None:
        # Noted first: a client that has its answer may look at the list at once.
        self.server.owner._note(replace(received, status=reply.status, sent_bytes=len(reply.body)))
        self._head(reply)
        if self.command != "HEAD":
            self.wfile.write(reply.body)
        self.wfile.flush()

    def _head(self, reply: _Reply) -> None:
        self.send_response(reply.status)
        size = ("Content-Length", str(len(reply.body)))
        for name, value in (("Content-Type", reply.type), *reply.headers, size):
            self.send_header(name, value)
        self.end_headers()
