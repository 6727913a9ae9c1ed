"""What happened, as facts that are chained and told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pki.core.ids import EventId

GENESIS = bytes(32)
"""The chain hash before the first event."""


class EventType(StrEnum):
    """CloudEvents types; each has a JSON Schema in ``schemas/events``."""

    TENANT_INVITED = "keymailbox.tenant.invited"
    INSTANCE_ENROLLED = "keymailbox.instance.enrolled"
    CERTIFICATE_REQUESTED = "keymailbox.certificate.requested"
    CERTIFICATE_ISSUED = "keymailbox.certificate.issued"
    CERTIFICATE_ACTIVATED = "keymailbox.certificate.activated"
    CERTIFICATE_REJECTED = "keymailbox.certificate.rejected"
    CERTIFICATE_RETIRED = "keymailbox.certificate.retired"
    CERTIFICATE_REVOKED = "keymailbox.certificate.revoked"
    CERTIFICATE_EXPIRING = "keymailbox.certificate.expiring"
    CERTIFICATE_EXPIRED = "keymailbox.certificate.expired"
    ORDER_GIVEN = "keymailbox.order.given"
    ORDER_APPROVED = "keymailbox.order.approved"
    OFFICER_ADDED = "keymailbox.officer.added"
    OFFICER_REMOVED = "keymailbox.officer.removed"
    REVOCATION_DOUBTED = "keymailbox.revocation.doubted"
    DEPOSIT_RECEIVED = "keymailbox.deposit.received"
    DEPOSIT_AVAILABLE = "keymailbox.deposit.available"
    DEPOSIT_REJECTED = "keymailbox.deposit.rejected"
    DEPOSIT_COLLECTED = "keymailbox.deposit.collected"
    DEPOSIT_ACKNOWLEDGED = "keymailbox.deposit.acknowledged"
    DEPOSIT_REFUSED = "keymailbox.deposit.refused"
    DEPOSIT_QUARANTINED = "keymailbox.deposit.quarantined"
    DEPOSIT_SUPERSEDED = "keymailbox.deposit.superseded"
    DEPOSIT_OVERDUE = "keymailbox.deposit.overdue"
    DEPOSIT_EXPIRED = "keymailbox.deposit.expired"
    DEPOSIT_WITHDRAWN = "keymailbox.deposit.withdrawn"
    LIMITS_CHANGED = "keymailbox.limits.changed"
    SENDERS_CHANGED = "keymailbox.senders.changed"
    CRL_PUBLISHED = "keymailbox.crl.published"
    WEBHOOK_DEAD = "keymailbox.webhook.dead"


@dataclass(frozen=True)
class Event:
    """One thing that happened to ``subject``; ``audience`` are the addresses that may hear of it."""

    id: EventId
    type: EventType
    subject: str
    time: datetime
    audience: tuple[str, ...]
    data: Mapping[str, str | int | None]


def canonical(event: Event) -> bytes:
    """Return the event as JSON with sorted keys and without spaces: the bytes that are chained."""
    fields = {
        "id": event.id,
        "type": event.type.value,
        "subject": event.subject,
        "time": event.time.isoformat(timespec="microseconds"),
        "audience": list(event.audience),
        "data": dict(event.data),
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def chain_hash(previous: bytes, event: Event) -> bytes:
    """Return SHA-256(0x01 ‖ previous ‖ canonical event): the link that fixes all before it."""
    return hashlib.sha256(b"\x01" + previous + canonical(event)).digest()
