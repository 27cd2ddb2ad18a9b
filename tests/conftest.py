"""Manners for every test: a home of its own, no way out of this machine, the shared data if they are there."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

# Before anything imports h5py, numba or Prefect: they read these once.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.pop("NIGHTBEAM_CONFIG", None)

# Our modules and those of the tests are compiled once, not in each of the many processes that tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What is imported and collected stays until the end: the collector does not look through it again and again.
gc.disable()

# No test is to fail because the machine was busy, or by the luck of the draw. To look for more:
# --hypothesis-profile explore
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.register_profile("explore", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: object) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
        host = str(address[0])
        if not (host.startswith("127.") or host in ("localhost", "::1")):
            raise AssertionError(f"a test tried to reach {host}: tests open no outside socket")
    _connect(self, address)  # type: ignore[arg-type]


#: The files whose tests speak to the one running platform. To start it takes long: they all go to one process.
_NAMES = (
    "cxi_service",
    "group_through_platform",
    "monitor_click",
    "nightly_mosaic",
    "platform",
    "scan_service",
    "service",
    "web_page",
)
ON_THE_PLATFORM = {f"tests/system/test_{name}.py" for name in _NAMES}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long: where one worker has the last of them, the others have nothing to do."""
    on_it = {item.nodeid.split("::")[0] for item in items if "running_platform" in getattr(item, "fixturenames", ())}
    assert on_it <= ON_THE_PLATFORM, f"name them in ON_THE_PLATFORM: {on_it - ON_THE_PLATFORM}"
    long = {item.path for item in items if item.get_closest_marker("system") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.nodeid.split("::")[0] not in ON_THE_PLATFORM, item.path not in long))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Let the garbage of tests be collected, and of nothing that was there before them."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile``, give all files of the running platform to one process, and all of one test server."""
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            if file in ON_THE_PLATFORM:
                return "the running platform"
            return "flows" if file.startswith("tests/flows/") else file

    return ByServer(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def _no_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _loopback_only)


@pytest.fixture(autouse=True)
def _own_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASA, Prefect and Zarr write where they stand; a stray nightbeam.yaml must not be read."""
    stand = tmp_path / "cwd"
    stand.mkdir()
    monkeypatch.chdir(stand)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; it is no part of the product."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}: lay the data folder beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


def _as_postgres(*argv: str | Path) -> None:
    command = [str(a) for a in argv]
    if os.geteuid() == 0:
        if not shutil.which("runuser"):
            pytest.skip("PostgreSQL refuses to run as root and there is no runuser")
        command = ["runuser", "-u", "postgres", "--", *command]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd="/", timeout=60)


def _postgresql(program: str) -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    if not found:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql")
    return found[-1]


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A real PostgreSQL of our own, on a socket of its own."""
    binaries = _postgresql("initdb").parent
    # A short path: the name of a socket has 107 characters at most.
    home = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        if os.geteuid() == 0:
            shutil.chown(home, "postgres")
        _as_postgres(binaries / "initdb", "-D", home / "data", "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8")
        # Nobody cuts the power: what is asked here is what is in it, and what a killed client leaves.
        hasty = "-c fsync=off -c full_page_writes=off -c synchronous_commit=off -c jit=off"
        options = f"-c listen_addresses='' -c unix_socket_directories={home} {hasty}"
        start = ("-D", home / "data", "-l", home / "log", "-w", "-o", options, "start")
        _as_postgres(binaries / "pg_ctl", *start)
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={home}"
        finally:
            _as_postgres(binaries / "pg_ctl", "-D", home / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def emptied(postgresql_server: str) -> Callable[[], None]:
    """Empty the database of that server."""
    import psycopg

    def emptied() -> None:
        with psycopg.connect(postgresql_server.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    return emptied


@pytest.fixture
def postgresql_url(postgresql_server: str, emptied: Callable[[], None]) -> str:
    """The database of that server, emptied for each test."""
    emptied()
    return postgresql_server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database of either kind: what one promises the other does too."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/a-database.sqlite3"
    return str(request.getfixturevalue("postgresql_url"))


class Copies:
    """New databases, made once by their migrations and then copied: to make one takes longer than most tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, Path] = {}
        self.dumps: dict[str, str] = {}
        self.making: set[Any] = set()
        self.lock = threading.RLock()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have every database that is new in this block begin as a copy, whoever opens it, and wait for no disk."""
        from nightbeam.catalog import remote
        from nightbeam.catalog.remote import Database

        migrate, tune = Database._migrate, remote._tune_sqlite

        def tune_hastily(connection: Any, record: Any) -> None:
            tune(connection, record)
            connection.execute("PRAGMA synchronous=OFF")  # no machine loses its power in a test

        def copy_or_migrate(database: Any) -> None:
            to = self.to_server if database.file is None else self.to_file
            if database.url in self.making or not to(database):
                migrate(database)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Database, "_migrate", copy_or_migrate)
            patch.setattr(remote, "_tune_sqlite", tune_hastily)
            yield

    def to_file(self, database: Any) -> bool:
        """Fill a file that has no table yet; whoever opens it holds its lock."""
        with closing(sqlite3.connect(database.file)) as file:
            if file.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                return False
            with closing(sqlite3.connect(self._file(database.name))) as made:
                file.execute("PRAGMA synchronous=OFF")
                made.backup(file)
        return True

    def to_server(self, database: Any) -> bool:
        """Fill a database of a server that has no table of this kind yet."""
        import psycopg

        from nightbeam.catalog.remote import _ADVISORY_LOCK, _MAIN_TABLE

        dump = self._dump(database.name, database.url)
        with psycopg.connect(_for_libpq(database.url)) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))
            for table in (_MAIN_TABLE[database.name], f"nightbeam_{database.name}_version"):
                if connection.execute("SELECT to_regclass(%s)", (f"public.{table}",)).fetchone() != (None,):
                    return False
            connection.execute(dump)  # type: ignore[call-overload]
        return True

    def _file(self, name: str) -> Path:
        with self.lock:
            if name not in self.files:
                file = self.directory / f"{name}.sqlite3"
                self._make(f"sqlite:///{file}", name)
                self.files[name] = file
            return self.files[name]

    def _dump(self, name: str, url: Any) -> str:
        """Return the SQL that makes a database as its migrations do, taken from one of its own on the same server."""
        import psycopg

        with self.lock:
            if name not in self.dumps:
                there = url.set(database=f"made_{name}")
                with psycopg.connect(_for_libpq(url), autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE {there.database}")
                self._make(there.render_as_string(hide_password=False), name)
                self.dumps[name] = self.dumped(there)
            return self.dumps[name]

    def dumped(self, url: Any) -> str:
        """Return what a PostgreSQL database holds, as SQL that makes it."""
        argv = [str(_postgresql("pg_dump")), "--no-owner", "--inserts", _for_libpq(url)]
        said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
        return "".join(line for line in said.splitlines(keepends=True) if not line.startswith(("\\", "--")))

    def _make(self, url: str, name: Any) -> None:
        from nightbeam.catalog.remote import Database, _parse

        self.making.add(_parse(url))
        Database(url, name)


def _for_libpq(url: Any) -> str:
    from sqlalchemy import make_url

    return str(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    return Copies(tmp_path_factory.mktemp("new"))


@pytest.fixture(autouse=True)
def _new_databases_are_copies(request: pytest.FixtureRequest, copies: Copies) -> Iterator[None]:
    """Make none by its migrations, but in the tests of the catalog: there, it is what is tested."""
    of_the_catalog = (ROOT / "tests" / "unit" / "catalog") in request.path.parents
    if of_the_catalog or "nightbeam.catalog.remote" not in sys.modules:
        yield
        return
    with copies.used():
        yield


@pytest.fixture(scope="session")
def open_new(copies: Copies) -> Callable[..., Any]:
    """Open a database that is new, a copy of one that was made once, for a test that is not about how one is made."""

    def opened(kind: type, url: str, **options: Any) -> Any:
        if url.startswith("sqlite:///"):
            assert not Path(url.removeprefix("sqlite:///")).exists()
        with copies.used():
            return kind(url, **options)

    return opened


@pytest.fixture
def logbook_url(database_url: str) -> str:
    """A new database for a mirror of the logbook."""
    return database_url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def contimg_databases(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of continuum imaging for its three databases: files of their own, or one PostgreSQL for all."""
    if request.param == "sqlite":
        return {}
    url = str(request.getfixturevalue("postgresql_url"))
    return {"queue_db": url, "registry_db": url, "products_db": url}


@pytest.fixture
def _clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("NIGHTBEAM_", "CONTIMG_", "PIPELINE_", "CAL_", "IMG_")):
            monkeypatch.delenv(name)
