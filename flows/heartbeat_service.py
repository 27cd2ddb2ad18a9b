"""The example of a long-lived service: it counts."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows._service import run_service
from nightbeam.core.settings import load_settings
from nightbeam.platform.counter import count_up, read_count


@flow(name="heartbeat-service")
def heartbeat_service(every_s: float = 1.0, fence_s: float = 10.0) -> State[Any]:
    """Count in ``services/heartbeat.json`` under the state directory until asked to stop."""
    out = load_settings().resolved().state_dir / "services" / "heartbeat.json"
    return run_service(
        lambda stop: count_up(out, stop, every_s=every_s),
        lock=out.with_suffix(".lock"),
        name="heartbeat",
        counters=lambda: {"count": read_count(out)},
        fence_s=fence_s,
    )
