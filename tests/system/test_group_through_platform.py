"""Groups through the running platform: their flow processes are killed, one is spoilt, and it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from nightbeam.catalog.model import GroupRow, State
from nightbeam.contimg import STEPS, Site, run_group, scan_arrivals
from nightbeam.core.settings import Settings
from nightbeam.monitor.files import read_token, token_path
from nightbeam.platform import FINAL, platform_status
from nightbeam.simulate import SimulationSpec, read_truth, simulate_subbands

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

INGEST = "ingest-subbands/default"


@pytest.fixture(scope="module")
def subbands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three groups of 16 subbands and 12 antennas; 3C48 crosses the meridian in the second."""
    out = tmp_path_factory.mktemp("subbands")
    small = {"groups": 3, "antennas": 12, "channels": 4, "integrations": 4, "sources": 1}
    simulate_subbands(out, SimulationSpec(**small, calibrator="3C48", calibrator_group=1, noise=0.5, seed=3))
    return out


class Night:
    """The groups of the running platform, and what an operator and a murderer can do there."""

    def __init__(self, running: Any, until: Callable[..., Any], subbands: Path) -> None:
        self.api, self.settings, self.until, self.subbands = running.api, running.settings, until, subbands
        self.site = Site.from_settings(running.settings)
        self.queue = self.site.queue()
        self.groups = read_truth(subbands).groups

    def deliver(self, number: int, site: Site | None = None) -> str:
        """Let the files of a group arrive, unless they have; return the group."""
        incoming = (site or self.site).input_dir
        incoming.mkdir(parents=True, exist_ok=True)
        for name in self.groups[number].files:
            if not (incoming / name).exists():
                shutil.copy2(self.subbands / name, incoming / name)
        return self.groups[number].group_id

    def ingest(self) -> None:
        run = self.api.run_deployment(INGEST)
        self.until(lambda: self.api.flow_run(run["id"])["state_type"] in FINAL, 60.0)
        assert self.api.flow_run(run["id"])["state_type"] == "COMPLETED"

    def row(self, group_id: str) -> GroupRow:
        return self.queue.group(group_id)

    def runs(self, group_id: str) -> list[dict[str, Any]]:
        """Return the runs of a group, oldest first."""
        found = self.api.flow_runs(flow_runs={"name": {"any_": [group_id]}})
        return sorted(found, key=lambda run: run["created"])

    def kill_after(self, step: str, group_id: str) -> int:
        """Kill the flow process as soon as the queue has the receipt of the step; return its number."""
        self.until(lambda: self.queue.receipt(group_id, step) is not None, 120.0, every_s=0.005)
        row = self.row(group_id)
        assert row.owner_pid is not None, f"it is {row.state} already"
        os.kill(row.owner_pid, signal.SIGKILL)
        return row.owner_pid

    @contextmanager
    def no_hurry_to_complete(self) -> Iterator[None]:
        """Let the queue's database count to a hundred million before it says that a group is completed."""
        ten = "(" + " UNION ALL ".join(f"SELECT {k} AS n" for k in range(10)) + ")"
        count = f"SELECT count(*) FROM {', '.join(f'{ten} AS t{k}' for k in range(8))}"
        trigger = "CREATE TRIGGER no_hurry BEFORE UPDATE OF state ON ingest_queue WHEN NEW.state = 'completed'"
        self._execute(f"{trigger} BEGIN {count}; END")
        try:
            yield
        finally:
            self._execute("DROP TRIGGER no_hurry")

    def _execute(self, statement: str) -> None:
        with closing(sqlite3.connect(self.settings.state_dir / "ingest.sqlite3", timeout=60.0)) as connection:
            connection.execute(statement)
            connection.commit()

    def over(self, group_id: str, seconds: float = 120.0) -> GroupRow:
        """Wait until a group has ended and so has every run of it."""
        self.until(lambda: self.row(group_id).state in (State.COMPLETED, State.FAILED), seconds)
        self.until(lambda: all(run["state_type"] in FINAL for run in self.runs(group_id)), 30.0)
        return self.row(group_id)


@pytest.fixture(scope="module")
def night(running_platform: Any, until: Callable[..., Any], subbands: Path) -> Night:
    return Night(running_platform, until, subbands)


def elsewhere(settings: Settings, state: Path) -> Site:
    """Return a site of the same ways in another state directory, where files are ready as soon as they are there."""
    names = ("state_dir", "input_dir", "output_dir", "scratch_dir", "queue_db", "registry_db", "products_db")
    ready = settings.contimg.ingest.model_copy(update={"settle_s": 0.0})
    contimg = settings.contimg.model_copy(update={**dict.fromkeys(names), "ingest": ready})
    return Site.from_settings(settings.model_copy(update={"state_dir": state, "contimg": contimg}))


def pixels(site: Site, group_id: str) -> dict[str, np.ndarray]:
    """Return the pixels of every FITS file of the one image of a group."""
    from astropy.io import fits

    (row,) = site.products().images(group_id=group_id)
    files = {kind: path for kind, path in json.loads(row.files).items() if path.endswith(".fits")}
    return {kind: np.array(fits.getdata(path)) for kind, path in files.items()}


def test_killed_after_each_of_its_steps_a_group_becomes_one_ms_and_one_image_of_the_same_pixels(night, tmp_path):
    group_id = night.deliver(1)
    killed = []
    with night.no_hurry_to_complete():  # or the last step's kill may come too late
        for step in STEPS:
            night.ingest()
            killed.append(night.kill_after(step, group_id))
            night.until(lambda: night.runs(group_id)[-1]["state_type"] == "CRASHED", 30.0)
    night.ingest()
    row = night.over(group_id)

    assert row.state == State.COMPLETED, row.error
    assert len(set(killed)) == len(STEPS)
    assert [run["state_type"] for run in night.runs(group_id)] == ["CRASHED"] * len(STEPS) + ["COMPLETED"]
    attempts = night.queue.attempts(group_id)
    assert [a.outcome for a in attempts] == ["lost"] * len(STEPS) + ["completed"]
    assert [r.attempt for r in night.queue.receipts(group_id)] == list(range(1, len(STEPS) + 1)), "no step done twice"
    site = night.site
    assert [path.name for path in site.output_dir.glob("*.ms")] == [f"{group_id}.ms"]
    assert len(site.products().images()) == len(site.products().ms_index()) == len(site.registry().sets()) == 1
    assert list(site.scratch_dir.iterdir()) == []
    assert not [path for path in site.output_dir.rglob("*") if path.name.endswith(".part")]

    undisturbed = elsewhere(night.settings, tmp_path / "state")
    night.deliver(1, undisturbed)
    scan_arrivals(undisturbed)
    assert run_group(undisturbed, group_id).state == "completed"
    found, expected = pixels(site, group_id), pixels(undisturbed, group_id)
    assert found.keys() == expected.keys() >= {"image", "pb", "pbcor"}
    for kind, values in expected.items():
        np.testing.assert_array_equal(found[kind], values, err_msg=kind)


def test_a_group_with_a_subband_of_nothing_fails_with_its_reason_everywhere_and_the_next_goes_on(night):
    spoilt = night.deliver(0)
    with h5py.File(night.site.input_dir / night.groups[0].files[5], "r+") as file:
        file["Data/visdata"][()] = 0.0  # nothing that the ingest looks at
    night.deliver(1)
    good = night.deliver(2)
    night.ingest()
    failed = night.over(spoilt)
    assert failed.state == State.FAILED
    assert failed.current_step == "convert"
    assert night.groups[0].files[5] in (failed.error or "")
    (run,) = night.runs(spoilt)
    assert run["state_type"] == "FAILED"
    assert night.groups[0].files[5] in run["state"]["message"]
    assert not night.site.ms_path(spoilt).exists()

    completed = night.over(good, 240.0)
    assert completed.state == State.COMPLETED, completed.error
    (run,) = night.runs(good)
    assert run["state_type"] == "COMPLETED"
    (image,) = night.site.products().images(group_id=good)
    assert image.calibration_set == f"calset_{night.groups[1].group_id}"
    assert list(night.site.scratch_dir.iterdir()) == []


def _post(address: str, group_id: str, token: str | None) -> tuple[int, dict[str, Any]]:
    told = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address}/api/reprocess/{group_id}", method="POST", headers=told)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60.0) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_whoever_shows_the_monitor_its_token_has_a_group_done_again_by_one_run_of_the_deployment(night):
    night.deliver(1)
    good = night.deliver(2)
    night.ingest()
    assert night.over(good, 240.0).state == State.COMPLETED
    before, earlier = night.runs(good), night.row(good)
    address = platform_status(night.settings).monitor
    token = read_token(token_path(night.settings.state_dir, None))

    assert _post(address, good, None)[0] == 401
    assert _post(address, good, token + "x")[0] == 403
    assert len(night.runs(good)) == len(before)
    first, second = (_post(address, good, token) for _ in range(2))
    assert (first[0], first[1]["started"]) == (200, True), first
    assert second[0] in (200, 409), "409 where the run has taken the group already"
    assert second[1].get("run_id") in (None, first[1]["run_id"])

    row = night.over(good, 240.0)
    assert (row.state, row.retry_count) == (State.COMPLETED, earlier.retry_count + 1), row.error
    (run,) = [run for run in night.runs(good) if run["id"] not in {one["id"] for one in before}]
    assert (run["id"], run["state_type"]) == (first[1]["run_id"], "COMPLETED")
    assert len(night.site.products().images(group_id=good)) == 1
