"""Prefect's server and its SQLite file: the loop goes on while it waits for a lock; connections are not counted."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from nightbeam.catalog import patience
from nightbeam.catalog.patience import PLUGIN

ASKED = 6


def engine_like_prefects(file: Path, query: str, busy_ms: int = 3000) -> AsyncEngine:
    """An engine that begins its own transactions, with the limit that Prefect sets (shorter, for the tests)."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}{query}")

    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute(f"PRAGMA busy_timeout = {busy_ms}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", connect)
    return engine


async def longest_silence_s(engine: AsyncEngine) -> tuple[float, bool]:
    """Let one connection wait for another's lock while the loop throws a cursor of the waiting one away.

    Returns how long the loop stood still at most, and whether the waiting one got its lock in the end.
    """
    async with engine.connect() as holder, engine.connect() as waiter:
        await holder.execute(text("BEGIN IMMEDIATE"))
        raw = (await waiter.get_raw_connection()).driver_connection
        rubbish = raw._conn.execute("SELECT 1 UNION SELECT 2")  # as an exception would leave it behind
        waiting = asyncio.create_task(waiter.execute(text("BEGIN IMMEDIATE")))
        await asyncio.sleep(0.2)
        begin, longest = time.monotonic(), 0.0
        del rubbish
        while time.monotonic() < begin + 0.4:
            before = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - before)
        longest = max(longest, time.monotonic() - begin - 0.4)
        await holder.execute(text("COMMIT"))
        try:
            await waiting
            await waiter.execute(text("COMMIT"))
        except OperationalError:
            return longest, False
    return longest, True


def run(file: Path, query: str) -> tuple[float, bool]:
    async def both() -> tuple[float, bool]:
        engine = engine_like_prefects(file, query)
        try:
            return await longest_silence_s(engine)
        finally:
            await engine.dispose()

    return asyncio.run(both())


def test_the_loop_goes_on_while_a_lock_is_waited_for(tmp_path: Path):
    silence_s, served = run(tmp_path / "a.db", f"?plugin={PLUGIN}")
    assert served
    assert silence_s < 1.0


@pytest.mark.slow
def test_without_it_the_loop_stands_still_for_as_long_as_sqlite_waits(tmp_path: Path):
    silence_s, served = run(tmp_path / "a.db", "")
    assert not served
    assert silence_s > 2.0


def test_a_lock_that_is_never_free_is_an_error_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "_IN_ALL_S", 0.3)

    async def ask() -> None:
        engine = engine_like_prefects(tmp_path / "a.db", f"?plugin={PLUGIN}")
        async with engine.connect() as holder, engine.connect() as waiter:
            await holder.execute(text("BEGIN IMMEDIATE"))
            with pytest.raises(OperationalError, match="locked"):
                await waiter.execute(text("BEGIN IMMEDIATE"))
            await holder.execute(text("ROLLBACK"))
        await engine.dispose()

    asyncio.run(ask())


def test_what_cannot_heal_is_not_waited_for(tmp_path: Path):
    async def ask() -> float:
        engine = engine_like_prefects(tmp_path / "a.db", f"?plugin={PLUGIN}")
        async with engine.connect() as writer, engine.connect() as reader:
            await writer.execute(text("CREATE TABLE t (n)"))
            await reader.execute(text("BEGIN"))
            await reader.execute(text("SELECT * FROM t"))
            await writer.execute(text("INSERT INTO t VALUES (1)"))
            begin = time.monotonic()
            with pytest.raises(OperationalError, match="locked"):  # its view is from before that
                await reader.execute(text("INSERT INTO t VALUES (2)"))
            took = time.monotonic() - begin
            await reader.execute(text("ROLLBACK"))
        await engine.dispose()
        return took

    assert asyncio.run(ask()) < 5.0


async def write_after_reading(engine: AsyncEngine) -> int:
    """Let two transactions read and then write, as Prefect begins them; return the rows there are.

    The second begins when the first has read. The first writes when the second has read too, or after a while: where
    transactions wait for each other, the second cannot read before the first has ended.
    """
    first_has_read, second_has_read = asyncio.Event(), asyncio.Event()

    async def one(*, first: bool) -> None:
        async with engine.connect() as connection:
            if not first:
                await first_has_read.wait()
            await connection.exec_driver_sql("BEGIN DEFERRED")
            await connection.execute(text("SELECT * FROM t"))
            if first:
                first_has_read.set()
                with suppress(TimeoutError):
                    await asyncio.wait_for(second_has_read.wait(), 0.5)
            else:
                second_has_read.set()
            await connection.execute(text("INSERT INTO t VALUES (1)"))
            await connection.execute(text("COMMIT"))

    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE t (n)"))
    try:
        # Both have ended, and closed what they had, before one's error is raised.
        for error in await asyncio.gather(one(first=True), one(first=False), return_exceptions=True):
            if error is not None:
                raise error
        async with engine.connect() as connection:
            return len((await connection.execute(text("SELECT * FROM t"))).all())
    finally:
        await engine.dispose()


def test_transactions_that_read_and_then_write_wait_for_each_other(tmp_path: Path):
    engine = engine_like_prefects(tmp_path / "a.db", f"?plugin={PLUGIN}")
    assert asyncio.run(write_after_reading(engine)) == 2


def test_without_it_one_of_them_fails(tmp_path: Path):
    engine = engine_like_prefects(tmp_path / "a.db", "", busy_ms=50)
    with pytest.raises(OperationalError, match="locked"):
        asyncio.run(write_after_reading(engine))


def test_a_transaction_of_prefects_own_has_the_lock_when_it_has_begun(tmp_path: Path):
    """Should Prefect begin in other words one day, this notices."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    async def ask() -> None:
        config = AioSqliteConfiguration(f"sqlite+aiosqlite:///{tmp_path}/a.db?plugin={PLUGIN}")
        engine = await config.engine()
        try:
            async with await config.session(engine) as session, config.begin_transaction(session):
                await session.execute(text("SELECT 1"))
                other = sqlite3.connect(tmp_path / "a.db", timeout=0)
                with closing(other), pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute("BEGIN IMMEDIATE")
        finally:
            await engine.dispose()

    asyncio.run(ask())


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
