"""Promises of prefect.yaml and of the small files beside it, kept without a server."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import yaml
from prefect import Flow
from prefect.automations import AutomationCore
from prefect.client.schemas.schedules import construct_schedule
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger

from deployments.apply import deployment_name, operators_word, prefect_file, read_plan, render
from nightbeam.core.errors import ConfigError
from nightbeam.core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PLAN = read_plan(prefect_file())
DEPLOYMENTS = PLAN["deployments"]
POOLS = read_plan(ROOT / "deployments" / "pools.yaml")["pools"]


def _flow(deployment: dict) -> Flow:
    module, _, function = deployment["entrypoint"].rpartition(".")
    return getattr(importlib.import_module(module), function)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=deployment_name)
class TestEveryDeployment:
    def test_entrypoint_is_an_installed_module_and_the_flow_is_called_like_its_function(self, deployment):
        found = _flow(deployment)
        assert isinstance(found, Flow)
        assert found.name == deployment_name(deployment).split("/")[0]

    def test_parameters_fit_the_signature_and_are_plain_types(self, deployment):
        found = _flow(deployment)
        schema = found.parameters.properties if hasattr(found, "parameters") else {}
        signature = inspect.signature(found.fn)
        required = {n for n, p in signature.parameters.items() if p.default is inspect.Parameter.empty}
        given = deployment["parameters"]
        assert set(given) <= set(signature.parameters)
        found.validate_parameters({**dict.fromkeys(required, "2025-10-02T01:02:03"), **given})
        assert all("$ref" not in str(kind) for kind in schema.values())

    def test_pool_exists_and_is_served_by_default(self, deployment):
        name = deployment["work_pool"]["name"]
        assert name in {pool["name"] for pool in POOLS}
        assert name in Settings().platform.pools

    def test_schedules_have_a_slug_an_anchor_and_a_zone_and_never_pile_up(self, deployment):
        for schedule in deployment.get("schedules", []):
            assert schedule["slug"]
            assert schedule["timezone"] == "UTC"
            assert ("interval" in schedule) == ("anchor_date" in schedule)
            kinds = {k: v for k, v in schedule.items() if k in ("interval", "cron", "timezone", "anchor_date")}
            assert construct_schedule(**kinds)
            assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}

    def test_triggers_are_understood_and_restarts_wait(self, deployment):
        for trigger in deployment.get("triggers", []):
            DeploymentEventTrigger.model_validate(trigger)
            assert trigger["schedule_after"] >= 10


def test_code_is_installed_and_not_pulled():
    assert PLAN["pull"] == []


def test_there_is_no_secret_block_in_what_is_stored_in_clear_text():
    assert "prefect.blocks" not in prefect_file().read_text()


def test_names_are_unique():
    names = [deployment_name(d) for d in DEPLOYMENTS]
    assert len(set(names)) == len(names)
    triggers = [t["name"] for d in DEPLOYMENTS for t in d.get("triggers", [])]
    assert len(set(triggers)) == len(triggers)


def test_every_flow_has_a_deployment():
    files = {p.stem for p in (ROOT / "flows").glob("*.py") if not p.name.startswith("_")}
    assert files == {d["entrypoint"].split(".")[1] for d in DEPLOYMENTS}


def test_automations_are_understood_and_zombies_get_ten_minutes():
    automations = yaml.safe_load((ROOT / "deployments" / "automations.yaml").read_text())["automations"]
    names = {deployment_name(d): _flow(d) for d in DEPLOYMENTS}
    flows = {name.split("/")[0] for name in names}
    for automation in automations:
        for action in automation["actions"]:
            if started := action.pop("deployment", None):
                assert set(action["parameters"]) <= set(inspect.signature(names[started].fn).parameters)
                action["deployment_id"] = "00000000-0000-0000-0000-000000000000"
        assert set(automation["trigger"].get("match_related", {}).get("prefect.resource.name", [])) <= flows
        # Without `for_each` Prefect's evaluation of what did not happen forgets what it is to happen after.
        assert not automation["trigger"].get("after") or automation["trigger"].get("for_each")
        core = AutomationCore.model_validate(automation)
        assert core.trigger.within.total_seconds() >= 600


def test_services_run_alone_and_do_not_write_to_a_pipe_that_may_break():
    services = [d for d in DEPLOYMENTS if "service" in d["tags"]]
    assert services
    pools = {pool["name"]: pool for pool in POOLS}
    for service in services:
        assert service["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        assert pools[service["work_pool"]["name"]]["variables"]["stream_output"] is False
        assert not any(s["active"] for s in service.get("schedules", [])), "a person starts it"


def test_a_switch_that_somebody_turned_is_known_from_one_that_the_file_turned():
    record = {"a/default": True, "a/default#nightly": True, "a/default#idle": False}
    assert operators_word(record, record) == {}
    assert operators_word({**record, "a/default#nightly": False}, record) == {"a/default#nightly": False}
    assert operators_word({"new/default": False}, record) == {}


def test_the_operators_word_is_in_what_is_deployed_and_the_plan_itself_is_not_changed():
    name = "sweep-zombies/default"
    decided = {name: False, f"{name}#every-three-minutes": False, "automation:restart-heartbeat-service": False}
    rendered = {deployment_name(d): d for d in render(PLAN, decided, schedules=True)["deployments"]}
    assert rendered[name]["paused"] is True
    assert [s["active"] for s in rendered[name]["schedules"]] == [False]
    assert [t["enabled"] for t in rendered["heartbeat-service/default"]["triggers"]] == [False]
    assert [s["active"] for s in rendered["ingest-subbands/default"]["schedules"]] == [True]
    assert "paused" not in next(d for d in DEPLOYMENTS if deployment_name(d) == name)
    none = render(PLAN, {}, schedules=False)["deployments"]
    assert not any(s["active"] for d in none for s in d.get("schedules", []))


def test_a_plan_that_is_not_yaml_is_one_clear_error(tmp_path):
    path = tmp_path / "prefect.yaml"
    path.write_text("- a list")
    with pytest.raises(ConfigError, match="holds a list"):
        read_plan(path)
