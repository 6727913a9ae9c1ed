"""Who was reminded that a certificate expires, once for each threshold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pki.server.store.columns import Utc

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of reminders."""
    op.create_table(
        "reminders",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("days", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("told_at", Utc, nullable=False),
        sa.ForeignKeyConstraint(["fingerprint"], ["certificates.fingerprint"], name="fk_reminders_fingerprint"),
        sa.PrimaryKeyConstraint("fingerprint", "days", name="pk_reminders"),
    )
