"""Bring Prefect's own database up to date, before several processes of its server use it.

Each of them would do so at its start, all at the same moment, and on a new database all but one would die of it.
Run as ``python -m deployments.prepare``, with the environment of the server.
"""

from __future__ import annotations

import asyncio

from prefect.server.database import provide_database_interface
from prefect.server.models.block_registration import run_block_auto_registration

__all__ = ["prepare"]


async def prepare() -> None:
    """Make or migrate the tables, and register the block types that come with Prefect."""
    database = provide_database_interface()
    await database.create_db()
    async with await database.session() as session:
        await run_block_auto_registration(session=session)


if __name__ == "__main__":
    asyncio.run(prepare())
