"""How long certificates last, and whose owners were reminded that one ends without a successor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, exists, select, tuple_

from pki.core.certificates import CertificateKind, CertificateState
from pki.core.ids import Fingerprint
from pki.core.tenants import Address, TenantName, parse_address
from pki.server.facts import CertificateSummary
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import certificates, reminders

_SUMMARY = [column for column in certificates.c if column.name in CertificateSummary.__dataclass_fields__]


def unreminded(
    unit: Unit, *, past: datetime, until: datetime, days: int, after: CertificateSummary | None, limit: int
) -> list[CertificateSummary]:
    """Return and hold up to ``limit`` active certificates that end after ``past`` and by ``until``, first ending first.

    Left out are those with a reminder at ``days`` or fewer; ``after`` is the last one of the page before.
    """
    told = exists().where(reminders.c.fingerprint == certificates.c.fingerprint, reminders.c.days <= days)
    statement = (
        select(*_SUMMARY)
        .where(
            certificates.c.state == CertificateState.ACTIVE.value,
            certificates.c.not_after > past,
            certificates.c.not_after <= until,
            ~told,
        )
        .order_by(certificates.c.not_after, certificates.c.fingerprint)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    if after is not None:
        place: Any = tuple_(certificates.c.not_after, certificates.c.fingerprint)
        types = [certificates.c.not_after.type, certificates.c.fingerprint.type]
        statement = statement.where(place > tuple_(after.not_after, after.fingerprint, types=types))
    return [_summary(row) for row in unit.connection.execute(statement).mappings()]


def note_reminders(unit: Unit, fingerprints: Sequence[Fingerprint], days: int, now: datetime) -> set[Fingerprint]:
    """Write down that owners are reminded at a threshold; return those that nobody had written down before."""
    new = [{"fingerprint": one, "days": days, "told_at": now} for one in fingerprints]
    return {Fingerprint(one) for one in rows.insert_new(unit, reminders, new, reminders.c.fingerprint)}


def summaries(unit: Unit, *, within: TenantName | Address | None = None) -> Iterator[CertificateSummary]:
    """Yield the listed certificates of all addresses, of a tenant's or of one; by address, the oldest first."""
    base = (
        select(*_SUMMARY).where(certificates.c.state != CertificateState.UNPROVED.value).order_by(*_PLACE).limit(_BATCH)
    )
    if isinstance(within, Address):
        base = base.where(certificates.c.address == str(within))
    elif within is not None:
        base = base.where(certificates.c.address.startswith(f"{within}/", autoescape=True))
    statement = base
    while found := unit.connection.execute(statement).mappings().all():
        yield from map(_summary, found)
        last = tuple_(*(found[-1][column.name] for column in _PLACE), types=[column.type for column in _PLACE])
        after: Any = tuple_(*_PLACE)
        statement = base.where(after > last)


_PLACE = (certificates.c.address, certificates.c.issued_at, certificates.c.fingerprint)
_BATCH = 500


def _summary(row: RowMapping) -> CertificateSummary:
    values = dict(row) | {
        "fingerprint": Fingerprint(row["fingerprint"]),
        "address": parse_address(row["address"]),
        "kind": CertificateKind(row["kind"]),
        "state": CertificateState(row["state"]),
        "serial": int(row["serial"], 16),
    }
    return CertificateSummary(**values)
