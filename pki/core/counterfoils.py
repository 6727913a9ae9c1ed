"""The counterfoil of a deposit: its SignedData without the content, which proves who signed what after that is gone.

RFC 5652 §5.2 calls it an external signature. The sender's signature is over the signed attributes: the deposit's id,
its context (who hands which version of which key to whom, until when), the time, and the digest of the envelope. The
envelope itself, which alone holds the wrapped key, is not in it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime

from pki.core import asn1, oids, signing
from pki.core.deposits import Context, decode_context
from pki.core.der import located
from pki.core.errors import ProfileError, SignatureError, TooLargeError
from pki.core.ids import DepositId, deposit_id
from pki.core.signatures import VerifyingKey
from pki.core.signing import UnverifiedSigned

MAX_COUNTERFOIL = 16 * 1024
"""Bytes; one with ML-DSA-87 has about 5,500."""


@dataclass(frozen=True)
class Counterfoil:
    """What a sender signed, proved; only `UnverifiedCounterfoil.verify` makes one.

    ``message_digest`` is the digest of the envelope by the algorithm ``digest``.
    """

    id: DepositId
    context: Context
    signing_time: datetime
    signer_ski: bytes
    digest: str
    message_digest: bytes
    der: bytes

    def match(self, deposit: bytes) -> None:
        """Raise SignatureError unless this is cut from these bytes of a deposit, the envelope's digest included."""
        signed = signing.parse(deposit, content_types={oids.CONTENT_INFO}, extra=_EXTRA)
        same = hmac.compare_digest(cut(deposit), self.der)
        if not same or not hmac.compare_digest(signing.digest_of(self.digest, signed.content), self.message_digest):
            raise SignatureError("The counterfoil belongs to another deposit", on=self.id)


@dataclass(frozen=True)
class UnverifiedCounterfoil:
    """A counterfoil that keeps the profile; who signed it is a claim."""

    id: DepositId
    context: Context
    signed: UnverifiedSigned
    der: bytes

    def verify(self, key: VerifyingKey) -> Counterfoil:
        """Return it if ``key`` signed it, else raise SignatureError."""
        self.signed.verify_attributes(key)
        return Counterfoil(
            id=self.id,
            context=self.context,
            signing_time=self.signed.signing_time,
            signer_ski=self.signed.signer_ski,
            digest=self.signed.digest,
            message_digest=self.signed.message_digest,
            der=self.der,
        )


def cut(deposit: bytes) -> bytes:
    """Return the counterfoil of a deposit: all of its SignedData but the content. Raises MalformedError."""
    outer = asn1.decode(asn1.ContentInfo, deposit, what="The deposit")
    signed = asn1.inner(asn1.MeasuredSignedData, outer.content, what="The deposit")
    left = asn1.DetachedSignedData(
        version=signed.version,
        digest_algorithms=signed.digest_algorithms,
        content=asn1.DetachedContent(content_type=signed.content.content_type),
        signer_infos=signed.signer_infos,
    )
    return asn1.encode(asn1.ContentInfo(content_type=outer.content_type, content=asn1.tlv(asn1.encode(left))))


@located
def parse(der: bytes) -> UnverifiedCounterfoil:
    """Return a counterfoil that keeps the deposits' profile (rules SIG-001 to SIG-005, DEP-002, DEP-003)."""
    if len(der) > MAX_COUNTERFOIL:
        raise TooLargeError(f"A counterfoil has at most {MAX_COUNTERFOIL} bytes", on=f"{len(der)} bytes")
    signed = signing.parse(der, content_types={oids.CONTENT_INFO}, extra=_EXTRA, detached=True)
    identified = asn1.decode(
        asn1.PackageIdAndReceiptRequest,
        signed.attributes[oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST],
        what="The key package id",
    )
    if len(identified.package_id) != 16:
        raise ProfileError("The id of a deposit has 16 bytes", rule="DEP-003")
    context = decode_context(signed.attributes[oids.DEPOSIT_CONTEXT])
    return UnverifiedCounterfoil(deposit_id(identified.package_id), context, signed, der)


_EXTRA = frozenset({oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST, oids.DEPOSIT_CONTEXT})
