"""What needs no cluster; the rest is in tests/system/test_stream.py."""

from nightbeam.stream.queues import QueueFound


def test_a_queue_of_shards_that_are_gone_says_which():
    assert QueueFound("q", "ns", (0, 2, 5)).gaps == (1, 3, 4)
    assert QueueFound("q", "ns", (0, 1)).gaps == ()
