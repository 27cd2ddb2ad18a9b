"""Who may change something: whoever shows the token, or a browser that was shown it and says whose page it is on.

The token lies in a file that only its owner reads. A program shows it with each request (``Authorization: Bearer``). A
browser shows it once, in a form, and gets a cookie that no script can read and no other site can have sent; each form
of the page carries a word besides, without which the cookie is worth nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from nightbeam.core.errors import AuthError

__all__ = ["COOKIE", "CSRF_FIELD", "CSRF_HEADER", "Auth", "ForbiddenError", "Session", "local_path"]

#: Name of the cookie, and where a form or a script says the word of its page.
COOKIE: Final = "nightbeam_session"
CSRF_FIELD: Final = "csrf"
CSRF_HEADER: Final = "x-csrf-token"
_LIVES_S: Final = 12 * 3600
_LONGEST: Final = 4096


class ForbiddenError(AuthError):
    """Somebody known may not do this, or not from here."""

    exit_code = 77


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that was shown the token; ``csrf`` is the word that its forms must carry."""

    value: str
    csrf: str
    ends: float


class Auth:
    """The token, and what follows from it. Nothing is stored: another token ends every session.

    Parameters
    ----------
    token
        The word.
    clock
        Epoch seconds, for tests.
    """

    def __init__(self, token: str, *, clock: Callable[[], float] = time.time) -> None:
        self._token, self._clock = token.encode(), clock
        self._key = hmac.new(self._token, b"nightbeam monitor, sessions", hashlib.sha256).digest()

    def knows(self, word: str) -> bool:
        """Say whether a word is the token, in a time that tells nothing about it."""
        if len(word) > _LONGEST:
            return False
        given = hashlib.sha256(word.encode("utf-8", "replace")).digest()
        return hmac.compare_digest(given, hashlib.sha256(self._token).digest())

    def new_session(self) -> Session:
        """Return a session that lasts half a day."""
        ends = int(self._clock()) + _LIVES_S
        body = f"{ends}.{secrets.token_urlsafe(12)}"
        return self._session(f"{body}.{self._sign('session', body)}", body, ends)

    def session(self, cookie: str | None) -> Session | None:
        """Return the session that a cookie stands for; None where it is none, or has ended."""
        body, _, mark = (cookie or "")[:_LONGEST].rpartition(".")
        if not body or not hmac.compare_digest(mark.encode(), self._sign("session", body).encode()):
            return None
        ends = int(body.partition(".")[0])  # ours: it is signed
        # A clock that was set back must not make sessions that last for years.
        if not self._clock() < ends <= self._clock() + _LIVES_S + 60:
            return None
        return self._session(f"{body}.{mark}", body, ends)

    def demand(self, headers: Mapping[str, str], cookie: str | None, *, scheme: str, csrf: str | None = None) -> None:
        """Refuse who has not shown the token, or whose request another site may have made.

        Parameters
        ----------
        headers
            Of the request, by names in small letters.
        cookie
            The value of `COOKIE`, if there is one.
        scheme
            ``http`` or ``https``, as the browser sees it.
        csrf
            What a form said; by default the header `CSRF_HEADER`.

        Raises
        ------
        AuthError
            If neither the token nor a session was shown.
        ForbiddenError
            If the token is another one, or the request was made by a page of another site.
        """
        kind, _, word = headers.get("authorization", "").partition(" ")
        # Another scheme is meant for a server that stands before us.
        if kind.lower() == "bearer":
            if not self.knows(word.strip()):
                raise ForbiddenError("this is not the token", fix="nightbeam monitor token shows it")
            return
        session = self.session(cookie)
        if session is None:
            raise AuthError(
                "this needs the token",
                fix="send it as `Authorization: Bearer`, or log in; `nightbeam monitor token` shows it",
            )
        self.demand_origin(headers, scheme=scheme)
        word = csrf if csrf is not None else headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(word.encode("utf-8", "replace"), session.csrf.encode()):
            raise ForbiddenError("the form is not of this session", fix="load the page again")

    def demand_origin(self, headers: Mapping[str, str], *, scheme: str) -> None:
        """Refuse what a page of another site has sent.

        Raises
        ------
        ForbiddenError
            If the browser says that it has.
        """
        origin, fetched = headers.get("origin"), headers.get("sec-fetch-site")
        here = f"{scheme}://{headers.get('host', '')}".lower()
        if (origin is not None and origin.lower() != here) or fetched not in (None, "same-origin", "none"):
            raise ForbiddenError("this was sent by another site", fix="use the page itself")

    def _session(self, value: str, body: str, ends: float) -> Session:
        return Session(value, self._sign("csrf", body), ends)

    def _sign(self, purpose: str, body: str) -> str:
        mark = hmac.new(self._key, f"{purpose}\0{body}".encode("utf-8", "replace"), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(mark).decode().rstrip("=")


def local_path(told: str | None) -> str:
    """Return where to go after a log-in: a path of this site, whatever was told."""
    if not told or len(told) > 2000 or not told.isprintable() or "\\" in told or not told.startswith("/"):
        return "/"
    parts = urlsplit(told)
    return "/" if parts.scheme or parts.netloc or told.startswith("//") else told
