"""A night that failed remembers with which tiles and settings, so that other ones are tried.

Revision ID: 0005
"""

import sqlalchemy as sa

from nightbeam.catalog.ensure import ensure_columns

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    ensure_columns("nights", sa.Column("inputs", sa.Text))
