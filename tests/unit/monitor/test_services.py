"""How each system does, from what it leaves behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import Logbook
from nightbeam.catalog.kept import KeptDatabase
from nightbeam.catalog.model import GroupRow
from nightbeam.catalog.pages import ElogPages
from nightbeam.core.errors import InputError, MissingError, UnavailableError
from nightbeam.core.locks import sole_owner
from nightbeam.core.settings import Settings
from nightbeam.elog.model import Resource
from nightbeam.monitor import services
from nightbeam.monitor.model import QueueBacklog, QueueCounts, Standing
from nightbeam.monitor.watch import PlatformWatch
from nightbeam.platform.files import write_report
from nightbeam.platform.model import Layout, PartState, PartStatus, Phase, PoolStatus, Report

NOW = datetime(2025, 10, 3, 12, 0, tzinfo=UTC)


def ago(seconds: float) -> str:
    return datetime.fromtimestamp(NOW.timestamp() - seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- continuum imaging --------------------------------------------------------------------------------------------


def row(**values: Any) -> GroupRow:
    return GroupRow(**(dict.fromkeys(GroupRow.__dataclass_fields__) | {"group_id": "g", "state": "failed"} | values))


def contimg(settings: Settings, **told: Any) -> Any:
    at = NOW.timestamp()
    usual: dict[str, Any] = {
        "counts": QueueCounts(total=5, completed=5), "backlog": QueueBacklog(),
        "last_update": at - 60, "last_received": at - 300, "working": [],
        "collecting": [], "failed": [], "failures": len(told.get("failed", [])), "finished": 5,
    }  # fmt: skip
    runs = told.pop("platform_runs", True)
    asked = {name: (lambda value=value: value) for name, value in (usual | told).items()}
    return services.contimg_system(settings, NOW, **asked, platform_runs=runs)


@pytest.mark.parametrize(
    ("told", "standing", "reason"),
    [
        ({}, Standing.OK, "all groups done, 5 in 24 h"),
        ({"counts": QueueCounts(total=3, in_progress=1, pending=2)}, Standing.OK, "1 in work, 2 waiting, 0 arriving"),
        (
            {
                "counts": QueueCounts(total=11, pending=11),
                "backlog": QueueBacklog(level="behind", waiting=11, minutes=55.0),
            },
            Standing.WAITING,
            "11 groups (55 min of sky) behind: optional work waits until that is made up for",
        ),
        (
            {
                "counts": QueueCounts(total=9, pending=9),
                "backlog": QueueBacklog(level="quick", waiting=9, minutes=45.0),
            },
            Standing.WAITING,
            "9 groups (45 min of sky) behind: images are quick until that is made up for",
        ),
        ({"counts": QueueCounts(total=10, pending=10)}, Standing.OK, "0 in work, 10 waiting"),
        ({"counts": QueueCounts()}, Standing.WAITING, "no group has come yet"),
        ({"failed": [row(error="disk full\nand more")]}, Standing.TROUBLE, "1 group failed in 24 h, last g: disk full"),
        (
            {"failed": [row(error="disk full")], "failures": 240},
            Standing.TROUBLE,
            "240 groups failed in 24 h, last g: disk full",
        ),
        ({}, Standing.OK, "the last began to arrive 5 min ago"),
        (
            {"counts": QueueCounts(total=3, pending=3), "last_update": NOW.timestamp() - 1200},
            Standing.WAITING,
            "3 groups wait and nobody works on one; the last change was 20 min ago",
        ),
        ({"counts": QueueCounts(total=3, pending=3), "last_update": NOW.timestamp() - 600}, Standing.OK, "3 waiting"),
        (
            {"counts": QueueCounts(total=3, pending=2, in_progress=1), "last_update": NOW.timestamp() - 1200},
            Standing.OK,
            "1 in work",
        ),
        ({"working": [row(heartbeat_at=NOW.timestamp() - 1200)]}, Standing.TROUBLE, "g has been silent for 20 min"),
        ({"working": [row(heartbeat_at=NOW.timestamp() - 800)]}, Standing.OK, "all groups done"),
        (
            {"collecting": [row(received_at=NOW.timestamp() - 900)]},
            Standing.WAITING,
            "g is still incomplete after 15 min",
        ),
        ({"last_update": NOW.timestamp() + 3600}, Standing.TROUBLE, "60 min in the future"),
        ({"platform_runs": False}, Standing.OFF, "the platform is stopped; nothing waits"),
        (
            {"platform_runs": False, "counts": QueueCounts(total=2, pending=2)},
            Standing.OFF,
            "the platform is stopped, 2 groups wait",
        ),
        (
            {"platform_runs": False, "counts": QueueCounts(total=4, pending=1, in_progress=3)},
            Standing.OFF,
            "the platform is stopped, 1 group waits and 3 groups were in work",
        ),
        (
            {"platform_runs": False, "counts": QueueCounts(total=4, in_progress=1)},
            Standing.OFF,
            "the platform is stopped, 1 group was in work",
        ),
    ],
)
def test_imaging_says_the_worst_first(settings: Settings, told: dict[str, Any], standing: Standing, reason: str):
    found = contimg(settings, **told)
    assert (found.standing, reason in found.reason) == (standing, True), found.reason


def test_imaging_without_a_queue_is_off_and_with_a_damaged_one_in_trouble(settings: Settings):
    def raising(error: Exception) -> Callable[[], Any]:
        def ask() -> Any:
            raise error

        return ask

    usual = dict.fromkeys(
        ("backlog", "last_update", "last_received", "working", "collecting", "failed", "failures", "finished"),
        lambda: [],
    )
    for error, standing in ((MissingError("none"), Standing.OFF), (InputError("damaged"), Standing.TROUBLE)):
        found = services.contimg_system(settings, NOW, counts=raising(error), **usual, platform_runs=True)  # type: ignore[arg-type]
        assert found.standing is standing


# -- scans --------------------------------------------------------------------------------------------------------


def beat(settings: Settings, **said: Any) -> Path:
    out = settings.scans.output_dir
    assert out is not None
    out.mkdir(parents=True, exist_ok=True)
    usual = {"at": ago(5), "pid": 7, "done": 12, "failed": 0, "backlog": 0, "problems": [], "seconds": {"fit": 0.5}}
    (out / "scan-calibrator.json").write_text(json.dumps(usual | said))
    return out


@pytest.mark.parametrize(
    ("said", "standing", "reason"),
    [
        ({}, Standing.OK, "12 scans calibrated"),
        ({"backlog": 4}, Standing.WAITING, "4 scans wait for their turn"),
        ({"backlog": 1}, Standing.WAITING, "1 scan waits for its turn"),
        ({"at": None}, Standing.UNKNOWN, "it runs and has not said how it does"),
        ({"failed": 2, "last_error": "no loads"}, Standing.TROUBLE, "2 scans cannot be calibrated: no loads"),
        ({"problems": ["the disk is full"]}, Standing.TROUBLE, "the disk is full"),
        ({"at": ago(900)}, Standing.TROUBLE, "silent for 15 min"),
        ({"at": ago(-3600)}, Standing.TROUBLE, "in the future"),
    ],
)
def test_a_scan_calibrator_that_runs(settings: Settings, said: dict[str, Any], standing: Standing, reason: str):
    out = beat(settings, **said)
    with sole_owner(out / "scan-calibrator.lock"):
        found = services.scans_state(settings, NOW)
    assert (found.running, found.system.standing) == (True, standing)
    assert reason in found.system.reason


@pytest.mark.parametrize("written", [None, "", "{", "[]"])
def test_one_that_runs_and_whose_heartbeat_cannot_be_read_is_not_well(settings: Settings, written: str | None):
    out = beat(settings)
    if written is None:
        (out / "scan-calibrator.json").unlink()
    else:
        (out / "scan-calibrator.json").write_text(written)
    with sole_owner(out / "scan-calibrator.lock"):
        found = services.scans_state(settings, NOW).system
    assert (found.standing, found.reason) == (Standing.UNKNOWN, "it runs and has not said how it does")


def test_one_that_does_not_run_is_off_unless_something_waits(settings: Settings):
    assert services.scans_state(settings, NOW).system.reason == "nobody has started it"
    beat(settings)
    assert services.scans_state(settings, NOW).system.standing is Standing.OFF
    beat(settings, backlog=3)
    found = services.scans_state(settings, NOW).system
    assert (found.standing, found.reason) == (Standing.TROUBLE, "not running, and 3 scans wait")


def test_stores_are_listed_with_their_scans_and_failures(settings: Settings):
    out = beat(settings)
    for number in (1, 2, 3):
        (out / "night.zarr" / "scans" / f"scan_{number:06d}").mkdir(parents=True)
    failures = [{"scan": 4, "error": "NoCalibrationError", "stage": "resolve", "message": "no loads\nmore"}]
    (out / "night.failures.json").write_text(json.dumps({"schema": 1, "failures": failures}))
    (store,) = services.scans_state(settings, NOW).stores
    assert (store.name, store.scans, store.failures) == ("night", 3, 1)
    (failure,) = services.scans_state(settings, NOW).failures
    assert (failure.scan, failure.message) == (4, "no loads")


@pytest.mark.parametrize(
    "written", ["", "{", "[]", "null", '{"at": 5, "problems": 7, "seconds": [], "water": {}}', "[" * 9999]
)
def test_a_damaged_heartbeat_harms_nothing(settings: Settings, written: str):
    out = beat(settings)
    (out / "scan-calibrator.json").write_text(written)
    assert services.scans_state(settings, NOW).system.standing in (Standing.UNKNOWN, Standing.OFF)


# -- CXI ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cxi(settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "cxi").mkdir()
    return settings.model_copy(update={"cxi": settings.cxi.model_copy(update={"output_dir": tmp_path / "cxi"})})


def writer(cxi: Settings, **said: Any) -> Path:
    out = cxi.cxi.output_dir
    assert out is not None
    counters = {"events_received": 10, "total_events_written": 6, "events_lost": {"x": 1}, "events_per_s": 2.5}
    page = {"taken": [[0, 9, None, None]], "settled": [[0, 4, None, None]], "abandoned": [], "ended": False}
    usual = {"state": "running", "updated": ago(1), "problems": [], "counters": counters, "producers": {"p0": page}}
    (out / "run_status.json").write_text(json.dumps(usual | said))
    (out / "run_0000.cxi").write_bytes(b"x")
    return out


def test_runs_have_their_hit_rate_the_one_heard_of_last_first(cxi: Settings):
    tallies = [
        {"experiment": "mfx", "run": n, "events": 100, "hits": n, "peaks": 20, "since": ago(900), "until": ago(9 * n)}
        for n in (2, 1)
    ]
    writer(cxi, runs=[*tallies, "no tally"])
    found = services.cxi_state(cxi, NOW).runs
    assert [(run.run, run.hit_rate, run.writer) for run in found] == [(1, 0.01, "run"), (2, 0.02, "run")]


@pytest.mark.parametrize(
    ("said", "standing", "reason"),
    [
        ({}, Standing.OK, "6 events written, 2.5 events/s"),
        ({"counters": {}}, Standing.WAITING, "nothing has come yet"),
        ({"problems": ["no file can be written"]}, Standing.TROUBLE, "no file can be written"),
        ({"updated": ago(90)}, Standing.TROUBLE, "silent for 90 s"),
        ({"updated": None}, Standing.TROUBLE, "run runs and does not say when it last did"),
    ],
)
def test_a_writer_that_runs(cxi: Settings, said: dict[str, Any], standing: Standing, reason: str):
    out = writer(cxi, **said)
    with sole_owner(out / ".run.lock"):
        found = services.cxi_state(cxi, NOW)
    assert (found.system.standing, reason in found.system.reason) == (standing, True), found.system.reason


def test_one_that_ended_and_one_that_was_killed(cxi: Settings):
    writer(cxi, state="ended", counters={"total_events_written": 6})
    assert services.cxi_state(cxi, NOW).system.standing is Standing.OFF
    writer(cxi, state="ended")
    assert "lost 1 event" in services.cxi_state(cxi, NOW).system.reason
    writer(cxi)
    found = services.cxi_state(cxi, NOW)
    assert (found.system.standing, "is gone" in found.system.reason) == (Standing.TROUBLE, True)
    (one,) = found.writers
    assert [(p.name, p.batches, p.settled) for p in one.producers] == [("p0", 10, 5)]
    assert [file.name for file in found.newest] == ["run_0000.cxi"]


@pytest.mark.parametrize(
    "written", ["{", '{"counters": 5}', '{"counters": {"events_lost": 7}, "producers": [], "queue": 3}']
)
def test_a_damaged_status_harms_nothing(cxi: Settings, written: str):
    out = writer(cxi)
    (out / "run_status.json").write_text(written)
    services.cxi_state(cxi, NOW)


def test_without_a_writer_it_says_what_to_set(settings: Settings):
    assert "cxi.config" in services.cxi_state(settings, NOW).system.reason
    missing = settings.model_copy(update={"cxi": settings.cxi.model_copy(update={"config": Path("/no/such.yaml")})})
    assert services.cxi_state(missing, NOW).system.standing is Standing.TROUBLE


# -- constants ----------------------------------------------------------------------------------------------------


def test_constants_that_are_awaited_missing_or_damaged(settings: Settings, tmp_path: Path):
    def state(**told: Any) -> Any:
        calib = settings.calib.model_copy(update={"output_dir": tmp_path / "c", **told})
        return services.constants_state(settings.model_copy(update={"calib": calib}), NOW).system

    assert state().standing is Standing.OFF
    assert state(experiment="mfxl1033223").standing is Standing.TROUBLE, "there is no directory"
    (tmp_path / "c").mkdir(mode=0o700)
    assert state(experiment="mfxl1033223").standing is Standing.WAITING
    (tmp_path / "c" / "calibconst_mfxl1033223_r0042.pkl").write_bytes(b"half of one")
    found = state(experiment="mfxl1033223")
    assert (found.standing, "cannot be used" in found.reason) == (Standing.TROUBLE, True)


# -- the logbook --------------------------------------------------------------------------------------------------


def test_a_mirror_says_what_it_holds_when_it_was_updated_and_what_failed(settings: Settings, tmp_path: Path):
    url = f"sqlite:///{tmp_path}/elog.db"
    pages = ElogPages(KeptDatabase(url, "elog"))
    assert services.elog_state(settings, pages, NOW).system.standing is Standing.OFF
    book = Logbook(url)
    pages = ElogPages(KeptDatabase(url, "elog"))
    assert services.elog_state(settings, pages, NOW).system.standing is Standing.WAITING
    early = datetime(2025, 10, 3, 11, 0, tzinfo=UTC)
    book.put_experiment({"_id": "x1", "name": "x1", "instrument": "MFX"}, now=early)
    with book.database.write() as connection:
        connection.exec_driver_sql("UPDATE experiments SET start_time = '2025-10-01T12:30:00-07:00', end_time = 'soon'")
    book.set_metadata(last_update="2025-10-03T11:00:00+00:00")
    found = services.elog_state(settings, pages, NOW)
    assert (found.system.standing, found.experiments, found.lists_failed) == (Standing.OK, 1, 0)
    assert [one.experiment_id for one in found.newest] == ["x1"]
    (one,) = found.newest
    assert (one.start_time, one.end_time, one.updated_at) == ("2025-10-01T19:30:00Z", "soon", "2025-10-03T11:00:00Z")
    book.failed("x1", Resource.RUNS, "the service said 500", now=early)
    found = services.elog_state(settings, pages, NOW)
    assert (found.system.standing, "the service said 500" in found.system.reason) == (Standing.TROUBLE, True)
    assert [(one.resource, one.failures) for one in found.failures] == [("runs", 1)]
    later = datetime(2025, 10, 6, tzinfo=UTC)
    assert services.elog_state(settings, pages, later).system.standing is Standing.TROUBLE


# -- the platform -------------------------------------------------------------------------------------------------


def report(settings: Settings, **told: Any) -> Layout:
    layout = Layout(settings.state_dir)
    layout.own.mkdir(parents=True, exist_ok=True)
    usual: dict[str, Any] = {"phase": Phase.RUNNING, "pid": 1, "api_url": "http://127.0.0.1:4200/api"}
    write_report(layout, Report(**(usual | told)))
    return layout


POOL = PoolStatus("casa", False, 1, 2, 0, 0, 0)
LOST = PartStatus("worker-casa", PartState.GIVEN_UP, last_exit="exit code 3")


@pytest.mark.parametrize(
    ("told", "answer", "standing", "reason"),
    [
        ({}, ("healthy", (POOL,)), Standing.OK, "2 runs"),
        ({"parts": (LOST,)}, ("healthy", ()), Standing.TROUBLE, "worker-casa was given up (exit code 3)"),
        ({}, ("unreachable", ()), Standing.TROUBLE, "Prefect's server is unreachable"),
        ({"problem": "no space"}, ("healthy", ()), Standing.TROUBLE, "no space"),
        ({"phase": Phase.STARTING}, ("healthy", ()), Standing.WAITING, "starting"),
        ({}, ("healthy", (PoolStatus("casa", True, 1, 0, 0, 0, 0),)), Standing.WAITING, "paused: casa"),
        ({}, ("healthy", (PoolStatus("casa", True, 0, 0, 0, 0, 0),)), Standing.WAITING, "paused: casa"),
        ({}, ("healthy", (PoolStatus("casa", False, 0, 0, 0, 3, 0),)), Standing.TROUBLE, "nobody works for casa"),
        ({}, ("healthy", (POOL, PoolStatus("theirs", False, 0, 0, 0, 0, 0))), Standing.OK, "2 runs"),
        (
            {"phase": Phase.STARTING},
            ("healthy", (PoolStatus("casa", False, 0, 0, 0, 0, 0),)),
            Standing.WAITING,
            "starting",
        ),
        (
            {"parts": (PartStatus("worker-casa", PartState.WAITING),)},
            ("healthy", (PoolStatus("casa", False, 0, 0, 0, 0, 0),)),
            Standing.WAITING,
            "worker-casa starts again",
        ),
        ({}, ("healthy", (PoolStatus("casa", False, 1, 2, 0, 3, 2),)), Standing.WAITING, "2 runs are late"),
    ],
)
def test_a_platform_that_runs(settings: Settings, told: Any, answer: Any, standing: Standing, reason: str):
    layout = report(settings, **told)
    watch = PlatformWatch(settings, now=lambda: NOW, ask=lambda *_, **__: answer)
    with sole_owner(layout.lock):
        found = watch.state()
    watch.close()
    assert (found.system.standing, reason in found.system.reason) == (standing, True), found.system.reason
    assert (found.page_url, found.api_url) == ("http://127.0.0.1:4200", "http://127.0.0.1:4200/api")


def test_a_platform_that_is_down_and_one_whose_supervisor_died(settings: Settings):
    def state() -> Any:
        watch = PlatformWatch(settings, now=lambda: NOW, ask=lambda *_, **__: ("unreachable", ()))
        found = watch.state()
        watch.close()
        return found.system

    assert (state().standing, state().reason) == (Standing.OFF, "stopped")
    report(settings, phase=Phase.STOPPED)
    assert state().standing is Standing.OFF
    report(settings)
    assert (state().standing, "the supervisor died" in state().reason) == (Standing.TROUBLE, True)
    Layout(settings.state_dir).report.write_text("{")
    assert state().standing is Standing.UNKNOWN


def test_a_server_that_refuses_us_is_said(settings: Settings):
    def refuse(*_: Any, **__: Any) -> Any:
        raise UnavailableError("overloaded")

    layout = report(settings)
    watch = PlatformWatch(settings, now=lambda: NOW, ask=refuse)
    with sole_owner(layout.lock):
        assert "overloaded" in watch.state().system.reason
    watch.close()


def test_a_server_that_answers_what_nobody_expects_harms_nothing_and_is_asked_again(settings: Settings, caplog: Any):
    answers: list[Any] = [KeyError("is_paused"), ("healthy", (POOL,))]

    def say(*_: Any, **__: Any) -> Any:
        said = answers.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    layout, clock = report(settings), [0.0]
    watch = PlatformWatch(settings, now=lambda: NOW, ask=say, clock=lambda: clock[0])
    with sole_owner(layout.lock):
        first = watch.state()
        assert (first.system.standing, "is_paused" in first.server) == (Standing.TROUBLE, True)
        assert watch.state().server == first.server
        clock[0] = 20.0
        assert watch.state().system.standing is Standing.OK
    watch.close()
    assert "could not be asked" in caplog.text


def test_what_the_server_said_long_ago_is_not_taken_for_the_present(settings: Settings, monkeypatch: Any):
    hangs, goes_on = threading.Event(), threading.Event()

    def say(*_: Any, **__: Any) -> Any:
        if hangs.is_set():
            goes_on.wait(30.0)
            return "unreachable", ()
        return "healthy", (POOL,)

    layout, clock = report(settings), [0.0]
    watch = PlatformWatch(settings, now=lambda: NOW, ask=say, clock=lambda: clock[0])
    monkeypatch.setattr("nightbeam.monitor.watch._WAIT_S", 30.0)
    with sole_owner(layout.lock):
        assert watch.state().server == "healthy"
        hangs.set()
        clock[0] = 6.0
        assert watch.state().server == "healthy", "it is asked in the background"
        monkeypatch.setattr("nightbeam.monitor.watch._WAIT_S", 0.01)
        clock[0] = 16.0
        found = watch.state()
        assert (found.server, found.pools, found.system.standing) == ("asking", [], Standing.WAITING)
        goes_on.set()
        monkeypatch.setattr("nightbeam.monitor.watch._WAIT_S", 30.0)
        assert watch.state().server == "unreachable"
        goes_on.clear()
        monkeypatch.setattr("nightbeam.monitor.watch._WAIT_S", 0.01)
        clock[0] = 40.0
        assert watch.state().server == "unreachable", "it has said nothing better since"
        goes_on.set()
    watch.close()
