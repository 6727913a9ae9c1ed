"""Deliveries have their event's position: what a webhook is told next is the first of an index range."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pki.server.store.columns import Counter

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_UNTOLD = sa.text("state = 'pending'")


def upgrade() -> None:
    """Add the position, to what is under way too; what an earlier release queues later gets it when its turn comes."""
    op.add_column("deliveries", sa.Column("position", Counter, nullable=True))
    op.execute(
        "UPDATE deliveries SET position = (SELECT position FROM events WHERE events.id = deliveries.event_id)"
        " WHERE state = 'pending'"
    )
    op.create_index(
        "ix_deliveries_pending",
        "deliveries",
        ["webhook_id", "position"],
        sqlite_where=_UNTOLD,
        postgresql_where=_UNTOLD,
    )
