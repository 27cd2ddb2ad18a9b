"""The order of the steps, and what the queue and Prefect are told when one of them fails."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import PrefectHTTPStatusError, TerminationSignal

import flows.group_imaging as module
from flows import _show
from flows._show import figure_address, monitor_address, quality_text
from nightbeam.catalog.model import QaScoreRow
from nightbeam.contimg import Claim
from nightbeam.core.errors import BusyError, InputError, RejectedError

GROUP = "2025-10-02T01:02:03"
SCORES = [
    QaScoreRow(
        "group", GROUP, "noise", 120.0, "mJy/beam", 0.0, "bad", "the noise is 120 mJy/beam (bad above 100)", 1.0
    ),
    QaScoreRow("group", GROUP, "flux_ratio", None, None, None, "unknown", "no source of a|b <list> is there", 1.0),
    QaScoreRow("group", GROUP, "flagged", 0.01, None, 0.97, "good", "1 % is flagged", 1.0),
]
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
        self.state_dir = tmp_path
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
        quality = SimpleNamespace(artifacts={"image.png": str(self.png), "metrics.json": str(self.png)})
        return {**dict.fromkeys(ORDER), "calibrate": calibrated, "image": imaged, "write_qa": quality}

    def place(self) -> Any:
        products = SimpleNamespace(scores=lambda kind, subject: SCORES if (kind, subject) == ("group", GROUP) else [])
        return SimpleNamespace(queue=self.queue, state_dir=self.state_dir, products=lambda: products)

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
    monkeypatch.setattr(module, "_load", lambda site: library.place())
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
    assert {a.type for a in shown.values()} == {"progress", "table", "markdown"}
    assert shown["group-progress"].data == 100.0
    assert {"what": "noise (mJy)", "value": "2"} in json.loads(shown["group-metrics"].data)
    assert library.png.as_uri() in shown["group-image"].data
    assert "**bad**" in shown["group-quality"].data
    assert not [a for a in shown.values() if "base64" in str(a.data)]
    with get_client(sync_client=True) as api:
        assert api.read_flow_run(state.state_details.flow_run_id).name == GROUP


@pytest.mark.parametrize("where", ["create_progress_artifact", "update_progress_artifact", "create_table_artifact"])
def test_a_group_that_cannot_be_shown_is_completed_all_the_same(library, monkeypatch, caplog, where):
    def refuse(*_what: object, **_how: object) -> None:
        raise PrefectHTTPStatusError("503", request=None, response=None)

    monkeypatch.setattr(_show if where == "create_table_artifact" else module, where, refuse)
    state = module.group_imaging(GROUP, return_state=True)
    assert state.is_completed()
    assert (library.finished, library.failed) == ([GROUP], [])
    assert f"group {GROUP} is not shown at its run: PrefectHTTPStatusError: 503" in caplog.text


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


def test_with_a_monitor_the_figures_are_shown_by_their_address_there(library, tmp_path):
    (tmp_path / "monitor").mkdir()
    (tmp_path / "monitor" / "address").write_text("http://127.0.0.1:8001\n")
    state = module.group_imaging(GROUP, return_state=True)
    shown = _artifacts(state.state_details.flow_run_id)
    address = f"http://127.0.0.1:8001/api/qa/file/{GROUP}/image.png"
    assert (shown["group-image"].type, shown["group-image"].data) == ("image", address)
    assert f"[metrics.json](http://127.0.0.1:8001/api/qa/file/{GROUP}/metrics.json)" in shown["group-quality"].data


@pytest.mark.parametrize("said", ["", "nonsense", "javascript:alert(1)", "http://a b", "http://a\nhttp://b", "http://"])
def test_what_is_no_address_is_not_taken_for_one(tmp_path, said):
    assert monitor_address(tmp_path) is None
    (tmp_path / "monitor").mkdir()
    (tmp_path / "monitor" / "address").write_text(said)
    assert monitor_address(tmp_path) is None


def test_names_cannot_lead_elsewhere():
    base = "http://127.0.0.1:8000"
    assert (
        figure_address(GROUP, "../../secret?x", "/q", base=base) == f"{base}/api/qa/file/{GROUP}/..%2F..%2Fsecret%3Fx"
    )


def test_scores_are_a_table_in_their_order_whatever_their_reasons_hold():
    lines = quality_text(GROUP, SCORES, {}, base=None).splitlines()
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert [row.split(" | ")[1] for row in rows] == ["**bad**", "unknown", "good"]
    assert rows[0].startswith("| noise | **bad** | 0.00 | the noise is 120 mJy/beam")
    assert "a\\|b &lt;list\\> is there" in rows[1]
    assert "1 bad, 1 unknown, 1 good." in lines
    assert "nothing was judged." in quality_text(GROUP, [], {}, base=None)
