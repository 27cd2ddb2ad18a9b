"""One process at a time, of all machines that reach a PostgreSQL."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from nightbeam.core.errors import BusyError, UnavailableError

__all__ = ["has_advisory_locks", "one_at_a_time"]

_ASK_EVERY_S = 0.2
#: A holder that is cut off is given up by the server after 30 + 3 * 10 s; by itself it asks after two hours whether it
#: is there. On a socket of the same machine, which knows of a death, these say nothing.
_KEPT_ALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}


def has_advisory_locks(url: str | None) -> bool:
    """Say whether a URL is that of a database which knows locks that go with whoever holds them."""
    return bool(url) and make_url(str(url)).get_backend_name() == "postgresql"


@contextmanager
def one_at_a_time(url: str, name: str, *, wait_s: float) -> Iterator[None]:
    """Hold an advisory lock of a PostgreSQL database for the block; the server frees it when its holder dies.

    Where the holder's machine is cut off it does so after a minute.

    Parameters
    ----------
    url
        Of the database, whatever driver it names. Locks of one name in two databases are two.
    name
        What is held.
    wait_s
        How long to wait for the present holder.

    Raises
    ------
    BusyError
        If it is still held then.
    UnavailableError
        If the server cannot be reached.
    """
    key = int.from_bytes(hashlib.sha256(f"nightbeam {name}".encode()).digest()[:8], "big", signed=True)
    plain = make_url(url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(plain, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    until = time.monotonic() + wait_s
    try:
        connection = engine.connect()
    except exc.OperationalError as error:
        said = str(error.orig).strip().partition("\n")[0]
        raise UnavailableError(f"the database that keeps {name} to one cannot be asked: {said}") from error
    with connection:
        for setting, value in _KEPT_ALIVE.items():
            connection.execute(sa.text(f"SET {setting} = {value}"))
        while not connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar():
            if time.monotonic() >= until:
                raise BusyError(f"{name} is still held by somebody after {wait_s:.0f} s", fix="wait for it to end")
            time.sleep(_ASK_EVERY_S)
        yield
