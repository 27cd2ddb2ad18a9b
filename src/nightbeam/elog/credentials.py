"""Who asks the logbook: a ticket, a token, or nobody."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import stat
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import requests

from nightbeam.core.errors import AuthError, ConfigError
from nightbeam.core.http import TransientError, reason

__all__ = [
    "Auth",
    "AuthMethod",
    "BearerAuth",
    "CredentialError",
    "KerberosAuth",
    "NoAuth",
    "auth_from",
    "ticket_seconds",
]

_MOST_TOKEN_BYTES: Final = 1 << 16
_GRACE_S: Final = 0.2
_BEARER_REMEDY: Final = (
    "log in with the facility's login, which writes ~/.s3df-access-token, or name the token's file (S3DF_TOKEN_FILE)"
)

#: The names of the ways to say who asks.
AuthMethod = Literal["kerberos", "bearer", "none"]

_Signer = Callable[[requests.PreparedRequest], requests.PreparedRequest]


class CredentialError(AuthError):
    """The credential itself is missing, expired or refused, so that a fresh one may help."""


class Auth(Protocol):
    """How a client says who it is. One object may serve many threads."""

    @property
    def prefix(self) -> str:
        """Where the proxy in front of the service asks for it: the first part of addresses."""

    @property
    def remedy(self) -> str:
        """What a user does to be let in."""

    @property
    def secret(self) -> bool:
        """Whether something is sent that nobody else may see."""

    def check(self) -> None:
        """Look at the credential before anybody is asked; raise `CredentialError` if it is of no use."""

    def prepare(self) -> _Signer:
        """Return what signs one request; asked for again for every one."""

    def refresh(self) -> None:
        """Get a fresh credential: the service has refused the last one, or there is none."""


@dataclass(frozen=True, slots=True)
class NoAuth:
    """Nobody asks: the real service answers only its open routes so."""

    prefix: str = "ws"
    remedy: str = "say who asks: kerberos or bearer"
    secret: bool = False

    def check(self) -> None:
        """Find nothing wrong."""

    def prepare(self) -> _Signer:
        """Return what leaves a request as it is; with None `requests` would look into ``.netrc``."""
        return lambda request: request

    def refresh(self) -> None:
        """Do nothing."""


class BearerAuth:
    """A token that is sent with every request, given or read from a file whenever that changes.

    Parameters
    ----------
    token
        The token itself; then no file is read.
    file
        Where the facility's login writes it; its owner alone may read it.
    meta
        What the login writes beside it: a token that has expired is then known without asking.
    renew
        Gets a fresh token into the file.

    Raises
    ------
    ConfigError
        If neither a token nor a file is given, or the token has blanks in it.
    """

    prefix: Final = "ws-jwt"
    secret: Final = True

    def __init__(
        self,
        token: str = "",
        *,
        file: Path | None = None,
        meta: Path | None = None,
        renew: Callable[[], object] | None = None,
    ) -> None:
        if not token and file is None:
            raise ConfigError("neither a token nor the file of one is given", fix=_BEARER_REMEDY)
        if token and not _is_token(token):
            raise ConfigError("the logbook's token has blanks or other strange characters in it", fix=_BEARER_REMEDY)
        self._token, self._file, self._meta, self._renew = token, file, meta, renew
        self._read: tuple[tuple[int, ...], str] | None = None

    def __repr__(self) -> str:
        return f"BearerAuth({'...' if self._token else self._file})"

    @property
    def remedy(self) -> str:
        """What a user does to be let in."""
        return _BEARER_REMEDY

    def check(self) -> None:
        """Read the token, and see whether it has expired.

        Raises
        ------
        CredentialError
            If there is none, others may read it, or it has expired.
        """
        if not self._token:
            self._from_file()
            self._check_expiry()

    def prepare(self) -> _Signer:
        """Return what puts the token into a request."""
        token = self._token or self._from_file()

        def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {token}"
            return request

        return sign

    def refresh(self) -> None:
        """Read the file again, after ``renew``."""
        if self._renew is not None:
            self._renew()
        self._read = None

    def _from_file(self) -> str:
        assert self._file is not None
        try:
            # A pipe would keep us waiting.
            line = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CredentialError(f"no token in {self._file}: {error.strerror}", fix=_BEARER_REMEDY) from error
        try:
            found = os.fstat(line)
            mark = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode, found.st_uid)
            known = self._read
            if known is not None and known[0] == mark:
                return known[1]
            _check_private(self._file, found)
            token = os.read(line, _MOST_TOKEN_BYTES).decode("ascii", "replace").strip()
        finally:
            os.close(line)
        if not _is_token(token):
            raise CredentialError(f"{self._file} holds no token", fix=_BEARER_REMEDY)
        self._read = mark, token
        return token

    def _check_expiry(self) -> None:
        expires, known = _expiry(self._meta), self._read
        # A token that was written after that moment is another one.
        if expires is None or known is None or time.time() < expires or known[0][0] > expires * 1e9:
            return
        then = datetime.fromtimestamp(expires, UTC)
        raise CredentialError(f"the token in {self._file} has expired at {then:%Y-%m-%d %H:%M} UTC", fix=_BEARER_REMEDY)


def _is_token(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _check_private(path: Path | str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise CredentialError(f"{path} is no file", fix="name the file that the login writes")
    if found.st_uid not in (os.getuid(), 0):
        raise CredentialError(f"{path} belongs to somebody else", fix="log in yourself")
    if found.st_mode & 0o077:
        raise CredentialError(f"{path} can be read by others", fix=f"chmod 600 {path}, after logging in again")


def _expiry(meta: Path | None) -> float | None:
    """Return when a token expires, in epoch seconds; None where nothing useful says so."""
    try:
        said = json.loads(meta.read_bytes()[:_MOST_TOKEN_BYTES]) if meta is not None else None
    except (OSError, ValueError, RecursionError):
        return None
    when = said.get("expires_at") if isinstance(said, dict) else None
    good = isinstance(when, int | float) and not isinstance(when, bool) and 0 < when < 2**33
    return float(when) if good and when is not None else None


class KerberosAuth:
    """The ticket of the user who runs this (``kinit``), by `requests_kerberos`.

    Every request carries a token of its own, unasked, and every answer that is no error has to prove that it comes
    from the service.

    Parameters
    ----------
    service
        For whom the ticket is, written ``HTTP@host``; empty: the host of the address.
    renew
        Gets a fresh ticket into the same cache, e.g. by ``kinit -kt``.

    Raises
    ------
    ConfigError
        If ``service`` is written otherwise, or Kerberos cannot be loaded.

    Notes
    -----
    An ``HTTPKerberosAuth`` mixes up its proofs when threads share it, and demands a proof of the first answer only.
    So each request gets one of its own, which asks once: whether to ask again is decided in one place.
    """

    prefix: Final = "ws-kerb"
    secret: Final = True

    def __init__(self, service: str = "", *, renew: Callable[[], object] | None = None) -> None:
        kind, at, host = service.partition("@")
        if service and not (kind and host):
            raise ConfigError(f"{service!r} does not name a service", fix="write it HTTP@host")
        self._kind, self._host, self._renew = kind if at else "HTTP", host or None, renew
        _kerberos()

    def __repr__(self) -> str:
        return f"KerberosAuth({f'{self._kind}@{self._host}' if self._host else ''!r})"

    @property
    def remedy(self) -> str:
        """What a user does to be let in."""
        return "run kinit"

    def check(self) -> None:
        """Look at the ticket.

        Raises
        ------
        CredentialError
            If there is none, it has expired, or others may read it.
        """
        _kerberos().check(self.remedy)

    def prepare(self) -> _Signer:
        """Return what proves to the service who asks, and checks who answers, for one request."""
        signer: _Signer = _kerberos().signer(self._kind, self._host, self.remedy)
        return signer

    def refresh(self) -> None:
        """Get a fresh ticket, or wait a moment for somebody who is just doing so."""
        if self._renew is None:
            time.sleep(_GRACE_S)
        else:
            self._renew()


def ticket_seconds() -> float:
    """Return for how long the Kerberos ticket of this process is good.

    Raises
    ------
    CredentialError
        If there is none, it has expired, or others may read it.
    ConfigError
        If Kerberos is not installed.
    """
    return _kerberos().check("run kinit")


@dataclass(frozen=True, slots=True)
class _Kerberos:
    """What needs the Kerberos libraries."""

    check: Callable[[str], float]
    signer: Callable[[str, str | None, str], Any]


@functools.cache
def _kerberos() -> _Kerberos:
    """Load what only those need who have tickets; it needs the system's Kerberos libraries."""
    try:
        import gssapi
        import krb5
        from gssapi.exceptions import ExpiredCredentialsError, MissingCredentialsError
        from gssapi.raw.misc import GSSError
        from requests_kerberos import REQUIRED, HTTPKerberosAuth
        from requests_kerberos.exceptions import KerberosExchangeError, MutualAuthenticationError
        from spnego.exceptions import ContextExpiredError, SpnegoError
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"Kerberos was asked for and cannot be loaded: {error}", fix="pip install 'nightbeam[facility]'"
        ) from error
    # It prints whole tracebacks of what we tell in one sentence.
    logging.getLogger("requests_kerberos").setLevel(logging.CRITICAL + 1)

    def check(remedy: str) -> float:
        try:
            left = gssapi.Credentials(usage="initiate").lifetime
        except ExpiredCredentialsError as error:
            raise CredentialError("the Kerberos ticket has expired", fix=remedy) from error
        except MissingCredentialsError as error:
            raise CredentialError("there is no Kerberos ticket", fix=remedy) from error
        except GSSError as error:
            raise CredentialError(f"the Kerberos ticket cannot be used: {reason(error)}", fix=remedy) from error
        if left <= 0:
            raise CredentialError("the Kerberos ticket has expired", fix=remedy)
        check_cache()
        return float(left)

    def check_cache() -> None:
        try:
            cache = krb5.cc_default(krb5.init_context())
            kind, name = cache.cache_type, cache.name
        except krb5.Krb5Error:
            return  # it was there a moment ago; the exchange will tell
        if kind == b"FILE" and name:
            try:
                found = Path(os.fsdecode(name)).stat()
            except OSError:
                return
            _check_private(os.fsdecode(name), found)

    class Negotiation(HTTPKerberosAuth):  # type: ignore[misc]
        """One request and its answer; asks once."""

        def __init__(self, kind: str, host: str | None, remedy: str) -> None:
            # Error pages need no proof: of them the status is believed either way, and Retry-After is of use.
            super().__init__(
                REQUIRED,
                service=kind,
                hostname_override=host,
                force_preemptive=True,
                sanitize_mutual_error_response=False,
                send_cbt=False,
            )
            self._remedy = remedy

        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            try:
                signed: requests.PreparedRequest = super().__call__(request)
            except (KerberosExchangeError, SpnegoError, GSSError) as error:
                if re.search("contact any KDC|resolve KDC", str(error)):
                    raise TransientError(f"no ticket for the service: {reason(error)}") from error
                what = f"no Kerberos ticket for {self._named(request.url)}: {reason(error)}"
                if "not found in Kerberos database" in str(error):
                    raise AuthError(what, fix="check the address, or name the service (HTTP@host)") from error
                raise CredentialError(what, fix=self._remedy) from error
            return signed

        def _named(self, url: str | None) -> str:
            host = self.hostname_override or (url or "").partition("://")[2].partition("/")[0].partition(":")[0]
            return f"{self.service}@{host}"

        def handle_401(self, response: requests.Response, **_: Any) -> requests.Response:
            return response  # a token is good for one request

        def handle_407(self, response: requests.Response, **_: Any) -> requests.Response:
            return response

        def handle_other(self, response: requests.Response) -> requests.Response:
            if 300 <= response.status_code < 400:
                return response  # nothing in it is used
            try:
                super().handle_other(response)
            except CredentialError:
                response.close()
                raise
            except (MutualAuthenticationError, ValueError) as error:
                response.close()
                raise AuthError(
                    f"who answers at {response.url.partition('?')[0]} does not prove to be {self._named(response.url)}",
                    fix="check the address: a login page or a proxy may answer; your own ticket is not the matter",
                ) from error
            return response

        def authenticate_server(self, response: requests.Response) -> bool:
            proof = re.search(r"\bNegotiate\s+([A-Za-z0-9+/=]+)", response.headers.get("WWW-Authenticate", ""), re.I)
            (context,) = self._context.values()
            try:
                context.step(b64decode(proof[1] if proof else b""))
            except ContextExpiredError as error:
                raise CredentialError("the Kerberos ticket expired before the answer came", fix=self._remedy) from error
            except (SpnegoError, GSSError):
                return False
            return bool(proof and context.complete)

    return _Kerberos(check, Negotiation)


def auth_from(
    method: AuthMethod,
    environ: Mapping[str, str],
    *,
    token_file: Path | None = None,
    service: str = "",
    renew: Callable[[], object] | None = None,
) -> Auth:
    """Return a way to say who asks, by its name and what the environment has.

    Parameters
    ----------
    method
        ``bearer`` takes the token of ``token_file``, or that of the variable ``Authorization`` (jobs that the
        facility starts have it), or that of ``S3DF_TOKEN_FILE``, or that of ``~/.s3df-access-token``.
    environ
        E.g. ``os.environ``.
    service, renew
        As for `KerberosAuth` and `BearerAuth`.

    Raises
    ------
    ConfigError
        If there is no such way, or it cannot be gone here.
    """
    if method == "none":
        return NoAuth()
    if method == "kerberos":
        return KerberosAuth(service, renew=renew)
    if method != "bearer":
        raise ConfigError(f"there is no authentication {method!r}", fix="kerberos, bearer or none")
    if token_file is not None:
        return BearerAuth(file=token_file.expanduser(), renew=renew)
    kind, _, token = environ.get("Authorization", "").strip().partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return BearerAuth(token.strip())
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    return BearerAuth(
        file=Path(environ.get("S3DF_TOKEN_FILE") or home / ".s3df-access-token"),
        meta=Path(environ.get("S3DF_TOKEN_META") or home / ".s3df-token.json"),
        renew=renew,
    )
