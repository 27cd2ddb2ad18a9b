"""Nights: which are due is decided by data alone, and nothing is lost or doubled by clocks, restarts or bad nights."""

from __future__ import annotations

import json
import logging
import runpy
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nightbeam.contimg.mosaics import hold_plan
from nightbeam.contimg.nights import MOST_ATTEMPTS, NightOutcome, make_night, make_nights, nights_due
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

    def test_that_is_no_day_is_refused(self, world: MosaicWorld):
        with pytest.raises(UsageError, match="no night"):
            make(world, "last")

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

    def test_for_want_of_room_is_tried_until_there_is_some(self, world: MosaicWorld):
        observe(world)
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
