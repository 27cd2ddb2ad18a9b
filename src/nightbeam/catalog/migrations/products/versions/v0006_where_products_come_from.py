"""Every product knows what it was made of, by whom and with which settings.

Revision ID: 0006
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_index, ensure_table, real

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; products that are there already stay without a history."""
    ensure_table(
        "configurations",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("first_used_at", real(), nullable=False),
    )
    ensure_table(
        "provenance",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
        sa.Column("digest", sa.Text),
        sa.Column("digest_kind", sa.Text),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("made_at", real(), nullable=False),
        sa.Column("run", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("programs", sa.Text),
        sa.Column("configuration", sa.Text),
        sa.Column("files", sa.Text),
    )
    ensure_index("idx_provenance_subject", "provenance", ["subject"])
    ensure_table(
        "provenance_inputs",
        sa.Column("product", sa.Text, primary_key=True),
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("mtime", real()),
        sa.Column("digest", sa.Text),
    )
    ensure_index("idx_provenance_inputs_path", "provenance_inputs", ["path"])
    ensure_table(
        "group_steps",
        sa.Column("group_id", sa.Text, primary_key=True),
        sa.Column("step", sa.Text, primary_key=True),
        sa.Column("run", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("configuration", sa.Text),
        sa.Column("seconds", real()),
        sa.Column("finished_at", real(), nullable=False),
    )
