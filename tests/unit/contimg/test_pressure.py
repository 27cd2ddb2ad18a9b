"""How far behind a site is, and what gives way: levels, the backlog, and a stream with a clock of its own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nightbeam.catalog import FileFact, GroupFact, Owner, Queue
from nightbeam.catalog.model import BacklogRow, Imaging, Owed, PressureRow
from nightbeam.contimg import Level, Site, stand_back, weigh
from nightbeam.contimg.pressure import (
    Backlog,
    Pressure,
    as_quick,
    backlog_of,
    is_smaller,
    measure,
    next_level,
    owed_by,
    quick_limits,
    take_up_owed,
    wanted_imaging,
    would_be,
)
from nightbeam.core.settings import ImageSettings, PressureSettings, QaSettings, Settings

T = TypeVar("T")
USUAL = PressureSettings()
MJD0 = 60950.0
ME = Owner("me")


def name(n: int) -> str:
    return f"2025-10-02T{n // 12:02d}:{n % 12 * 5:02d}:00"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.from_settings(Settings(state_dir=tmp_path / "state"))


def put(site: Site, *numbers: int) -> None:
    for n in numbers:
        files = [FileFact(sb, Path(f"/in/{name(n)}_sb{sb:02d}.hdf5")) for sb in range(16)]
        site.queue().record(GroupFact(name(n), MJD0 + n * 309.0 / 86400.0, dec_deg=33.0), files)


# -- levels -------------------------------------------------------------------------------------------------------


def levels(*waiting: int, limits: PressureSettings = USUAL) -> list[str]:
    found = itertools.accumulate(waiting, lambda level, n: next_level(level, n, limits), initial=Level.CALM)
    return [str(level) for level in found][1:]


def test_a_level_begins_above_its_number_and_ends_at_half_of_it():
    assert levels(10, 11, 6, 5, 10, 11) == ["calm", "behind", "behind", "calm", "calm", "behind"]
    assert levels(20, 21, 11, 10, 20, 5, 21, 5) == [
        "behind", "quick", "quick", "behind", "behind", "calm", "quick", "calm"
    ]  # fmt: skip


@pytest.mark.parametrize(("mode", "most"), [("off", "calm"), ("optional", "behind"), ("quick", "quick")])
def test_a_site_says_how_far_it_goes(mode: str, most: str):
    assert levels(1000, limits=PressureSettings.model_validate({"mode": mode})) == [most]


def test_optional_work_gives_way_before_images_do():
    with pytest.raises(ValueError, match="optional work gives way first"):
        PressureSettings(behind_groups=10, quick_groups=9)


@given(
    st.lists(st.integers(0, 60), max_size=40),
    st.integers(1, 20),
    st.integers(0, 20),
    st.floats(0.05, 1.0),
)
def test_a_level_changes_only_where_its_limits_say(waiting, begin, more, relief):
    limits = PressureSettings(behind_groups=begin, quick_groups=begin + more, relief=relief)
    order, level = list(Level), Level.CALM
    ends = {Level.BEHIND: begin, Level.QUICK: begin + more}
    for n in waiting:
        after = next_level(level, n, limits)
        if order.index(after) > order.index(level):
            assert n > ends[after]
        if order.index(after) < order.index(level):
            assert n <= relief * ends[level]
        assert next_level(after, n, limits) is after, "the same backlog does not make it flap"
        level = after


# -- the backlog --------------------------------------------------------------------------------------------------


def test_a_backlog_is_told_in_minutes_of_sky_and_by_its_oldest_data():
    row = BacklogRow(waiting=12, in_work=2, owed_in_work=1, for_gains=3, oldest_mjd=40587.0 + 100.0 / 86400.0)
    found = backlog_of(row, minutes_each=5.0, now=3700.0)
    assert (found.waiting, found.minutes, found.in_work, found.for_gains) == (12, 60.0, 3, 3)
    assert found.oldest_s == pytest.approx(3600.0)
    assert str(found) == "12 groups wait (60 min of sky)"
    assert (str(Backlog()), str(Backlog(1, 5.0))) == ("no group waits", "1 group waits (5 min of sky)")


def test_a_level_that_another_nightbeam_noted_counts_as_none():
    assert would_be(PressureRow("panic", 1.0, 99), Backlog(3), USUAL) == Pressure(Level.CALM, None, Backlog(3))


def test_optional_work_stands_back_while_groups_wait_and_is_free_again_after(site: Site, caplog):
    put(site, *range(11))
    assert stand_back(site, "the canary") == "11 groups wait (55 min of sky), and new data come first"
    assert "the canary is put off: 11 groups wait" in caplog.text
    queue = site.queue()
    for n in range(6):
        assert stand_back(site, "the canary")
        queue.claim(name(n), ME)
        queue.complete(name(n), ME)
    assert stand_back(site, "the canary") == ""


def test_who_only_looks_notes_nothing(site: Site):
    put(site, *range(11))
    found = weigh(site, now=5.0, note=False)
    assert (found.level, found.since, site.queue().arrears.pressure()) == (Level.BEHIND, None, None)
    assert weigh(site, now=6.0).since == 6.0
    assert weigh(site, now=7.0).since == 6.0
    assert site.queue().arrears.pressure() == PressureRow("behind", 6.0, 11)


# -- quick images -------------------------------------------------------------------------------------------------


def test_an_image_is_quick_only_where_that_is_another_one(site: Site):
    small = dataclasses.replace(site, image=ImageSettings(imsize=512, niter=300))
    assert (is_smaller(site), is_smaller(small), is_smaller(as_quick(site))) == (True, False, False)
    put(site, *range(21))
    assert wanted_imaging(site, owed=None) is Imaging.QUICK
    assert wanted_imaging(site, owed="image") is Imaging.FULL
    assert wanted_imaging(small, owed=None) is Imaging.FULL


def test_noise_and_dynamic_range_of_a_quick_image_may_be_worse_by_a_factor():
    usual = QaSettings()
    found = quick_limits(usual, 2.0)
    assert (found.noise_mjy, found.dynamic_range) == ((80.0, 200.0), (10.0, 2.5))
    assert (found.astrometry_arcsec, found.flux_ratio) == (usual.astrometry_arcsec, usual.flux_ratio)


def test_a_quick_group_is_owed_its_image_and_another_what_was_not_drawn():
    assert owed_by(quick=True, figures=False) is owed_by(quick=True, figures=True) is Owed.IMAGE
    assert (owed_by(quick=False, figures=False), owed_by(quick=False, figures=True)) == (Owed.FIGURES, None)


def test_a_group_whose_measurement_set_is_gone_is_owed_nothing(site: Site, caplog):
    queue = site.queue()
    put(site, 0, 1)
    for n in (0, 1):
        queue.claim(name(n), ME)
        queue.complete(name(n), ME, owed=Owed.IMAGE)
    site.ms_path(name(1)).mkdir(parents=True)
    assert take_up_owed(site) == name(1)
    assert (queue.group(name(0)).state, queue.group(name(0)).owed) == ("completed", None)
    assert f"group {name(0)} never gets its image" in caplog.text


# -- a stream -----------------------------------------------------------------------------------------------------


class Stream:
    """A queue, workers and a clock of their own: groups come, are imaged as the pressure says, and are never lost."""

    def __init__(self, site: Site, arrivals: list[int], seconds: list[int], places: int) -> None:
        self.site, self.queue, self.places = site, site.queue(), places
        self.arrivals, self.seconds = list(itertools.accumulate(arrivals)), itertools.cycle(seconds)
        self.now, self.come, self.ends = 0, 0, dict[str, int]()
        self.level, self.imaged = Level.CALM, dict[str, list[str]]()

    def tick(self) -> None:
        while self.come < len(self.arrivals) and self.arrivals[self.come] <= self.now:
            put(self.site, self.come)
            self.site.ms_path(name(self.come)).mkdir(parents=True, exist_ok=True)
            self.come += 1
        for group_id in [g for g, at in self.ends.items() if at <= self.now]:
            del self.ends[group_id]
            self.finish(group_id)
        self.weighed_by(lambda: take_up_owed(self.site))
        while len(self.ends) < self.places and (row := self.queue.claim_next(ME)) is not None:
            if row.owed is not None:
                assert measure(self.site).waiting == 0, "new data come first"
            owed = row.owed
            wanted = Imaging.FULL if owed else self.weighed_by(lambda: wanted_imaging(self.site, owed=None))
            decided = self.queue.arrears.decide(row.group_id, ME, wanted)
            length = next(self.seconds)
            self.ends[row.group_id] = self.now + (length if decided is Imaging.FULL else max(1, length // 2))
        self.now += 1

    def weighed_by(self, work: Callable[[], T]) -> T:
        """Do what looks how far behind the site is: the level follows the backlog, with hysteresis."""
        wanted = next_level(self.level, measure(self.site).waiting, self.site.pressure)
        found = work()
        noted = self.queue.arrears.pressure()
        self.level = Level(noted.level) if noted is not None else Level.CALM
        assert self.level is wanted
        return found

    def is_over(self) -> bool:
        """Return whether all has come and nothing is left to be done."""
        return self.come == len(self.arrivals) and not self.ends and self.queue.arrears.backlog() == BacklogRow()

    def finish(self, group_id: str) -> None:
        imaging = self.queue.group(group_id).imaging
        self.imaged.setdefault(group_id, []).append(str(imaging))
        self.queue.complete(group_id, ME, owed=owed_by(quick=imaging == Imaging.QUICK, figures=True))


@pytest.mark.slow
@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    arrivals=st.lists(st.integers(0, 3), min_size=1, max_size=16),
    seconds=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    places=st.integers(1, 3),
)
def test_whatever_comes_when_no_group_is_lost_and_every_quick_one_is_made_in_full_once_the_stream_pauses(
    tmp_path_factory, arrivals, seconds, places
):
    told = {"behind_groups": 2, "quick_groups": 4}
    config = {"state_dir": tmp_path_factory.mktemp("stream"), "contimg": {"pressure": told}}
    site = Site.from_settings(Settings.model_validate(config))
    shared = site.queue()
    stream = Stream(opened(site, shared), arrivals, seconds, places)
    most = sum(arrivals) + 3 * len(arrivals) * max(seconds) + 20
    with shared.database.kept_open():
        while stream.now < most and not stream.is_over():
            stream.tick()
        stream.tick()
    assert set(stream.imaged) == {name(n) for n in range(len(arrivals))}
    for group_id, made in stream.imaged.items():
        assert made in (["full"], ["quick", "full"])
        row = shared.group(group_id)
        assert (row.state, row.imaging, row.owed) == ("completed", "full", None)
    assert stream.level is Level.CALM


def opened(site: Site, queue: Queue) -> Site:
    """Return a site that opens its queue once: the law asks it very often."""

    class Opened(Site):
        def queue(self) -> Queue:
            return queue

    return Opened(**{f.name: getattr(site, f.name) for f in dataclasses.fields(site)})
