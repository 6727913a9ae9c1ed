"""A sender's deposits that came to nothing are found without a look at all the others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_ENDED = sa.text("state IN ('refused', 'rejected', 'superseded', 'expired', 'withdrawn', 'quarantined')")


def upgrade() -> None:
    """Add the index."""
    op.create_index(
        "ix_deposits_ended",
        "deposits",
        ["sender", "state", "received_at", "id"],
        sqlite_where=_ENDED,
        postgresql_where=_ENDED,
    )
