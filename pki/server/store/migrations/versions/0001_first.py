"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pki.server.store.columns import Counter, Utc

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "certificates",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("request_der", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("not_before", Utc, nullable=False),
        sa.Column("not_after", Utc, nullable=False),
        sa.Column("issued_at", Utc, nullable=False),
        sa.Column("revoked_at", Utc, nullable=True),
        sa.Column("revocation_reason", sa.Integer(), nullable=True),
        sa.Column("ski", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_certificates"),
        sa.UniqueConstraint("serial", name="uq_certificates_serial"),
    )
    op.create_index("ix_certificates_address", "certificates", ["address", "issued_at"], unique=False)
    op.create_index("ix_certificates_not_after", "certificates", ["state", "not_after"], unique=False)
    op.create_index("ix_certificates_ski", "certificates", ["ski"], unique=False)
    op.create_index(
        "uq_certificates_active",
        "certificates",
        ["address", "kind"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "crls",
        sa.Column("number", Counter, autoincrement=False, nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("this_update", Utc, nullable=False),
        sa.Column("next_update", Utc, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_crls"),
    )
    op.create_table(
        "cursors",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", Counter, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_cursors"),
    )
    op.create_table(
        "deposits",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("sequence", Counter, nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("body_sha256", sa.Text(), nullable=False),
        sa.Column("body_sha512", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("key_version", Counter, nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("signing_time", Utc, nullable=False),
        sa.Column("received_at", Utc, nullable=False),
        sa.Column("expires_at", Utc, nullable=False),
        sa.Column("validated_at", Utc, nullable=True),
        sa.Column("collected_at", Utc, nullable=True),
        sa.Column("settled_at", Utc, nullable=True),
        sa.Column("recipient_ski", sa.Text(), nullable=False),
        sa.Column("sender_ski", sa.Text(), nullable=False),
        sa.Column("rejected_code", sa.Text(), nullable=True),
        sa.Column("rejected_detail", sa.Text(), nullable=True),
        sa.Column("supersedes", sa.Text(), nullable=True),
        sa.Column("superseded_by", sa.Text(), nullable=True),
        sa.Column("certificate_fingerprint", sa.Text(), nullable=True),
        sa.Column("sender_fingerprint", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_deposits"),
        sa.UniqueConstraint("recipient", "sequence", name="uq_deposits_recipient"),
    )
    op.create_index("ix_deposits_expires_at", "deposits", ["state", "expires_at"], unique=False)
    op.create_index("ix_deposits_received_at", "deposits", ["received_at", "id"], unique=False)
    op.create_index("ix_deposits_recipient_ski", "deposits", ["recipient_ski", "state"], unique=False)
    op.create_index("ix_deposits_sender", "deposits", ["sender", "received_at", "id"], unique=False)
    op.create_table(
        "events",
        sa.Column("seq", Counter, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("time", Utc, nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("position", Counter, nullable=True),
        sa.Column("chain", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
        sa.UniqueConstraint("id", name="uq_events_id"),
        sa.UniqueConstraint("position", name="uq_events_position"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_events_unsequenced",
        "events",
        ["seq"],
        unique=False,
        sqlite_where=sa.text("position IS NULL"),
        postgresql_where=sa.text("position IS NULL"),
    )
    op.create_table(
        "idempotency",
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_sha256", sa.Text(), nullable=False),
        sa.Column("deposit_id", sa.Text(), nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("sender", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", Counter, nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("due_at", Utc, nullable=False),
        sa.Column("wake_at", Utc, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("wakes", sa.Integer(), nullable=False),
        sa.Column("lease_until", Utc, nullable=True),
        sa.Column("dead_at", Utc, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_jobs_due_at",
        "jobs",
        ["queue", "due_at", "id"],
        unique=False,
        sqlite_where=sa.text("dead_at IS NULL"),
        postgresql_where=sa.text("dead_at IS NULL"),
    )
    op.create_index(
        "ix_jobs_wake_at",
        "jobs",
        ["wake_at"],
        unique=False,
        sqlite_where=sa.text("dead_at IS NULL"),
        postgresql_where=sa.text("dead_at IS NULL"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("until", Utc, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "mailboxes",
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("last_sequence", Counter, nullable=False),
        sa.Column("last_receipt", Counter, nullable=False),
        sa.PrimaryKeyConstraint("address", name="pk_mailboxes"),
    )
    op.create_table(
        "nonces",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("expires_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "nonce", name="pk_nonces"),
    )
    op.create_index("ix_nonces_expires_at", "nonces", ["expires_at"], unique=False)
    op.create_table(
        "requests",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("challenge", sa.LargeBinary(), nullable=True),
        sa.Column("serial", sa.Text(), nullable=True),
        sa.Column("tbs", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
        sa.UniqueConstraint("serial", name="uq_requests_serial"),
    )
    op.create_index("ix_requests_address", "requests", ["address", "created_at"], unique=False)
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.create_table(
        "ticks",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job", "period", name="pk_ticks"),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("types", sa.Text(), nullable=True),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("disabled_at", Utc, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
    )
    op.create_index("ix_webhooks_address", "webhooks", ["address"], unique=False)
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("updated_at", Utc, nullable=False),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'dead')", name=op.f("ck_deliveries_state")),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name="fk_deliveries_event_id"),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name="fk_deliveries_webhook_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.UniqueConstraint("webhook_id", "event_id", name="uq_deliveries_webhook_id"),
    )
    op.create_table(
        "event_audience",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("position", Counter, nullable=True),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name="fk_event_audience_event_id"),
        sa.PrimaryKeyConstraint("event_id", "address", name="pk_event_audience"),
    )
    op.create_index("ix_event_audience_address", "event_audience", ["address", "position"], unique=False)
    op.create_table(
        "instances",
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("identity_spki", sa.LargeBinary(), nullable=False),
        sa.Column("access_key", sa.LargeBinary(), nullable=False),
        sa.Column("access_key_id", sa.Text(), nullable=False),
        sa.Column("enrolled_at", Utc, nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_instances_tenant"),
        sa.PrimaryKeyConstraint("address", name="pk_instances"),
        sa.UniqueConstraint("access_key_id", name="uq_instances_access_key_id"),
    )
    op.create_index("ix_instances_tenant", "instances", ["tenant", "address"], unique=False)
    op.create_table(
        "invitations",
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", Utc, nullable=False),
        sa.Column("expires_at", Utc, nullable=False),
        sa.Column("used_at", Utc, nullable=True),
        sa.Column("used_by", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_invitations_tenant"),
        sa.PrimaryKeyConstraint("reference", name="pk_invitations"),
    )
    op.create_table(
        "receipts",
        sa.Column("deposit_id", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("number", Counter, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("signed_at", Utc, nullable=False),
        sa.Column("stored_at", Utc, nullable=False),
        sa.ForeignKeyConstraint(["deposit_id"], ["deposits.id"], name="fk_receipts_deposit_id"),
        sa.PrimaryKeyConstraint("deposit_id", name="pk_receipts"),
        sa.UniqueConstraint("sender", "number", name="uq_receipts_sender"),
    )
