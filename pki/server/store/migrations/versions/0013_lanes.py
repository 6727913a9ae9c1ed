"""Jobs have a lane and a turn in it, so that who adds ten thousand lets those of others pass."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pki.server.store.columns import Counter

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add lane and turn; what is there, and what an earlier release adds, has no turn and goes by its time."""
    op.add_column("jobs", sa.Column("lane", sa.Text(), server_default="", nullable=False))
    op.add_column("jobs", sa.Column("turn", Counter, nullable=True))
    for name, columns, where in (
        ("ix_jobs_due_at", ["queue", "rank", "due_at", "id"], "dead_at IS NULL AND turn IS NULL"),
        ("ix_jobs_turn", ["queue", "rank", "turn", "id"], "dead_at IS NULL AND turn IS NOT NULL"),
        ("ix_jobs_lane", ["queue", "lane", "turn"], "dead_at IS NULL AND turn IS NOT NULL"),
    ):
        if name == "ix_jobs_due_at":
            op.drop_index(name, "jobs")
        op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
