"""Who does the work: threads of this process or Ray's tasks, and how many at a time."""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import psutil

from nightbeam.core.errors import InputError, RejectedError, UnavailableError

__all__ = ["Done", "Load", "LoadFollower", "Remote", "TaskPool", "next_workers", "permanent"]

_log = logging.getLogger(__name__)

_ADAPT_EVERY_S: Final = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A task that has ended.

    Attributes
    ----------
    key
        What it was submitted under: a batch, and which task of it.
    result
        What it returned, or the exception that it raised.
    """

    key: tuple[int, Any]
    result: Any


class Remote(Protocol):
    """What is asked of Ray's tasks; `nightbeam.stream.tasks.RayWorkers` is one."""

    def submit(self, function: Callable[..., Any], message_refs: Sequence[Any], *args: Any) -> Any:
        """Start ``function(*values of the refs, *args)`` somewhere and return a handle."""

    def finished(self, timeout_s: float) -> list[tuple[Any, Any]]:
        """Return the handles that have ended, with their results or exceptions."""


def permanent(error: BaseException) -> bool:
    """Return whether the same task would fail again in the same way."""
    return isinstance(error, RejectedError | InputError | UnavailableError)


@dataclass(slots=True)
class _Task:
    key: tuple[int, Any]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    tries: int = 0


class TaskPool:
    """Run functions in threads, and where asked on Ray's workers; at most ``limit`` at a time.

    A task that fails is done again once, unless it would fail in the same way. Only the thread that made the pool may
    call its methods.

    Parameters
    ----------
    limit
        How many tasks run at a time at first.
    most_threads
        How many threads there are at most.
    most_remote
        How many of Ray's tasks are open at most.
    remote
        Ray's workers; None: there are none.
    """

    def __init__(self, limit: int, *, most_threads: int, most_remote: int = 0, remote: Remote | None = None) -> None:
        self.limit, self._most_remote, self._remote = limit, most_remote, remote
        self._pool = ThreadPoolExecutor(most_threads, thread_name_prefix="cxi-peaks")
        self._inbox: queue.SimpleQueue[tuple[_Task, Future[Any]]] = queue.SimpleQueue()
        self._waiting: deque[_Task] = deque()
        self._running = 0
        self._waiting_remote: deque[tuple[_Task, Sequence[Any]]] = deque()
        self._remote_open: dict[Any, _Task] = {}
        self._ready: list[Done] = []
        self.retried = 0

    @property
    def open(self) -> int:
        """How many tasks have been submitted and not returned."""
        remote = len(self._waiting_remote) + len(self._remote_open)
        return len(self._waiting) + self._running + remote + len(self._ready)

    @property
    def running(self) -> int:
        """How many threads are at work."""
        return self._running

    def submit(self, key: tuple[int, Any], function: Callable[..., Any], *args: Any, first: bool = False) -> None:
        """Have ``function(*args)`` done by a thread; ``first``: before what waits."""
        (self._waiting.appendleft if first else self._waiting.append)(_Task(key, function, args))
        self._start()

    def submit_remote(
        self, key: tuple[int, Any], function: Callable[..., Any], refs: Sequence[Any], *args: Any
    ) -> None:
        """Have ``function(*values of refs, *args)`` done by one of Ray's workers, which tries it twice itself.

        A task that cannot be submitted has ended with that error.
        """
        self._waiting_remote.append((_Task(key, function, args), refs))
        self._start_remote()

    def finished(self, timeout_s: float) -> list[Done]:
        """Return what has ended; waits up to ``timeout_s`` for the first one.

        Raises
        ------
        NightbeamError
            If Ray does not say what has; nothing is lost, and the next call may be luckier.
        """
        self._ready += self._local(0.0 if self._remote_open or self._ready else timeout_s)
        if self._remote_open:
            self._ready += self._from_remote(0.0 if self._ready else timeout_s)
        self._start()
        self._start_remote()
        done, self._ready = self._ready, []
        return done

    def give_up_remote(self, error: Exception) -> int:
        """Let all of Ray's tasks end with an error, because nobody says any more what became of them.

        Returns
        -------
        int
            How many there were.
        """
        gone = [*self._remote_open.values(), *(task for task, _ in self._waiting_remote)]
        self._remote_open.clear()
        self._waiting_remote.clear()
        self._ready += [Done(task.key, error) for task in gone]
        return len(gone)

    def close(self) -> None:
        """Wait for the threads to end."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        while self._waiting and self._running < self.limit:
            task = self._waiting.popleft()
            self._running += 1
            self._pool.submit(task.function, *task.args).add_done_callback(partial(self._ended, task))

    def _ended(self, task: _Task, future: Future[Any]) -> None:
        self._inbox.put((task, future))

    def _local(self, timeout_s: float) -> list[Done]:
        found: list[Done] = []
        while self._running or not self._inbox.empty():
            try:
                task, future = self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
            except queue.Empty:
                break
            timeout_s = 0.0
            self._running -= 1
            found += self._judged(task, future)
            self._start()
        return found

    def _judged(self, task: _Task, future: Future[Any]) -> list[Done]:
        error = future.exception()
        if error is None:
            return [Done(task.key, future.result())]
        task.tries += 1
        if task.tries > 1 or permanent(error):
            return [Done(task.key, error)]
        self.retried += 1
        self._waiting.appendleft(task)
        return []

    def _start_remote(self) -> None:
        while self._remote is not None and self._waiting_remote and len(self._remote_open) < self._most_remote:
            task, refs = self._waiting_remote.popleft()
            try:
                handle = self._remote.submit(task.function, refs, *task.args)
            except Exception as error:  # as that of a task that has run
                self._ready.append(Done(task.key, error))
            else:
                self._remote_open[handle] = task

    def _from_remote(self, timeout_s: float) -> list[Done]:
        if self._remote is None:
            return []
        # Threads are looked at again soon: what they have done is not to wait for a task far away.
        some = self._remote.finished(min(timeout_s, 0.02) if self._running else timeout_s)
        return [Done(self._remote_open.pop(handle).key, result) for handle, result in some]


# -- how many -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """What the number of workers follows.

    Attributes
    ----------
    workers
        How many there are.
    busy
        How many are at work.
    queued
        Batches that wait in the queue, or tasks that wait for a worker.
    cpu_idle
        Fraction of the machine's cores that nobody uses, 0 to 1.
    cores
        How many there are.
    """

    workers: int
    busy: int
    queued: int
    cpu_idle: float
    cores: int


def next_workers(load: Load) -> int:
    """Return how many workers there should be from now on.

    One more where something waits, all are busy and the machine has a core to spare; one less where nothing waits and
    fewer than half are busy. Never fewer than one or more than there are cores.

    Examples
    --------
    >>> next_workers(Load(workers=2, busy=2, queued=5, cpu_idle=0.5, cores=8))
    3
    """
    wanted = load.workers
    if load.queued > 0 and load.busy >= load.workers and load.cpu_idle * load.cores >= 1.0:
        wanted += 1
    elif load.queued == 0 and 2 * load.busy < load.workers:
        wanted -= 1
    return max(1, min(wanted, load.cores))


class LoadFollower:
    """Let the number of a pool's workers follow the load, every two seconds.

    Parameters
    ----------
    pool
        Whose limit is changed.
    cores
        That there are.
    clock
        Seconds, of a clock that does not jump.
    """

    def __init__(self, pool: TaskPool, cores: int, clock: Callable[[], float]) -> None:
        self._pool, self._cores, self._clock = pool, cores, clock
        self._looked = 0.0
        psutil.cpu_percent()  # the first answer is about nothing; those that follow are about the time in between

    def look(self, queue_size: int | None) -> None:
        """Change the limit where it is time to; ``queue_size`` is None where nobody knows it."""
        now, pool = self._clock(), self._pool
        if now - self._looked < _ADAPT_EVERY_S:
            return
        self._looked = now
        idle = 1.0 - psutil.cpu_percent() / 100.0
        queued = (queue_size or 0) + pool.open - pool.running
        wanted = next_workers(Load(pool.limit, pool.running, queued, idle, self._cores))
        if wanted != pool.limit:
            _log.debug("%d workers in place of %d", wanted, pool.limit)
            pool.limit = wanted
