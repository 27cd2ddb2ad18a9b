"""Groups are found by the time of their data, by when they came and by when they last changed.

Revision ID: 0004
"""

from nightbeam.catalog.ensure import ensure_index

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the indexes."""
    ensure_index("idx_ingest_queue_start_received", "ingest_queue", ["start_mjd", "received_at"])
    ensure_index("idx_ingest_queue_calibrator_start", "ingest_queue", ["has_calibrator", "start_mjd"])
    ensure_index("idx_ingest_queue_received_at", "ingest_queue", ["received_at"])
    ensure_index("idx_ingest_queue_last_update", "ingest_queue", ["last_update"])
