"""The flows that tell a person whether the night can come: what they end as, and what they leave to be read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from prefect.blocks.abstract import NotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

import flows.canary_group as canary
import flows.clean_results as cleaning
import flows.flight_check as checking
from deployments.notify import notify
from flows.clean_results import remove_runs
from nightbeam.contimg.canary import CanaryReport
from nightbeam.core.errors import ConfigError, UnavailableError
from nightbeam.platform.findings import Finding, Health

GOOD, ODD = Finding("clock", Health.OK, "synchronised"), Finding("queue", Health.WARN, "12 groups wait", "more workers")
BAD = Finding("mount /data", Health.FAIL, "nothing is mounted there", "mount /data")


def shown(state: Any) -> list[dict[str, str]]:
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id])))
    return [row for artifact in found if artifact.type == "table" for row in json.loads(artifact.data)]


@pytest.mark.parametrize(
    ("findings", "name", "said"),
    [
        ([GOOD], "Completed", ""),
        ([GOOD, ODD], "Warnings", "queue: 12 groups wait"),
        ([GOOD, ODD, BAD], "Failed", "not ready: mount /data: nothing is mounted there"),
    ],
)
def test_a_run_ends_as_its_worst_finding_and_shows_all_of_them(monkeypatch, findings, name, said):
    monkeypatch.setattr(checking, "look_around", lambda *, thorough: findings)
    state = checking.flight_check(programs=(), return_state=True)
    assert state.name == name
    assert said in (state.message or "")
    assert shown(state)[0]["check"] == findings[-1].check, "the worst comes first"
    assert len(shown(state)) == len(findings)


def test_the_findings_are_those_of_the_doctor(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("NIGHTBEAM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NIGHTBEAM_ELOG__AUTH", "none")
    state = checking.flight_check(programs=(), return_state=True)
    assert {"python", "queue", "calibration", "canary", "free memory"} <= {row["check"] for row in shown(state)}


@pytest.mark.parametrize("right", [True, False])
def test_a_canary_that_is_not_right_fails_its_run(monkeypatch, right: bool):
    report = CanaryReport(right, "0.997 of its flux" if right else "its source is not in the image", 0.997)
    monkeypatch.setattr(canary, "_load", lambda site: SimpleNamespace())
    monkeypatch.setattr(canary.steps, "fly_canary", lambda place, owner: report)
    monkeypatch.setattr(canary.contimg, "stand_back", lambda place, what: "")
    state = canary.canary_group(return_state=True)
    assert state.is_completed() == right
    assert {"what": "found", "value": report.found} in shown(state)
    assert right or "is not in the image" in state.message


def test_no_canary_flies_while_groups_wait(monkeypatch):
    monkeypatch.setattr(canary, "_load", lambda site: SimpleNamespace())
    monkeypatch.setattr(canary.steps, "fly_canary", None)
    monkeypatch.setattr(canary.contimg, "stand_back", lambda place, what: f"{what}: 11 groups wait")
    assert canary.canary_group() == {"put off": "the canary: 11 groups wait"}


class Told(NotificationBlock):
    """Remembers what it was asked to tell."""

    said: ClassVar[list[str]] = []

    async def notify(self, body: str, subject: str | None = None) -> None:
        self.said.append(f"{subject}: {body}")


def test_people_are_told_by_the_block_that_is_named():
    Told().save("operators", overwrite=True)
    notify("told/operators", "runs are late")
    assert Told.said == ["nightbeam: runs are late"]
    with pytest.raises(ConfigError, match="no block told/nobody"):
        notify("told/nobody", "runs are late")


def test_runs_that_somebody_else_removes_end_no_cleaning_and_results_go_though_runs_cannot(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(checking, "look_around", lambda *, thorough: [GOOD])
    states = [checking.flight_check(programs=(), return_state=True) for _ in range(2)]
    real, removed = SyncPrefectClient.delete_flow_run, []

    def gone(self: SyncPrefectClient, run: Any) -> None:
        real(self, run)
        removed.append(run)
        if len(removed) == 1:
            raise ObjectNotFound(http_exc=Exception("somebody was faster"))

    monkeypatch.setattr(SyncPrefectClient, "delete_flow_run", gone)
    assert remove_runs(-1.0, at_most=100_000) >= 2
    assert {state.state_details.flow_run_id for state in states} <= set(removed)

    def away(*_: object, **__: object) -> int:
        assert (tmp_path / "old").exists(), "runs go first"
        raise UnavailableError("no server")

    (tmp_path / "old").write_text("a result")
    os.utime(tmp_path / "old", (0, 0))
    monkeypatch.setattr(cleaning, "remove_runs", away)
    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path}), pytest.raises(UnavailableError):
        cleaning.clean_results.fn()
    assert not (tmp_path / "old").exists()


def test_what_is_shown_at_a_run_goes_with_the_run(monkeypatch):
    monkeypatch.setattr(checking, "look_around", lambda *, thorough: [GOOD])
    state = checking.flight_check(programs=(), return_state=True)
    assert shown(state)
    assert remove_runs(-1.0, at_most=100_000) >= 1
    assert shown(state) == []
    wanted = FlowRunFilter.model_validate({"id": {"any_": [str(state.state_details.flow_run_id)]}})
    with get_client(sync_client=True) as api:
        assert api.read_flow_runs(flow_run_filter=wanted) == []
