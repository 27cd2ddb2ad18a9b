"""What a mosaic is made of and looks like, one row of a name; nights; scores; what is in quarantine.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

from nightbeam.catalog.ensure import ensure_columns, ensure_index, ensure_table, real

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns and tables; of several mosaics of one name the newest that was built stays, or the newest."""
    ensure_columns(
        "mosaics",
        sa.Column("plan", sa.Text),
        sa.Column("strip", sa.Integer),
        *(sa.Column(name, real()) for name in ("start_mjd", "mid_mjd", "end_mjd", "ra_deg", "dec_deg")),
        *(sa.Column(name, sa.Integer) for name in ("width", "height")),
        *(
            sa.Column(name, real())
            for name in (
                "cell_arcsec",
                "freq_hz",
                "beam_major_arcsec",
                "beam_minor_arcsec",
                "beam_pa_deg",
                "noise_jy",
                "peak_jy",
            )
        ),
        *(sa.Column(name, sa.Integer) for name in ("tiles_used", "tiles_rejected")),
        *(
            sa.Column(name, sa.Text)
            for name in ("verdicts", "checks", "files", "parameters", "error", "version", "sha256")
        ),
        sa.Column("built_at", real()),
    )
    newest = "COALESCE(MAX(CASE WHEN status = 'built' THEN id END), MAX(id))"
    op.execute(f"DELETE FROM mosaics WHERE id NOT IN (SELECT {newest} FROM mosaics GROUP BY name)")
    ensure_index("uq_mosaics_name", "mosaics", ["name"], unique=True)
    ensure_index("idx_mosaics_plan", "mosaics", ["plan"])
    ensure_index("idx_mosaics_mid_mjd", "mosaics", ["mid_mjd"])
    ensure_table(
        "nights",
        sa.Column("night", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("tiles", sa.Integer),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("updated_at", real(), nullable=False),
        sa.Column("error", sa.Text),
    )
    ensure_table(
        "qa_scores",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", real()),
        sa.Column("unit", sa.Text),
        sa.Column("score", real()),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("created_at", real(), nullable=False),
    )
    ensure_index("idx_qa_scores_verdict", "qa_scores", ["verdict"])
    ensure_table(
        "quarantine",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("original_path", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("moved_at", real(), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("ended_at", real()),
    )
    ensure_index("idx_quarantine_original", "quarantine", ["original_path"])
    ensure_index("idx_ms_index_stage_updated_at", "ms_index", ["stage_updated_at"])
    ensure_index("idx_ms_index_group_id", "ms_index", ["group_id"])
    ensure_index("idx_images_created_at", "images", ["created_at"])
    ensure_index("idx_images_group_id", "images", ["group_id"])
    ensure_index("idx_qa_artifacts_created_at", "qa_artifacts", ["created_at"])
