"""Jobs have a rank: what is urgent overtakes, and what may wait lets others go first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the rank, the same for all that is there, and put it into the index of the queues."""
    op.add_column("jobs", sa.Column("rank", sa.Integer(), server_default="1", nullable=False))
    alive = sa.text("dead_at IS NULL")
    op.drop_index("ix_jobs_due_at", "jobs")
    op.create_index(
        "ix_jobs_due_at",
        "jobs",
        ["queue", "rank", "due_at", "id"],
        sqlite_where=alive,
        postgresql_where=alive,
    )
