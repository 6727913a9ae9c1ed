"""One certificate of its kind is in use at an address: a new one retires the one before."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pki.core import httpsig, ocsp, x509
from pki.core.certificates import CertificateRecord, CertificateState
from pki.core.events import Event, EventType
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind
from pki.server.services import events
from pki.server.store import certificates as store
from pki.server.store import events as event_store
from pki.server.store import ocsp as ocsp_store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Unit


def activate(unit: Unit, records: Sequence[CertificateRecord], now: datetime) -> None:
    """Make certificates the active ones, and retire those before; of two for one place the later one stays active.

    An access certificate makes its key the instance's, which had none yet or this one; ConflictError for another.
    Who activates at an address holds its instance until the end of the unit: two at once come one after the other.
    """
    tenant_store.hold(unit, [record.address for record in records])
    told: list[Event] = []
    waiting = list(records)
    while waiting:
        # One for each place at a time; the next one for the same place retires it.
        places: dict[tuple[Address, CertificateKind], CertificateRecord] = {}
        later = []
        for record in waiting:
            if places.setdefault((record.address, record.kind), record) is not record:
                later.append(record)
        told += _take_over(unit, list(places.values()), now)
        waiting = later
    for record in records:
        if record.kind is CertificateKind.ACCESS:
            key = x509.access_public_key(x509.parse_certificate(record.der).spki)
            tenant_store.bind_access_key(unit, record.address, key.raw, httpsig.key_id(key.raw))
    event_store.append(unit, told)


def _take_over(unit: Unit, records: Sequence[CertificateRecord], now: datetime) -> list[Event]:
    before = {
        (found.address, found.kind): found
        for kind in sorted({record.kind for record in records})
        for found in store.active_at(
            unit, [record.address for record in records if record.kind is kind], kind, lock=True
        )
    }
    retired = [found.fingerprint for found in before.values()]
    store.set_certificate_states(unit, retired, CertificateState.RETIRED)
    store.set_certificate_states(unit, [record.fingerprint for record in records], CertificateState.ACTIVE)
    ocsp_store.enlist(unit, records, ocsp.DIGESTS[0], now)
    told = []
    for record in records:
        if previous := before.get((record.address, record.kind)):
            told.append(events.of_certificate(EventType.CERTIFICATE_RETIRED, previous, now))
        told.append(events.of_certificate(EventType.CERTIFICATE_ACTIVATED, record, now))
    return told
