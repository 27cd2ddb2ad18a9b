"""Looks at the machine and at the site, as tasks."""

from __future__ import annotations

from nightbeam.core.settings import load_settings
from nightbeam.platform import readiness
from nightbeam.platform.findings import Finding
from tasks._policy import pure

__all__ = ["look_around"]


def _look_around(*, thorough: bool = False) -> list[Finding]:
    return readiness.look_around(load_settings().resolved(), thorough=thorough)


look_around = pure(_look_around, name="look-around", task_run_name="look-around")
