"""The flow that fills the cache, against a calibration service on loopback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterName

from blocks import CalibrationService, save_site_blocks
from flows.calib_prefetch import calib_prefetch
from nightbeam.calib import open_constants
from nightbeam.core.errors import AuthError
from nightbeam.core.settings import load_settings
from nightbeam.testing.calib_service import FakeCalibService
from nightbeam.testing.xtc2_files import detector, write_run
from nightbeam.xtc2 import Transition

RUN = 12
EPIX = detector("epix", "epix100", ["3926196238-0175152897-1157627926"])
TIMING = detector("timing", "ts", ["serial1234"])
PEDESTALS = np.arange(704 * 768, dtype=np.float32).reshape(1, 704, 768)


class Place:
    """An experiment of its own for each test: files, a service, a block and a cache."""

    def __init__(self, experiment: str, directory: Path, service: FakeCalibService) -> None:
        self.experiment, self.service = experiment, service
        self.xtc_dir, self.cache = directory / "xtc", directory / "cache"
        self.cache.mkdir()
        write_run(self.xtc_dir, [EPIX, TIMING], experiment=experiment, run=RUN)
        write_run(self.xtc_dir, [EPIX], experiment=experiment, run=RUN + 1, until=Transition.Configure)
        service.deploy(experiment, EPIX.unique_id, "pedestals", PEDESTALS, run=3)
        service.add_detector(TIMING.unique_id)
        CalibrationService(url=service.url, timeout_s=5.0, deadline_s=5.0).save(experiment, overwrite=True)

    def run(self) -> dict[str, Any]:
        return calib_prefetch(
            self.experiment, xtc_dir=str(self.xtc_dir), output_dir=str(self.cache), service=self.experiment
        )

    def artifacts(self) -> list[dict[str, Any]]:
        """Return type and data of what each run of the experiment left, oldest first."""
        with get_client(sync_client=True) as api:
            runs = api.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[self.experiment])))
            found = api.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id for run in runs]))
            )
        return [{"type": a.type, "data": a.data} for a in sorted(found, key=lambda a: str(a.created))]


@pytest.fixture
def place(request, tmp_path):
    experiment = f"test{abs(hash(request.node.name)) % 100_000:05d}"
    with FakeCalibService() as service:
        yield Place(experiment, tmp_path, service)


def test_the_cache_is_filled_and_the_run_shows_what_is_in_it_and_what_is_not(place):
    told = place.run()
    assert (told["action"], told["run"], told["bytes_fetched"]) == ("fetched", RUN, PEDESTALS.nbytes)
    array, document = open_constants(place.experiment, RUN, place.cache)["epix"]["pedestals"]
    assert np.array_equal(array, PEDESTALS)
    found = {a["type"]: a["data"] for a in place.artifacts()}
    assert found["progress"] == 100.0
    rows = {row["detector"]: row for row in json.loads(found["table"])}
    assert rows["epix"]["document"] == document["_id"]
    assert (rows["epix"]["valid from run"], rows["epix"]["bytes"]) == (3, PEDESTALS.nbytes)
    assert "no constants" in rows["timing"]["why there is none"]
    assert "cannot be used" in rows[f"run {RUN + 1}"]["why there is none"]


def test_where_nothing_is_new_nothing_is_fetched_and_no_bar_is_shown(place):
    place.run()
    place.service.forget()
    told = place.run()
    assert (told["action"], told["bytes_fetched"]) == ("current", 0)
    assert not any(request.is_data for request in place.service.requests)
    assert sorted(a["type"] for a in place.artifacts()) == ["progress", "table", "table"]


def test_who_is_not_let_in_fails_at_once_and_the_cache_stays(place):
    place.run()
    place.service.deploy(place.experiment, EPIX.unique_id, "pedestals", PEDESTALS + 1, run=4)
    place.service.fail(100, "401")
    with pytest.raises(AuthError):
        place.run()
    tables = [a["data"] for a in place.artifacts() if a["type"] == "table"]
    assert "failed, the cache is as it was" in tables[-1]
    array, _ = open_constants(place.experiment, RUN, place.cache)["epix"]["pedestals"]
    assert np.array_equal(array, PEDESTALS)
    place.service.recover()
    assert place.run()["action"] == "fetched"


def test_constants_come_even_if_the_bar_cannot_be_drawn(place, monkeypatch, caplog):
    def broken(*arguments, **options):
        raise RuntimeError("no artifact today")

    monkeypatch.setattr("flows.calib_prefetch.create_progress_artifact", broken)
    assert place.run()["action"] == "fetched"
    assert caplog.text.count("cannot be shown: no artifact today") == 1


def test_how_to_be_let_in_is_the_operators_and_survives_another_apply(tmp_path):
    settings = load_settings(
        config=Path(os.devnull),
        overrides={"state_dir": tmp_path, "calib.service_url": "http://127.0.0.1:1/ws"},
        environ={},
    ).resolved()
    save_site_blocks(settings)
    block = CalibrationService.load("main")
    block.auth, block.token = "token", "secret-token"
    block.save("main", overwrite=True)
    save_site_blocks(settings)
    again = CalibrationService.load("main")
    assert (again.auth, again.url) == ("token", "http://127.0.0.1:1/ws")
    assert again.token.get_secret_value() == "secret-token"
    assert "secret-token" not in repr(again)
