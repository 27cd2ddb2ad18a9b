"""The products as the DSA-110 pipeline of October 2025 made them.

Revision ID: 0001
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_index, ensure_table, real

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, or complete those of an older seed file."""
    ensure_table(
        "ms_index",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("start_mjd", real()),
        sa.Column("end_mjd", real()),
        sa.Column("mid_mjd", real()),
        sa.Column("processed_at", real()),
        sa.Column("status", sa.Text),
        sa.Column("stage", sa.Text),
        sa.Column("stage_updated_at", real()),
        sa.Column("cal_applied", sa.Integer, server_default="0"),
        sa.Column("imagename", sa.Text),
    )
    ensure_index("idx_ms_index_stage_path", "ms_index", ["stage", "path"])
    ensure_index("idx_ms_index_status", "ms_index", ["status"])
    ensure_table(
        "images",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("ms_path", sa.Text, nullable=False),
        sa.Column("created_at", real(), nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("beam_major_arcsec", real()),
        sa.Column("noise_jy", real()),
        sa.Column("pbcor", sa.Integer, server_default="0"),
    )
    ensure_index("idx_images_ms_path", "images", ["ms_path"])
    ensure_table(
        "mosaics",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", real(), nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("method", sa.Text),
        sa.Column("tiles", sa.Text, nullable=False),
        sa.Column("output_path", sa.Text),
    )
    ensure_index("idx_mosaics_name", "mosaics", ["name"])
