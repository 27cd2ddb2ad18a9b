"""Calibrating a store of scans as a task; what is done and what is tried again is the library's affair."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from nightbeam.scans.model import PipelineConfig, PipelineResult
from tasks._policy import effect

__all__ = ["calibrate_store"]


def _calibrate(l0: Path, l1: Path, config: PipelineConfig, since: datetime, name: str) -> PipelineResult:
    from nightbeam.scans.attempt import attempt_store  # heavy: an apply imports every flow

    del name  # for the run's name
    return attempt_store(l0, l1, config, since=since)


calibrate_store = effect(_calibrate, name="calibrate-store", task_run_name="calibrate {name}")
