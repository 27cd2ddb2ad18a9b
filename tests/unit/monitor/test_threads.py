from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import anyio.to_thread

from nightbeam.monitor.threads import Lanes


def test_one_works_at_a_time_and_another_begins_only_beside_one_that_waits():
    async def go() -> None:
        limiter = anyio.CapacityLimiter(40)
        lanes = Lanes(limiter, most=2)
        held, begun = [threading.Event() for _ in range(3)], [threading.Event() for _ in range(3)]

        def work(number: int) -> Callable[[], None]:
            def wait() -> None:
                begun[number].set()
                assert held[number].wait(60)

            return wait

        async def ask(number: int) -> None:
            await anyio.to_thread.run_sync(work(number), limiter=limiter)

        async def until(event: threading.Event) -> None:
            while not event.is_set():
                await anyio.sleep(0.001)

        def at_work() -> list[bool]:
            return [event.is_set() for event in begun]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, 0)
            await until(begun[0])
            tasks.start_soon(ask, 1)
            tasks.start_soon(ask, 2)
            await anyio.wait_all_tasks_blocked()
            lanes.look()
            await anyio.wait_all_tasks_blocked()
            assert at_work() == [True, False, False], "it has only just been seen for the first time"
            lanes.look()
            await until(begun[1])
            lanes.look()
            lanes.look()
            await anyio.wait_all_tasks_blocked()
            assert (at_work(), limiter.total_tokens) == ([True, True, False], 2), "no more than the most"
            for event in held:
                event.set()
        lanes.look()
        assert limiter.total_tokens == 1

    anyio.run(go)
