"""Manners for every test: a home of its own, no way out of this machine, the shared data if they are there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A real PostgreSQL of our own, on a socket of its own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql")
    binaries = found[-1].parent
    # A short path: the name of a socket has 107 characters at most.
    home = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        if os.geteuid() == 0:
            shutil.chown(home, "postgres")
        _as_postgres(binaries / "initdb", "-D", home / "data", "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8")
        options = f"-c listen_addresses='' -c unix_socket_directories={home} -c fsync=off"
        start = ("-D", home / "data", "-l", home / "log", "-w", "-o", options, "start")
        _as_postgres(binaries / "pg_ctl", *start)
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={home}"
        finally:
            _as_postgres(binaries / "pg_ctl", "-D", home / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """The database of that server, emptied for each test."""
    import psycopg

    with psycopg.connect(postgresql_server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return postgresql_server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database of either kind: what one promises the other does too."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/a-database.sqlite3"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture(scope="session")
def open_new(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Open a database that is new: in a file, a copy of one that was made once, for that takes longer than most tests.

    What makes one, and what happens meanwhile, is tested with `database_url` alone.
    """
    made: dict[type, bytes] = {}

    def opened(kind: type, url: str, **options: Any) -> Any:
        if url.startswith("sqlite:///"):
            if kind not in made:
                first = tmp_path_factory.mktemp("new") / "new.sqlite3"
                kind(f"sqlite:///{first}")
                made[kind] = first.read_bytes()
            file = Path(url.removeprefix("sqlite:///"))
            assert not file.exists()
            file.write_bytes(made[kind])
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
