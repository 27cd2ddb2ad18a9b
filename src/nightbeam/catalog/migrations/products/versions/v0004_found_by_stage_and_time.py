"""Measurement Sets are found by stage or status and time, scores by time.

Revision ID: 0004
"""

from nightbeam.catalog.ensure import ensure_index

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the indexes."""
    ensure_index("idx_ms_index_stage_updated", "ms_index", ["stage", "stage_updated_at"])
    ensure_index("idx_ms_index_status_updated", "ms_index", ["status", "stage_updated_at"])
    ensure_index("idx_qa_artifacts_group_created", "qa_artifacts", ["group_id", "created_at"])
    ensure_index("idx_qa_scores_created_at", "qa_scores", ["created_at"])
    ensure_index("idx_qa_scores_verdict_created", "qa_scores", ["verdict", "created_at"])
