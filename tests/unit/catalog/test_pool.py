"""The pool of a server's connections: found by name, without a limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import TimeoutError as PoolTimeout

from nightbeam.catalog.pool import PLUGIN

ASKED = 6


def test_more_connections_than_the_pool_keeps_are_open_at_once(tmp_path: Path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/q.sqlite3?plugin={PLUGIN}", pool_size=2, max_overflow=1, pool_timeout=0
    )
    held = [engine.connect() for _ in range(ASKED)]
    assert len({id(one.connection.dbapi_connection) for one in held}) == ASKED
    for one in held:
        one.close()
    engine.dispose()


def test_without_it_the_limit_holds(tmp_path: Path):
    engine = create_engine(f"sqlite:///{tmp_path}/q.sqlite3", pool_size=2, max_overflow=1, pool_timeout=0)
    held = [engine.connect() for _ in range(3)]
    with pytest.raises(PoolTimeout):
        engine.connect()
    for one in held:
        one.close()
    engine.dispose()
