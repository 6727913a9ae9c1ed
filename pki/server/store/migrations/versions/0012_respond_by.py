"""By when the sender of a deposit wants an answer, and when its parties were told that there was none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pki.server.store.columns import Utc

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two times, and the index of what is not answered yet; deposits of before have no such time."""
    op.add_column("deposits", sa.Column("respond_by", Utc, nullable=True))
    op.add_column("deposits", sa.Column("overdue_at", Utc, nullable=True))
    untold = sa.text("respond_by IS NOT NULL AND overdue_at IS NULL AND settled_at IS NULL")
    op.create_index("ix_deposits_respond_by", "deposits", ["respond_by"], sqlite_where=untold, postgresql_where=untold)
