"""A calibration service on this machine: the real one's addresses, filters and answers, and its ways to fail.

It shares no code with the client, so that a mistake in one of them shows.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args
from urllib.parse import parse_qsl, unquote

import numpy as np

from nightbeam.core.errors import UsageError

__all__ = ["FakeCalibService", "Fault", "Gate", "Received"]

Fault = Literal[
    "500", "502", "503", "401", "403", "404", "429", "timeout", "html", "short-body", "long-body", "cut-body",
    "no-length", "bad-shape", "connection-reset", "redirect", "trickle", "trickle-head", "gone",
]  # fmt: skip

#: Given the header ``Authorization``, returns what is added to the answer's headers, or None for "who asks?".
Gate = Callable[[str | None], Mapping[str, str] | None]

_ROOT: Final = "/calib_ws"
_HOSTILE: Final = "__import__('os').system('touch /tmp/nightbeam-was-here')"
_PAGE: Final = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@dataclass(frozen=True, slots=True)
class Received:
    """One request that came in.

    Attributes
    ----------
    path
        Decoded, below the service's base: ``cdb_tmoc00118/epix10ka_000001``.
    query
        The filter, from the address or the body; None without one.
    in_body
        Whether the filter was in the body.
    status
        What was answered; 0 where the connection was dropped.
    sent_bytes
        Length of the answer's body.
    authorization
        The header, as it came.
    """

    path: str
    query: Mapping[str, Any] | None
    in_body: bool
    status: int
    sent_bytes: int
    authorization: str | None

    @property
    def is_data(self) -> bool:
        """Whether data were asked for, and not documents."""
        return "/gridfs/" in self.path


@dataclass
class _Plan:
    kind: Fault
    left: int | None
    path: re.Pattern[str]
    retry_after: str | None
    to: str | None


@dataclass(frozen=True, slots=True)
class _Question:
    path: str
    query: Mapping[str, Any] | None = None
    in_body: bool = False


class _BadRequestError(Exception):
    """The question is none that the service understands."""


class FakeCalibService:
    """A calibration service on 127.0.0.1, as a context manager.

    Parameters
    ----------
    token
        Where given, requests without it as a bearer token are answered 401, and filters must be in the body.
    hang_s
        How long a request is left without an answer by the fault ``timeout``.
    drip_s
        How long the faults ``trickle`` wait after each byte.
    gate
        Lets requests in by their header ``Authorization`` (`nightbeam.testing.kerberos.Acceptor`).

    Examples
    --------
    >>> with FakeCalibService() as service:  # doctest: +SKIP
    ...     service.deploy("tmoc00118", "epix_detnum1234", "pedestals", np.zeros((3, 6), "f4"), run=1)
    ...     service.fail(2, "503")
    ...     client = CalibService(service.url)
    """

    def __init__(
        self, *, token: str | None = None, hang_s: float = 30.0, drip_s: float = 0.2, gate: Gate | None = None
    ) -> None:
        self._token, self._hang_s, self._drip_s, self._gate = token, hang_s, drip_s, gate
        self._databases: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self._data: dict[tuple[str, str], bytes | memoryview] = {}
        self._plans: list[_Plan] = []
        self._log: list[Received] = []
        self._lock = threading.RLock()
        self._made = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to answer, on a port that is free."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.service = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Drop every connection and stop; returns when nothing runs any more."""
        if self._server is None or self._thread is None:
            return
        server, self._server = self._server, None
        server.stopping.set()
        server.shutdown()
        server.drop_all()
        server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The address to give to a client."""
        if self._server is None:
            raise UsageError("the service has not been started", fix="use it in a with statement")
        return f"http://127.0.0.1:{self._server.server_address[1]}{_ROOT}"

    # What it holds

    def add_detector(self, unique_id: str, short: str | None = None) -> str:
        """Give a detector a short name, by default ``{type}_{number:06d}``, and return it."""
        kind = unique_id.partition("_")[0]
        with self._lock:
            table = self._databases.setdefault("cdb_detnames", {}).setdefault(kind, [])
            number = len(table) + 1
            short = short or f"{kind}_{number:06d}"
            table.append(
                {
                    "_id": self._new_id(None), "long": unique_id, "short": short, "seqnumber": number,
                    "uid": "nightbeam", "host": "localhost", "cwd": "/", "time_sec": 1_700_000_000 + number,
                    "time_stamp": "2023-11-14T22:13:20-0000",
                }
            )  # fmt: skip
        return short

    def deploy(
        self,
        experiment: str | None,
        unique_id: str,
        ctype: str,
        data: Any,
        *,
        run: int,
        run_end: int | str = "end",
        created: int | None = None,
        detector_too: bool = True,
        changes: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Store constants and the document that describes them, and return the document.

        Parameters
        ----------
        experiment
            None stores them in the detector's database alone.
        unique_id
            Of the detector; it gets a short name if it has none.
        ctype, run, run_end
            As in the document.
        data
            An array, a text, a dict (stored as it is printed), or bytes (stored as a document of type ``any``).
        created
            Unix time that goes into the id; default now.
        detector_too
            Whether a copy is put into the detector's database, as the original's command does.
        changes
            Keys of the document to be overwritten; a value of None removes the key.

        Returns
        -------
        dict
            The experiment's document; the detector's where there is no experiment.
        """
        short = self.short_name(unique_id) or self.add_detector(unique_id)
        body, facts = _describe(data)
        names = {"detector": short, "shortname": short, "longname": unique_id, "dettype": unique_id.partition("_")[0]}
        document = {
            **names, "detname": names["dettype"], "experiment": experiment or short, "run": run, "run_end": run_end,
            "ctype": ctype, **facts, "version": "V0", "comment": "", "uid": "nightbeam", "host": "localhost",
            "cwd": "/", "run_orig": run, "extpars": "{}", "iofname": "", "id_doc_exp": 0, "id_data_exp": 0,
        }  # fmt: skip
        targets = [f"cdb_{experiment}"] if experiment else []
        targets += [f"cdb_{short}"] if detector_too or not experiment else []
        with self._lock:
            stored = [self._store(database, short, document, body, created, changes or {}) for database in targets]
            if len(stored) == 2:
                stored[1].update(id_doc_exp=stored[0]["_id"], id_data_exp=stored[0]["id_data"])
        return dict(stored[0])

    def _store(
        self,
        database: str,
        collection: str,
        document: Mapping[str, Any],
        body: bytes | memoryview,
        created: int | None,
        changes: Mapping[str, Any],
    ) -> dict[str, Any]:
        moment = int(time.time()) if created is None else created
        stamps = {"time_sec": moment, "time_stamp": time.strftime("%Y-%m-%dT%H:%M:%S-0000", time.gmtime(moment))}
        full = {"_id": self._new_id(moment), "id_data": self._new_id(moment), **document, **stamps, **changes}
        full = {key: value for key, value in full.items() if value is not None}
        self._databases.setdefault(database, {}).setdefault(collection, []).append(full)
        self._data[database, str(full.get("id_data"))] = body
        return full

    def _new_id(self, moment: int | None) -> str:
        self._made += 1
        return f"{1_700_000_000 if moment is None else moment:08x}{self._made:016x}"

    def short_name(self, unique_id: str) -> str | None:
        """Return the short name of a detector, None where it has none."""
        with self._lock:
            table = self._databases.get("cdb_detnames", {}).get(unique_id.partition("_")[0], [])
            return next((str(d["short"]) for d in table if d["long"] == unique_id), None)

    def remove(self, document: Mapping[str, Any]) -> None:
        """Remove a document and its data, wherever they are."""
        with self._lock:
            for name, database in self._databases.items():
                for documents in database.values():
                    documents[:] = [d for d in documents if d["_id"] != document["_id"]]
                self._data.pop((name, str(document.get("id_data"))), None)

    def remove_data(self, document: Mapping[str, Any]) -> None:
        """Remove the data of a document that stays."""
        with self._lock:
            for key in [key for key in self._data if key[1] == document["id_data"]]:
                del self._data[key]

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

    def forget(self) -> None:
        """Empty the list of requests."""
        with self._lock:
            self._log.clear()

    # How it fails

    def fail(
        self,
        times: int | None,
        kind: Fault | int,
        *,
        path: str = "",
        retry_after: str | int | None = None,
        to: str | None = None,
    ) -> None:
        """Answer the next requests wrongly.

        Parameters
        ----------
        times
            How many; None: until `recover`.
        kind
            - A status: ``503``, ``500``, ``502``, ``401``, ``403``, ``404``, ``429``.
            - ``timeout``: no answer at all; ``connection-reset``: dropped in the middle of the answer.
            - ``html``: a web page with status 200.
            - ``short-body``, ``long-body``: another number of bytes, announced honestly; ``cut-body``: the
              connection is closed before all announced bytes are sent.
            - ``no-length``: the right answer, but its end is where the connection closes.
            - ``bad-shape``: documents whose ``data_shape`` is code.
            - ``redirect``: status 302 to ``to``.
            - ``trickle``: the right answer, but byte after byte; ``trickle-head``: its headers too.
            - ``gone``: 404 as a proxy answers that has lost the service, whatever is asked.
        path
            Only requests whose path has a match of this regular expression, e.g. ``/gridfs/``.
        retry_after
            Header of a status: seconds, or a date.
        to
            Where a redirect points, e.g. ``/calib_ws/cdb_x``; by default to where it came from.
        """
        name = str(kind)
        if name not in get_args(Fault):
            raise UsageError(f"no fault is called {name!r}", fix=f"one of {', '.join(get_args(Fault))}")
        text = None if retry_after is None else str(retry_after)
        with self._lock:
            self._plans.append(_Plan(name, times, re.compile(path), text, to))  # type: ignore[arg-type]

    def recover(self) -> None:
        """Fail no more."""
        with self._lock:
            self._plans.clear()

    def _fault(self, path: str) -> _Plan | None:
        with self._lock:
            for plan in self._plans:
                if plan.path.search(path) and plan.left != 0:
                    plan.left = None if plan.left is None else plan.left - 1
                    return plan
            return None

    def _note(self, received: Received) -> None:
        with self._lock:
            self._log.append(received)

    # What it answers

    def _answer(self, path: str, query: Mapping[str, Any] | None) -> tuple[int, str, bytes | memoryview]:
        pieces = path.split("/") if path else []
        with self._lock:
            if len(pieces) == 3 and pieces[1] == "gridfs":
                body = self._data.get((pieces[0], pieces[2]))
                return (404, "text/plain", b"no such data") if body is None else (200, "application/octet-stream", body)
            found = self._documents(pieces, query)
        if found is None:
            return 404, "application/json", b"null"
        return 200, "application/json", json.dumps(found).encode()

    def _documents(self, pieces: list[str], query: Mapping[str, Any] | None) -> Any:
        if not pieces:
            return sorted(self._databases)
        database = self._databases.get(pieces[0], {})
        if len(pieces) == 1:
            return sorted(database)
        documents = database.get(pieces[1], [])
        if len(pieces) == 2:
            return [d for d in documents if _matches(d, query or {})]
        return next((d for d in documents if len(pieces) == 3 and d["_id"] == pieces[2]), None)


def _describe(data: Any) -> tuple[bytes | memoryview, dict[str, Any]]:
    """Return the bytes to be stored and the keys that describe them."""
    if isinstance(data, np.ndarray):
        array = np.ascontiguousarray(data).reshape(data.shape)
        facts = {
            "dtype": "ndarray", "data_type": "ndarray", "data_dtype": str(array.dtype), "data_shape": str(array.shape),
            "data_size": str(array.size), "data_ndim": str(array.ndim),
        }  # fmt: skip
        return array.reshape(-1).view(np.uint8).data, facts
    if isinstance(data, bytes):
        return data, {"dtype": "pkl", "data_type": "any", "data_size": str(len(data))}
    text = data if isinstance(data, str) else repr(data)
    return text.encode(), {"dtype": "str", "data_type": "str", "data_size": str(len(text)), "data_ndim": "0"}


def _matches(document: Mapping[str, Any], query: Mapping[str, Any]) -> bool:
    return all(_fits(document.get(key), wanted) for key, wanted in query.items())


_COMPARE: Final[Mapping[str, Any]] = {
    "$lte": lambda a, b: a <= b,
    "$lt": lambda a, b: a < b,
    "$gte": lambda a, b: a >= b,
    "$gt": lambda a, b: a > b,
}


_OPERATORS: Final = frozenset({*_COMPARE, "$in", "$ne", "$exists"})


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) and (found := re.fullmatch(r"ObjectId\(([0-9a-f]{24})\)", wanted)):
        return bool(value == found[1])
    if not isinstance(wanted, dict):
        return type(value) is type(wanted) and bool(value == wanted)
    for name, limit in wanted.items():
        if name == "$in":
            if value not in limit:
                return False
        elif name == "$ne":
            if value == limit:
                return False
        elif name == "$exists":
            if (value is not None) != bool(limit):
                return False
        # MongoDB compares numbers with numbers alone.
        elif not (_is_number(value) and _is_number(limit) and _COMPARE[name](value, limit)):
            return False
    return True


def _below_root(place: str) -> str | None:
    """Return the decoded path below the base; None where it is not below it, or has an empty piece."""
    if place in (_ROOT, f"{_ROOT}/"):
        return ""
    pieces = [unquote(piece) for piece in place.removeprefix(f"{_ROOT}/").split("/")]
    if not place.startswith(f"{_ROOT}/") or any(piece in ("", ".", "..") or "/" in piece for piece in pieces):
        return None
    return "/".join(pieces)


def _filter_of(parameters: str, body: bytes, *, only_body: bool) -> Mapping[str, Any] | None:
    """Return the filter of a question, as strictly as a service may read it; None without one."""
    given = parse_qsl(parameters, keep_blank_values=True)
    if [name for name, _ in given] not in ([], ["query_string"]):
        raise _BadRequestError("there is one parameter, query_string")
    if given and (only_body or body):
        raise _BadRequestError("the filter belongs in the body")
    text = body.decode("utf-8", "replace") if body else given[0][1] if given else None
    if text is None:
        return None
    try:
        query = json.loads(text)
    except ValueError as error:
        raise _BadRequestError("the filter is not JSON") from error
    if not isinstance(query, dict):
        raise _BadRequestError("the filter is no object")
    for key, wanted in query.items():
        if key.startswith("$") or not _is_condition(wanted):
            raise _BadRequestError(f"the filter has an unknown operator at {key}")
    return query


def _is_condition(wanted: Any) -> bool:
    if not isinstance(wanted, dict):
        return True
    return all(name in _OPERATORS and isinstance(limit, list) == (name == "$in") for name, limit in wanted.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for all of them
    allow_reuse_address = True
    request_queue_size = 64
    service: FakeCalibService

    def __init__(self, *arguments: Any) -> None:
        self.stopping = threading.Event()
        self.open: set[socket.socket] = set()
        self.opened = 0
        self.guard = threading.Lock()
        super().__init__(*arguments)

    def drop_all(self) -> None:
        """Wake every thread that waits for a next request."""
        with self.guard:
            still = list(self.open)
        for connection in still:
            _drop(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients that hang up are what this service is for."""


def _drop(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the client was faster


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.guard:
            self.server.open.add(self.connection)
            self.server.opened += 1
        if self.server.stopping.is_set():
            _drop(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            with self.server.guard:
                self.server.open.discard(self.connection)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing: `FakeCalibService.requests` has it all."""

    def do_GET(self) -> None:
        self._granted: Mapping[str, str] = {}
        place, _, parameters = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = _below_root(place)
        if path is None:
            self._send(_Question(place, in_body=bool(body)), 404, "text/html", _PAGE)
            return
        query, wrong = None, None
        try:
            query = _filter_of(parameters, body, only_body=self._token is not None)
        except _BadRequestError as error:
            wrong = str(error)
        self._reply(_Question(path, query, bool(body)), wrong)

    @property
    def _token(self) -> str | None:
        return self.server.service._token

    def _reply(self, asked: _Question, wrong: str | None) -> None:
        service = self.server.service
        plan = service._fault(asked.path)
        if plan is None and not self._allowed():
            self._send(asked, 401, "text/plain", b"who asks?", (("WWW-Authenticate", "Negotiate"),))
        elif wrong is not None:
            self._send(asked, 400, "text/plain", wrong.encode())
        elif plan is None:
            self._send(asked, *service._answer(asked.path, asked.query))
        elif plan.kind.isdigit():
            extra = () if plan.retry_after is None else (("Retry-After", plan.retry_after),)
            self._send(asked, int(plan.kind), "text/plain", b"as told", extra)
        elif plan.kind == "html":
            self._send(asked, 200, "text/html; charset=utf-8", _PAGE)
        elif plan.kind == "gone":
            self._send(asked, 404, "text/plain", b"default backend - 404")
        elif plan.kind == "redirect":
            self._send(asked, 302, "text/plain", b"", (("Location", plan.to or self.path),))
        else:
            self._spoil(plan.kind, asked)

    def _allowed(self) -> bool:
        shown, gate = self.headers.get("Authorization"), self.server.service._gate
        if gate is not None:
            granted = gate(shown)
            self._granted = granted or {}
            return granted is not None
        return self._token is None or shown == f"Bearer {self._token}"

    def _spoil(self, kind: Fault, asked: _Question) -> None:
        service = self.server.service
        if kind == "timeout":
            self._note(asked, 0, 0)
            self.server.stopping.wait(service._hang_s)
            self.close_connection = True
            return
        status, content, body = service._answer(asked.path, asked.query)
        if kind == "short-body":
            body = memoryview(body)[: len(body) // 2]
        elif kind == "long-body":
            body = bytes(body) + b"\0" * 7
        elif kind == "bad-shape" and content == "application/json" and status == 200:
            documents = [{**d, "data_shape": _HOSTILE} if isinstance(d, dict) else d for d in json.loads(bytes(body))]
            body = json.dumps(documents).encode()
        if kind == "no-length":
            self.close_connection = True
            self._send(asked, status, content, body, (("Connection", "close"),), length=False)
        elif kind in ("cut-body", "connection-reset"):
            self._cut(asked, body, reset=kind == "connection-reset")
        elif kind in ("trickle", "trickle-head"):
            self._trickle(asked, content, body, at_once=0 if kind == "trickle-head" else None)
        else:
            self._send(asked, status, content, body)

    def _cut(self, asked: _Question, body: bytes | memoryview, *, reset: bool) -> None:
        half = memoryview(body)[: len(body) // 2]
        self._note(asked, 0, len(half))
        self._head(200, "application/octet-stream", (("Content-Length", str(len(body))),))
        self.connection.sendall(half)
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # shutdown_request would say goodbye first; closing now sends a reset.
            self.rfile.close()
            self.wfile.close()
            self.connection.close()
        self.close_connection = True

    def _trickle(self, asked: _Question, content: str, body: bytes | memoryview, *, at_once: int | None) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        at_once = len(head) if at_once is None else at_once
        self._note(asked, 200, len(body))
        self.connection.sendall(head[:at_once])
        for byte in (head + bytes(body))[at_once:]:
            self.connection.sendall(bytes((byte,)))
            if self.server.stopping.wait(self.server.service._drip_s):
                break
        self.close_connection = True

    def _head(self, status: int, content: str, extra: Iterable[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", content), *extra):
            self.send_header(name, value)
        self.end_headers()

    def _send(
        self,
        asked: _Question,
        status: int,
        content: str,
        body: bytes | memoryview,
        extra: Iterable[tuple[str, str]] = (),
        *,
        length: bool = True,
    ) -> None:
        # Noted first: a client that has its answer may look at the list at once.
        self._note(asked, status, len(body))
        size = [("Content-Length", str(len(body)))] if length else []
        self._head(status, content, [*extra, *self._granted.items(), *size])
        self.connection.sendall(body)

    def _note(self, asked: _Question, status: int, sent_bytes: int) -> None:
        authorization = self.headers.get("Authorization")
        received = Received(asked.path, asked.query, asked.in_body, status, sent_bytes, authorization)
        self.server.service._note(received)
