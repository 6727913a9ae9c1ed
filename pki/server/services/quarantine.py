"""Mail for a key that was revoked is held back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pki.core.certificates import CertificateRecord, CertificateState
from pki.core.events import EventType
from pki.core.x509 import CertificateKind
from pki.server.services import events
from pki.server.store import certificates as store
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store.engine import Unit


def quarantine(unit: Unit, revoked: Sequence[CertificateRecord], now: datetime) -> None:
    """Hold back what waits for revoked certificates' owners, unless the same key or owner is good by another one.

    A unit does this once, for all that it revoked: deposits are held in one order (ADR 30).
    """
    skis = {ski for record in revoked for ski in _lost(unit, record)}
    found = deposit_store.many(unit, deposit_store.quarantine_for(unit, sorted(skis), now))
    event_store.append(unit, [events.of_deposit(EventType.DEPOSIT_QUARANTINED, item, now) for item in found])
    for item in found:
        unit.after_commit(f"deposit:{item.id}")
        unit.after_commit(f"mailbox:{item.recipient}")


def _lost(unit: Unit, record: CertificateRecord) -> list[str]:
    """Return the keys (hex) that nothing more is handed out for, now that a certificate is revoked."""
    if any(other.state is CertificateState.ACTIVE for other in store.by_ski(unit, record.ski)):
        return []
    if record.kind is not CertificateKind.IDENTITY:
        return [record.ski]
    if store.active(unit, record.address, CertificateKind.IDENTITY) is not None:
        return []
    return [key.ski for key in store.history(unit, record.address, CertificateKind.ENCRYPTION)]
