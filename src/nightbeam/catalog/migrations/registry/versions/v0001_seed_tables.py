"""The calibration registry as the DSA-110 pipeline of October 2025 made it.

Revision ID: 0001
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_index, ensure_table, real

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, or complete that of an older seed file."""
    ensure_table(
        "caltables",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("set_name", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("table_type", sa.Text, nullable=False),
        sa.Column("order_index", sa.Integer, nullable=False),
        sa.Column("cal_field", sa.Text),
        sa.Column("refant", sa.Text),
        sa.Column("created_at", real(), nullable=False),
        sa.Column("valid_start_mjd", real()),
        sa.Column("valid_end_mjd", real()),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("notes", sa.Text),
        sa.UniqueConstraint("path"),
    )
    ensure_index("idx_caltables_set", "caltables", ["set_name"])
    ensure_index("idx_caltables_valid", "caltables", ["valid_start_mjd", "valid_end_mjd"])
