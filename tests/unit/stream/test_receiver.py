"""What needs no cluster; the rest is in tests/system/test_stream.py."""

from types import SimpleNamespace

import pytest

from nightbeam.core.errors import ConfigError, UnavailableError
from nightbeam.stream.receiver import Receiver


@pytest.mark.parametrize("wrong", [{"in_flight": 0}, {"poll_s": 0.0}, {"poll_s": float("nan")}])
def test_a_receiver_that_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigError):
        Receiver(SimpleNamespace(num_shards=1), **wrong)


class Shards:
    """Stands for a queue whose shards have died."""

    name, num_shards, dead = "q", 2, frozenset({0, 1})

    def gone(self):
        return UnavailableError("every shard has died")


def test_what_is_here_is_drained_although_every_shard_has_died():
    receiver = Receiver(Shards())
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
    receiver = Receiver(queue)
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
        Receiver(queue).take(1.0)


def test_a_shard_that_does_not_say_its_size_is_waited_for_once_and_asked_once(monkeypatch):
    import ray

    asked, waited, answered = [], [], []

    def wait(refs, *, num_returns, timeout):
        waited.append(timeout)
        return answered, [one for one in refs if one not in answered]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda refs: [3 for _ in refs])
    queue = SimpleNamespace(name="q", num_shards=2, dead=frozenset(), call=lambda k, _: asked.append(k) or k)
    receiver = Receiver(queue)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="do not say"):
            receiver.size()
    answered += [0, 1]
    assert receiver.size() == 6
    assert (asked, waited) == ([0, 1], [0.2, 0.0, 0.0])
