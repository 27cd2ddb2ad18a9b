"""How much is done at a time."""

import os

import pytest

from nightbeam.cxi.doors import Cluster
from nightbeam.cxi.limits import find_limits, make_pool
from nightbeam.testing.cxi_world import small_config


@pytest.fixture
def asked(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    return lambda **keys: small_config(tmp_path, processing=keys).processing


def test_a_quarter_of_the_object_store_may_be_pending_unless_something_else_is_asked_for(asked):
    cluster = Cluster(1, 4000)
    assert find_limits(asked(), cluster).most_bytes == 1000
    assert find_limits(asked(max_pending_bytes=7), cluster).most_bytes == 7
    assert find_limits(asked(), Cluster()).most_bytes > 0


@pytest.mark.parametrize(("mode", "nodes", "far"), [
    ("auto", 1, False), ("auto", 2, True), ("tasks", 1, True), ("threads", 2, False),
])  # fmt: skip
def test_tasks_go_far_where_that_is_asked_or_there_are_several_nodes(asked, mode, nodes, far):
    limits, told = find_limits(asked(mode=mode), Cluster(nodes, 4000)), []
    make_pool(asked(mode=mode, max_pending_tasks=9), limits, told.append).close()
    assert limits.far == far
    assert told == ([9] if far else [])


@pytest.mark.parametrize(("workers", "most", "pieces", "limit"), [
    ("auto", 50, 6, 2), (4, 50, 4, 4), (8, 50, 8, 6), (8, 3, 8, 3),
])  # fmt: skip
def test_there_are_no_more_workers_than_cores_or_tasks(asked, workers, most, pieces, limit):
    keys = asked(num_cpu_workers=workers, max_pending_tasks=most)
    limits = find_limits(keys, Cluster(1, 4000))
    pool = make_pool(keys, limits, lambda _: None)
    pool.close()
    assert (limits.adaptive, limits.num_pieces, pool.limit) == (workers == "auto", pieces, limit)
