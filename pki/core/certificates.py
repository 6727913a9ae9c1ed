"""Certificates as facts, and the check that a relying party makes before it trusts one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property

from pki.core import asn1, envelope, oids, requests, signatures, x509
from pki.core.authorities import authority_key, issuer_of, verify_authorities
from pki.core.crl import Crl
from pki.core.envelope import Recipient
from pki.core.errors import CertificateError, IllegalMoveError, RevokedError, SignatureError, WrongPartyError
from pki.core.ids import Fingerprint
from pki.core.signatures import VerifyingKey
from pki.core.tenants import Address
from pki.core.x509 import CertificateKind as CertificateKind
from pki.core.x509 import ParsedCertificate

MAX_LIFETIME = timedelta(days=400)
"""How long a certificate may be valid: what was endorsed once is not endorsed for ever (docs/adr/0010)."""
ENDORSEMENT_WINDOW = timedelta(hours=48)
"""How far a certificate's notBefore may lie from its request's signing time (docs/adr/0002)."""


class RequestState(StrEnum):
    """Where a certificate request stands."""

    PENDING = "pending"
    ISSUED = "issued"
    REJECTED = "rejected"


class CertificateState(StrEnum):
    """Where a certificate stands; ``retired`` ones still open mail under way."""

    UNPROVED = "unproved"
    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"
    EXPIRED = "expired"


_S = CertificateState
CERTIFICATE_MOVES: Mapping[CertificateState, frozenset[CertificateState]] = {
    _S.UNPROVED: frozenset({_S.ACTIVE, _S.REVOKED, _S.EXPIRED}),
    _S.ACTIVE: frozenset({_S.RETIRED, _S.REVOKED, _S.EXPIRED}),
    _S.RETIRED: frozenset({_S.REVOKED, _S.EXPIRED}),
    _S.REVOKED: frozenset(),
    _S.EXPIRED: frozenset(),
}


def check_move(old: CertificateState, new: CertificateState) -> None:
    """Raise IllegalMoveError unless a certificate may go from ``old`` to ``new``."""
    if new not in CERTIFICATE_MOVES[old]:
        raise IllegalMoveError(f"A certificate that is {old} cannot become {new}")


def renewal_due(not_before: datetime, not_after: datetime) -> datetime:
    """Return when a certificate is to be renewed: two thirds of its life are over (docs/adr/0018)."""
    return not_after - (not_after - not_before) / 3


@dataclass(frozen=True)
class CertificateRecord:
    """A certificate as the directory keeps it, with the request that endorses it."""

    fingerprint: Fingerprint
    address: Address
    kind: CertificateKind
    serial: int
    der: bytes
    request_der: bytes
    state: CertificateState
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    ski: str
    revoked_at: datetime | None = None
    revocation_reason: int | None = None
    revoked_by: str | None = None
    """``owner``, or ``operator: `` and the names of the two officers; None when nobody wrote it down."""
    because: str | None = None
    """What an operator tells the owner."""
    issuer: str = ""
    """The issuing CA's key identifier, in hex."""


@dataclass(frozen=True)
class CertifiedKey:
    """What the directory says of a certificate, without the bytes that prove it; ``ski`` is the key's in hex."""

    fingerprint: Fingerprint
    address: Address
    kind: CertificateKind
    state: CertificateState
    ski: str


@dataclass(frozen=True)
class VerifiedCertificate:
    """A certificate that passed every check; only `check_listed` and `check_stored` make one."""

    parsed: ParsedCertificate
    endorsed_at: datetime | None = None
    """When its owner signed the request that endorses it; None where that was verified before, or is not said."""

    @cached_property
    def identity_key(self) -> VerifyingKey:
        """The key of an identity certificate."""
        return x509.identity_public_key(self.parsed.spki)

    @cached_property
    def recipient(self) -> Recipient:
        """The key of an encryption certificate, to wrap for in the way that its owner prefers."""
        return self.parsed.recipient


def check_listed(
    certificate_der: bytes,
    request_der: bytes,
    *,
    address: Address,
    kind: CertificateKind,
    identity_key: VerifyingKey,
    issuing_der: bytes | Sequence[bytes],
    root_der: bytes,
    crl: Crl | None,
    now: datetime,
) -> VerifiedCertificate:
    """Verify a listed certificate for ``address`` as a relying party does (rules CRT-…, REQ-…).

    ``identity_key`` is the one that the caller has pinned for the address: the request must be signed by it, so that a
    certificate that the operator made up is refused. ``issuing_der`` is the issuing CA's certificate, or several to
    choose from by the authority key identifier. ``crl`` is None only before the first list was published.
    """
    parsed = x509.parse_certificate(certificate_der)
    if parsed.address != address:
        raise WrongPartyError("The certificate is for another address", on=str(parsed.address), rule="CRT-011")
    if parsed.kind is not kind:
        raise CertificateError(f"The certificate is not for {kind}", on=str(address), rule="CRT-011")
    x509.verify_chain(parsed, issuing_der=_issuer(parsed, issuing_der), root_der=root_der, now=now)
    if crl is not None and crl.issuer != parsed.aki:
        raise CertificateError("The revocation list is another issuing CA's", on=str(address), rule="CRT-010")
    if crl is not None and parsed.serial in crl.revoked:
        entry = crl.revoked[parsed.serial]
        raise RevokedError(on=f"{address}, since {entry.at:%Y-%m-%d %H:%M}Z, {entry.reason.name}", rule="CRT-010")
    request = requests.parse_request(request_der).verify(identity_key)
    endorsed = (request.address, request.kind, request.spki, request.capabilities)
    if endorsed != (address, kind, parsed.spki, parsed.capabilities):
        raise CertificateError("The request does not endorse this certificate", on=str(address), rule="CRT-012")
    # Without a time it endorses nothing but the pinned key itself, whenever that is (docs/adr/0016).
    if request.signing_time and abs(parsed.not_before - request.signing_time) > ENDORSEMENT_WINDOW:
        raise CertificateError(
            "The certificate does not start within 48 hours of its request", on=str(address), rule="CRT-013"
        )
    if parsed.not_after - parsed.not_before > MAX_LIFETIME:
        raise CertificateError(
            f"The certificate is valid for more than {MAX_LIFETIME.days} days", on=str(address), rule="CRT-017"
        )
    return VerifiedCertificate(parsed, request.signing_time)


def check_stored(
    certificate_der: bytes,
    *,
    kind: CertificateKind,
    issuing_der: bytes | Sequence[bytes],
    root_der: bytes,
    now: datetime,
) -> VerifiedCertificate:
    """Verify profile, kind and chain of a certificate whose endorsement was verified when it was issued.

    ``issuing_der`` is the issuing CA's certificate, or several to choose from by the authority key identifier.
    """
    parsed = x509.parse_certificate(certificate_der)
    return check_parsed(parsed, kind=kind, issuing_der=issuing_der, root_der=root_der, now=now)


def check_parsed(
    parsed: ParsedCertificate,
    *,
    kind: CertificateKind,
    issuing_der: bytes | Sequence[bytes],
    root_der: bytes,
    now: datetime,
) -> VerifiedCertificate:
    """Do what `check_stored` does with a certificate that was parsed before."""
    if parsed.kind is not kind:
        raise CertificateError(f"The certificate is not for {kind}", on=str(parsed.address), rule="CRT-011")
    x509.verify_chain(parsed, issuing_der=_issuer(parsed, issuing_der), root_der=root_der, now=now)
    return VerifiedCertificate(parsed)


def check_signed(certificate_der: bytes, tbs: bytes, *, issuing_der: bytes, root_der: bytes, now: datetime) -> None:
    """Verify what a CA has just signed: exactly ``tbs``, under the issuing CA's key, which chains to the root.

    Raises CertificateError (rules ISS-002, CRT-008, -014), ExpiredError. What ``tbs`` says was looked at before.
    """
    verify_authorities(issuing_der=issuing_der, root_der=root_der, now=now)
    outer = asn1.decode(asn1.Certificate, certificate_der, what="The certificate")
    if asn1.encode(outer.tbs) != tbs:
        raise CertificateError("The signed certificate is not the one that was stored", rule="ISS-002")
    key = authority_key(issuing_der)
    try:
        if signatures.algorithm_of(outer.signature_algorithm, rule="CRT-002") is not key.algorithm:
            raise SignatureError
        key.verify(outer.signature.as_bytes(), tbs)
    except SignatureError:
        raise CertificateError("The certificate is not signed by the issuing CA", rule="CRT-008") from None


def encrypt_certificate(certificate_der: bytes, recipient: Recipient) -> bytes:
    """Return the certificate encrypted to its own key: who can open it has the key (RFC 4210 §5.2.8.2)."""
    return envelope.wrap(certificate_der, oids.DATA, [recipient])


def proof_of_decryption(certificate_der: bytes) -> str:
    """Return what proves that the encrypted certificate was opened: its SHA-256 in hex."""
    return hashlib.sha256(certificate_der).hexdigest()


def _issuer(parsed: ParsedCertificate, issuing_der: bytes | Sequence[bytes]) -> bytes:
    return issuing_der if isinstance(issuing_der, bytes) else issuer_of(issuing_der, parsed.aki)
