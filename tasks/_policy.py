"""The only place that knows retries, caches and time-outs of tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from nightbeam.core.errors import NightbeamError

__all__ = ["effect", "pure", "worth_retrying"]

P = ParamSpec("P")
R = TypeVar("R")


async def worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 (Prefect names them)
    """Retry what the library calls transient, and nothing else.

    A rejected or malformed group stays so however often it is asked.
    """
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, NightbeamError) and error.retry


def effect(function: Callable[P, R], *, name: str | None = None, task_run_name: str | None = None) -> Task[P, R]:
    """Make a task of something that touches the world: retried when transient, never answered from a cache.

    That the work itself is not done twice is the library's care, which keeps a receipt of it.
    """
    return Task(
        function,
        name=name,
        task_run_name=task_run_name,
        retries=3,
        retry_delay_seconds=exponential_backoff(backoff_factor=10),
        retry_jitter_factor=0.5,
        retry_condition_fn=worth_retrying,
        cache_policy=NO_CACHE,
    )


def pure(function: Callable[P, R], *, name: str | None = None, task_run_name: str | None = None) -> Task[P, R]:
    """Make a task of pure arithmetic or of a question: no retry, for the same input gives the same error."""
    return Task(function, name=name, task_run_name=task_run_name, cache_policy=NO_CACHE)
