"""The logbook's web service: the one door through which it is asked. Nothing is written there."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, urlencode

import requests
import urllib3
import urllib3.exceptions

from nightbeam.core.errors import (
    AuthError,
    ConfigError,
    InputError,
    MissingError,
    NightbeamError,
    RejectedError,
    UnavailableError,
    UsageError,
)
from nightbeam.core.http import (
    Cutter,
    TransientError,
    content_length,
    is_loopback,
    open_session,
    printable,
    read_body,
    reason,
    service_address,
    transport_errors,
)
from nightbeam.elog.compute import experiment_id_of, loads, summary_of, window_time
from nightbeam.elog.credentials import Auth, BearerAuth, CredentialError, KerberosAuth, NoAuth, auth_from
from nightbeam.elog.model import Answer, Document, Resource, Summary, Traffic

__all__ = [
    "ROUTES",
    "SITE_URL",
    "Auth",
    "BearerAuth",
    "CredentialError",
    "KerberosAuth",
    "LogbookClient",
    "NoAuth",
    "Route",
    "ServiceDownError",
    "auth_from",
]

_log = logging.getLogger(__name__)
T = TypeVar("T")

SITE_URL: Final = "https://pswww.slac.stanford.edu"
#: Of a page that says why something failed; no sentence is longer.
_MOST_SENTENCE_BYTES: Final = 1 << 16
_LONGEST_PART: Final = 200
_LONGEST_WAIT_S: Final = 30.0
#: So many questions in a row that came to nothing, each with all its attempts, and the service is taken to be down.
_MOST_SILENT: Final = 10
_HEALING: Final = frozenset({408, 425, 429, 502, 503, 504})


# What may be asked


@dataclass(frozen=True, slots=True)
class Route:
    """One address of the service that only reads.

    Attributes
    ----------
    path
        Parts of the address after the prefix; what is in braces is filled in.
    params
        What may follow the question mark.
    is_open
        Whether nobody needs to say who asks.
    bare
        Whether the answer has no envelope.
    final_500
        Whether status 500 is an answer, that there is nothing, and not asked for again.
    """

    path: tuple[str, ...]
    params: frozenset[str] = frozenset()
    is_open: bool = False
    bare: bool = False
    final_500: bool = False


def _site(call: str, *params: str, **more: bool) -> Route:
    return Route(("{application}", "lgbk", "ws", call), frozenset(params), **more)


def _experiment(call: str, *params: str) -> Route:
    return Route(("{application}", "lgbk", "{experiment}", "ws", call), frozenset(params))


#: All that is ever asked. Some thirty other routes take GET and change something.
ROUTES: Final[Mapping[str, Route]] = MappingProxyType(
    {
        "experiment_names_updated_within": _site("experiment_names_updated_within", "offset_secs", is_open=True),
        "experiments": _site("experiments"),
        "usergroups": _site("usergroups"),
        "api_endpoints": _site("api_endpoints", bare=True),
        "info": _experiment("info"),
        "elog": _experiment("elog"),
        "search_elog": _experiment("search_elog", "start_date", "end_date"),
        "attachment": _experiment("attachment", "entry_id", "attachment_id", "prefer_preview"),
        "runs": _experiment("runs", "includeParams"),
        "files": _experiment("files"),
        "workflow_definitions": _experiment("workflow_definitions"),
        "workflow_jobs": _experiment("workflow_jobs"),
        "questionnaire": Route(
            ("questionnaire", "ws", "proposal", "attribute", "run{period}", "{proposal}"), bare=True, final_500=True
        ),
    }
)

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def _path(route: Route, parts: Mapping[str, str]) -> str:
    """Return the path of an address, every part checked and percent-encoded."""
    done = []
    for template in route.path:
        before, brace, rest = template.partition("{")
        done.append(template if not brace else before + quote(_part(rest[:-1], parts), safe=""))
    return "/".join(done)


def _part(name: str, parts: Mapping[str, str]) -> str:
    if name not in parts:
        raise UsageError(f"the address needs {name}")
    text = parts[name]
    # Encoded or not, servers and proxies read these as the ends of parts, or as a way up.
    wrong = not text or text.strip(".") == "" or set(text) & set("/\\") or len(text) > _LONGEST_PART
    if wrong or any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in text):
        raise InputError(f"{printable(text)!r} is no {name} of a logbook", fix="check how it is written")
    if name == "experiment" and " " in text:
        raise InputError(f"{printable(text)!r} is a name; its id is asked for", fix=f"write {experiment_id_of(text)}")
    return text


def _query(name: str, route: Route, params: Mapping[str, str]) -> str:
    strange = sorted(set(params) - route.params)
    if strange:
        raise UsageError(f"the logbook's {name} is not asked with {', '.join(strange)}")
    try:
        return urlencode(params, quote_via=quote, safe="")
    except UnicodeEncodeError as error:
        raise InputError(f"the logbook's {name} cannot be asked for half a character") from error


@dataclass(frozen=True, slots=True)
class _Question:
    """``about``: how messages name it; ``site``: whether it is about no experiment."""

    name: str
    route: Route
    url: str
    about: str
    auth: Auth
    site: bool


@dataclass(frozen=True, slots=True)
class _Reply:
    body: bytearray
    type: str
    requests: int = 1


@dataclass(frozen=True, slots=True)
class _Parsed:
    value: Any
    nbytes: int
    sha256: str
    requests: int


# When to ask again


class _Patience(urllib3.Retry):
    """How often and when one question is asked again.

    It is not given to the connections: what they repeat has the same Kerberos token, which is good for one request.

    Attributes
    ----------
    most_500
        How often status 500 is, which wrong questions get too.
    """

    most_500 = 2

    def new(self, **changes: Any) -> Self:
        """Return one with other counts."""
        made = super().new(**changes)
        made.most_500 = self.most_500
        return made

    def is_exhausted(self) -> bool:
        """Whether it is time to give up."""
        return super().is_exhausted() or sum(one.status == 500 for one in self.history) > self.most_500

    def get_backoff_time(self) -> float:
        """Return how long to wait; the original does not wait at all the first time."""
        wait_s = self.backoff_factor * 2 ** (len(self.history) - 1) + random.random() * self.backoff_jitter
        return float(min(self.backoff_max, wait_s))

    def after(self, url: str, error: TransientError) -> tuple[Self, float]:
        """Return what is left of it after a failure, and how long to wait.

        Raises
        ------
        MaxRetryError
            If nothing is left.
        """
        if error.status is None:
            left = self.increment("GET", url, error=urllib3.exceptions.ProtocolError(str(error)))
            return left, left.get_backoff_time()
        said = {"Retry-After": error.retry_after} if error.retry_after else {}
        response = urllib3.HTTPResponse(status=error.status, headers=said)
        left = self.increment("GET", url, response=response)
        try:
            asked = left.get_retry_after(response) or 0.0
        except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
            asked = 0.0
        # A service that says "at once" while it fails is not hammered for it.
        return left, max(asked, left.get_backoff_time())


# The client


class ServiceDownError(UnavailableError):
    """Nothing has been answered for many questions: there is no use in asking for anything else now."""


class LogbookClient:
    """Asks the logbook; reads only. May be shared by threads, each of which has a session of its own.

    Parameters
    ----------
    base_url
        All of an address before the prefix.
    auth
        `KerberosAuth`, `BearerAuth` or `NoAuth`. None: `KerberosAuth`.
    connect_s
        How long it may take to be connected.
    read_s
        How long an answer may take, from the question to its last byte.
    attempts
        How often one question is asked, at most, while failures are of a kind that can heal; status 500 three times.
    backoff_s
        The first pause between two of them; it doubles, and as much again is added by chance.
    application
        The first ``lgbk`` of addresses: ``devlgbk`` for a development instance.
    most_bytes
        The largest answer that is read.
    deadline_s
        How long one question may take with all that is asked again.
    sleep
        Waits for so many seconds; a true result (``threading.Event.wait``) means: stop trying.
    clock
        Only goes forward.

    Raises
    ------
    ConfigError
        If the address makes no sense, or a credential would be sent in the clear.

    Notes
    -----
    Every question raises, besides what its method says:

    - `AuthError`: nobody is let in without a (fresh) credential; the credential was refused twice; a redirect or a
      login page came instead of an answer.
    - `RejectedError`: the user may not read that experiment.
    - `MissingError`: there is no such experiment.
    - `InputError`: the service says that it cannot answer (``success: false``; status 500 again and again), or
      answers something else than was asked for.
    - `UnavailableError`: it failed until attempts or time were used up; a later try may work.
    - `ServiceDownError`, one of those: so did many questions before it, whoever asked, and none had an answer.

    Examples
    --------
    >>> with LogbookClient(auth=KerberosAuth()) as client:  # doctest: +SKIP
    ...     for entry in client.entries("mfx100012325").documents:
    ...         print(entry["insert_time"], entry["content"])
    """

    def __init__(
        self,
        base_url: str = SITE_URL,
        *,
        auth: Auth | None = None,
        connect_s: float = 5.0,
        read_s: float = 300.0,
        attempts: int = 4,
        backoff_s: float = 0.5,
        application: str = "lgbk",
        most_bytes: int = 1 << 30,
        deadline_s: float = 900.0,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base_url = service_address(base_url)
        self._auth: Auth = KerberosAuth() if auth is None else auth
        if self._auth.secret and not self.base_url.startswith("https://") and not is_loopback(self.base_url):
            raise ConfigError(f"a credential would be sent in the clear to {self.base_url}", fix="use an https address")
        if attempts < 1 or min(connect_s, read_s, deadline_s) <= 0 or backoff_s < 0 or most_bytes < 1:
            raise ConfigError("a limit of the logbook's client is not positive", fix="leave the limits as they are")
        self._connect_s, self._read_s, self._deadline_s = connect_s, read_s, deadline_s
        self._patience = _Patience(
            attempts - 1,
            backoff_factor=backoff_s,
            backoff_jitter=backoff_s,
            backoff_max=_LONGEST_WAIT_S,
            allowed_methods={"GET"},
        )
        self._application, self._most_bytes = application, most_bytes
        self._sleep, self._clock = sleep, clock
        self._own = threading.local()
        self._sessions: weakref.WeakSet[requests.Session] = weakref.WeakSet()
        self._lock, self._renewing = threading.Lock(), threading.Lock()
        self._renewals, self._in_flight, self._traffic = 0, 0, Traffic()
        self._silent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LogbookClient({self.base_url!r}, auth={self._auth!r})"

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()

    @property
    def traffic(self) -> Traffic:
        """What has been asked so far."""
        with self._lock:
            return self._traffic

    # About no experiment

    def recent(self, hours: float) -> list[str]:
        """Return the names (not ids) of the experiments whose latest run began within so many hours, or some more.

        Everybody may ask; some of them the user may not read.
        """
        if not 0 < hours < 1e7:
            raise UsageError(f"no window of time is {hours} hours long")
        found = self._list("experiment_names_updated_within", params={"offset_secs": str(math.ceil(hours * 3600))})
        return [one for one in found.value if isinstance(one, str) and one]

    def summaries(self) -> list[Summary]:
        """Return every experiment that the user may read, with the counts of its runs and files; several MB."""
        found, kept = self._list("experiments").value, []
        for one in found:
            try:
                kept.append(summary_of(one if isinstance(one, Mapping) else {}))
            except InputError:
                continue
        if len(kept) < len(found):
            _log.warning("%d experiments without _id or name were passed over", len(found) - len(kept))
        return kept

    def who(self) -> str:
        """Return the user whom the service takes us for."""
        user = self._object("usergroups").value.get("userid")
        if not isinstance(user, str) or not user:
            raise InputError(f"the logbook at {self.base_url} does not say who we are")
        return user

    def endpoints(self) -> list[Document]:
        """Return what the service says of its routes: ``endpoint``, ``methods``, ``docstring``."""
        return [one for one in self._list("api_endpoints").value if isinstance(one, Mapping)]

    # About one

    def info(self, experiment_id: str) -> Answer:
        """Return the experiment's own document."""
        return _whole(Resource.INFO, self._object("info", {"experiment": experiment_id}))

    def entries(self, experiment_id: str) -> Answer:
        """Return all entries, the deleted ones and earlier versions too."""
        return self._documents(Resource.ENTRIES, "elog", experiment_id)

    def entries_between(self, experiment_id: str, start: datetime, end: datetime) -> Answer:
        """Return the entries that were written or edited between two moments, and all that these answer.

        What was deleted meanwhile is not among them, nor what was copied from another logbook later.
        """
        if start.tzinfo is None or end.tzinfo is None or start > end:
            raise UsageError(f"there is no time between {start} and {end}", fix="give times with zones, in order")
        params = {"start_date": window_time(start), "end_date": window_time(end)}
        return self._documents(Resource.ENTRIES, "search_elog", experiment_id, params)

    def runs(self, experiment_id: str, *, params: bool = True) -> Answer:
        """Return all runs, with all of their parameters unless told otherwise."""
        return self._documents(Resource.RUNS, "runs", experiment_id, {"includeParams": "true" if params else "false"})

    def files(self, experiment_id: str) -> Answer:
        """Return all files."""
        return self._documents(Resource.FILES, "files", experiment_id)

    def workflow_definitions(self, experiment_id: str) -> Answer:
        """Return all definitions of workflows."""
        return self._documents(Resource.WORKFLOWS, "workflow_definitions", experiment_id)

    def workflow_jobs(self, experiment_id: str) -> Answer:
        """Return all jobs of workflows that are still defined."""
        return self._documents(Resource.JOBS, "workflow_jobs", experiment_id)

    def questionnaire(self, period: str, proposal: str) -> Answer:
        """Return the questionnaire of a proposal: fields by category (`nightbeam.elog.compute.proposal_of`)."""
        return _whole(Resource.QUESTIONNAIRE, self._object("questionnaire", {"period": period, "proposal": proposal}))

    def attachment(
        self, experiment_id: str, entry_id: str, attachment_id: str, *, preview: bool = False
    ) -> tuple[bytes, str]:
        """Return what is attached to an entry, and the type that was noted at upload.

        Parameters
        ----------
        preview
            The small picture of it; a general icon where there is none.
        """
        params = {"entry_id": entry_id, "attachment_id": attachment_id}
        question = self._question(
            "attachment", {"experiment": experiment_id}, params | ({"prefer_preview": "true"} if preview else {})
        )
        reply = self._ask(question, lambda _, got: got)
        return bytes(reply.body), reply.type

    def _documents(
        self, resource: Resource, name: str, experiment_id: str, params: Mapping[str, str] = _NOTHING
    ) -> Answer:
        found = self._list(name, {"experiment": experiment_id}, params)
        # Runs and files are known by other things than their _id.
        named = resource in (Resource.RUNS, Resource.FILES)
        good = tuple(one for one in found.value if isinstance(one, dict) and (named or isinstance(one.get("_id"), str)))
        refused = len(found.value) - len(good)
        if refused:
            _log.warning("%s of %s: %d documents without _id are refused", name, experiment_id, refused)
        return Answer(resource, good, found.nbytes, found.sha256, found.requests, refused)

    def _list(self, name: str, parts: Mapping[str, str] = _NOTHING, params: Mapping[str, str] = _NOTHING) -> _Parsed:
        return self._parsed(name, parts, params, list)

    def _object(self, name: str, parts: Mapping[str, str] = _NOTHING) -> _Parsed:
        return self._parsed(name, parts, _NOTHING, dict)

    def _parsed(
        self,
        name: str,
        parts: Mapping[str, str],
        params: Mapping[str, str],
        kind: type[list[Any]] | type[dict[str, Any]],
    ) -> _Parsed:
        question = self._question(name, parts, params)
        found = self._ask(question, _parse)
        if not isinstance(found.value, kind):
            raise InputError(
                f"{question.about}: the service answers {printable(repr(found.value), 60)}, "
                f"which is no {'list' if kind is list else 'object'}"
            )
        return found

    # One question

    def _question(self, name: str, parts: Mapping[str, str], params: Mapping[str, str]) -> _Question:
        """Return a question; there is no other way to make one, and only those of `ROUTES` are made."""
        route = ROUTES.get(name)
        if route is None:
            raise UsageError(f"the logbook is not asked for {name!r}", fix=f"one of {', '.join(ROUTES)}")
        auth = NoAuth() if route.is_open else self._auth
        path, query = _path(route, {**parts, "application": self._application}), _query(name, route, params)
        url = f"{self.base_url}/{auth.prefix}/{path}" + (f"?{query}" if query else "")
        whose = " ".join(f"{key} {printable(value)}" for key, value in parts.items())
        about = f"the logbook's {name}" + (f" of {whose}" if whose else "") + f" at {self.base_url}"
        return _Question(name, route, url, about, auth, not parts)

    def _ask(self, question: _Question, parse: Callable[[_Question, _Reply], T]) -> T:
        """Ask until there is an answer that can be read, or too many questions in a row had none."""
        try:
            answer = self._ask_again(question, parse)
        except UnavailableError as error:
            with self._lock:
                self._silent += 1
                silent = self._silent
            if silent >= _MOST_SILENT:
                raise ServiceDownError(
                    f"{silent} questions in a row had no answer; {error.what}", fix=error.fix
                ) from error
            raise
        except NightbeamError:
            self._heard()
            raise
        self._heard()
        return answer

    def _heard(self) -> None:
        with self._lock:
            self._silent = 0

    def _ask_again(self, question: _Question, parse: Callable[[_Question, _Reply], T]) -> T:
        end = self._clock() + self._deadline_s
        patience, tries, renewed = self._patience, 0, False
        while True:
            generation = self._renewals
            try:
                question.auth.check()
                tries += 1
                with self._flying(again=tries > 1):
                    reply = self._try(question, end)
                return parse(question, replace(reply, requests=tries))
            except TransientError as error:
                patience = self._wait(question, patience, error, tries, end)
            except CredentialError as error:
                if renewed:
                    raise
                self._renew(question.auth, generation, error)
                renewed = True

    @contextmanager
    def _flying(self, *, again: bool) -> Iterator[None]:
        """Count a request."""
        with self._lock:
            self._in_flight += 1
            now = self._traffic
            most = max(now.most_in_flight, self._in_flight)
            self._traffic = Traffic(now.requests + 1, now.retries + again, now.nbytes, most)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1

    def _wait(
        self, question: _Question, patience: _Patience, error: TransientError, tries: int, end: float
    ) -> _Patience:
        """Wait before the next try, or give up."""
        what = f"{question.about} failed {tries} time{'s' * (tries > 1)}: {error}"
        fix = "nothing was changed; a later try may work"
        if error.status == 500 and question.route.final_500:
            raise InputError(what, fix="some instruments have theirs elsewhere") from error
        try:
            left, pause = patience.after(question.url, error)
        except urllib3.exceptions.MaxRetryError:
            if error.status == 500:
                raise InputError(what, fix="check what is asked for; if it is right, try again later") from error
            raise UnavailableError(what, fix=fix) from error
        if self._clock() + pause >= end:
            raise UnavailableError(f"{what}; given up at the deadline of {self._deadline_s:g} s", fix=fix) from error
        _log.info("%s; again in %.1f s", what, pause)
        if self._sleep(pause):
            raise UnavailableError(f"{what}; told to stop", fix=fix) from error
        return left

    def _renew(self, auth: Auth, generation: int, error: CredentialError) -> None:
        """Get a fresh credential, unless another thread has done so since ours was used."""
        with self._renewing:
            if self._renewals != generation:
                return
            _log.info("%s; asking for a fresh credential", error.what)
            try:
                auth.refresh()
            except NightbeamError:
                raise
            except Exception as failure:
                raise AuthError(
                    f"{error.what}, and no fresh credential could be had: {reason(failure)}", fix=error.fix
                ) from failure
            self._renewals += 1

    def _try(self, question: _Question, end: float) -> _Reply:
        seconds = min(self._read_s, max(end - self._clock(), 0.001))
        _log.debug("GET %s", question.url)  # credentials are in headers only
        with transport_errors(question.about), Cutter(seconds):
            response = self._session().get(
                question.url,
                timeout=(min(self._connect_s, seconds), seconds),
                headers={"Accept": "*/*" if question.name == "attachment" else "application/json"},
                stream=True,
                allow_redirects=False,
                auth=question.auth.prepare(),
            )
            with response:
                if response.status_code != 200:
                    raise _failure(question, response)
                body = read_body(response, question.about, most_bytes=self._most_bytes)
                with self._lock:
                    self._traffic = replace(self._traffic, nbytes=self._traffic.nbytes + len(body))
                return _Reply(body, response.headers.get("Content-Type", "application/octet-stream"))

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = open_session(self.base_url)
            with self._lock:
                self._sessions.add(session)
        return session


def _failure(question: _Question, response: requests.Response) -> Exception:
    """Return what a status means; nothing else of the answer is believed."""
    status, auth = response.status_code, question.auth
    sentence = _sentence(question, response)
    what = f"HTTP status {status}" + (f": {sentence}" if sentence else "")
    full = f"{question.about}: {what}"
    if status == 500 or status in _HEALING:
        return TransientError(what, status=status, retry_after=response.headers.get("Retry-After"))
    if status == 401:
        return CredentialError(f"{full}. The credential was refused", fix=f"{auth.remedy}; check the clock")
    if 300 <= status < 400:
        return AuthError(f"{full}. It wants to send us elsewhere, to log in", fix=auth.remedy)
    if status == 403:
        return _forbidden(question, full)
    if status == 404:
        fix = "check the service's address" if question.site else "check the id; it may have been renamed or removed"
        return MissingError(f"{full}. There is no such thing", fix=fix)
    return InputError(f"{full}. That is neither an answer nor a failure that passes", fix="check the service's address")


def _forbidden(question: _Question, full: str) -> Exception:
    if not isinstance(question.auth, NoAuth):
        return RejectedError(f"{full}. The user may not read it", fix="ask the experiment's leader to be let in")
    if question.site:
        return AuthError(f"{full}. Nobody may read that", fix=question.auth.remedy)
    return RejectedError(f"{full}. Nobody in particular asks, who may not read it", fix=question.auth.remedy)


def _sentence(question: _Question, response: requests.Response) -> str:
    """Return what the service says of a failure; empty where it says too much, or breaks off."""
    said = content_length(response)
    if said is None or said > _MOST_SENTENCE_BYTES:
        return ""
    try:
        with transport_errors(question.about):
            return printable(bytes(read_body(response, question.about, most_bytes=_MOST_SENTENCE_BYTES)))
    except (TransientError, NightbeamError):
        return ""


def _parse(question: _Question, reply: _Reply) -> _Parsed:
    """Return the value of an answer with status 200."""
    nbytes, digest = len(reply.body), hashlib.sha256(reply.body).hexdigest()
    start = bytes(reply.body[:200])
    if start.lstrip().startswith(b"<"):
        raise AuthError(
            f"{question.about}: HTTP status 200, but a page instead of data: {printable(start, 80)}",
            fix=f"{question.auth.remedy}; if that does not help, the service is being maintained",
        )
    try:
        document = loads(reply.body.decode("utf-8", "surrogatepass"))
    except (InputError, UnicodeDecodeError) as error:
        # Cut short on its way, by a proxy that did not say so.
        raise TransientError(f"HTTP status 200, but {nbytes} bytes that are no JSON") from error
    value = document if question.route.bare else _unwrapped(question, document)
    return _Parsed(value, nbytes, digest, reply.requests)


def _unwrapped(question: _Question, document: Any) -> Any:
    if isinstance(document, dict) and document.get("success") is True and "value" in document:
        return document["value"]
    if isinstance(document, dict) and document.get("success") is False:
        words = printable(str(document.get("errormsg") or "no reason given"))
        raise InputError(
            f"{question.about}: HTTP status 200, but it failed there: {words}",
            fix="if that makes no sense, tell those who run the logbook",
        )
    raise InputError(
        f"{question.about}: HTTP status 200, but no answer of a logbook: {printable(repr(document), 80)}",
        fix="check the service's address",
    )


def _whole(resource: Resource, found: _Parsed) -> Answer:
    return Answer(resource, (found.value,), found.nbytes, found.sha256, found.requests)
