"""Bring Prefect's own database up to date, before several processes of its server use it.

Each of them would do so at its start, all at the same moment, and on a new database all but one would die of it.
Run as ``python -m deployments.prepare``, with the environment of the server.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import nullcontext

from prefect.server.database import provide_database_interface
from prefect.server.models.block_registration import run_block_auto_registration

from nightbeam.catalog.serial import has_advisory_locks, one_at_a_time

__all__ = ["prepare"]

_DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
#: Of the 300 s that the supervisor gives.
_WAIT_S = 240.0


async def prepare() -> None:
    """Make or migrate the tables, and register the block types that come with Prefect."""
    database = provide_database_interface()
    await database.create_db()
    async with await database.session() as session:
        await run_block_auto_registration(session=session)


def main() -> None:
    """Prepare, while no other machine does so for the same database."""
    url = os.environ.get(_DATABASE, "")
    alone = one_at_a_time(url, "Prefect's database", wait_s=_WAIT_S) if has_advisory_locks(url) else nullcontext()
    with alone:
        asyncio.run(prepare())


if __name__ == "__main__":
    main()
