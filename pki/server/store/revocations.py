"""What proves each revocation: the owner's signed request, or an order of two officers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import RowMapping, or_, select

from pki.core.certificates import CertificateState
from pki.core.ids import Fingerprint
from pki.server.facts import RevocationRecord
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import certificates, revocations


def insert(unit: Unit, records: Sequence[RevocationRecord]) -> None:
    """Store evidence; what a certificate was revoked by first stays."""
    values = [
        {
            "fingerprint": record.fingerprint,
            "evidence": record.evidence,
            "certificate": record.certificate,
            "request": record.request,
            "signer": record.signer,
            "named": record.named,
            "endorsement": record.endorsement,
            "order_id": record.order_id,
            "created_at": record.created_at,
        }
        for record in records
    ]
    rows.insert_new(unit, revocations, values, revocations.c.fingerprint)


def fingerprints(unit: Unit) -> list[Fingerprint]:
    """Return for which certificates there is evidence, oldest first."""
    statement = select(revocations.c.fingerprint).order_by(revocations.c.created_at, revocations.c.fingerprint)
    return [Fingerprint(found) for found in unit.connection.execute(statement).scalars()]


def many(unit: Unit, wanted: Sequence[Fingerprint]) -> list[RevocationRecord]:
    """Return the evidence that exists for certificates."""
    found = []
    for chunk in rows.chunks(sorted(set(wanted))):
        statement = select(revocations).where(revocations.c.fingerprint.in_(chunk))
        found += [_record(row) for row in unit.connection.execute(statement).mappings()]
    return found


def certificates_of(unit: Unit, wanted: Sequence[Fingerprint]) -> Iterator[tuple[Fingerprint, bytes]]:
    """Yield the certificates, in DER, that lie beside the evidence."""
    for chunk in rows.chunks(sorted(set(wanted))):
        statement = select(revocations.c.fingerprint, revocations.c.certificate).where(
            revocations.c.fingerprint.in_(chunk)
        )
        for row in unit.connection.execute(statement):
            yield Fingerprint(row.fingerprint), row.certificate


def states(unit: Unit) -> dict[Fingerprint, str]:
    """Return what the rows call those certificates that are revoked or for which there is evidence."""
    known = select(revocations.c.fingerprint)
    statement = select(certificates.c.fingerprint, certificates.c.state).where(
        or_(certificates.c.state == CertificateState.REVOKED.value, certificates.c.fingerprint.in_(known))
    )
    return {Fingerprint(row.fingerprint): row.state for row in unit.connection.execute(statement)}


def _record(row: RowMapping) -> RevocationRecord:
    return RevocationRecord(
        fingerprint=Fingerprint(row["fingerprint"]),
        evidence=row["evidence"],
        certificate=row["certificate"],
        created_at=row["created_at"],
        request=row["request"],
        signer=row["signer"],
        named=row["named"],
        endorsement=row["endorsement"],
        order_id=row["order_id"],
    )
