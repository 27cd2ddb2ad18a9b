"""The order of the steps, and what the queue and Prefect are told when one of them fails."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import TerminationSignal

import flows.group_imaging as module
from flows._show import MOST_PICTURE_BYTES, picture_uri
from nightbeam.contimg import Claim
from nightbeam.core.errors import BusyError, InputError, RejectedError

GROUP = "2025-10-02T01:02:03"
ORDER = ["convert", "calibrate", "apply_gains", "image", "record", "write_qa"]


class Library:
    """Plays the library: remembers what was called, and fails where it is told to."""

    def __init__(self, tmp_path: Path) -> None:
        self.called: list[str] = []
        self.failed: list[BaseException] = []
        self.released: list[str] = []
        self.finished: list[str] = []
        self.errors: dict[str, BaseException] = {}
        self.waiting = False
        self.claimed, self.state = True, "in_progress"
        self.png = tmp_path / "image.png"
        self.png.write_bytes(b"\x89PNG")

    def step(self, name: str) -> Any:
        def run(place: Any, group_id: str, *, owner: Any) -> Any:
            self.called.append(name)
            if name in self.errors:
                raise self.errors[name]
            return self.receipts()[name]

        return run

    def receipts(self) -> dict[str, Any]:
        calibrated = SimpleNamespace(waiting=self.waiting, set_name="calset_a", age_days=0.25, borrowed=False)
        imaged = SimpleNamespace(
            noise_jy=0.002, peak_jy=1.5, dynamic_range=750.0, beam_major_arcsec=33.0, path=str(self.png)
        )
        quality = SimpleNamespace(artifacts={"image": str(self.png)})
        return {**dict.fromkeys(ORDER), "calibrate": calibrated, "image": imaged, "write_qa": quality}

    def queue(self) -> Any:
        return SimpleNamespace(
            release=lambda group, owner, reason: self.released.append(group),
            receipts=lambda group: [SimpleNamespace(step="convert", seconds=1.25)],
        )


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library(tmp_path)
    for name in ORDER:
        monkeypatch.setattr(module.steps, name, library.step(name))
    monkeypatch.setattr(module, "_load", lambda site: SimpleNamespace(queue=library.queue))
    monkeypatch.setattr(
        module.contimg,
        "claim_group",
        lambda place, group, owner: Claim(group, owner.name, library.claimed, library.state, 1, "somebody has it"),
    )
    monkeypatch.setattr(module.contimg, "finish", lambda place, group, owner: library.finished.append(group))
    monkeypatch.setattr(module.contimg, "fail_group", lambda place, group, error, owner: library.failed.append(error))
    return library


def _artifacts(run_id: Any) -> dict[str, Any]:
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id])))
    return {a.key: a for a in found if a.type not in (None, "result")}


def test_a_group_goes_through_every_step_in_order_and_is_shown(library):
    state = module.group_imaging(GROUP, return_state=True)
    assert state.is_completed()
    assert library.called == ORDER
    assert library.finished == [GROUP]
    shown = _artifacts(state.state_details.flow_run_id)
    assert {a.type for a in shown.values()} == {"progress", "table", "markdown", "image"}
    assert shown["group-progress"].data == 100.0
    assert {"what": "noise (mJy)", "value": "2"} in json.loads(shown["group-metrics"].data)
    assert shown["group-image"].data.startswith("data:image/png;base64,")
    with get_client(sync_client=True) as api:
        assert api.read_flow_run(state.state_details.flow_run_id).name == GROUP


def test_a_group_without_gains_stops_after_calibration_and_is_no_failure(library):
    library.waiting = True
    state = module.group_imaging(GROUP, return_state=True)
    assert state.is_completed()
    assert state.result() == "waiting_for_gains"
    assert library.called == ORDER[:2]
    assert not library.finished
    assert not library.failed


@pytest.mark.parametrize("name", ORDER)
def test_a_failing_step_fails_the_run_and_the_group_with_the_same_reason(library, name):
    library.errors[name] = RejectedError("12 of 24 antennas have no solution", fix="look at the data")
    state = module.group_imaging(GROUP, return_state=True)
    assert state.is_failed()
    assert "12 of 24 antennas" in state.message
    assert [str(e) for e in library.failed] == [str(library.errors[name])]
    assert library.called == ORDER[: ORDER.index(name) + 1]
    assert not library.finished


def test_being_asked_to_stop_gives_the_group_back_and_does_not_fail_it(library):
    # Inside a real flow Prefect answers this signal by ending the process, here the one of the tests.
    with (
        pytest.raises(TerminationSignal),
        module._told_to_the_queue(module._load("main"), GROUP, module.contimg.this_process("run")),
    ):
        raise TerminationSignal(signal=15)
    assert library.released == [GROUP]
    assert not library.failed


@pytest.mark.parametrize(("held", "kind"), [("in_progress", BusyError), ("completed", InputError)])
def test_a_group_that_cannot_be_taken_fails_the_run_and_leaves_the_group_alone(library, held, kind):
    library.claimed, library.state = False, held
    state = module.group_imaging(GROUP, return_state=True)
    with pytest.raises(kind, match="somebody has it"):
        state.result()
    assert not library.called
    assert not library.failed


def test_a_name_that_is_no_group_is_refused_before_anything_is_touched(library):
    with pytest.raises(InputError, match="not a group"):
        module.group_imaging.fn("yesterday")
    assert not library.called


def test_a_picture_too_large_for_the_database_is_left_out(tmp_path, caplog):
    large = tmp_path / "image.png"
    large.write_bytes(b"\x89PNG" + bytes(MOST_PICTURE_BYTES))
    assert picture_uri({"image": str(large)}) is None
    assert "not shown" in caplog.text
    assert picture_uri({"uv": str(large)}) is None
