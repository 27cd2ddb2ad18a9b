"""An image says whether it was made quickly.

Revision ID: 0007
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_columns

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; images that are there were made as the settings said."""
    ensure_columns("images", sa.Column("quick", sa.Integer))
