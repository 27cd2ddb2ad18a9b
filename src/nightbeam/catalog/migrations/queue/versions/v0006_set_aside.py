"""Files that are no readable subbands are moved aside; files that were rewritten after their group was taken.

Revision ID: 0006
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_columns, ensure_index, ensure_table, real

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the columns."""
    ensure_columns("subband_files", sa.Column("changed_at", real()))
    ensure_columns("bad_files", sa.Column("not_moved", sa.Text))
    ensure_table(
        "set_aside_files",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("original_path", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("mtime", real()),
        sa.Column("moved_at", real(), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("ended_at", real()),
    )
    ensure_index("idx_set_aside_files_original", "set_aside_files", ["original_path"])
