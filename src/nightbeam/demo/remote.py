"""The demo's questions to the running platform."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nightbeam.platform import FINAL, PrefectApi

__all__ = ["Ended", "run_to_end"]


@dataclass(frozen=True, slots=True)
class Ended:
    """A flow run that is over, or whose time was up; ``told`` is its type of state, with a message if it has one."""

    run_id: str
    told: str

    @property
    def completed(self) -> bool:
        """Whether it ended well."""
        return self.told.startswith("COMPLETED")


def run_to_end(
    api: PrefectApi, deployment: str, *, parameters: Mapping[str, Any] | None = None, timeout_s: float = 120.0
) -> Ended:
    """Run a deployment through the platform and wait until the run is over."""
    run = api.run_deployment(deployment, parameters=parameters)
    until = time.monotonic() + timeout_s
    while (now := api.flow_run(run["id"]))["state_type"] not in FINAL and time.monotonic() < until:
        time.sleep(0.5)
    message = (now.get("state") or {}).get("message")
    return Ended(str(run["id"]), f"{now['state_type']}: {message}" if message else str(now["state_type"]))
