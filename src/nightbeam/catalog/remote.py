"""Opening a database: created, adopted or migrated under a lock, and its errors in our words."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import NullPool, QueuePool

from nightbeam.core.errors import (
    BusyError,
    ConfigError,
    InputError,
    MissingError,
    NightbeamError,
    StorageError,
    UnavailableError,
    UsageError,
)
from nightbeam.core.files import full_place, no_space, storage_errors
from nightbeam.core.locks import sole_owner

__all__ = ["Database", "DatabaseName", "insert_once", "shown_url", "sqlite_errors", "sqlite_file", "upsert"]

DatabaseName = Literal["queue", "registry", "products", "elog"]

_BUSY_TIMEOUT_S = 30.0
_MIGRATIONS = Path(__file__).parent / "migrations"
_WRITE = "nightbeam_write"
_ONE_STATE = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
#: Held while a PostgreSQL database is migrated; any number that nobody else uses.
_ADVISORY_LOCK = 0x6E62_0001
#: What PostgreSQL calls a full disk (its appendix A).
_DISK_FULL = "53100"
#: Tables that the logbook's mirrors of the tool in use before have, and that are views in ours.
_OLDER_MIRROR = frozenset({"Experiment", "Logbook", "Run"})
#: How a database that is not there is made.
_MADE_WITH: dict[DatabaseName, str] = {
    "queue": "nightbeam groups list",
    "registry": "nightbeam registry init",
    "products": "nightbeam mosaic plan",
    "elog": "nightbeam elog update",
}
#: By which a server's database is known to hold each of the four, also where the older pipeline made it.
_MAIN_TABLE: dict[DatabaseName, str] = {
    "queue": "ingest_queue",
    "registry": "caltables",
    "products": "images",
    "elog": "experiments",
}
#: By which a file that is adopted is known; what else it holds stays beside ours.
_OLDER_TABLES: dict[DatabaseName, frozenset[str]] = {
    "queue": frozenset({"ingest_queue", "subband_files", "performance_metrics"}),
    "registry": frozenset({"caltables"}),
    "products": frozenset({"images", "mosaics", "ms_index", "qa_artifacts"}),
    "elog": frozenset({"experiments", "logbook_entries"}),
}
#: What libpq does so that a connection on which nothing is said is neither forgotten on the way nor mourned too late.
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
#: How long whoever reads a file without WAL is waited for before it is written to as it is.
_WAL_WAIT_S = 1.0


class Database:
    """One of the four databases, ready to be read and written.

    Every transaction has a connection of its own, so that none is ever shared between threads or
    carried over a fork (but see `kept_open`); transactions are meant to be short.

    Parameters
    ----------
    url
        SQLAlchemy URL, e.g. ``sqlite:////data/state/ingest.sqlite3`` or ``postgresql+psycopg://...``.
    name
        Which of the four it is; each has a history of migrations of its own.
    busy_timeout_s
        How long a locked SQLite file is waited for.
    create
        Whether a SQLite file that is not there is made.
    read_only
        Whether it is to stay as it is: it is neither made nor migrated, and a file is opened such that SQLite itself
        cannot write to it.
    migrate
        Whether one that an older nightbeam made is brought up to date; if not, it is refused. A file that is only
        looked at, but not with ``read_only``, has no ``-wal`` and ``-shm`` beside it afterwards.

    Raises
    ------
    MissingError
        If the file is not there and is not to be made; with ``read_only`` also if a server has none of its tables.
    ConfigError
        If the URL is none, or names a driver that is not installed.
    InputError
        If the file is no database, or was made by a newer nightbeam, or (``elog``) by another program; with
        ``read_only`` or without ``migrate`` also if it was made by an older one.
    BusyError
        If it stays locked.
    StorageError
        If it cannot be written.
    UnavailableError
        If the server does not answer.
    """

    def __init__(
        self,
        url: str,
        name: DatabaseName,
        *,
        busy_timeout_s: float = _BUSY_TIMEOUT_S,
        create: bool = True,
        read_only: bool = False,
        migrate: bool = True,
    ) -> None:
        self.name: DatabaseName = name
        self.url = _parse(url)
        self.shown = shown_url(url)
        self.busy_timeout_s = busy_timeout_s
        self.read_only = read_only
        self.file = _sqlite_file(self.url)
        self.engine = self._new_engine()
        self._wal = self.file is None
        self._script = _history(name)
        self._head = self._script.get_current_head() or ""
        if self.file is not None and not (create and migrate and not read_only) and not self.file.exists():
            raise MissingError(
                f"there is no {name} database {self.file}", fix=f"correct its name, or make it with {_MADE_WITH[name]}"
            )
        with self.errors():
            if read_only or not migrate:
                self._refuse_older()
            else:
                self._open()

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Keep connections open from one transaction of the block to the next, for whom makes very many.

        Otherwise each has one of its own; and SQLite cleans up whenever the last one of a file is closed.
        """
        plain, self.engine = self.engine, self._new_engine(keep=True)
        try:
            yield
        finally:
            kept, self.engine = self.engine, plain
            kept.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees one consistent state, that of its first statement."""
        with self.errors(), self.engine.connect() as bare:
            # By itself PostgreSQL lets each statement see what was committed before it.
            told = _ONE_STATE if bare.dialect.name == "postgresql" else {}
            connection = bare.execution_options(**told)
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection whose changes all take effect at the end of the block, or none of them.

        Raises
        ------
        UsageError
            If the database was opened to be read only.
        """
        if self.read_only:
            raise UsageError(f"{self.shown} is open to be read only", fix="open it without read_only")
        self._use_wal()
        with self.errors(), self.engine.connect() as bare:
            connection = bare.execution_options(**{_WRITE: True})
            with connection.begin():
                yield connection

    def beside(self, suffix: str) -> Path:
        """Return the hidden file beside a SQLite file, whatever symbolic link it is named by; for its locks."""
        assert self.file is not None
        real = Path(os.path.realpath(self.file))  # unlike resolve, it bears links that go in a circle
        return real.with_name(f".{real.name}{suffix}")

    def revision(self) -> str | None:
        """Return the revision that the database is at."""
        with self.read() as connection:
            return self._revision(connection)

    def check_current(self) -> None:
        """Refuse a schema that is not ours any more, since another program may have changed it.

        Raises
        ------
        InputError
            If it is a newer one, or an older one.
        """
        with self.errors():
            self._refuse_older()

    def downgrade(self, revision: str) -> None:
        """Take the schema back to an older revision; ``base`` leaves nothing but the version table.

        Opening the database brings it up to date again. Rows of tables that the older revision has not are lost.

        Raises
        ------
        InputError
            If there is no such revision.
        UsageError
            If the migrations of this database do not say how: only those of ``elog`` do.
        """
        if not all(hasattr(script.module, "downgrade") for script in self._script.walk_revisions()):
            raise UsageError(f"the {self.name} database cannot be taken back to an older schema", fix="restore a copy")
        if revision != "base" and revision not in self._revisions():
            raise InputError(
                f"{self.name} has no schema {revision}", fix=f"one of base, {', '.join(self._revisions())}"
            )

        def steps(current: Any, _context: MigrationContext) -> Any:
            return self._script._downgrade_revs(revision, current)

        with self.errors():
            self._run(steps)

    def differences(self, metadata: sa.MetaData, *, ignore: Collection[str] = ()) -> list[str]:
        """Return in what the database differs from its models, as alembic's ``check`` finds it.

        Parameters
        ----------
        metadata
            Of the models. Other tables are not looked at: one PostgreSQL database can hold them all.
        ignore
            Names of columns and indexes that migrations make and models do not say.
        """

        def include(name: str | None, kind: str, _parents: Any) -> bool:
            return name in metadata.tables if kind == "table" else name not in ignore

        from alembic.autogenerate import compare_metadata

        with self.read() as connection:
            context = self._context(connection, compare_type=True, include_name=include)
            return [str(difference) for difference in compare_metadata(context, metadata)]

    # -- opening ------------------------------------------------------------------------------------------------

    def _new_engine(self, *, keep: bool = False) -> Engine:
        url = _read_only(self.url) if self.read_only else self.url
        # The name of a file that is none from the root means another one after the process went elsewhere.
        if keep or (self.file is not None and not self.file.is_absolute()):
            return _engine(url, self.busy_timeout_s, keep=keep)
        return _plain_engine(url, self.busy_timeout_s)

    def _open(self) -> None:
        if self.file is not None:
            with storage_errors(self.file):
                self.file.parent.mkdir(parents=True, exist_ok=True)
            if self.file.exists() and self._is_current():
                return
            opening = f"the opening of {self.file}"
            with (
                storage_errors(self.file),
                sole_owner(self.beside(".lock"), wait_s=self.busy_timeout_s, what=opening),
            ):
                self._prepare_sqlite(self.file)
                self._migrate()
        elif not self._is_current():
            self._migrate()

    def _is_current(self) -> bool:
        with self.engine.begin() as connection:
            found = self._revision(connection)
            if found is None:
                self._refuse_foreign(connection)
        self._refuse_newer(found)
        return found == self._head

    def quick_check(self) -> str:
        """Return "ok", or what SQLite's quick check finds first; a server answers for itself."""
        with self.read() as connection:
            if connection.dialect.name != "sqlite":
                connection.execute(sa.select(sa.literal(1))).scalar()
                return "ok"
            return str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())

    def _refuse_older(self) -> None:
        if not self._is_current():
            found = self.revision() or "none"
            if found == "none" and self.file is None and not self._has_tables():
                raise MissingError(
                    f"there is no {self.name} database in {self.shown}", fix="whoever first writes to it makes it"
                )
            raise InputError(
                f"{self.shown} has schema {found}, this nightbeam wants {self._head}; what is read only stays as it is",
                fix="have it made anew, or open a copy of it for writing, which brings that up to date"
                if self.read_only
                else "open it for writing once, as nightbeam groups list does, which brings it up to date",
            )

    def _has_tables(self) -> bool:
        with self.engine.begin() as connection:
            return sa.inspect(connection).has_table(_MAIN_TABLE[self.name])

    def _revision(self, connection: Connection) -> str | None:
        return self._context(connection).get_current_revision()

    def _context(self, connection: Connection, **options: Any) -> MigrationContext:
        # Three histories may live in one PostgreSQL database, so each has a version table of its own.
        return MigrationContext.configure(
            connection, opts={"version_table": f"nightbeam_{self.name}_version", "transactional_ddl": True, **options}
        )

    def _refuse_newer(self, found: str | None) -> None:
        if found is not None and found not in self._revisions():
            raise InputError(
                f"{self.shown} has schema {found}, this nightbeam knows {self._head} at most",
                fix="upgrade nightbeam, or point it at another database",
            )

    def _revisions(self) -> list[str]:
        return sorted(script.revision for script in self._script.walk_revisions())

    def _refuse_foreign(self, connection: Connection) -> None:
        """Refuse to make tables among those of another program; the other three adopt what an older pipeline made."""
        there = set(sa.inspect(connection).get_table_names())
        if self.name != "elog":
            self._refuse_another_kind(there)
            return
        if connection.dialect.name != "sqlite":  # one PostgreSQL database can hold much besides
            there &= {table.lower() for table in _OLDER_MIRROR} | {"experiments", "logbook_entries"}
        there = {name for name in there if not name.startswith("nightbeam_")}
        if {name.lower() for name in there} >= {name.lower() for name in _OLDER_MIRROR}:
            raise InputError(
                f"{self.shown} was made by the elogfetch in use before, whose tables are others",
                fix="leave it as it is and name another file: an update fetches everything anew, and views in it have "
                "the names and columns of the old tables",
            )
        if there:
            raise InputError(
                f"{self.shown} is a database of something else: it has {', '.join(sorted(there)[:5])}",
                fix="name another file, or correct the setting",
            )

    def _refuse_another_kind(self, there: set[str]) -> None:
        """Refuse a file that holds tables, and none of those that the older pipeline had in a database of this kind."""
        if self.file is None or not there or there & _OLDER_TABLES[self.name]:
            return
        kinds = [kind for kind, tables in _OLDER_TABLES.items() if there & tables]
        is_a = f"the {kinds[0]} database" if len(kinds) == 1 else "a database of something else"
        raise InputError(
            f"{self.shown} is {is_a}, not the {self.name} database: it has {', '.join(sorted(there)[:5])}",
            fix="correct the setting or the option that names it, or name a file that is not there yet",
        )

    def _prepare_sqlite(self, file: Path) -> None:
        # Outside any transaction, as the journal mode demands; it is a property of the file and stays.
        with closing(sqlite3.connect(file, timeout=self.busy_timeout_s, isolation_level=None)) as raw:
            raw.execute("PRAGMA journal_mode=WAL")
            (version,) = raw.execute("PRAGMA user_version").fetchone()
        if version > int(self._head):
            self._refuse_newer(f"{version:04d}")

    def _use_wal(self) -> None:
        """Have a file keep its readers and its writer apart before it is first written to.

        One that was copied from a snapshot does not: there, a long reader stops a writer. Where that cannot be
        changed now, the file is written to as it is.
        """
        if self._wal or self.file is None or not os.access(self.file, os.W_OK):
            return
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(self.file, timeout=min(self.busy_timeout_s, _WAL_WAIT_S))) as raw,
        ):
            self._wal = raw.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)

    def _migrate(self) -> None:
        def steps(revision: Any, _context: MigrationContext) -> Any:
            return self._script._upgrade_revs("head", revision)

        self._run(steps)

    def _run(self, steps: Callable[[Any, MigrationContext], Any]) -> None:
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            self._refuse_newer(self._revision(connection))
            context = self._context(connection, fn=steps)
            with Operations.context(context):
                context.run_migrations()
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql(f"PRAGMA user_version = {int(self._revision(connection) or 0)}")

    # -- errors -------------------------------------------------------------------------------------------------

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the database says in the block into our words."""
        try:
            yield
        except NightbeamError:
            raise
        except (exc.DBAPIError, sqlite3.Error) as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> NightbeamError:
        original = error.orig if isinstance(error, exc.DBAPIError) else error
        said = str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
        text = said.lower()
        if isinstance(original, sqlite3.Error):
            return _sqlite_error(self.file, self.busy_timeout_s, said)
        if getattr(original, "sqlstate", None) == _DISK_FULL:
            return StorageError(f"the server of {self.shown} has no room: {said}", fix="free some space on its disk")
        if "lock" in text and ("timeout" in text or "deadlock" in text):
            return BusyError(f"{self.shown} is locked: {said}", fix="try again")
        if isinstance(error, exc.OperationalError | exc.InterfaceError):
            return UnavailableError(f"the database {self.shown} does not answer: {said}", fix="is the server running?")
        return InputError(f"{self.shown}: {said}", fix="is this nightbeam's database?")


@contextmanager
def sqlite_errors(file: Path, *, busy_timeout_s: float = _BUSY_TIMEOUT_S) -> Iterator[None]:
    """Turn what sqlite3 says of ``file`` into our words."""
    try:
        yield
    except sqlite3.Error as error:
        said = str(error).strip() or type(error).__name__
        raise _sqlite_error(file, busy_timeout_s, said) from error


def _sqlite_error(file: Path | None, busy_timeout_s: float, said: str) -> NightbeamError:
    text = said.lower()
    if "locked" in text or "busy" in text:
        return BusyError(
            f"{file} stayed locked for {busy_timeout_s:g} s", fix="find who holds it (fuser), then try again"
        )
    if "not a database" in text or "malformed" in text:
        return InputError(
            f"{file} is no SQLite database, or a torn copy of one: {said}",
            fix="correct the setting, or move it away; what is in use is copied with VACUUM INTO, not cp",
        )
    # What lies beside the file, and cannot be made on a full disk, SQLite calls an I/O error.
    unclear = "unable to open" in text or "disk i/o" in text
    if file is not None and ("full" in text or (unclear and full_place(file))):
        return no_space(file, told=f": {said}")
    if unclear or "full" in text or "readonly" in text:
        return StorageError(f"cannot write {file}: {said}", fix="check its owner, its mount and the free space")
    return InputError(f"{file}: {said}", fix="is this nightbeam's database?")


def upsert(connection: Connection, table: Any, key: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Update the row with this key, or insert it; returns True where it was inserted.

    Works on every database that SQLAlchemy speaks to, also when two do it at once.
    """
    if _update(connection, table, key, values):
        return False
    if insert_once(connection, table, key, values):
        return True
    _update(connection, table, key, values)
    return False


def insert_once(connection: Connection, table: Any, key: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Insert a row unless there is one with this key, which then stays as it is; returns whether it was inserted."""
    try:
        # SQLite's writers come one by one, so it needs no savepoint to survive a clash (and sqlite3 makes bad ones).
        with connection.begin_nested() if connection.dialect.name != "sqlite" else nullcontext():
            connection.execute(sa.insert(_bare(table)).values(**key, **values))
    except exc.IntegrityError:
        if not _update(connection, table, key, {}):
            raise
        return False
    return True


def _update(connection: Connection, table: Any, key: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    table = _bare(table)
    where = [table.c[name] == value for name, value in key.items()]
    if not values:
        return connection.execute(sa.select(sa.literal(1)).select_from(table).where(*where)).first() is not None
    return connection.execute(sa.update(table).where(*where).values(**values)).rowcount > 0


def _bare(table: Any) -> Any:
    """Return the table of a mapped class: a statement about the class takes the ORM's longer way each time."""
    return getattr(table, "__table__", table)


def _parse(url: str) -> URL:
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        shown = _without_password(re.sub(r"//.*@", "//***@", url, flags=re.DOTALL))
        # Without what was raised, which may tell of what is hidden here.
        raise ConfigError(f"{shown!r} is no database URL", fix="write it like sqlite:////data/ingest.sqlite3") from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError("a database in memory would be lost at once", fix="name a file")
    return parsed


def shown_url(url: str) -> str:
    """Return an address without its password.

    Raises
    ------
    ConfigError
        If it is none.
    """
    return _without_password(_parse(url).render_as_string(hide_password=True))


def sqlite_file(url: str) -> Path | None:
    """Return the file of an address, or None if that is of a server.

    Raises
    ------
    ConfigError
        If it is none.
    """
    return _sqlite_file(_parse(url))


def _without_password(shown: str) -> str:
    """Return an address without the passwords that libpq takes after its question mark."""
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", shown)


def _sqlite_file(url: URL) -> Path | None:
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _read_only(url: URL) -> URL:
    """Return the address by which SQLite only reads the file."""
    file = _sqlite_file(url)
    return url if file is None else url.set(database=file.absolute().as_uri(), query={"mode": "ro", "uri": "true"})


@lru_cache(maxsize=64)
def _plain_engine(url: URL, busy_timeout_s: float) -> Engine:
    """Return the engine that keeps no connection, one for all who open this database in this process.

    What a new one asks a server first, and its making SQL of each statement, takes longer than most of what is read.
    """
    return _engine(url, busy_timeout_s)


@cache
def _history(name: DatabaseName) -> ScriptDirectory:
    """Return the migrations of a database, which are read from their files once."""
    script = ScriptDirectory(str(_MIGRATIONS / name), version_locations=[str(_MIGRATIONS / name / "versions")])
    script.get_current_head()
    return script


def _engine(url: URL, busy_timeout_s: float, *, keep: bool = False) -> Engine:
    options: dict[str, Any] = {"poolclass": QueuePool, "max_overflow": -1} if keep else {"poolclass": NullPool}
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": busy_timeout_s}
    elif url.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        options["connect_args"] = {name: value for name, value in _KEEPALIVES.items() if name not in url.query}
    try:
        engine = sa.create_engine(url, **options)
    except (exc.ArgumentError, ImportError) as error:  # NoSuchModuleError is an ArgumentError
        raise ConfigError(
            f"no driver for {url.drivername}: {error}", fix="install it, or use sqlite or postgresql+psycopg"
        ) from error
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _tune_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _tune_sqlite(connection: Any, _record: Any) -> None:
    # sqlite3's own idea of when a transaction begins leaves DDL outside of it: we begin ourselves.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns writer in mid-transaction is refused at once, whatever the timeout: ask first.
    writing = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
