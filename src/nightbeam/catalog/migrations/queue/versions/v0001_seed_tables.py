"""The queue as the DSA-110 pipeline of October 2025 made it.

Revision ID: 0001
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_table, real

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, or complete those of an older seed file."""
    ensure_table(
        "ingest_queue",
        sa.Column("group_id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("received_at", real(), nullable=False),
        sa.Column("last_update", real(), nullable=False),
        sa.Column("expected_subbands", sa.Integer),
        sa.Column("retry_count", sa.Integer, nullable=False, server_default="0"),
        sa.Column("error", sa.Text),
        sa.Column("checkpoint_path", sa.Text),
        sa.Column("processing_stage", sa.Text, server_default="collecting"),
        sa.Column("chunk_minutes", real()),
        sa.Column("has_calibrator", sa.Integer),
        sa.Column("calibrators", sa.Text),
    )
    ensure_table(
        "subband_files",
        sa.Column("group_id", sa.Text, primary_key=True),
        sa.Column("subband_idx", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("path", sa.Text, nullable=False),
    )
    ensure_table(
        "performance_metrics",
        sa.Column("group_id", sa.Text, primary_key=True),
        sa.Column("load_time", real()),
        sa.Column("phase_time", real()),
        sa.Column("write_time", real()),
        sa.Column("total_time", real()),
        sa.Column("writer_type", sa.Text),
        sa.Column("recorded_at", real(), nullable=False),
    )
