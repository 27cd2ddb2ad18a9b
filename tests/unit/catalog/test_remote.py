"""Opening a database: made, adopted, migrated, or refused with one clear error."""

from __future__ import annotations

import sqlite3
import threading
import traceback
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from nightbeam.catalog import Products, Queue, Registry, schema
from nightbeam.catalog.remote import Database, sqlite_errors
from nightbeam.core.errors import (
    BusyError,
    ConfigError,
    InputError,
    MissingError,
    StorageError,
    UnavailableError,
    UsageError,
)
from nightbeam.core.locks import sole_owner

BASES = {"queue": schema.QueueBase, "registry": schema.RegistryBase, "products": schema.ProductsBase}

# As the seed's code makes them (its CREATE TABLE statements), the products from before it had stages.
SEED_QUEUE = """
CREATE TABLE ingest_queue (group_id TEXT PRIMARY KEY, state TEXT NOT NULL, received_at REAL NOT NULL,
  last_update REAL NOT NULL, expected_subbands INTEGER, retry_count INTEGER NOT NULL DEFAULT 0, error TEXT,
  checkpoint_path TEXT, processing_stage TEXT DEFAULT 'collecting', chunk_minutes REAL,
  has_calibrator INTEGER DEFAULT NULL, calibrators TEXT);
CREATE TABLE subband_files (group_id TEXT NOT NULL, subband_idx INTEGER NOT NULL, path TEXT NOT NULL,
  PRIMARY KEY (group_id, subband_idx));
CREATE TABLE performance_metrics (group_id TEXT PRIMARY KEY, load_time REAL, phase_time REAL, write_time REAL,
  total_time REAL, writer_type TEXT, recorded_at REAL NOT NULL);
INSERT INTO ingest_queue (group_id, state, received_at, last_update) VALUES ('2025-10-02T01:05:00', 'pending', 1, 2);
INSERT INTO subband_files VALUES ('2025-10-02T01:05:00', 3, '/data/a_sb03.hdf5');
"""
SEED_REGISTRY = """
CREATE TABLE caltables (id INTEGER PRIMARY KEY, set_name TEXT NOT NULL, path TEXT NOT NULL UNIQUE,
  table_type TEXT NOT NULL, order_index INTEGER NOT NULL, cal_field TEXT, refant TEXT, created_at REAL NOT NULL,
  valid_start_mjd REAL, valid_end_mjd REAL, status TEXT NOT NULL, notes TEXT);
INSERT INTO caltables VALUES (1, 'old', '/cal/x_kcal', 'K', 10, '0', '103', 5.0, NULL, NULL, 'active', NULL);
"""
SEED_PRODUCTS = """
CREATE TABLE ms_index (path TEXT PRIMARY KEY, start_mjd REAL, end_mjd REAL, mid_mjd REAL, processed_at REAL,
  status TEXT);
CREATE TABLE images (id INTEGER PRIMARY KEY, path TEXT NOT NULL, ms_path TEXT NOT NULL, created_at REAL NOT NULL,
  type TEXT NOT NULL, beam_major_arcsec REAL, noise_jy REAL, pbcor INTEGER DEFAULT 0);
INSERT INTO images (path, ms_path, created_at, type, noise_jy) VALUES ('/i/a', '/m/a', 1, '5min', 0.1);
INSERT INTO images (path, ms_path, created_at, type, noise_jy) VALUES ('/i/a', '/m/a', 2, '5min', 0.2);
"""


SEED_MOSAICS = """
CREATE TABLE mosaics (id INTEGER PRIMARY KEY, name TEXT NOT NULL, created_at REAL NOT NULL, status TEXT NOT NULL,
  method TEXT, tiles TEXT NOT NULL, output_path TEXT);
"""


def seed_file(path: Path, script: str) -> str:
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(script)
        raw.commit()
    return f"sqlite:///{path}"


@pytest.mark.parametrize("name", ["queue", "registry", "products"])
def test_the_migrations_give_what_the_models_say(database_url: str, name: Any):
    database = Database(database_url.replace("a-database", "new/dir/a-database"), name)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, BASES[name].metadata)
    assert [d[1].name for d in differences] == [f"nightbeam_{name}_version"]


def test_a_new_file_is_in_wal_mode_with_its_schema_version_and_foreign_keys(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path}/q.sqlite3", "queue")
    with closing(sqlite3.connect(tmp_path / "q.sqlite3")) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert raw.execute("PRAGMA user_version").fetchone() == (8,)
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


def test_a_queue_of_the_seed_is_adopted_with_its_rows(tmp_path: Path):
    queue = Queue(seed_file(tmp_path / "ingest.sqlite3", SEED_QUEUE))
    (row,) = queue.groups()
    assert (row.group_id, row.state, row.attempts, row.subbands_present) == ("2025-10-02T01:05:00", "pending", 0, 1)
    assert queue.subbands(row.group_id)[0].late == 0
    assert [d.group_id for d in queue.take_dispatchable(5)] == [row.group_id]


def test_a_registry_of_the_seed_is_adopted_and_its_set_without_window_serves_no_time(tmp_path: Path):
    registry = Registry(seed_file(tmp_path / "cal.sqlite3", SEED_REGISTRY), check=lambda path: None)
    assert [s.set for s in registry.sets()] == ["old"]
    assert registry.find_set(60000.0) is None
    assert registry.active_paths(name="old") == [Path("/cal/x_kcal")]


def test_products_of_an_old_seed_get_their_columns_and_lose_doubled_rows(tmp_path: Path):
    products = Products(seed_file(tmp_path / "products.sqlite3", SEED_PRODUCTS))
    assert [(i.path, i.noise_jy) for i in products.images()] == [("/i/a", 0.2)]
    assert products.upsert_ms(Path("/m/a"), stage="imaged", cal_applied=1).cal_applied == 1


def test_of_several_mosaics_of_one_name_the_newest_that_was_built_stays(tmp_path: Path):
    made = """
INSERT INTO mosaics (name, created_at, status, tiles, output_path) VALUES ('night', 0, 'planned', 't', NULL),
  ('night', 1, 'built', 't', '/m/first.image'), ('night', 2, 'built', 't', '/m/night.image'),
  ('night', 3, 'planned', 't', NULL), ('other', 4, 'planned', 't', NULL), ('other', 5, 'failed', 't', NULL);
"""
    products = Products(seed_file(tmp_path / "products.sqlite3", SEED_PRODUCTS + SEED_MOSAICS + made))
    found = {(row.name, row.status, row.output_path, row.created_at) for row in products.mosaics()}
    assert found == {("night", "built", "/m/night.image", 2.0), ("other", "failed", None, 5.0)}


def test_a_database_of_a_newer_schema_is_refused_with_one_error(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/q.sqlite3"
    Queue(url)
    with closing(sqlite3.connect(tmp_path / "q.sqlite3")) as raw:
        raw.execute("UPDATE nightbeam_queue_version SET version_num = '0099'")
        raw.commit()
    with pytest.raises(InputError, match=r"has schema 0099, this nightbeam knows 0008 at most(.|\n)*upgrade nightbeam"):
        Queue(url)


def test_a_newer_file_is_refused_by_its_user_version_alone(tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "q.sqlite3")) as raw:
        raw.execute("PRAGMA user_version = 9")
    with pytest.raises(InputError, match="has schema 0009"):
        Queue(f"sqlite:///{tmp_path}/q.sqlite3")


def test_a_locked_database_is_busy_after_the_wait(tmp_path: Path):
    queue = Queue(f"sqlite:///{tmp_path}/q.sqlite3", busy_timeout_s=0.1)
    with closing(sqlite3.connect(tmp_path / "q.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BusyError, match=r"q.sqlite3 stayed locked for 0.1 s"):
            queue.wake("2025-10-02T01:02:03")
        assert queue.groups() == []  # readers are not kept waiting
    assert BusyError.retry


def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    (tmp_path / "q.sqlite3").write_text("hello, this is a text of some length" * 40)
    with pytest.raises(InputError, match=r"q.sqlite3 is no SQLite database"):
        Queue(f"sqlite:///{tmp_path}/q.sqlite3")


def test_a_directory_in_the_place_of_the_file_cannot_be_written(tmp_path: Path):
    (tmp_path / "q.sqlite3").mkdir()
    with pytest.raises(StorageError, match=r"q.sqlite3"):
        Queue(f"sqlite:///{tmp_path}/q.sqlite3")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("not a url", "is no database URL"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("nosuch://host/db", "no driver for nosuch"),
        ("postgresql://host:54x/db", "is no database URL"),
    ],
)
def test_a_wrong_url_is_a_configuration_error(url: str, what: str):
    with pytest.raises(ConfigError, match=what):
        Queue(url)


def test_a_password_is_not_shown(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path}/q.sqlite3", "queue")
    assert database.shown.endswith("q.sqlite3")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql-psycopg://me:s3cret@h/db", "'postgresql-psycopg://***@h/db' is no database URL"),
        ("postgresql://me:s3cret@host:54x/db", "'postgresql://***@host:54x/db' is no database URL"),
        ("postgresql://me:12@s3cret:5@host:54x/db", "'postgresql://***@host:54x/db' is no database URL"),
        ("postgresql-psycopg://h/db?password=s3cret&x=1", "'postgresql-psycopg://h/db?password=***&x=1' is no"),
    ],
)
def test_the_password_of_a_wrong_url_is_told_to_nobody(url: str, shown: str):
    with pytest.raises(ConfigError) as caught:
        Queue(url)
    assert shown in str(caught.value)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_password_after_the_question_mark_is_not_shown(tmp_path: Path):
    with pytest.raises(UnavailableError, match=r"&password=\*\*\* does not answer") as caught:
        Queue(f"postgresql://me:s3cret@/db?host={tmp_path}&password=s3cret")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("name", "made"), [("elog", "nightbeam elog update"), ("queue", "nightbeam groups list")])
def test_who_misses_a_database_hears_how_it_is_made(tmp_path: Path, name: Any, made: str):
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(MissingError, match=rf"there is no {name} database(.|\n)*make it with {made}$"):
            Database(f"sqlite:///{tmp_path}/it.sqlite3", name, **options)
    assert not list(tmp_path.glob("*it*"))


def test_two_names_of_a_new_file_are_opened_under_one_lock(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.sqlite3").symlink_to(tmp_path / "real" / "q.sqlite3")
    url = f"sqlite:///{tmp_path}/link.sqlite3"
    with sole_owner(tmp_path / "real" / ".q.sqlite3.lock"), pytest.raises(BusyError, match="the opening of"):
        Queue(url, busy_timeout_s=0.1)
    assert Queue(url).groups() == []
    assert not list(tmp_path.glob(".link*"))


def journal_mode(file: Path) -> str:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as raw:
        return str(raw.execute("PRAGMA journal_mode").fetchone()[0])


def test_a_file_that_was_copied_without_wal_gets_it_back_when_it_is_written_to(tmp_path: Path):
    file = tmp_path / "q.sqlite3"
    Queue(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA journal_mode=DELETE")
    queue = Queue(f"sqlite:///{file}", busy_timeout_s=0.1)
    assert queue.groups() == []
    assert journal_mode(file) == "delete"  # who reads changes nothing
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM ingest_queue").fetchone()
        with pytest.raises(BusyError), queue.database.write() as connection:  # too late to change it now
            connection.exec_driver_sql("CREATE TABLE mine (a)")
    with queue.database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE mine (a)")
    assert journal_mode(file) == "wal"
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM ingest_queue").fetchone()
        with queue.database.write() as connection:
            connection.exec_driver_sql("DROP TABLE mine")


@pytest.mark.parametrize("name", ["queue", "registry", "products"])
def test_a_database_whose_migrations_go_one_way_is_not_taken_back(tmp_path: Path, name: Any):
    database = Database(f"sqlite:///{tmp_path}/it.sqlite3", name)
    before = database.revision()
    with pytest.raises(UsageError, match=f"the {name} database cannot be taken back"):
        database.downgrade("0001")
    assert database.revision() == before


def test_what_is_opened_to_be_read_stays_as_it_is(tmp_path: Path):
    file = tmp_path / "a b#c%20d.sqlite3"
    url = f"sqlite:///{file}"
    Queue(url)
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA journal_mode=DELETE")
    before = file.read_bytes()
    database = Database(url, "queue", read_only=True)
    assert database.revision() == "0008"
    with database.kept_open(), database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM ingest_queue").scalar() == 0
    with pytest.raises(UsageError, match="is open to be read only"), database.write():
        raise AssertionError("written to")
    with pytest.raises(StorageError, match="readonly"), database.read() as connection:
        connection.exec_driver_sql("CREATE TABLE mine (a)")
    assert file.read_bytes() == before


def test_an_older_file_is_not_brought_up_to_date_where_it_is_only_to_be_read(tmp_path: Path):
    file = tmp_path / "q.sqlite3"
    Queue(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("UPDATE nightbeam_queue_version SET version_num = '0002'")
        raw.commit()
        raw.execute("PRAGMA journal_mode=DELETE")
    before = file.read_bytes()
    said = r"q\.sqlite3 has schema 0002, this nightbeam wants 0008; what is read only(.|\n)*fix: .* open a copy"
    with pytest.raises(InputError, match=said):
        Database(f"sqlite:///{file}", "queue", read_only=True)
    assert file.read_bytes() == before
    (tmp_path / "empty.sqlite3").touch()
    with pytest.raises(InputError, match="has schema none"):
        Database(f"sqlite:///{tmp_path}/empty.sqlite3", "queue", read_only=True)


@pytest.mark.parametrize("kind", [Queue, Registry, Products])
def test_who_only_looks_makes_nothing_and_leaves_no_byte_changed(tmp_path: Path, kind: Any):
    file = tmp_path / "x.sqlite3"
    with pytest.raises(MissingError):
        kind(f"sqlite:///{file}", migrate=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "cwd"]
    database = kind(f"sqlite:///{file}").database
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with kind(f"sqlite:///{file}", migrate=False).database.read():
        pass
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    with database.write() as connection:
        connection.exec_driver_sql(f"DELETE FROM nightbeam_{database.name}_version")
    with pytest.raises(InputError, match=r"has schema none, this nightbeam wants \d+") as refused:
        kind(f"sqlite:///{file}", migrate=False)
    assert "open it for writing once" in refused.value.fix


@pytest.mark.parametrize("kept", [False, True])
def test_who_reads_sees_one_state_whatever_is_written_meanwhile(database_url: str, kept: bool):
    queue = Queue(database_url)
    with queue.database.kept_open() if kept else nullcontext():
        with queue.database.read() as connection:
            count = sa.text("SELECT count(*) FROM bad_files")
            assert connection.execute(count).scalar() == 0
            Queue(database_url).record_bad_file(Path("/in/x"), "empty")
            assert connection.execute(count).scalar() == 0
        assert [bad.path for bad in queue.bad_files()] == ["/in/x"]
        queue.forget_bad_file(Path("/in/x"))  # by a connection that may have read before
    assert queue.bad_files() == []


@pytest.mark.system
def test_a_connection_to_a_server_is_kept_alive(postgresql_url: str):
    def told(url: str) -> dict[str, str]:
        with Database(url, "queue").read() as connection:
            found: dict[str, str] = connection.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
            return {name: value for name, value in found.items() if name.startswith("keepalives")}

    wanted = {"keepalives": "1", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
    assert told(postgresql_url) == wanted
    assert told(f"{postgresql_url}&keepalives_idle=7") == wanted | {"keepalives_idle": "7"}


def test_many_threads_may_open_a_new_database_at_once(tmp_path: Path):
    url, errors = f"sqlite:///{tmp_path}/q.sqlite3", []

    def open_it() -> None:
        try:
            Queue(url).counts()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_file_named_from_where_the_process_stands_is_another_one_elsewhere(tmp_path: Path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Queue("sqlite:///q.sqlite3")
    assert (tmp_path / "a" / "q.sqlite3").exists()
    assert (tmp_path / "b" / "q.sqlite3").exists()


@pytest.mark.parametrize("name", ["queue", "registry", "products"])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path, name):
    file = tmp_path / "foreign.sqlite3"
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("CREATE TABLE mine (x)")
        raw.commit()
    before = file.read_bytes()
    with pytest.raises(InputError, match=f"a database of something else, not the {name} database: it has mine"):
        Database(f"sqlite:///{file}", name)
    assert file.read_bytes() == before


@pytest.mark.parametrize(("name", "taken_for"), [("queue", "products"), ("products", "queue"), ("registry", "queue")])
def test_one_of_our_files_that_is_named_for_another_is_refused(tmp_path, name, taken_for):
    file = tmp_path / "ours.sqlite3"
    Database(f"sqlite:///{file}", name).engine.dispose()
    with pytest.raises(InputError, match=f"is the {name} database, not the {taken_for} database"):
        Database(f"sqlite:///{file}", taken_for)
    with closing(sqlite3.connect(file)) as raw:
        tables = {row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert f"nightbeam_{taken_for}_version" not in tables


def test_a_copy_that_was_torn_from_a_queue_in_use_is_one_clear_error(tmp_path: Path):
    queue = Queue(f"sqlite:///{tmp_path}/q.sqlite3")
    with queue.database.write() as connection:
        rows = [{"path": f"/in/{n:06d}", "reason": "x" * 500, "recorded_at": 1.0} for n in range(500)]
        connection.execute(
            sa.text("INSERT INTO bad_files (path, reason, recorded_at) VALUES (:path, :reason, :recorded_at)"), rows
        )
    with closing(sqlite3.connect(tmp_path / "q.sqlite3")) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raw.execute("VACUUM INTO ?", (str(tmp_path / "whole.sqlite3"),))
    whole = (tmp_path / "q.sqlite3").read_bytes()
    (tmp_path / "torn.sqlite3").write_bytes(whole[: len(whole) // 2 // 4096 * 4096 + 100])
    with pytest.raises(InputError, match=r"torn copy(.|\n)*VACUUM INTO"):
        Queue(f"sqlite:///{tmp_path}/torn.sqlite3").bad_files()
    assert len(Queue(f"sqlite:///{tmp_path}/whole.sqlite3").bad_files()) == 500


def test_a_queue_that_is_copied_in_use_without_its_log_is_an_older_state_or_one_clear_error(tmp_path: Path):
    queue = Queue(f"sqlite:///{tmp_path}/q.sqlite3")
    queue.record_bad_file(Path("/in/before"), "bad")
    with closing(sqlite3.connect(tmp_path / "q.sqlite3")) as held:  # as in use: the log is not brought in
        held.execute("SELECT 1 FROM bad_files").fetchall()
        queue.record_bad_file(Path("/in/after"), "bad")
        assert (tmp_path / "q.sqlite3-wal").stat().st_size > 0
        (tmp_path / "copy.sqlite3").write_bytes((tmp_path / "q.sqlite3").read_bytes())
    copy = Queue(f"sqlite:///{tmp_path}/copy.sqlite3")
    assert [row.path for row in copy.bad_files()] == ["/in/before"]
    assert copy.database.quick_check() == "ok"
    (tmp_path / "new.sqlite3").write_bytes(b"")
    new = Queue(f"sqlite:///{tmp_path}/new.sqlite3")
    with closing(sqlite3.connect(tmp_path / "new.sqlite3")) as held:
        held.execute("SELECT 1 FROM bad_files").fetchall()
        new.record_bad_file(Path("/in/only"), "bad")
        # Cut in the middle of a page, as a copy that ran while the file grew.
        data = (tmp_path / "new.sqlite3").read_bytes()
        (tmp_path / "cut.sqlite3").write_bytes(data[: len(data) - 5000])
    with pytest.raises(InputError, match=r"torn copy(.|\n)*VACUUM INTO"):
        Queue(f"sqlite:///{tmp_path}/cut.sqlite3").bad_files()


def test_sqlite_on_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "q.sqlite3"
    full = {"now": "3 inodes free in there"}
    monkeypatch.setattr("nightbeam.catalog.remote.full_place", lambda *_: full["now"])
    for said in ("disk I/O error", "unable to open database file", "database or disk is full"):
        with pytest.raises(StorageError, match=f"no space left for {file}.*: {said}"), sqlite_errors(file):
            raise sqlite3.OperationalError(said)
    with pytest.raises(InputError), sqlite_errors(file):
        raise sqlite3.IntegrityError("UNIQUE constraint failed")
    full["now"] = ""
    with pytest.raises(StorageError, match="cannot write"), sqlite_errors(file):
        raise sqlite3.OperationalError("disk I/O error")


def test_a_server_on_a_full_disk_is_told_as_one(tmp_path: Path):
    class DiskFullError(Exception):
        sqlstate = "53100"

    database = Database(f"sqlite:///{tmp_path}/q.sqlite3", "queue")
    with pytest.raises(StorageError, match="has no room: could not extend file"), database.errors():
        raise sa.exc.OperationalError(
            "UPDATE", {}, DiskFullError('could not extend file "base/1": No space left on device')
        )
