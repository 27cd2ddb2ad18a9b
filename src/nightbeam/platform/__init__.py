"""The supervisor that starts, watches and stops the servers and workers of a site."""

from nightbeam.platform.control import (
    Started,
    Stopped,
    apply_deployments,
    platform_status,
    run_in_foreground,
    start,
    stop,
)
from nightbeam.platform.counter import count_up
from nightbeam.platform.model import Layout, PartState, PartStatus, Phase, PlatformStatus, PoolStatus
from nightbeam.platform.processes import process_lives
from nightbeam.platform.remote import ACTIVE, FINAL, PrefectApi

__all__ = [
    "ACTIVE",
    "FINAL",
    "Layout",
    "PartState",
    "PartStatus",
    "Phase",
    "PlatformStatus",
    "PoolStatus",
    "PrefectApi",
    "Started",
    "Stopped",
    "apply_deployments",
    "count_up",
    "platform_status",
    "process_lives",
    "run_in_foreground",
    "start",
    "stop",
]
