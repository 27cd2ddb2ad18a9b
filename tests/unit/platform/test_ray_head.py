"""The platform's own Ray cluster without Ray: when there is one, where it listens, and how its processes are known."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nightbeam.core.errors import BusyError
from nightbeam.core.settings import Settings, load_settings
from nightbeam.platform import control, ray_head
from nightbeam.platform.files import write_report
from nightbeam.platform.model import Layout, Phase, Report
from nightbeam.platform.worker import Supervisor


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "state").mkdir()
    return Layout(tmp_path / "state")


def _settings(layout: Layout, **more: Any) -> Settings:
    overrides = {"state_dir": layout.state_dir, **more}
    return load_settings(config=Path(os.devnull), overrides=overrides, environ={}).resolved()


def _report(ray: str) -> Report:
    return Report(phase=Phase.STOPPED, pid=1, api_url="", ray=ray)


@pytest.fixture
def taken_port() -> Any:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture
def left(layout: Layout) -> Any:
    """A process that a head of this platform left behind, whose parent is somebody else."""
    env = {**os.environ, ray_head.MARK: str(layout.state_dir)}
    code = "import time; print('here', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


@pytest.mark.parametrize(
    ("address", "pools", "before", "wanted"),
    [
        (None, {"cxi-writer": 1}, "", True),
        (None, {"batch": 4}, "", False),
        ("head.site:6379", {"cxi-writer": 1}, "", False),
        ("auto", {"cxi-writer": 1}, "127.0.0.1:6379", False),
        # The file for flows, given as the settings of the next start, names our own cluster.
        ("127.0.0.1:6379", {"cxi-writer": 1}, "127.0.0.1:6379", True),
        ("127.0.0.1:6379", {"cxi-writer": 1}, "127.0.0.1:6380", False),
    ],
)
def test_a_platform_has_a_cluster_if_it_serves_the_writer_and_the_site_names_none(
    layout, address, pools, before, wanted
):
    settings = _settings(layout, **{"stream.address": address, "platform.pools": pools})
    assert ray_head.is_wanted(settings, _report(before)) is wanted


def test_without_ray_the_platform_comes_up_and_says_so(layout, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not ray_head.is_wanted(_settings(layout), None)
    assert "Ray is not installed" in caplog.text


def test_the_cluster_keeps_its_port_unless_somebody_else_has_taken_it(layout, taken_port):
    free = _free_port()
    assert ray_head.choose_port(layout, _settings(layout), _report(f"127.0.0.1:{free}")) == free
    other = ray_head.choose_port(layout, _settings(layout), _report(f"127.0.0.1:{taken_port}"))
    assert other != taken_port
    assert ray_head.choose_port(layout, _settings(layout), None) >= 6379
    with pytest.raises(BusyError, match=rf"port {taken_port} on 127.0.0.1 is taken"):
        ray_head.choose_port(layout, _settings(layout, **{"stream.port": taken_port}), None)


def test_a_port_that_our_own_head_holds_is_ours(layout, taken_port, left):
    before = _report(f"127.0.0.1:{taken_port}")
    assert ray_head.choose_port(layout, _settings(layout), before) == taken_port
    assert ray_head.choose_port(layout, _settings(layout, **{"stream.port": taken_port}), before) == taken_port


def test_flows_are_told_the_address_and_where_the_word_lies(layout):
    port = _free_port()
    supervisor = Supervisor(_settings(layout, **{"stream.port": port}))
    supervisor._settle_ray(None)
    stream = supervisor._settings.stream
    assert (stream.address, stream.token_file) == (f"127.0.0.1:{port}", layout.ray_token)
    elsewhere = Supervisor(_settings(layout, **{"stream.address": "head.site:6379"}))
    elsewhere._settle_ray(None)
    assert elsewhere._settings.stream.address == "head.site:6379"


def test_the_word_is_made_once_and_only_its_owner_reads_it(layout):
    ray_head.make_token(layout)
    word = layout.ray_token.read_text()
    assert len(word) == 64
    assert stat.S_IMODE(layout.ray_token.stat().st_mode) == 0o600
    ray_head.make_token(layout)
    assert layout.ray_token.read_text() == word


def test_the_head_listens_where_told_and_knows_nothing_of_another_cluster_or_platform(layout):
    settings = _settings(layout, **{"stream.num_cpus": 3, "stream.object_store_gb": 0.5})
    shell = {"PATH": "/bin", "RAY_ADDRESS": "other:1", "RAY_AUTH_TOKEN": "theirs", "NIGHTBEAM_STATE_DIR": "/else"}
    program = ray_head.ray_program(layout, 6400, settings=settings, environ=shell)
    said = " ".join(program.argv)
    assert "--head" in program.argv
    assert "--block" in program.argv
    for words in ("6400", "127.0.0.1", "3", "500000000"):
        assert words in said.replace("=", " ").split()
    assert program.env[ray_head.MARK] == str(layout.state_dir)
    assert program.env["RAY_AUTH_TOKEN_PATH"] == str(layout.ray_token)
    assert program.env["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "NIGHTBEAM_STATE_DIR"} & set(program.env)
    assert program == ray_head.ray_program(layout, 6400, settings=settings, environ=shell)


def test_what_a_head_left_is_known_by_its_environment_and_ended_by_down(layout, left, tmp_path):
    other = Layout(tmp_path / "other")
    assert [process.pid for process in ray_head.ray_processes(layout)] == [left.pid]
    assert ray_head.ray_processes(other) == []
    write_report(layout, _report("127.0.0.1:6379"))
    assert control.stop(_settings(layout)).was_running
    left.wait(10)
    assert ray_head.ray_processes(layout) == []
    assert not control.stop(_settings(layout)).was_running


def test_the_status_says_where_the_cluster_is(layout, monkeypatch):
    write_report(layout, Report(phase=Phase.RUNNING, pid=1, api_url="", ray="127.0.0.1:6379"))
    monkeypatch.setattr(control, "is_held", lambda path: True)
    assert control.platform_status(_settings(layout)).ray == "127.0.0.1:6379"
    write_report(layout, _report(""))
    there = _settings(layout, **{"stream.address": "head.site:6379"})
    assert control.platform_status(there).ray == "head.site:6379"


def test_only_the_logs_of_the_last_heads_are_kept(layout, tmp_path, monkeypatch):
    monkeypatch.setattr("nightbeam.stream.cluster.short_temp_dir", lambda key: tmp_path / "ray")
    for day in range(1, 7):
        (tmp_path / "ray" / f"session_2026-11-0{day}_00-00-00_0_1" / "logs").mkdir(parents=True)
    (tmp_path / "ray" / "session_latest").symlink_to("session_2026-11-06_00-00-00_0_1")
    ray_head.trim_sessions(layout)
    kept = sorted(path.name for path in (tmp_path / "ray").iterdir())
    assert [name[:18] for name in kept] == [f"session_2026-11-0{day}" for day in (4, 5, 6)] + ["session_latest"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
