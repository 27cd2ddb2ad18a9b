"""The flows that tidy a site up and image what was missed: what they ask of the library, and what they show."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

import flows.backfill_imaging as backfilling
import flows.housekeeping as tidying
from nightbeam.contimg import BackfillOutcome, Site, Unimaged
from nightbeam.core.errors import InputError, PartialError, ToolError

tidy = SimpleNamespace(**runpy.run_path(str(Path(__file__).resolve().parents[1] / "tidy_site.py")))
A, B, C, D = (tidy.group_name(n) for n in range(4))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = tidy.new_site(tmp_path / "state")
    monkeypatch.setattr(tidying, "_load", lambda name: site)
    monkeypatch.setattr(backfilling, "_load", lambda name: site)
    return site


def shown(state: Any) -> dict[str, Any]:
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id])))
    return {a.key: json.loads(a.data) for a in found if a.type == "table"}


@pytest.mark.parametrize("dry_run", [True, False])
def test_housekeeping_counts_and_shows_what_it_did(site, dry_run):
    old = tidy.put_scratch(site.scratch_dir / "stream_old", 1_000_000_000.0)
    state = tidying.housekeeping(dry_run=dry_run, return_state=True)
    assert state.result()["remove"] == 1
    assert old.exists() == dry_run
    (line,) = shown(state)["housekeeping"]
    assert (line["what"], line["kind"], line["which"]) == ("remove", "scratch", str(old))


def test_housekeeping_tidies_the_site_that_its_block_names(tmp_path):
    from blocks import ContimgSite
    from nightbeam.core.settings import Settings

    settings = Settings(state_dir=tmp_path / "state").resolved()
    ContimgSite.of(settings).save("tidied", overwrite=True)
    old = tidy.put_scratch(tmp_path / "state" / "scratch" / "stream_old", 1_000_000_000.0)
    assert tidying.housekeeping(site="tidied")["remove"] == 1
    assert not old.exists()
    assert backfilling.backfill_imaging(site="tidied")["imaged"] == 0


def test_housekeeping_of_a_tidy_site_shows_nothing(site):
    state = tidying.housekeeping(return_state=True)
    assert set(state.result().values()) == {0}
    assert shown(state) == {}


def test_housekeeping_that_must_not_go_on_fails_with_the_reason(site, monkeypatch):
    def newer(place, *, dry_run):
        raise InputError("has schema 9999")

    monkeypatch.setattr(tidying.steps, "tidy_up", newer)
    state = tidying.housekeeping(return_state=True)
    assert state.is_failed()
    assert "9999" in state.message


def _missed(monkeypatch: pytest.MonkeyPatch, *found: Unimaged) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def find(place: Site, directory: Path | None, *, night: Any) -> list[Unimaged]:
        asked.update(directory=directory, night=night)
        return list(found)

    monkeypatch.setattr(backfilling.steps, "find_unimaged", find)
    return asked


def test_a_backfill_images_all_it_can_and_names_what_failed(site, monkeypatch):
    found = [Unimaged(f"/ms/{g}.ms", g, "to do", "it has no image") for g in (A, B, C)]
    asked = _missed(monkeypatch, *found, Unimaged(f"/ms/{D}.ms", D, "left alone", "it still changes"))
    owners = set()

    def one(place: Site, wanted: Unimaged, *, owner: Any) -> BackfillOutcome:
        owners.add(owner.name)
        if wanted.group_id == B:
            raise ToolError("tclean fell over")
        return BackfillOutcome(wanted.group_id, "imaged", wanted.ms, image="/images/x.fits")

    monkeypatch.setattr("nightbeam.contimg.backfill_one", one)
    state = backfilling.backfill_imaging(night="2025-10-02", return_state=True)
    with pytest.raises(PartialError, match=f"1 of 3 Measurement Sets failed: {B}: tclean fell over"):
        state.result()
    assert str(asked["night"]) == "2025-10-02"
    assert [row["became"] for row in shown(state)["backfill"]] == ["imaged", "failed", "imaged", "left alone"]
    with get_client(sync_client=True) as api:
        run = api.read_flow_run(state.state_details.flow_run_id)
        names = {task.name for task in api.read_task_runs() if task.flow_run_id == run.id}
    assert run.name == "2025-10-02"
    assert {f"backfill {g}" for g in (A, B, C)} <= names
    assert owners == {str(run.id)}


def test_a_backfill_with_nothing_to_do_is_no_failure(site, monkeypatch):
    asked = _missed(monkeypatch)
    counts = backfilling.backfill_imaging(directory="/somewhere")
    assert counts == {"imaged": 0, "waiting_for_gains": 0, "left alone": 0, "failed": 0}
    assert asked["directory"] == Path("/somewhere")


def test_new_data_come_before_what_was_missed(site, monkeypatch):
    for group in (A, B, C):
        tidy.put_group(site, group, "pending", seen_at=tidy.NOW)
    _missed(monkeypatch, Unimaged(f"/ms/{D}.ms", D, "to do", "it has no image"))
    assert backfilling.backfill_imaging(most_behind=2)["left alone"] == 1


def test_a_backfill_stands_back_while_the_site_is_behind_and_says_why(site, monkeypatch):
    for n in range(11):
        tidy.put_group(site, tidy.group_name(n), "pending", seen_at=tidy.NOW)
    _missed(monkeypatch, Unimaged("/ms/x.ms", "2025-10-01T00:00:00", "to do", "it has no image"))
    state = backfilling.backfill_imaging(return_state=True)
    assert state.result()["left alone"] == 1
    (line,) = shown(state)["backfill"]
    assert line["why"] == "11 groups wait (55 min of sky), and new data come first"


def test_a_night_that_is_none_is_refused(site):
    with pytest.raises(InputError, match="is not a night"):
        backfilling.backfill_imaging(night="yesterday")
