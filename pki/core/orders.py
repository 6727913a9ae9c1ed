"""Orders: what the operator's officers sign, one the order and another its approval, before it is carried out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NewType

from cryptography.hazmat.asn1 import sequence
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids, signing
from pki.core.crl import Reason, parse_reason
from pki.core.der import located
from pki.core.errors import ForbiddenError, SignatureError, StaleError, demand
from pki.core.ids import Fingerprint
from pki.core.officers import Officer, Officers, moment, sequence_of
from pki.core.signers import SigningKey
from pki.core.signing import UnverifiedSigned

OrderId = NewType("OrderId", str)
"""The SHA-256 of a signed order in DER, 64 hex digits."""

MAX_ORDER = 64 * 1024
"""Bytes of an order, and of an approval."""
MOST_CERTIFICATES = 1000
MOST_TEXT = 500
"""Characters of what the owner is told."""
LIFETIME = timedelta(hours=24)
"""How long an order waits for its approval at most."""
LONGEST_LIFT = timedelta(hours=24)
MOST_LIFTED = 100_000
GRACE = timedelta(hours=24)
"""How long after an officer was removed an order of before may still come on a list for the first time."""
SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class RevocationOrder:
    """Revoke exactly these certificates; ``because`` is what their owners are told."""

    officer: str
    because: str
    created: datetime
    expires: datetime
    reason: Reason
    fingerprints: tuple[Fingerprint, ...]


@dataclass(frozen=True)
class CapLift:
    """Let orders revoke ``count`` certificates in 24 hours, for ``lasts`` from the approval on."""

    officer: str
    because: str
    created: datetime
    expires: datetime
    count: int
    lasts: timedelta


Content = RevocationOrder | CapLift


@dataclass(frozen=True)
class UnverifiedOrder:
    """An order that keeps the profile (rule ORD-004); who gave it is a claim."""

    id: OrderId
    content: Content
    signed: UnverifiedSigned

    def ordered_by(self, officers: Officers) -> Officer:
        """Return the officer who signed it; raises ForbiddenError, SignatureError. Alone it does nothing."""
        officer = officers.at(self.content.officer, self.content.created)
        self.signed.verify(officer.key)
        return officer


@dataclass(frozen=True)
class UnverifiedApproval:
    """An approval that keeps the profile (rule ORD-004)."""

    officer: str
    order: OrderId
    approved: datetime
    signed: UnverifiedSigned


@dataclass(frozen=True)
class VerifiedOrder:
    """An order that two officers signed; only `verify_order` makes one."""

    id: OrderId
    content: Content
    ordered_by: str
    approved_by: str
    approved: datetime


def verify_order(
    order: UnverifiedOrder, approval: UnverifiedApproval, officers: Officers, *, now: datetime | None
) -> VerifiedOrder:
    """Return the order if two different officers signed it, in time (rules ORD-003, -005, -006), or raise.

    ``now`` is None for an order that was carried out long ago: then it counts that both were officers when they signed.
    """
    if approval.order != order.id:
        raise SignatureError("The approval is for another order", on=approval.order, rule="ORD-005")
    first, second = order.ordered_by(officers), officers.at(approval.officer, approval.approved)
    if first.name == second.name or first.key == second.key:
        raise ForbiddenError(
            "An order is approved by somebody else than who gave it", on=second.name, hint=_APPROVE, rule="ORD-005"
        )
    approval.signed.verify(second.key)
    if not order.content.created - SKEW <= approval.approved < order.content.expires:
        raise StaleError(
            "The order was not approved in time", on=f"until {order.content.expires}", hint=_AGAIN, rule="ORD-006"
        )
    # Who signs the approval says when that was: an officer of today may not bring one of yesterday back.
    if first.removed is not None and first.removed <= approval.approved:
        raise ForbiddenError("The officer who gave the order was removed", on=first.name, hint=_AGAIN, rule="ORD-003")
    for officer in (first, second) if now is not None else ():
        if officer.removed is not None and now is not None and officer.removed + GRACE < now:
            raise ForbiddenError("The officer was removed", on=officer.name, hint=_AGAIN, rule="ORD-003")
    if now is not None and approval.approved > now + SKEW:
        raise StaleError("The approval is from the future", on=str(approval.approved), rule="ORD-006")
    return VerifiedOrder(order.id, order.content, first.name, second.name, approval.approved)


def compose_order(content: Content, key: SigningKey) -> bytes:
    """Return a signed order in DER; raises as `parse_order` does when it does not keep the profile."""
    created, expires = _time(content.created), _time(content.expires)
    if isinstance(content, RevocationOrder):
        kind = oids.REVOCATION_ORDER
        hashes = sorted(bytes.fromhex(one) for one in content.fingerprints)
        encoded = asn1.encode(
            RawRevocationOrder(
                version=1,
                officer=content.officer,
                because=content.because,
                created=created,
                expires=expires,
                reason=int(content.reason),
                certificates=asn1.tlv(sequence_of([_HEAD + one for one in hashes])),
            )
        )
    else:
        kind = oids.CAP_LIFT
        encoded = asn1.encode(
            RawCapLift(
                version=1,
                officer=content.officer,
                because=content.because,
                created=created,
                expires=expires,
                count=content.count,
                seconds=int(content.lasts.total_seconds()),
            )
        )
    order = _signed(kind, encoded, content.created, key)
    parse_order(order)
    return order


def compose_approval(order: OrderId, officer: str, key: SigningKey, now: datetime) -> bytes:
    """Return a signed approval in DER."""
    raw = RawApproval(version=1, officer=officer, order=bytes.fromhex(order), approved=_time(now))
    return _signed(oids.ORDER_APPROVAL, asn1.encode(raw), now, key)


@located
def parse_order(der: bytes) -> UnverifiedOrder:
    """Return an order that keeps the profile (rule ORD-004)."""
    demand(len(der) <= MAX_ORDER, "ORD-004", f"An order has at most {MAX_ORDER} bytes")
    signed = signing.parse(der, content_types={oids.REVOCATION_ORDER, oids.CAP_LIFT}, extra=())
    content = _revocation(signed) if signed.content_type == oids.REVOCATION_ORDER else _lift(signed)
    text = content.because
    demand(1 <= len(text) <= MOST_TEXT and text.isprintable(), "ORD-004", "The text is no line of 1 to 500 characters")
    good_for = content.expires - content.created
    demand(timedelta(0) < good_for <= LIFETIME, "ORD-004", "An order is good for at most 24 hours")
    demand(signed.signing_time == content.created, "ORD-004", "The order was not signed when it says")
    return UnverifiedOrder(OrderId(hashlib.sha256(der).hexdigest()), content, signed)


@located
def parse_approval(der: bytes) -> UnverifiedApproval:
    """Return an approval that keeps the profile (rule ORD-004)."""
    demand(len(der) <= MAX_ORDER, "ORD-004", f"An approval has at most {MAX_ORDER} bytes")
    signed = signing.parse(der, content_types={oids.ORDER_APPROVAL}, extra=())
    raw = asn1.decode(RawApproval, signed.content, what="The approval")
    demand(raw.version == 1 and len(raw.order) == 32, "ORD-004", "The approval is not of version 1 for one order")
    approved = moment(raw.approved, "ORD-004")
    demand(signed.signing_time == approved, "ORD-004", "The approval was not signed when it says")
    return UnverifiedApproval(raw.officer, OrderId(raw.order.hex()), approved, signed)


def _revocation(signed: UnverifiedSigned) -> RevocationOrder:
    raw = asn1.decode(RawRevocationOrder, signed.content, what="The order")
    demand(raw.version == 1, "ORD-004", "The order is not of version 1")
    data = bytes(raw.certificates.data)
    entries = [data[at : at + _ENTRY] for at in range(0, len(data), _ENTRY)]
    fits = raw.certificates.tag_bytes == b"\x30" and 1 <= len(entries) <= MOST_CERTIFICATES
    demand(
        fits
        and all(len(one) == _ENTRY and one.startswith(_HEAD) for one in entries)
        and entries == sorted(set(entries)),
        "ORD-004",
        f"An order names 1 to {MOST_CERTIFICATES} certificates, in order and none twice",
    )
    return RevocationOrder(
        officer=raw.officer,
        because=raw.because,
        created=moment(raw.created, "ORD-004"),
        expires=moment(raw.expires, "ORD-004"),
        reason=parse_reason(raw.reason),
        fingerprints=tuple(Fingerprint(one[len(_HEAD) :].hex()) for one in entries),
    )


def _lift(signed: UnverifiedSigned) -> CapLift:
    raw = asn1.decode(RawCapLift, signed.content, what="The order")
    demand(raw.version == 1, "ORD-004", "The order is not of version 1")
    longest = int(LONGEST_LIFT.total_seconds())
    demand(1 <= raw.count <= MOST_LIFTED, "ORD-004", f"The cap is lifted to 1 to {MOST_LIFTED} certificates")
    demand(60 <= raw.seconds <= longest, "ORD-004", f"The cap is lifted for 60 to {longest} seconds")
    return CapLift(
        officer=raw.officer,
        because=raw.because,
        created=moment(raw.created, "ORD-004"),
        expires=moment(raw.expires, "ORD-004"),
        count=raw.count,
        lasts=timedelta(seconds=raw.seconds),
    )


def _signed(kind: Oid, content: bytes, now: datetime, key: SigningKey) -> bytes:
    return signing.sign(
        kind,
        content,
        extra={},
        signing_time=now,
        signer_ski=key.public.ski,
        sign=key.sign,
        algorithm=key.public.algorithm,
    )


def _time(at: datetime) -> asn1.GeneralizedTime:
    return asn1.GeneralizedTime(at.astimezone(UTC).replace(microsecond=0))


_HEAD = b"\x04\x20"
"""An OCTET STRING of 32 bytes."""
_ENTRY = 34
_APPROVE = "kmb-server revoke approve ORDER --officer ANOTHER --key FILE"
_AGAIN = "kmb-server revoke order ADDRESS --reason REASON --because TEXT --officer NAME --key FILE"


@sequence
class RawRevocationOrder:
    """The content of an order to revoke; the certificates as SEQUENCE OF OCTET STRING, counted before it is decoded."""

    version: int
    officer: str
    because: str
    created: asn1.GeneralizedTime
    expires: asn1.GeneralizedTime
    reason: int
    certificates: asn1.TLV


@sequence
class RawCapLift:
    """The content of an order to lift the cap."""

    version: int
    officer: str
    because: str
    created: asn1.GeneralizedTime
    expires: asn1.GeneralizedTime
    count: int
    seconds: int


@sequence
class RawApproval:
    """The content of an approval: of which order (SHA-256 of its DER), when."""

    version: int
    officer: str
    order: bytes
    approved: asn1.GeneralizedTime
