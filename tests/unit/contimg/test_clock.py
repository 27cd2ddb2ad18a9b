"""A clock that is set by hours makes no group old."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightbeam.catalog import Owner
from nightbeam.contimg import Site, Tools, arrivals, scan_arrivals
from nightbeam.contimg.clock import Instant, look_at_clock
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
        monkeypatch.setattr(arrivals, "look_at_clock", lambda site: look_at_clock(site, self.at))

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


def test_after_a_boot_or_without_a_note_nothing_is_known_of_the_clock(site: Site, clock: Clock):
    put(site, 3)
    scan(site)
    (note,) = site.state_dir.glob("clock-*.json")
    clock.at = replace(clock.at, boot="another", since_boot=5.0, wall=clock.at.wall + HOUR)
    assert look_at_clock(site, clock.at).step_s == 0.0
    note.write_text("{")
    assert look_at_clock(site, clock.at).step_s == 0.0
    note.write_text('{"boot": "another", "since_boot": "x", "wall": 1, "beats": [], "stepped": 0}')
    assert not look_at_clock(site, clock.at).stepped
