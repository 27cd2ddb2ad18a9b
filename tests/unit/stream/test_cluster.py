import os
import socket
import stat

import pytest

from nightbeam.core.errors import ConfigError, StorageError
from nightbeam.stream import cluster


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_head_is_told_to_stay_on_this_machine(tmp_path):
    argv = cluster.head_argv(port=6379, temp_dir=tmp_path, num_cpus=2, object_store_bytes=100 << 20)
    assert os.access(argv[0], os.X_OK)
    assert {"--head", "--block", "--node-ip-address=127.0.0.1", "--include-dashboard=false"} <= set(argv)


@pytest.mark.parametrize("wrong", [{"port": 80}, {"port": 70000}, {"num_cpus": 0}, {"object_store_bytes": 1000}])
def test_a_head_that_cannot_start_is_refused(wrong, tmp_path):
    with pytest.raises(ConfigError):
        cluster.head_argv(
            **{"port": 6379, "temp_dir": tmp_path, "num_cpus": 2, "object_store_bytes": 100 << 20} | wrong
        )


def test_a_head_does_not_wait_for_actors_that_go_nowhere():
    assert cluster.head_environment()["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "0"


def test_a_token_is_for_us_alone_and_stays(tmp_path):
    file = cluster.make_token(tmp_path / "deep" / "token")
    told = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(told) == 64
    assert cluster.make_token(file).read_text() == told
    assert cluster.head_environment(token_file=file)["RAY_AUTH_TOKEN_PATH"] == str(file)


def test_the_directory_of_sockets_is_short_ours_and_one_for_each_state(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    first, second = (cluster.short_temp_dir(tmp_path / name) for name in ("a" * 200, "b"))
    try:
        assert first != second == cluster.short_temp_dir(tmp_path / "b")
        assert len(str(first)) < 40
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
    finally:
        first.rmdir()
        second.rmdir()


def test_a_directory_that_leads_elsewhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    place = cluster.short_temp_dir(tmp_path)
    place.rmdir()
    place.symlink_to(tmp_path)
    try:
        with pytest.raises(StorageError):
            cluster.short_temp_dir(tmp_path)
    finally:
        place.unlink()


def test_somebody_listens_or_not(port):
    assert cluster.alive(f"127.0.0.1:{port}")
    assert cluster.alive(cluster.address_of(port))
    for nobody in ("127.0.0.1:1", "nonsense", "127.0.0.1:99999", "127.0.0.1:"):
        assert not cluster.alive(nobody)


def test_it_is_known_whether_a_port_can_be_reached_from_elsewhere(port):
    assert cluster.listens_on_loopback_only(port)
    assert not cluster.listens_on_loopback_only(1)
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert not cluster.listens_on_loopback_only(server.getsockname()[1])


@pytest.fixture
def _environment(monkeypatch, tmp_path):
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN",
                 "RAY_AUTH_TOKEN_PATH", "RAY_gcs_rpc_server_reconnect_timeout_s"):  # fmt: skip
        monkeypatch.setenv(name, "")  # so that what is set here is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("_environment")
def test_a_token_that_is_there_is_used(tmp_path):
    cluster.prepare_environment()
    assert "RAY_AUTH_MODE" not in os.environ
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    cluster.make_token(tmp_path / ".ray" / "auth_token")
    cluster.prepare_environment()
    assert os.environ["RAY_AUTH_MODE"] == "token"
