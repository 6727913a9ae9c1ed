"""When a request was issued or rejected: a serial that was fixed and then given up is revoked from then on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pki.server.store.columns import Utc

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the time, unknown for what was settled before."""
    op.add_column("requests", sa.Column("settled_at", Utc, nullable=True))
