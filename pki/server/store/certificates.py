"""Certificate requests, certificates and CRLs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, select, update

from pki.core.certificates import CertificateRecord, CertificateState, RequestState, check_move
from pki.core.errors import ConflictError, IllegalMoveError, NotFoundError, ReplayedError
from pki.core.ids import Fingerprint, RequestId
from pki.core.tenants import Address, parse_address
from pki.core.x509 import CertificateKind
from pki.server.ports import CrlRecord, RequestRecord
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import certificates, crls, requests

_EXPIRING = [CertificateState.UNPROVED, CertificateState.ACTIVE, CertificateState.RETIRED]


def insert_request(unit: Unit, record: RequestRecord) -> None:
    """Store a request; raises ReplayedError when the same bytes were submitted before."""
    row = {
        "id": record.id,
        "address": str(record.address),
        "kind": record.kind.value,
        "der": record.der,
        "state": record.state.value,
        "reason": record.reason,
        "created_at": record.created_at,
        "fingerprint": record.fingerprint,
        "challenge": record.challenge,
    }
    if not rows.insert_new(unit, requests, [row], requests.c.id):
        raise ReplayedError("The same certificate request was submitted before", on=record.id)


def request(unit: Unit, request_id: RequestId, *, lock: bool = False) -> RequestRecord | None:
    """Return a request, held until the end of the unit when ``lock``."""
    found = requests_by_ids(unit, [request_id], lock=lock)
    return found[0] if found else None


def requests_by_ids(unit: Unit, ids: Sequence[RequestId], *, lock: bool = False) -> list[RequestRecord]:
    """Return the requests that exist, by id."""
    found = []
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(requests).where(requests.c.id.in_(chunk)).order_by(requests.c.id)
        if lock:
            statement = statement.with_for_update()
        found += [_request(row) for row in unit.connection.execute(statement).mappings()]
    return found


def set_request(
    unit: Unit,
    request_id: RequestId,
    state: RequestState,
    *,
    reason: str | None = None,
    fingerprint: Fingerprint | None = None,
    challenge: bytes | None = None,
) -> None:
    """Set a request's state, and what else is given; raises NotFoundError."""
    given = {"reason": rows.detail(reason), "fingerprint": fingerprint, "challenge": challenge}
    values = {"state": state.value} | {name: value for name, value in given.items() if value is not None}
    if not unit.connection.execute(update(requests).where(requests.c.id == request_id).values(values)).rowcount:
        raise NotFoundError(on=request_id)


def prepare(unit: Unit, request_id: RequestId, serial: int, tbs: bytes) -> tuple[int, bytes]:
    """Store what the CA is about to sign; return what was stored first, for that and nothing else is to be signed."""
    statement = (
        update(requests)
        .where(requests.c.id == request_id, requests.c.serial.is_(None))
        .values(serial=_hex(serial), tbs=tbs)
    )
    unit.connection.execute(statement)
    stored = prepared(unit, request_id)
    if stored is None:
        raise NotFoundError(on=request_id)
    return stored


def prepared(unit: Unit, request_id: RequestId) -> tuple[int, bytes] | None:
    """Return serial and to-be-signed bytes of a request, None when nothing was prepared."""
    statement = select(requests.c.serial, requests.c.tbs).where(requests.c.id == request_id)
    row = unit.connection.execute(statement).one_or_none()
    return None if row is None or row.serial is None else (int(row.serial, 16), row.tbs)


def insert_certificate(unit: Unit, record: CertificateRecord) -> bool:
    """Store an issued certificate; False when the same one is stored already.

    Raises ConflictError when its serial is taken, or it is active beside another active one.
    """
    row = asdict(record) | {
        "address": str(record.address),
        "kind": record.kind.value,
        "state": record.state.value,
        "serial": _hex(record.serial),
    }
    if rows.insert_new(unit, certificates, [row], certificates.c.fingerprint):
        return True
    if certificate(unit, record.fingerprint) is None:
        raise ConflictError("The certificate's serial or place is taken", on=record.fingerprint)
    return False


def certificate(unit: Unit, fingerprint: Fingerprint, *, lock: bool = False) -> CertificateRecord | None:
    """Return a certificate, held until the end of the unit when ``lock``."""
    statement = select(certificates).where(certificates.c.fingerprint == fingerprint)
    if lock:
        statement = statement.with_for_update()
    found = _records(unit, statement)
    return found[0] if found else None


def by_ski(unit: Unit, ski_hex: str) -> list[CertificateRecord]:
    """Return the certificates of a key, newest first."""
    return _records(unit, select(certificates).where(certificates.c.ski == ski_hex).order_by(*_NEWEST))


def active(unit: Unit, address: Address, kind: CertificateKind) -> CertificateRecord | None:
    """Return the one certificate of its kind that is in use at an address."""
    found = _records(
        unit,
        select(certificates).where(
            certificates.c.address == str(address),
            certificates.c.kind == kind.value,
            certificates.c.state == CertificateState.ACTIVE.value,
        ),
    )
    return found[0] if found else None


def history(unit: Unit, address: Address, kind: CertificateKind | None = None) -> list[CertificateRecord]:
    """Return all certificates of an address, newest first."""
    statement = select(certificates).where(certificates.c.address == str(address)).order_by(*_NEWEST)
    if kind is not None:
        statement = statement.where(certificates.c.kind == kind.value)
    return _records(unit, statement)


def set_certificate_state(
    unit: Unit, fingerprint: Fingerprint, state: CertificateState, *, now: datetime, reason: int | None = None
) -> None:
    """Move a certificate along ``CERTIFICATE_MOVES``; ``reason`` (RFC 5280 §5.3.1) goes with ``revoked``.

    Raises NotFoundError, IllegalMoveError, and ConflictError when another certificate is active in its place.
    """
    record = certificate(unit, fingerprint, lock=True)
    if record is None:
        raise NotFoundError(on=fingerprint)
    try:
        check_move(record.state, state)
    except IllegalMoveError as error:
        raise IllegalMoveError(error.message, on=fingerprint) from None
    if state is CertificateState.ACTIVE and active(unit, record.address, record.kind) is not None:
        raise ConflictError("Another certificate is active", on=str(record.address))
    values: dict[str, Any] = {"state": state.value}
    if state is CertificateState.REVOKED:
        values |= {"revoked_at": now, "revocation_reason": reason}
    unit.connection.execute(update(certificates).where(certificates.c.fingerprint == fingerprint).values(values))


def revoked(unit: Unit) -> list[CertificateRecord]:
    """Return all revoked certificates, first revoked first."""
    statement = (
        select(certificates)
        .where(certificates.c.state == CertificateState.REVOKED.value)
        .order_by(certificates.c.revoked_at, certificates.c.fingerprint)
    )
    return _records(unit, statement)


def due_expiry(unit: Unit, now: datetime, limit: int) -> list[CertificateRecord]:
    """Return up to ``limit`` certificates whose time is over and whose state does not say so yet."""
    statement = (
        select(certificates)
        .where(certificates.c.state.in_([state.value for state in _EXPIRING]), certificates.c.not_after <= now)
        .order_by(certificates.c.not_after)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return _records(unit, statement)


def insert_crl(unit: Unit, crl: CrlRecord) -> None:
    """Store a CRL; raises ConflictError when its number is taken."""
    row = {
        "number": crl.number,
        "der": crl.der,
        "this_update": crl.this_update,
        "next_update": crl.next_update,
    }
    if not rows.insert_new(unit, crls, [row], crls.c.number):
        raise ConflictError("The CRL's number is taken", on=str(crl.number))


def latest_crl(unit: Unit) -> CrlRecord | None:
    """Return the CRL with the highest number."""
    row = unit.connection.execute(select(crls).order_by(crls.c.number.desc()).limit(1)).mappings().one_or_none()
    return None if row is None else CrlRecord(**row)


_NEWEST = (certificates.c.issued_at.desc(), certificates.c.fingerprint)


def _hex(serial: int) -> str:
    return f"{serial:040x}"


def _records(unit: Unit, statement: Any) -> list[CertificateRecord]:
    return [_certificate(row) for row in unit.connection.execute(statement).mappings()]


def _certificate(row: RowMapping) -> CertificateRecord:
    return CertificateRecord(
        fingerprint=Fingerprint(row["fingerprint"]),
        address=parse_address(row["address"]),
        kind=CertificateKind(row["kind"]),
        serial=int(row["serial"], 16),
        der=row["der"],
        request_der=row["request_der"],
        state=CertificateState(row["state"]),
        not_before=row["not_before"],
        not_after=row["not_after"],
        issued_at=row["issued_at"],
        revoked_at=row["revoked_at"],
        revocation_reason=row["revocation_reason"],
        ski=row["ski"],
    )


def _request(row: RowMapping) -> RequestRecord:
    return RequestRecord(
        id=RequestId(row["id"]),
        address=parse_address(row["address"]),
        kind=CertificateKind(row["kind"]),
        der=row["der"],
        state=RequestState(row["state"]),
        reason=row["reason"],
        created_at=row["created_at"],
        fingerprint=None if row["fingerprint"] is None else Fingerprint(row["fingerprint"]),
        challenge=row["challenge"],
    )
