"""The tables, one metadata for both databases; ids, addresses and states are text, times are UTC."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from pki.server.store.columns import Counter, Utc

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", Text, primary_key=True),
    Column("created_at", Utc, nullable=False),
)

invitations = Table(
    "invitations",
    metadata,
    Column("reference", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False),
    Column("used_at", Utc),
    Column("used_by", Text),
)

instances = Table(
    "instances",
    metadata,
    Column("address", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    Column("identity_spki", LargeBinary, nullable=False),
    Column("access_key", LargeBinary, nullable=False),
    Column("access_key_id", Text, nullable=False, unique=True),
    Column("enrolled_at", Utc, nullable=False),
    Index("ix_instances_tenant", "tenant", "address"),
)

nonces = Table(
    "nonces",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("nonce", Text, primary_key=True),
    Column("expires_at", Utc, nullable=False),
    Index("ix_nonces_expires_at", "expires_at"),
)

requests = Table(
    "requests",
    metadata,
    Column("id", Text, primary_key=True),
    Column("address", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("created_at", Utc, nullable=False),
    Column("fingerprint", Text),
    Column("challenge", LargeBinary),
    # Written before the CA signs, so that a signed certificate is never unknown; 159 bits, in hex.
    Column("serial", Text, unique=True),
    Column("tbs", LargeBinary),
    Index("ix_requests_address", "address", "created_at"),
)

certificates = Table(
    "certificates",
    metadata,
    Column("fingerprint", Text, primary_key=True),
    Column("address", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("serial", Text, nullable=False, unique=True),
    Column("der", LargeBinary, nullable=False),
    Column("request_der", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("not_before", Utc, nullable=False),
    Column("not_after", Utc, nullable=False),
    Column("issued_at", Utc, nullable=False),
    Column("revoked_at", Utc),
    Column("revocation_reason", Integer),
    Column("ski", Text, nullable=False),
    Index("ix_certificates_address", "address", "issued_at"),
    Index("ix_certificates_ski", "ski"),
    Index("ix_certificates_not_after", "state", "not_after"),
    Index(
        "uq_certificates_active",
        "address",
        "kind",
        unique=True,
        sqlite_where=text("state = 'active'"),
        postgresql_where=text("state = 'active'"),
    ),
)

crls = Table(
    "crls",
    metadata,
    Column("number", Counter, primary_key=True, autoincrement=False),
    Column("der", LargeBinary, nullable=False),
    Column("this_update", Utc, nullable=False),
    Column("next_update", Utc, nullable=False),
)

mailboxes = Table(
    "mailboxes",
    metadata,
    Column("address", Text, primary_key=True),
    Column("last_sequence", Counter, nullable=False),
    Column("last_receipt", Counter, nullable=False),
)

deposits = Table(
    "deposits",
    metadata,
    Column("id", Text, primary_key=True),
    Column("sender", Text, nullable=False),
    Column("recipient", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("sequence", Counter),
    Column("body", LargeBinary, nullable=False),
    Column("body_sha256", Text, nullable=False),
    Column("body_sha512", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("key_version", Counter, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("signing_time", Utc, nullable=False),
    Column("received_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False),
    Column("validated_at", Utc),
    Column("collected_at", Utc),
    Column("settled_at", Utc),
    Column("recipient_ski", Text, nullable=False),
    Column("sender_ski", Text, nullable=False),
    Column("rejected_code", Text),
    Column("rejected_detail", Text),
    Column("supersedes", Text),
    Column("superseded_by", Text),
    Column("certificate_fingerprint", Text),
    Column("sender_fingerprint", Text),
    UniqueConstraint("recipient", "sequence", name="uq_deposits_recipient"),
    Index("ix_deposits_sender", "sender", "received_at", "id"),
    Index("ix_deposits_received_at", "received_at", "id"),
    Index("ix_deposits_expires_at", "state", "expires_at"),
    Index("ix_deposits_recipient_ski", "recipient_ski", "state"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("sender", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_sha256", Text, nullable=False),
    Column("deposit_id", Text, nullable=False),
    Column("created_at", Utc, nullable=False),
    Index("ix_idempotency_created_at", "created_at"),
)

receipts = Table(
    "receipts",
    metadata,
    Column("deposit_id", Text, ForeignKey("deposits.id"), primary_key=True),
    # The deposit's sender and the number of this receipt to that sender, without gaps: the cursor of its list.
    Column("sender", Text, nullable=False),
    Column("number", Counter, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reason", Text),
    Column("der", LargeBinary, nullable=False),
    Column("signed_at", Utc, nullable=False),
    Column("stored_at", Utc, nullable=False),
    UniqueConstraint("sender", "number", name="uq_receipts_sender"),
)

_ALIVE = text("dead_at IS NULL")

jobs = Table(
    "jobs",
    metadata,
    Column("id", Counter, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("due_at", Utc, nullable=False),
    Column("wake_at", Utc, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("wakes", Integer, nullable=False),
    Column("lease_until", Utc),
    Column("dead_at", Utc),
    Column("error", Text),
    Index("ix_jobs_due_at", "queue", "due_at", "id", sqlite_where=_ALIVE, postgresql_where=_ALIVE),
    Index("ix_jobs_wake_at", "wake_at", sqlite_where=_ALIVE, postgresql_where=_ALIVE),
    # An id is never used again: a late `finish` must not hit another job.
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("seq", Counter, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("time", Utc, nullable=False),
    Column("data", Text, nullable=False),
    Column("position", Counter, unique=True),
    Column("chain", LargeBinary),
    Index(
        "ix_events_unsequenced",
        "seq",
        sqlite_where=text("position IS NULL"),
        postgresql_where=text("position IS NULL"),
    ),
    sqlite_autoincrement=True,
)

event_audience = Table(
    "event_audience",
    metadata,
    Column("event_id", Text, ForeignKey("events.id"), primary_key=True),
    Column("address", Text, primary_key=True),
    # The order in which the event named its audience, and a copy of its position: a page is one index range.
    Column("rank", Integer, nullable=False),
    Column("position", Counter),
    Index("ix_event_audience_address", "address", "position"),
)

cursors = Table(
    "cursors",
    metadata,
    Column("name", Text, primary_key=True),
    Column("position", Counter, nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("address", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("types", Text),
    Column("created_at", Utc, nullable=False),
    Column("disabled_at", Utc),
    Index("ix_webhooks_address", "address"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("webhook_id", Text, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("event_id", Text, ForeignKey("events.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text),
    Column("updated_at", Utc, nullable=False),
    UniqueConstraint("webhook_id", "event_id", name="uq_deliveries_webhook_id"),
    CheckConstraint("state IN ('pending', 'delivered', 'dead')", name="state"),
)

ticks = Table(
    "ticks",
    metadata,
    Column("job", Text, primary_key=True),
    Column("period", Text, primary_key=True),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("until", Utc, nullable=False),
)
