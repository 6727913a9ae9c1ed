"""How the use cases say what happened: one shape for each kind of subject."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from pki.core.certificates import CertificateRecord
from pki.core.events import Event, EventType
from pki.core.ids import EventId
from pki.core.tenants import Address
from pki.server.facts import DepositRecord, NewDeposit, RequestRecord, SequencedEvent
from pki.server.services.deps import Deps

_SCHEMAS = "https://keymailbox.invalid/schemas/events"


def event(kind: EventType, subject: str, now: datetime, /, *audience: Address, **data: str | int | None) -> Event:
    """Return an event with a fresh id; ``audience`` are those who may hear of it, each once."""
    heard = tuple(dict.fromkeys(str(address) for address in audience))
    return Event(EventId(secrets.token_hex(16)), kind, subject, now, heard, data)


def of_request(kind: EventType, record: RequestRecord, now: datetime, *, reason: str | None = None) -> Event:
    """Return an event about a certificate request.

    It names no fingerprint: until an encryption certificate is proved, its hash is the proof.
    """
    return event(
        kind, record.id, now, record.address, address=str(record.address), kind=record.kind.value, reason=reason
    )


def of_certificate(kind: EventType, record: CertificateRecord, now: datetime, *, reason: int | None = None) -> Event:
    """Return an event about a certificate that is listed; ``reason`` is a CRLReason (RFC 5280 §5.3.1).

    Of a revocation it also tells who revoked it, and what an operator has to say to the owner.
    """
    more: dict[str, str | int | None] = {}
    if kind is EventType.CERTIFICATE_REVOKED:
        more = {"revoked_by": record.revoked_by, "because": record.because}
    return event(
        kind,
        record.fingerprint,
        now,
        record.address,
        address=str(record.address),
        kind=record.kind.value,
        not_after=time(record.not_after),
        reason=reason,
        **more,
    )


def of_deposit(kind: EventType, record: DepositRecord | NewDeposit, now: datetime, **data: str | int | None) -> Event:
    """Return an event about a deposit, for its sender and its recipient."""
    told: dict[str, str | int | None] = {
        "sender": str(record.sender),
        "recipient": str(record.recipient),
        "key_id": record.key_id,
        "key_version": record.key_version,
    }
    return event(kind, record.id, now, record.sender, record.recipient, **(told | data))


def cloudevent(deps: Deps, item: SequencedEvent) -> dict[str, object]:
    """Return an event as a CloudEvent 1.0; ``sequence`` is its position, in the extension of that name."""
    happened = item.event
    return {
        "specversion": "1.0",
        "id": happened.id,
        "source": deps.settings.url,
        "type": happened.type.value,
        "subject": happened.subject,
        "time": happened.time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "dataschema": f"{_SCHEMAS}/{happened.type.value}.schema.json",
        "sequence": str(item.position),
        "data": dict(happened.data),
    }


def time(moment: datetime) -> str:
    """Return a time as it stands in an event's data: RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
