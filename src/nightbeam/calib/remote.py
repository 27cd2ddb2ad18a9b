"""The calibration web service: the one door through which constants are asked for."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import socket
import ssl
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self
from urllib.parse import quote, urlsplit

import numpy as np
import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from nightbeam.calib.compute import (
    base_url,
    base_url_from,
    check_collection,
    check_document_id,
    check_name,
    choose_all,
    detector_type,
    expected_bytes,
    is_name,
    is_pickle,
    is_understood,
    newest_of_each,
    redirect_target,
    service_id,
    short_name_from,
    text_limit,
)
from nightbeam.calib.model import (
    FIXED_IDS,
    LAST_RUN,
    MAX_ARRAY_BYTES,
    NO_CONSTANTS,
    SHORT_ENOUGH,
    SITE_URL,
    TICKET_URL,
    TOKEN_URL,
    UNKNOWN_DETECTOR,
    Choice,
    Document,
    Selection,
    Traffic,
)
from nightbeam.core.errors import (
    AuthError,
    ConfigError,
    InputError,
    MissingError,
    NightbeamError,
    RejectedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from spnego import ContextProxy

__all__ = ["Anonymous", "Auth", "AuthMethod", "BearerToken", "CalibService", "Kerberos", "StoppedError"]

_log = logging.getLogger(__name__)

_NAMES_DATABASE: Final = "cdb_detnames"
#: Some six thousand documents; JSON takes up to 27 times its size in memory.
_MAX_ANSWER_BYTES: Final = 8 * 1024**2
_MOST_DIGITS: Final = 18
_MAX_DATABASE_NAME: Final = 49
#: Of 64 KiB to 4 MiB the fastest from the socket into the array.
_CHUNK_BYTES: Final = 1024**2
#: An array is given this much longer than a short answer.
_SLOWEST_BYTES_S: Final = 1_000_000
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
#: A name that is not in the table may be entered in it any day.
_GUESSED_S: Final = 600.0
#: For so long after it has listed its databases the service is believed when it says that something is not there.
_CONFIRMED_S: Final = 3.0
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS: Final = 3
_TRANSIENT: Final = frozenset({408, 425, 429})
_WHO_ANSWERS: Final = "check the address; a proxy or a login page may be answering in its place"
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class StoppedError(UnavailableError):
    """We were told to stop while the service failed; whether it still does nobody knows."""


#: The names of the ways to say who asks.
AuthMethod = Literal["none", "token", "kerberos"]


class Auth(Protocol):
    """How a client says who it is.

    Attributes
    ----------
    filter_in_body
        Whether questions go in the body of the GET, as the service behind tokens wants them.
    default_url
        Where the laboratory's service lets in who says it this way.
    """

    @property
    def filter_in_body(self) -> bool:
        """Whether questions go in the body of the GET."""

    @property
    def default_url(self) -> str:
        """Where the laboratory's service lets in who says it this way."""

    def prepare(self) -> Any:
        """Return what `requests` is given as ``auth`` for one request; called again for every one."""


@dataclass(frozen=True, slots=True)
class Anonymous:
    """Nobody asks: nothing is sent, whatever ``CALIB_JWT`` and ``.netrc`` hold."""

    filter_in_body: bool = False
    default_url: str = SITE_URL

    def prepare(self) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
        """Return what leaves a request as it is; with None `requests` would look into ``.netrc``."""
        return lambda request: request


@dataclass(frozen=True, slots=True)
class BearerToken:
    """A token (``CALIB_JWT``) that is sent with every request, over https only.

    ``filter_in_body`` is true because the client of 2026-09 sends its questions so when it has a token.
    """

    token: str = field(repr=False)
    filter_in_body: bool = True
    default_url: str = TOKEN_URL

    def __post_init__(self) -> None:
        if not self.token.isascii() or not self.token.isprintable() or not self.token or " " in self.token:
            raise ConfigError("the calibration service's token is empty or has blanks in it", fix="check CALIB_JWT")

    def prepare(self) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
        """Return what puts the token into a request."""

        def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {self.token}"
            return request

        return sign


@dataclass(frozen=True, slots=True)
class Kerberos:
    """The ticket of the user who runs this (``kinit``).

    Every request carries a token of its own, unasked, and every answer has to bring the service's: who answers
    without one is not the service.

    Attributes
    ----------
    service
        For whom the ticket is, e.g. ``HTTP@pswww.slac.stanford.edu``.
    """

    service: str = "HTTP@pswww.slac.stanford.edu"
    filter_in_body: bool = False
    default_url: str = TICKET_URL

    def prepare(self) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
        """Return what proves to the service who asks, and checks who answers, for one request.

        Raises
        ------
        ConfigError
            If Kerberos cannot be loaded, or ``service`` is not written ``HTTP@host``.
        """
        kind, _, host = self.service.partition("@")
        if not kind or not host:
            raise ConfigError(f"{self.service!r} does not name a service", fix="write it HTTP@host")
        try:
            # Not at the top: they need the system's Kerberos libraries, which only those who use them have.
            import gssapi  # noqa: F401
            import spnego
        except (ImportError, OSError) as error:
            raise ConfigError(
                f"Kerberos was asked for and cannot be loaded: {error}", fix="pip install 'nightbeam[facility]'"
            ) from error
        flags = spnego.ContextReq.mutual_auth | spnego.ContextReq.sequence_detect

        def begin() -> ContextProxy:
            return spnego.client(hostname=host, service=kind, protocol="kerberos", context_req=flags)

        return _Negotiation(self.service, begin)


class _Negotiation:
    """What one request and its answer prove to each other. Threads that shared it would mix up their proofs."""

    def __init__(self, service: str, begin: Callable[[], ContextProxy]) -> None:
        self._service, self._begin = service, begin
        self._context: ContextProxy | None = None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        from spnego.exceptions import GSSError, SpnegoError

        try:
            self._context = self._begin()
            token = self._context.step() or b""
        except (GSSError, SpnegoError) as error:
            if "Cannot contact any KDC" in str(error):
                raise _TransientError(f"no Kerberos ticket: {_short(error)}") from error
            raise AuthError(
                f"no Kerberos ticket for {self._service}: {_short(error)}",
                fix="run kinit, and check the name of the service that the ticket is for",
            ) from error
        request.headers["Authorization"] = f"Negotiate {b64encode(token).decode()}"
        request.register_hook("response", self._check)  # type: ignore[no-untyped-call]
        return request

    def _check(self, response: requests.Response, **_: Any) -> None:
        """Make sure that who answers holds the service's key; who fails, refuses or redirects need not prove it."""
        fault = "" if response.status_code == 401 else self._fault(response)
        if fault:
            response.close()
            raise AuthError(
                f"{response.url.partition('?')[0]} does not prove that it is {self._service}: {fault}",
                fix="check the address and the name of the service; your own ticket is not the matter",
            )

    def _fault(self, response: requests.Response) -> str:
        from spnego.exceptions import GSSError, SpnegoError

        proof = re.search(r"\bNegotiate\s+([A-Za-z0-9+/=]+)", response.headers.get("WWW-Authenticate", ""), re.I)
        if proof is None:
            return "its answer has no token" if 200 <= response.status_code < 300 else ""
        assert self._context is not None
        try:
            self._context.step(b64decode(proof[1]))
        except (GSSError, SpnegoError, ValueError) as error:
            return f"its answer has a wrong token ({_short(error)})"
        return "" if self._context.complete else "its answer's token is not the last one"


def _auth_from(environ: Mapping[str, str], method: AuthMethod | None) -> Auth:
    if method == "kerberos":
        return Kerberos()
    token = environ.get("CALIB_JWT", "")
    return BearerToken(token) if method == "token" or (method is None and token) else Anonymous()


@dataclass(frozen=True, slots=True)
class _Known:
    """A detector's short name, and for how long it is believed."""

    name: str | None
    exact: bool
    until: float


class _TransientError(Exception):
    """One try failed in a way that another may not; ``wait_s`` is what the service asked for."""

    def __init__(self, what: str, wait_s: float | None = None) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class CalibService:
    """A client of the calibration service, with one pool of connections.

    Documents and data are read, nothing is written. What the service does not have is an empty answer; what it fails
    to say is an error. May be shared by threads.

    Parameters
    ----------
    base_url
        Address, with or without the last ``calib_ws``. None: the laboratory's own that goes with ``auth``.
    auth
        None, which is `Anonymous`, on the laboratory's network; `BearerToken` or `Kerberos` from elsewhere.
    timeout_s
        How long the service may be silent.
    deadline_s
        How long one question may take, with all that is asked again after failures; data get a second more for each
        megabyte. An answer that trickles is cut off then.
    max_bytes
        The largest array that is read.
    fixed_ids
        Experiments all of whose detectors have the constants of one unique id.
    sleep
        Waits for so many seconds; a true result (``threading.Event.wait``) means: stop trying.
    clock, jitter
        A clock that only goes forward, and numbers between 0 and 1 that keep clients from asking all at once.

    Raises
    ------
    ConfigError
        If the address makes no sense, a token or ticket would be sent in the clear, or Kerberos cannot be loaded.

    Examples
    --------
    >>> with CalibService("https://host/ws") as service:  # doctest: +SKIP
    ...     selection = service.select("tmoc00118", 222, "epix", unique_id)
    ...     for ctype, choice in selection.choices.items():
    ...         constant = decode(choice.document, service.fetch(choice))
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        auth: Auth | None = None,
        timeout_s: float = 30.0,
        deadline_s: float = 180.0,
        max_bytes: int = MAX_ARRAY_BYTES,
        fixed_ids: Mapping[str, str] = FIXED_IDS,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._auth = Anonymous() if auth is None else auth
        self.base_url = _address(self._auth.default_url if base_url is None else base_url)
        self._timeout_s, self._deadline_s, self._max_bytes = timeout_s, deadline_s, max_bytes
        self._fixed_ids = dict(fixed_ids)
        self._sleep, self._clock, self._jitter = sleep, clock, jitter
        self._session = _session(self.base_url, self._auth)
        self._short_names: dict[str, _Known] = {}
        self._limit = threading.local()
        self._traffic = Traffic()
        self._confirmed_at: float | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str],
        *,
        url: str | None = None,
        auth: Auth | AuthMethod | None = None,
        **options: Any,
    ) -> Self:
        """Return a client set up by a site's settings and the original's variables.

        Parameters
        ----------
        environ
            ``LCLS_CALIB_HTTP``, ``SIT_PSDM_OFFSITE`` and ``CALIB_JWT`` are looked at, e.g. ``os.environ``.
        url
            The address, ``calib.service_url``; None leaves it to the variables, and then to ``auth``.
        auth
            How to say who asks, or its name, ``calib.auth``: ``"none"`` sends nothing even where there is a
            token. None: the token of ``CALIB_JWT`` where there is one.
        options
            As for the class.

        Raises
        ------
        ConfigError
            As for the class, and if a token is asked for and there is none.
        """
        how = _auth_from(environ, auth) if auth is None or isinstance(auth, str) else auth
        address = base_url_from(environ, how.default_url) if url is None else url
        return cls(address, auth=how, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CalibService({self.base_url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @property
    def max_bytes(self) -> int:
        """The largest array that is accepted."""
        return self._max_bytes

    @property
    def traffic(self) -> Traffic:
        """What has been asked so far."""
        with self._lock:
            return self._traffic

    # Documents

    def find(self, database: str, collection: str, query: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return the documents of a collection that match a Mongo filter.

        Parameters
        ----------
        database, collection
            Their names.
        query
            E.g. ``{"run": {"$lte": 7}}``; None returns them all.

        Returns
        -------
        list of dict
            Empty where the service has none, or no such collection: then it has shown its list of databases within
            the last seconds, so that an outage is not taken for it.

        Raises
        ------
        UnavailableError
            If the service failed until the deadline, or has nothing there and no list of databases either.
        StoppedError
            If ``sleep`` said so; an `UnavailableError`.
        AuthError
            If it wants to know who asks, or refuses.
        InputError
            If it answers something that is no list of documents.
        """
        path = (check_name("database", database), check_collection(collection))
        body = self._ask_surely(path, query)
        if body is None:
            return []
        try:
            documents = json.loads(bytes(body))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{self._place(path)} answered {_beginning(body)}, which is not JSON",
                fix=_WHO_ANSWERS,
            ) from error
        if not isinstance(documents, list) or not all(isinstance(document, dict) for document in documents):
            raise InputError(f"{self._place(path)} answered {_beginning(body)}, which is not a list of documents")
        return documents

    def short_name(self, unique_id: str) -> str | None:
        """Return the service's own name for a detector; None where it does not know it.

        A name that was found is remembered: for good if the table has it for exactly this unique id, otherwise for ten
        minutes. A unique id of fewer than 20 characters that the table of names does not
        have is a name itself (older deployments), unless one of its ids is empty or it has anything but letters,
        digits, ``_`` and ``-`` in it. A type that cannot be a collection of the service is not asked about.

        Raises
        ------
        UnavailableError, AuthError, InputError
            As for `find`; never because of the unique id.
        """
        return self._known(unique_id).name

    def _known(self, unique_id: str) -> _Known:
        with self._lock:
            known = self._short_names.get(unique_id)
        if known is not None and self._clock() < known.until:
            return known
        name, exact = self._ask_name(unique_id)
        known = _Known(name, exact, math.inf if exact else self._clock() + _GUESSED_S)
        if name is not None:
            with self._lock:
                self._short_names[unique_id] = known
        return known

    def _ask_name(self, unique_id: str) -> tuple[str | None, bool]:
        """Return the short name, and whether the table has it for exactly this unique id."""
        try:
            collection = detector_type(unique_id)
        except InputError as error:
            _log.warning("%.80r is asked about nowhere: %s", unique_id, error.what)
            return None, False
        found = self.find(_NAMES_DATABASE, collection, {"long": unique_id})
        name = _short_name(found, unique_id)
        if name is not None:
            return name, len(found) == 1 and found[0].get("long") == unique_id
        pieces = unique_id.split("_")[1:]
        # With an empty id nothing but an exact hit can be right, so the whole table is not asked for.
        if not pieces or not all(pieces):
            return None, False
        if len(unique_id) < SHORT_ENOUGH:
            return (unique_id if is_name(unique_id) else None), False
        return _short_name(self.find(_NAMES_DATABASE, collection), unique_id), False

    def remember(self, experiment: str | None, unique_id: str, short_name: str) -> None:
        """Take a detector's short name from an earlier answer (`Selection.name_is_exact`), so that it is not asked for.

        What is no name is passed over with a warning.
        """
        known = service_id(experiment, unique_id, self._fixed_ids)
        if not is_name(short_name):
            _log.warning("%.80r is no name of a detector and is not remembered", short_name)
            return
        with self._lock:
            self._short_names.setdefault(known, _Known(short_name, True, math.inf))

    def select(
        self, experiment: str | None, run: int | None, detector: str, unique_id: str, *, suffix: str = ""
    ) -> Selection:
        """Return the documents that serve a detector in a run; no data are transferred.

        Two questions at most, once the detector's short name is known: the experiment's documents, then, for kinds
        that it has none of for this run, the newest of the detector's own database.

        Parameters
        ----------
        experiment
            None asks the detector's database alone.
        run
            0 and None ask for documents of any run; 0 is then served by ranges that include 0, None by those that
            include the last run.
        detector, unique_id
            From the run's configuration.
        suffix
            Of a private database of the detector that is asked in the experiment's place.

        Returns
        -------
        Selection
            With ``gaps`` where the second question failed, in a way that can heal, after the first had found
            something.

        Raises
        ------
        UnavailableError, AuthError, InputError
            If the service failed and nothing is known, so that it is not mistaken for "no constants"; or if the
            experiment, the detector or the suffix is no name. An unusual unique id is an unknown detector, no error:
            the others of the run are not to suffer for it.
        """
        check_name("detector", detector)
        if experiment is not None:
            check_name("experiment", experiment)
        known = self._known(service_id(experiment, unique_id, self._fixed_ids))
        short = known.name
        if short is None:
            return Selection(detector, unique_id, None, {}, reason=UNKNOWN_DETECTOR)
        own = _database(short)
        first = _database(f"{short}_{suffix}") if suffix else own if experiment is None else _database(experiment)
        documents = self.find(first, short, {"detector": short, "run": {"$lte": run or LAST_RUN}})
        chosen = {ctype: Choice(ctype, doc, first) for ctype, doc in choose_all(documents, run).items()}
        fill, gaps = self._newest(own, short, keep_going=bool(chosen))
        for ctype, document in newest_of_each(fill).items():
            chosen.setdefault(ctype, Choice(ctype, document, own))
        found = _selection(detector, unique_id, short, chosen, gaps, [*documents, *fill])
        return replace(found, name_is_exact=known.exact)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Give all questions of the block, in this thread, together so much time; what is not asked by then fails."""
        self._limit.end = self._clock() + seconds
        try:
            yield
        finally:
            del self._limit.end

    def _newest(self, database: str, short: str, *, keep_going: bool) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        try:
            return self.find(database, short, {"detector": short, "run": {"$lte": LAST_RUN}}), ()
        except UnavailableError as error:
            # What does not heal by itself would be a gap for ever, and who is told to stop has no gap but no answer.
            if not keep_going or isinstance(error, StoppedError):
                raise
            _log.warning("%s could not be asked, so kinds that only it has may be missing: %s", database, error.what)
            return [], (f"{database} could not be asked: {error.what}",)

    # Data

    def fetch(self, choice: Choice) -> memoryview:
        """Return the bytes of a document's data.

        An array is read straight into memory of the size that its document gives; not a byte more is held.

        Raises
        ------
        MissingError
            If the service does not have the data that its document names.
        InputError
            If the number of bytes is not the document's, or the answer is a web page.
        RejectedError
            If the data are a pickle.
        UnavailableError, AuthError
            As for `find`.
        """
        if is_pickle(choice.document):
            raise RejectedError(_refusal(choice), fix="deploy it as an array or a text")
        path = (check_name("database", choice.database), "gridfs", check_document_id("id_data", choice.data_id))
        size = expected_bytes(choice.document, max_bytes=self._max_bytes)
        limit = text_limit(choice.document, self._max_bytes) if size is None else size
        data = self._ask_surely(path, size=size, limit=limit, data=True)
        if data is None:
            raise MissingError(
                f"{choice.ctype} of document {choice.document_id}: {self._place(path)} is not there",
                fix="the document names data that were removed; deploy the constants again",
            )
        self._count(data_bytes=len(data))
        return data

    # One question

    def _place(self, path: tuple[str, ...]) -> str:
        return "/".join((self.base_url, *path))

    def _ask_surely(
        self,
        path: tuple[str, ...],
        query: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> memoryview | None:
        """Ask until there is an answer; None where a service that is there has nothing there."""
        body = self._ask(path, query, **how)
        if body is None and self._confirm(path):
            # It has shown itself only after it had nothing there; what it says from now on counts.
            body = self._ask(path, query, **how)
        return body

    def _confirm(self, path: tuple[str, ...]) -> bool:
        """Make sure that the service is there: without it nothing is anywhere, nor at a wrong address.

        Returns whether it had to be asked.
        """
        begin = self._clock()
        with self._lock:
            if self._confirmed_at is not None and begin - self._confirmed_at <= _CONFIRMED_S:
                return False
        try:
            listing = self._ask(("",))
            found = "is not there either" if listing is None else _no_listing(listing)
        except InputError as error:
            found = f"is not given: {error.what}"
        if found:
            raise UnavailableError(
                f"{self._place(path)} is not there, and the list of databases at {self.base_url}/ {found}",
                fix="wait until the service is back, or correct its address",
            )
        with self._lock:
            self._confirmed_at = begin
        return True

    def _ask(
        self,
        path: tuple[str, ...],
        query: Mapping[str, Any] | None = None,
        *,
        size: int | None = None,
        limit: int = _MAX_ANSWER_BYTES,
        data: bool = False,
    ) -> memoryview | None:
        """Ask until there is an answer; None where the service has nothing there."""
        begin, all_end = self._clock(), getattr(self._limit, "end", math.inf)
        if begin >= all_end:
            raise UnavailableError(
                f"{self._place(path)} was not asked: earlier questions took all the time there was",
                fix="nothing was changed; a later try may work",
            )
        end = min(begin + self._deadline_s + (size or 0) / _SLOWEST_BYTES_S, all_end)
        wait_s, tries = _FIRST_WAIT_S, 0
        while True:
            tries += 1
            self._count(requests=1, retries=int(tries > 1))
            try:
                return self._try(path, query, size=size, limit=limit, data=data, end=end)
            except _TransientError as error:
                self._wait(path, error, wait_s, tries, end)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _wait(self, path: tuple[str, ...], error: _TransientError, wait_s: float, tries: int, end: float) -> None:
        """Wait before the next try, or give up where it would come after the deadline."""
        # A service that says "at once" while it fails is not hammered for it.
        pause = max(error.wait_s or 0.0, wait_s * (0.5 + 0.5 * self._jitter()))
        what = f"{self._place(path)} failed {tries} time{'s' * (tries > 1)}: {error}"
        fix = "nothing was changed; a later try may work"
        if self._clock() + pause >= end:
            raise UnavailableError(f"{what}; given up at the deadline of {self._deadline_s:g} s", fix=fix) from error
        _log.info("%s; again in %.1f s", what, pause)
        if self._sleep(pause):
            raise StoppedError(f"{what}; told to stop", fix=fix) from error

    def _try(
        self,
        path: tuple[str, ...],
        query: Mapping[str, Any] | None,
        *,
        size: int | None,
        limit: int,
        data: bool,
        end: float,
    ) -> memoryview | None:
        url = self._place(tuple(quote(part, safe="") for part in path))
        headers = {"Accept": "application/octet-stream" if data else "application/json"}
        body = None
        if query is not None:
            text = json.dumps(query, separators=(",", ":"))
            if self._auth.filter_in_body:
                body, headers["Content-Type"] = text.encode(), "application/json"
            else:
                url += f"?query_string={quote(text, safe='')}"
        place = self._place(path)
        with _transport_errors(place), _Cutter(end - self._clock()):
            for hop in range(_MAX_REDIRECTS + 1):
                if hop:
                    self._count(requests=1)
                with self._get(url, headers, body, end) as response:
                    if response.status_code in _REDIRECTS:
                        url = redirect_target(self.base_url, url, response.headers.get("Location", ""))
                        continue
                    if not self._check_status(path, response):
                        return None
                    _check_kind(place, response)
                    return self._read(path, response, size=size, limit=limit, end=end)
        raise InputError(f"{place} redirects more than {_MAX_REDIRECTS} times, at last to {url.partition('?')[0]}")

    def _count(self, **more: int) -> None:
        with self._lock:
            self._traffic = _more(self._traffic, **more)

    def _get(self, url: str, headers: Mapping[str, str], body: bytes | None, end: float) -> requests.Response:
        # A try that begins just before the deadline does not outlive it by a whole timeout.
        timeout_s = min(self._timeout_s, max(end - self._clock(), 0.001))
        return self._session.get(
            url,
            headers=headers,
            data=body,
            timeout=timeout_s,
            stream=True,
            allow_redirects=False,
            auth=self._auth.prepare(),
        )

    def _check_status(self, path: tuple[str, ...], response: requests.Response) -> bool:
        """Return whether there is an answer to read; raise where the service failed."""
        status, place = response.status_code, self._place(path)
        if status in (200, 203):
            return True
        if status in (204, 404):
            return False
        if status in _TRANSIENT or status >= 500:
            raise _TransientError(f"HTTP status {status}", _retry_after(response.headers.get("Retry-After")))
        if status in (401, 403):
            raise AuthError(
                f"{place} answered HTTP status {status}: " + ("who asks?" if status == 401 else "not allowed"),
                fix="give a valid token (CALIB_JWT) or Kerberos ticket (kinit), and the address that goes with it",
            )
        raise InputError(
            f"{place} answered HTTP status {status}, which is neither an answer nor a failure that passes",
            fix="check the service's address",
        )

    def _read(
        self, path: tuple[str, ...], response: requests.Response, *, size: int | None, limit: int, end: float
    ) -> memoryview:
        """Read the body, no more than ``limit`` bytes; exactly ``size`` where that is known."""
        place, said = self._place(path), _content_length(response)
        if said is not None and said > limit:
            raise InputError(_wrong_size(place, said, size, limit), fix="the document and the data contradict")
        if size is not None and said is not None and said != size:
            raise InputError(_wrong_size(place, said, size, limit), fix="the document and the data contradict")
        expected = said if size is None else size
        into = np.empty(_CHUNK_BYTES if expected is None else expected, np.uint8).data
        got = self._read_straight(response, into, end) if said is not None and said == size else 0
        while said is None or got < said:
            self._check_time(got, end)
            # One more than wanted: an answer that is too long must not look right.
            # As it comes, so that the clock is looked at; but the last byte in urllib3's own way, which keeps the
            # connection.
            wanted = min(_CHUNK_BYTES, limit - got + 1)
            last = said is not None and said - got == 1
            chunk = response.raw.read(1) if last else response.raw.read1(wanted, decode_content=False)
            if not chunk:
                break
            if got + len(chunk) > limit:
                raise InputError(_wrong_size(place, None, size, limit), fix="the document and the data contradict")
            if got + len(chunk) > len(into):
                into = _larger(into, got, min(max(2 * len(into), got + len(chunk)), limit))
            into[got : got + len(chunk)] = chunk
            got += len(chunk)
        if size is not None and got != size:
            raise InputError(_wrong_size(place, got, size, limit), fix="the document and the data contradict")
        return into[:got]

    def _read_straight(self, response: requests.Response, into: memoryview, end: float) -> int:
        """Read all but the last byte straight from the socket; return how many bytes that was.

        urllib3 would hold every piece once more before it is copied, which costs a quarter of the speed. It gets the
        last byte, so that it sees the answer's end and keeps the connection. Where its insides are not what they are
        today, nothing is read here and all of it there.
        """
        source = getattr(response.raw, "_fp", None)
        if not isinstance(source, HTTPResponse) or source.chunked or source.length != len(into):
            return 0
        got, most = 0, len(into) - 1
        while got < most:
            self._check_time(got, end)
            # Not source.readinto, which waits until the piece is full.
            count = source.fp.readinto1(into[got : min(got + _CHUNK_BYTES, most)])
            if not count:
                raise _TransientError(f"the answer broke off after {got} of {len(into)} bytes")
            source.length -= count
            got += count
        return got

    def _check_time(self, got: int, end: float) -> None:
        if self._clock() > end:
            raise _TransientError(f"only {got} bytes came before the deadline")


#: The cutter of the try that a thread is at.
_trying = threading.local()


class _Cutter:
    """Cuts the connection of one try at its deadline.

    A socket's timeout begins anew with every byte, so a service that sends one now and then (of a handshake, of
    headers, of the length of a chunk) would hold us for as long as it likes.
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
                raise _TransientError("the answer was not complete at the deadline") from error

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


def _address(text: str) -> str:
    return base_url(text)  # whose name is that of a parameter where it is wanted


class _Session(requests.Session):
    """A session that leaves redirects to us; its own way reads their bodies to the end, however far that is."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002
        return None


def _session(address: str, auth: Auth) -> requests.Session:
    parts = urlsplit(address)
    local = parts.hostname in _LOOPBACK
    if not isinstance(auth, Anonymous) and parts.scheme != "https" and not local:
        raise ConfigError(f"a token or ticket would be sent in the clear to {address}", fix="use an https address")
    auth.prepare()  # what is missing is said now, not at the first question
    session = _Session()
    session.trust_env = not local  # no proxy stands between us and ourselves
    session.headers["User-Agent"] = "nightbeam"
    session.headers["Accept-Encoding"] = "identity"  # bytes are counted, and arrays do not compress
    adapter = _Adapter(pool_connections=2, pool_maxsize=16, max_retries=0)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def _database(name: str) -> str:
    database = f"cdb_{name}"
    if len(database) > _MAX_DATABASE_NAME:
        raise InputError(
            f"{database!r} is too long for a database of the service", fix=f"at most {_MAX_DATABASE_NAME} characters"
        )
    return check_name("database", database)


def _no_listing(body: memoryview) -> str:
    """Return what is wrong with a list of databases; empty if nothing is."""
    try:
        names = json.loads(bytes(body))
    except (ValueError, RecursionError):
        names = None
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return "" if good else f"is {_beginning(body)}"


def _short_name(documents: list[dict[str, Any]], unique_id: str) -> str | None:
    """Return the short name that a table has for a detector; None too where it has one that nobody can use."""
    try:
        name = short_name_from(documents, unique_id)
        if name is not None:
            _database(name)
    except InputError as error:
        _log.warning("the service's name of %.80r cannot be used: %s", unique_id, error.what)
        return None
    return name


def _selection(
    detector: str,
    unique_id: str,
    short: str,
    chosen: Mapping[str, Choice],
    gaps: tuple[str, ...],
    seen: list[dict[str, Any]],
) -> Selection:
    open_to_us = {ctype: choice for ctype, choice in sorted(chosen.items()) if not is_pickle(choice.document)}
    refused = {ctype: _refusal(choice) for ctype, choice in sorted(chosen.items()) if ctype not in open_to_us}
    ignored = len({_label(d) for d in seen if not is_understood(d)})
    if ignored:
        _log.warning("%s: %d documents of the service make no sense and were passed over", detector, ignored)
    reason = None if open_to_us else "; ".join(refused.values()) or NO_CONSTANTS
    return Selection(detector, unique_id, short, open_to_us, gaps, reason, refused, ignored)


def _label(document: Document) -> str:
    return str(document.get("_id", id(document)))


def _refusal(choice: Choice) -> str:
    return f"{choice.ctype} of document {choice.document_id} is a pickle, which runs code when it is loaded"


def _more(traffic: Traffic, *, requests: int = 0, retries: int = 0, data_bytes: int = 0) -> Traffic:
    return Traffic(traffic.requests + requests, traffic.retries + retries, traffic.data_bytes + data_bytes)


@contextmanager
def _transport_errors(place: str) -> Iterator[None]:
    """Put what goes wrong between two computers into our words."""
    try:
        yield
    except (NightbeamError, _TransientError):
        raise
    except requests.exceptions.RequestException as error:
        raise _request_error(place, error) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        # Reading the body goes past requests, which would copy it once more.
        raise _TransientError(_short(error)) from error
    except (HTTPException, ValueError, LookupError, OverflowError) as error:
        # What the libraries below stumble over is nothing that a service may say.
        raise InputError(f"{place} answered what is not HTTP ({_short(error)})", fix=_WHO_ANSWERS) from error


def _request_error(place: str, error: requests.exceptions.RequestException) -> Exception:
    if _untrusted(error):
        return ConfigError(
            f"{place} cannot prove who it is: {_short(error)}",
            fix="install the site's certificate (REQUESTS_CA_BUNDLE)",
        )
    passing = (
        requests.exceptions.ConnectionError,  # of which SSLError is one: a handshake that broke off
        requests.exceptions.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    if isinstance(error, passing):
        return _TransientError(_short(error))
    return InputError(f"{place} cannot be asked: {_short(error)}", fix="check the service's address")


def _untrusted(error: BaseException) -> bool:
    """Whether a certificate was turned down; every other error of TLS may pass."""
    causes: list[BaseException] = [error]
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        inner = (getattr(cause, "reason", None), cause.__cause__, cause.__context__, *cause.args)
        causes += [e for e in inner if isinstance(e, BaseException) and e not in causes]
    return False


def _short(error: BaseException) -> str:
    """Return what went wrong at the bottom: each library wraps it once more, and quotes the whole address."""
    for _ in range(8):
        inner = [e for e in (getattr(error, "reason", None), *error.args) if isinstance(e, BaseException)]
        if not inner:
            break
        error = inner[0]
    return f"{type(error).__name__}: {str(error)[:200]}"


def _check_kind(place: str, response: requests.Response) -> None:
    """Turn away web pages and bodies in another coding."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise InputError(f"{place} answered a web page", fix=_WHO_ANSWERS)
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise InputError(f"{place} answered in the coding {coding[:40]!r}, which was not asked for")


def _content_length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    if not text.isascii() or not text.isdigit():
        return None
    return int(text[:_MOST_DIGITS])  # a longer number is too large either way, and int() refuses thousands of digits


def _wrong_size(place: str, found: int | None, size: int | None, limit: int) -> str:
    have = "more" if found is None else f"{found} bytes"
    return f"{place} answered {have} where " + (f"at most {limit} are read" if size is None else f"{size} belong")


def _larger(into: memoryview, got: int, size: int) -> memoryview:
    larger = np.empty(size, np.uint8).data
    larger[:got] = into[:got]
    return larger


def _beginning(body: memoryview) -> str:
    return repr(bytes(body[:60]).decode("utf-8", "replace"))


def _retry_after(text: str | None) -> float | None:
    """Return how many seconds the service wants us to wait; it gives them, or a date."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:_MOST_DIGITS])
    try:
        then = parsedate_to_datetime(text)
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        return max(0.0, (then - datetime.now(UTC)).total_seconds())
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None  # no date, or one that no calendar has
