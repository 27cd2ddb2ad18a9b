"""What was measured in each image and how it was made; one row per image; QA artifacts.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

from nightbeam.catalog.ensure import ensure_columns, ensure_index, ensure_table, real

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what the seed lacks; of several rows for one image the newest stays."""
    ensure_columns(
        "ms_index",
        sa.Column("group_id", sa.Text),
        sa.Column("partial", sa.Integer),
        sa.Column("ra_deg", real()),
        sa.Column("dec_deg", real()),
        sa.Column("flagged_fraction", real()),
        sa.Column("n_rows", sa.BigInteger),
        sa.Column("n_spw", sa.Integer),
        sa.Column("writer_type", sa.Text),
        sa.Column("calibration_set", sa.Text),
        sa.Column("cal_age_days", real()),
        sa.Column("cal_borrowed", sa.Integer),
        sa.Column("version", sa.Text),
    )
    ensure_columns(
        "images",
        sa.Column("group_id", sa.Text),
        *(
            sa.Column(name, real())
            for name in (
                "mid_mjd",
                "beam_minor_arcsec",
                "beam_pa_deg",
                "peak_jy",
                "noise_centre_jy",
                "dynamic_range",
                "ra_deg",
                "dec_deg",
            )
        ),
        sa.Column("imsize", sa.Integer),
        *(sa.Column(name, real()) for name in ("cell_arcsec", "freq_hz", "bandwidth_hz", "integration_s")),
        sa.Column("calibration_set", sa.Text),
        sa.Column("cal_age_days", real()),
        sa.Column("cal_borrowed", sa.Integer),
        sa.Column("partial", sa.Integer),
        *(sa.Column(name, sa.Text) for name in ("files", "parameters", "version", "sha256")),
    )
    op.execute("DELETE FROM images WHERE id NOT IN (SELECT MAX(id) FROM images GROUP BY path)")
    ensure_index("uq_images_path", "images", ["path"], unique=True)
    ensure_index("idx_images_mid_mjd", "images", ["mid_mjd"])
    ensure_columns("mosaics", sa.Column("validation_issues", sa.Text))
    ensure_table(
        "qa_artifacts",
        sa.Column("group_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("created_at", real(), nullable=False),
    )
