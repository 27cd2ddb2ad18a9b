"""What only PostgreSQL can do wrong with the mirror of the logbook.

What it must do as SQLite does is in ``tests/unit/catalog/test_elog*.py`` and ``tests/properties/test_elog_store.py``:
each of those tests has a twin that runs on a real PostgreSQL.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import Change, Logbook, Products, Queue, Registry
from nightbeam.core.errors import InputError, UnavailableError

pytestmark = pytest.mark.system

X = {"_id": "mfx1", "name": "mfx1"}


@pytest.fixture
def url(postgresql_url: str) -> str:
    return postgresql_url


def test_many_may_open_a_new_mirror_at_once(url: str):
    errors: list[Exception] = []

    def open_it() -> None:
        try:
            Logbook(url).experiments()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_the_mirror_lives_beside_the_other_databases(url: str):
    for kind in (Queue, Logbook, Registry, Products):
        kind(url)
    logbook = Logbook(url)
    assert logbook.problems() == []
    logbook.database.downgrade("base")
    assert Queue(url).counts()["total"] == 0
    assert Logbook(url).problems() == []


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (("experiment", "logbook", "run"), "was made by the elogfetch in use before"),
        (("experiments", "beamtime"), "is a database of something else: it has experiments"),
    ],
)
def test_tables_of_another_program_under_our_names_are_left_alone(url: str, tables: tuple[str, ...], said: str):
    queue = Queue(url)
    with queue.database.write() as connection:
        for table in tables:
            connection.exec_driver_sql(f"CREATE TABLE {table} (mine text)")
    with pytest.raises(InputError, match=said):
        Logbook(url)
    with queue.database.read() as connection:
        assert connection.exec_driver_sql(f"SELECT count(mine) FROM {tables[0]}").scalar() == 0


def test_a_newer_schema_is_refused(url: str):
    logbook = Logbook(url)
    with logbook.database.write() as connection:
        connection.exec_driver_sql("UPDATE nightbeam_elog_version SET version_num = '0099'")
    with pytest.raises(InputError, match="has schema 0099"):
        Logbook(url)


def test_a_server_that_does_not_answer_is_unavailable():
    with pytest.raises(UnavailableError, match="does not answer"):
        Logbook("postgresql://postgres@/postgres?host=/nowhere")


def test_text_lies_there_as_it_lies_in_sqlite(url: str, tmp_path: Path):
    found: list[list[Any]] = []
    for logbook in (Logbook(url), Logbook(f"sqlite:///{tmp_path}/elog.db")):
        logbook.put_experiment(X)
        odd = {"_id": "a", "content": "a\0b \ud83d \U000f0000 😀", "tags": ["é"], "x": [float("nan"), 1e300, -0.0, {}]}
        logbook.put_entries("mfx1", [odd], full=True)
        with logbook.database.read() as connection:
            rows = connection.exec_driver_sql("SELECT content, tags, extra, search_text FROM logbook_entries")
            found.append([tuple(row) for row in rows])
    assert found[0] == found[1]
    assert found[0][0][2] == '{"x":[{"$number":"NaN"},1e+300,-0.0,{}]}'


def test_a_search_uses_its_index(url: str):
    logbook = Logbook(url)
    logbook.put_experiment(X)
    texts = [{"_id": str(n), "content": f"word{n} " + "filler " * 50} for n in range(3000)]
    logbook.put_entries("mfx1", texts, full=True)
    with logbook.database.write() as connection:
        connection.exec_driver_sql("ANALYZE logbook_entries")
        plan = connection.exec_driver_sql(
            "EXPLAIN SELECT id FROM logbook_entries WHERE search_vector @@ to_tsquery('simple', '''word77''')"
        ).scalars()
        assert "idx_logbook_entries_search" in "\n".join(plan)
    assert [hit.entry_id for hit in logbook.search("word77")] == ["77"]


def test_a_writer_that_is_killed_leaves_the_last_good_state(url: str):
    logbook = Logbook(url)
    logbook.put_experiment(X)
    logbook.put_entries("mfx1", [{"_id": str(n), "content": "first"} for n in range(50)], full=True)
    code = (
        "import os\nfrom nightbeam.catalog import Logbook\n"
        "Logbook._succeeded = lambda *args, **options: os.kill(os.getpid(), 9)\n"
        "documents = [{'_id': str(n), 'content': 'second'} for n in range(60)]\n"
        f"Logbook({url!r}).put_entries('mfx1', documents, full=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9
    assert {d["content"] for d in logbook.documents("elog", "mfx1")} == {"first"}
    documents = [{"_id": str(n), "content": "second"} for n in range(60)]
    assert logbook.put_entries("mfx1", documents, full=True) == Change(new=10, changed=50)
