"""How many connections to its database a server may hold at a time.

SQLAlchemy loads this by name: ``sqlite+aiosqlite:///FILE?plugin=nightbeam_wide_pool``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import URL, CreateEnginePlugin
from sqlalchemy.pool import Pool

__all__ = ["PLUGIN", "WidePool"]

#: Name of the entry point in pyproject.toml.
PLUGIN = "nightbeam_wide_pool"


class WidePool(CreateEnginePlugin):
    """Lets a pool open as many connections as are asked for at once.

    Prefect's server has 15 for SQLite, and no setting for more. Where 14 wait for the one that writes, and that one
    asks for a second connection before it ends, all wait for each other until their time limits of 30 and 60 s.
    """

    def update_url(self, url: URL) -> URL:
        """Return the URL as it is: this plugin has no options of its own in it."""
        return url

    def handle_pool_kwargs(self, pool_cls: type[Pool], pool_args: dict[str, Any]) -> None:
        """Take away the upper limit."""
        del pool_cls
        pool_args["max_overflow"] = -1
