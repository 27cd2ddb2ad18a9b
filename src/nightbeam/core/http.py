"""What clients of web services have in common: sessions that keep nothing, and answers that end in time."""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from nightbeam.core.errors import ConfigError, InputError, NightbeamError

__all__ = [
    "Cutter",
    "TransientError",
    "content_length",
    "is_loopback",
    "open_session",
    "printable",
    "read_body",
    "reason",
    "service_address",
    "transport_errors",
]

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_CHUNK_BYTES: Final = 1 << 20
_MOST_DIGITS: Final = 18
_TAG: Final = re.compile(r"<[^<>]{0,200}>")
_WHO_ANSWERS: Final = "check the address; a proxy or a login page may be answering in its place"


class TransientError(Exception):
    """One try failed in a way that another may not.

    Attributes
    ----------
    status
        What the service answered; None where it gave no answer, or half of one.
    retry_after
        When it wants to be asked again, in its own words.
    """

    def __init__(self, what: str, *, status: int | None = None, retry_after: str | None = None) -> None:
        super().__init__(what)
        self.status, self.retry_after = status, retry_after


# Addresses and words


def service_address(text: str) -> str:
    """Return the address of a service without its last slash.

    Raises
    ------
    ConfigError
        If it is no address of the web, or has more in it than a host, a port and a path.
    """
    address = text.strip().rstrip("/")
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    plain = address.isascii() and address.isprintable() and " " not in address
    if not good or not plain or "@" in parts.netloc or "?" in address or "#" in address:
        # A name and password in it are not shown.
        shown = printable(re.sub(r"//[^/]*@", "//...@", address))
        raise ConfigError(f"{shown!r} is no address of a service", fix="write it https://host, without name or query")
    return address


def is_loopback(address: str) -> bool:
    """Whether an address is on this machine, where nobody listens in."""
    return urlsplit(address).hostname in _LOOPBACK


def printable(text: str | bytes, most: int = 200) -> str:
    r"""Return what somebody else said so that it can be shown: one line, no markup, no control characters, short."""
    said = text[: 20 * most]
    words = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    line = " ".join(_TAG.sub(" ", words).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
    return line if len(line) <= most else line[: most - 1] + "…"


def reason(error: BaseException) -> str:
    """Return what went wrong at the bottom: each library wraps it once more, and quotes the whole address."""
    for _ in range(8):
        inner = [e for e in (getattr(error, "reason", None), *error.args) if isinstance(e, BaseException)]
        if not inner:
            break
        error = inner[0]
    return f"{type(error).__name__}: {printable(str(error))}"


@contextmanager
def transport_errors(place: str) -> Iterator[None]:
    """Put what goes wrong between two computers into our words."""
    try:
        yield
    except (NightbeamError, TransientError):
        raise
    except requests.exceptions.RequestException as error:
        raise _request_error(place, error) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        # Reading the body goes past requests.
        raise TransientError(reason(error)) from error
    except (HTTPException, ValueError, LookupError, OverflowError) as error:
        # What the libraries below stumble over is nothing that a service may say.
        raise InputError(f"{place} answered what is not HTTP ({reason(error)})", fix=_WHO_ANSWERS) from error


def _request_error(place: str, error: requests.exceptions.RequestException) -> Exception:
    if _untrusted(error):
        return ConfigError(
            f"{place} cannot prove who it is: {reason(error)}",
            fix="install the site's certificate (REQUESTS_CA_BUNDLE)",
        )
    passing = (
        requests.exceptions.ConnectionError,  # of which SSLError is one: a handshake that broke off
        requests.exceptions.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    if isinstance(error, passing):
        return TransientError(reason(error))
    return InputError(f"{place} cannot be asked: {reason(error)}", fix="check the service's address")


def _untrusted(error: BaseException) -> bool:
    """Whether a certificate was turned down; every other error of TLS may pass."""
    causes: list[BaseException] = [error]
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        inner = (getattr(cause, "reason", None), cause.__cause__, cause.__context__, *cause.args)
        causes += [e for e in inner if isinstance(e, BaseException) and e not in causes]
    return False


# The body of an answer


def content_length(response: requests.Response) -> int | None:
    """Return how long the service says that its answer is; None where it does not, or says nonsense."""
    text = response.headers.get("Content-Length", "")
    if not text.isascii() or not text.isdigit():
        return None
    return int(text[:_MOST_DIGITS])  # a longer number is too large either way, and int() refuses thousands of digits


def read_body(response: requests.Response, place: str, *, most_bytes: int) -> bytearray:
    """Return the whole body, as it was sent, of a response that was asked for with ``stream=True``.

    Raises
    ------
    TransientError
        If it broke off before the length that was announced.
    InputError
        If it is longer than ``most_bytes``, or in a coding that was not asked for.
    """
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise InputError(f"{place} answered in the coding {printable(coding, 40)!r}, which was not asked for")
    said, body = content_length(response), bytearray()
    if said is not None and said > most_bytes:
        raise InputError(f"{place} answers {said} bytes where at most {most_bytes} are read")
    while said is None or len(body) < said:
        # As it comes, so that a cut is seen; but the last byte in urllib3's own way, which keeps the connection.
        last = said is not None and said - len(body) == 1
        wanted = min(_CHUNK_BYTES, most_bytes + 1 - len(body) if said is None else said - 1 - len(body))
        chunk = response.raw.read(1) if last else response.raw.read1(wanted, decode_content=False)
        if not chunk:
            break
        body += chunk
        if len(body) > most_bytes:
            raise InputError(f"{place} answers more than the {most_bytes} bytes that are read at most")
    if said is not None and len(body) < said:
        raise TransientError(f"the answer broke off after {len(body)} of {said} bytes")
    if said == 0:
        response.raw.read(1)
    return body


# Time

#: The cutter of the try that a thread is at.
_trying = threading.local()


class Cutter:
    """Cuts the connection of one try at its deadline; a context manager around asking and reading.

    A socket's timeout begins anew with every byte, so a service that sends one now and then (of a handshake, of
    headers, of the length of a chunk) would hold us for as long as it likes. Connections are those of sessions that
    `open_session` made, in the thread of the ``with`` statement.

    Raises
    ------
    TransientError
        On leaving, if it had to cut.
    """

    def __init__(self, seconds: float) -> None:
        self._late, self._line, self._lock = False, -1, threading.Lock()
        self._timer = threading.Timer(min(max(seconds, 0.001), threading.TIMEOUT_MAX), self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        _trying.cutter = self
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _trying.cutter = None
        self._timer.cancel()
        with self._lock:
            self._let_go()
            # Whatever was read until then: where it was cut it may look whole.
            if self._late and (error is None or isinstance(error, Exception)):
                raise TransientError("the answer was not complete at the deadline") from error

    def hold(self, connection: socket.socket) -> None:
        """Take the connection that is used from now on."""
        with self._lock:
            self._let_go()
            # One of our own: TLS takes the socket apart, and a closed one's number may be another file's.
            self._line = os.dup(connection.fileno())
            if self._late:
                self._shut()

    def _let_go(self) -> None:
        if self._line >= 0:
            os.close(self._line)
        self._line = -1

    def _cut(self) -> None:
        with self._lock:
            self._late = True
            if self._line >= 0:
                self._shut()

    def _shut(self) -> None:
        line = socket.socket(fileno=self._line)
        try:
            line.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was faster
        finally:
            line.detach()


def _held(connection: socket.socket) -> socket.socket:
    cutter = getattr(_trying, "cutter", None)
    if cutter is not None:
        cutter.hold(connection)
    return connection


class _PlainConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _held(super()._new_conn())

    def request(self, *arguments: Any, **options: Any) -> None:
        if self.sock is not None:
            _held(self.sock)
        super().request(*arguments, **options)


class _TlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _held(super()._new_conn())

    def request(self, *arguments: Any, **options: Any) -> None:
        if self.sock is not None:
            _held(self.sock)
        super().request(*arguments, **options)


class _Adapter(HTTPAdapter):
    """Makes connections, to proxies too, that the cutter of a try gets hold of."""

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*arguments, **options)
        ours = {HTTPConnection: _PlainConnection, HTTPSConnection: _TlsConnection}
        pool.ConnectionCls = ours.get(pool.ConnectionCls, pool.ConnectionCls)
        return pool


# Sessions


class _Session(requests.Session):
    """A session that leaves redirects to us; its own way reads their bodies to the end, however far that is."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002
        return None


def open_session(address: str, *, connections: int = 1) -> requests.Session:
    """Return a session for one service, which follows no redirect, keeps no cookie and repeats nothing by itself.

    Parameters
    ----------
    address
        Of the service. Proxies of the environment are used unless it is on this machine.
    connections
        How many are kept open.

    Notes
    -----
    ``.netrc`` is read by `requests` for every request without an ``auth`` object: give each one.
    """
    session = _Session()
    session.trust_env = not is_loopback(address)
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers["User-Agent"] = "nightbeam"
    session.headers["Accept-Encoding"] = "identity"  # bytes are counted, and lengths compared
    adapter = _Adapter(pool_connections=1, pool_maxsize=connections, max_retries=0)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session
