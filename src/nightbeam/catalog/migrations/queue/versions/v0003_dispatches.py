"""How often a group was handed to be started, so that each time has a key of its own.

Revision ID: 0003
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_columns

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the count."""
    ensure_columns("ingest_queue", sa.Column("dispatches", sa.Integer, nullable=False, server_default="0"))
