"""The monitor as a part of the platform: where it listens, what it is told, and that it can be left out."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam.core.settings import Settings, load_settings
from nightbeam.platform import compute
from nightbeam.platform.files import read_report, write_report
from nightbeam.platform.model import Layout, PartState, Phase, Program, Report
from nightbeam.platform.worker import Supervisor


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "state").mkdir()
    return Layout(tmp_path / "state")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> Iterator[Any]:
    """Start the part of some settings with a program that only sleeps."""
    supervisors: list[Supervisor] = []

    def sleeping(layout: Layout, host: str, port: int, **_: Any) -> Program:
        argv = (sys.executable, "-c", f"import time; time.sleep(60)  # {host} {port}")
        return Program("monitor", argv, dict(os.environ), layout.log_of("monitor"))

    def start(before: Report | None = None, **told: Any) -> Supervisor:
        settings = load_settings(
            config=Path(os.devnull), overrides={"state_dir": layout.state_dir, **told}, environ={}
        ).resolved()
        supervisor = Supervisor(settings)
        supervisor._start_monitor({}, before)
        supervisors.append(supervisor)
        return supervisor

    monkeypatch.setattr(compute, "monitor_program", sleeping)
    yield start
    for one in supervisors:
        if one._monitor is not None:
            one._monitor.stop(grace_s=5.0)


def _report(supervisor: Supervisor, layout: Layout) -> Report:
    supervisor._report()
    found = read_report(layout)
    assert found is not None
    return found


def test_it_is_told_the_settings_by_file_and_the_servers_password_alone(layout: Layout):
    env = {"NIGHTBEAM_CONFIG": str(layout.config)}
    found = compute.monitor_program(layout, "127.0.0.1", 8005, env=env, auth_string="u:secret")
    assert found.argv[1:] == ("-m", "nightbeam", "monitor", "serve", "--host", "127.0.0.1", "--port", "8005")
    assert found.env == {**env, "NIGHTBEAM_PLATFORM__AUTH_STRING": "u:secret"}
    assert load_settings(
        config=Path(os.devnull), environ=found.env | {"NIGHTBEAM_CONFIG": os.devnull}
    ).platform.auth_string
    assert compute.monitor_program(layout, "h", 1, env=env, auth_string=None).env == env


def test_a_site_can_do_without(started: Any, layout: Layout):
    report = _report(started(**{"monitor.enabled": False}), layout)
    assert (report.monitor, report.parts) == ("", ())


def test_it_keeps_its_port_and_its_process_when_the_supervisor_is_another_one(started: Any, layout: Layout):
    first = _report(started(), layout)
    again = started(first)
    second = _report(again, layout)
    assert (second.monitor, second.parts[0].pid) == (first.monitor, first.parts[0].pid)
    assert second.parts[0].restarts == 0
    again._monitor.stop(grace_s=5.0)


def test_it_gets_another_port_where_somebody_has_taken_its_own(started: Any, layout: Layout):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = Report(Phase.STOPPED, 1, "", monitor=f"http://127.0.0.1:{port}")
        found = _report(started(before), layout)
    assert found.monitor
    assert found.monitor != before.monitor


def test_a_port_that_was_named_is_the_one(started: Any, layout: Layout):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = Report(Phase.STOPPED, 1, "", monitor="http://127.0.0.1:8000")
    found = _report(started(before, **{"monitor.port": port, "monitor.host": "0.0.0.0"}), layout)
    assert found.monitor == f"http://127.0.0.1:{port}", "by loopback, for browsers of this machine"


def test_the_report_of_an_older_supervisor_has_no_monitor_and_can_be_read(layout: Layout):
    layout.own.mkdir()
    write_report(layout, Report(Phase.RUNNING, 1, "http://127.0.0.1:4200/api"))
    text = layout.report.read_text()
    layout.report.write_text(text.replace('"monitor"', '"ray"'))
    found = read_report(layout)
    assert found is not None
    assert found.monitor == ""


def test_settings_have_it_on_by_default():
    assert Settings().monitor.enabled


@pytest.mark.parametrize("host", ["192.0.2.77", "no.such.host.invalid", "x" * 80])
def test_a_platform_whose_page_cannot_listen_goes_on_without_it_and_says_so(layout: Layout, host: str, caplog: Any):
    told = {"state_dir": layout.state_dir, "monitor.host": host}
    supervisor = Supervisor(load_settings(config=Path(os.devnull), overrides=told, environ={}).resolved())
    supervisor._try_to_start_monitor({}, None)
    report = _report(supervisor, layout)
    (part,) = report.parts
    assert (report.monitor, part.name, part.state) == ("", "monitor", PartState.GIVEN_UP)
    assert "is no address of this machine" in part.last_exit
    assert "ports" not in part.last_exit
    assert "no page" in caplog.text
