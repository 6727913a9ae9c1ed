"""Revocation requests: the owner's signed wish that a certificate be trusted no more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pki.core import asn1, oids, signing
from pki.core.crl import Reason, parse_reason
from pki.core.der import located
from pki.core.errors import ProfileError
from pki.core.ids import Fingerprint
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.core.signing import UnverifiedSigned
from pki.core.x509 import Sign

MAX_REVOCATION = 16 * 1024
"""Bytes."""


@dataclass(frozen=True)
class VerifiedRevocation:
    """A wish whose signer is proved; only `UnverifiedRevocation.verify` makes one."""

    fingerprint: Fingerprint
    reason: Reason
    requested: datetime


@dataclass(frozen=True)
class UnverifiedRevocation:
    """A wish that keeps the profile (rule REV-001)."""

    fingerprint: Fingerprint
    reason: Reason
    requested: datetime
    signed: UnverifiedSigned

    def verify(self, identity_key: VerifyingKey) -> VerifiedRevocation:
        """Return the wish if ``identity_key`` signed it, else raise SignatureError (rule SIG-006)."""
        self.signed.verify(identity_key)
        return VerifiedRevocation(self.fingerprint, self.reason, self.requested)


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
    """Return a revocation request that keeps the profile."""
    if len(der) > MAX_REVOCATION:
        raise ProfileError("The revocation request is too large", on=f"{len(der)} bytes", rule="REV-001")
    signed = signing.parse(der, content_types={oids.REVOCATION_REQUEST}, extra=())
    raw = asn1.decode(asn1.RevocationRequest, signed.content, what="The revocation request")
    if raw.version != 1 or len(raw.fingerprint) != 32:
        raise ProfileError("The revocation request is not of version 1 for one certificate", rule="REV-001")
    return UnverifiedRevocation(
        fingerprint=Fingerprint(raw.fingerprint.hex()),
        reason=parse_reason(raw.reason),
        requested=raw.requested.as_datetime().replace(tzinfo=UTC),
        signed=signed,
    )
