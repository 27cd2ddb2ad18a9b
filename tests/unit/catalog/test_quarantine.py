"""The table of what was put aside, in SQLite and in PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightbeam.catalog import Products
from nightbeam.catalog.quarantine import Quarantine
from nightbeam.core.errors import MissingError

MS, HERE, AGAIN = Path("/ms/a.ms"), Path("/quarantine/day/a.ms"), Path("/quarantine/day/a.ms.2")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def quarantine(request: pytest.FixtureRequest, tmp_path: Path) -> Quarantine:
    if request.param == "sqlite":
        return Products(f"sqlite:///{tmp_path}/products.sqlite3").quarantine
    return Products(request.getfixturevalue("postgresql_url")).quarantine


def begin(quarantine: Quarantine, path: Path = HERE, *, now: float = 1000.0) -> None:
    quarantine.begin(path, original=MS, kind="ms", reason="31.0 d old", size_bytes=5_000_000_000, now=now)


def test_a_product_is_moving_then_held_then_restored_or_deleted(quarantine: Quarantine):
    begin(quarantine)
    row = quarantine.row(HERE)
    assert row is not None
    assert (row.state, row.original_path, row.size_bytes, row.ended_at) == ("moving", str(MS), 5_000_000_000, None)
    quarantine.become(HERE, "held", moved=True, now=1005.0)
    row = quarantine.row(HERE)
    assert row is not None
    assert (row.state, row.moved_at) == ("held", 1005.0)
    quarantine.become(HERE, "deleting", now=2000.0)
    quarantine.become(HERE, "deleted", now=2001.0)
    row = quarantine.row(HERE)
    assert row is not None
    assert (row.state, row.moved_at, row.ended_at) == ("deleted", 1005.0, 2001.0)


def test_rows_are_found_by_state_and_by_where_they_lay(quarantine: Quarantine):
    begin(quarantine)
    quarantine.become(HERE, "restored", now=1500.0)
    begin(quarantine, AGAIN, now=2000.0)
    assert [row.path for row in quarantine.rows(original=MS)] == [str(HERE), str(AGAIN)]
    assert [row.path for row in quarantine.rows(states=("moving", "held"))] == [str(AGAIN)]
    assert quarantine.rows(original=Path("/ms/b.ms")) == []


def test_what_was_never_moved_is_forgotten_and_what_is_not_there_changes_no_state(quarantine: Quarantine):
    begin(quarantine)
    quarantine.forget(HERE)
    assert quarantine.rows() == []
    with pytest.raises(MissingError, match="nothing in quarantine is at"):
        quarantine.become(HERE, "held")
