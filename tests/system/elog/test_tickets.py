"""Updates with tickets of a real Kerberos realm: none, one that ends, one that is renewed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import Logbook
from nightbeam.testing.elog_service import FakeLogbook
from nightbeam.testing.kerberos import Acceptor, Realm, missing_programs

pytestmark = pytest.mark.system

_helpers = runpy.run_path(str(Path(__file__).resolve().parents[2] / "elog_mirror.py"))
differences, ledger, nothing_lost, start = (
    _helpers[name] for name in ("differences", "ledger", "nothing_lost", "start")
)


needs_kerberos = pytest.mark.skipif(
    bool(missing_programs()), reason=f"no {', '.join(missing_programs())}: apt-get install krb5-kdc"
)


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    pytest.importorskip("gssapi", reason="the Kerberos libraries are not installed", exc_type=ImportError)
    with Realm(tmp_path_factory.mktemp("realm")) as found:
        found.add_principal("HTTP/localhost")
        found.add_principal("svc-elog")
        yield found


@pytest.fixture
def guarded(realm: Realm) -> Iterator[FakeLogbook]:
    """A logbook that lets nobody in without a ticket, and takes no token twice."""
    with FakeLogbook(gate=Acceptor(realm.directory / "HTTP_localhost.keytab"), host="localhost") as service:
        service.populate(12, 5, 3, 3, parameters=14, fields=3, seed=51)
        yield service


@pytest.fixture
def ask(realm: Realm, guarded: FakeLogbook, tmp_path: Path, place: Path):
    """Run an update with the tickets of a cache."""

    def run(cache: str, *arguments: Any, **environ: str) -> tuple[int, list[dict[str, Any]], str]:
        where = ("--database", f"sqlite:///{tmp_path}/elog.db", "--database-dir", place)
        tickets = {**realm.environ(tmp_path / cache), **environ}
        process = start(guarded, "--auth", "kerberos", "--json", *where, *arguments, environ=tickets)
        out, err = process.communicate(timeout=120)
        return process.returncode, [json.loads(line) for line in out.splitlines()], err

    return run


@needs_kerberos
def test_ten_threads_with_a_ticket_from_a_keytab_are_never_turned_away(
    realm: Realm, guarded: FakeLogbook, ask: Any, tmp_path: Path
):
    realm.kinit("svc-elog", keytab=realm.directory / "svc-elog.keytab", cache=tmp_path / "cc")
    guarded.latency_s = 0.6  # a machine that has other things to do comes to ten at a time as well
    code, lines, err = ask("cc", "--jobs", "10")
    assert (code, lines[-1]["failed"], lines[-1]["retries"]) == (0, 0, 0), err
    assert differences(Logbook(f"sqlite:///{tmp_path}/elog.db"), guarded, without={"jobs"}) == []
    asked = [request for request in guarded.requests if request.prefix == "ws-kerb"]
    # Some proposals are of UED, whose questionnaires are answered with 500.
    assert {r.status for r in asked} - {500} == {200}
    assert len({r.authorization for r in asked}) == len(asked) >= 50
    assert 8 <= guarded.traffic.most_in_flight <= 10
    assert guarded.traffic.users == {"svc-elog"}


@needs_kerberos
def test_without_a_ticket_it_is_exit_code_77_with_kinit_for_a_remedy(guarded: FakeLogbook, ask: Any, tmp_path: Path):
    code, lines, err = ask("none")
    assert (code, lines) == (77, [])
    assert "there is no Kerberos ticket" in err
    assert "fix: run kinit" in err
    assert guarded.requests == []
    assert not list(tmp_path.glob("*elog*"))


@needs_kerberos
def test_a_ticket_that_expires_in_the_middle_ends_the_update_and_the_next_one_goes_on(
    realm: Realm, guarded: FakeLogbook, ask: Any, tmp_path: Path, place: Path
):
    keytab = realm.directory / "svc-elog.keytab"
    guarded.latency_s = 0.5
    realm.kinit("svc-elog", keytab=keytab, cache=tmp_path / "cc", lifetime="6s")
    code, lines, err = ask("cc", "--jobs", "2")
    assert code == 77, err
    assert "the Kerberos ticket has expired" in err
    assert "fix: run kinit" in err
    book = Logbook(f"sqlite:///{tmp_path}/elog.db")
    rows = ledger(book)
    assert rows
    assert 0 < lines[-1]["failed"] <= 12
    assert len(json.loads((place / "failed_experiments.json").read_text())) == lines[-1]["failed"]
    assert all(request.status in (200, 500) for request in guarded.requests), "an expired ticket was shown"
    guarded.latency_s = 0.0
    realm.kinit("svc-elog", keytab=keytab, cache=tmp_path / "cc")
    assert ask("cc")[0] == 0
    assert differences(book, guarded, without={"jobs"}) == []
    nothing_lost(rows, book)


#: A sync with a hook that gets a new ticket; prints how often it did, and what came.
RENEWING = """
import json, subprocess, sys
from nightbeam.catalog import Logbook
from nightbeam.elog.remote import KerberosAuth, LogbookClient
from nightbeam.elogsync.model import Policy
from nightbeam.elogsync.worker import look_around, sync
url, database, renew = json.loads(sys.argv[1])
renewed = []
auth = KerberosAuth(renew=lambda: renewed.append(subprocess.run(renew, check=True)))
book = Logbook(database)
with LogbookClient(url, auth=auth) as client:
    report = sync(client, book, look_around(client, book, Policy(everything=True)), jobs=10)
print(json.dumps([len(renewed), len(report.failed), report.seconds, str(report.stopped)]))
"""


@needs_kerberos
@pytest.mark.parametrize("how", ["hook", "keytab"])
def test_a_ticket_that_expires_in_the_middle_is_renewed_and_nobody_notices(
    realm: Realm, guarded: FakeLogbook, ask: Any, tmp_path: Path, how: str
):
    keytab, database = realm.directory / "svc-elog.keytab", f"sqlite:///{tmp_path}/elog.db"
    guarded.latency_s = 0.8
    realm.kinit("svc-elog", keytab=keytab, cache=tmp_path / "cc", lifetime="4s")
    if how == "hook":
        renew = ["kinit", "-l", "4s", "-k", "-t", str(keytab), "svc-elog"]
        done = subprocess.run(
            [sys.executable, "-c", RENEWING, json.dumps([guarded.url, database, renew])],
            env={**os.environ, **realm.environ(tmp_path / "cc")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        renewed, failed, seconds, stopped = json.loads(done.stdout)
        assert (failed, stopped) == (0, "None")
        assert 1 <= renewed <= seconds
    else:
        code, lines, err = ask("cc", "--jobs", "10", KRB5_CLIENT_KTNAME=f"FILE:{keytab}")
        assert (code, lines[-1]["failed"]) == (0, 0), err
        seconds = lines[-1]["seconds"]
    assert seconds > 4, "the ticket had no time to expire"
    assert differences(Logbook(database), guarded, without={"jobs"}) == []
    assert all(request.status in (200, 500) for request in guarded.requests)
