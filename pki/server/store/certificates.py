"""Certificate requests, certificates and CRLs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import LargeBinary, RowMapping, func, literal, select, update

from pki.core.certificates import (
    CERTIFICATE_MOVES,
    CertificateRecord,
    CertificateState,
    CertifiedKey,
    RequestState,
    check_move,
)
from pki.core.errors import BadAddressError, ConflictError, IllegalMoveError, NotFoundError, ReplayedError
from pki.core.ids import Fingerprint, RequestId
from pki.core.tenants import Address, parse_address
from pki.core.x509 import CertificateKind
from pki.server.facts import RequestRecord
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import certificates, requests

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


def first_request(unit: Unit, address: Address) -> RequestRecord | None:
    """Return the request that an instance was enrolled with."""
    statement = select(requests).where(requests.c.address == str(address)).order_by(requests.c.created_at).limit(1)
    row = unit.connection.execute(statement).mappings().one_or_none()
    return None if row is None else request_of(row)


def requests_by_ids(unit: Unit, ids: Sequence[RequestId], *, lock: bool = False) -> list[RequestRecord]:
    """Return the requests that exist, by id."""
    found = []
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(requests).where(requests.c.id.in_(chunk)).order_by(requests.c.id)
        if lock:
            statement = statement.with_for_update()
        found += [request_of(row) for row in unit.connection.execute(statement).mappings()]
    return found


def insert_certificate(unit: Unit, record: CertificateRecord) -> bool:
    """Store an issued certificate; False when the same one is stored already.

    Raises ConflictError when its serial is taken, or it is active beside another active one.
    """
    if rows.insert_new(unit, certificates, [_row(record)], certificates.c.fingerprint):
        return True
    if certificate(unit, record.fingerprint) is None:
        raise ConflictError("The certificate's serial or place is taken", on=record.fingerprint)
    return False


def insert_certificates(unit: Unit, records: Sequence[CertificateRecord]) -> None:
    """Store issued certificates, all or none; raises ConflictError when a serial or a fingerprint is taken."""
    new = rows.insert_new(unit, certificates, [_row(record) for record in records], certificates.c.fingerprint)
    if len(new) != len(records):
        taken = {record.fingerprint for record in records} - set(new)
        raise ConflictError("The certificate's serial or place is taken", on=", ".join(sorted(taken))[:200])


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


def by_skis(unit: Unit, skis: Sequence[str]) -> Mapping[str, Sequence[CertificateRecord]]:
    """Return the certificates of some keys, each key's newest first."""
    found: dict[str, list[CertificateRecord]] = {ski: [] for ski in skis}
    for chunk in rows.chunks(sorted(found)):
        statement = select(certificates).where(certificates.c.ski.in_(chunk)).order_by(*_NEWEST)
        for record in _records(unit, statement):
            found[record.ski].append(record)
    return found


def keys(unit: Unit, skis: Collection[str]) -> Mapping[str, Sequence[CertifiedKey]]:
    """Return what the directory says of some keys, each key's newest certificate first, without the certificates."""
    found: dict[str, list[CertifiedKey]] = {ski: [] for ski in skis}
    for chunk in rows.chunks(sorted(found)):
        statement = select(*_KEY).where(certificates.c.ski.in_(chunk)).order_by(*_NEWEST)
        for row in unit.connection.execute(statement):
            found[row.ski].append(
                CertifiedKey(
                    fingerprint=Fingerprint(row.fingerprint),
                    address=parse_address(row.address),
                    kind=CertificateKind(row.kind),
                    state=CertificateState(row.state),
                    ski=row.ski,
                )
            )
    return found


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


def active_at(
    unit: Unit, addresses: Sequence[Address], kind: CertificateKind, *, lock: bool = False
) -> list[CertificateRecord]:
    """Return the certificates of a kind that are in use at some addresses, held until the unit's end when ``lock``."""
    found = []
    for chunk in rows.chunks(sorted({str(address) for address in addresses})):
        statement = (
            select(certificates)
            .where(
                certificates.c.address.in_(chunk),
                certificates.c.kind == kind.value,
                certificates.c.state == CertificateState.ACTIVE.value,
            )
            .order_by(certificates.c.address)
        )
        found += _records(unit, statement.with_for_update() if lock else statement)
    return found


def history(unit: Unit, address: Address, kind: CertificateKind | None = None) -> list[CertificateRecord]:
    """Return all certificates of an address, newest first."""
    statement = select(certificates).where(certificates.c.address == str(address)).order_by(*_NEWEST)
    if kind is not None:
        statement = statement.where(certificates.c.kind == kind.value)
    return _records(unit, statement)


def held_states(unit: Unit, fingerprints: Collection[Fingerprint]) -> Mapping[Fingerprint, CertificateState]:
    """Return the states of those certificates that exist, which stay as they are until the end of the unit.

    Several units may hold the same ones; who changes a state waits for all of them.
    """
    found: dict[Fingerprint, CertificateState] = {}
    for chunk in rows.chunks(sorted(set(fingerprints))):
        statement = (
            select(certificates.c.fingerprint, certificates.c.state)
            .where(certificates.c.fingerprint.in_(chunk))
            .order_by(certificates.c.fingerprint)
            .with_for_update(read=True)
        )
        for row in unit.connection.execute(statement):
            found[Fingerprint(row.fingerprint)] = CertificateState(row.state)
    return found


def set_certificate_state(
    unit: Unit,
    fingerprint: Fingerprint,
    state: CertificateState,
    *,
    now: datetime,
    reason: int | None = None,
    by: str | None = None,
    because: str | None = None,
) -> None:
    """Move a certificate along ``CERTIFICATE_MOVES``; ``reason`` (RFC 5280 §5.3.1) and the rest go with ``revoked``.

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
        values |= {"revoked_at": now, "revocation_reason": reason, "revoked_by": by, "because": because}
    unit.connection.execute(update(certificates).where(certificates.c.fingerprint == fingerprint).values(values))


def set_certificate_states(unit: Unit, fingerprints: Sequence[Fingerprint], state: CertificateState) -> None:
    """Move certificates along ``CERTIFICATE_MOVES``, all or none; for what needs no time and no reason.

    Raises IllegalMoveError when one is not there or may not move, ConflictError when another is active in its place.
    """
    before = [old.value for old, following in CERTIFICATE_MOVES.items() if state in following]
    for chunk in rows.chunks(sorted(set(fingerprints))):
        statement = (
            update(certificates)
            .where(certificates.c.fingerprint.in_(chunk), certificates.c.state.in_(before))
            .values(state=state.value)
        )
        if unit.connection.execute(statement).rowcount != len(chunk):
            raise IllegalMoveError(f"A certificate of these cannot become {state}")


def ders(unit: Unit, wanted: Sequence[Fingerprint]) -> Iterator[tuple[Fingerprint, bytes]]:
    """Yield certificates in DER."""
    for chunk in rows.chunks(sorted(set(wanted))):
        statement = select(certificates.c.fingerprint, certificates.c.der).where(certificates.c.fingerprint.in_(chunk))
        for row in unit.connection.execute(statement):
            yield Fingerprint(row.fingerprint), row.der


def of_serials(unit: Unit, serials: Sequence[int]) -> list[Fingerprint]:
    """Return the fingerprints of the certificates whose rows have these serials."""
    found = []
    for chunk in rows.chunks(sorted({serial_text(serial) for serial in serials})):
        statement = select(certificates.c.fingerprint).where(certificates.c.serial.in_(chunk))
        found += [Fingerprint(one) for one in unit.connection.execute(statement).scalars()]
    return found


def taken(unit: Unit, serials: Collection[int]) -> set[int]:
    """Return which of these serials certificates' own bytes begin with; one look at all of them, however many."""
    wanted = {_INTEGER + bytes([len(content)]) + content: serial for serial in serials if (content := _content(serial))}
    if not wanted:
        return set()
    beginnings = select(func.substr(certificates.c.der, 1, _BEGINNING, type_=LargeBinary))
    found = set()
    for beginning in unit.connection.execute(beginnings).scalars():
        # The serial follows the version 3 (RFC 5280 §4.1).
        at = beginning.find(_VERSION) + len(_VERSION)
        serial = wanted.get(bytes(beginning[at : at + 2 + beginning[at + 1]]))
        if serial is not None:
            found.add(serial)
    return found


def _content(serial: int) -> bytes:
    return serial.to_bytes((serial.bit_length() + 8) // 8, "big")


_INTEGER, _VERSION, _BEGINNING = b"\x02", b"\xa0\x03\x02\x01\x02", 64


def holds(unit: Unit, serial: int) -> bool:
    """Return whether a certificate's own bytes hold this serial, whatever the columns beside them say; slow."""
    needle = _content(serial)
    place = func.instr(certificates.c.der, needle)
    if unit.dialect == "postgresql":
        place = func.position(literal(needle, LargeBinary).op("IN")(certificates.c.der))
    return unit.connection.execute(select(certificates.c.fingerprint).where(place > 0).limit(1)).first() is not None


def owner(unit: Unit, fingerprint: Fingerprint) -> Address | None:
    """Return whose certificate it is, as far as its row tells."""
    statement = select(certificates.c.address).where(certificates.c.fingerprint == fingerprint)
    found = unit.connection.execute(statement).scalar_one_or_none()
    try:
        return None if found is None else parse_address(found)
    except BadAddressError:
        return None


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


_KEY = [certificates.c[field.name] for field in fields(CertifiedKey)]
_NEWEST = (certificates.c.issued_at.desc(), certificates.c.fingerprint)


def serial_text(serial: int) -> str:
    """Return a serial number as it is stored: 40 hex digits."""
    return f"{serial:040x}"


def _row(record: CertificateRecord) -> dict[str, Any]:
    row = {column.name: getattr(record, column.name) for column in certificates.columns}
    return row | {
        "address": str(record.address),
        "kind": record.kind.value,
        "state": record.state.value,
        "serial": serial_text(record.serial),
    }


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
        revoked_by=row["revoked_by"],
        because=row["because"],
        ski=row["ski"],
        issuer=row["issuer"],
    )


def request_of(row: RowMapping) -> RequestRecord:
    """Return a row of the table of requests as what it says."""
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
