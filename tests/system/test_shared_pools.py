"""Two supervisors on one server: two apply at once, and one is stopped in mid-run while the other's pools go on."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam import platform
from nightbeam.core.settings import Settings, load_settings
from nightbeam.platform.alarms import read_alarms
from nightbeam.platform.files import read_report
from nightbeam.platform.watchman import Watchman

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

SERVICE = "heartbeat-service/default"


def settings_of(place: Path, **told: Any) -> Settings:
    overrides = {"state_dir": place, "monitor.enabled": False, "contimg.state_dir": place.parent / "shared", **told}
    return load_settings(config=Path(os.devnull), overrides=overrides, environ={}).resolved()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Settings, platform.PrefectApi]]:
    """One with the server and the pool batch, another that serves the pool of the example service."""
    top = tmp_path_factory.mktemp("shared-pools")
    first = settings_of(top / "first", **{"platform.pools": {"batch": 1}})
    started = platform.start(first, schedules=False)
    second = settings_of(
        top / "second", **{"platform.pools": {"example-service": 1}, "platform.api_url": started.api_url}
    )
    try:
        platform.start(second, schedules=False)
        yield first, second, platform.PrefectApi(started.api_url)
    finally:
        platform.stop(second)
        platform.stop(first)


def test_machines_that_apply_at_the_same_moment_make_everything_once(machines):
    first, second, api = machines
    for automation in api.automations():
        api._call("DELETE", f"/automations/{automation['id']}")
    trigger = {"type": "event", "posture": "Reactive", "expect": ["nothing"], "threshold": 1, "within": 0}
    older = {"name": "alarm-runs-late", "enabled": True, "trigger": trigger, "actions": [{"type": "do-nothing"}]}
    api._call("POST", "/automations/", older)
    failed: list[Exception] = []

    def apply(settings: Settings) -> None:
        try:
            platform.apply_deployments(settings, api.url, schedules=False)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=apply, args=(settings,)) for settings in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    names = Counter(automation["name"] for automation in api.automations())
    assert "crash-zombie-flows" in names
    assert "alarm-runs-late" not in names, "of an older nightbeam"
    assert set(names.values()) == {1}


def test_a_machine_stopped_in_mid_run_crashes_nothing_and_its_service_is_to_begin_elsewhere(
    machines, until: Callable[..., Any]
):
    first, second, api = machines
    out = second.state_dir / "services" / "heartbeat.json"
    run = api.run_deployment(SERVICE, parameters={"every_s": 0.1, "fence_s": 1.0})["id"]
    until(lambda: out.exists() and json.loads(out.read_text())["count"] > 3, 60.0)

    # Its supervisor dies, and who stops what is left knows no more of it than where it is.
    report = read_report(platform.Layout(second.state_dir))
    assert report is not None
    os.kill(report.pid, signal.SIGKILL)
    until(lambda: platform.platform_status(second).phase.value == "stopped", 20.0)
    bare = load_settings(config=Path(os.devnull), overrides={"state_dir": second.state_dir}, environ={}).resolved()
    assert platform.stop(bare).was_running

    states = api._call("GET", f"/flow_run_states/?flow_run_id={run}")
    assert api.flow_run(run)["state_type"] == "CANCELLED", states
    assert not {state["type"] for state in states} & {"CRASHED", "FAILED"}, "which would alarm, and restart it here"
    assert [pool["name"] for pool in api.pools() if pool["is_paused"]] == []
    waiting = api.flow_runs(types=("SCHEDULED",), pools=("example-service",))
    assert [(one["name"], one["parameters"]["every_s"]) for one in waiting] == [(api.flow_run(run)["name"], 0.1)]
    assert platform.platform_status(first).healthy
    assert read_alarms(first.state_dir, first.contimg.state_dir) == []


def test_the_watchman_sees_in_a_real_server_what_has_failed(machines, until: Callable[..., Any], tmp_path: Path):
    _, _, api = machines
    now = [0.0]
    watchman = Watchman(
        api, file=tmp_path / "alarms.jsonl", memory=tmp_path / "watched.json", machine="here", pools=("batch",),
        runs=True, clock=lambda: 1.0e9 + now[0], elapsed=lambda: now[0],
    )  # fmt: skip
    assert watchman.look([]) == []
    run = api.run_deployment("flight-check/default", parameters={"programs": [], "look": False})
    until(lambda: api.flow_run(run["id"])["state_type"] == "COMPLETED", 60.0)
    assert watchman.look([]) == []
    api.set_state(run["id"], "FAILED", "Failed", "not ready: a disk is full")
    (alarm,) = watchman.look([])
    assert (alarm.what, alarm.detail) == ("a run failed", "not ready: a disk is full")
    assert alarm.subject == f"flight-check {run['name']}"
    ended = api.flow_run(run["id"])["state"]["timestamp"]
    assert alarm.at[:19] == ended[:19]
    assert watchman.look([]) == []
