"""How Prefect's server shares its SQLite database with itself.

SQLAlchemy loads this by name: ``sqlite+aiosqlite:///FILE?plugin=nightbeam_patience``.

Prefect lets SQLite wait 60 s for a lock, in a thread for each connection. While SQLite waits it holds the connection's
mutex, which Python needs to throw away a cursor of that connection. When the garbage collector does so in the thread
of the event loop, the loop stands still; and who has the lock needs the loop to let go of it. For 60 s the server then
answers nobody, after which every request that waited fails. So here SQLite waits a moment only, and the rest of the
waiting is done by the loop.

Prefect's transactions read first and write later. One whose view has become old by then can never write: the request
fails with 503, and its client asks again after 2 s and more. So a transaction takes the lock when it begins, as Prefect
itself does in the places where it has noticed.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, CreateEnginePlugin, Engine
from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only

__all__ = ["PLUGIN", "Patience"]

#: Name of the entry point in pyproject.toml.
PLUGIN = "nightbeam_patience"

_IN_SQLITE_MS = 50
_IN_ALL_S = 60.0
_SHORTEST_S, _LONGEST_S = 0.005, 0.1
_BEGIN = {"BEGIN DEFERRED": "BEGIN IMMEDIATE"}
_DONE = True  # tells SQLAlchemy that the statement was executed


class Patience(CreateEnginePlugin):
    """Waits for a locked database in the event loop, before a transaction reads, with as many connections as asked for.

    Prefect has 15 connections for SQLite and no setting for more. Where 14 wait for the one that writes, and that one
    asks for a second connection before it ends, all wait for each other.
    """

    def update_url(self, url: URL) -> URL:
        """Return the URL as it is: this plugin has no options of its own in it."""
        return url

    def handle_pool_kwargs(self, pool_cls: type[Pool], pool_args: dict[str, Any]) -> None:
        """Take away the upper limit."""
        del pool_cls
        pool_args["max_overflow"] = -1

    def engine_created(self, engine: Engine) -> None:
        """Take over the waiting, where the engine is an asynchronous one of SQLite."""
        if engine.dialect.name == "sqlite" and engine.dialect.is_async:
            event.listen(engine.pool, "checkout", _wait_a_moment_only)
            event.listen(engine, "do_execute", _execute)
            event.listen(engine, "do_execute_no_params", _execute_no_params)
            event.listen(engine, "do_executemany", _executemany)


def _wait_a_moment_only(connection: Any, record: Any, proxy: Any) -> None:
    # Prefect sets its own limit when it connects, after every listener of ours for that.
    del proxy
    if not record.info.get(PLUGIN):
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_IN_SQLITE_MS}")
        cursor.close()
        record.info[PLUGIN] = True


def _execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    del context
    return _patiently(cursor.execute, _BEGIN.get(statement, statement), parameters)


def _execute_no_params(cursor: Any, statement: str, context: Any) -> bool:
    del context
    return _patiently(cursor.execute, _BEGIN.get(statement, statement))


def _executemany(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    del context
    return _patiently(cursor.executemany, statement, parameters)


def _patiently(execute: Any, *arguments: Any) -> bool:
    until, pause_s = time.monotonic() + _IN_ALL_S, _SHORTEST_S
    while True:
        try:
            execute(*arguments)
        except sqlite3.OperationalError as error:
            if not _may_heal(error) or time.monotonic() > until:
                raise
        else:
            return _DONE
        await_only(asyncio.sleep(pause_s * random.uniform(0.5, 1.0)))
        pause_s = min(2 * pause_s, _LONGEST_S)


def _may_heal(error: sqlite3.OperationalError) -> bool:
    """Say whether another connection has the lock; a reader whose view has become old never gets it."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
