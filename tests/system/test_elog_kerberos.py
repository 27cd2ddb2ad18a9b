"""The client of the logbook with real tickets of a realm of our own, whose acceptor takes no token twice.

The clients are processes of their own, because the Kerberos libraries read their variables once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam.testing.elog_service import FakeLogbook
from nightbeam.testing.kerberos import Acceptor, Realm, missing_programs

pytest.importorskip("gssapi", reason="the Kerberos libraries are not installed", exc_type=ImportError)
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        bool(missing_programs()), reason=f"no {', '.join(missing_programs())}: apt-get install krb5-kdc"
    ),
]

EXP = "mfx100012325"

#: Asks in so many threads, each so often or for so many seconds; prints what came of each question, and the traffic.
CLIENT = """
import collections, json, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from nightbeam.elog.credentials import KerberosAuth
from nightbeam.elog.remote import LogbookClient

how = json.loads(sys.argv[1])
renewed = []

def renew():
    renewed.append(subprocess.run(how["renew"], check=True))

def ask(_):
    try:
        return getattr(client, how["call"])(*how["arguments"]).sha256
    except Exception as error:
        return [type(error).__name__, str(error)]

def work(thread):
    end = time.monotonic() + how["seconds"]
    found = [ask(n) for n in range(how["each"])]
    while time.monotonic() < end:
        found.append(ask(0))
    return found

auth = KerberosAuth(renew=renew if how["renew"] else None)
with LogbookClient(how["url"], auth=auth, deadline_s=how["deadline_s"], backoff_s=0.05) as client:
    with ThreadPoolExecutor(how["threads"]) as pool:
        answers = [one for part in pool.map(work, range(how["threads"])) for one in part]
print(json.dumps({"answers": answers, "renewed": len(renewed), "traffic": asdict(client.traffic)}))
"""


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    with Realm(tmp_path_factory.mktemp("realm")) as found:
        found.add_principal("HTTP/localhost")
        found.add_principal("alice", "alice's own")
        yield found


@pytest.fixture
def fake(realm: Realm) -> Iterator[FakeLogbook]:
    with FakeLogbook(gate=Acceptor(realm.directory / "HTTP_localhost.keytab"), host="localhost") as logbook:
        logbook.add_experiment(EXP)
        logbook.post(EXP, "Jet restarted")
        yield logbook


@pytest.fixture
def cache(realm: Realm, tmp_path: Path) -> Path:
    found = tmp_path / "cc"
    realm.kinit("alice", keytab=realm.directory / "alice.keytab", cache=found)
    return found


def start(realm: Realm, fake: FakeLogbook, cache: Path, *, environ: dict[str, str] | None = None, **how: Any):
    usual = {
        "url": fake.url, "threads": 1, "each": 1, "seconds": 0, "deadline_s": 60, "renew": None, "call": "entries",
        "arguments": [EXP],
    }  # fmt: skip
    command = [sys.executable, "-c", CLIENT, json.dumps({**usual, **how})]
    return subprocess.Popen(
        command,
        env={**os.environ, **realm.environ(cache), **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, talk = process.communicate(timeout=120)
    assert (process.returncode, talk) == (0, ""), talk
    found: dict[str, Any] = json.loads(out)
    return found


def ask(realm: Realm, fake: FakeLogbook, cache: Path, **how: Any) -> dict[str, Any]:
    return finish(start(realm, fake, cache, **how))


def failure(realm: Realm, fake: FakeLogbook, cache: Path, **how: Any) -> tuple[str, str]:
    ((kind, words),) = ask(realm, fake, cache, **how)["answers"]
    return kind, words


def test_ten_threads_ask_fifty_times_each_and_no_question_fails(realm: Realm, fake: FakeLogbook, cache: Path):
    found = ask(realm, fake, cache, threads=10, each=50)
    (digest,) = set(found["answers"])
    assert len(digest) == 64
    assert len(found["answers"]) == 500
    assert (found["traffic"]["requests"], found["traffic"]["retries"]) == (500, 0)
    assert dict(fake.traffic.by_status) == {200: 500}
    assert fake.traffic.users == {"alice"}
    assert len({request.authorization for request in fake.requests}) == 500
    assert fake.traffic.most_in_flight <= 10
    assert fake.connections <= 10
    assert fake.traffic.writes == ()


def test_what_fails_on_the_way_is_asked_again_with_another_token(realm: Realm, fake: FakeLogbook, cache: Path):
    for kind in ("drop", "short-body", "truncated", "502", "503", "401"):
        fake.fail(None, kind, chance=0.05)  # type: ignore[arg-type]
    found = ask(realm, fake, cache, threads=4, each=50)
    failed = [one[0] for one in found["answers"] if isinstance(one, list)]
    assert len(failed) <= 2, failed
    assert found["traffic"]["retries"] > 10
    shown = [request.authorization for request in fake.requests]
    assert len(set(shown)) == len(shown) == found["traffic"]["requests"]


def test_without_a_ticket_kinit_is_named_and_nobody_is_asked(realm: Realm, fake: FakeLogbook, tmp_path: Path):
    kind, words = failure(realm, fake, tmp_path / "none")
    assert kind == "CredentialError"
    assert "there is no Kerberos ticket" in words
    assert "run kinit" in words
    assert fake.requests == []


def test_an_expired_ticket_is_said_to_be_expired(realm: Realm, fake: FakeLogbook, tmp_path: Path):
    realm.kinit("alice", password="alice's own", cache=tmp_path / "cc", lifetime="1s")
    time.sleep(2)
    kind, words = failure(realm, fake, tmp_path / "cc")
    assert kind == "CredentialError"
    assert "the Kerberos ticket has expired" in words
    assert "run kinit" in words
    assert fake.requests == []


def test_the_doctor_says_how_long_a_ticket_is_good(realm: Realm, tmp_path: Path):
    realm.kinit("alice", password="alice's own", cache=tmp_path / "cc", lifetime="2h")
    code = "from nightbeam.elog.credentials import ticket_seconds; print(ticket_seconds())"
    environ = {**os.environ, **realm.environ(tmp_path / "cc")}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert 7000 < float(done.stdout) <= 7200


def test_a_ticket_that_the_service_refuses_is_tried_twice(realm: Realm, cache: Path):
    realm.add_principal("HTTP/other")
    with FakeLogbook(gate=Acceptor(realm.directory / "HTTP_other.keytab"), host="localhost") as fake:
        kind, words = failure(realm, fake, cache)
        assert [request.status for request in fake.requests] == [401, 401]
        assert len({request.authorization for request in fake.requests}) == 2
    assert kind == "CredentialError"
    assert "HTTP status 401" in words
    assert "was refused" in words


def test_a_cache_that_others_can_read_is_not_used(realm: Realm, fake: FakeLogbook, cache: Path):
    cache.chmod(0o644)
    kind, words = failure(realm, fake, cache)
    assert kind == "CredentialError"
    assert "can be read by others" in words
    assert fake.requests == []


def test_a_ticket_that_expires_on_the_way_is_renewed(realm: Realm, fake: FakeLogbook, tmp_path: Path):
    keytab, cache = realm.directory / "alice.keytab", tmp_path / "cc"
    realm.kinit("alice", keytab=keytab, cache=cache, lifetime="4s")
    renew = ["kinit", "-l", "4s", "-k", "-t", str(keytab), "alice"]
    found = ask(realm, fake, cache, threads=10, seconds=11, renew=renew)
    assert [one for one in found["answers"] if isinstance(one, list)] == []
    assert 2 <= found["renewed"] <= 8
    assert len(found["answers"]) > 100


def test_a_ticket_that_somebody_else_renews_in_time(realm: Realm, fake: FakeLogbook, tmp_path: Path):
    keytab, cache, stop = realm.directory / "alice.keytab", tmp_path / "cc", threading.Event()
    realm.kinit("alice", keytab=keytab, cache=cache, lifetime="4s")

    def renew() -> None:
        while not stop.wait(0.5):
            realm.kinit("alice", keytab=keytab, cache=cache, lifetime="4s")

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        found = ask(realm, fake, cache, threads=10, seconds=6)
    finally:
        stop.set()
        thread.join()
    (digest,) = set(map(str, found["answers"]))
    assert len(digest) == 64
    assert found["traffic"]["retries"] == 0


def test_with_a_client_keytab_nobody_runs_kinit(realm: Realm, fake: FakeLogbook, tmp_path: Path):
    environ = {"KRB5_CLIENT_KTNAME": f"FILE:{realm.directory / 'alice.keytab'}"}
    found = ask(realm, fake, tmp_path / "cc", threads=4, each=5, environ=environ)
    (digest,) = set(map(str, found["answers"]))
    assert len(digest) == 64
    assert fake.traffic.users == {"alice"}


@pytest.mark.parametrize("proof", [None, "Negotiate", "Negotiate AAAA", "Negotiate !", "Basic"])
def test_who_answers_without_the_services_key_is_not_the_service(realm: Realm, cache: Path, proof: str | None):
    headers = {} if proof is None else {"WWW-Authenticate": proof}
    with FakeLogbook(gate=lambda _: headers, host="localhost") as impostor:
        impostor.add_experiment(EXP)
        kind, words = failure(realm, impostor, cache)
    assert kind == "AuthError"
    assert "does not prove to be HTTP@localhost" in words
    assert "kinit" not in words


def test_every_answer_has_to_prove_where_it_comes_from_not_the_first_alone(realm: Realm, cache: Path):
    acceptor, asked = Acceptor(realm.directory / "HTTP_localhost.keytab"), []

    def gate(header: str | None) -> dict[str, str] | None:
        asked.append(header)
        return acceptor(header) if len(asked) == 1 else {}

    with FakeLogbook(gate=gate, host="localhost") as fake:
        fake.add_experiment(EXP)
        first, second = ask(realm, fake, cache, each=2)["answers"]
    assert len(first) == 64
    assert second[0] == "AuthError"


def test_failures_keep_their_meaning_and_their_words(realm: Realm, fake: FakeLogbook, cache: Path):
    fake.deny(EXP, "alice")
    kind, words = failure(realm, fake, cache)
    assert (kind, "HTTP status 403: Forbidden" in words) == ("RejectedError", True)
    kind, words = failure(realm, fake, cache, arguments=["mfx1"])
    assert (kind, "Cannot find the experiment mfx1" in words) == ("MissingError", True)
    fake.allow(EXP)
    for fault, wanted in (("500", "InputError"), ("502", "UnavailableError"), ("redirect", "AuthError")):
        fake.fail(None, fault)  # type: ignore[arg-type]
        kind, words = failure(realm, fake, cache)
        fake.recover()
        assert kind == wanted, words
    assert "HTTP status 302" in words
    fake.fail(None, "html")
    assert failure(realm, fake, cache)[0] == "AuthError"
    fake.recover()
    fake.fail(1, "503", retry_after=1)
    begin = time.monotonic()
    assert len(ask(realm, fake, cache)["answers"][0]) == 64
    assert time.monotonic() - begin > 1


def test_a_ticket_server_that_is_down_is_a_failure_that_passes(realm: Realm, fake: FakeLogbook, cache: Path):
    realm.stop()
    try:
        kind, words = failure(realm, fake, cache, deadline_s=5)
    finally:
        realm.start()
    assert kind == "UnavailableError", words
    assert "Cannot contact any KDC" in words
    assert len(ask(realm, fake, cache)["answers"][0]) == 64


def test_an_address_that_no_service_is_registered_for(realm: Realm, fake: FakeLogbook, cache: Path):
    kind, words = failure(realm, fake, cache, url=fake.url.replace("localhost", "127.0.0.1"))
    assert kind == "AuthError"
    assert "no Kerberos ticket for HTTP@127.0.0.1" in words
    assert "name the service" in words
