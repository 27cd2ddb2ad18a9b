"""What needs no cluster; the rest is in tests/system/test_stream.py."""

import signal

import pytest

from nightbeam.core.errors import ConfigError, UnavailableError
from nightbeam.stream import remote


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def _nothing_runs(monkeypatch):
    from ray._private import services, utils

    monkeypatch.setattr(utils, "read_ray_address", lambda *_: None)
    monkeypatch.setattr(services, "find_gcs_addresses", set)


@pytest.mark.usefixtures("_nothing_runs")
def test_no_cluster_is_started_where_none_is_found():
    with pytest.raises(UnavailableError, match="no running Ray cluster") as caught:
        remote.connect("auto", "ns")
    assert "ray.address" in caught.value.fix


@pytest.mark.parametrize(("told", "word"), [("local", "RAY_ADDRESS is local"), ("127.0.0.1:1", "no Ray cluster at")])
def test_what_the_environment_names_must_run(told, word, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", told)
    with pytest.raises(UnavailableError, match=word):
        remote.connect("auto", "ns")


def test_of_several_clusters_none_is_guessed(monkeypatch):
    from ray._private import services, utils

    monkeypatch.setattr(utils, "read_ray_address", lambda *_: None)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: {"127.0.0.1:1", "127.0.0.1:2"})
    with pytest.raises(ConfigError, match="several"):
        remote.connect("auto", "ns")


@pytest.mark.parametrize(("address", "namespace"), [("nonsense", "ns"), ("", "ns"), ("127.0.0.1:1", "")])
def test_an_address_or_namespace_that_is_none_is_refused(address, namespace):
    with pytest.raises(ConfigError):
        remote.connect(address, namespace)


def test_a_service_keeps_its_own_answer_to_signals():
    def ours(*_):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(UnavailableError):
            remote.connect("127.0.0.1:1", "ns")
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
