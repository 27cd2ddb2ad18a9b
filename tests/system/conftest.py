"""One running platform for all system tests that want one: with a password, all schedules inactive."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from nightbeam import platform
from nightbeam.core.settings import Settings, load_settings

PASSWORD = "site:a-password"
#: Groups of 12 antennas and 4 channels become images in seconds, and are judged as ever.
SMALL_GROUPS = {
    "contimg.ingest.settle_s": 0.5,
    "contimg.image.imsize": 128,
    "contimg.image.cell_arcsec": 40.0,
    "contimg.image.niter": 20,
    "contimg.image.gridder": "standard",
    "contimg.image.chanbin": 4,
}


@dataclass
class RunningPlatform:
    settings: Settings
    api: platform.PrefectApi

    @property
    def layout(self) -> platform.Layout:
        return platform.Layout(self.settings.state_dir)

    def pids(self) -> dict[str, int | None]:
        return {part.name: part.pid for part in platform.platform_status(self.settings).parts}

    def processes(self) -> list[psutil.Process]:
        """Every living process that this state directory started, however deep."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("PREFECT_HOME") == str(self.layout.prefect_home)
                told = str(self.settings.state_dir) in " ".join(process.cmdline())
                if (ours or told) and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found


def wait_for(what: Callable[[], Any], seconds: float, *, every_s: float = 0.25) -> Any:
    """Return the first true answer; fail after so many seconds."""
    until = time.monotonic() + seconds
    while not (answer := what()):
        if time.monotonic() > until:
            raise AssertionError(f"did not happen within {seconds} s")
        time.sleep(every_s)
    return answer


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    return wait_for


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def platform_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    state = tmp_path_factory.mktemp("platform") / "state"
    overrides = {
        "state_dir": state,
        "platform.auth_string": PASSWORD,
        "platform.port": unused_port(),
        **SMALL_GROUPS,
    }
    return load_settings(config=Path(os.devnull), overrides=overrides, environ={}).resolved()


@pytest.fixture(scope="session")
def running_platform(platform_settings: Settings) -> Iterator[RunningPlatform]:
    started = platform.start(platform_settings, schedules=False)
    try:
        yield RunningPlatform(platform_settings, platform.PrefectApi(started.api_url, auth_string=PASSWORD))
    finally:
        platform.stop(platform_settings)
