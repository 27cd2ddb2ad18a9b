"""What the tests of the cache share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A directory for cache files."""
    directory = tmp_path / "cache"
    directory.mkdir()
    return directory


@pytest.fixture
def patience() -> dict[str, Any]:
    """Options of a client with short limits, whose clock is put forward by sleeping: waiting costs no time."""
    slept = [0.0]

    def sleep(seconds: float) -> None:
        slept[0] += seconds

    return {"sleep": sleep, "clock": lambda: time.monotonic() + slept[0], "timeout_s": 0.3, "deadline_s": 6.0}
