"""The products: upserts keep what is known, one row per image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nightbeam.catalog import Products
from nightbeam.catalog.model import ImageRow
from nightbeam.core.errors import MissingError, UsageError

MS = Path("/ms/2025-10-02T01:02:03.ms")


@pytest.fixture
def products(database_url: str, open_new: Callable[..., Products]) -> Products:
    return open_new(Products, database_url)


def test_an_upsert_keeps_what_it_does_not_say(products: Products):
    products.upsert_ms(MS, start_mjd=1.0, status="in_progress", stage="concatenated", now=10.0)
    row = products.upsert_ms(MS, mid_mjd=2.0, status=None, now=20.0)
    assert (row.start_mjd, row.mid_mjd, row.status, row.stage_updated_at) == (1.0, 2.0, "in_progress", 10.0)
    assert products.upsert_ms(MS, stage="imaged", now=30.0).stage_updated_at == 30.0


def test_a_caller_without_an_opinion_does_not_undo_cal_applied(products: Products):
    products.upsert_ms(MS, cal_applied=1)
    assert products.upsert_ms(MS, stage="imaged").cal_applied == 1
    assert products.upsert_ms(MS, cal_applied=0).cal_applied == 0
    assert products.upsert_ms(Path("/ms/other.ms"), stage="imaged").cal_applied == 0


def test_an_image_has_one_row_however_often_it_is_made(products: Products):
    first = products.upsert_image(Path("/i/a.fits"), ms_path=MS, noise_jy=0.1, pbcor=1, group_id="g", now=1.0)
    second = products.upsert_image(Path("/i/a.fits"), ms_path=MS, noise_jy=0.2, parameters={"niter": 5}, now=2.0)
    assert (first.id, second.noise_jy, second.pbcor, second.created_at) == (second.id, 0.2, 1, 2.0)
    assert json.loads(second.parameters or "") == {"niter": 5}
    assert len(products.images(group_id="g")) == len(products.images(ms_path=MS)) == 1


def test_an_unknown_column_is_refused(products: Products):
    with pytest.raises(UsageError, match="ms_index has no column stadge"):
        products.upsert_ms(MS, stadge="imaged")
    with pytest.raises(UsageError, match="images has no column noise"):
        products.upsert_image(Path("/i/a.fits"), ms_path=MS, noise=1.0)


def test_the_index_is_read_by_stage_and_status_newest_change_first(products: Products):
    products.upsert_ms(Path("/ms/a.ms"), stage="imaged", status="done", now=1.0)
    products.upsert_ms(Path("/ms/b.ms"), stage="imaged", status="done", now=2.0)
    products.upsert_ms(Path("/ms/c.ms"), stage="concatenated", status="failed", now=3.0)
    assert [r.path for r in products.ms_index(stage="imaged")] == ["/ms/b.ms", "/ms/a.ms"]
    assert [r.path for r in products.ms_index(status="failed")] == ["/ms/c.ms"]
    assert len(products.ms_index(limit=1)) == 1


def test_qa_artifacts_are_one_row_each(products: Products):
    for when in (1.0, 2.0):
        products.put_qa_artifact("g", "image.png", Path("/qa/g/image.png"), now=when)
    (row,) = products.qa_artifacts("g")
    assert (row.name, row.path, row.created_at) == ("image.png", "/qa/g/image.png", 2.0)


def _image(products: Products, name: str, **values: object) -> None:
    products.upsert_image(Path(f"/i/{name}.fits"), ms_path=Path(f"/ms/{name}.ms"), **values)


def _names(rows: list[ImageRow]) -> list[str]:
    return [Path(row.path).stem for row in rows]


class TestTilesAreFoundByWhenTheyWereObserved:
    def test_from_the_begin_of_the_window_and_before_its_end_whenever_they_were_made(self, products: Products):
        for n, mid in enumerate((60951.0, 60950.9999, 60952.0, 60951.5)):
            _image(products, f"t{n}", mid_mjd=mid, now=float(n))
        assert _names(products.tiles_observed(60951.0, 60952.0)) == ["t0", "t3"]
        assert _names(products.tiles_observed(end_mjd=60951.0)) == ["t1"]
        assert _names(products.tiles_observed()) == ["t1", "t0", "t3", "t2"]

    def test_a_row_of_an_older_database_gets_the_time_of_its_measurement_set(self, products: Products):
        for name, mid in (("in", 60951.2), ("out", 60953.0), ("unknown", None)):
            _image(products, name)
            products.upsert_ms(Path(f"/ms/{name}.ms"), mid_mjd=mid, stage="imaged")
        _image(products, "no-ms")
        found = products.tiles_observed(60951.0, 60952.0)
        assert [(Path(r.path).stem, r.mid_mjd) for r in found] == [("in", 60951.2), ("no-ms", None), ("unknown", None)]

    def test_images_of_another_type_are_no_tiles(self, products: Products):
        _image(products, "deep", mid_mjd=60951.2, type="deep")
        assert products.tiles_observed(60951.0, 60952.0) == []
        assert _names(products.tiles_observed(60951.0, 60952.0, kind="deep")) == ["deep"]

    def test_the_index_is_used(self, products: Products):
        window = "mid_mjd >= 60951.0 AND mid_mjd < 60952.0 AND type = '5min'"
        explain = "EXPLAIN QUERY PLAN"
        with products.database.read() as connection:
            if connection.dialect.name == "postgresql":  # which reads an empty table whole if it may
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                explain = "EXPLAIN"
            steps = connection.exec_driver_sql(f"{explain} SELECT * FROM images WHERE {window}").all()
        assert any("idx_images_mid_mjd" in step[-1] for step in steps)


class TestAPlan:
    def test_has_the_rows_that_it_was_given_last_and_no_others(self, products: Products):
        first = products.put_plan("night", [{"name": n, "strip": k} for k, n in enumerate(("night", "night_strip1"))])
        products.mosaic_built("night", output_path="/m/night.fits", noise_jy=0.01, now=5.0)
        (row,) = products.put_plan("night", [{"name": "night", "strip": 0, "tiles": "/i/a.fits"}], now=9.0)
        assert (row.id, row.status, row.tiles, row.created_at) == (first[0].id, "planned", "/i/a.fits", 9.0)
        assert (row.output_path, row.noise_jy, row.built_at) == (None, None, None)
        assert [m.name for m in products.mosaics()] == ["night"]

    def test_leaves_other_plans_alone_and_takes_over_a_row_that_an_older_pipeline_left(self, products: Products):
        products.put_plan("other", [{"name": "other", "strip": 0}])
        with products.database.write() as connection:
            columns = "name, created_at, status, method, tiles, output_path"
            values = "'night', 1.0, 'built', 'mean', '/i/old', '/m/old'"
            connection.exec_driver_sql(f"INSERT INTO mosaics ({columns}) VALUES ({values})")
        products.put_plan("night", [{"name": "night", "strip": 0, "method": "weighted"}])
        assert {m.name: (m.plan, m.method) for m in products.mosaics()} == {
            "night": ("night", "weighted"),
            "other": ("other", None),
        }

    def test_is_written_whole_or_not_at_all(self, products: Products):
        products.put_plan("night", [{"name": "night", "strip": 0}])
        with pytest.raises(UsageError, match="mosaics has no column strap"):
            products.put_plan("night", [{"name": "a", "strip": 0}, {"name": "b", "strap": 1}])
        with pytest.raises(UsageError, match="one name"):
            products.put_plan("night", [{"name": "a"}, {"name": "a"}])
        assert [m.name for m in products.mosaics(plan="night")] == ["night"]

    def test_of_no_rows_is_gone(self, products: Products):
        products.put_plan("night", [{"name": "night", "strip": 0}])
        assert products.put_plan("night", []) == []
        assert products.mosaic("night") is None


def test_a_mosaic_is_built_or_failed_and_a_later_word_replaces_an_earlier(products: Products):
    products.put_plan("night", [{"name": "night", "strip": 0}])
    assert (products.mosaic_failed("night", "no room").status, products.mosaic("night").error) == ("failed", "no room")
    row = products.mosaic_built("night", checks=[{"name": "coverage", "ok": True}], now=7.0)
    assert (row.status, row.error, row.built_at) == ("built", None, 7.0)
    assert json.loads(row.checks or "") == [{"name": "coverage", "ok": True}]
    with pytest.raises(MissingError, match="no mosaic morning"):
        products.mosaic_failed("morning", "no room")


def test_mosaics_are_listed_newest_data_first_and_those_of_a_plan_by_strip(products: Products):
    products.put_plan("late", [{"name": "late_strip1", "strip": 1}, {"name": "late", "strip": 0, "mid_mjd": 60952.0}])
    products.put_plan("early", [{"name": "early", "strip": 0, "mid_mjd": 60951.0}])
    assert [m.name for m in products.mosaics()] == ["late", "early", "late_strip1"]
    assert [m.name for m in products.mosaics(limit=1)] == ["late"]
    assert [m.name for m in products.mosaics(plan="late")] == ["late", "late_strip1"]


def test_a_night_has_one_row(products: Products):
    products.put_night("2025-10-02", "failed", tiles=3, attempts=1, error="no room", now=1.0)
    products.put_night("2025-10-02", "done", tiles=3, now=2.0)
    products.put_night("2025-10-03", "empty", tiles=0, now=3.0)
    row = products.night("2025-10-02")
    assert (row.state, row.tiles, row.attempts, row.error, row.updated_at) == ("done", 3, 0, None, 2.0)
    assert [n.night for n in products.nights()] == ["2025-10-03", "2025-10-02"]
    assert products.night("2025-10-04") is None


@pytest.mark.system
def test_a_plan_is_replaced_on_postgresql_as_well(postgresql_url: str):
    products = Products(postgresql_url)
    products.put_plan("night", [{"name": "night", "strip": 0}, {"name": "night_strip1", "strip": 1}])
    _image(products, "t", mid_mjd=60951.5)
    _image(products, "unknown")
    products.put_plan("night", [{"name": "night", "strip": 0, "verdicts": [{"path": "/i/t.fits"}]}])
    assert [m.name for m in products.mosaics()] == ["night"]
    assert _names(products.tiles_observed(60951.0, 60952.0)) == ["t", "unknown"]
    assert _names(products.tiles_observed()) == ["t", "unknown"]
