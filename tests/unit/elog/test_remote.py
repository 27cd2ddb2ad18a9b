"""The client against a logbook that fails in every way that we know; waiting is only counted."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import pytest

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
from nightbeam.elog import credentials, remote
from nightbeam.elog.compute import digest
from nightbeam.elog.credentials import BearerAuth, CredentialError, KerberosAuth, NoAuth, auth_from
from nightbeam.elog.model import Answer, Resource, Traffic
from nightbeam.elog.remote import ROUTES, LogbookClient, ServiceDownError
from nightbeam.testing.elog_routes import EXPERIMENT_ROUTES, SITE_ROUTES
from nightbeam.testing.elog_service import Attachment, FakeLogbook

EXP = "mfx100012325"
TOKEN = "an.example.token"

HOSTILE = (
    "", ".", "..", "../ws/start_run", f"{EXP}/ws/end_run", f"{EXP}/ws/end_run?x=", f"{EXP}/ws/start_run#",
    "%2e%2e/ws/end_run", f"..%2f{EXP}%2fws%2fend_run", f"{EXP}\\ws\\end_run", f"{EXP}\r\nHost: x", "a\0b", "\ud83d",
    f"{EXP} ", f"{EXP}?legacy_cutoff=1", "x" * 5000, f"../../run_control/{EXP}", "?", "#", ";", "%", "é\u202e",
)  # fmt: skip


class Time:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def fake() -> Iterator[FakeLogbook]:
    with FakeLogbook(token=TOKEN) as logbook:
        logbook.add_experiment(EXP, params={"PNR": "L-10001", "run_period": "25"})
        yield logbook


@pytest.fixture
def counted() -> Time:
    return Time()


@pytest.fixture
def client(fake: FakeLogbook, counted: Time) -> Iterator[LogbookClient]:
    with LogbookClient(fake.url, auth=BearerAuth(TOKEN), sleep=counted.sleep, clock=counted.clock, read_s=20) as found:
        yield found


def same(found: Any, wanted: Any) -> bool:
    """Whether two values are equal; NaN is NaN."""
    return digest(found) == digest(wanted)


# What is asked, and what comes


def test_every_list_is_what_the_logbook_holds(fake: FakeLogbook, client: LogbookClient):
    names = fake.populate(experiments=3, entries=40, runs=8, files=12, odd=0.5, huge=1, standing=1)
    for name in names:
        truth = fake.truth(name)
        assert client.info(name).document == truth.info
        assert same({one["_id"]: one for one in client.entries(name).documents}, truth.entries)
        runs = client.runs(name)
        assert same({one["num"]: one for one in runs.documents}, truth.runs)
        assert all("params" not in one for one in client.runs(name, params=False).documents)
        files = {(one["run_num"], one["path"]): one for one in client.files(name).documents}
        assert files == truth.files
        assert {one["_id"]: one for one in client.workflow_definitions(name).documents} == truth.workflow_definitions
        assert {one["_id"]: one for one in client.workflow_jobs(name).documents} == truth.workflow_jobs
    fields = client.questionnaire("25", fake.truth(names[0]).info["params"]["PNR"]).document
    shown = {one["id"]: {"category": kind, **one} for kind, ones in fields.items() for one in ones}
    assert shown == fake.truth(names[0]).questionnaire
    assert fake.traffic.writes == ()


def test_an_answer_says_how_long_it_was_and_what_tells_it_from_another(fake: FakeLogbook, client: LogbookClient):
    fake.post(EXP, "Jet restarted")
    first, again = client.entries(EXP), client.entries(EXP)
    assert first == again
    assert isinstance(first, Answer)
    assert (first.resource, first.nbytes) == (Resource.ENTRIES, fake.requests[-1].sent_bytes)
    assert re.fullmatch("[0-9a-f]{64}", first.sha256)
    fake.post(EXP, "Jet lost")
    assert client.entries(EXP).sha256 != first.sha256
    assert client.traffic == Traffic(
        requests=3, retries=0, nbytes=sum(r.sent_bytes for r in fake.requests), most_in_flight=1
    )


def test_the_lists_of_experiments(fake: FakeLogbook, client: LogbookClient):
    fake.add_experiment("Sample Delivery System", standing=True)
    fake.start_run(EXP, at=fake.now - timedelta(hours=3))
    fake.register_file(EXP, "/a.xtc2", 1, 2**33)
    assert client.recent(4) == [EXP]
    assert client.recent(2) == []
    assert fake.requests[0].authorization is None
    assert fake.requests[0].prefix == "ws"
    assert fake.requests[0].args == {"offset_secs": "14400"}
    one, other = client.summaries()
    assert (one.name, one.run_count, one.last_run, one.total_files, one.total_gib) == (EXP, 1, 1, 1, 8.0)
    assert (other.experiment_id, other.name, other.run_count) == (
        "Sample_Delivery_System", "Sample Delivery System", None,
    )  # fmt: skip
    assert client.who() == "jdoe"
    assert {one["endpoint"] for one in client.endpoints()} >= {"/lgbk/ws/experiments"}


def test_a_window_of_time_is_written_as_the_service_wants_it(fake: FakeLogbook, client: LogbookClient):
    noon = datetime(2026, 2, 3, 12, tzinfo=UTC)
    old = fake.post(EXP, "old", at=noon - timedelta(days=2))
    fake.post(EXP, "not asked for", at=noon - timedelta(days=2))
    fake.reply(EXP, old["_id"], "new", at=noon)
    answer = client.entries_between(EXP, noon.astimezone(datetime.now().astimezone().tzinfo), noon)
    assert [one["content"] for one in answer.documents] == ["old", "new"]
    assert fake.requests[-1].args == {
        "start_date": "2026-02-03T12:00:00.000000Z", "end_date": "2026-02-03T12:00:00.000000Z",
    }  # fmt: skip
    for start, end in ((noon.replace(tzinfo=None), noon), (noon, noon - timedelta(seconds=1))):
        with pytest.raises(UsageError):
            client.entries_between(EXP, start, end)


def test_attachments_come_with_their_type(fake: FakeLogbook, client: LogbookClient):
    picture = Attachment("snap.png", "image/png", bytes(range(256)), b"small")
    page = Attachment("page.html", "text/html", b"<html>mine</html>")
    entry = fake.post(EXP, "see", attachments=[picture, page])
    first, second = (one["_id"] for one in entry["attachments"])
    assert client.attachment(EXP, entry["_id"], first) == (bytes(range(256)), "image/png")
    assert client.attachment(EXP, entry["_id"], first, preview=True) == (b"small", "image/png")
    assert client.attachment(EXP, entry["_id"], second) == (b"<html>mine</html>", "text/html")
    with pytest.raises(MissingError, match="Cannot find the attachment"):
        client.attachment(EXP, entry["_id"], "f" * 24)


def test_each_request_is_a_line_of_the_log_without_the_credential(
    fake: FakeLogbook, client: LogbookClient, caplog: pytest.LogCaptureFixture
):
    fake.fail(1, "503", route="/runs$")
    with caplog.at_level(logging.DEBUG, logger="nightbeam.elog"):
        client.info(EXP)
        client.runs(EXP)
    asked = [message for message in caplog.messages if message.startswith("GET ")]
    assert [one.rpartition("/ws/")[2] for one in asked] == ["info", *["runs?includeParams=true"] * 2]
    assert TOKEN not in caplog.text


def test_documents_without_an_id_are_refused_and_counted(fake: FakeLogbook, client: LogbookClient, caplog: Any):
    ids = [fake.post(EXP, str(n))["_id"] for n in range(4)]
    fake.change_entry(EXP, ids[1], _id=None)
    fake.change_entry(EXP, ids[2], _id=5)
    answer = client.entries(EXP)
    assert ([one["content"] for one in answer.documents], answer.refused) == (["0", "3"], 2)
    assert "2 documents without _id" in caplog.text


def test_what_is_there_twice_comes_twice(fake: FakeLogbook, client: LogbookClient):
    for n in range(4):
        fake.post(EXP, str(n))
    fake.fail(1, "duplicates")
    assert [one["content"] for one in client.entries(EXP).documents] == ["0", "0", "1", "2", "3", "3"]


# Nothing is written, whatever is asked


@pytest.mark.parametrize(
    "name", sorted({n for table in (SITE_ROUTES, EXPERIMENT_ROUTES) for n, route in table.items() if route.writes})
)
def test_a_route_that_changes_something_cannot_be_asked_for(fake: FakeLogbook, client: LogbookClient, name: str):
    assert name not in ROUTES
    with pytest.raises(UsageError, match="is not asked for"):
        client._question(name, {"experiment": EXP}, {})
    for hostile in (name, f"../ws/{name}", f"{EXP}/ws/{name}?", f"{EXP}%2fws%2f{name}", f"../{name}", f"ws/{name}"):
        ask_everything(client, hostile)
    assert fake.traffic.writes == ()
    assert {request.route for request in fake.requests} <= {*ROUTES, "proposal/attribute/{period}/{proposal}"}


def ask_everything(client: LogbookClient, text: str) -> None:
    questions: tuple[Callable[[], object], ...] = (
        lambda: client.info(text), lambda: client.entries(text), lambda: client.runs(text),
        lambda: client.files(text), lambda: client.workflow_definitions(text), lambda: client.workflow_jobs(text),
        lambda: client.entries_between(text, datetime.now(UTC), datetime.now(UTC)),
        lambda: client.questionnaire(text, text), lambda: client.questionnaire("25", text),
        lambda: client.attachment(text, text, text), lambda: client.attachment(EXP, text, text),
    )  # fmt: skip
    for question in questions:
        with suppress(InputError, MissingError):
            question()


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_no_name_leads_to_another_route(fake: FakeLogbook, client: LogbookClient, name: str):
    ask_everything(client, name)
    assert fake.traffic.writes == ()
    asked = {request.route for request in fake.requests}
    assert asked <= {*ROUTES, "proposal/attribute/{period}/{proposal}"}
    assert {request.experiment for request in fake.requests} <= {"", EXP, name}
    assert {request.method for request in fake.requests} <= {"GET"}


def test_the_table_of_routes_cannot_be_changed_and_parameters_are_fixed(client: LogbookClient):
    with pytest.raises(TypeError):
        ROUTES["end_run"] = ROUTES["info"]  # type: ignore[index]
    with pytest.raises(UsageError, match="legacy_cutoff"):
        client._question("experiments", {}, {"legacy_cutoff": "1"})
    with pytest.raises(UsageError, match="experiment"):
        client._question("info", {}, {})
    with pytest.raises(InputError, match="write Sample_Delivery_System"):
        client.info("Sample Delivery System")
    for hours in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError):
            client.recent(hours)


# Sessions


def test_no_cookie_is_kept_and_each_thread_keeps_one_connection(fake: FakeLogbook, client: LogbookClient):
    names = fake.populate(experiments=20, entries=1, runs=1, files=1)
    barrier = threading.Barrier(4)

    def ask(part: int) -> None:
        barrier.wait()
        for name in names[part::4]:
            client.info(name)
            client.entries(name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    assert {request.cookie_bytes for request in fake.requests} == {0}
    assert (len(fake.requests), fake.connections) == (40, 4)
    assert 1 <= client.traffic.most_in_flight <= 4


def test_a_thread_that_is_gone_leaves_no_session(fake: FakeLogbook, client: LogbookClient):
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: client.who(), range(9)))
    client.who()
    assert len(client._sessions) <= 1
    client.close()
    assert client.who() == "jdoe"


def test_passwords_of_netrc_are_never_sent(
    fake: FakeLogbook, client: LogbookClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login mfxopr password s3cret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setattr(remote, "open_session", environment_trusted)
    client.who()
    client.recent(1)
    assert [request.authorization for request in fake.requests] == [f"Bearer {TOKEN}", None]


def environment_trusted(address: str) -> Any:
    from nightbeam.core.http import open_session

    session = open_session(address)
    session.trust_env = True  # as for an address that is not on this machine
    return session


# What a status means

NAMED = rf"the logbook's elog of experiment {EXP} at http://127.0.0.1:\d+"


@pytest.mark.parametrize(
    ("kind", "error", "times", "says"),
    [
        ("500", InputError, 3, "failed 3 times: HTTP status 500: as told"),
        ("502", UnavailableError, 4, "failed 4 times: HTTP status 502: as told"),
        ("503", UnavailableError, 4, "failed 4 times: HTTP status 503"),
        ("504", UnavailableError, 4, "failed 4 times: HTTP status 504"),
        ("429", UnavailableError, 4, "failed 4 times: HTTP status 429"),
        ("401", CredentialError, 2, 'HTTP status 401: {"error": "Unauthorized"}'),
        ("403", RejectedError, 1, "HTTP status 403: as told"),
        ("404", MissingError, 1, "HTTP status 404: as told"),
        ("redirect", AuthError, 1, "HTTP status 302"),
        ("html", AuthError, 1, "HTTP status 200, but a page instead of data: Please log in"),
        ("refused", InputError, 1, "HTTP status 200, but it failed there: as told"),
        ("empty", UnavailableError, 4, "HTTP status 200, but 0 bytes that are no JSON"),
        ("truncated", UnavailableError, 4, "bytes that are no JSON"),
        ("drop", UnavailableError, 4, "RemoteDisconnected"),
        ("reset", UnavailableError, 4, "failed 4 times"),
        ("short-body", UnavailableError, 4, "failed 4 times"),
    ],
)
def test_a_failure_that_stays(
    fake: FakeLogbook, client: LogbookClient, kind: Any, error: type[Exception], times: int, says: str
):
    fake.post(EXP, "x" * 5000)
    fake.fail(None, kind)
    with pytest.raises(error, match=NAMED) as caught:
        client.entries(EXP)
    assert type(caught.value) is error
    assert isinstance(caught.value, NightbeamError)
    assert says in caught.value.what
    assert caught.value.fix
    assert len(fake.requests) == times
    assert client.traffic.requests == times
    assert client.traffic.retries == times - 1


@pytest.mark.parametrize(
    "kind", ["500", "502", "503", "504", "429", "401", "empty", "truncated", "drop", "reset", "short-body"]
)
def test_a_failure_that_passes_is_not_seen(fake: FakeLogbook, client: LogbookClient, kind: Any):
    fake.post(EXP, "x" * 5000)
    fake.fail(1, kind)
    answer = client.entries(EXP)
    assert (len(answer.documents), answer.requests) == (1, 2)


def test_who_may_not_read_and_what_is_not_there(fake: FakeLogbook, client: LogbookClient):
    fake.deny(EXP)
    with pytest.raises(RejectedError, match="may not read it"):
        client.info(EXP)
    with pytest.raises(MissingError, match="Cannot find the experiment mfx1"):
        client.info("mfx1")
    fake.allow(EXP)
    fake.rename(EXP, "mfx2", errors=2)
    with pytest.raises(MissingError):
        client.info(EXP)
    assert client.traffic.retries == 2


def test_an_instrument_without_questionnaires(fake: FakeLogbook, client: LogbookClient):
    fake.add_experiment("ued1013843", params={"PNR": "L-7", "run_period": "25"})
    with pytest.raises(InputError, match=r"questionnaire of period 25 proposal L-7 .*has no questionnaire"):
        client.questionnaire("25", "L-7")
    with pytest.raises(MissingError, match="no such proposal"):
        client.questionnaire("25", "L-8")


def test_a_500_is_asked_again_a_few_times_only_whatever_the_attempts(fake: FakeLogbook, counted: Time):
    fake.fail(None, "500")
    client = LogbookClient(fake.url, auth=BearerAuth(TOKEN), sleep=counted.sleep, clock=counted.clock, attempts=50)
    with pytest.raises(InputError):
        client.entries(EXP)
    assert len(fake.requests) == 3


def test_pauses_grow_and_are_not_the_same_for_all(fake: FakeLogbook, counted: Time):
    fake.fail(None, "503")
    client = LogbookClient(
        fake.url, auth=BearerAuth(TOKEN), sleep=counted.sleep, clock=counted.clock, attempts=9, backoff_s=0.5
    )
    with pytest.raises(UnavailableError):
        client.entries(EXP)
    low = [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert len(counted.waits) == 8
    assert all(a <= b <= min(a + 0.5, 30) for a, b in zip(low, counted.waits, strict=True))
    assert len({round(b - a, 6) for a, b in zip(low, counted.waits, strict=True)}) > 3


def test_the_service_says_when_to_come_back(fake: FakeLogbook, client: LogbookClient, counted: Time):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    for said in ("7", later, "0", "soon", "9" * 5000, "-1"):
        fake.fail(1, "503", retry_after=said)
        with suppress(UnavailableError):
            client.entries(EXP)
    seconds, date, *short = counted.waits
    assert seconds == 7.0
    assert 55 < date <= 60
    assert len(short) == 4
    assert all(0.5 <= wait <= 1.0 for wait in short)


def test_a_pause_past_the_deadline_is_not_waited_for(fake: FakeLogbook, client: LogbookClient, counted: Time):
    fake.fail(None, "429", retry_after=3600)
    with pytest.raises(UnavailableError, match="given up at the deadline of 900 s"):
        client.entries(EXP)
    assert counted.waits == []


def test_who_is_told_to_stop_stops(fake: FakeLogbook):
    fake.fail(None, "503")
    client = LogbookClient(fake.url, auth=BearerAuth(TOKEN), sleep=lambda _: True)
    with pytest.raises(UnavailableError, match="told to stop"):
        client.entries(EXP)
    assert len(fake.requests) == 1


def test_a_service_that_is_not_there(counted: Time):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody else gets the port, and it never listens
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        client = LogbookClient(url, auth=NoAuth(), sleep=counted.sleep, clock=counted.clock)
        with pytest.raises(UnavailableError, match=r"experiment_names_updated_within at http.*failed 4 times.*refused"):
            client.recent(1)


# Other servers


@dataclass
class Place:
    url: str
    asked: list[bytes]


@contextmanager
def canned(answer: bytes, drip_s: float = 0.0, head: int = 0) -> Iterator[Place]:
    """A port of this machine that answers so for ever; after ``head`` bytes, byte by byte."""
    listener = socket.create_server(("127.0.0.1", 0))
    place = Place(f"http://127.0.0.1:{listener.getsockname()[1]}", [])

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(5)
                place.asked.append(connection.recv(65536))
                connection.sendall(answer[:head] if drip_s else answer)
                for byte in answer[head:] if drip_s else b"":
                    connection.sendall(bytes((byte,)))
                    sleep(drip_s)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.2)
                while connection.recv(65536):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield place
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def ask(place: Place, counted: Time | None = None, **more: Any) -> LogbookClient:
    counted = counted or Time()
    return LogbookClient(place.url, auth=NoAuth(), sleep=counted.sleep, clock=counted.clock, **more)


def reply(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    # Without "close" a client that has not seen the end yet would ask the next question here, in vain.
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    head += headers
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("answer", "head"),
    [
        (reply(b"[" + b" " * 5000 + b"]"), 60),
        (reply(b"[]", "200 OK", "X-Long: " + "x" * 5000), 0),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 5000 + b"2\r\n[]\r\n0\r\n\r\n", 60),
    ],
    ids=["body", "headers", "chunk length"],
)
def test_an_answer_that_trickles_is_cut_off(answer: bytes, head: int):
    begin = monotonic()
    with canned(answer, drip_s=0.02, head=head) as place:
        with pytest.raises(UnavailableError, match="not complete at the deadline"):
            ask(place, read_s=0.4, attempts=1).endpoints()
        took = monotonic() - begin
    assert 0.3 < took < 50  # all of it takes 100 s


def test_a_silent_service_is_left_in_time(fake: FakeLogbook, counted: Time):
    fake.fail(None, "slow", seconds=60)
    begin = monotonic()
    client = LogbookClient(
        fake.url, auth=BearerAuth(TOKEN), sleep=counted.sleep, clock=counted.clock, read_s=0.3, attempts=2
    )
    with pytest.raises(UnavailableError, match="failed 2 times"):
        client.entries(EXP)
    assert monotonic() - begin < 60


@pytest.mark.parametrize(
    "answer", [reply(b"[" + b" " * 100 + b"]"), b"HTTP/1.0 200 OK\r\n\r\n[" + b" " * 100 + b"]"], ids=["said", "unsaid"]
)
def test_an_answer_that_is_too_long_is_not_read(answer: bytes):
    with canned(answer) as place:
        assert ask(place, most_bytes=102).endpoints() == []
        with pytest.raises(InputError, match="101"):
            ask(place, most_bytes=101).endpoints()
    assert len(place.asked) == 2


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[]", "no answer of a logbook"),
        (b'{"value": []}', "no answer of a logbook"),
        (b'{"success": true}', "no answer of a logbook"),
        (b'{"success": "true", "value": []}', "no answer of a logbook"),
        (b'{"success": true, "value": null}', "which is no list"),
        (b'{"success": true, "value": {}}', "which is no list"),
        (b'{"success": false}', "no reason given"),
        (b'{"success": false, "errormsg": "a\\u001b[31mb\\n<b>c</b>"}', r"a\\x1b\[31mb c"),
        (b"NaN", "no answer of a logbook"),
    ],
)
def test_what_is_no_answer_of_a_logbook_is_not_asked_for_again(body: bytes, says: str):
    with canned(reply(body)) as place, pytest.raises(InputError, match=says):
        ask(place).recent(1)
    assert len(place.asked) == 1


def test_numbers_that_are_none_and_characters_that_are_half_are_read():
    body = b'{"success": true, "value": ["a", "\\ud83d", "\\u0000", NaN, -Infinity, 1e999, 123456789012345678901]}'
    with canned(reply(body, "200 OK", "Content-Type: text/html")) as place:
        client = ask(place)
        assert client.recent(1) == ["a", "\ud83d", "\0"]
        found = client._list("experiment_names_updated_within", params={"offset_secs": "1"}).value
    assert digest(found[3:]) == digest([float("nan"), float("-inf"), float("inf"), 123456789012345678901])


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff\xfe[]", b'["\xff"]', b"{", b"[1" + b"1" * 5000 + b"]"])
def test_what_is_no_json_may_have_been_cut_on_its_way(body: bytes):
    with canned(reply(body)) as place, pytest.raises(UnavailableError, match="no JSON"):
        ask(place).endpoints()
    assert len(place.asked) == 4


@pytest.mark.parametrize(
    "body", [b"a\x1b[2J\r\nb\xff\xe2\x80\xae<p onclick='x'>c</p>", b"x" * 60_000, b"x" * 1_000_000, b"<" * 60_000]
)
def test_a_sentence_of_the_service_is_shown_short_and_in_one_line(body: bytes):
    with canned(reply(body, "404 Not Found")) as place, pytest.raises(MissingError) as caught:
        ask(place).endpoints()
    assert caught.value.what.isprintable()
    assert len(caught.value.what) < 400
    if body.startswith(b"a"):
        assert r"a\x1b[2J b�\u202e c" in caught.value.what


def test_a_failure_that_breaks_off_is_still_that_failure():
    answer = reply(b"half", "404 Not Found", length=400)
    with canned(answer) as place, pytest.raises(MissingError, match="HTTP status 404"):
        ask(place).endpoints()


@pytest.mark.parametrize("status", ["400 Bad Request", "405 No", "418 Teapot", "204 No Content", "501 No", "599 ?"])
def test_any_other_status_is_no_answer(status: str):
    with canned(reply(b"", status)) as place, pytest.raises(InputError, match=status[:3]):
        ask(place).endpoints()
    assert len(place.asked) == 1


def test_a_coding_that_was_not_asked_for_is_not_read():
    with canned(reply(b"[]", "200 OK", "Content-Encoding: gzip")) as place, pytest.raises(InputError, match="gzip"):
        ask(place).endpoints()
    assert b"Accept-Encoding: identity" in place.asked[0]


def test_a_redirect_is_not_followed(fake: FakeLogbook, client: LogbookClient):
    fake.fail(None, "redirect")
    with pytest.raises(AuthError, match="to log in"):
        client.entries(EXP)
    assert [request.status for request in fake.requests] == [302]


# Who asks


def test_nobody_reads_what_is_open_and_is_told_what_to_do(fake: FakeLogbook):
    client = LogbookClient(fake.url, auth=NoAuth())
    fake.start_run(EXP)
    assert client.recent(1) == [EXP]
    with pytest.raises(AuthError) as caught:
        client.summaries()
    assert "kerberos or bearer" in caught.value.fix
    with pytest.raises(RejectedError, match="Nobody in particular"):
        client.info(EXP)


@pytest.mark.parametrize("url", ["http://example.org", "http://127.0.0.1.example.org", "http://10.0.0.1"])
def test_a_credential_is_not_sent_in_the_clear(url: str):
    with pytest.raises(ConfigError, match="in the clear"):
        LogbookClient(url, auth=BearerAuth(TOKEN))
    LogbookClient(url, auth=NoAuth())
    LogbookClient(url.replace("http", "https"), auth=BearerAuth(TOKEN))


@pytest.mark.parametrize(
    "url",
    ["", "example.org", "ftp://example.org", "https://", "https://me:s3cret@h", "https://h?x=1", "https://h#x",
     "https://h:x", "https://h:99999", "https://a b", "https://h\nx", "https://é.org", "https://[::1"],
)  # fmt: skip
def test_an_address_is_an_address(url: str):
    with pytest.raises(ConfigError, match="no address of a service") as caught:
        LogbookClient(url, auth=NoAuth())
    assert "s3cret" not in str(caught.value)


def test_limits_are_positive(fake: FakeLogbook):
    for limits in ({"attempts": 0}, {"read_s": 0}, {"connect_s": -1}, {"deadline_s": 0}, {"backoff_s": -1}):
        with pytest.raises(ConfigError):
            LogbookClient(fake.url, auth=NoAuth(), **limits)  # type: ignore[arg-type]


def test_a_development_instance_has_other_addresses():
    with FakeLogbook(application="devlgbk") as fake:
        fake.add_experiment(EXP)
        assert LogbookClient(fake.url, auth=BearerAuth("x"), application="devlgbk").info(EXP).document["_id"] == EXP
        with pytest.raises(MissingError):
            LogbookClient(fake.url, auth=BearerAuth("x")).info(EXP)
        with pytest.raises(InputError):
            LogbookClient(fake.url, auth=BearerAuth("x"), application="lgbk/..").info(EXP)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    write_token(path, TOKEN)
    return path


def write_token(path: Path, token: str, mode: int = 0o600) -> None:
    part = path.with_suffix(".part")
    part.write_text(f"{token}\n")
    part.chmod(mode)
    part.replace(path)


def test_a_token_file_is_read_again_when_it_changes(fake: FakeLogbook, token_file: Path):
    client = LogbookClient(fake.url, auth=BearerAuth(file=token_file))
    assert client.who() == "jdoe"
    fake.revoke_token(TOKEN)
    fake.allow_token("a.newer.token", "zoe")
    with pytest.raises(CredentialError, match="refused") as caught:
        client.who()
    assert "log in" in caught.value.fix
    write_token(token_file, "a.newer.token")
    assert client.who() == "zoe"
    assert fake.requests[-1].authorization == "Bearer a.newer.token"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700 | 0o010])
def test_a_token_that_others_can_read_is_not_used(fake: FakeLogbook, token_file: Path, mode: int):
    client = LogbookClient(fake.url, auth=BearerAuth(file=token_file))
    client.who()
    token_file.chmod(mode)
    with pytest.raises(AuthError, match="can be read by others") as caught:
        client.who()
    assert "chmod 600" in caught.value.fix
    assert len(fake.requests) == 1


def test_what_holds_no_token_is_no_token(fake: FakeLogbook, tmp_path: Path):
    (tmp_path / "pipe").parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    for name, words in (("empty", ""), ("two", "a b"), ("odd", "é"), ("lines", "a\nb")):
        write_token(tmp_path / name, words)
    for name in ("pipe", "folder", "empty", "two", "odd", "lines", "none"):
        with pytest.raises(CredentialError, match=name):
            LogbookClient(fake.url, auth=BearerAuth(file=tmp_path / name)).who()
    assert fake.requests == []
    for token in ("a b", "a\nb", "é"):
        with pytest.raises(ConfigError):
            BearerAuth(token)
    with pytest.raises(ConfigError):
        BearerAuth()


def test_a_token_that_has_expired_is_known_without_asking(fake: FakeLogbook, token_file: Path, tmp_path: Path):
    meta = tmp_path / "meta.json"
    client = LogbookClient(fake.url, auth=BearerAuth(file=token_file, meta=meta))
    for words in ("", "{", "[]", '{"expires_at": "tomorrow"}', '{"expires_at": NaN}', '{"expires_at": true}'):
        meta.write_text(words)
        assert client.who() == "jdoe"
    meta.write_text(json.dumps({"expires_at": time() + 3600}))
    assert client.who() == "jdoe"
    meta.write_text(json.dumps({"expires_at": time() - 3600}))
    assert client.who() == "jdoe"  # the token is younger: the note is about another one
    os.utime(token_file, (time() - 7200, time() - 7200))
    asked = len(fake.requests)
    with pytest.raises(CredentialError, match=r"has expired at 20\d\d-") as caught:
        client.who()
    assert "log in" in caught.value.fix
    assert len(fake.requests) == asked


def test_the_token_is_found_where_the_facility_puts_it(tmp_path: Path, fake: FakeLogbook):
    for name in ("home", "given", "named"):
        fake.allow_token(name, name)
    fake.allow_token("job", "job")
    write_token(tmp_path / ".s3df-access-token", "home")
    write_token(tmp_path / "named", "named")
    write_token(tmp_path / "given", "given")
    environ = {"HOME": str(tmp_path)}

    def who(token_file: Path | None = None) -> str:
        return LogbookClient(fake.url, auth=auth_from("bearer", environ, token_file=token_file)).who()

    assert who() == "home"
    environ["S3DF_TOKEN_FILE"] = str(tmp_path / "named")
    assert who() == "named"
    environ["Authorization"] = "Bearer job"
    assert who() == "job"
    assert who(tmp_path / "given") == "given"
    (tmp_path / "meta").write_text('{"expires_at": 1.5}')
    del environ["Authorization"]
    os.utime(tmp_path / "named", (0, 0))
    environ["S3DF_TOKEN_META"] = str(tmp_path / "meta")
    with pytest.raises(CredentialError, match="expired at 1970"):
        who()
    assert isinstance(auth_from("none", {}), NoAuth)
    with pytest.raises(ConfigError):
        auth_from("basic", {})  # type: ignore[arg-type]


def test_a_token_that_expires_on_the_way_is_renewed_once_for_all_threads(fake: FakeLogbook, token_file: Path):
    renewed: list[str] = []

    def renew() -> None:
        renewed.append(f"token.number.{len(renewed)}")
        fake.allow_token(renewed[-1])
        write_token(token_file, renewed[-1])

    client = LogbookClient(fake.url, auth=BearerAuth(file=token_file, renew=renew), sleep=lambda _: None)
    barrier = threading.Barrier(10)

    def work(thread: int) -> list[str]:
        found = []
        for n in range(20):
            if barrier.wait() == 0 and n == 10:
                fake.revoke_token(TOKEN)
            barrier.wait()
            found.append(client.who())
        return found

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(work, range(10))) == [["jdoe"] * 20] * 10
    assert len(renewed) == 1
    assert client.traffic.most_in_flight <= 10


def test_a_renewal_that_fails_is_told(fake: FakeLogbook):
    def broken() -> None:
        raise OSError("no such program: kinit")

    fake.revoke_token(TOKEN)
    with pytest.raises(AuthError, match="no fresh credential could be had: OSError: no such program: kinit"):
        LogbookClient(fake.url, auth=BearerAuth(TOKEN, renew=broken)).who()

    def refused() -> None:
        raise AuthError("kinit: wrong key")

    with pytest.raises(AuthError, match="kinit: wrong key"):
        LogbookClient(fake.url, auth=BearerAuth(TOKEN, renew=refused)).who()


def test_no_message_shows_a_token(fake: FakeLogbook, token_file: Path, caplog: Any):
    caplog.set_level(logging.DEBUG)
    client = LogbookClient(fake.url, auth=BearerAuth(TOKEN), sleep=lambda _: None)
    for kind in ("500", "401", "redirect", "html", "drop", "truncated"):
        fake.fail(None, kind)  # type: ignore[arg-type]
        with pytest.raises(NightbeamError) as caught:
            client.entries(EXP)
        fake.recover()
        assert TOKEN not in f"{caught.value} {client!r} {caught.value.__cause__}"
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(BearerAuth(file=token_file))


def test_errors_reach_another_process_whole():
    error = pickle.loads(pickle.dumps(CredentialError("expired", fix="run kinit")))
    assert (type(error), error.what, error.fix, error.exit_code) == (CredentialError, "expired", "run kinit", 77)


def test_without_the_libraries_kerberos_is_a_matter_of_installation(monkeypatch: pytest.MonkeyPatch):
    credentials._kerberos.cache_clear()
    monkeypatch.setitem(sys.modules, "requests_kerberos", None)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        KerberosAuth()
    for wrong in ("HTTP", "HTTP@", "@host"):
        with pytest.raises(ConfigError, match="does not name a service"):
            KerberosAuth(wrong)
    credentials._kerberos.cache_clear()


# Many faults at once


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["500", "502", "503", "504", "429", "401", "empty", "drop", "reset", "short-body", "truncated", "slow"],
)
def test_one_fault_in_ten_is_not_seen_by_ten_threads(kind: Any):
    with FakeLogbook(token=TOKEN, seed=7) as fake:
        names = fake.populate(experiments=12, entries=10, runs=5, files=8, parameters=20)
        clean = LogbookClient(fake.url, auth=BearerAuth(TOKEN))
        wanted = {name: lists(clean, name) for name in names}
        fake.forget()
        fake.fail(None, kind, chance=0.1, seconds=0.05 if kind == "slow" else 0)
        client = LogbookClient(fake.url, auth=BearerAuth(TOKEN), sleep=lambda _: None, attempts=6)
        failed: list[NightbeamError] = []

        def work(name: str) -> None:
            try:
                assert lists(client, name) == wanted[name]
            except NightbeamError as error:
                failed.append(error)

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(work, names * 2))
        traffic = fake.traffic
    # Of two in a row nobody is told with 401, and of three with 500.
    few = {"401": 10, "500": 2}.get(kind, 0)
    assert len(failed) <= few
    assert all(type(error) in (CredentialError, InputError) for error in failed)
    assert traffic.writes == ()
    assert traffic.most_in_flight <= 10
    assert client.traffic.requests == traffic.requests
    assert kind == "slow" or client.traffic.retries > 0


def lists(client: LogbookClient, name: str) -> list[str]:
    asked = (client.info, client.entries, client.runs, client.files, client.workflow_definitions, client.workflow_jobs)
    return [one(name).sha256 for one in asked]


def test_after_ten_questions_without_an_answer_the_service_is_taken_to_be_down(
    fake: FakeLogbook,
):
    with LogbookClient(fake.url, auth=BearerAuth(TOKEN), attempts=1, backoff_s=0.0) as client:
        fake.fail(9, "503")
        for _ in range(9):
            with pytest.raises(UnavailableError) as caught:
                client.info(EXP)
            assert not isinstance(caught.value, ServiceDownError)
        client.info(EXP)  # one answer, and it begins anew
        fake.fail(None, "503")
        for _ in range(9):
            with pytest.raises(UnavailableError):
                client.info(EXP)
        with pytest.raises(ServiceDownError, match=r"10 questions in a row had no answer; .*HTTP status 503"):
            client.info(EXP)
