"""A clock that is set by hours makes no group old."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from nightbeam.catalog import FileFact, GroupFact, Owner, clocks
from nightbeam.catalog.schema import ClockTable
from nightbeam.contimg import Site, Tools, arrivals, scan_arrivals
from nightbeam.contimg.clock import ClockLook, Instant, look_at_clock
from nightbeam.core.settings import Settings

G = "2025-10-02T01:02:03"
HOUR = 3600.0


def read(path: Path) -> Any:
    start = 2460950.5 + (3723.25 / 86400)
    return SimpleNamespace(subband=None, start_jd=start, mid_jd=start + 0.0018, dec_rad=0.5)


class Clock:
    """The wall's and the kernel's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = Instant(1_800_000_000.0, 1000.0, "this boot")
        monkeypatch.setattr(arrivals.time, "time", lambda: self.at.wall)
        monkeypatch.setattr(arrivals, "look_at_clock", lambda queue: look_at_clock(queue, self.at))

    def go_on(self, seconds: float, *, step: float = 0.0) -> None:
        self.at = replace(self.at, wall=self.at.wall + seconds + step, since_boot=self.at.since_boot + seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def site(tmp_path: Path, contimg_databases: dict[str, str]) -> Site:
    ingest = {"settle_s": 0, "min_subbands": 14}
    settings = {"state_dir": tmp_path / "state", "contimg": {"ingest": ingest, **contimg_databases}}
    site = Site.from_settings(Settings.model_validate(settings))
    site.input_dir.mkdir(parents=True)
    return site


def put(site: Site, n: int) -> None:
    for sb in range(n):
        (site.input_dir / f"2025-10-02T01:02:01_sb{sb:02d}.hdf5").write_text("x")


def scan(site: Site) -> Any:
    return scan_arrivals(site, tools=Tools(read_header=read))


@pytest.mark.parametrize("step", [30 * HOUR, -30 * HOUR], ids=["forward", "back"])
def test_a_group_that_collects_keeps_its_age(site: Site, clock: Clock, step: float):
    put(site, 14)
    scan(site)
    clock.go_on(30.0, step=step)
    report = scan(site)
    assert (report.partial, report.expired, report.stale) == ((), (), ())
    assert clock.at.wall - site.queue().group(G).received_at == pytest.approx(30.0)
    clock.go_on(309.0)
    assert scan(site).partial == ()
    clock.go_on(2.0)
    assert scan(site).partial == (G,)


def test_a_clock_that_goes_as_it_should_changes_nothing(site: Site, clock: Clock):
    put(site, 3)
    scan(site)
    began = site.queue().group(G).received_at
    for _ in range(3):
        clock.go_on(3 * HOUR)
        scan(site)
    assert site.queue().group(G).received_at == began


def test_a_group_of_another_machine_is_not_stolen_by_a_clock_that_was_set(site: Site, clock: Clock):
    put(site, 16)
    scan(site)
    true = clock.at.wall
    away = Owner("away", "another-machine", 1, 1.0)
    site.queue().claim(G, away, now=true)
    for n in range(1, 40):
        clock.go_on(30.0, step=5 * HOUR if n == 1 else 0.0)
        site.queue().heartbeat(G, away, now=true + 30.0 * n)
        assert scan(site).recovered == ()
    clock.go_on(890.0)
    assert scan(site).recovered == ()
    clock.go_on(20.0)
    assert scan(site).recovered == (G,)


def test_after_a_boot_nothing_is_known_of_the_clock_and_the_note_of_the_last_one_is_gone(site: Site, clock: Clock):
    put(site, 3)
    scan(site)
    clock.go_on(30.0, step=HOUR)
    assert look_at_clock(site.queue(), clock.at).stepped
    clock.at = replace(clock.at, boot="another", since_boot=5.0, wall=clock.at.wall + HOUR)
    assert look_at_clock(site.queue(), clock.at).step_s == 0.0
    clock.go_on(30.0)
    assert not look_at_clock(site.queue(), clock.at).stepped
    with site.queue().database.read() as connection:
        assert connection.execute(sa.select(ClockTable.boot)).scalars().all() == ["another"]


def test_a_kernel_that_tells_no_boot_from_another_leaves_all_as_it_is(site: Site, clock: Clock):
    clock.at = replace(clock.at, boot="")
    look_at_clock(site.queue(), clock.at)
    clock.go_on(30.0, step=HOUR)
    assert look_at_clock(site.queue(), clock.at).step_s == 0.0


def test_whoever_is_killed_while_it_follows_a_step_has_followed_it_once_or_not_at_all(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    put(site, 3)
    scan(site)
    before = site.queue().group(G).received_at
    clock.go_on(30.0, step=30 * HOUR)

    class Killed(BaseException):
        pass

    real = clocks._keep_ages

    def killed(*args: Any) -> int:
        real(*args)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(clocks, "_keep_ages", killed)
        with pytest.raises(Killed):
            scan(site)
    assert site.queue().group(G).received_at == before
    for _ in range(3):
        scan(site)
        clock.go_on(1.0)
    assert site.queue().group(G).received_at == pytest.approx(before + 30 * HOUR)


def test_of_two_who_look_at_once_one_follows_the_step(site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    """The first is held in the middle of its transaction until the second is there too, or has had time to be."""
    put(site, 3)
    scan(site)
    before = site.queue().group(G).received_at
    clock.go_on(30.0, step=30 * HOUR)
    inside, both = threading.Event(), threading.Event()
    real = clocks._keep_ages

    def slowly(*args: Any) -> int:
        if inside.is_set():
            both.set()
        inside.set()
        both.wait(1.0)
        return real(*args)

    monkeypatch.setattr(clocks, "_keep_ages", slowly)
    looks: list[ClockLook] = []

    def look() -> None:
        looks.append(look_at_clock(site.queue(), clock.at))

    first = threading.Thread(target=look)
    first.start()
    assert inside.wait(60.0)
    second = threading.Thread(target=look)
    second.start()
    first.join(60.0)
    second.join(60.0)
    assert sorted(look.step_s for look in looks) == [0.0, pytest.approx(30 * HOUR)]
    assert site.queue().group(G).received_at == pytest.approx(before + 30 * HOUR)


def test_whoever_saw_the_clock_before_it_was_set_and_comes_second_undoes_nothing(site: Site, clock: Clock):
    put(site, 3)
    scan(site)
    clock.go_on(30.0)
    before_the_step = clock.at
    clock.go_on(1.0, step=30 * HOUR)
    look_at_clock(site.queue(), clock.at)
    followed = site.queue().group(G).received_at
    assert look_at_clock(site.queue(), before_the_step).step_s == 0.0
    clock.go_on(1.0)
    assert look_at_clock(site.queue(), clock.at).step_s == 0.0
    assert site.queue().group(G).received_at == followed


def test_two_containers_of_one_machine_have_one_clock(site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    put(site, 3)
    for host in ("one", "other"):
        monkeypatch.setattr("nightbeam.contimg.clock.socket.gethostname", lambda host=host: host)
        scan(site)
    before = site.queue().group(G).received_at
    clock.go_on(30.0, step=30 * HOUR)
    for host in ("one", "other"):
        monkeypatch.setattr("nightbeam.contimg.clock.socket.gethostname", lambda host=host: host)
        scan(site)
        clock.go_on(1.0)
    assert site.queue().group(G).received_at == pytest.approx(before + 30 * HOUR)


@pytest.mark.parametrize("step", [30 * HOUR, -30 * HOUR], ids=["forward", "back"])
def test_a_clock_that_is_set_right_ages_no_group_that_another_machine_received(site: Site, clock: Clock, step: float):
    queue = site.queue()

    def come(group: str, received_at: float) -> None:
        queue.record(GroupFact(group, 60950.0), [FileFact(0, site.input_dir / group)], now=received_at)

    queue.clocks.follow("other boot", "other", wall=clock.at.wall + step, since_boot=5.0, least_step_s=60.0)
    scan(site)
    come("mine", clock.at.wall)
    clock.go_on(30.0, step=step)
    come("theirs", clock.at.wall - 25.0)
    come("older", clock.at.wall - 300.0)
    assert look_at_clock(queue, clock.at).moved == 1
    ages = {row.group_id: clock.at.wall - row.received_at for row in queue.groups()}
    assert ages == {"mine": pytest.approx(30.0), "theirs": pytest.approx(25.0), "older": pytest.approx(300.0)}
