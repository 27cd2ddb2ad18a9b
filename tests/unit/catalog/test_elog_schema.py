"""The mirror's tables, and every way in which a file can be the wrong one or not be written."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nightbeam.catalog import Change, Logbook, Queue
from nightbeam.catalog.elog_schema import VIEWS, ElogBase
from nightbeam.core.errors import BusyError, InputError, MissingError, StorageError, UsageError

pytestmark = pytest.mark.slow

X = {"_id": "mfx1", "name": "mfx1"}

#: As the older tool's design makes them: names in order, and SQLite types.
OLDER = {
    "experiments": "id INTEGER, name TEXT, instrument TEXT, start_time TEXT, end_time TEXT, description TEXT, "
    "updated_at TEXT",
    "logbook_entries": "id INTEGER, experiment_id INTEGER, entry_id TEXT, author TEXT, content TEXT, created_at TEXT, "
    "tags TEXT",
    "runs": "id INTEGER, experiment_id INTEGER, run_number INTEGER, start_time TEXT, end_time TEXT, parameters TEXT",
    "files": "id INTEGER, experiment_id INTEGER, path TEXT, size INTEGER, created_at TEXT",
    "questionnaires": "id INTEGER, experiment_id INTEGER, data TEXT, updated_at TEXT",
    "workflows": "id INTEGER, experiment_id INTEGER, data TEXT, updated_at TEXT",
    "metadata": "key TEXT, value TEXT",
}

#: A file of the tool in use before, as far as its tables are known.
IN_USE_BEFORE = """
CREATE TABLE Experiment (experiment_id TEXT PRIMARY KEY, name TEXT);
CREATE TABLE Run (run_id INTEGER PRIMARY KEY, run_number INTEGER, experiment_id TEXT);
CREATE TABLE Logbook (log_id INTEGER PRIMARY KEY, experiment_id TEXT, run_id INTEGER, content TEXT);
CREATE TABLE Metadata (key TEXT PRIMARY KEY, value TEXT);
INSERT INTO Experiment VALUES ('mfx1', 'mfx1');
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "elog.db"


@pytest.fixture
def logbook(file: Path) -> Logbook:
    made = Logbook(f"sqlite:///{file}", busy_timeout_s=0.1)
    made.put_experiment(X)
    return made


def run_script(file: Path, script: str) -> None:
    with closing(sqlite3.connect(file)) as raw:
        raw.executescript(script)


@pytest.mark.parametrize("name", sorted(OLDER))
def test_the_first_columns_are_those_of_the_older_design(logbook: Logbook, file: Path, name: str):
    with closing(sqlite3.connect(file)) as raw:
        found = [f"{row[1]} {row[2]}" for row in raw.execute(f"PRAGMA table_info({name})")]
    wanted = OLDER[name].split(", ")
    assert found[: len(wanted)] == wanted


def test_a_new_file_is_in_wal_mode_with_its_schema_version(logbook: Logbook, file: Path):
    with closing(sqlite3.connect(file)) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert raw.execute("PRAGMA user_version").fetchone() == (1,)
    logbook.database.downgrade("base")
    with closing(sqlite3.connect(file)) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (0,)


def test_the_reference_names_every_table_column_and_view(root: Path):
    page = (root / "docs" / "reference" / "elog-database.md").read_text()
    named = set(re.findall(r"`(\w+)`", page))
    for table in ElogBase.metadata.sorted_tables:
        assert {table.name, *(column.name for column in table.columns)} <= named, table.name
    for view in VIEWS:
        assert {view.name, *view.columns} <= named, view.name


def test_the_package_is_light_until_the_mirror_is_asked_for():
    code = (
        "import sys, nightbeam.catalog, nightbeam.elog.compute;"
        "light = sorted({'sqlalchemy', 'alembic', 'requests', 'numpy'} & set(sys.modules));"
        "nightbeam.catalog.Logbook; print(light, 'sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"


# -- the wrong file -----------------------------------------------------------------------------------------------


def test_a_file_of_the_tool_in_use_before_is_left_as_it_is(file: Path):
    run_script(file, IN_USE_BEFORE)
    before = file.read_bytes()
    said = r"elog\.db was made by the elogfetch in use before(.|\n)*fix: leave it as it is and name another file"
    for _ in range(2):
        with pytest.raises(InputError, match=said):
            Logbook(f"sqlite:///{file}")
    assert file.read_bytes() == before
    assert not [path for path in file.parent.iterdir() if path.name.startswith("elog.db-")]


def test_a_database_of_something_else_is_left_as_it_is(file: Path):
    run_script(file, "CREATE TABLE beamtime (a); CREATE TABLE notes (b);")
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"is a database of something else: it has beamtime, notes"):
        Logbook(f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_another_database_of_ours_is_not_taken_for_a_mirror(file: Path):
    Queue(f"sqlite:///{file}")
    with pytest.raises(InputError, match="is a database of something else: it has attempts"):
        Logbook(f"sqlite:///{file}")


def test_an_empty_file_becomes_a_mirror(file: Path):
    file.touch()
    assert Logbook(f"sqlite:///{file}").problems() == []


def test_a_newer_schema_is_refused_with_what_to_do(logbook: Logbook, file: Path):
    run_script(file, "UPDATE nightbeam_elog_version SET version_num = '0099'")
    with pytest.raises(InputError, match=r"has schema 0099, this nightbeam knows 0001 at most(.|\n)*upgrade nightbeam"):
        Logbook(f"sqlite:///{file}")


def test_a_file_that_is_no_database_is_named(file: Path):
    file.write_text("hello, this is a text of some length" * 40)
    with pytest.raises(InputError, match=r"elog\.db is no SQLite database"):
        Logbook(f"sqlite:///{file}")


def test_a_file_that_is_not_there_is_not_made_where_nobody_asked_for_it(file: Path):
    with pytest.raises(MissingError, match=r"there is no elog database .*elog\.db"):
        Logbook(f"sqlite:///{file}", create=False)
    assert list(file.parent.glob("elog*")) == []


def test_damage_is_found(logbook: Logbook, file: Path):
    logbook.put_entries("mfx1", [{"_id": str(n), "content": "word " * 400} for n in range(200)], full=True)
    assert logbook.problems() == []
    run_script(file, "UPDATE logbook_fts_data SET block = x'0000000000' WHERE id > 100")
    assert [line[:9] for line in logbook.problems()] == ["full text"]
    run_script(file, "PRAGMA foreign_keys=OFF; INSERT INTO workflows (experiment_id, digest) VALUES (77, '')")
    assert "workflows row 1 has no experiments" in logbook.problems()


def test_a_snapshot_is_looked_through_without_being_changed(logbook: Logbook, file: Path):
    logbook.put_entries("mfx1", [{"_id": str(n), "content": "word " * 400} for n in range(200)], full=True)
    snapshot = logbook.backup(file.with_name("elog_2026_0203_1200.db"))
    before, names = snapshot.read_bytes(), set(file.parent.iterdir())
    copy = Logbook(f"sqlite:///{snapshot}", read_only=True)
    assert (copy.problems(), copy.counts(), len(copy.search("word"))) == ([], logbook.counts(), 100)
    with pytest.raises(UsageError, match="read only"):
        copy.put_experiment({"_id": "b", "name": "b"})
    assert (snapshot.read_bytes(), set(file.parent.iterdir())) == (before, names)
    run_script(snapshot, "UPDATE logbook_fts_data SET block = x'0000000000' WHERE id > 100")
    assert [line[:9] for line in copy.problems()] == ["full text"]


def test_a_mirror_that_was_copied_from_a_snapshot_is_not_stopped_by_its_readers(logbook: Logbook, file: Path):
    snapshot = logbook.backup(file.with_name("elog_2026_0203_1200.db"))
    restored = file.with_name("restored.db")
    restored.write_bytes(snapshot.read_bytes())
    again = Logbook(f"sqlite:///{restored}", busy_timeout_s=0.1)
    again.put_entries("mfx1", [{"_id": "a"}], full=True)
    with closing(sqlite3.connect(restored, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM logbook_entries").fetchone() == (1,)
        assert again.put_entries("mfx1", [{"_id": "a"}, {"_id": "b"}], full=True).new == 1
        assert reader.execute("SELECT count(*) FROM logbook_entries").fetchone() == (1,)


# -- not to be written --------------------------------------------------------------------------------------------


def test_a_locked_mirror_is_busy_after_the_wait_and_can_be_read(logbook: Logbook, file: Path):
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BusyError, match=r"elog\.db stayed locked for 0\.1 s"):
            logbook.put_entries("mfx1", [{"_id": "a"}], full=True)
        assert logbook.experiment("mfx1").name == "mfx1"
    assert logbook.put_entries("mfx1", [{"_id": "a"}], full=True) == Change(new=1)


def test_a_mirror_has_one_sync_whatever_it_is_called_by(logbook: Logbook, file: Path):
    (file.parent / "elsewhere").mkdir()
    link = file.parent / "elsewhere" / "link.db"
    link.symlink_to(file)
    with Logbook(f"sqlite:///{link}").sole_writer():
        with pytest.raises(BusyError, match="the sync of"), logbook.sole_writer():
            raise AssertionError("held twice")
        assert file.with_name(".elog.db.sync.lock").exists()
    assert list(link.parent.iterdir()) == [link]


def test_a_directory_in_the_place_of_the_file_cannot_be_written(file: Path):
    file.mkdir()
    with pytest.raises(StorageError, match=r"elog\.db"):
        Logbook(f"sqlite:///{file}")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory in which nothing can be made, once it is closed."""
    made = tmp_path / "published"
    made.mkdir()
    yield made
    made.chmod(0o755)


def elsewhere(code: str, *, file_bytes: int | None = None) -> str:
    """Run code in a process to which permissions apply, also root's, or whose files can only be so large."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        elif os.geteuid() == 0:
            for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
                libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP

    libc = ctypes.CDLL(None)
    code = (
        "from pathlib import Path; from nightbeam.catalog import Logbook\n"
        "from nightbeam.core.errors import NightbeamError\n"
        f"try:\n  {code}\nexcept NightbeamError as error:\n  print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_directory_that_is_read_only_is_named(read_only: Path):
    read_only.chmod(0o555)
    said = elsewhere(f"Logbook('sqlite:///{read_only}/elog.db')")
    assert re.match(rf"StorageError cannot write {read_only}/", said)
    assert "fix: check" in said


def test_a_snapshot_is_read_by_one_who_may_not_write(logbook: Logbook, read_only: Path):
    logbook.put_entries("mfx1", [{"_id": "a", "content": "jet"}], full=True)
    snapshot = logbook.backup(read_only / "elog_2026_0203_1200.db")
    read_only.chmod(0o555)
    url = f"sqlite:///{snapshot}"
    assert elsewhere(f"print(Logbook('{url}', create=False).search('jet')[0].entry_id)") == "a\n"
    assert elsewhere(f"print(Logbook('{url}', create=False).problems())") == "[]\n"
    said = elsewhere(f"Logbook('{url}').mark('mfx1', 'gone')")
    assert re.match(rf"StorageError cannot write {snapshot}: attempt to write a readonly database\n  fix:", said)
    assert [path.name for path in read_only.iterdir()] == [snapshot.name]


def test_a_full_disk_leaves_what_was_there(logbook: Logbook, file: Path, tmp_path: Path):
    logbook.put_entries("mfx1", [{"_id": "a", "content": "first"}], full=True)
    room = 400_000
    large = "[{'_id': 'a', 'content': 'second'}, {'_id': 'b', 'content': 'x' * 900_000}]"
    said = elsewhere(f"Logbook('sqlite:///{file}').put_entries('mfx1', {large}, full=True)", file_bytes=room)
    assert re.match(
        rf"StorageError cannot write {file}: .*\n  fix: check its owner, its mount and the free space", said
    )
    again = Logbook(f"sqlite:///{file}")
    assert list(again.documents("elog", "mfx1")) == [{"_id": "a", "content": "first"}]
    assert again.problems() == []
    again.put_entries("mfx1", [{"_id": "b", "content": "x" * 900_000}], full=False)
    snapshot = tmp_path / "out" / "snapshot.db"
    snapshot.parent.mkdir()
    snapshot.write_text("the last one")
    said = elsewhere(f"Logbook('sqlite:///{file}').backup(Path('{snapshot}'))", file_bytes=room)
    assert re.match(rf"StorageError cannot write {snapshot}: ", said)
    assert [path.name for path in snapshot.parent.iterdir()] == [snapshot.name]
    assert snapshot.read_text() == "the last one"
