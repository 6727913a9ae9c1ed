"""CMP: exchanges and transactions, and the invitations' secrets for the process that issues."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pki.server.store.columns import Utc

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add one column and two tables."""
    op.add_column("invitations", sa.Column("sealed_secret", sa.LargeBinary(), nullable=True))
    op.create_table(
        "cmp_exchanges",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=True),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("expires_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_cmp_exchanges"),
    )
    op.create_index("ix_cmp_exchanges_expires_at", "cmp_exchanges", ["expires_at"], unique=False)
    op.create_table(
        "cmp_transactions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("credential", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("expires_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cmp_transactions"),
    )
    op.create_index("ix_cmp_transactions_expires_at", "cmp_transactions", ["expires_at"], unique=False)
