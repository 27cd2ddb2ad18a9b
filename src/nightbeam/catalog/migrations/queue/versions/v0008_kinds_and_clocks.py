"""What each file says of its observation, which group a bad file contradicts, and what clocks said.

Revision ID: 0008
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_columns, ensure_table, real

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the columns."""
    ensure_columns(
        "subband_files",
        sa.Column("start_mjd", real()),
        sa.Column("mid_mjd", real()),
        sa.Column("dec_deg", real()),
        sa.Column("layout", sa.Text),
    )
    ensure_columns(
        "duplicate_files", sa.Column("start_mjd", real()), sa.Column("dec_deg", real()), sa.Column("layout", sa.Text)
    )
    ensure_columns("bad_files", sa.Column("group_id", sa.Text))
    ensure_table(
        "clocks",
        sa.Column("boot", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("wall", real(), nullable=False),
        sa.Column("since_boot", real(), nullable=False),
        sa.Column("stepped", sa.Integer, nullable=False, server_default="0"),
        sa.Column("beats", sa.Text),
    )
