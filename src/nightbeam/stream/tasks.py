"""Ray's tasks: work on arrays by reference, a bounded number at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nightbeam.core.errors import BusyError, ConfigError, NightbeamError, ToolError
from nightbeam.stream.arrays import is_ref
from nightbeam.stream.faults import ray_errors, translated

__all__ = ["RayWorkers"]

log = logging.getLogger(__name__)


def _call(function: Callable[..., Any], args: tuple[Any, ...], *arrays: Any) -> Any:
    return function(*arrays, *args)


@dataclass(slots=True)
class _Open:
    handle: int
    call: tuple[Any, ...]
    tries: int = 1


class RayWorkers:
    """Tasks on the cluster, a bounded number at a time; each that fails is tried once more.

    Parameters
    ----------
    max_tasks
        Open at a time, at most.
    num_cpus
        That each task takes.

    Attributes
    ----------
    retried
        How many tasks were tried again.
    """

    def __init__(self, max_tasks: int, *, num_cpus: float = 1.0) -> None:
        import ray

        if max_tasks < 1:
            raise ConfigError(f"max_pending_tasks is {max_tasks}", fix="give 1 or more")
        self.max_tasks, self.retried = max_tasks, 0
        self._task = ray.remote(num_cpus=num_cpus, max_retries=0)(_call)
        self._open: dict[Any, _Open] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def room(self) -> int:
        """How many more tasks may be submitted now."""
        return self.max_tasks - len(self._open)

    def share(self, value: Any) -> Any:
        """Return a reference for an array that came by value, so that it is stored once for all tasks.

        Raises
        ------
        StorageError
            If the object store is full.
        """
        import ray

        if value is None or is_ref(value):
            return value
        with ray_errors("the object store"):
            return ray.put(value)

    def submit(self, function: Callable[..., Any], refs: Sequence[Any], *args: Any) -> int:
        """Start ``function(*arrays, *args)`` somewhere on the cluster, with the arrays that ``refs`` refer to.

        References are handed on as they are: the task maps the object that is there already.

        Parameters
        ----------
        function
            Of a module that the cluster can import.
        refs
            References; None and values stay as they are.
        args
            Small values.

        Returns
        -------
        int
            What `finished` will name it by.

        Raises
        ------
        BusyError
            If as many as may be are open.
        NightbeamError
            If the cluster does not take it.
        """
        if not self.room:
            raise BusyError(f"{len(self)} tasks are open", fix="collect some with finished() first")
        self._count += 1
        self._start(_Open(self._count, (function, args, *refs)))
        return self._count

    def finished(self, timeout_s: float | None) -> list[tuple[int, Any]]:
        """Return the tasks that have ended, each with its result or its error; waits for the first of them.

        Parameters
        ----------
        timeout_s
            How long to wait; None: for ever.

        Raises
        ------
        NightbeamError
            If Ray does not say; the tasks are still open.
        """
        import ray

        if not self._open:
            return []
        refs = list(self._open)
        with ray_errors("Ray's tasks"):
            ready, rest = ray.wait(refs, timeout=timeout_s)
            if ready and rest:
                more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
                ready += more
        return self._results(ready)

    def _results(self, refs: list[Any]) -> list[tuple[int, Any]]:
        import ray

        tasks = [self._open.pop(ref) for ref in refs]
        try:
            results = ray.get(refs) if refs else []
        except Exception:  # of any of them: each is asked for its own
            results = [self._result(ref, task) for ref, task in zip(refs, tasks, strict=True)]
        pairs = zip(tasks, results, strict=True)
        return [(task.handle, one) for task, one in pairs if one is not _AGAIN]

    def _result(self, ref: Any, task: _Open) -> Any:
        import ray

        try:
            return ray.get(ref)
        except Exception as error:
            found = translated(error, f"task {task.handle}")
        if task.tries > 1 or (type(found) is not ToolError and not found.retry):
            return found
        log.warning("task %d is tried again: %s", task.handle, found)
        self.retried += 1
        task.tries += 1
        try:
            self._start(task)
        except NightbeamError as gone:
            return gone
        return _AGAIN

    def _start(self, task: _Open) -> None:
        with ray_errors(f"task {task.handle}"):
            self._open[self._task.remote(*task.call)] = task


_AGAIN = object()
