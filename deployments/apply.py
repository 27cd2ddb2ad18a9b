"""Bring a Prefect server to what prefect.yaml and the YAML files beside this one say.

Run as ``python -m deployments.apply`` with ``PREFECT_API_URL`` set. Everything is created or updated by
name, so that running it again changes nothing. `prefect deploy` by itself would make active again what
an operator has paused: what the server has is therefore compared with what we last put there, and
where the two differ a person has decided and the person's word stands.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from prefect.automations import AutomationCore
from prefect.cli import app as prefect
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

import blocks
from nightbeam.core.errors import ConfigError, NightbeamError, ToolError
from nightbeam.core.settings import load_settings
from nightbeam.platform.serial import applying

#: What we last put on the server: {"flow/deployment#slug": active, "flow/deployment": paused, ...}
RECORD = "nightbeam_applied"

#: The supervisor tells of these now (platform/watchman.py).
RETIRED_AUTOMATIONS = ("alarm-runs-failed", "alarm-runs-late", "alarm-pool-not-ready")
RETIRED_DEPLOYMENTS = ("alarm/default",)

Switches = dict[str, bool]


def prefect_file() -> Path:
    """Return prefect.yaml: beside this module in a wheel, one up in a checkout."""
    here = Path(str(resources.files("deployments")))
    for path in (here / "prefect.yaml", here.parent / "prefect.yaml"):
        if path.is_file():
            return path
    raise ConfigError(f"no prefect.yaml in {here} or above it", fix="install nightbeam again")


def read_plan(path: Path) -> dict[str, Any]:
    """Return the contents of prefect.yaml, or of one of the files beside this module.

    Raises
    ------
    ConfigError
        If it is not YAML with a mapping on top.
    """
    try:
        plan = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", fix="correct the file") from error
    if not isinstance(plan, dict):
        raise ConfigError(f"{path} holds a {type(plan).__name__}", fix="write a mapping")
    return plan


def apply(*, schedules: bool = True) -> list[str]:
    """Apply everything to the server of ``PREFECT_API_URL``; return a line for each thing done."""
    said: list[str] = []
    here = Path(str(resources.files("deployments")))
    plan = read_plan(prefect_file())
    # Two that start on a new server at once would make everything twice, or be refused.
    with applying(load_settings().resolved()), get_client(sync_client=True) as client:
        for pool in read_plan(here / "pools.yaml")["pools"]:
            said.append(_apply_pool(client, pool))
        for limit in read_plan(here / "limits.yaml")["limits"]:
            said.append(_apply_limit(client, limit["name"], limit["limit"]))
        said += [f"block {name}" for name in _apply_blocks()]
        record = _read_record(client)
        decided = operators_word(_switches(client), record)
        rendered = render(plan, decided, schedules=schedules)
        _deploy(rendered)
        said += [f"deployment {name}" for name in sorted(deployment_names(plan))]
        for automation in read_plan(here / "automations.yaml")["automations"]:
            said.append(_apply_automation(client, automation, decided))
        said += [f"gone: {name}" for name in _retire(client)]
        now = _switches(client)
        _write_record(client, {key: record.get(key, value) if key in decided else value for key, value in now.items()})
        said += [f"left as an operator set it: {key} -> {'on' if on else 'off'}" for key, on in sorted(decided.items())]
        said += [f"on the server but not in prefect.yaml: {name}" for name in _strangers(client, plan)]
    return said


def operators_word(now: Switches, record: Switches) -> Switches:
    """Return the switches that somebody has turned since we last set them.

    Parameters
    ----------
    now
        What the server has.
    record
        What we last put there; a switch that is in neither or only in one was not turned by anybody.
    """
    return {key: on for key, on in now.items() if key in record and record[key] != on}


def render(plan: dict[str, Any], decided: Switches, *, schedules: bool) -> dict[str, Any]:
    """Return the plan with the operator's switches in it, and with no active schedule if so wished."""
    plan = copy.deepcopy(plan)
    for deployment in plan["deployments"]:
        name = deployment_name(deployment)
        if name in decided:
            deployment["paused"] = not decided[name]
        for schedule in deployment.get("schedules", []):
            key = f"{name}#{schedule['slug']}"
            schedule["active"] = decided.get(key, schedule.get("active", True)) if schedules else False
        for trigger in deployment.get("triggers", []):
            trigger["enabled"] = decided.get(f"automation:{trigger['name']}", trigger.get("enabled", True))
    return plan


def deployment_name(deployment: dict[str, Any]) -> str:
    """Return ``flow/deployment``: our flows are called like their functions, with dashes."""
    flow = deployment["entrypoint"].rpartition(".")[2].rpartition(":")[2].replace("_", "-")
    return f"{flow}/{deployment['name']}"


def deployment_names(plan: dict[str, Any]) -> list[str]:
    """Return the name of every deployment of the plan."""
    return [deployment_name(deployment) for deployment in plan["deployments"]]


def _apply_pool(client: SyncPrefectClient, pool: dict[str, Any]) -> str:
    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    for name, value in pool.get("variables", {}).items():
        if name not in properties:
            raise ConfigError(f"pool {pool['name']} has no variable {name!r}", fix=f"use one of {sorted(properties)}")
        properties[name]["default"] = value
    try:
        known = client.read_work_pool(pool["name"])
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(
                name=pool["name"], type=pool["type"], description=pool["description"], base_job_template=template
            )
        )
        return f"pool {pool['name']} created"
    if known.type != pool["type"]:  # somebody runs it in containers or elsewhere, with a template of its own
        return f"left as an operator set it: pool {pool['name']} is of type {known.type}"
    # is_paused is left out: an operator's stop stands.
    client.update_work_pool(pool["name"], WorkPoolUpdate(description=pool["description"], base_job_template=template))
    return f"pool {pool['name']}"


def _apply_limit(client: SyncPrefectClient, name: str, limit: int) -> str:
    try:
        client.read_global_concurrency_limit_by_name(name)
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=limit))
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=limit))
    return f"limit {name} = {limit}"


def _apply_blocks() -> list[str]:
    for kind in blocks.KINDS:
        kind.register_type_and_schema()
    settings = load_settings().resolved()
    return blocks.save_site_blocks(settings)


def _apply_automation(client: SyncPrefectClient, wanted: dict[str, Any], decided: Switches) -> str:
    name = wanted["name"]
    enabled = decided.get(f"automation:{name}", wanted.get("enabled", True))
    core = AutomationCore.model_validate({**wanted, "enabled": enabled})
    found = client.read_automations_by_name(name)
    if not found:
        client.create_automation(core)
        return f"automation {name} created"
    client.update_automation(found[0].id, core)
    return f"automation {name}"


def _retire(client: SyncPrefectClient) -> list[str]:
    """Take from the server what an older nightbeam put there, and this one does by itself."""
    gone = []
    for name in RETIRED_AUTOMATIONS:
        for found in client.read_automations_by_name(name):
            client.delete_automation(found.id)
            gone.append(f"automation {name}")
    for name in RETIRED_DEPLOYMENTS:
        with contextlib.suppress(ObjectNotFound):
            client.delete_deployment(client.read_deployment_by_name(name).id)
            gone.append(f"deployment {name}")
    return gone


def _deploy(plan: dict[str, Any]) -> None:
    """Run `prefect deploy` in this process, which has Prefect in memory already: that takes half the time."""
    with tempfile.TemporaryDirectory(prefix="nightbeam-apply-") as stand:
        path = Path(stand) / "prefect.yaml"
        path.write_text(yaml.safe_dump(plan, sort_keys=False))
        said = io.StringIO()
        with contextlib.chdir(stand), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = _prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(path))
    if code != 0:
        raise ToolError(
            f"prefect deploy ended with exit code {code}:\n{said.getvalue()[-3000:]}", fix="correct prefect.yaml"
        )


def _prefect(*arguments: str) -> object:
    """Run a command of Prefect's in this process; return its exit code."""
    ours, sys.argv = sys.argv, ["prefect", *arguments]
    try:
        prefect()
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = ours
    return 0


def _switches(client: SyncPrefectClient) -> Switches:
    """Return every switch of the server that an operator can turn and a deploy would turn back."""
    flows: dict[Any, str] = {}
    found: Switches = {}
    for deployment in client.read_deployments(limit=200):
        if deployment.flow_id not in flows:
            flows[deployment.flow_id] = client.read_flow(deployment.flow_id).name
        name = f"{flows[deployment.flow_id]}/{deployment.name}"
        found[name] = not deployment.paused
        for schedule in deployment.schedules:
            if schedule.slug:
                found[f"{name}#{schedule.slug}"] = bool(schedule.active)
    for automation in client.read_automations():
        found[f"automation:{automation.name}"] = automation.enabled
    return found


def _strangers(client: SyncPrefectClient, plan: dict[str, Any]) -> list[str]:
    on_server = {key for key in _switches(client) if "/" in key and "#" not in key}
    return sorted(on_server - set(deployment_names(plan)))


def _read_record(client: SyncPrefectClient) -> Switches:
    variable = client.read_variable_by_name(RECORD)
    value = variable.value if variable is not None else {}
    return {str(key): bool(on) for key, on in value.items()} if isinstance(value, dict) else {}


def _write_record(client: SyncPrefectClient, record: Switches) -> None:
    value: dict[str, Any] = dict(sorted(record.items()))
    if client.read_variable_by_name(RECORD) is None:
        client.create_variable(VariableCreate(name=RECORD, value=value))
    else:
        client.update_variable(VariableUpdate(name=RECORD, value=value))


def main() -> None:
    """Apply, and say what was done; exit code of the error otherwise."""
    parser = argparse.ArgumentParser(prog="python -m deployments.apply", description=apply.__doc__)
    parser.add_argument("--no-schedules", action="store_true", help="leave every schedule inactive")
    options = parser.parse_args()
    # What Prefect says is quoted where it fails.
    os.environ.update(NO_COLOR="1", COLUMNS="200")
    try:
        lines = apply(schedules=not options.no_schedules)
    except NightbeamError as error:
        sys.stderr.write(f"deployments.apply: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
