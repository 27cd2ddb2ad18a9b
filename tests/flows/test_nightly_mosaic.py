"""The flow of the nightly mosaics: what is due, what the run shows, and that one bad night does not stop the others."""

from __future__ import annotations

import dataclasses
import runpy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, TaskRunFilter

import flows.nightly_mosaic as module
from flows import _show
from flows._show import mosaic_markdown
from nightbeam.contimg import nights
from nightbeam.core.errors import InputError, PartialError, UsageError
from nightbeam.mosaic.model import Check
from tasks._policy import effect

MosaicWorld = runpy.run_path(str(Path(__file__).resolve().parents[1] / "mosaic_world.py"))["MosaicWorld"]
NOW = datetime(2025, 10, 4, 3, 15, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MosaicWorld:
    world = MosaicWorld(tmp_path)

    def make(site: Any, night: str, *, force: bool = False) -> nights.NightOutcome:
        return nights.make_night(site, night, force=force, tools=world.tools)

    monkeypatch.setattr(module, "_load", lambda _: world.site)
    monkeypatch.setattr(module.steps, "make_night", effect(make, name="make-night", task_run_name="{night}"))
    due = nights.nights_due
    monkeypatch.setattr(module.nights, "nights_due", lambda site: due(site, now=NOW))
    return world


def observe(world: MosaicWorld, *whole_nights: str) -> None:
    for night in whole_nights:
        for minute in (0, 5, 10):
            world.add(f"{night}T04:{minute:02d}:00")


def shown(state: Any) -> list[Any]:
    run = state.state_details.flow_run_id
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run])))
    return sorted((a for a in found if a.type not in (None, "result")), key=lambda a: (a.key or "", a.data or ""))


def test_every_night_that_is_due_is_made_in_a_task_of_its_own(world):
    observe(world, "2025-10-01", "2025-10-03")
    state = module.nightly_mosaic(return_state=True)
    assert state.result() == [
        {"night": "2025-10-01", "action": "built", "mosaics": ["night_2025_10_01"]},
        {"night": "2025-10-03", "action": "built", "mosaics": ["night_2025_10_03"]},
    ]
    run = state.state_details.flow_run_id
    with get_client(sync_client=True) as api:
        tasks = api.read_task_runs(task_run_filter=TaskRunFilter.model_validate({"flow_run_id": {"any_": [str(run)]}}))
    assert {task.name for task in tasks} == {"2025-10-01", "2025-10-03"}
    assert module.nightly_mosaic() == []


def test_the_run_shows_where_the_image_lies_its_tiles_and_its_checks(world):
    observe(world, "2025-10-03")
    world.add("2025-10-03T04:15:00", word="no beam | <script>")
    world.checks = (Check("coverage", 0.05, 0.1, False, "5 % are covered"),)
    address = world.site.state_dir / "monitor" / "address"
    address.parent.mkdir(parents=True)
    address.write_text("http://127.0.0.1:8000")
    state = module.nightly_mosaic(return_state=True)
    markdown, picture = shown(state)
    assert (markdown.key, markdown.type, picture.type) == ("nightly-mosaic", "markdown", "image")
    assert picture.data == "http://127.0.0.1:8000/api/qa/file/night_2025_10_03/image.png"
    image = world.site.mosaic_dir() / "night_2025_10_03.image.fits"
    assert f"]({image.as_uri()})" in markdown.data
    assert "| 2025-10-03T04:15:00 | **rejected** | no beam \\| &lt;script\\> |" in markdown.data
    assert "| coverage | **failed** | 5 % are covered |" in markdown.data
    assert "<script>" not in markdown.data


def test_one_bad_night_does_not_stop_the_others_and_the_run_fails_naming_it(world):
    observe(world, "2025-10-02", "2025-10-03")
    world.errors["night_2025_10_02"] = InputError("tile 2 is truncated")
    state = module.nightly_mosaic(return_state=True)
    assert state.is_failed()
    with pytest.raises(PartialError, match="1 of 2 nights could not be made: 2025-10-02: tile 2 is truncated"):
        state.result()
    assert {row.night: row.state for row in world.products.nights()} == {"2025-10-02": "failed", "2025-10-03": "done"}
    assert [a.description for a in shown(state) if a.key == "nightly-mosaic"] == [
        "Night 2025-10-02",
        "Night 2025-10-03",
    ]


def test_a_night_that_cannot_be_shown_is_made_all_the_same_and_so_are_the_others(world, monkeypatch, caplog):
    def refuse(*_what: object, **_how: object) -> None:
        raise httpx.ConnectError("the API does not answer")

    monkeypatch.setattr(_show, "create_markdown_artifact", refuse)
    observe(world, "2025-10-01", "2025-10-03")
    state = module.nightly_mosaic(return_state=True)
    assert state.is_completed()
    assert [made["action"] for made in state.result()] == ["built", "built"]
    assert "night 2025-10-01 is not shown at its run: ConnectError: the API does not answer" in caplog.text


def test_a_night_that_is_named_is_made_due_or_not(world):
    observe(world, "2025-08-01")
    state = module.nightly_mosaic(night="2025-08-01", return_state=True)
    assert [one["action"] for one in state.result()] == ["built"]
    with get_client(sync_client=True) as api:
        assert api.read_flow_run(state.state_details.flow_run_id).name == "2025-08-01"
    assert [one["action"] for one in module.nightly_mosaic(night="2025-08-01")] == ["unchanged"]
    assert [one["action"] for one in module.nightly_mosaic(night="2025-08-01", force=True)] == ["built"]
    assert len(world.products.mosaics()) == 1


def test_what_is_no_night_is_refused_before_anything_is_touched(world):
    with pytest.raises(UsageError, match="no night"):
        module.nightly_mosaic.fn(night="last")


def test_the_settings_can_switch_the_schedule_off_but_not_a_person(world):
    observe(world, "2025-10-03")
    world.site = dataclasses.replace(world.site, nightly_mosaics=False)
    assert module.nightly_mosaic() == []
    assert world.products.mosaics() == []
    assert [one["action"] for one in module.nightly_mosaic(night="2025-10-03")] == ["built"]


def test_a_mosaic_that_is_not_built_yet_can_be_shown():
    report = {
        "mosaic": {"name": "n", "status": "planned", "image": None, "noise_mjy": None},
        "tiles": [],
        "checks": [],
        "issues": ["left behind: /m/old.image.fits"],
    }
    assert mosaic_markdown(report) == "## n: planned\n\n- left behind: /m/old.image.fits"


def test_nights_wait_while_groups_do_and_are_made_after(world, monkeypatch):
    observe(world, "2025-10-03")
    monkeypatch.setattr(module.contimg, "stand_back", lambda place, what: f"{what}: 11 groups wait")
    assert module.nightly_mosaic() == []
    assert [one["action"] for one in module.nightly_mosaic(night="2025-10-03")] == ["built"], "a person asked for it"
    monkeypatch.setattr(module.contimg, "stand_back", lambda place, what: "")
    observe(world, "2025-10-02")
    assert [one["night"] for one in module.nightly_mosaic()] == ["2025-10-02"]
