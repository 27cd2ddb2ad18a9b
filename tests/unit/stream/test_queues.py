"""What needs no cluster; the rest is in tests/system/test_stream.py."""

import pytest

from nightbeam.core.errors import ConfigError
from nightbeam.stream.queues import QueueFound, ShardedQueue


def test_a_queue_of_shards_that_are_gone_says_which():
    assert QueueFound("q", "ns", (0, 2, 5)).gaps == (1, 3, 4)
    assert QueueFound("q", "ns", (0, 1)).gaps == ()


class _Shard:
    """Answers a call as Ray does where it cannot be made."""

    def __init__(self, text):
        self.text = text
        self.put = self

    def remote(self, *_):
        raise TypeError(self.text)


def test_a_shard_whose_class_is_not_here_is_said_with_its_remedy():
    queue = ShardedQueue("q", "ns", [_Shard("too many positional arguments")])
    with pytest.raises(ConfigError, match="class cannot be imported here") as caught:
        queue.put("a", timeout_s=0)
    assert "nightbeam stream drop q" in caught.value.fix


def test_a_message_that_cannot_be_pickled_is_not_taken_for_that():
    queue = ShardedQueue("q", "ns", [_Shard("Could not serialize the argument")])
    with pytest.raises(TypeError, match="Could not serialize"):
        queue.put("a", timeout_s=0)
