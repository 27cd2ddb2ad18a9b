"""The platform for real: a Prefect server, its workers and the supervisor over them."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import requests
from click.testing import CliRunner

from deployments.apply import deployment_names, prefect_file, read_plan
from nightbeam import platform
from nightbeam.cli import nightbeam
from nightbeam.core.errors import AuthError

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

Until = Callable[..., Any]


def test_everything_in_prefect_yaml_is_on_the_server_once(running_platform):
    api = running_platform.api
    flows = Counter(d["name"] for d in api.deployments())
    assert flows["default"] == len(deployment_names(read_plan(prefect_file())))
    assert {p["name"] for p in api.pools()} == set(running_platform.settings.platform.pools)
    for name in deployment_names(read_plan(prefect_file())):
        assert api.deployment(name)["work_queue_name"] == "default"
    automations = Counter(a["name"] for a in api.automations())
    services = ("cxi-writer", "heartbeat-service", "scan-calibrator", "watch-subbands")
    assert automations == {"crash-zombie-flows": 1, **{f"restart-{name}": 1 for name in services}}
    (within,) = (a["trigger"]["within"] for a in api.automations() if a["name"] == "crash-zombie-flows")
    assert within >= 600


def test_a_second_up_changes_nothing_and_says_so(running_platform):
    before = running_platform.pids()
    assert set(before) == {
        "server",
        "monitor",
        "ray",
        *(f"worker-{pool}" for pool in running_platform.settings.platform.pools),
    }
    again = platform.start(running_platform.settings)
    assert again.already_running
    assert again.api_url == running_platform.api.url
    assert running_platform.pids() == before


def test_without_the_password_the_api_refuses_and_health_stays_open(running_platform):
    stranger = platform.PrefectApi(running_platform.api.url)
    assert stranger.healthy()
    with pytest.raises(AuthError, match="refuses us \\(401\\)"):
        stranger.version()
    assert running_platform.api.version()


def test_the_status_command_tells_all_and_its_exit_code_is_the_verdict(running_platform, monkeypatch):
    state = str(running_platform.settings.state_dir)
    monkeypatch.setenv("NIGHTBEAM_PLATFORM__AUTH_STRING", str(running_platform.settings.platform.auth_string))
    good = CliRunner().invoke(nightbeam, ["status", "--state-dir", state, "--json"])
    assert good.exit_code == 0, good.output
    monkeypatch.delenv("NIGHTBEAM_PLATFORM__AUTH_STRING")
    refused = CliRunner().invoke(nightbeam, ["status", "--state-dir", state])
    assert refused.exit_code == 2
    assert "refuses us" in refused.output


def test_the_server_listens_on_loopback_only(running_platform):
    server = psutil.Process(running_platform.pids()["server"])
    addresses = {c.laddr.ip for c in server.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}


def test_passwords_are_not_in_the_file_that_flows_read_and_it_is_the_owners_alone(running_platform):
    config = running_platform.layout.config
    assert "a-password" not in config.read_text()
    assert config.stat().st_mode & 0o077 == 0


def test_schedules_make_runs_and_what_an_operator_paused_stays_paused(running_platform, until):
    """The only test that notices a SQLAlchemy with which Prefect's scheduler silently does nothing."""
    api, settings = running_platform.api, running_platform.settings
    try:
        platform.apply_deployments(settings, api.url)
        until(lambda: api.count_runs(types=("SCHEDULED",)) >= 3, 15.0)
        sweep = api.deployment("sweep-zombies/default")
        _set_schedule(api, sweep, active=False)
        _set_schedule(api, api.deployment("heartbeat-service/default"), active=True)
        api._call("PATCH", f"/deployments/{api.deployment('clean-results/default')['id']}", {"paused": True})
        api.pause_pool("casa", True)
        said = platform.apply_deployments(settings, api.url)
        assert [s["active"] for s in api.deployment("sweep-zombies/default")["schedules"]] == [False]
        assert [s["active"] for s in api.deployment("heartbeat-service/default")["schedules"]] == [True]
        assert api.deployment("clean-results/default")["paused"] is True
        assert {p["name"] for p in api.pools() if p["is_paused"]} == {"casa"}
        assert "left as an operator set it: sweep-zombies/default#every-three-minutes -> off" in said
    finally:
        api.pause_pool("casa", False)
        _set_schedule(api, api.deployment("heartbeat-service/default"), active=False)
        api._call("PATCH", f"/deployments/{api.deployment('clean-results/default')['id']}", {"paused": False})
        platform.apply_deployments(settings, api.url, schedules=False)
    assert not any(s["active"] for d in api.deployments() for s in d["schedules"])


def _set_schedule(api: platform.PrefectApi, deployment: dict[str, Any], *, active: bool) -> None:
    (schedule,) = deployment["schedules"]
    api._call("PATCH", f"/deployments/{deployment['id']}/schedules/{schedule['id']}", {"active": active})


def test_a_shell_task_answers_and_its_table_is_at_the_run(running_platform, until):
    run = running_platform.api.run_deployment("flight-check/default", parameters={"programs": ["bash", "no-such"]})
    until(lambda: running_platform.api.flow_run(run["id"])["state_type"] == "COMPLETED", 30.0)
    (table,) = running_platform.api.artifacts(run["id"])
    assert table["type"] == "table"
    assert "GNU bash" in table["data"]
    assert "not installed" in table["data"]


def test_a_killed_worker_and_a_killed_server_are_replaced(running_platform, until):
    before = running_platform.pids()
    for name in ("worker-casa", "server"):
        os.kill(before[name], signal.SIGKILL)
    until(lambda: not _same(before, running_platform.pids(), "worker-casa", "server"), 20.0)
    until(running_platform.api.healthy, 60.0)
    until(lambda: platform.platform_status(running_platform.settings).healthy, 30.0)
    after = running_platform.pids()
    assert after["worker-batch"] == before["worker-batch"]
    assert running_platform.api.deployment("flight-check/default")


def _same(before: dict[str, int | None], after: dict[str, int | None], *names: str) -> bool:
    return any(after.get(name) in (None, before[name]) for name in names)


def test_a_new_supervisor_goes_on_with_what_a_killed_one_left(running_platform, until):
    before = running_platform.pids()
    dead = platform.platform_status(running_platform.settings).supervisor_pid
    os.kill(dead, signal.SIGKILL)
    until(lambda: platform.platform_status(running_platform.settings).phase == "stopped", 10.0)
    left = platform.platform_status(running_platform.settings)
    assert "the supervisor died" in left.problem
    assert len(left.parts) == len(before)
    again = platform.start(running_platform.settings, schedules=False)
    assert not again.already_running
    assert running_platform.pids() == before
    assert platform.platform_status(running_platform.settings).supervisor_pid != dead


def test_the_web_page_is_the_one_that_asks_nobody_else(running_platform):
    base = running_platform.api.url.removesuffix("/api")
    settings = requests.get(f"{base}/ui-settings", timeout=10).json()
    assert settings["api_url"] == running_platform.api.url
    page = requests.get(base, timeout=10).text
    assert "amplitude" not in page
    for address in _addresses(page):
        assert not address.startswith(("http:", "https:", "//")), address
    secure = {"Authorization": requests.auth._basic_auth_str(*_password(running_platform))}
    told = requests.get(f"{running_platform.api.url}/admin/settings", headers=secure, timeout=10).json()
    assert told["server"]["analytics_enabled"] is False
    assert told["server"]["ui"]["v2_enabled"] is False
    assert told["server"]["ui"]["show_promotional_content"] is False


def _password(running_platform: Any) -> tuple[str, str]:
    user, _, password = running_platform.settings.platform.auth_string.partition(":")
    return user, password


def _addresses(page: str) -> list[str]:
    import re

    return re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)


def test_down_leaves_no_process_and_the_next_up_resumes_only_the_pools_that_down_paused(running_platform, until):
    api, settings = running_platform.api, running_platform.settings
    api.pause_pool("example-service", True)
    assert len(running_platform.processes()) >= 4
    stopped = platform.stop(settings)
    assert stopped.was_running
    until(lambda: not running_platform.processes(), 5.0)
    assert platform.platform_status(settings).phase == "stopped"
    assert not platform.stop(settings).was_running
    platform.start(settings, schedules=False)
    assert {p["name"] for p in api.pools() if p["is_paused"]} == {"example-service"}
    api.pause_pool("example-service", False)
