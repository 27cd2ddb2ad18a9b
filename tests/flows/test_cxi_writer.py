"""The flow of the CXI writer, in a world without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

import blocks
from blocks import RayCluster
from flows.cxi_writer import cxi_writer, stream_lock
from nightbeam.core.errors import BusyError, ConfigError
from nightbeam.core.locks import sole_owner
from nightbeam.core.settings import load_settings
from nightbeam.cxi import worker
from nightbeam.cxi.config import WriterConfig
from nightbeam.cxi.ledger import lock_path
from nightbeam.testing.cxi_world import World


class Site:
    """Settings, the writer's configuration, a world, and what sessions were asked for."""

    def __init__(self, directory: Path) -> None:
        self.out, self.state, self.world = directory / "out", directory / "state", World()
        self.file = directory / "writer.yaml"
        self.asked: list[WriterConfig] = []
        self.tree: dict[str, Any] = {
            "ray": {"namespace": "test"},
            "queue": {"name": "q2", "num_shards": 1},
            "peak_finding": {"min_num_peak": 1},
            "output": {"output_dir": str(self.out), "buffer_size": 4},
        }
        self.write()

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.tree))


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site(tmp_path)
    settings = {
        "state_dir": str(site.state),
        "cxi": {"config": str(site.file)},
        "stream": {"address": "127.0.0.1:6399"},
    }
    (tmp_path / "nightbeam.yaml").write_text(json.dumps(settings))
    monkeypatch.setenv("NIGHTBEAM_CONFIG", str(tmp_path / "nightbeam.yaml"))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    real = worker.CxiService

    def in_this_world(config: WriterConfig, **options: Any) -> Any:
        site.asked.append(config)
        return real(config, **{**options, "doors": site.world.doors()})

    monkeypatch.setattr(worker, "CxiService", in_this_world)
    RayCluster().save("main", overwrite=True)
    return site


def artifacts(state: Any) -> dict[str, Any]:
    """Return the last artifact of each key that a run left."""
    only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(artifact_filter=only)
    return {a.key: json.loads(a.data) for a in sorted(found, key=lambda a: str(a.created)) if a.key}


def test_a_run_until_the_end_writes_all_and_shows_what_became_of_every_event(site):
    site.world.send(0)
    site.world.send(1, peaks=(3, 0, 0, 3))
    lost = site.world.send(2)
    del site.world.objects[lost.predictions_ref.key]
    site.world.send(4)
    site.world.end(batches=5)
    state = cxi_writer(until_end=True, return_state=True)
    assert state.is_completed()
    assert len(site.world.files.events()) == 10
    found = artifacts(state)
    row = found["service-cxi-writer"][0]
    shown = ("batches", "events", "hit rate", "written", "rejected", "lost", "batches that never came", "files")
    assert [row[name] for name in shown] == [4, 16, "0.833", 10, 0, 4, 1, 3]
    assert row["waits for"] == "-"
    assert [(one["what"], one["events"], one["batches"]) for one in found["service-cxi-writer-lost"]] == [
        ("lost", 4, 1),
        ("never came", 4, 1),
    ]


def test_otherwise_the_next_producer_is_waited_for_until_somebody_stops_the_run(site, monkeypatch):
    stopped = threading.Event()
    loop = worker.CxiService

    def twice(config: WriterConfig, **options: Any) -> Any:
        session = loop(config, **options)
        run = session.loop

        def and_stop(stop: threading.Event) -> Any:
            if len(site.asked) == 3:  # a fence would
                stopped.set()
                stop.set()
            site.world.send(0, producer=f"p{len(site.asked)}")
            site.world.end(f"p{len(site.asked)}")
            return run(stop)

        session.loop = and_stop
        return session

    monkeypatch.setattr(worker, "CxiService", twice)
    state = cxi_writer(return_state=True)
    assert state.is_completed()
    assert stopped.is_set()
    assert {batch for batch, _ in site.world.files.events()} == {"p1_0", "p2_0"}


def test_what_a_run_says_goes_before_the_block_the_settings_and_the_file(site):
    RayCluster(address="head.site:6379", namespace="live", token_file="/site/word").save("site", overwrite=True)
    stop = {"until_end": True, "config": str(site.file)}
    for asked in ({}, {"cluster": "site", "output_dir": str(site.out / "b"), "file_prefix": "mine"}):
        site.world.end()
        assert cxi_writer(**stop, **asked, return_state=True).is_completed()
    first, second = site.asked
    assert (first.ray.address, first.ray.namespace, first.output.file_prefix) == (
        "127.0.0.1:6399",
        "test",
        "peaknet_cxi",
    )
    assert (second.ray.address, second.ray.namespace) == ("head.site:6379", "live")
    assert (second.output.output_dir, second.output.file_prefix) == (site.out / "b", "mine")
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == "/site/word"
    site.tree["ray"]["address"] = "its.own:1234"
    site.write()
    site.world.end()
    assert cxi_writer(**stop, return_state=True).is_completed()
    assert site.asked[-1].ray.address == "its.own:1234"


def test_a_second_run_on_one_stream_is_refused_and_so_is_one_on_the_same_output(site, monkeypatch):
    monkeypatch.setattr("flows._service.TAKEOVER_S", 0.1)
    with sole_owner(stream_lock(site.state, "test", "q2")):
        state = cxi_writer(return_state=True)
    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), BusyError)
    site.out.mkdir(exist_ok=True)
    with sole_owner(lock_path(site.out, "peaknet_cxi")):
        state = cxi_writer(return_state=True)
    error = state.result(raise_on_failure=False)
    assert isinstance(error, BusyError)
    assert "another writer" in error.what


def test_what_nobody_said_and_paths_that_depend_on_where_one_stands_are_refused(site, monkeypatch, tmp_path):
    site.tree["output"]["output_dir"] = "here"
    site.write()
    error = cxi_writer(return_state=True).result(raise_on_failure=False)
    assert isinstance(error, ConfigError)
    assert "output.output_dir" in error.what
    (tmp_path / "nightbeam.yaml").write_text(json.dumps({"state_dir": str(site.state)}))
    error = cxi_writer(return_state=True).result(raise_on_failure=False)
    assert isinstance(error, ConfigError)
    assert "cxi.config" in error.fix


def test_the_locks_of_two_streams_are_two_whatever_their_names(tmp_path):
    names = [("a", "b.c"), ("a.b", "c"), ("a/b", "c"), ("a", "b/c"), ("a" * 200, "b" * 200)]
    locks = {stream_lock(tmp_path, *name) for name in names}
    assert {lock.parent for lock in locks} == {tmp_path / "cxi"}
    assert len(locks) == len(names)
    assert max(len(lock.name) for lock in locks) < 64


def test_the_block_is_made_once_and_an_operators_words_stay(site):
    settings = load_settings().resolved()
    RayCluster.delete("main")
    assert "ray-cluster/main" in blocks.save_site_blocks(settings)
    assert RayCluster.load("main").address is None
    RayCluster(address="head.site:6379").save("main", overwrite=True)
    blocks.save_site_blocks(settings)
    assert RayCluster.load("main").address == "head.site:6379"


def test_the_flow_brings_neither_ray_nor_torch_nor_numba_when_it_is_imported():
    code = "import sys, flows.cxi_writer; print(sorted({'ray', 'torch', 'numba', 'h5py'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "[]", done.stderr
