"""Facts for tests of the store: valid in form, with bytes that nobody verifies."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pki.core.certificates import CertificateRecord, CertificateState, RequestState
from pki.core.events import Event, EventType
from pki.core.ids import DepositId, EventId, KeyId, RequestId, fingerprint, request_id
from pki.core.tenants import Address, TenantName, parse_address
from pki.core.x509 import CertificateKind
from pki.server.facts import Instance, Invitation, NewDeposit, ReceiptRecord, RequestRecord

NOW = datetime(2030, 5, 17, 12, 30, 15, 123456, tzinfo=UTC)
ACME = parse_address("acme/eu-west")
GLOBEX = parse_address("globex/main")


def at(seconds: float) -> datetime:
    """Return the moment ``seconds`` after NOW."""
    return NOW + timedelta(seconds=seconds)


def invitation(tenant: str = "acme", **changes: Any) -> Invitation:
    """Return an unused invitation."""
    fact = Invitation(
        reference=secrets.token_hex(8),
        tenant=TenantName(tenant),
        secret_hash=hashlib.sha256(b"secret").digest(),
        created_at=NOW,
        expires_at=at(86400),
    )
    return replace(fact, **changes)


def instance(address: Address = ACME, **changes: Any) -> Instance:
    """Return an enrolled instance."""
    access_key = secrets.token_bytes(32)
    fact = Instance(
        address=address,
        tenant=address.tenant,
        identity_spki=secrets.token_bytes(40),
        access_key=access_key,
        access_key_id=hashlib.sha256(access_key).hexdigest()[:32],
        enrolled_at=NOW,
    )
    return replace(fact, **changes)


def certificate_request(address: Address = ACME, **changes: Any) -> RequestRecord:
    """Return a pending request for an encryption certificate."""
    der = secrets.token_bytes(60)
    fact = RequestRecord(
        id=RequestId(request_id(der)),
        address=address,
        kind=CertificateKind.ENCRYPTION,
        der=der,
        state=RequestState.PENDING,
        created_at=NOW,
        reason=None,
        fingerprint=None,
        challenge=None,
    )
    return replace(fact, **changes)


def certificate(address: Address = ACME, **changes: Any) -> CertificateRecord:
    """Return an active encryption certificate."""
    der = secrets.token_bytes(60)
    fact = CertificateRecord(
        fingerprint=fingerprint(der),
        address=address,
        kind=CertificateKind.ENCRYPTION,
        serial=secrets.randbits(158) | 1 << 158,
        der=der,
        request_der=secrets.token_bytes(60),
        state=CertificateState.ACTIVE,
        not_before=NOW,
        not_after=at(365 * 86400),
        issued_at=NOW,
        revoked_at=None,
        revocation_reason=None,
        ski=secrets.token_hex(20),
    )
    return replace(fact, **changes)


def deposit(sender: Address = GLOBEX, recipient: Address = ACME, **changes: Any) -> NewDeposit:
    """Return a deposit that has just arrived."""
    body = secrets.token_bytes(100)
    fact = NewDeposit(
        id=DepositId(secrets.token_hex(16)),
        sender=sender,
        recipient=recipient,
        body=body,
        body_sha256=hashlib.sha256(body).hexdigest(),
        body_sha512=hashlib.sha512(body).digest(),
        size=len(body),
        key_id=KeyId("orders-2030"),
        key_version=1,
        purpose="encrypt",
        signing_time=at(-1),
        received_at=NOW,
        expires_at=at(86400),
        recipient_ski="aa" * 20,
        sender_ski="bb" * 20,
    )
    return replace(fact, **changes)


def receipt(deposit_id: DepositId, **changes: Any) -> ReceiptRecord:
    """Return the receipt of a deposit."""
    fact = ReceiptRecord(
        deposit_id=deposit_id,
        kind="receipt",
        reason=None,
        der=secrets.token_bytes(80),
        signed_at=at(5),
        stored_at=at(6),
    )
    return replace(fact, **changes)


def event(*audience: Address, **changes: Any) -> Event:
    """Return an event for an audience."""
    fact = Event(
        id=EventId(secrets.token_hex(16)),
        type=EventType.DEPOSIT_RECEIVED,
        subject=secrets.token_hex(16),
        time=NOW,
        audience=tuple(str(address) for address in audience),
        data={"key_id": "größe", "key_version": 3, "note": None},
    )
    return replace(fact, **changes)
