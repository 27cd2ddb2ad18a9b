"""Parts that die, are started again, and are given up; and pure choices of the supervisor."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from nightbeam.core.errors import BusyError, InputError, StorageError, ToolError, UsageError
from nightbeam.core.settings import PlatformSettings, Settings, load_settings
from nightbeam.platform import compute, processes
from nightbeam.platform.counter import count_up, read_count
from nightbeam.platform.files import (
    read_paused,
    read_report,
    remove_older,
    write_flow_settings,
    write_paused,
    write_report,
)
from nightbeam.platform.model import Layout, PartState, PartStatus, Phase, PlatformStatus, Program, Report
from nightbeam.platform.serial import applying
from nightbeam.platform.worker import Part, Supervisor


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "state").mkdir()
    return Layout(tmp_path / "state")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _part(layout: Layout, code: str, clock: Clock | None = None) -> Part:
    program = Program("part", (sys.executable, "-c", code), dict(os.environ), layout.log_of("part"))
    return Part(program, cwd_of=layout, clock=clock or Clock())


def _mend_until_dead(part: Part) -> None:
    assert part.process is not None
    assert part.process.wait(10.0)
    assert part.mend()
    assert part.process is None


def test_a_part_that_dies_at_once_again_and_again_is_given_up_loudly(layout, caplog):
    clock = Clock()
    part = _part(layout, "import sys; print('broken'); sys.exit(3)", clock)
    part.start()
    for _ in range(compute.MOST_FAST_DEATHS - 1):
        _mend_until_dead(part)
        assert part.status().state is PartState.WAITING
        assert not part.mend(), "it waits before the next start"
        clock.now += 60.0
        assert part.mend()
    _mend_until_dead(part)
    assert part.status().state is PartState.GIVEN_UP
    assert "exit code 3" in part.status().last_exit
    assert "GIVEN UP" in caplog.text
    clock.now += 1e6
    assert not part.mend()
    assert layout.log_of("part").read_text().count("broken") == compute.MOST_FAST_DEATHS


def test_a_part_is_adopted_only_if_it_is_the_very_process_with_the_very_command(layout):
    part = _part(layout, "import time; time.sleep(60)")
    part.start()
    known = part.status()
    try:
        assert _part(layout, "import time; time.sleep(60)").adopt(known)
        stranger = PartStatus("part", PartState.RUNNING, known.pid, known.created - 10.0)
        assert not _part(layout, "import time; time.sleep(60)").adopt(stranger)
        assert part.process.alive()
        assert not _part(layout, "import time; time.sleep(61)").adopt(known), "another command: replaced"
        assert not part.process.alive()
    finally:
        part.stop(grace_s=1.0)


def test_a_process_so_young_that_it_has_no_arguments_yet_is_asked_again(layout, monkeypatch):
    part = _part(layout, "import time; time.sleep(60)")
    part.start()
    truth, asked = psutil.Process.cmdline, []

    def late(self):
        asked.append(self.pid)
        return truth(self) if len(asked) > 3 else []

    monkeypatch.setattr(psutil.Process, "cmdline", late)
    try:
        assert part.process.runs(part.program.argv)
        assert len(asked) == 4
    finally:
        part.stop(grace_s=1.0)
    assert not part.status().pid


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(layout):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
    part = _part(layout, code)
    part.start()
    while not layout.log_of("part").read_text():
        time.sleep(0.02)
    part.stop(grace_s=0.2)
    assert part.last_exit == "killed by SIGKILL"


def test_what_cannot_be_started_is_one_error_that_names_the_log(layout):
    program = Program("server", ("/no/such/program",), {}, layout.log_of("server"))
    with pytest.raises(ToolError, match="server could not be started"):
        processes.Process.start(program, cwd=layout.state_dir)


@pytest.mark.parametrize(
    ("lifetimes", "verdict"),
    [([1.0] * 6, True), ([1.0] * 5, False), ([1.0] * 5 + [600.0], False), ([600.0] + [1.0] * 6, True), ([], False)],
)
def test_only_deaths_in_a_row_count_towards_giving_up(lifetimes, verdict):
    assert compute.gave_up(lifetimes) is verdict


def test_each_wait_is_twice_the_last_up_to_half_a_minute():
    assert [compute.backoff_s(n) for n in range(8)] == [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_workers_get_the_settings_by_file_and_no_variable_that_could_say_otherwise(layout):
    environ = {
        "NIGHTBEAM_STATE_DIR": "state",
        "CONTIMG_INPUT_DIR": "incoming",
        "PREFECT_API_URL": "http://elsewhere/api",
        "PREFECT_PROFILE": "mine",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/home/somebody",
        "PATH": "/usr/bin",
        "OMP_NUM_THREADS": "8",  # it names a setting, and has its part in `threads` already
    }
    env = compute.client_environment(
        layout, "http://127.0.0.1:1/api", platform=PlatformSettings(auth_string="u:p"), threads=3, environ=environ
    )
    assert load_settings(environ={"OMP_NUM_THREADS": env["OMP_NUM_THREADS"]}).contimg.threads == 3
    assert env["NIGHTBEAM_CONFIG"] == str(layout.config)
    assert env["PREFECT_API_URL"] == "http://127.0.0.1:1/api"
    assert env["PREFECT_API_AUTH_STRING"] == "u:p"
    assert env["HOME"] == "/home/somebody"
    assert env["PATH"].split(":") == [str(Path(sys.executable).parent), "/usr/bin"]
    gone = {"NIGHTBEAM_STATE_DIR", "CONTIMG_INPUT_DIR", "PREFECT_PROFILE", "PYTHONDONTWRITEBYTECODE"}
    assert not gone & set(env)


def test_the_server_is_quiet_listens_where_told_and_keeps_its_database_in_the_state_directory(layout):
    (program,) = compute.server_programs(layout, 4207, platform=PlatformSettings(), environ={})
    assert program.argv[-4:] == ("--host", "127.0.0.1", "--port", "4207")
    assert program.env["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert program.env["PREFECT_SERVER_UI_V2_ENABLED"] == "false"
    assert program.env["DO_NOT_TRACK"] == "1"
    assert (
        program.env["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
        .partition("?")[0]
        .endswith(f"{layout.prefect_home}/prefect.db")
    )
    assert "PREFECT_SERVER_API_AUTH_STRING" not in program.env
    assert program.env["PREFECT_SERVER_UI_API_URL"] == "http://127.0.0.1:4207/api"
    proxied = PlatformSettings(page_api_url="https://prefect.example/api")
    env = compute.server_programs(layout, 4207, platform=proxied, environ={})[0].env
    assert env["PREFECT_SERVER_UI_API_URL"] == "https://prefect.example/api"


_SERVER_BASE = "postgresql+asyncpg://prefect@127.0.0.1/prefect"


def test_with_redis_the_api_and_the_loops_are_programs_of_their_own_and_neither_migrates(layout):
    told = PlatformSettings(database_url=_SERVER_BASE, redis_url="redis://127.0.0.1:6379/0", server_workers=3)
    server, services = compute.server_programs(layout, 4207, platform=told, environ={})
    assert server.argv[-3:] == ("--no-services", "--workers", "3")
    assert services.argv[-3:] == ("server", "services", "start")
    assert (server.name, services.name) == ("server", "services")
    assert server.env == services.env
    assert server.env["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] == "false"
    assert server.env["PREFECT_REDIS_MESSAGING_URL"] == "redis://127.0.0.1:6379/0"
    for module in ("broker", "cache"):
        assert server.env[f"PREFECT_SERVER_EVENTS_MESSAGING_{module.upper()}"] == "prefect_redis.messaging"


@pytest.mark.parametrize(
    ("given", "said"),
    [({"database_url": _SERVER_BASE}, "no Redis"), ({"redis_url": "redis://h"}, "SQLite"),
     ({"redis_url": "redis://h", "database_url": "sqlite+aiosqlite:///p.db"}, "SQLite")],
)  # fmt: skip
def test_several_processes_of_the_api_need_what_they_work_together_by(layout, given, said):
    with pytest.raises(UsageError, match=f"2 processes of Prefect's API on {said}"):
        compute.server_programs(layout, 4207, platform=PlatformSettings(server_workers=2, **given), environ={})


def test_pools_are_shared_where_the_server_is_anothers_unless_it_is_said(layout):
    assert not compute.shares_pools(PlatformSettings())
    assert compute.shares_pools(PlatformSettings(api_url="http://h/api"))
    assert not compute.shares_pools(PlatformSettings(api_url="http://h/api", shares_pools=False))
    assert compute.shares_pools(PlatformSettings(shares_pools=True))


def test_the_whole_group_of_a_run_is_told_to_end_once_and_what_has_its_own_group_is_not(tmp_path):
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *a: (open(sys.argv[1] + '/told', 'a').write('x'), sys.exit(0)))\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "open(sys.argv[1] + '/child', 'w').write(str(child.pid))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    run.stdout.readline()
    child = psutil.Process(int((tmp_path / "child").read_text()))
    try:
        assert processes.tell_to_end([psutil.Process(run.pid), child]) == 1
        assert run.wait(20) == 0
        assert (tmp_path / "told").read_text() == "x"
        assert child.is_running()
    finally:
        run.kill()
        run.stdout.close()
        child.kill()


def test_every_worker_has_a_limit_and_installs_nothing(layout):
    (worker,) = compute.worker_programs(layout, {"casa": 2}, env={}, host="node1")
    line = " ".join(worker.argv)
    assert "--pool casa --name casa-node1 --limit 2 --install-policy never" in line


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:4200/api"),
        ("0.0.0.0", "http://127.0.0.1:4200/api"),
        ("::1", "http://[::1]:4200/api"),
    ],
)
def test_the_address_of_the_api(host, url):
    assert compute.api_url_of(host, 4200) == url


def test_a_taken_port_is_passed_over_and_none_at_all_is_an_error():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not processes.is_free("127.0.0.1", port)
        assert processes.free_port("127.0.0.1", port) > port
        with pytest.raises(BusyError, match="no free port"):
            processes.free_port("127.0.0.1", port, tries=1)


def test_a_pid_that_was_given_again_is_not_the_process_we_mean():
    me = psutil.Process()
    assert processes.process_lives(me.pid, born_before=time.time())
    assert not processes.process_lives(me.pid, born_before=me.create_time() - 60.0)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not processes.process_lives(child.pid, born_before=time.time())


def test_a_report_comes_back_as_it_was_written_and_a_foreign_one_is_refused(layout):
    part = PartStatus("server", PartState.RUNNING, 12, 34.5, "2026-01-01T00:00:00Z", 2, "", "log")
    report = Report(Phase.RUNNING, 1, "http://127.0.0.1:4200/api", 4200, "", True, (part,))
    assert read_report(layout) is None
    write_report(layout, report)
    assert read_report(layout) == report
    layout.report.write_text("[]")
    with pytest.raises(InputError, match="no report"):
        read_report(layout)


def test_paused_pools_are_remembered(layout):
    assert read_paused(layout) == []
    write_paused(layout, ["casa", "batch"])
    assert read_paused(layout) == ["batch", "casa"]


def test_the_settings_for_flows_are_the_same_but_for_passwords_and_for_the_owner_only(layout):
    overrides = {
        "state_dir": layout.state_dir,
        "platform.auth_string": "u:secret",
        "platform.database_url": "postgresql+asyncpg://u:secret@db/prefect",
        "contimg.image.niter": 77,
    }
    settings = load_settings(config=Path(os.devnull), overrides=overrides, environ={}).resolved()
    write_flow_settings(layout.config, settings)
    read = load_settings(config=layout.config, environ={})
    assert read.contimg == settings.contimg
    assert read.platform == settings.platform.model_copy(update={"auth_string": None, "database_url": None})
    assert "secret" not in layout.config.read_text()
    assert stat.S_IMODE(layout.config.stat().st_mode) == 0o600


def test_old_results_are_removed_and_young_ones_and_missing_directories_are_not(tmp_path):
    old, young = tmp_path / "a" / "old", tmp_path / "young"
    old.parent.mkdir()
    for path in (old, young):
        path.write_bytes(b"12345")
    os.utime(old, (time.time() - 1000.0,) * 2)
    assert remove_older(tmp_path, older_than_s=500.0) == (1, 5)
    assert young.exists()
    assert not old.exists()
    assert remove_older(tmp_path / "nowhere", older_than_s=1.0) == (0, 0)


def test_a_platform_is_healthy_only_if_all_of_it_is():
    part = PartStatus("server", PartState.RUNNING, 1, 1.0)
    good = PlatformStatus(Phase.RUNNING, "url", "healthy", 1, "", (part,))
    assert good.healthy
    lost = PartStatus("worker-casa", PartState.GIVEN_UP)
    assert not PlatformStatus(Phase.RUNNING, "url", "healthy", 1, "", (part, lost)).healthy
    assert not PlatformStatus(Phase.RUNNING, "url", "unreachable", 1, "", (part,)).healthy
    assert not PlatformStatus(Phase.STOPPED, "url", "healthy", 1, "", (part,)).healthy


def test_the_counter_goes_on_from_what_it_finds_and_stops_when_asked(tmp_path):
    path, stop = tmp_path / "count.json", threading.Event()
    stop.set()
    assert count_up(path, stop) == 1
    assert count_up(path, stop) == 2
    assert read_count(path) == 2
    path.write_text("{}")
    with pytest.raises(InputError, match="no counter file"):
        read_count(path)


def test_a_pool_without_room_for_a_run_is_refused():
    from nightbeam.core.errors import ConfigError

    with pytest.raises(ConfigError, match="pools"):
        load_settings(config=Path(os.devnull), overrides={"platform.pools": {"casa": 0}}, environ={})
    assert Settings().platform.pools["casa"] == 2  # one group is converted while another is imaged


# -- pools that others serve, too ---------------------------------------------------------------------------------


def _stopped(supervisor, monkeypatch):
    """Return which way a supervisor stops, without ending anything."""
    ways = []
    monkeypatch.setattr(supervisor, "_leave_pools", lambda: ways.append("leaves the pools"))
    monkeypatch.setattr(supervisor, "_pause_pools", lambda: ways.append("pauses the pools"))
    monkeypatch.setattr(supervisor, "_drain", lambda: None)
    supervisor.stop_everything()
    return ways


@pytest.mark.parametrize(("shares", "way"), [(True, "leaves the pools"), (False, "pauses the pools")])
def test_who_stops_what_a_dead_supervisor_left_knows_from_its_report_that_pools_are_shared(
    layout, monkeypatch, shares, way
):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        born = psutil.Process(child.pid).create_time()
        part = PartStatus("worker-casa", PartState.RUNNING, child.pid, born)
        write_report(layout, Report(Phase.RUNNING, 1, "http://127.0.0.1:9/api", parts=(part,), shares_pools=shares))
        supervisor = Supervisor(Settings.model_validate({"state_dir": layout.state_dir}))
        supervisor.adopt_leftovers()
        monkeypatch.setattr(supervisor, "_sees_others", lambda: False)
        assert _stopped(supervisor, monkeypatch) == [way]
        found = read_report(layout)
        assert found is not None
        assert found.shares_pools is shares
    finally:
        child.kill()
        child.wait()


def test_workers_of_other_machines_are_seen_and_those_that_are_gone_or_ours_are_not():
    def worker(name, status="ONLINE"):
        return {"name": name, "status": status}

    assert compute.strangers({"casa": [worker("casa-here"), worker("casa-gone", "OFFLINE")], "batch": []}, "here") == []
    there = {"casa": [worker("casa-here"), worker("casa-there")], "batch": [worker("batch-there")]}
    assert compute.strangers(there, "here") == ["batch-there", "casa-there"]


@pytest.mark.parametrize(("told", "others", "found"), [(None, True, True), (None, False, False), (False, True, False)])
def test_a_server_machine_learns_from_the_workers_that_its_pools_are_shared(layout, monkeypatch, told, others, found):
    settings = Settings.model_validate({"state_dir": layout.state_dir, "platform": {"shares_pools": told}})
    workers = [{"name": "casa-another" if others else "none", "status": "ONLINE" if others else "OFFLINE"}]
    monkeypatch.setattr("nightbeam.platform.remote.PrefectApi.workers", lambda self, pool: workers)
    assert Supervisor(settings)._sees_others() is found


def test_only_one_machine_at_a_time_applies(layout):
    settings = Settings.model_validate({"state_dir": layout.state_dir}).resolved()
    with applying(settings), pytest.raises(BusyError, match="deployments"), applying(settings, wait_s=0.1):
        pytest.fail("two at once")
    with applying(settings, wait_s=0.1):
        pass


def test_a_part_that_dies_on_a_full_disk_is_started_again_and_the_supervisor_lives(layout, monkeypatch, caplog):
    def full(*_):
        raise StorageError("no space left")

    supervisor = Supervisor(Settings.model_validate({"state_dir": layout.state_dir}).resolved())
    worker = Part(Program("worker-casa", ("sleep", "60"), dict(os.environ), layout.log_of("w")), cwd_of=layout)
    worker.start()
    try:
        mended = []

        def mend():
            mended.append(worker.process.pid)
            supervisor.ask_to_stop()
            return True

        monkeypatch.setattr(worker, "mend", mend)
        monkeypatch.setattr(supervisor, "_workers", [worker])
        monkeypatch.setattr(supervisor, "_sweep", lambda: None)
        monkeypatch.setattr(supervisor, "_check_health", lambda: None)
        monkeypatch.setattr("nightbeam.platform.worker.write_report", full)
        supervisor._watch()
        assert mended
        assert "not written down: no space left" in caplog.text
    finally:
        worker.stop(grace_s=0.0)


@pytest.mark.parametrize(
    ("platform", "runs", "pools"),
    [
        ({}, True, ("casa",)),
        ({"api_url": "http://127.0.0.1:9/api"}, False, ()),
        ({"api_url": "http://127.0.0.1:9/api", "watches": True}, True, ("casa",)),
        ({"watches": False}, False, ()),
    ],
)
def test_one_machine_for_each_server_watches_runs_and_pools(layout, monkeypatch, platform, runs, pools):
    posted = {}
    looked = threading.Event()

    class Posted:
        def __init__(self, _server, **told):
            posted.update(told)

        def look(self, _parts):
            looked.set()
            return []

    monkeypatch.setattr("nightbeam.platform.worker.Watchman", Posted)
    monkeypatch.setattr("nightbeam.platform.worker.LOOK_EVERY_S", 0.01)
    told = {"state_dir": layout.state_dir, "platform": {"pools": {"casa": 1}, **platform}}
    supervisor = Supervisor(Settings.model_validate(told).resolved())
    supervisor._post_watchman({})
    assert looked.wait(20.0)
    supervisor.stop_everything()
    assert supervisor._watch_thread is not None
    supervisor._watch_thread.join(20.0)
    assert not supervisor._watch_thread.is_alive()
    assert (posted["runs"], tuple(posted["pools"])) == (runs, pools)
    assert posted["file"] == layout.state_dir / "alarms.jsonl"


@pytest.mark.parametrize("dies", [True, False])
def test_what_a_server_was_told_when_it_died_it_is_told_again_and_nothing_else_is(tmp_path, layout, monkeypatch, dies):
    told = {"state_dir": layout.state_dir}
    supervisor = Supervisor(load_settings(config=Path(os.devnull), overrides=told, environ={}).resolved())
    server = Part(Program("server", ("sleep", "60"), dict(os.environ), tmp_path / "server.log"), cwd_of=layout)
    server.start()
    applied = []

    def run_child(argv, **_):
        applied.append(argv)
        if len(applied) > 1:
            return
        if dies:
            server.process.stop(grace_s=0.0)
        raise ToolError("deployments.apply ended with exit code 70")

    monkeypatch.setattr("nightbeam.platform.worker.run_child", run_child)
    monkeypatch.setattr(supervisor, "_server", server)
    monkeypatch.setattr(supervisor, "_await_health", lambda: None)
    try:
        if dies:
            supervisor._apply({})
        else:
            with pytest.raises(ToolError):
                supervisor._apply({})
        assert len(applied) == (2 if dies else 1)
    finally:
        server.stop(grace_s=0.0)


def test_a_supervisor_that_dies_while_it_starts_leaves_word_of_the_workers_that_it_had_not_taken_over(layout):
    told = {"state_dir": layout.state_dir}
    settings = load_settings(config=Path(os.devnull), overrides=told, environ={}).resolved()
    worker = Part(Program("worker-casa", ("sleep", "60"), dict(os.environ), layout.log_of("w")), cwd_of=layout)
    worker.start()
    try:
        before = Report(Phase.RUNNING, 1, "http://127.0.0.1:1/api", parts=(worker.status(),))
        second = Supervisor(settings)
        second._inherited = before.parts
        second._report()  # as it does when the server is up, before it looks for workers
        said = read_report(layout)
        assert said is not None
        assert [(part.name, part.pid) for part in said.parts] == [("worker-casa", worker.process.pid)]
        third = Supervisor(settings)
        third.adopt_leftovers()
        assert [(part.program.name, part.process.pid) for part in third._parts()] == [
            ("worker-casa", worker.process.pid)
        ]
        second._end_inherited()
        assert not worker.process.alive(), "nobody asked for it"
        second._report()
        assert read_report(layout).parts == ()
    finally:
        worker.stop(grace_s=0.0)
