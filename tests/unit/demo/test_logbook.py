"""The logbook's part of the demo without a platform: what is right passes, and what is wrong is seen."""

import sqlite3
from pathlib import Path

import pytest

from nightbeam.catalog import Logbook
from nightbeam.core.settings import load_settings
from nightbeam.demo import demo_settings
from nightbeam.demo.logbook import logbook_demo
from nightbeam.demo.model import DemoReport
from nightbeam.elog.remote import LogbookClient, NoAuth
from nightbeam.elogsync.model import Policy
from nightbeam.elogsync.worker import look_around, sync

pytestmark = pytest.mark.slow


class Platform:
    """In place of the platform: runs the library's sync where the deployment would, and shows a table as the flow."""

    def __init__(self, service, url, spoil=None):
        self.service, self.url, self.spoil, self.tables = service, url, spoil, []

    def run_deployment(self, name, *, parameters=None):
        assert name == "elog-sync/default"
        book = Logbook(self.url)
        policy = Policy(jobs=True, names=("Sample_Delivery_System",), **(parameters or {}))
        with LogbookClient(self.service.url, auth=NoAuth()) as client:
            report = sync(client, book, look_around(client, book, policy), jobs=2)
        self.tables.append(
            [{"rows new": o.change.new, "rows changed": o.change.written - o.change.new} for o in report.outcomes]
        )
        if self.spoil is not None:
            self.spoil(book.database.file)
        return {"id": str(len(self.tables) - 1)}

    def flow_run(self, run_id):
        return {"state_type": "COMPLETED", "state": {}}

    def artifacts(self, run_id):
        return [{"key": "elog-table", "data": self.tables[int(run_id)]}, {"key": "elog-progress", "data": 100.0}]


@pytest.fixture
def settings(tmp_path):
    overrides = {"elog.database": "postgresql://the/sites", "elog.database_dir": "/the/sites", "elog.auth": "kerberos"}
    site = load_settings(config=Path("/dev/null"), overrides=overrides, environ={})
    return demo_settings(tmp_path / "demo", site)


def checked(settings, spoil=None):
    with logbook_demo() as demo:
        mine = settings.model_copy(update={"elog": demo.settings(settings.elog)}).resolved().elog
        return mine, demo.check(Platform(demo.service, mine.database, spoil), mine)


def test_all_is_right_and_everything_lies_in_the_demos_directory(settings, tmp_path):
    mine, rows = checked(settings)
    assert not [row for row in rows if not row.ok]
    assert len(rows) == 15
    assert mine.auth == "none"
    assert mine.database == f"sqlite:///{tmp_path}/demo/elog/elog.db"
    assert mine.database_dir == tmp_path / "demo" / "elog"


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("UPDATE logbook_entries SET content = 'no' WHERE id = 3", "first sync: elog"),
        ("UPDATE runs SET missing_since = '2026-01-01' WHERE id = 3", "first sync: runs"),
        ("UPDATE files SET size = 77 WHERE id = 3", "first sync: files"),
        ("DELETE FROM workflow_jobs WHERE id = 3", "first sync: jobs"),
        ("UPDATE questionnaires SET data = '{}'", "first sync: questionnaire"),
        ("UPDATE experiments SET status = 'ok'", "its permission withdrawn"),
    ],
)
def test_a_mirror_that_is_not_the_logbook_is_a_problem(settings, sql, what):
    def spoil(file):
        with sqlite3.connect(file) as connection:
            connection.execute(sql)
        connection.close()

    _, rows = checked(settings, spoil)
    wrong = DemoReport((), logbook=rows).problems
    assert any(what in problem for problem in wrong), rows


def test_a_run_that_fails_is_a_problem(settings):
    class Failing(Platform):
        def run_deployment(self, name, *, parameters=None):
            return {"id": "0"}

        def flow_run(self, run_id):
            return {"state_type": "FAILED", "state": {"message": "no"}}

    with logbook_demo() as demo:
        (row,) = demo.check(Failing(demo.service, ""), demo.settings(settings.elog))
    assert (row.ok, row.found) == (False, "FAILED: no")
