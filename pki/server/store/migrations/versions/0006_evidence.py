"""Every revocation has its evidence, and operators' orders are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pki.server.store.columns import Utc

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; what was revoked before has no evidence but the list that it stands on."""
    op.create_table(
        "orders",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("approval", sa.LargeBinary(), nullable=True),
        sa.Column("ordered_by", sa.Text(), nullable=False),
        sa.Column("approved_by", sa.Text(), nullable=True),
        sa.Column("because", sa.Text(), nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("expires_at", Utc, nullable=False),
        sa.Column("executed_at", Utc, nullable=True),
        sa.CheckConstraint("kind IN ('revocation', 'lift')", name=op.f("ck_orders_kind")),
        sa.PrimaryKeyConstraint("id", name="pk_orders"),
    )
    op.create_index("ix_orders_executed_at", "orders", ["executed_at"], unique=False)
    op.create_table(
        "revocations",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=True),
        sa.Column("signer", sa.LargeBinary(), nullable=True),
        sa.Column("named", sa.LargeBinary(), nullable=True),
        sa.Column("order_id", sa.Text(), nullable=True),
        sa.Column("created_at", Utc, nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="fk_revocations_order_id"),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_revocations"),
    )
    op.add_column("certificates", sa.Column("revoked_by", sa.Text(), nullable=True))
    op.add_column("certificates", sa.Column("because", sa.Text(), nullable=True))
    op.execute(
        "INSERT INTO revocations (fingerprint, evidence, certificate, created_at)"
        " SELECT fingerprint, 'legacy', der, COALESCE(revoked_at, issued_at) FROM certificates WHERE state = 'revoked'"
    )
