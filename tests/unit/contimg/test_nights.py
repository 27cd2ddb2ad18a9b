"""Nights: which are due is decided by data alone, and nothing is lost or doubled by clocks, restarts or bad nights."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import runpy
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nightbeam.contimg.mosaics import hold_plan
from nightbeam.contimg.nights import (
    MOST_ATTEMPTS,
    NightOutcome,
    is_being_made,
    make_night,
    make_nights,
    nights_due,
)
from nightbeam.core.errors import BusyError, InputError, PartialError, RejectedError, StorageError, UsageError

_world = runpy.run_path(str(Path(__file__).resolve().parents[2] / "mosaic_world.py"))
MosaicWorld, everything = (_world["MosaicWorld"], _world["everything"])

NIGHT = "2025-10-03"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


MORNING = at("2025-10-04T03:15:00")


@pytest.fixture
def world(tmp_path: Path, contimg_databases: dict[str, str]) -> MosaicWorld:
    return MosaicWorld(tmp_path, contimg_databases)


def observe(world: MosaicWorld, night: str = NIGHT, n: int = 3, *, hour: int = 4, **values: object) -> None:
    for k in range(n):
        world.add(f"{night}T{hour:02d}:{5 * k:02d}:00", **values)


def make(world: MosaicWorld, night: str = NIGHT, **options: object) -> NightOutcome:
    return make_night(world.site, night, tools=world.tools, **options)


def due(world: MosaicWorld, now: datetime = MORNING) -> list[str]:
    return nights_due(world.site, now=now)


@contextmanager
def subprocess_that_dies_in(night: str, world: MosaicWorld) -> Iterator[int]:
    """Make a night in a process of its own that is killed while tiles are looked at, as for want of memory."""
    child = os.fork()
    if child == 0:
        tools = dataclasses.replace(world.tools, inspect=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        try:
            make_night(world.site, night, tools=tools)
        finally:
            os._exit(1)
    yield os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def states(world: MosaicWorld) -> dict[str, str]:
    return {row.night: row.state for row in world.products.nights()}


class TestANight:
    def test_becomes_a_mosaic_of_its_name_and_is_done(self, world: MosaicWorld):
        observe(world)
        outcome = make(world)
        assert (outcome.action, outcome.mosaics, outcome.tiles) == ("built", ("night_2025_10_03",), 3)
        (row,) = world.products.mosaics()
        assert (row.name, row.status) == ("night_2025_10_03", "built")
        assert states(world) == {NIGHT: "done"}

    def test_made_again_costs_nothing_and_changes_nothing(self, world: MosaicWorld):
        observe(world)
        make(world)
        before, looked = everything(world.products), len(world.inspected)
        assert make(world).action == "unchanged"
        assert (len(world.inspected), len(world.built)) == (looked, 1)
        assert everything(world.products) == before

    def test_made_again_by_force_has_one_row_still(self, world: MosaicWorld):
        observe(world)
        make(world)
        assert make(world, force=True).action == "built"
        assert len(world.built) == 2
        assert len(world.products.mosaics()) == 1

    def test_with_a_late_tile_is_made_again_in_place_of_the_old(self, world: MosaicWorld):
        observe(world)
        make(world)
        world.add("2025-10-03T04:15:00")
        assert due(world) == [NIGHT]
        assert make(world).action == "built"
        (row,) = world.products.mosaics()
        assert row.tiles_used == 4
        assert due(world) == []

    def test_with_a_tile_that_was_made_again_is_made_again(self, world: MosaicWorld):
        observe(world)
        make(world)
        world.add("2025-10-03T04:05:00", word="good and better")
        assert due(world) == [NIGHT]

    def test_in_another_way_is_made_again(self, world: MosaicWorld, tmp_path: Path):
        observe(world)
        make(world)
        other = MosaicWorld(tmp_path / "elsewhere", pb_cut=0.3).site.mosaic
        object.__setattr__(world.site, "mosaic", other)
        assert due(world) == [NIGHT]

    def test_against_another_catalogue_is_made_again(self, tmp_path: Path, contimg_databases: dict[str, str]):
        sources = tmp_path / "sky.csv"
        sources.write_text("name,ra_deg,dec_deg,flux_jy\nA,10.0,16.0,1.0\n")
        world = MosaicWorld(tmp_path, contimg_databases, catalogue=sources)
        observe(world)
        make(world)
        assert due(world) == []
        sources.write_text("name,ra_deg,dec_deg,flux_jy\nA,10.0,16.0,2.00\n")
        assert due(world) == [NIGHT]
        assert make(world).action == "built"
        assert len(world.built) == 2
        assert due(world) == []

    def test_of_two_strips_has_a_row_for_each(self, world: MosaicWorld):
        observe(world)
        observe(world, hour=20)
        assert make(world).mosaics == ("night_2025_10_03", "night_2025_10_03_strip1")
        assert make(world).action == "unchanged"

    def test_whose_tiles_are_gone_keeps_what_was_made_of_them(self, world: MosaicWorld):
        observe(world)
        make(world)
        before = everything(world.products)
        for path in (world.site.output_dir / "images").iterdir():
            path.unlink()
        assert due(world) == []
        with world.products.database.write() as connection:
            connection.exec_driver_sql("DELETE FROM images")
        assert due(world) == []
        assert make(world).action == "empty"
        assert (everything(world.products), states(world)) == (before, {NIGHT: "done"})

    def test_without_tiles_is_empty_and_said_so_once(
        self, world: MosaicWorld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ):
        caplog.set_level("INFO", logger="nightbeam")
        monkeypatch.setattr(logging.getLogger("nightbeam"), "propagate", True)  # a command may have set up its own
        assert due(world) == [NIGHT]
        for _ in range(2):
            assert make(world).action == "empty"
        assert states(world) == {NIGHT: "empty"}
        assert caplog.text.count("has no tiles") == 1
        assert due(world) == []

    def test_that_was_empty_is_taken_up_when_tiles_come(self, world: MosaicWorld):
        make(world)
        observe(world)
        assert due(world) == [NIGHT]
        assert make(world).action == "built"

    def test_is_one_utc_day_or_as_many_as_the_settings_say(self, tmp_path: Path):
        world = MosaicWorld(tmp_path, window_days=2, name_prefix="deep")
        observe(world, "2025-10-02")
        observe(world, "2025-10-01")
        outcome = make(world)
        assert (outcome.name, outcome.tiles) == ("deep_2025_10_03", 3)

    @pytest.mark.parametrize("night", ["last", "20251003", "2025-W40-5", "9999-12-31", "0001-01-01", "2025-10-32"])
    def test_has_one_name_only(self, world: MosaicWorld, night: str):
        observe(world)
        with pytest.raises(UsageError, match="no night"):
            make(world, night)
        with pytest.raises(UsageError, match="no night"):
            make_nights(world.site, [NIGHT, night], tools=world.tools)
        assert world.products.mosaics() == []

    def test_is_made_by_one_at_a_time(self, world: MosaicWorld):
        observe(world)
        with hold_plan(world.site, "night_2025_10_03"), pytest.raises(BusyError):
            make(world)
        assert states(world) == {}


class TestNightsAreCaughtUp:
    def test_that_were_missed_oldest_first(self, world: MosaicWorld):
        for night in ("2025-10-01", "2025-10-03", "2025-09-30"):
            observe(world, night)
        assert due(world) == ["2025-09-30", "2025-10-01", "2025-10-03"]
        make_nights(world.site, due(world), tools=world.tools)
        assert due(world) == []

    def test_but_not_those_that_are_too_old(self, tmp_path: Path):
        world = MosaicWorld(tmp_path, catch_up_days=2)
        for night in ("2025-09-30", "2025-10-01"):
            observe(world, night)
        make(world)
        assert due(world) == ["2025-10-01"]

    def test_and_today_is_not_over(self, world: MosaicWorld):
        observe(world, "2025-10-04", hour=1)
        make(world)
        assert due(world) == []
        assert due(world, at("2025-10-05T00:00:00")) == ["2025-10-04"]

    def test_at_whatever_hour_the_platform_comes_up(self, world: MosaicWorld):
        observe(world)
        assert due(world, at("2025-10-04T00:00:00")) == due(world, at("2025-10-04T23:59:59")) == [NIGHT]

    def test_and_a_clock_that_jumps_loses_and_doubles_nothing(self, world: MosaicWorld):
        for night in ("2025-10-02", "2025-10-03"):
            observe(world, night)
        jumps = ("2025-10-04T03:15:00", "2031-01-01T03:15:00", "2020-01-01T00:00:00", "2025-10-03T03:15:00")
        for now in (*jumps, *jumps):
            make_nights(world.site, due(world, at(now)), tools=world.tools)
        assert sorted(name for name, _ in world.built) == ["night_2025_10_02", "night_2025_10_03"]
        assert {n: s for n, s in states(world).items() if s == "done"} == {"2025-10-02": "done", "2025-10-03": "done"}
        observe(world, "2025-10-04")
        assert due(world, at("2025-10-05T03:15:00")) == ["2025-10-04"]

    @pytest.mark.parametrize("now", ["0001-01-01T00:00:00", "9999-12-31T23:59:59"])
    def test_and_a_clock_that_cannot_be_right_is_refused(self, world: MosaicWorld, now: str):
        with pytest.raises(UsageError, match="no night"):
            due(world, at(now))

    def test_and_one_that_ends_its_process_does_not_keep_the_others_from_being_made(self, world: MosaicWorld):
        for night in ("2025-10-01", "2025-10-03"):
            observe(world, night)
        with subprocess_that_dies_in("2025-10-01", world) as ended:
            assert ended == -signal.SIGKILL
        row = world.products.night("2025-10-01")
        assert (row.state, row.attempts) == ("failed", 1)
        assert "killed" in (row.error or "")
        assert due(world) == ["2025-10-03", "2025-10-01"]

    def test_and_one_bad_night_does_not_stop_the_others(self, world: MosaicWorld):
        for night in ("2025-10-01", "2025-10-02", "2025-10-03"):
            observe(world, night)
        world.errors["night_2025_10_02"] = InputError("tile 2 is truncated")
        world.errors["night_2025_10_01"] = ZeroDivisionError("ours")
        seen: list[NightOutcome] = []
        with pytest.raises(PartialError, match=r"2 of 3 nights .* ZeroDivisionError: ours; 2025-10-02: tile 2"):
            make_nights(world.site, due(world), tools=world.tools, on_night=seen.append)
        assert [o.action for o in seen] == ["failed", "failed", "built"]
        assert states(world) == {"2025-10-01": "failed", "2025-10-02": "failed", "2025-10-03": "done"}


class TestANightThatFails:
    def test_says_why_and_is_tried_again_a_few_times(self, world: MosaicWorld):
        observe(world, word="its WCS is missing")
        for _ in range(MOST_ATTEMPTS):
            assert due(world) == [NIGHT]
            with pytest.raises(RejectedError, match="its WCS is missing"):
                make(world)
        assert due(world) == []
        row = world.products.night(NIGHT)
        assert (row.state, row.attempts, row.tiles) == ("failed", MOST_ATTEMPTS, 3)
        assert "its WCS is missing" in (row.error or "")

    def test_is_taken_up_again_when_another_tile_comes(self, world: MosaicWorld):
        observe(world, word="its WCS is missing")
        for _ in range(MOST_ATTEMPTS):
            with pytest.raises(RejectedError):
                make(world)
        world.add("2025-10-03T09:00:00")
        assert due(world) == [NIGHT]
        assert make(world).action == "built"
        assert world.products.night(NIGHT).attempts == 0

    def test_is_taken_up_again_when_as_many_other_tiles_are_there(self, world: MosaicWorld):
        observe(world, word="its WCS is missing")
        for _ in range(MOST_ATTEMPTS):
            with pytest.raises(RejectedError):
                make(world)
        assert due(world) == []
        observe(world)
        assert due(world) == [NIGHT]
        world.errors["night_2025_10_03"] = InputError("tile 2 is truncated")
        with pytest.raises(InputError):
            make(world)
        assert world.products.night(NIGHT).attempts == 1

    def test_is_taken_up_again_in_another_way(self, world: MosaicWorld, tmp_path: Path):
        observe(world, word="its WCS is missing")
        for _ in range(MOST_ATTEMPTS):
            with pytest.raises(RejectedError):
                make(world)
        other = MosaicWorld(tmp_path / "elsewhere", pb_cut=0.3).site.mosaic
        object.__setattr__(world.site, "mosaic", other)
        assert due(world) == [NIGHT]

    def test_by_somebody_who_stops_it_has_not_been_tried(self, world: MosaicWorld):
        observe(world)
        world.errors["night_2025_10_03"] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            make(world)
        assert world.products.night(NIGHT).attempts == 0
        assert due(world) == [NIGHT]

    @pytest.mark.parametrize("hours", [(4,), (4, 20)], ids=["one strip", "two strips"])
    def test_for_want_of_room_is_tried_until_there_is_some(self, world: MosaicWorld, hours: tuple[int, ...]):
        for hour in hours:
            observe(world, hour=hour)
        world.errors["night_2025_10_03"] = StorageError("no space left")
        for _ in range(MOST_ATTEMPTS + 1):
            with pytest.raises(StorageError):
                make(world)
        assert due(world) == [NIGHT]
        world.errors.clear()
        assert make(world).action == "built"

    def test_after_it_was_done_keeps_the_mosaic_that_there_was(self, world: MosaicWorld):
        observe(world)
        make(world)
        before = everything(world.products)
        for path in (world.site.output_dir / "images").iterdir():
            world.add(path.stem, word="NaN everywhere")
        with pytest.raises(RejectedError, match="NaN everywhere"):
            make(world)
        assert everything(world.products) == before

    def test_keeps_the_verdicts_of_its_plan(self, world: MosaicWorld):
        observe(world)
        world.errors["night_2025_10_03"] = InputError("tile 2 is truncated")
        with pytest.raises(InputError):
            make(world)
        (row,) = world.products.mosaics()
        assert (row.status, row.error, len(json.loads(row.verdicts or ""))) == ("failed", "tile 2 is truncated", 3)


def test_a_night_at_work_is_told_from_one_that_ended(world: MosaicWorld):
    observe(world)
    seen = []

    def inspect(*args: object, **options: object) -> object:
        seen.append(is_being_made(world.site, world.products.night(NIGHT)))
        return tools.inspect(*args, **options)

    tools = world.tools
    world.tools = dataclasses.replace(tools, inspect=inspect)
    make(world)
    assert set(seen) == {True}
    assert not is_being_made(world.site, world.products.night(NIGHT))


def test_a_night_waits_a_day_for_full_images_and_then_names_its_quick_ones(world: MosaicWorld):
    observe(world)
    world.add(f"{NIGHT}T04:15:00", quick=1)
    assert due(world) == []
    assert NIGHT in due(world, at("2025-10-05T03:15:00"))
    make(world)
    (row,) = world.products.mosaics()
    assert row.validation_issues == f"1 of its tiles are quick images: {NIGHT}T04:15:00"
    assert NIGHT not in due(world, at("2025-10-05T03:15:00"))
    world.add(f"{NIGHT}T04:15:00", word="good and full", quick=0)
    assert NIGHT in due(world, at("2025-10-05T03:15:00")), "the tile was made again"
    make(world)
    (row,) = world.products.mosaics()
    assert row.validation_issues is None


def test_a_site_whose_images_are_all_quick_waits_for_none(world: MosaicWorld):
    world.add(f"{NIGHT}T04:15:00", quick=1)
    object.__setattr__(world.site, "image", world.site.image.model_copy(update={"quick": True}))
    assert due(world) == [NIGHT]
