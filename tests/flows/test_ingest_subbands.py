"""Each attempt at a group becomes one run, and groups of runs that are over come back."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, Completed

import flows.ingest_subbands as module
from nightbeam.catalog.model import Dispatch


@flow(name="group-imaging")
def stand_in(group: str, site: str = "main") -> None:
    """Take the place of the real one, which no worker picks up here."""


@pytest.fixture(scope="module")
def deployment():
    with get_client(sync_client=True) as api:
        flow_id = api.create_flow(stand_in)
        return api.create_deployment(flow_id=flow_id, name="default", entrypoint="nowhere.stand_in")


def _runs(group):
    """Return the runs of a group; each test has a group of its own, because all share one server."""
    with get_client(sync_client=True) as api:
        return [run for run in api.read_flow_runs(limit=200) if run.name == group]


def test_the_same_attempt_is_one_run_however_often_it_is_dispatched_and_the_next_is_another(deployment):
    group = "2025-10-02T04:02:03"
    place, forgotten = _place()
    for key in ("a:1", "a:1", "a:1"):
        module.start_group(place, Dispatch(group, 1, key), "main")
    (run,) = _runs(group)
    assert run.parameters == {"group": group, "site": "main"}
    assert run.state.is_scheduled()
    module.start_group(place, Dispatch(group, 2, "a:2"), "main")
    assert len(_runs(group)) == 2
    assert not forgotten


def test_sites_that_share_a_server_have_runs_of_their_own(deployment):
    place, _ = _place()
    dispatch = Dispatch("2025-10-02T03:02:03", 1, "2025-10-02T03:02:03#1")
    for site in ("main", "north", "main"):
        module.start_group(place, dispatch, site)
    assert sorted(run.parameters["site"] for run in _runs(dispatch.group_id)) == ["main", "north"]


def test_a_run_that_is_over_without_having_claimed_its_group_is_forgotten_so_that_another_follows(deployment):
    place, forgotten = _place()
    dispatch = Dispatch("2025-10-02T02:02:03", 1, "b:1")
    module.start_group(place, dispatch, "main")
    (run,) = _runs(dispatch.group_id)
    with get_client(sync_client=True) as api:
        api.set_flow_run_state(run.id, Cancelled(), force=True)
    module.start_group(place, dispatch, "main")
    assert forgotten == [dispatch]


def _place():
    forgotten = []
    queue = SimpleNamespace(forget_dispatch=lambda dispatch: forgotten.append(dispatch) or True)
    return SimpleNamespace(queue=lambda: queue), forgotten


def _row(owner, host="another-machine"):
    return SimpleNamespace(owner=owner, owner_host=host)


def test_a_group_elsewhere_comes_back_when_its_run_is_over_or_unknown_and_not_before(deployment):
    with get_client(sync_client=True) as api:
        going = api.create_flow_run_from_deployment(deployment).id
        over = api.create_flow_run_from_deployment(deployment).id
        api.set_flow_run_state(over, Completed(), force=True)
    assert not module._is_over(_row(str(going)))
    assert module._is_over(_row(str(over)))
    assert module._is_over(_row(str(uuid4())))
    assert not module._is_over(_row("vm:123:1700000000")), "taken by hand, by no flow run"


def test_on_this_machine_the_process_is_the_witness_and_prefect_is_not_asked(monkeypatch):
    here = module.socket.gethostname()
    queue = SimpleNamespace(groups=lambda state: [_row(str(uuid4()), here)], recover=pytest.fail)
    assert module.recover_lost(SimpleNamespace(queue=lambda: queue)) == []


def test_a_run_elsewhere_that_ended_on_a_full_disk_costs_its_group_no_attempt(monkeypatch):
    asked = []
    queue = SimpleNamespace(groups=lambda state: [_row("run")], recover=lambda _dead, full: asked.append(full) or [])
    monkeypatch.setattr(module, "_is_over", lambda _row: True)
    monkeypatch.setattr(module.contimg, "full_disk", lambda _place: "0.00 GB free in /data")
    module.recover_lost(SimpleNamespace(queue=lambda: queue))
    assert asked == ["0.00 GB free in /data"]
