"""Detector constants as tasks; the work, its locks and its idempotency are the library's."""

from __future__ import annotations

from nightbeam.calib.prefetch import prefetch as _prefetch
from tasks._policy import effect

__all__ = ["prefetch"]

prefetch = effect(_prefetch, name="prefetch", task_run_name="prefetch {experiment}")
