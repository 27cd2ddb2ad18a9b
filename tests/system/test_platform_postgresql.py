"""The same deployments on a Prefect server that somebody else runs, with PostgreSQL beneath it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from nightbeam import platform
from nightbeam.core.settings import Settings, load_settings
from nightbeam.platform.processes import free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(480)]


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL here: install Debian's postgresql")
    return found[-1].parent


def _unprivileged() -> list[str]:
    """PostgreSQL refuses to run as root: return what makes a command somebody else's."""
    if os.getuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    try:
        user = pwd.getpwnam("nobody")
    except KeyError:
        user = None
    if setpriv is None or user is None:
        pytest.skip("PostgreSQL refuses to run as root, and there is no other user to run it as")
    return [setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


@pytest.fixture
def database(until) -> Iterator[str]:
    import tempfile

    become = _unprivileged()
    binaries = _binaries()
    with tempfile.TemporaryDirectory(prefix="nightbeam-pg-", dir="/tmp") as directory:
        place = Path(directory)
        place.chmod(0o777)
        port = free_port("127.0.0.1", 54320)
        make = [str(binaries / "initdb"), "-D", str(place / "db"), "-U", "prefect", "--auth=trust", "--no-sync"]
        subprocess.run([*become, *make], check=True, capture_output=True, cwd=place)
        serve = [
            str(binaries / "postgres"),
            "-D",
            str(place / "db"),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            directory,
        ]
        with (place / "log").open("wb") as log:
            server = subprocess.Popen([*become, *serve, "-F"], stdout=log, stderr=log, cwd=place)
        try:
            ready = [str(binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
            until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, 30.0)
            make = [str(binaries / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect"]
            subprocess.run(make, check=True, capture_output=True)
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
        finally:
            server.terminate()
            server.wait(20)


def test_the_same_apply_serves_a_server_on_postgresql_and_can_be_repeated(database, tmp_path, until):
    port = free_port("127.0.0.1", 44200)
    env = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
    }
    argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        api = platform.PrefectApi(f"http://127.0.0.1:{port}/api")
        until(api.healthy, 120.0)
        settings = load_settings(
            config=Path(os.devnull), overrides={"state_dir": tmp_path / "state"}, environ={}
        ).resolved()
        theirs = {"name": "cxi-writer", "type": "docker", "base_job_template": {}}
        assert requests.post(f"{api.url}/work_pools/", json=theirs, timeout=60).status_code == 201
        assert "pool casa created" in platform.apply_deployments(settings, api.url)
        until(lambda: api.count_runs(types=("SCHEDULED",)) >= 3, 15.0)
        names = sorted(d["id"] for d in api.deployments())
        again = platform.apply_deployments(settings, api.url)
        assert "created" not in again
        assert "left as an operator set it: pool cxi-writer is of type docker" in again
        assert sorted(d["id"] for d in api.deployments()) == names
        assert len(api.automations()) == len({a["name"] for a in api.automations()})
        _workers_alone_serve_it_and_leave_it_running(settings, api, until)
    finally:
        server.terminate()
        server.wait(30)


def _workers_alone_serve_it_and_leave_it_running(settings: Settings, api: platform.PrefectApi, until) -> None:
    ours = settings.platform.model_copy(update={"api_url": api.url, "pools": {"batch": 1}})
    settings = settings.model_copy(update={"platform": ours})
    started = platform.start(settings, schedules=False)
    try:
        assert started.api_url == api.url
        assert [part.name for part in platform.platform_status(settings).parts] == ["monitor", "worker-batch"]
        run = api.run_deployment("flight-check/default", parameters={"programs": ["bash"], "look": False})
        until(lambda: api.flow_run(run["id"])["state_type"] == "COMPLETED", 60.0)
    finally:
        assert platform.stop(settings).was_running
    assert api.healthy()
    assert {pool["name"]: pool["is_paused"] for pool in api.pools()} == {
        "batch": False,  # others may serve it
        "casa": False,
        "cxi-writer": False,
        "example-service": False,
        "scan-calibrator": False,
    }
