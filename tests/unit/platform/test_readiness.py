"""Whether a site is ready: each fault is found, said with its cure, and never raised."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import FileFact, GroupFact, Owner, Queue, Registry, SetSpec, TableSpec
from nightbeam.core.errors import AuthError, InputError
from nightbeam.core.settings import Settings
from nightbeam.core.times import mjd_from_datetime, utc_now
from nightbeam.platform import readiness
from nightbeam.platform.findings import Finding, Health, guarded, worst
from nightbeam.platform.model import PartState, PartStatus, Phase, PlatformStatus, PoolStatus
from nightbeam.platform.readiness import examine_site


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"state_dir": tmp_path / "state", "elog": {"auth": "none"}}).resolved()


def of(findings: list[Finding], check: str) -> Finding:
    return next(f for f in findings if f.check == check)


def changed(settings: Settings, part: str, **values: Any) -> Settings:
    return settings.model_copy(update={part: getattr(settings, part).model_copy(update=values)})


def file_of(url: str | None) -> Path:
    assert url is not None
    return Path(url.removeprefix("sqlite:///"))


def test_a_new_site_has_nothing_that_fails_and_is_left_as_it_was(settings: Settings):
    findings = examine_site(settings)
    assert worst(findings) is not Health.FAIL, [f for f in findings if f.health is Health.FAIL]
    assert not settings.state_dir.exists()


# -- never raised -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "found"), [(InputError("it is torn", fix="mend it"), "it is torn"), (KeyError("pools"), "KeyError")]
)
def test_a_look_that_raises_is_a_finding(error: Exception, found: str):
    def look() -> list[Finding]:
        raise error

    (finding,) = guarded("thing", look)
    assert finding.health is Health.FAIL
    assert found in finding.found


def test_a_look_that_does_not_come_back_is_a_finding():
    import threading

    for_ever = threading.Event()
    (finding,) = guarded("mount /gone", lambda: [Finding(str(for_ever.wait()), Health.OK, "")], timeout_s=0.01)
    assert (finding.health, finding.check) == (Health.FAIL, "mount /gone")
    for_ever.set()


# -- mounts, inodes, databases ------------------------------------------------------------------------------------


def test_a_mount_point_at_which_nothing_is_mounted_fails(settings: Settings, tmp_path: Path):
    there = changed(settings, "doctor", expected_mounts=(tmp_path, Path("/"), tmp_path / "none"))
    findings = examine_site(there)
    assert of(findings, f"mount {tmp_path}").health is Health.FAIL
    assert "nothing is mounted there" in of(findings, f"mount {tmp_path}").found
    assert of(findings, "mount /").health is Health.OK
    assert of(findings, f"mount {tmp_path}/none").found == "no such directory"


def test_a_damaged_database_is_told_from_a_whole_one(settings: Settings):
    Queue(settings.contimg.queue_db or "")
    Registry(settings.contimg.registry_db or "")
    whole = of(examine_site(settings), "database queue")
    assert (whole.health, whole.found[:14]) == (Health.OK, "whole, schema ")
    file = file_of(settings.contimg.queue_db)
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = raw.execute("PRAGMA page_count").fetchone()[0]
        size = raw.execute("PRAGMA page_size").fetchone()[0]
    data = bytearray(file.read_bytes())
    for page in range(3, pages):  # every page but those that say what tables there are
        data[page * size : page * size + 100] = b"\xff" * 100
    file.write_bytes(data)
    findings = examine_site(settings)
    assert of(findings, "database queue").health is Health.FAIL
    assert of(findings, "database registry").health is Health.OK


def test_the_long_look_at_databases_is_made_only_where_it_is_asked_for_and_each_has_its_own_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def slow(self: Any) -> str:
        asked.append(self.name)
        raise TimeoutError if self.name == "queue" else AssertionError

    Queue(settings.contimg.queue_db or "")
    Registry(settings.contimg.registry_db or "")
    monkeypatch.setattr("nightbeam.catalog.remote.Database.quick_check", slow)
    short = examine_site(settings, thorough=False)
    assert of(short, "database queue").found.startswith("opens, schema ")
    assert asked == []
    whole = examine_site(settings)
    assert asked == ["queue", "registry"], "one that does not answer does not keep the next from being asked"
    assert of(whole, "database queue").health is Health.FAIL


def test_a_disk_without_room_for_a_group_of_the_size_of_the_last_fails(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    queue = Queue(settings.contimg.queue_db or "")
    group = GroupFact("2025-10-02T00:00:00", 60950.0)
    queue.record(group, [FileFact(0, Path("/in/a_sb00.hdf5"), size_bytes=10**15)], expected_subbands=16)
    assert of(examine_site(settings), f"directory {settings.state_dir}").health is Health.FAIL


# -- queue and calibration ----------------------------------------------------------------------------------------


def test_a_backlog_and_failed_groups_are_warned_of(settings: Settings):
    queue = Queue(settings.contimg.queue_db or "")
    for hour in range(3):
        group = GroupFact(f"2025-10-02T0{hour}:00:00", 60950.0 + hour / 24)
        queue.record(group, [FileFact(0, Path(f"/in/{hour}_sb00.hdf5"))], expected_subbands=1)
    said = of(examine_site(changed(settings, "doctor", backlog_groups=2)), "queue")
    assert said.health == Health.WARN
    assert said.found.startswith("3 groups wait, 0 are worked on; 15 min of sky could be imaged, the oldest of ")
    assert of(examine_site(settings), "queue").health is Health.OK


def test_of_the_groups_that_failed_the_last_to_fail_is_named(settings: Settings):
    queue = Queue(settings.contimg.queue_db or "")
    now = time.time()
    for hour, failed_ago in ((0, 500.0), (1, 100.0), (2, 300.0)):
        group = GroupFact(f"2025-10-02T0{hour}:00:00", 60950.0 + hour / 24)
        queue.record(group, [FileFact(0, Path(f"/in/{hour}_sb00.hdf5"))], expected_subbands=1)
        owner = Owner("a run", "here", 1)
        queue.claim(group.group_id, owner, now=now - failed_ago)
        queue.fail(group.group_id, owner, f"reason {hour}", final=True, now=now - failed_ago)
    found = of(examine_site(settings), "failed groups").found
    assert found == "3 in the last day; the last to fail was 2025-10-02T01:00:00: reason 1"


def put_set(
    settings: Settings, tmp_path: Path, hours_left: float, *, dec_deg: float | None = 54.5, hours: float = 4.0
) -> Path:
    table = tmp_path / "a_bpcal"
    table.mkdir()
    (table / "table.dat").write_text("solutions")
    end = mjd_from_datetime(utc_now()) + hours_left / 24
    tables = (TableSpec(table, "BP", 30),)
    spec = SetSpec("calset_a", tables, end - hours / 24, end, calibrator="3C48", dec_deg=dec_deg)
    Registry(settings.contimg.registry_db or "", check=lambda path: None).register_set(spec)
    return table


def observe(settings: Settings, dec_deg: float) -> None:
    group = GroupFact("2025-10-02T00:00:00", 60950.0, dec_deg=dec_deg)
    queue = Queue(settings.contimg.queue_db or "")
    queue.record(group, [FileFact(0, Path("/in/a_sb00.hdf5"))], expected_subbands=1)


@pytest.fixture
def any_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nightbeam.catalog.registry.check_table", lambda path: None)


@pytest.mark.usefixtures("any_table")
@pytest.mark.parametrize(
    ("hours_left", "health", "said"),
    [
        (2.0, Health.OK, "is valid; calset_a serves for 12.0 h more"),  # half a day from its middle, which is now
        (-3.0, Health.OK, "is borrowed, 5.0 h old; calset_a serves for 7.0 h more"),
        (-11.0, Health.WARN, "no set for the strip at Dec +54.50 serves now"),  # its end is younger than half a day
    ],
)
def test_the_newest_set_is_valid_or_may_be_borrowed_or_groups_wait(
    settings: Settings, tmp_path: Path, hours_left: float, health: Health, said: str
):
    put_set(settings, tmp_path, hours_left)
    observe(settings, 54.5)
    finding = of(examine_site(settings), "calibration")
    assert finding.health is health
    assert said in finding.found


@pytest.mark.usefixtures("any_table")
@pytest.mark.parametrize("hours_left", [2.0, -3.0])
def test_gains_of_another_strip_are_none(settings: Settings, tmp_path: Path, hours_left: float):
    put_set(settings, tmp_path, hours_left)
    observe(settings, 16.1)
    finding = of(examine_site(settings), "calibration")
    assert (finding.health, finding.found) == (
        Health.WARN, "no set for the strip at Dec +16.10 serves now: groups wait",
    )  # fmt: skip


@pytest.mark.usefixtures("any_table")
def test_gains_whose_tables_have_changed_are_none(settings: Settings, tmp_path: Path):
    table = put_set(settings, tmp_path, 2.0)
    (table / "table.dat").write_text("others")
    finding = of(examine_site(settings), "calibration")
    assert finding.health is Health.WARN
    assert "its tables are gone or have changed" in finding.found


# -- tickets, canary ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hours", "health"), [(20.0, Health.OK), (3.0, Health.WARN)])
def test_a_ticket_that_ends_in_the_night_is_warned_of(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, hours: float, health: Health
):
    monkeypatch.setattr("nightbeam.elog.credentials.ticket_seconds", lambda: hours * 3600)
    finding = of(examine_site(changed(settings, "elog", auth="kerberos")), "kerberos ticket")
    assert (finding.health, finding.found) == (health, f"valid for {hours:.1f} h more")


@pytest.mark.parametrize(("mirrored", "health"), [(True, Health.FAIL), (False, Health.OK)])
def test_a_missing_ticket_fails_only_where_a_logbook_is_mirrored(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, mirrored: bool, health: Health
):
    def none() -> float:
        raise AuthError("there is no Kerberos ticket", fix="run kinit")

    monkeypatch.setattr("nightbeam.elog.credentials.ticket_seconds", none)
    if mirrored:
        file = file_of(settings.elog.database)
        file.parent.mkdir(parents=True)
        file.touch()
    finding = of(examine_site(changed(settings, "elog", auth="kerberos")), "kerberos ticket")
    assert finding.health is health


@pytest.mark.parametrize(
    ("age_h", "right", "health"), [(1.0, True, Health.OK), (40.0, True, Health.WARN), (1.0, False, Health.FAIL)]
)
def test_a_canary_must_have_been_right_lately(settings: Settings, age_h: float, right: bool, health: Health):
    now = 1.8e9
    file = settings.state_dir / readiness.CANARY_RECORD
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"ended_at": now - age_h * 3600, "right": right, "found": "as said"}))
    assert of(examine_site(settings, now=now), "canary").health is health


@pytest.mark.parametrize(("age_h", "health"), [(0.1, Health.OK), (1.0, Health.FAIL)])
def test_a_canary_that_never_ended_fails_and_one_that_flies_does_not(settings: Settings, age_h: float, health: Health):
    file = settings.state_dir / readiness.CANARY_RECORD
    file.parent.mkdir(parents=True)
    told = {"ended_at": 1.8e9 - age_h * 3600, "right": False, "found": "it has begun and not ended", "flying": True}
    file.write_text(json.dumps(told))
    assert of(examine_site(settings, now=1.8e9), "canary").health is health


def test_the_canary_of_several_machines_lies_where_they_all_see_it(settings: Settings, tmp_path: Path):
    shared = changed(settings, "contimg", state_dir=tmp_path / "shared")
    file = tmp_path / "shared" / readiness.CANARY_RECORD
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"ended_at": 1.8e9, "right": False, "found": "no source"}))
    assert of(examine_site(shared, now=1.8e9), "canary").health is Health.FAIL


# -- the platform -------------------------------------------------------------------------------------------------


def look_at(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, status: PlatformStatus, *entries: Any
) -> list[Finding]:
    monkeypatch.setattr("nightbeam.platform.control.platform_status", lambda settings: status)
    monkeypatch.setattr("nightbeam.platform.remote.PrefectApi.deployments", lambda self: list(entries))
    return examine_site(settings)


def running(*pools: PoolStatus, **more: Any) -> PlatformStatus:
    return PlatformStatus(Phase.RUNNING, "http://127.0.0.1:1/api", "healthy", pools=pools, **more)


def pool(name: str, *, paused: bool = False, workers: int = 1, late: int = 0, busy: int = 0) -> PoolStatus:
    return PoolStatus(name, paused, workers, busy, 0, 0, late)


@pytest.mark.parametrize(
    ("busy", "late", "health"),
    [(0, 1, Health.WARN), (3, 1, Health.WARN), (4, 10, Health.OK), (4, 11, Health.WARN), (0, 0, Health.OK)],
)
def test_runs_that_wait_for_a_place_are_late_only_where_there_is_one_or_they_are_many(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, busy: int, late: int, health: Health
):
    assert settings.platform.pools["batch"] == 4
    findings = look_at(monkeypatch, settings, running(pool("batch", busy=busy, late=late)))
    assert of(findings, "pool batch").health is health


def test_pools_that_are_gone_paused_without_worker_or_late_are_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    pools = [pool("batch", late=2), pool("casa", workers=0), pool("cxi-writer", paused=True), pool("example-service")]
    findings = look_at(monkeypatch, settings, running(*pools))
    found = {f.check.removeprefix("pool "): f.health for f in findings if f.check.startswith("pool ")}
    assert found == {
        "batch": Health.WARN,
        "casa": Health.FAIL,
        "cxi-writer": Health.WARN,
        "example-service": Health.OK,
        "scan-calibrator": Health.FAIL,
    }


def test_a_paused_schedule_on_which_nights_depend_is_warned_of(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    def entry(name: str, *, active: bool) -> dict[str, Any]:
        function = name.replace("-", "_")
        return {"entrypoint": f"flows.{function}.{function}", "paused": False, "schedules": [{"active": active}]}

    entries = [entry(name, active=name != "housekeeping") for name in readiness.NEEDED if name != "flight-check"]
    finding = of(look_at(monkeypatch, settings, running(), *entries), "schedules")
    assert finding.health is Health.WARN
    assert finding.found == "housekeeping is paused; flight-check is not on the server"


def test_a_part_that_was_given_up_fails_and_a_server_that_does_not_answer_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    part = PartStatus("worker-casa", PartState.GIVEN_UP)
    status = PlatformStatus(Phase.RUNNING, "http://x", "unreachable", problem="worker-casa was given up", parts=(part,))
    findings = look_at(monkeypatch, settings, status)
    assert [of(findings, name).health for name in ("platform", "prefect server")] == [Health.FAIL, Health.FAIL]


def test_a_site_whose_platform_stands_still_is_warned_of(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    status = PlatformStatus(Phase.STOPPED, "http://x", "unreachable")
    findings = look_at(monkeypatch, settings, status)
    assert {of(findings, name).health for name in ("platform", "prefect server")} == {Health.WARN}
