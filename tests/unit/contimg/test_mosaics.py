"""Mosaics: which tiles are chosen and why, what the rows say, and what survives being planned or built again."""

from __future__ import annotations

import dataclasses
import itertools
import json
import runpy
from pathlib import Path

import pytest
from sqlalchemy import text

from nightbeam.catalog.model import MosaicRow
from nightbeam.contimg.mosaic_plan import MosaicPlan, Window, check_name, options_of, plan_mosaic, reference_sources
from nightbeam.contimg.mosaics import (
    LEFT_BEHIND,
    build_mosaics,
    hold_plan,
    mosaic_line,
    mosaic_report,
    output_stem,
    rows_of,
    store_plan,
)
from nightbeam.core.errors import (
    BusyError,
    InputError,
    MissingError,
    PartialError,
    RejectedError,
    StorageError,
    UsageError,
)
from nightbeam.mosaic.model import Check, Reason, ReasonCode, Tile, TileVerdict

_world = runpy.run_path(str(Path(__file__).resolve().parents[2] / "mosaic_world.py"))
MosaicWorld, everything, mjd, reasons = (_world["MosaicWorld"], _world["everything"], _world["mjd"], _world["reasons"])

NIGHT = Window.of_night("2025-10-03")


@pytest.fixture
def world(tmp_path: Path, contimg_databases: dict[str, str]) -> MosaicWorld:
    return MosaicWorld(tmp_path, contimg_databases)


def plan(world: MosaicWorld, name: str = "night", window: Window = NIGHT) -> MosaicPlan:
    return plan_mosaic(world.site, name, window, tools=world.tools)


def planned(world: MosaicWorld, name: str = "night", window: Window = NIGHT) -> list[MosaicRow]:
    return store_plan(world.site, plan(world, name, window))


def build(world: MosaicWorld, name: str = "night", **options: object) -> list[MosaicRow]:
    return build_mosaics(world.site, name, tools=world.tools, **options)


def strip_of(world: MosaicWorld, hour: int, n: int = 3, *, dec: float = 33.0) -> list[Path]:
    return [world.add(f"2025-10-03T{hour:02d}:{5 * k:02d}:00", dec=dec) for k in range(n)]


class TestTilesAreChosen:
    def test_by_when_they_were_observed_whenever_they_were_made(self, world: MosaicWorld):
        inside = world.add("2025-10-03T00:00:00", now=4e9)
        world.add("2025-10-02T23:59:59")
        world.add("2025-10-04T00:00:00", now=1.0)
        (strip,) = plan(world).strips
        assert [tile.path for tile in strip.strip.tiles] == [inside]

    def test_and_one_without_a_time_is_left_out_with_the_reason(self, world: MosaicWorld):
        world.add("2025-10-03T01:00:00")
        world.add("2025-10-03T01:05:00", mid_mjd=None)
        (left,) = plan(world).rejected
        assert left.tile.name == "2025-10-03T01:05:00"
        assert "not known" in left.reasons[0].text

    def test_and_one_without_a_time_has_that_of_its_measurement_set(self, world: MosaicWorld):
        world.add("2025-10-03T01:05:00", mid_mjd=None)
        world.products.upsert_ms(Path("/ms/2025-10-03T01:05:00.ms"), mid_mjd=mjd("2025-10-03T01:05:00"))
        assert plan(world).rejected == ()
        assert plan(world, window=Window.of_night("2025-10-04")).verdicts == ()

    def test_once_for_each_observation(self, world: MosaicWorld):
        old = world.add("2025-10-03T01:00:00", now=1.0)
        new = old.with_name("again.fits")
        new.write_text("good")
        columns = {"mid_mjd": mjd("2025-10-03T01:00:00"), "ra_deg": 1.0, "dec_deg": 33.0, "pbcor": 1}
        world.products.upsert_image(new, ms_path=Path("/ms/2025-10-03T01:00:00.ms"), now=2.0, **columns)
        found = plan(world)
        assert [tile.path for strip in found.strips for tile in strip.strip.tiles] == [new]
        assert [(v.tile.path, v.reasons[0].code) for v in found.rejected] == [(old, ReasonCode.DUPLICATE)]
        new.unlink()
        assert [tile.path for strip in plan(world).strips for tile in strip.strip.tiles] == [old]

    def test_and_the_newest_of_an_observation_that_is_sound(self, world: MosaicWorld):
        old = world.add("2025-10-03T01:00:00", now=9.0)  # by a clock that was wrong
        columns = {"mid_mjd": mjd("2025-10-03T01:00:00"), "ra_deg": 1.0, "dec_deg": 33.0, "pbcor": 1}
        for word, now in (("good", 2.0), ("cut short", 3.0)):
            path = old.with_name(f"{word}.fits")
            path.write_text(word)
            world.products.upsert_image(path, ms_path=Path("/ms/2025-10-03T01:00:00.ms"), now=now, **columns)
        found = plan(world)
        assert [t.path.name for s in found.strips for t in s.strip.tiles] == ["good.fits"]
        assert {v.tile.path.name: [str(r.code) for r in v.reasons] for v in found.rejected} == {
            "2025-10-03T01:00:00.fits": ["duplicate"],
            "cut short.fits": ["unreadable"],
        }

    def test_and_each_that_is_not_used_says_why(self, world: MosaicWorld):
        strip_of(world, 1)
        world.add("2025-10-03T01:15:00", noise_jy=0.2)
        world.add("2025-10-03T01:20:00", word="its WCS is missing")
        world.add("2025-10-03T01:25:00").unlink()
        (row,) = planned(world)
        assert reasons(row) == {
            "2025-10-03T01:15:00": ["it is too noisy"],
            "2025-10-03T01:20:00": ["its WCS is missing"],
            "2025-10-03T01:25:00": ["there is no 2025-10-03T01:25:00.fits"],
        }
        assert (row.tiles_used, row.tiles_rejected) == (3, 3)


class TestAPlan:
    def test_has_a_row_for_each_strip_in_the_order_of_their_times(self, world: MosaicWorld):
        late, early = strip_of(world, 20), strip_of(world, 3, dec=16.0)
        rows = planned(world)
        assert [(r.name, r.plan, r.strip, r.status) for r in rows] == [
            ("night", "night", 0, "planned"),
            ("night_strip1", "night", 1, "planned"),
        ]
        assert [r.tiles.splitlines() for r in rows] == [[str(p) for p in early], [str(p) for p in late]]
        assert (rows[0].dec_deg, rows[0].start_mjd) == (16.0, pytest.approx(mjd("2025-10-03T03:00:00")))

    def test_falls_in_two_where_the_tile_that_joined_it_is_rejected(self, world: MosaicWorld):
        strip_of(world, 1, 5)
        world.add("2025-10-03T01:10:00", noise_jy=0.2)
        rows = planned(world)
        assert [len(r.tiles.splitlines()) for r in rows] == [2, 2]
        assert sum(r.tiles_rejected or 0 for r in rows) == 1

    @pytest.mark.slow
    def test_of_more_than_four_hours_is_cut_and_a_late_tile_leaves_the_other_pieces_built(self, world: MosaicWorld):
        whens = [f"2025-10-03T{5 * k // 60:02d}:{5 * k % 60:02d}:00" for k in range(140)]
        for when in whens:
            world.add(when)
        rows = planned(world)
        tiles = [row.tiles.splitlines() for row in rows]
        assert [row.name for row in rows] == ["night", "night_strip1", "night_strip2", "night_strip3"][: len(rows)]
        assert len(rows) >= 2
        assert max(map(len, tiles)) <= 75 + 2
        assert len({path for piece in tiles for path in piece}) == 140
        for one, other in itertools.pairwise(tiles):  # the next begins with the last two of the one before
            assert one[-2:] == other[:2]
        build(world)
        assert [row.tiles_used for row in world.products.mosaics(plan="night")] == list(map(len, tiles))
        world.add("2025-10-03T05:52:30")
        statuses = [row.status for row in planned(world)]
        assert 1 <= statuses.count("planned") <= 2
        assert statuses.count("built") == len(rows) - statuses.count("planned")

    def test_of_nothing_leaves_the_earlier_one_as_it_was(self, world: MosaicWorld):
        with pytest.raises(RejectedError, match="no tile was observed in 2025-10-03T00:00:00Z/2025-10-04T00:00:00Z"):
            planned(world)
        paths = strip_of(world, 1)
        before = planned(world)
        for path in paths:
            path.write_text("half a file")
        with pytest.raises(RejectedError, match=r"none of 3 tiles .* \(half a file"):
            planned(world)
        assert world.products.mosaics() == before

    def test_made_again_replaces_its_rows(self, world: MosaicWorld):
        strip_of(world, 3)
        strip_of(world, 20)
        planned(world)
        build(world)
        for path in strip_of(world, 20):
            path.write_text("NaN everywhere")
        world.add("2025-10-03T03:15:00")
        (row,) = planned(world)
        assert (row.name, row.status, row.tiles_used, row.tiles_rejected) == ("night", "planned", 4, 3)

    def test_made_again_otherwise_leaves_nothing_of_what_was_said_of_the_earlier_mosaics(self, world: MosaicWorld):
        strip_of(world, 3)
        late = strip_of(world, 9)
        planned(world)
        build(world)
        judged = {score.subject for score in world.products.scores(kind="mosaic")}
        pictures = [Path(row.path) for name in judged for row in world.products.qa_artifacts(name)]
        assert judged == {"night", "night_strip1"}
        for path in late:
            path.write_text("bad")
        world.add("2025-10-03T03:15:00")
        planned(world)  # the first strip has a tile more, the second is gone
        assert [row.status for row in world.products.mosaics()] == ["planned"]
        assert world.products.scores(kind="mosaic") == []
        assert [row for name in judged for row in world.products.qa_artifacts(name)] == []
        assert not any(path.exists() for path in pictures)

    def test_made_again_of_the_very_same_keeps_what_was_said(self, world: MosaicWorld):
        strip_of(world, 3)
        planned(world)
        build(world)
        before = world.products.scores(kind="mosaic")
        planned(world)
        assert world.products.scores(kind="mosaic") == before
        assert len(world.products.qa_artifacts("night")) == 1

    def test_made_again_of_the_very_same_stays_built(self, world: MosaicWorld):
        strip_of(world, 3)
        planned(world)
        build(world)
        before = everything(world.products)
        planned(world)
        assert everything(world.products) == before
        build(world)
        assert len(world.built) == 1

    def test_made_again_of_the_very_same_keeps_what_the_builder_found(self, world: MosaicWorld):
        strip_of(world, 3)
        planned(world)
        build(world)
        (row,) = world.products.mosaics()
        verdicts = json.loads(row.verdicts or "")
        verdicts[1] |= {"accepted": False, "reasons": [{"code": "noise", "text": "it is noisy beside these"}]}
        world.products.change_mosaic("night", verdicts=verdicts, tiles_used=2, tiles_rejected=1)
        world.add("2025-10-03T03:30:00", word="no beam")
        (row,) = planned(world)
        assert (row.status, row.tiles_used, row.tiles_rejected) == ("built", 2, 2)
        assert reasons(row) == {
            "2025-10-03T03:05:00": ["it is noisy beside these"],
            "2025-10-03T03:30:00": ["no beam"],
        }

    def test_judges_again_what_is_left_until_nothing_changes(self, world: MosaicWorld):
        strip_of(world, 3)
        limits = iter([("2025-10-03T03:00:00",), ("2025-10-03T03:10:00",), ()])

        def judge(facts, _options):
            bad = next(limits)
            why = (Reason(ReasonCode.NOISE, "it is too noisy"),)
            return [TileVerdict(f.tile, f.tile.name not in bad, why if f.tile.name in bad else ()) for f in facts]

        world.tools = dataclasses.replace(world.tools, judge=judge)
        (row,) = planned(world)
        assert (row.tiles_used, set(reasons(row))) == (1, {"2025-10-03T03:00:00", "2025-10-03T03:10:00"})

    @pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a b", "x" * 101, "night_strip1", "x.json"])
    def test_has_a_name_that_can_be_a_files_and_a_pages_and_is_no_strips(self, name: str):
        with pytest.raises(UsageError):
            check_name(name)

    def test_needs_a_window_that_is_one(self):
        with pytest.raises(UsageError, match="empty"):
            Window(2.0, 2.0)
        with pytest.raises(UsageError, match="no night"):
            Window.of_night("yesterday")

    def test_looks_back_on_as_many_days_as_asked(self):
        window = Window.of_night("2025-10-03", days=2)
        assert (window.start_mjd, window.end_mjd) == (mjd("2025-10-02T00:00:00"), mjd("2025-10-04T00:00:00"))


class TestBuilding:
    def test_says_in_the_row_what_was_made(self, world: MosaicWorld):
        strip_of(world, 3)
        planned(world)
        (row,) = build(world)
        assert (row.status, row.error, row.noise_jy, row.peak_jy) == ("built", None, 0.005, 1.5)
        assert row.output_path == str(world.site.mosaic_dir() / "night.image.fits")
        assert Path(row.output_path).read_text().count("2025-10-03") == 3
        assert set(json.loads(row.files or "")) == {"image", "weight", "noise", "png"}
        assert (row.sha256, row.built_at is not None, row.validation_issues) == ("1" * 64, True, None)
        (artifact,) = world.products.qa_artifacts("night")
        assert Path(artifact.path).is_relative_to(world.site.qa_dir())
        assert Path(artifact.path).read_bytes() == b"\x89PNG"
        assert list(world.site.scratch_dir.iterdir()) == []

    def test_keeps_the_verdicts_on_tiles_that_were_left_out(self, world: MosaicWorld):
        strip_of(world, 3)
        world.add("2025-10-03T03:15:00", word="no beam")
        planned(world)
        (row,) = build(world)
        assert (row.tiles_used, row.tiles_rejected, reasons(row)) == (3, 1, {"2025-10-03T03:15:00": ["no beam"]})

    def test_names_the_checks_that_failed_and_keeps_the_mosaic(self, world: MosaicWorld):
        strip_of(world, 3)
        world.checks = (Check("coverage", 0.05, 0.1, False, "5 % are covered"), Check("flux", None, None, None, "-"))
        planned(world)
        (row,) = build(world)
        assert (row.status, row.validation_issues) == ("built", "coverage: 5 % are covered")
        assert mosaic_line(row)["good"] is False

    def test_is_not_done_twice_unless_forced_or_a_file_is_gone(self, world: MosaicWorld):
        strip_of(world, 3)
        planned(world)
        build(world)
        build(world)
        assert len(world.built) == 1
        build(world, force=True)
        assert len(world.built) == 2
        (world.site.mosaic_dir() / "night.noise.fits").unlink()
        build(world)
        assert len(world.built) == 3
        assert len(world.products.mosaics()) == 1

    def test_of_one_strip_that_fails_does_not_stop_the_other(self, world: MosaicWorld):
        strip_of(world, 3)
        strip_of(world, 20)
        world.errors["night"] = InputError("tile 2 is truncated")
        planned(world)
        with pytest.raises(PartialError, match="1 of 2 mosaics could not be made: night: tile 2 is truncated"):
            build(world)
        assert [(r.name, r.status, r.error) for r in rows_of(world.site, "night")] == [
            ("night", "failed", "tile 2 is truncated"),
            ("night_strip1", "built", None),
        ]
        world.errors.clear()
        assert {r.status for r in build(world)} == {"built"}
        assert [name for name, _ in world.built] == ["night", "night_strip1", "night"]

    def test_of_one_strip_that_fails_by_an_error_of_our_own_does_not_stop_the_other(self, world: MosaicWorld):
        strip_of(world, 3)
        strip_of(world, 20)
        world.errors["night"] = ZeroDivisionError("float division by zero")
        planned(world)
        with pytest.raises(PartialError, match=r"1 of 2 .*: night: ZeroDivisionError: float division by zero"):
            build(world)
        assert [r.status for r in rows_of(world.site, "night")] == ["failed", "built"]

    def test_of_one_strip_that_may_be_made_later_may_be_tried_again(self, world: MosaicWorld):
        strip_of(world, 3)
        strip_of(world, 20)
        world.errors["night"] = InputError("tile 2 is truncated", fix="make it again")
        world.errors["night_strip1"] = StorageError("no space left", fix="free some space")
        planned(world)
        with pytest.raises(
            StorageError, match=r"2 of 2 mosaics .* tile 2 is truncated; night_strip1: no space"
        ) as told:
            build(world)
        assert told.value.retry
        assert told.value.fix == "free some space"

    def test_on_a_full_disk_leaves_a_row_that_says_so_and_can_be_tried_again(self, world: MosaicWorld):
        strip_of(world, 3)
        planned(world)
        world.errors["night"] = StorageError("no space left for night.image.fits", fix="free some space")
        with pytest.raises(StorageError, match="no space left"):
            build(world)
        assert world.products.mosaic("night").status == "failed"
        assert list(world.site.scratch_dir.iterdir()) == []
        world.errors.clear()
        assert build(world)[0].status == "built"

    def test_that_ends_by_an_error_of_our_own_is_told_to_the_row_as_well(self, world: MosaicWorld):
        strip_of(world, 3)
        planned(world)
        world.errors["night"] = KeyError("CRVAL1")
        with pytest.raises(KeyError):
            build(world)
        assert world.products.mosaic("night").error == "KeyError: 'CRVAL1'"

    def test_of_what_was_not_planned_is_refused(self, world: MosaicWorld):
        with pytest.raises(MissingError, match="no mosaic night"):
            build(world)

    def test_by_two_at_once_is_refused_to_the_second(self, world: MosaicWorld):
        strip_of(world, 3)
        planned(world)
        with hold_plan(world.site, "night"), pytest.raises(BusyError, match="the mosaic night is held"):
            build(world)

    def test_of_one_strip_alone_is_by_its_name(self, world: MosaicWorld):
        strip_of(world, 3)
        strip_of(world, 20)
        planned(world)
        build(world, "night_strip1")
        assert [name for name, _ in world.built] == ["night_strip1"]

    def test_goes_where_it_is_told_without_the_suffix(self, world: MosaicWorld, tmp_path: Path):
        strip_of(world, 3)
        strip_of(world, 20)
        planned(world)
        rows = build(world, output=tmp_path / "mine" / "sky.img")
        assert [r.output_path for r in rows] == [
            str(tmp_path / "mine" / "sky.image.fits"),
            str(tmp_path / "mine" / "sky_strip1.image.fits"),
        ]
        build(world, output=tmp_path / "mine" / "sky.img")
        assert len(world.built) == 2

    def test_goes_nowhere_where_another_has_its_files_or_will_have(self, world: MosaicWorld, tmp_path: Path):
        strip_of(world, 3)
        for name in ("night", "mine", "later"):
            planned(world, name)
        build(world, "night")
        build(world, "mine", output=tmp_path / "sky.img")
        before = everything(world.products)
        for taken in (world.site.mosaic_dir() / "night.img", tmp_path / "sky", world.site.mosaic_dir() / "mine.fits"):
            with pytest.raises(InputError, match=r"is where the mosaic (night|mine) has its files"):
                build(world, "later", output=taken)
        assert everything(world.products) == before
        assert build(world, "mine", output=tmp_path / "sky.img")[0].name == "mine"

    def test_why_it_failed_is_not_hidden_by_scores_that_cannot_be_recorded(self, world: MosaicWorld, monkeypatch):
        strip_of(world, 3, 2)
        store_plan(world.site, plan(world))
        world.errors["night"] = InputError("tile 2 is truncated")

        def full(*_asked: object, **_more: object) -> None:
            raise StorageError("no space left")

        monkeypatch.setattr("nightbeam.contimg.mosaics.record_quality", full)
        with pytest.raises(InputError, match="tile 2 is truncated"):
            build(world, "night")
        assert world.products.mosaics()[0].error == "tile 2 is truncated"

    def test_a_plan_of_the_older_pipeline_is_built_of_its_paths(self, world: MosaicWorld):
        paths = strip_of(world, 3, 2)
        with world.products.database.write() as connection:
            columns, values = "name, created_at, status, method, tiles", "'old', 1.0, 'planned', 'mean', :tiles"
            lines = "\n".join(map(str, paths))
            connection.execute(text(f"INSERT INTO mosaics ({columns}) VALUES ({values})"), {"tiles": lines})
        world.errors["old"] = InputError("as far as this")
        with pytest.raises(InputError, match="as far as this"):
            build(world, "old")
        assert world.built == [("old", tuple(p.name for p in paths))]


class TestFilesOfAnEarlierPlan:
    def test_are_left_where_they_are_and_named(self, world: MosaicWorld):
        strip_of(world, 3)
        strip_of(world, 20)
        planned(world)
        build(world)
        orphan = world.site.mosaic_dir() / "night_strip1.image.fits"
        for path in strip_of(world, 20):
            path.write_text("NaN everywhere")
        planned(world)
        (row,) = build(world)
        assert (row.validation_issues, orphan.exists()) == (LEFT_BEHIND + str(orphan), True)
        # and still after the next, until somebody removes it
        world.add("2025-10-03T03:15:00")
        planned(world)
        assert build(world)[0].validation_issues == LEFT_BEHIND + str(orphan)
        orphan.unlink()
        world.add("2025-10-03T03:20:00")
        planned(world)
        assert build(world)[0].validation_issues is None

    def test_are_told_for_as_long_as_what_was_to_take_their_place_is_not_there(self, world: MosaicWorld):
        strip_of(world, 3)
        planned(world)
        build(world)
        image = str(world.site.mosaic_dir() / "night.image.fits")
        world.errors["night"] = InputError("tile 4 is truncated")
        for minute in (15, 20):
            world.add(f"2025-10-03T03:{minute}:00")
            planned(world)
            with pytest.raises(InputError):
                build(world)
            report = mosaic_report(world.products.mosaics()[0])
            assert (report["mosaic"]["status"], report["before"]["output_path"]) == ("failed", image)
            assert (report["before"]["tiles_used"], report["before"]["sha256"]) == (3, "1" * 64)
        world.errors.clear()
        (row,) = build(world)
        assert mosaic_report(row)["before"] is None
        assert "before" not in json.loads(row.parameters or "")

    def test_are_not_forgotten_by_a_plan_that_was_not_built(self, world: MosaicWorld):
        strip_of(world, 3)
        planned(world)
        build(world)
        world.add("2025-10-03T03:15:00")
        (row,) = planned(world)
        assert row.validation_issues == LEFT_BEHIND + str(world.site.mosaic_dir() / "night.image.fits")
        assert build(world)[0].validation_issues is None


class TestTheCatalogueToCompareWith:
    def test_is_none_unless_there_is_one(self, world: MosaicWorld):
        assert reference_sources(world.site, [Tile(path=Path("a"), group_id="g")]) == ("", [])

    def test_is_the_sites_at_the_tiles_frequency(self, tmp_path: Path):
        path = tmp_path / "sky.csv"
        path.write_text("name,ra_deg,dec_deg,flux_jy,spectral_index\nflat,1,2,1.0,0\nsteep,3,4,1.0,-1\n")
        world = MosaicWorld(tmp_path / "w", catalogue=path)
        where, sources = reference_sources(world.site, [Tile(path=Path("a"), freq_hz=2.8e9)])
        assert where == str(path)
        assert [(s.name, s.flux_jy) for s in sources] == [("flat", 1.0), ("steep", pytest.approx(0.5))]

    def test_that_is_not_there_is_one_clear_error(self, tmp_path: Path):
        world = MosaicWorld(tmp_path, catalogue=tmp_path / "gone.csv")
        with pytest.raises(MissingError, match=r"gone\.csv"):
            plan(world)


def test_the_sites_settings_are_the_options_and_the_callers_word_wins(tmp_path: Path):
    site = MosaicWorld(tmp_path, pb_cut=0.3, method="mean").site
    assert (options_of(site).pb_cut, options_of(site).method) == (0.3, "mean")
    told = options_of(site, method="weighted", include_unpbcor=True)
    assert (told.method, told.include_unpbcor, told.pb_cut) == ("weighted", True, 0.3)


@pytest.mark.parametrize(
    ("output", "stem"),
    [
        *[("a/n.img", "a/n"), ("n.image.fits", "n"), ("n.fits", "n"), ("n", "n"), (".img", ".img"), ("n.2.img", "n.2")],
        *[("sky_2025.10.02", "sky_2025.10.02"), ("sky_2025.10.02.fits", "sky_2025.10.02")],
    ],
)
def test_an_output_loses_its_suffix(output: str, stem: str):
    assert output_stem(Path(output)) == Path(stem)


def test_a_report_has_everything_of_a_mosaic(world: MosaicWorld):
    strip_of(world, 3)
    world.add("2025-10-03T03:15:00", word="no beam")
    planned(world)
    (row,) = build(world)
    report = mosaic_report(row)
    assert report["mosaic"]["observed"] == "2025-10-03T03:05:00Z"
    assert [(t["tile"], t["used"], t["reasons"]) for t in report["tiles"]][-2:] == [
        ("2025-10-03T03:10:00", True, ""),
        ("2025-10-03T03:15:00", False, "no beam"),
    ]
    assert report["checks"][0]["name"] == "coverage"
