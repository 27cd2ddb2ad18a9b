"""The client of the calibration service with real tickets of a realm of our own.

The clients are processes of their own, because the Kerberos libraries read their variables once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam.core.errors import AuthError, MissingError
from nightbeam.testing import kerberos
from nightbeam.testing.calib_service import FakeCalibService
from nightbeam.testing.kerberos import Acceptor, Realm, missing_programs

pytest.importorskip("gssapi", reason="the Kerberos libraries are not installed", exc_type=ImportError)
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        bool(missing_programs()), reason=f"no {', '.join(missing_programs())}: apt-get install krb5-kdc"
    ),
]

CLIENT = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from nightbeam.calib.remote import CalibService, Kerberos

url, threads, questions, deadline_s = sys.argv[1], *map(float, sys.argv[2:])

def ask(_):
    try:
        return client.find("cdb_tmoc00118", "epix10ka_000001")
    except Exception as error:
        return [type(error).__name__, str(error)]

with CalibService(url, auth=Kerberos("HTTP@localhost"), deadline_s=deadline_s) as client:
    with ThreadPoolExecutor(int(threads)) as pool:
        print(json.dumps(list(pool.map(ask, range(int(threads * questions))))))
"""


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    with Realm(tmp_path_factory.mktemp("realm")) as found:
        found.add_principal("HTTP/localhost")
        found.add_principal("alice", "alice's own")
        yield found


@pytest.fixture
def fake(realm: Realm) -> Iterator[FakeCalibService]:
    with FakeCalibService(gate=Acceptor(realm.directory / "HTTP_localhost.keytab")) as service:
        yield service


@pytest.fixture
def cache(realm: Realm, tmp_path: Path) -> Path:
    found = tmp_path / "cc"
    realm.kinit("alice", keytab=realm.directory / "alice.keytab", cache=found)
    return found


def ask(realm: Realm, fake: FakeCalibService, cache: Path, *, threads: int = 1, each: int = 1, deadline_s: float = 60):
    command = [sys.executable, "-c", CLIENT, fake.url, str(threads), str(each), str(deadline_s)]
    done = subprocess.run(
        command, env={**os.environ, **realm.environ(cache)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_four_threads_ask_fifty_times_each_and_no_question_fails(realm: Realm, fake: FakeCalibService, cache: Path):
    document = fake.deploy("tmoc00118", "epix10ka_1-2", "geometry", "# QUAD 0\n", run=1)
    assert ask(realm, fake, cache, threads=4, each=50) == [[document]] * 200
    assert [r.status for r in fake.requests] == [200] * 200
    assert len({r.authorization for r in fake.requests}) == 200


def test_the_acceptor_knows_the_user_and_lets_nobody_in_twice_with_one_token(
    realm: Realm, fake: FakeCalibService, cache: Path
):
    ask(realm, fake, cache)
    shown = fake.requests[0].authorization
    keytab = realm.directory / "HTTP_localhost.keytab"
    for header in (shown, None, "", "Negotiate", "Negotiate x", "Negotiate AAAA", "Bearer abc"):
        assert Acceptor(keytab).check(header) is None
    seen: list[str] = []
    acceptor = Acceptor(keytab)

    def gate(header: str | None) -> dict[str, str] | None:
        accepted = acceptor.check(header)
        seen.append(accepted.user if accepted else "")
        return acceptor(header) if accepted is None else {"WWW-Authenticate": accepted.proof}

    with FakeCalibService(gate=gate) as other:
        assert ask(realm, other, cache) == [[]]
    assert seen == ["alice@NIGHTBEAM.TEST"]


def test_without_a_ticket_kinit_is_named_and_nobody_is_asked(realm: Realm, fake: FakeCalibService, tmp_path: Path):
    ((kind, words),) = ask(realm, fake, tmp_path / "none")
    assert kind == "AuthError"
    assert "no Kerberos ticket for HTTP@localhost" in words
    assert "kinit" in words
    assert fake.requests == []


def test_an_expired_ticket_is_said_to_be_expired(realm: Realm, fake: FakeCalibService, tmp_path: Path):
    realm.kinit("alice", password="alice's own", cache=tmp_path / "cc", lifetime="2s")
    time.sleep(3)
    ((kind, words),) = ask(realm, fake, tmp_path / "cc")
    assert kind == "AuthError"
    assert "expired" in words
    assert "kinit" in words


def test_a_ticket_that_the_service_refuses_is_a_status_of_401(realm: Realm, cache: Path, tmp_path: Path):
    realm.add_principal("HTTP/other")
    other = realm.directory / "HTTP_other.keytab"
    with FakeCalibService(gate=Acceptor(other)) as fake:
        ((kind, words),) = ask(realm, fake, cache)
        assert [r.status for r in fake.requests] == [401]
    assert kind == "AuthError"
    assert "HTTP status 401" in words


def test_who_answers_without_the_services_key_is_not_the_service(realm: Realm, cache: Path):
    with FakeCalibService(gate=lambda _: {}) as impostor:
        ((kind, words),) = ask(realm, impostor, cache)
    assert kind == "AuthError"
    assert "does not prove that it is HTTP@localhost" in words
    assert "kinit" not in words


def test_a_ticket_server_that_is_down_is_a_failure_that_passes(realm: Realm, fake: FakeCalibService, cache: Path):
    realm.stop()
    try:
        ((kind, words),) = ask(realm, fake, cache, deadline_s=2)
        with pytest.raises(AuthError, match="Cannot contact any KDC"):
            realm.kinit("alice", keytab=realm.directory / "alice.keytab", cache=cache)
    finally:
        realm.start()
    assert kind == "UnavailableError", words
    assert "Cannot contact any KDC" in words
    assert ask(realm, fake, cache) == [[]]


def test_a_wrong_password_gets_no_ticket(realm: Realm, tmp_path: Path):
    with pytest.raises(AuthError, match="Password incorrect"):
        realm.kinit("alice", password="guessed", cache=tmp_path / "cc")
    with pytest.raises(AuthError, match="not found"):
        realm.kinit("nobody", password="x", cache=tmp_path / "cc")


def test_a_machine_without_the_programs_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kerberos, "_PROGRAMS", ("kinit", "no-such-program"))
    with pytest.raises(MissingError, match="without no-such-program") as caught:
        Realm(tmp_path / "realm").start()
    assert "krb5-admin-server" in caught.value.fix
    assert not (tmp_path / "realm").exists()
