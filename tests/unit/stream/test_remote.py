"""What needs no cluster; the rest is in tests/system/test_stream.py."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nightbeam.core.errors import ConfigError, UnavailableError
from nightbeam.stream import remote
from nightbeam.stream.model import PipelineOutput


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


def test_arrays_inside_a_message_need_no_cluster():
    direct = PipelineOutput(predictions=torch.ones(2, 2, 3, 3), original_image_ref=np.ones((2, 1, 3, 3)))
    assert remote.fetch(direct).images.shape == (2, 1, 3, 3)
    without = SimpleNamespace(image_kind="none")
    assert remote.fetch(direct, without).images is None


def test_a_queue_of_shards_that_are_gone_says_which():
    assert remote.QueueFound("q", "ns", (0, 2, 5)).gaps == (1, 3, 4)
    assert remote.QueueFound("q", "ns", (0, 1)).gaps == ()


@pytest.mark.parametrize("wrong", [{"in_flight": 0}, {"poll_s": 0.0}, {"poll_s": float("nan")}])
def test_a_receiver_that_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigError):
        remote.Receiver(SimpleNamespace(num_shards=1), **wrong)


class Shards:
    """Stands for a queue whose shards have died."""

    name, num_shards, dead = "q", 2, frozenset({0, 1})

    def gone(self):
        return UnavailableError("every shard has died")


def test_what_is_here_is_drained_although_every_shard_has_died():
    receiver = remote.Receiver(Shards())
    assert receiver.drain() == []
    receiver._lanes[1].items.append(("a message", 0))
    assert receiver.drain() == ["a message"]
    with pytest.raises(UnavailableError, match="every shard"):
        receiver.take(0.0)


def test_a_cluster_that_has_gone_ends_the_taking_but_not_the_draining(monkeypatch, caplog):
    import ray

    def wait(*_, **__):
        raise ray.exceptions.RpcError("connection refused")

    monkeypatch.setattr(ray, "wait", wait)
    queue = SimpleNamespace(name="q", num_shards=1, dead=frozenset(), call=lambda *_: "question")
    receiver = remote.Receiver(queue)
    with pytest.raises(UnavailableError, match="connection refused"):
        receiver.take(1.0)
    receiver._lanes[0].items.append(("a message", 0))
    assert receiver.drain() == ["a message"]
    assert "connection refused" in caplog.text


@pytest.mark.parametrize("kind", ["RpcError", "LocalRayletDiedError", "ConnectionError"])
def test_a_dead_cluster_is_no_unreadable_message(kind, monkeypatch):
    import ray

    def get(_):
        raise {"RpcError": ray.exceptions.RpcError("refused"), "ConnectionError": ConnectionError("refused"),
               "LocalRayletDiedError": ray.exceptions.LocalRayletDiedError()}[kind]  # fmt: skip

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda refs, **_: (refs, []))
    queue = SimpleNamespace(name="q", num_shards=1, dead=frozenset(), call=lambda *_: "question")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        remote.Receiver(queue).take(1.0)


def test_a_shard_that_does_not_say_its_size_is_waited_for_once_and_asked_once(monkeypatch):
    import ray

    asked, waited, answered = [], [], []

    def wait(refs, *, num_returns, timeout):
        waited.append(timeout)
        return answered, [one for one in refs if one not in answered]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda refs: [3 for _ in refs])
    queue = SimpleNamespace(name="q", num_shards=2, dead=frozenset(), call=lambda k, _: asked.append(k) or k)
    receiver = remote.Receiver(queue)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="do not say"):
            receiver.size()
    answered += [0, 1]
    assert receiver.size() == 6
    assert (asked, waited) == ([0, 1], [0.2, 0.0, 0.0])


@pytest.mark.parametrize(("header", "limit_s"), [(None, 10.0), (SimpleNamespace(image_kind="none"), 120.0)])
def test_arrays_that_the_loop_itself_waits_for_must_come_soon(header, limit_s, monkeypatch):
    asked = []
    monkeypatch.setattr(remote, "_fetch_all", lambda values, _, limit: asked.append(limit) or values)
    remote.fetch(PipelineOutput(predictions=torch.ones(1)), header)
    assert asked == [limit_s]
