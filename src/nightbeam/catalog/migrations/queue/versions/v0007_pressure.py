"""How far behind the site is, how the image of each group is made, and what it is owed.

Revision ID: 0007
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_columns, ensure_index, ensure_table, real

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table; groups that are there are owed nothing."""
    ensure_columns("ingest_queue", sa.Column("imaging", sa.Text), sa.Column("owed", sa.Text))
    ensure_index("idx_ingest_queue_owed_start", "ingest_queue", ["owed", "start_mjd"])
    ensure_table(
        "pressure",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("since", real(), nullable=False),
        sa.Column("waiting", sa.Integer, nullable=False),
    )
