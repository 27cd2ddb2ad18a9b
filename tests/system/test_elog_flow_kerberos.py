"""The flow ``elog-sync`` with a keytab and tickets that live for seconds, in a realm of our own.

The flow is a process of its own, because the Kerberos libraries read their variables once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
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

#: Runs the flow once under Prefect's test server. ``kinit`` is the real one with a short life of tickets.
FLOW = """
import json, sys
from prefect.testing.utilities import prefect_test_harness
how = json.loads(sys.argv[1])
with prefect_test_harness(server_startup_timeout=120):
    from blocks import ElogService
    from flows.elog_sync import elog_sync
    life = how.pop("life")
    plain = ElogService.kinit
    if life:
        ElogService.kinit = lambda self: [*plain(self)[:1], "-l", life, *plain(self)[1:]]
    ElogService(auth="kerberos", options={"parallel_jobs": 3, "everything": True}, **how).save("main", overwrite=True)
    try:
        told = elog_sync.with_options(retries=0)("main")
    except Exception as error:
        told = {"error": type(error).__name__, "said": str(error)}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    with Realm(tmp_path_factory.mktemp("realm")) as found:
        found.add_principal("HTTP/localhost")
        yield found


@pytest.fixture(scope="module")
def keytab(realm: Realm) -> Path:
    return realm.add_principal("svc-elog")


@pytest.fixture
def fake(realm: Realm) -> Iterator[FakeLogbook]:
    with FakeLogbook(gate=Acceptor(realm.directory / "HTTP_localhost.keytab"), host="localhost") as logbook:
        logbook.populate(4, 5, 2, 3, parameters=4, seed=1)
        for name in logbook.experiments:
            logbook.allow(name, "svc-elog")
        yield logbook


def run(realm: Realm, fake: FakeLogbook, directory: Path, **how: Any) -> dict[str, Any]:
    told = {
        "url": fake.url,
        "database": f"sqlite:///{directory}/elog.db",
        "database_dir": str(directory),
        "principal": "svc-elog",
        "life": None,
        **how,
    }
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KRB5")}
    environ |= realm.environ(directory / "nobody's") | {"PREFECT_HOME": str(directory / "prefect")}
    done = subprocess.run(
        [sys.executable, "-c", FLOW, json.dumps(told)],
        env=environ, capture_output=True, text=True, timeout=200, check=False, cwd=directory,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_ticket_from_the_keytab_that_expires_on_the_way_is_renewed(realm, keytab, fake, tmp_path):
    fake.fail(None, "slow", route="/(elog|runs|files)$", seconds=1.5)
    told = run(realm, fake, tmp_path, keytab=str(keytab), life="4s")
    assert told.get("failed") == 0, told
    assert told["experiments"] == 4
    assert fake.traffic.users  # and the service knew who asked
    assert {user.partition("@")[0] for user in fake.traffic.users} == {"svc-elog"}


def test_a_keytab_that_is_none_is_said_and_nobody_is_asked(realm, fake, tmp_path):
    (tmp_path / "bad.keytab").write_bytes(b"no keytab")
    told = run(realm, fake, tmp_path, keytab=str(tmp_path / "bad.keytab"))
    assert told["error"] == "AuthError"
    assert "no ticket for svc-elog from the keytab: kinit ended with exit code 1: kinit: " in told["said"]
    assert "bad.keytab" not in told["said"]
    assert fake.requests == []
