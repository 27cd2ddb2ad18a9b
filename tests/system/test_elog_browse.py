"""``nightbeam elog browse``: who may look, what is shown of hostile entries, that nothing is written, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import requests

from nightbeam.catalog import Logbook
from nightbeam.core.errors import UsageError
from nightbeam.elog.remote import LogbookClient, NoAuth
from nightbeam.elogsync.browse import arguments
from nightbeam.elogsync.model import Policy
from nightbeam.elogsync.worker import look_around, sync
from nightbeam.testing.elog_service import FakeLogbook

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

CONTROL = "outside.invalid"
HOSTILE = f'<script>document.title = "owned"</script><img src="http://{CONTROL}/x.png" onerror="owned()"> jet'
TITLE = '<b onmouseover="owned()">Jet</b>'
TAG = "<u>"
AUTHOR = '"><i>jdoe'
ADDRESS = f'http://{CONTROL}/a"onclick="owned()'
PAGES = (
    "/",
    "/elog",
    "/elog/logbook_entries",
    "/elog/logbook_entries/1",
    "/elog/logbook_entries?_search=jet",
    "/elog/logbook_entries?_facet=author&_facet_array=tags",
    "/elog/Logbook",
    "/elog/Experiment",
    "/elog/run_parameters",
    "/elog/sync_state",
    "/elog?sql=select+content+from+logbook_entries",
)
#: What may not be shown to whom the link was not given.
SECRET = ("/elog.json", "/elog/logbook_entries.csv", "/-/databases.json", "/elog.json?sql=select+1", "/-/metadata")
WRITING = (
    "DELETE FROM runs",
    "INSERT INTO metadata VALUES ('a', 'b')",
    "WITH x AS (SELECT 1) DELETE FROM runs",
    "WITH x AS (SELECT 1) UPDATE runs SET run_number = 0",
    "DROP TABLE runs",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA writable_schema = 1",
    "ATTACH DATABASE 'other.db' AS other",
    "VACUUM INTO 'copy.db'",
    "SELECT load_extension('x')",
    "SELECT writefile('x', 'y')",
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A mirror of a logbook in which somebody has written what a browser would execute."""
    place = tmp_path / "mirror"
    book = Logbook(f"sqlite:///{place}/elog.db")
    with FakeLogbook(everyone="jdoe") as fake:
        (experiment,) = fake.populate(1, 10, 3, 4, parameters=14, seed=4)
        fake.post(experiment, HOSTILE, title=TITLE, author=AUTHOR, tags=[TAG])
        fake.post(experiment, ADDRESS, title="javascript:owned()")
        with LogbookClient(fake.url, auth=NoAuth()) as client:
            plan = look_around(client, book, Policy(everything=True))
            assert not sync(client, book, plan).failed
    return place


@dataclass
class Browsing:
    process: subprocess.Popen[bytes]
    base: str
    link: str

    def visitor(self) -> requests.Session:
        """Somebody who has the link."""
        session = requests.Session()
        session.trust_env = False
        assert session.get(self.link, timeout=30).status_code == 200
        return session


@pytest.fixture
def browse(directory: Path, tmp_path: Path, until: Callable[..., Any]) -> Iterator[Callable[..., Browsing]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str, **environ: str) -> Browsing:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        argv = [sys.executable, "-m", "nightbeam", "elog", "browse", "--port", str(port)]
        out, err = tmp_path / "browse.out", tmp_path / "browse.err"
        with out.open("wb") as to, err.open("wb") as errors:
            started.append(
                subprocess.Popen(
                    [*argv, "--database-dir", str(directory), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=to,
                    stderr=errors,
                    env={**os.environ, **environ},
                    start_new_session=True,
                )
            )
        until(lambda: "Uvicorn running" in err.read_text() or started[-1].poll() is not None, 60.0)
        assert started[-1].poll() is None, err.read_text()
        return Browsing(started[-1], f"http://127.0.0.1:{port}", out.read_text().split()[0])

    yield start
    for process in started:
        process.kill()
        process.wait(30)


def rows(directory: Path) -> dict[str, int]:
    return Logbook(f"sqlite:///{directory}/elog.db", create=False).counts()


def test_pages_come_and_what_people_wrote_is_shown_and_not_executed(browse):
    browsing = browse()
    visitor = browsing.visitor()
    for page in PAGES:
        answer = visitor.get(browsing.base + page, timeout=30)
        assert answer.status_code == 200, page
        assert not [bad for bad in ("<script>document", "<img", "<b on", "<i>jdoe", "<u>") if bad in answer.text], page
        assert 'onclick="owned' not in answer.text
        assert 'href="javascript:' not in answer.text
    shown = visitor.get(f"{browsing.base}/elog/logbook_entries?_search=jet", timeout=30).text
    assert "&lt;script&gt;document.title" in shown
    assert "&lt;b onmouseover=" in shown
    found = visitor.get(f"{browsing.base}/elog/logbook_entries.json?_search=owned&_shape=array", timeout=30).json()
    assert HOSTILE in [row["content"] for row in found], "the search looks into contents"


def test_nobody_sees_anything_without_the_link_which_opens_once(browse):
    browsing = browse(DATASETTE_SECRET="known to everybody")
    for page in (*PAGES, *SECRET):
        assert requests.get(browsing.base + page, timeout=30).status_code == 403, page
    visitor = browsing.visitor()
    assert visitor.get(f"{browsing.base}/elog", timeout=30).status_code == 200
    assert requests.get(browsing.link, timeout=30).status_code == 403
    assert visitor.get(f"{browsing.base}/elog.db", timeout=30).status_code == 403, "the file itself is not handed out"
    assert visitor.get(f"{browsing.base}/elog/nothing", timeout=30).status_code == 404


def test_nothing_can_be_written(browse, directory):
    before, counts = (directory / "elog.db").read_bytes(), rows(directory)
    browsing = browse()
    visitor = browsing.visitor()
    for sql in WRITING:
        for ending in ("", ".json"):
            answer = visitor.get(f"{browsing.base}/elog{ending}?sql={quote(sql)}", timeout=30)
            assert answer.status_code in (400, 500), sql
    for path in ("/elog", "/elog/runs", "/elog/runs/1", "/elog/runs/-/insert", "/elog/runs/1/-/delete", "/-/create"):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert visitor.request(method, browsing.base + path, json={}, timeout=30).status_code >= 400, (method, path)
    browsing.process.terminate()
    browsing.process.wait(30)
    assert (directory / "elog.db").read_bytes() == before
    assert rows(directory) == counts
    assert not [path for path in directory.iterdir() if path.name in ("other.db", "copy.db", "x")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)])
def test_a_signal_ends_it_and_no_process_stays(browse, number, code):
    browsing = browse()
    visitor = browsing.visitor()
    family = [browsing.process.pid, *(p.pid for p in psutil.Process(browsing.process.pid).children(recursive=True))]
    assert len(family) == 1, "who is killed in any way leaves nobody behind"
    browsing.process.send_signal(number)
    assert browsing.process.wait(20) == code
    assert not [pid for pid in family if psutil.pid_exists(pid)]
    with pytest.raises(requests.ConnectionError):
        visitor.get(browsing.base, timeout=5)


def test_a_sync_goes_on_beside_it_and_its_rows_are_shown(browse, directory):
    browsing = browse()
    visitor = browsing.visitor()
    book = Logbook(f"sqlite:///{directory}/elog.db")
    (experiment,) = book.experiments()
    entry = {
        "_id": "6" * 24,
        "content": "meanwhile",
        "author": "zoë",
        "content_type": "TEXT",
        "insert_time": "2026-02-03T04:05:06+00:00",
        "relevance_time": "2026-02-03T04:05:06+00:00",
    }
    assert book.put_entries(experiment.experiment_id, [entry], full=False).new == 1
    assert "meanwhile" in visitor.get(f"{browsing.base}/elog/logbook_entries?_search=meanwhile", timeout=30).text


def test_a_port_that_is_taken_is_said(directory):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        argv = [sys.executable, "-m", "nightbeam", "elog", "browse", "--database-dir", str(directory), "--port", port]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert port in done.stderr
    assert "--port" in done.stderr


def test_a_file_whose_name_would_mean_write_to_sqlite_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot open"):
        arguments(tmp_path / "elog.db?mode=rwc&x=.db", port=1)


def test_the_page_asks_nobody_but_its_own_server(browse, browser):
    browsing = browse()
    browser.open(browsing.link, shows="Electronic logbook")
    for page in ("/elog", "/elog/logbook_entries/1", "/elog/Logbook", "/elog?sql=select+content+from+logbook_entries"):
        browser.open(browsing.base + page, shows="elog")
    browser.open(f"{browsing.base}/elog/logbook_entries?_search=jet", shows="<script>document.title")
    assert browser.run("document.title") != "owned"
    assert browser.run("document.querySelectorAll('img, b[onmouseover], [onclick]').length") == 0
    assert f"{browsing.base}/elog" in browser.asked
    assert browser.outside() == set()
    assert browser.hosts_asked(CONTROL) == {"127.0.0.1", CONTROL}
