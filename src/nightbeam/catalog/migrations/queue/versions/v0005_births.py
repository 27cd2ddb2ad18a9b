"""When the process of an owner began, said so that setting the clock does not change it.

Revision ID: 0005
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_columns

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; rows that have it not are judged by their time."""
    ensure_columns("ingest_queue", sa.Column("owner_birth", sa.Text))
