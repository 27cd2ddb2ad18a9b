"""The watcher as a service: a group is one run, and a server that is away is outlived."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

import flows.watch_subbands as module
from nightbeam.contimg import Site, Tools
from nightbeam.contimg.watch import ArrivalWatch
from nightbeam.core.errors import UnavailableError
from nightbeam.core.settings import Settings

G = "2025-10-02T05:02:03"


@flow(name="group-imaging")
def stand_in(group: str, site: str = "main") -> None:
    """Take the place of the real one, which no worker picks up here."""


def read(_path: Path) -> Any:
    start = 2460950.5 + ((5 * 3600 + 123.25) / 86400)
    return SimpleNamespace(subband=None, start_jd=start, mid_jd=start + 0.0018, dec_rad=0.5)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    settings = {"state_dir": tmp_path / "state", "contimg": {"ingest": {"settle_s": 0, "watch_every_s": 0.01}}}
    site = Site.from_settings(Settings.model_validate(settings))
    site.input_dir.mkdir(parents=True)
    monkeypatch.setattr(module, "_load", lambda name: site)
    return site


def test_a_complete_group_becomes_one_run_and_the_counters_say_so(site: Site, monkeypatch: pytest.MonkeyPatch):
    with get_client(sync_client=True) as api:
        api.create_deployment(flow_id=api.create_flow(stand_in), name="default", entrypoint="nowhere.stand_in")

    class Ending(ArrivalWatch):
        def loop(self, stop: threading.Event) -> None:
            """End, as a fence would have it, when the group was dispatched."""
            for sb in range(16):
                (site.input_dir / f"2025-10-02T05:02:01_sb{sb:02d}.hdf5").write_text("x")
            while not self.counters.dispatched:
                self.look()
            stop.set()
            super().loop(stop)

    monkeypatch.setattr(module, "ArrivalWatch", partial(Ending, tools=Tools(read_header=read)))
    state = module.watch_subbands(return_state=True)
    assert state.is_completed()
    with get_client(sync_client=True) as api:
        assert [run.name for run in api.read_flow_runs(limit=200)].count(G) == 1
        run_id = state.state_details.flow_run_id
        found = api.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id])))
    ((row,),) = [json.loads(one.data) for one in found]
    assert (row["new files"], row["groups complete"], row["groups dispatched"]) == (16, 1, 1)


def test_a_server_that_does_not_answer_is_an_error_that_the_watcher_outlives(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    def away(*_: object) -> None:
        raise ConnectionResetError("by peer")

    monkeypatch.setattr(module, "start_group", away)
    monkeypatch.setattr(module.contimg, "take_dispatchable", lambda *_: ["one"])
    with pytest.raises(UnavailableError, match="does not start runs: by peer"):
        module._dispatch(site, "main", 4)
