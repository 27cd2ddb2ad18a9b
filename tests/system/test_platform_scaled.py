"""A platform on PostgreSQL and Redis, with two processes of Prefect's API; both started by infra/services.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from nightbeam import platform
from nightbeam.core.settings import Settings, load_settings
from nightbeam.platform.model import PartState

pytestmark = [pytest.mark.system, pytest.mark.timeout(480)]

SERVICES = Path(__file__).resolve().parents[2] / "infra" / "services.py"


def services(what: str, place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SERVICES), what, "--dir", str(place), *more], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def told() -> Iterator[dict[str, Any]]:
    """Return the settings of running services."""
    import tempfile

    # Another user owns them where we are root, and could not pass pytest's directory.
    with tempfile.TemporaryDirectory(prefix="nightbeam-services-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        place = Path(directory) / "services"
        done = services("up", place)
        if done.returncode == 69:
            pytest.skip(done.stderr)
        try:
            assert done.returncode == 0, done.stderr
            assert services("up", place).stdout == done.stdout
            assert services("show", place).stdout == done.stdout
            yield yaml.safe_load(done.stdout)
        finally:
            assert services("down", place).returncode == 0
            assert not [p for p in psutil.process_iter(["cmdline"]) if directory in " ".join(p.info["cmdline"] or [])]


def test_services_refuse_what_they_cannot_be(tmp_path: Path):
    done = services("show", tmp_path / "none")
    assert (done.returncode, done.stdout) == (69, "")
    assert f"no services in {tmp_path / 'none'}" in done.stderr
    (tmp_path / "ports").write_text("one\n")
    assert "does not hold two ports" in services("up", tmp_path).stderr
    (tmp_path / "ports").write_text("54329 63799\n")
    assert "redis is at port 63799 here, not 7" in services("up", tmp_path, "--redis-port", "7").stderr
    assert services("down", tmp_path).returncode == 0


def test_a_stranger_at_a_port_is_not_taken_for_ours(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        (tmp_path / "ports").write_text(f"{port} 63799\n")
        done = services("up", tmp_path)
        assert (done.returncode, done.stdout) == (69, "")
        assert f"somebody else listens at port {port}, where PostgreSQL was to be" in done.stderr
        assert not (tmp_path / "postgresql").exists()


def test_two_processes_of_the_api_and_the_loops_work_together_and_mend(told, tmp_path, until):
    given = {"state_dir": tmp_path / "state"}
    given |= {f"{section}.{name}": value for section, values in told.items() for name, value in values.items()}
    settings = load_settings(config=Path(os.devnull), overrides=given, environ={}).resolved()
    ours = settings.platform.model_copy(update={"pools": {"batch": 2}})
    settings = settings.model_copy(update={"platform": ours})
    started = platform.start(settings, schedules=True)
    try:
        parts = {part.name: part for part in platform.platform_status(settings).parts}
        assert set(parts) == {"server", "services", "monitor", "worker-batch"}
        password = told["platform"]["redis_url"].split(":")[2].split("@")[0]
        assert password not in (tmp_path / "state" / "nightbeam.yaml").read_text().partition("contimg:")[0]
        api = platform.PrefectApi(started.api_url)
        until(lambda: api.count_runs(types=("SCHEDULED",)) >= 3, 30.0)
        _completes(api, until)

        # One of the processes of the API, then the loops: each is started again, and runs go on.
        workers = [p for p in psutil.Process(parts["server"].pid).children(recursive=True) if _is_api(p)]
        assert len(workers) == 2
        workers[0].send_signal(signal.SIGKILL)
        psutil.Process(parts["services"].pid).send_signal(signal.SIGKILL)
        until(lambda: _restarts(settings, "services") == 1, 30.0)

        def both_again() -> bool:
            now = {p.pid for p in psutil.Process(parts["server"].pid).children(recursive=True) if _is_api(p)}
            return len(now) == 2 and workers[0].pid not in now and workers[1].pid in now

        until(both_again, 60.0)
        until(api.healthy, 60.0)
        _completes(api, until)
        assert platform.platform_status(settings).healthy
    finally:
        assert platform.stop(settings).was_running
    status = platform.platform_status(settings)
    assert not [part for part in status.parts if part.state is PartState.RUNNING]


def _is_api(process: psutil.Process) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "multiprocessing" in line and "resource_tracker" not in line


def _completes(api: platform.PrefectApi, until: Any) -> None:
    run = api.run_deployment("flight-check/default", parameters={"programs": ["bash"], "look": False})
    until(lambda: api.flow_run(run["id"])["state_type"] == "COMPLETED", 90.0)


def _restarts(settings: Settings, name: str) -> int:
    return next(part.restarts for part in platform.platform_status(settings).parts if part.name == name)
