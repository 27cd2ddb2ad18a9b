"""Checksum, time and declination of each table; one row per set, also of those that were turned down.

Revision ID: 0002
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_columns, ensure_table, real

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what the seed lacks."""
    ensure_columns(
        "caltables",
        sa.Column("sha256", sa.Text),
        sa.Column("mid_mjd", real()),
        sa.Column("dec_deg", real()),
    )
    ensure_table(
        "calsets",
        sa.Column("set_name", sa.Text, primary_key=True),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("group_id", sa.Text),
        sa.Column("calibrator", sa.Text),
        sa.Column("mid_mjd", real()),
        sa.Column("dec_deg", real()),
        sa.Column("reason", sa.Text),
        sa.Column("report", sa.Text),
        sa.Column("created_at", real(), nullable=False),
    )
