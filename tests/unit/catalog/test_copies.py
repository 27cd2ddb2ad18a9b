"""What other tests begin with, in place of what migrations make each time, is what the migrations make."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog.remote import Database

NAMES = ("queue", "registry", "products", "elog")
SEED = """
CREATE TABLE caltables (id INTEGER PRIMARY KEY, set_name TEXT NOT NULL, path TEXT NOT NULL UNIQUE,
  table_type TEXT NOT NULL, order_index INTEGER NOT NULL, cal_field TEXT, refant TEXT, created_at REAL NOT NULL,
  valid_start_mjd REAL, valid_end_mjd REAL, status TEXT NOT NULL, notes TEXT);
INSERT INTO caltables VALUES (1, 'old', '/cal/x_kcal', 'K', 10, '0', '103', 5.0, NULL, NULL, 'active', NULL);
"""


def content(file: Path) -> tuple[Any, ...]:
    with closing(sqlite3.connect(file)) as raw:
        told = [raw.execute(f"PRAGMA {of}").fetchone() for of in ("user_version", "journal_mode", "encoding")]
        return told, list(raw.iterdump())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_was_copied_is_as_one_that_was_migrated(tmp_path: Path, copies: Any, name: Any):
    Database(f"sqlite:///{tmp_path}/migrated", name)
    with copies.used():
        Database(f"sqlite:///{tmp_path}/copied", name)
    assert content(tmp_path / "copied") == content(tmp_path / "migrated")


@pytest.mark.system
def test_what_was_copied_to_a_server_is_as_what_was_migrated_there(postgresql_url: str, copies: Any, emptied: Any):
    for name in NAMES:
        Database(postgresql_url, name)
    migrated = copies.dumped(postgresql_url)
    emptied()
    with copies.used():
        for name in NAMES:
            Database(postgresql_url, name)
    assert copies.dumped(postgresql_url) == migrated


def test_what_holds_something_is_migrated_and_not_overwritten(tmp_path: Path, copies: Any):
    with closing(sqlite3.connect(tmp_path / "older")) as raw:
        raw.executescript(SEED)
    with copies.used():
        Database(f"sqlite:///{tmp_path}/older", "registry")
    with closing(sqlite3.connect(tmp_path / "older")) as raw:
        assert raw.execute("SELECT set_name FROM caltables").fetchall() == [("old",)]
