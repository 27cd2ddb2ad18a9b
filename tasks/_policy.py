"""The only place that knows retries, caches and time-outs of tasks."""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from nightbeam.core.errors import NightbeamError

__all__ = ["effect", "pure", "worth_retrying"]


async def worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry what the library calls transient, and nothing else.

    A rejected or malformed group stays so however often it is asked.
    """
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, NightbeamError) and error.retry


#: Touches the world: retried when transient, never answered from a cache. Its receipt (paths, numbers,
#: checksums) is kept as a readable file; that the work itself is not done twice is the library's care.
effect = partial(
    task,
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=10),
    retry_jitter_factor=0.5,
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)

#: Pure arithmetic: no retry, for the same input gives the same error.
pure = partial(task, cache_policy=NO_CACHE, persist_result=False)
