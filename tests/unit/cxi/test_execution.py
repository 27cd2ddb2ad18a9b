import threading

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import UnavailableError
from nightbeam.cxi.execution import Load, LoadFollower, TaskPool, next_workers
from nightbeam.stream.model import BatchError, LostError
from nightbeam.testing.cxi_world import Clock


@pytest.fixture
def pool():
    made = TaskPool(2, most_threads=4)
    yield made
    made.close()


def all_of(pool):
    found = []
    while pool.open:
        found += pool.finished(5.0)
    return {done.key: done.result for done in found}


def test_every_task_comes_back_once(pool):
    for k in range(20):
        pool.submit((k, ""), pow, k, 2)
    assert all_of(pool) == {(k, ""): k * k for k in range(20)}


def test_no_more_run_at_a_time_than_the_limit_says(pool):
    lock, running, most = threading.Lock(), 0, 0

    def work():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1

    for k in range(50):
        pool.submit((k, ""), work)
    all_of(pool)
    assert most <= 2


def test_a_task_that_fails_once_is_done_again(pool):
    tries = []

    def once():
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("bad luck")
        return "done"

    pool.submit((0, ""), once)
    assert all_of(pool) == {(0, ""): "done"}
    assert pool.retried == 1


@pytest.mark.parametrize(("error", "tries"), [(RuntimeError("x"), 2), (BatchError("x"), 1), (LostError("x"), 1)])
def test_a_task_that_fails_again_comes_back_as_its_error(pool, error, tries):
    seen = []

    def work():
        seen.append(1)
        raise error

    pool.submit((0, ""), work)
    assert all_of(pool) == {(0, ""): error}
    assert len(seen) == tries


def test_nothing_to_wait_for_is_not_waited_for(pool):
    assert pool.finished(60.0) == []


class Far:
    """Ray's workers that refuse some tasks, or do not say what has ended."""

    def __init__(self):
        self.tasks, self.silent, self.refused = [], False, set()

    def submit(self, function, refs, *args):
        if args[0] in self.refused:
            raise UnavailableError("raylet is gone")
        self.tasks.append(args[0])
        return args[0]

    def finished(self, timeout_s):
        if self.silent:
            raise UnavailableError("the cluster is gone")
        found, self.tasks = [(one, one) for one in self.tasks], []
        return found


@pytest.fixture
def far_pool():
    far = Far()
    made = TaskPool(2, most_threads=2, most_remote=2, remote=far)
    yield made, far
    made.close()


def test_a_task_that_cannot_be_submitted_has_failed_and_no_other(far_pool):
    pool, far = far_pool
    far.refused = {1, 3}
    for k in range(5):
        pool.submit_remote((k, ""), print, [], k)
    found = all_of(pool)
    assert {key[0]: type(result).__name__ for key, result in found.items()} == {
        0: "int", 1: "UnavailableError", 2: "int", 3: "UnavailableError", 4: "int",
    }  # fmt: skip
    assert pool.open == 0


def test_what_threads_have_done_is_not_lost_where_ray_does_not_answer(far_pool):
    pool, far = far_pool
    far.silent = True
    for k in range(3):
        pool.submit_remote((k, ""), print, [], k)
    pool.submit((9, ""), pow, 3, 2)
    assert pool.open == 4
    gone = UnavailableError("it is")
    while pool.running:
        with pytest.raises(UnavailableError):
            pool.finished(5.0)
    assert pool.give_up_remote(gone) == 3
    assert all_of(pool) == {(0, ""): gone, (1, ""): gone, (2, ""): gone, (9, ""): 9}
    assert pool.give_up_remote(gone) == 0


def test_one_more_worker_where_something_waits_all_are_busy_and_a_core_is_free():
    assert next_workers(Load(workers=2, busy=2, queued=1, cpu_idle=0.5, cores=4)) == 3
    assert next_workers(Load(workers=2, busy=1, queued=1, cpu_idle=0.5, cores=4)) == 2
    assert next_workers(Load(workers=2, busy=2, queued=0, cpu_idle=0.5, cores=4)) == 2
    assert next_workers(Load(workers=2, busy=2, queued=1, cpu_idle=0.1, cores=4)) == 2


def test_one_less_where_nothing_waits_and_most_are_idle():
    assert next_workers(Load(workers=4, busy=1, queued=0, cpu_idle=0.9, cores=4)) == 3
    assert next_workers(Load(workers=1, busy=0, queued=0, cpu_idle=0.9, cores=4)) == 1


@given(st.integers(1, 64), st.integers(0, 64), st.integers(0, 9), st.floats(0, 1), st.integers(1, 64))
def test_workers_stay_between_one_and_the_cores_and_change_by_one(workers, busy, queued, idle, cores):
    workers = min(workers, cores)
    found = next_workers(Load(workers, busy, queued, idle, cores))
    assert 1 <= found <= cores
    assert abs(found - workers) <= 1


def test_the_load_is_followed_by_one_worker_every_two_seconds_and_the_queue_is_part_of_it(pool, monkeypatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 0.0)
    clock, gate = Clock(), threading.Event()
    follower = LoadFollower(pool, 4, clock)
    for k in range(2):
        pool.submit((k, ""), gate.wait, 30)
    follower.look(None)  # both are busy, but nothing waits
    assert pool.limit == 2
    found = []
    for _ in range(3):
        clock.now_s += 1.0
        follower.look(5)
        found.append(pool.limit)
    assert found == [2, 3, 3]
    gate.set()
    all_of(pool)
    clock.now_s += 2.0
    follower.look(0)
    assert pool.limit == 2
