"""The tables, one metadata for both databases; ids, addresses and states are text, times are UTC."""

from __future__ import annotations

from sqlalchemy import (
    DDL,
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
    event,
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
    # The secret once more, sealed to the registration key, for who checks a MAC under it: the issuer process alone.
    Column("sealed_secret", LargeBinary),
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
    # Null for who was enrolled by EST or CMP, until an access certificate was issued.
    Column("access_key", LargeBinary),
    Column("access_key_id", Text, unique=True),
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
    # When it was issued or rejected; a rejected one with a serial is on the revocation lists from then on.
    Column("settled_at", Utc),
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
    # For people to read; what proves it lies in the table of revocations.
    Column("revoked_by", Text),
    Column("because", Text),
    # The issuing CA's key identifier in hex.
    Column("issuer", Text, nullable=False, server_default=""),
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

reminders = Table(
    "reminders",
    metadata,
    # One row for each certificate and threshold (days before its end) that its owner was reminded at.
    Column("fingerprint", Text, ForeignKey("certificates.fingerprint"), primary_key=True),
    Column("days", Integer, primary_key=True, autoincrement=False),
    Column("told_at", Utc, nullable=False),
)

orders = Table(
    "orders",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("approval", LargeBinary),
    Column("ordered_by", Text, nullable=False),
    Column("approved_by", Text),
    Column("because", Text, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False),
    Column("executed_at", Utc),
    Index("ix_orders_executed_at", "executed_at"),
    CheckConstraint("kind IN ('revocation', 'lift')", name="kind"),
)

# What proves each revocation, whole: the issuer believes this, not the state of a certificate's row.
revocations = Table(
    "revocations",
    metadata,
    Column("fingerprint", Text, primary_key=True),
    Column("evidence", Text, nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("request", LargeBinary),
    Column("signer", LargeBinary),
    Column("named", LargeBinary),
    Column("endorsement", LargeBinary),
    Column("order_id", Text, ForeignKey("orders.id")),
    Column("created_at", Utc, nullable=False),
)

crls = Table(
    "crls",
    metadata,
    Column("issuer", Text, primary_key=True, server_default=""),
    Column("number", Counter, primary_key=True, autoincrement=False),
    Column("der", LargeBinary, nullable=False),
    Column("this_update", Utc, nullable=False),
    Column("next_update", Utc, nullable=False),
    # The delta list of the same number, and the number of the full list that it builds on.
    Column("base", Counter),
    Column("delta", LargeBinary),
)

ocsp_responses = Table(
    "ocsp_responses",
    metadata,
    # One for each certificate and hash that requests name its issuer by; made by the issuer, served by everybody.
    Column("serial", Text, primary_key=True),
    Column("algorithm", Text, primary_key=True),
    Column("issuer", Text, nullable=False),
    # Nothing before the first one is made.
    Column("der", LargeBinary),
    Column("status", Text),
    Column("this_update", Utc),
    Column("next_update", Utc),
    # When the next one is due: never again, when the certificate has expired.
    Column("refresh_at", Utc),
    Index("ix_ocsp_responses_refresh_at", "refresh_at"),
)

ocsp_questions = Table(
    "ocsp_questions",
    metadata,
    # What has to be answered freshly: the SHA-256 of the question in hex, so that the same one is one.
    Column("id", Text, primary_key=True),
    Column("request", LargeBinary, nullable=False),
    Column("asked_at", Utc, nullable=False),
    Column("response", LargeBinary),
    Index("ix_ocsp_questions_asked_at", "asked_at"),
)

cmp_exchanges = Table(
    "cmp_exchanges",
    metadata,
    # The SHA-256 of the message in hex: the same message again is the same exchange, with the same answer.
    Column("digest", Text, primary_key=True),
    Column("request", LargeBinary, nullable=False),
    Column("response", LargeBinary),
    Column("asked", Integer, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False),
    Index("ix_cmp_exchanges_expires_at", "expires_at"),
)

cmp_transactions = Table(
    "cmp_transactions",
    metadata,
    Column("id", Text, primary_key=True),
    # The exchange that opened it, who did, and what our answer said: a confirmation has to fit.
    Column("digest", Text, nullable=False),
    Column("credential", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("nonce", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("expires_at", Utc, nullable=False),
    Index("ix_cmp_transactions_expires_at", "expires_at"),
)

mailboxes = Table(
    "mailboxes",
    metadata,
    Column("address", Text, primary_key=True),
    Column("last_sequence", Counter, nullable=False),
    Column("last_receipt", Counter, nullable=False),
)

_INSIDE = text("length(body) > 0")
ENDED = "state IN ('refused', 'rejected', 'superseded', 'expired', 'withdrawn', 'quarantined')"
"""Deposits that came to nothing, or may. A statement that names these states in these words finds them by an index."""
_ENDED = text(ENDED)
_UNTOLD = text("respond_by IS NOT NULL AND overdue_at IS NULL AND settled_at IS NULL")

deposits = Table(
    "deposits",
    metadata,
    Column("id", Text, primary_key=True),
    Column("sender", Text, nullable=False),
    Column("recipient", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("sequence", Counter),
    # Empty where the body has its row in the table of bodies, or had; see there.
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
    # By when the sender wants an answer, and when both were told that there was none by then.
    Column("respond_by", Utc),
    Column("overdue_at", Utc),
    # The deposit that was accepted last to take this one's place, whatever has become of it.
    Column("successor", Text),
    UniqueConstraint("recipient", "sequence", name="uq_deposits_recipient"),
    Index("ix_deposits_sender", "sender", "received_at", "id"),
    Index("ix_deposits_received_at", "received_at", "id"),
    Index("ix_deposits_expires_at", "state", "expires_at"),
    Index("ix_deposits_recipient_ski", "recipient_ski", "state"),
    # What still has its body in its row: found without a look at all the others.
    Index("ix_deposits_body", "id", sqlite_where=_INSIDE, postgresql_where=_INSIDE),
    # Few among many, for who asks after one state. A deposit on the usual way never enters it.
    Index("ix_deposits_ended", "sender", "state", "received_at", "id", sqlite_where=_ENDED, postgresql_where=_ENDED),
    Index("ix_deposits_respond_by", "respond_by", sqlite_where=_UNTOLD, postgresql_where=_UNTOLD),
)

bodies = Table(
    "bodies",
    metadata,
    Column("deposit_id", Text, primary_key=True),
    # The week of arrival, or -1 for what outlives its week; on PostgreSQL each has a partition, which is dropped whole.
    Column("week", Integer, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
    Index("ix_bodies_week", "week").ddl_if(dialect="sqlite"),
    postgresql_partition_by="RANGE (week)",
)
for _statement in (
    # Ciphertext does not get shorter.
    "ALTER TABLE bodies ALTER COLUMN body SET STORAGE EXTERNAL",
    # Nothing is refused because nobody made a partition ahead of time.
    "CREATE TABLE bodies_kept PARTITION OF bodies DEFAULT",
):
    _shelf = DDL(_statement)  # type: ignore[no-untyped-call]  # SQLAlchemy types it not
    event.listen(bodies, "after_create", _shelf.execute_if(dialect="postgresql"))

# What is kept of a deposit whose body was deleted: see core/counterfoils. Never changed, so it leaves no gaps behind.
counterfoils = Table(
    "counterfoils",
    metadata,
    Column("deposit_id", Text, primary_key=True),
    Column("deleted_at", Utc, nullable=False),
    # Nothing where the sender's signature was never found to be good.
    Column("der", LargeBinary),
)

APART = "bodies-apart"
"""The switch: bodies are written to their own table. It is on from the start where no earlier release ever ran; where
one did, the operator sets it when no process of it is left, since it would take the empty column for the body."""

# What is turned on once and for good.
switches = Table("switches", metadata, Column("name", Text, primary_key=True))

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

# What the operator allows a tenant or an address otherwise than the settings.
limits = Table(
    "limits",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Counter, nullable=False),
    Column("set_at", Utc, nullable=False),
)

# Whom and what a recipient takes; without a row, anyone and everything that the operator allows.
policies = Table(
    "policies",
    metadata,
    Column("address", Text, primary_key=True),
    Column("senders", Text, nullable=False),
    Column("max_bytes", Counter),
    # Seconds.
    Column("max_lifetime", Counter),
    Column("changed_at", Utc, nullable=False),
    CheckConstraint("senders IN ('anyone', 'known', 'listed')", name="senders"),
)

listed_senders = Table(
    "listed_senders",
    metadata,
    Column("address", Text, primary_key=True),
    # A tenant or an address.
    Column("sender", Text, primary_key=True),
)

tallies = Table(
    "tallies",
    metadata,
    # What is under way of a sender (no recipient), in a mailbox (no sender), and in a mailbox of one address or of one
    # tenant: see the limits.
    Column("sender", Text, primary_key=True),
    Column("recipient", Text, primary_key=True),
    Column("deposits", Counter, nullable=False),
    Column("bytes", Counter, nullable=False),
    # Days since 1970, and how many were accepted on it.
    Column("day", Integer, nullable=False),
    Column("today", Counter, nullable=False),
    # How many ever were accepted, and of those acknowledged.
    Column("accepted", Counter, nullable=False),
    Column("acknowledged", Counter, nullable=False),
)

_ALIVE = text("dead_at IS NULL")
_DEAD = text("dead_at IS NOT NULL")
_GIVEN_UP = text("state = 'dead'")
_UNTOLD = text("state = 'pending'")
_TURNLESS = text("dead_at IS NULL AND turn IS NULL")
_IN_TURN = text("dead_at IS NULL AND turn IS NOT NULL")

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
    # The lower, the sooner; see the outbox.
    Column("rank", Integer, nullable=False, server_default="1"),
    # The request that it comes from, as a W3C traceparent.
    Column("trace", Text),
    # Whose it is: the lanes of a queue take turns. Without a turn a job goes by the time it is due.
    Column("lane", Text, nullable=False, server_default=""),
    Column("turn", Counter),
    Index("ix_jobs_due_at", "queue", "rank", "due_at", "id", sqlite_where=_TURNLESS, postgresql_where=_TURNLESS),
    Index("ix_jobs_turn", "queue", "rank", "turn", "id", sqlite_where=_IN_TURN, postgresql_where=_IN_TURN),
    Index("ix_jobs_lane", "queue", "lane", "turn", sqlite_where=_IN_TURN, postgresql_where=_IN_TURN),
    Index("ix_jobs_wake_at", "wake_at", sqlite_where=_ALIVE, postgresql_where=_ALIVE),
    Index("ix_jobs_dead_at", "queue", "dead_at", "id", sqlite_where=_DEAD, postgresql_where=_DEAD),
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
    # The request that it comes from, as a W3C traceparent; not chained, nobody's decision depends on it.
    Column("trace", Text),
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
    # Of what was verified up to there: the chain's value.
    Column("chain", LargeBinary),
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
    # A copy of the event's position: what a webhook is told next is the first of one index range.
    Column("position", Counter),
    UniqueConstraint("webhook_id", "event_id", name="uq_deliveries_webhook_id"),
    CheckConstraint("state IN ('pending', 'delivered', 'dead')", name="state"),
    Index(
        "ix_deliveries_pending",
        "webhook_id",
        "position",
        sqlite_where=_UNTOLD,
        postgresql_where=_UNTOLD,
    ),
    Index(
        "ix_deliveries_dead",
        "webhook_id",
        "updated_at",
        "id",
        sqlite_where=_GIVEN_UP,
        postgresql_where=_GIVEN_UP,
    ),
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
