"""A night's mosaic through the running platform; its flow process is killed before it can say that it is built."""

from __future__ import annotations

import os
import runpy
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nightbeam.contimg import Site
from nightbeam.platform import FINAL

observe_sky = runpy.run_path(str(Path(__file__).resolve().parents[1] / "mosaic_world.py"))["observe_sky"]

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
DEPLOYMENT = "nightly-mosaic/default"
NIGHT = "2025-07-14"


class Nightly:
    """The nightly mosaic of the running platform."""

    def __init__(self, running: Any, until: Callable[..., Any]) -> None:
        self.api, self.until = running.api, until
        self.site = Site.from_settings(running.settings)
        self.database = running.settings.state_dir / "products.sqlite3"

    def start(self) -> str:
        return str(self.api.run_deployment(DEPLOYMENT, parameters={"night": NIGHT})["id"])

    def end(self, run: str) -> str:
        self.until(lambda: self.api.flow_run(run)["state_type"] in FINAL, 120.0)
        return str(self.api.flow_run(run)["state_type"])

    def rows(self) -> list[tuple[str, str]]:
        return [(row.name, row.status) for row in self.site.products().mosaics(plan="night_2025_07_14")]

    @contextmanager
    def no_hurry_to_be_built(self) -> Iterator[None]:
        """Let the database count to a hundred million before it says that a mosaic is built."""
        ten = "(" + " UNION ALL ".join(f"SELECT {k} AS n" for k in range(10)) + ")"
        count = f"SELECT count(*) FROM {', '.join(f'{ten} AS t{k}' for k in range(8))}"
        trigger = "CREATE TRIGGER no_hurry BEFORE UPDATE OF status ON mosaics WHEN NEW.status = 'built'"
        self._execute(f"{trigger} BEGIN {count}; END")
        try:
            yield
        finally:
            self._execute("DROP TRIGGER no_hurry")

    def _execute(self, statement: str) -> None:
        with closing(sqlite3.connect(self.database, timeout=60.0)) as connection:
            connection.execute(statement)
            connection.commit()


def test_a_night_whose_process_is_killed_is_made_by_the_next_run_in_one_row(running_platform, until):
    nightly = Nightly(running_platform, until)
    observe_sky(nightly.site, [f"{NIGHT}T04:{minute:02d}:00" for minute in (0, 5, 10)])
    whole = nightly.site.mosaic_dir() / "night_2025_07_14.json"
    with nightly.no_hurry_to_be_built():
        run = nightly.start()
        until(whole.exists, 120.0, every_s=0.005)
        assert nightly.rows() == [("night_2025_07_14", "planned")]
        os.kill(int(nightly.api.flow_run(run)["infrastructure_pid"]), signal.SIGKILL)
        assert nightly.end(run) == "CRASHED"
    assert nightly.end(nightly.start()) == "COMPLETED"
    assert nightly.rows() == [("night_2025_07_14", "built")]
    (built,) = nightly.site.products().mosaics(plan="night_2025_07_14")
    assert nightly.end(nightly.start()) == "COMPLETED"
    assert nightly.site.products().mosaics(plan="night_2025_07_14") == [built]
    assert nightly.site.products().night(NIGHT).state == "done"


def test_a_night_without_tiles_is_no_failure(running_platform, until):
    nightly = Nightly(running_platform, until)
    run = str(nightly.api.run_deployment(DEPLOYMENT, parameters={"night": "2025-07-15"})["id"])
    assert nightly.end(run) == "COMPLETED"
    assert nightly.site.products().night("2025-07-15").state == "empty"
    assert nightly.api.flow_run(run)["name"] == "2025-07-15"
