"""Data time, owner and lease of a group; its attempts, receipts, duplicates and bad files.

Revision ID: 0002
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_columns, ensure_index, ensure_table, real

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_GROUP = "ingest_queue.group_id"


def upgrade() -> None:
    """Add what the seed lacks."""
    ensure_columns(
        "ingest_queue",
        sa.Column("start_mjd", real()),
        sa.Column("start_source", sa.Text),
        sa.Column("mid_mjd", real()),
        sa.Column("dec_deg", real()),
        sa.Column("owner", sa.Text),
        sa.Column("owner_host", sa.Text),
        sa.Column("owner_pid", sa.Integer),
        sa.Column("owner_started", real()),
        sa.Column("heartbeat_at", real()),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("retry_base", sa.Integer, nullable=False, server_default="0"),
        sa.Column("current_step", sa.Text),
        sa.Column("dispatched_at", real()),
        sa.Column("dispatch_key", sa.Text),
        sa.Column("partial", sa.Integer, nullable=False, server_default="0"),
        sa.Column("finished_at", real()),
    )
    ensure_columns(
        "subband_files",
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("mtime", real()),
        sa.Column("recorded_at", real()),
        sa.Column("late", sa.Integer, nullable=False, server_default="0"),
    )
    ensure_columns(
        "performance_metrics",
        *(sa.Column(name, real()) for name in ("calibrate_time", "apply_time", "image_time", "group_time")),
    )
    ensure_index("idx_ingest_queue_state_start", "ingest_queue", ["state", "start_mjd"])
    ensure_index("idx_subband_files_path", "subband_files", ["path"])
    ensure_table(
        "duplicate_files",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("group_id", sa.Text, sa.ForeignKey(_GROUP, ondelete="CASCADE"), nullable=False),
        sa.Column("subband_idx", sa.Integer, nullable=False),
        sa.Column("first_path", sa.Text, nullable=False),
        sa.Column("recorded_at", real(), nullable=False),
    )
    ensure_table(
        "bad_files",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("mtime", real()),
        sa.Column("recorded_at", real(), nullable=False),
    )
    ensure_table(
        "attempts",
        sa.Column("group_id", sa.Text, sa.ForeignKey(_GROUP, ondelete="CASCADE"), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.Text),
        sa.Column("started_at", real(), nullable=False),
        sa.Column("ended_at", real()),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("step", sa.Text),
        sa.Column("error", sa.Text),
    )
    ensure_table(
        "receipts",
        sa.Column("group_id", sa.Text, sa.ForeignKey(_GROUP, ondelete="CASCADE"), primary_key=True),
        sa.Column("step", sa.Text, primary_key=True),
        sa.Column("attempt", sa.Integer),
        sa.Column("finished_at", real(), nullable=False),
        sa.Column("seconds", real()),
        sa.Column("content", sa.Text, nullable=False),
    )
