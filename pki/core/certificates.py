"""Certificates as facts, and the check that a relying party makes before it trusts one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property

from pki.core import envelope, keys, oids, requests, x509
from pki.core.crl import Crl
from pki.core.envelope import Recipient
from pki.core.errors import CertificateError, IllegalMoveError, RevokedError, WrongPartyError
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


@dataclass(frozen=True)
class VerifiedCertificate:
    """A certificate that passed every check; only `check_listed` and `check_stored` make one."""

    parsed: ParsedCertificate
    endorsed_at: datetime | None = None
    """When its owner signed the request that endorses it; None where that was verified before."""

    @cached_property
    def identity_key(self) -> VerifyingKey:
        """The key of an identity certificate."""
        return x509.identity_public_key(self.parsed.spki)

    @cached_property
    def recipient(self) -> Recipient:
        """The key of an encryption certificate, to wrap for in the way that its owner prefers."""
        algorithm, public = keys.parse_spki(self.parsed.spki)
        preferred = self.parsed.capabilities
        if preferred is None:
            return Recipient(self.parsed.ski, algorithm, public)
        return Recipient(self.parsed.ski, preferred.algorithm(algorithm), public, preferred.kdf)


def check_listed(
    certificate_der: bytes,
    request_der: bytes,
    *,
    address: Address,
    kind: CertificateKind,
    identity_key: VerifyingKey,
    issuing_der: bytes,
    root_der: bytes,
    crl: Crl | None,
    now: datetime,
) -> VerifiedCertificate:
    """Verify a listed certificate for ``address`` as a relying party does (rules CRT-…, REQ-…).

    ``identity_key`` is the one that the caller has pinned for the address: the request must be signed by it, so that a
    certificate that the operator made up is refused. ``crl`` is None only before the first list was published.
    """
    parsed = x509.parse_certificate(certificate_der)
    if parsed.address != address:
        raise WrongPartyError("The certificate is for another address", on=str(parsed.address), rule="CRT-011")
    if parsed.kind is not kind:
        raise CertificateError(f"The certificate is not for {kind}", on=str(address), rule="CRT-011")
    x509.verify_chain(parsed, issuing_der=issuing_der, root_der=root_der, now=now)
    if crl is not None and parsed.serial in crl.revoked:
        entry = crl.revoked[parsed.serial]
        raise RevokedError(on=f"{address}, since {entry.at:%Y-%m-%d %H:%M}Z, {entry.reason.name}", rule="CRT-010")
    request = requests.parse_request(request_der).verify(identity_key)
    endorsed = (request.address, request.kind, request.spki, request.capabilities)
    if endorsed != (address, kind, parsed.spki, parsed.capabilities):
        raise CertificateError("The request does not endorse this certificate", on=str(address), rule="CRT-012")
    if abs(parsed.not_before - request.signing_time) > ENDORSEMENT_WINDOW:
        raise CertificateError(
            "The certificate does not start within 48 hours of its request", on=str(address), rule="CRT-013"
        )
    if parsed.not_after - parsed.not_before > MAX_LIFETIME:
        raise CertificateError(
            f"The certificate is valid for more than {MAX_LIFETIME.days} days", on=str(address), rule="CRT-017"
        )
    return VerifiedCertificate(parsed, request.signing_time)


def check_stored(
    certificate_der: bytes, *, kind: CertificateKind, issuing_der: bytes, root_der: bytes, now: datetime
) -> VerifiedCertificate:
    """Verify profile, kind and chain of a certificate whose endorsement was verified when it was issued."""
    parsed = x509.parse_certificate(certificate_der)
    if parsed.kind is not kind:
        raise CertificateError(f"The certificate is not for {kind}", on=str(parsed.address), rule="CRT-011")
    x509.verify_chain(parsed, issuing_der=issuing_der, root_der=root_der, now=now)
    return VerifiedCertificate(parsed)


def encrypt_certificate(certificate_der: bytes, recipient: Recipient) -> bytes:
    """Return the certificate encrypted to its own key: who can open it has the key (RFC 4210 §5.2.8.2)."""
    return envelope.wrap(certificate_der, oids.DATA, [recipient])


def proof_of_decryption(certificate_der: bytes) -> str:
    """Return what proves that the encrypted certificate was opened: its SHA-256 in hex."""
    return hashlib.sha256(certificate_der).hexdigest()
