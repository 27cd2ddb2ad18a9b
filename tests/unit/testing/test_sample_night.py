"""The made-up night has something of everything, and lies where it was told to."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from nightbeam.catalog import Products, Queue, Registry, State
from nightbeam.testing.sample_night import HOSTILE, sample_night

NOW = datetime(2026, 11, 21, 6, 15, 2, tzinfo=UTC)


@pytest.mark.slow
def test_there_is_a_group_in_each_state_and_a_set_and_a_mosaic_of_each_kind(tmp_path):
    home = tmp_path / "site"
    night = sample_night(home / "state", now=NOW, groups=16)
    c = night.settings.contimg
    queue = Queue(str(c.queue_db))
    assert {state: queue.counts()[state] > 0 for state in State} == dict.fromkeys(State, True)
    assert [row.group_id for row in queue.waiting_for_gains()] == [night.group("waiting")]
    assert {one.status for one in Registry(str(c.registry_db)).sets()} == {"active", "retired", "failed"}
    images = Products(str(c.products_db)).images()
    assert {bool(image.cal_borrowed) for image in images} == {True, False}
    assert all(Path(image.path).is_file() for image in images)
    assert set(home.iterdir()) == {home / "state"}


@pytest.mark.slow
def test_what_is_hostile_is_so_where_people_write(tmp_path):
    night = sample_night(tmp_path / "state", now=NOW, groups=16, hostile=True)
    error = Queue(str(night.settings.contimg.queue_db)).group(night.group("failed")).error
    assert HOSTILE in str(error)
