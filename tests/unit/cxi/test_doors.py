import pytest

from nightbeam.core.errors import MissingError
from nightbeam.cxi.doors import the_world
from nightbeam.stream import queues
from nightbeam.stream.queues import QueueFound
from nightbeam.testing.cxi_world import small_config


@pytest.fixture
def there(monkeypatch):
    """Say which queues there are, without Ray."""
    found: list[QueueFound] = []

    def absent(name, num_shards):
        raise queues.not_there(name, "test")

    monkeypatch.setattr(queues, "list_queues", lambda: found)
    monkeypatch.setattr(queues.ShardedQueue, "open", absent)
    return found


def test_shards_that_are_to_be_found_where_there_are_none_say_how_to_start_first(there, tmp_path):
    with pytest.raises(MissingError, match="Cannot find queue 'q' in namespace 'test'") as caught:
        the_world().source(small_config(tmp_path, queue={"num_shards": "auto"}))
    assert "or give a number as `queue.num_shards`, then it is made" in str(caught.value)


@pytest.mark.parametrize("shards", [1, "auto"])
def test_a_queue_in_another_namespace_only_says_how_to_start_first_all_the_same(there, tmp_path, shards):
    there.append(QueueFound("q", "elsewhere", (0,)))
    with pytest.raises(MissingError, match="in namespace 'elsewhere'") as caught:
        the_world().source(small_config(tmp_path, queue={"num_shards": shards}))
    text = str(caught.value)
    assert "start the pipeline first, or remove the other queue with `nightbeam stream drop q --namespace" in text
    assert "then it is made" not in text
