"""A deposit names the one that was accepted to take its place, so that there is one at a time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; an earlier release leaves it empty, and what it accepts is not counted as on its way."""
    op.add_column("deposits", sa.Column("successor", sa.Text(), nullable=True))
