"""Jobs and events know which request they come from; what was given up is found without reading the rest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_DEAD = sa.text("dead_at IS NOT NULL")
_GIVEN_UP = sa.text("state = 'dead'")


def upgrade() -> None:
    """Add what is missing; what is there has no trace."""
    # In the order in which those who tell a webhook hold them: deliveries, events, jobs.
    op.create_index(
        "ix_deliveries_dead",
        "deliveries",
        ["webhook_id", "updated_at", "id"],
        sqlite_where=_GIVEN_UP,
        postgresql_where=_GIVEN_UP,
    )
    op.add_column("events", sa.Column("trace", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("trace", sa.Text(), nullable=True))
    op.create_index("ix_jobs_dead_at", "jobs", ["queue", "dead_at", "id"], sqlite_where=_DEAD, postgresql_where=_DEAD)
