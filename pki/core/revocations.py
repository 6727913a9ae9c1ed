"""Revocation requests: the owner's signed wish that a certificate be trusted no more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pki.core import asn1, oids, signing
from pki.core.cmp import bodies, messages
from pki.core.cmp.bodies import Signed
from pki.core.cmp.protection import SignedBy
from pki.core.cmp.types import Body
from pki.core.crl import Reason, parse_reason
from pki.core.der import located
from pki.core.errors import ProfileError, WrongPartyError, demand
from pki.core.ids import Fingerprint
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.core.signing import UnverifiedSigned
from pki.core.x509 import CertificateKind, ParsedCertificate, Sign

MAX_REVOCATION = 16 * 1024
"""Bytes."""
KEY_IS_LOST = frozenset({Reason.UNSPECIFIED, Reason.KEY_COMPROMISE})
"""Reasons that speak of the key and not of the certificate alone (RFC 5280 §5.3.1)."""


@dataclass(frozen=True)
class Named:
    """Which certificate a wish is about: its fingerprint, or in CMP its issuer (Name in DER) and serial number."""

    fingerprint: Fingerprint | None = None
    place: tuple[bytes, int] | None = None

    def __str__(self) -> str:
        return self.fingerprint or (f"serial {self.place[1]:x}" if self.place else "")

    def fits(self, certificate: ParsedCertificate) -> bool:
        """Say whether the certificate is the one."""
        if self.place is not None:
            return self.place == (certificate.issuer_der, certificate.serial)
        return self.fingerprint == certificate.fingerprint


@dataclass(frozen=True)
class VerifiedRevocation:
    """A wish whose signer is proved; only `UnverifiedRevocation.verify` makes one."""

    named: Named
    reason: Reason
    requested: datetime


@dataclass(frozen=True)
class UnverifiedRevocation:
    """A wish that keeps the profile (rule REV-001)."""

    named: Named
    reason: Reason
    requested: datetime
    signed: UnverifiedSigned | Signed

    def verify(self, identity_key: VerifyingKey) -> VerifiedRevocation:
        """Return the wish if ``identity_key`` signed it, else raise SignatureError (rule SIG-006)."""
        self.signed.verify(identity_key)
        return VerifiedRevocation(self.named, self.reason, self.requested)


def compose_revocation(
    fingerprint: Fingerprint,
    reason: Reason,
    *,
    signer_ski: bytes,
    sign: Sign,
    signing_time: datetime,
    algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
) -> bytes:
    """Return a signed revocation request in DER; ``algorithm`` is that of ``sign``."""
    request = asn1.RevocationRequest(
        version=1,
        fingerprint=bytes.fromhex(fingerprint),
        reason=int(reason),
        requested=asn1.GeneralizedTime(signing_time.astimezone(UTC).replace(microsecond=0)),
    )
    return signing.sign(
        oids.REVOCATION_REQUEST,
        asn1.encode(request),
        extra={},
        signing_time=signing_time,
        signer_ski=signer_ski,
        sign=sign,
        algorithm=algorithm,
    )


@located
def parse_revocation(der: bytes) -> UnverifiedRevocation:
    """Return a revocation request that keeps the profile, our own or the rr of CMP without what came along."""
    if len(der) > MAX_REVOCATION:
        raise ProfileError("The revocation request is too large", on=f"{len(der)} bytes", rule="REV-001")
    if messages.is_message(der):
        return _of_message(messages.parse(der), der)
    signed = signing.parse(der, content_types={oids.REVOCATION_REQUEST}, extra=())
    raw = asn1.decode(asn1.RevocationRequest, signed.content, what="The revocation request")
    if raw.version != 1 or len(raw.fingerprint) != 32:
        raise ProfileError("The revocation request is not of version 1 for one certificate", rule="REV-001")
    return UnverifiedRevocation(
        named=Named(Fingerprint(raw.fingerprint.hex())),
        reason=parse_reason(raw.reason),
        requested=raw.requested.as_datetime().replace(tzinfo=UTC),
        signed=signed,
    )


def _of_message(message: messages.Message, der: bytes) -> UnverifiedRevocation:
    """Read an rr (docs/adr/0015): its signature is the message's, and its messageTime the time of the wish."""
    demand(message.kind is Body.RR and message.bare == der, "REV-001", "The CMP message is no revocation request alone")
    if not isinstance(message.algorithm, SignedBy) or message.header.time is None:
        raise ProfileError("A revocation request is signed, and says when", rule="REV-001")
    wish = bodies.parse_revocation(message.content)
    return UnverifiedRevocation(
        named=Named(place=(wish.issuer_der, wish.serial)),
        reason=parse_reason(wish.reason),
        requested=message.header.time,
        signed=Signed(message.algorithm.algorithm, message.protected, message.protection),
    )


def check_falls(wish: VerifiedRevocation, named: ParsedCertificate, certificate: ParsedCertificate) -> None:
    """Raise WrongPartyError unless ``certificate`` falls with the one that the wish names (rule REV-002).

    With a lost key its other certificates fall, and with an identity key the encryption keys that it may have endorsed.
    """
    if not wish.named.fits(named) or named.address != certificate.address:
        raise WrongPartyError("The revocation request is for another certificate", on=str(wish.named), rule="REV-002")
    if named.fingerprint == certificate.fingerprint:
        return
    endorsed = (named.kind, certificate.kind) == (CertificateKind.IDENTITY, CertificateKind.ENCRYPTION)
    if wish.reason not in KEY_IS_LOST or not (endorsed or named.ski == certificate.ski):
        raise WrongPartyError(
            "The certificate does not fall with the one that was revoked", on=certificate.fingerprint, rule="REV-002"
        )
