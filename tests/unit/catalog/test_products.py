"""The products: upserts keep what is known, one row per image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nightbeam.catalog import Products
from nightbeam.core.errors import UsageError

MS = Path("/ms/2025-10-02T01:02:03.ms")


@pytest.fixture
def products(database_url: str) -> Products:
    return Products(database_url)


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
