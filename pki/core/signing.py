"""SignedData with one ML-DSA-65 signer (RFC 5652, RFC 9882): deposits, receipts, refusals, revocations."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, attributes, oids
from pki.core.der import located
from pki.core.errors import AlgorithmError, MalformedError, SignatureError, demand

_TIME_LIMIT = datetime(2050, 1, 1, tzinfo=UTC)
SIGNATURE_SIZE = 3309
"""Bytes of an ML-DSA-65 signature (FIPS 204, table 2)."""


@dataclass(frozen=True)
class SignedObject:
    """What a key has signed; only `UnverifiedSigned.verify` makes one."""

    content_type: Oid
    content: bytes
    signer_ski: bytes
    signing_time: datetime
    attributes: Mapping[Oid, bytes]
    der: bytes


@dataclass(frozen=True)
class UnverifiedSigned:
    """A SignedData that keeps the profile; ``attributes`` holds one DER value each."""

    content_type: Oid
    content: bytes
    signer_ski: bytes
    signing_time: datetime
    attributes: Mapping[Oid, bytes]
    der: bytes
    _signed_bytes: bytes
    _signature: bytes

    def verify(self, public_key: MLDSA65PublicKey) -> SignedObject:
        """Return the object if ``public_key`` signed it, else raise SignatureError."""
        # The signer's name is outside of what is signed: without this, it could be changed unseen (RFC 7093 §2).
        if self.signer_ski != hashlib.sha256(public_key.public_bytes_raw()).digest()[:20]:
            raise SignatureError(rule="SIG-006")
        digest = asn1.decode(bytes, self.attributes[oids.MESSAGE_DIGEST], what="The message digest")
        if not hmac.compare_digest(digest, hashlib.sha512(self.content).digest()):
            raise SignatureError(rule="SIG-006")
        try:
            public_key.verify(self._signature, self._signed_bytes)
        except InvalidSignature:
            raise SignatureError(rule="SIG-006") from None
        return SignedObject(
            self.content_type, self.content, self.signer_ski, self.signing_time, self.attributes, self.der
        )


def sign(
    content_type: Oid,
    content: bytes,
    *,
    extra: Mapping[Oid, bytes],
    signing_time: datetime,
    signer_ski: bytes,
    sign: Callable[[bytes], bytes],
) -> bytes:
    """Return a ContentInfo in DER; ``sign`` makes an ML-DSA-65 signature over the bytes that it is given."""
    named = {
        oids.CONTENT_TYPE: asn1.encode(content_type),
        oids.SIGNING_TIME: encode_time(signing_time),
        oids.MESSAGE_DIGEST: asn1.encode(hashlib.sha512(content).digest()),
        **extra,
    }
    attrs = asn1.SetOf([attributes.attribute(oid, value) for oid, value in named.items()])
    info = asn1.SignerInfo(
        version=3,
        sid=signer_ski,
        digest_algorithm=_SHA512,
        signed_attrs=attrs,
        signature_algorithm=_ML_DSA_65,
        signature=sign(asn1.encode(attrs)),
    )
    signed = asn1.SignedData(
        version=3,
        digest_algorithms=asn1.SetOf([_SHA512]),
        content=asn1.EncapsulatedContent(content_type=content_type, content=content),
        signer_infos=asn1.SetOf([info]),
    )
    return asn1.encode(asn1.ContentInfo(content_type=oids.SIGNED_DATA, content=asn1.tlv(asn1.encode(signed))))


@located
def parse(der: bytes, *, content_types: Collection[Oid], extra: Collection[Oid]) -> UnverifiedSigned:
    """Return a SignedData that keeps the profile (rules SIG-001 to SIG-005) with exactly these attributes."""
    outer = asn1.decode(asn1.ContentInfo, der, what="The signed object")
    demand(outer.content_type == oids.SIGNED_DATA, "SIG-001", "The object is not SignedData")
    signed = asn1.decode(asn1.SignedData, asn1.encode(outer.content), what="The signed object")
    demand(signed.version == 3, "SIG-001", "The version of SignedData is not 3")
    demand(signed.content.content_type in content_types, "SIG-002", "The signed content has an unexpected type")
    infos = signed.signer_infos.as_list()
    demand(len(infos) == 1, "SIG-003", "There is not exactly one signer", asn1.encode(signed.signer_infos))
    (info,) = infos
    demand(info.version == 3 and len(info.sid) == 20, "SIG-003", "The signer is not named by a key identifier")
    for algorithm in (info.digest_algorithm, *signed.digest_algorithms.as_list()):
        if algorithm.algorithm != oids.SHA512 or algorithm.parameters is not None:
            raise AlgorithmError("Only SHA-512 is allowed", on=oids.name(algorithm.algorithm), rule="SIG-004")
    demand(len(signed.digest_algorithms.as_list()) == 1, "SIG-004", "There is not exactly one digest algorithm")
    if info.signature_algorithm.algorithm != oids.ML_DSA_65 or info.signature_algorithm.parameters is not None:
        name = oids.name(info.signature_algorithm.algorithm)
        raise AlgorithmError("Only ML-DSA-65 is allowed", on=name, rule="SIG-004")
    demand(len(info.signature) == SIGNATURE_SIZE, "SIG-004", "The signature has a wrong size")
    required = {oids.CONTENT_TYPE, oids.SIGNING_TIME, oids.MESSAGE_DIGEST, *extra}
    found = attributes.values(info.signed_attrs.as_list(), required=required, rule="SIG-005")
    typed = asn1.decode(Oid, found[oids.CONTENT_TYPE], what="The content type")
    demand(typed == signed.content.content_type, "SIG-005", "The content type differs from the signed one")
    return UnverifiedSigned(
        content_type=typed,
        content=signed.content.content,
        signer_ski=info.sid,
        signing_time=decode_time(found[oids.SIGNING_TIME]),
        attributes=found,
        der=der,
        _signed_bytes=asn1.encode(info.signed_attrs),
        _signature=info.signature,
    )


def encode_time(moment: datetime) -> bytes:
    """Return a Time in DER: UTCTime through 2049, GeneralizedTime after (RFC 5652 §11.3), whole seconds."""
    moment = moment.astimezone(UTC).replace(microsecond=0)
    return asn1.encode(asn1.UTCTime(moment) if moment < _TIME_LIMIT else asn1.GeneralizedTime(moment))


def decode_time(der: bytes) -> datetime:
    """Return the moment that a Time in DER names."""
    if der[:1] == b"\x17":
        return asn1.decode(asn1.UTCTime, der, what="The time").as_datetime().replace(tzinfo=UTC)
    moment = asn1.decode(asn1.GeneralizedTime, der, what="The time").as_datetime().replace(tzinfo=UTC)
    if moment < _TIME_LIMIT:
        raise MalformedError("A time before 2050 is written as UTCTime", on=str(moment))
    return moment


_SHA512 = asn1.AlgorithmIdentifier(algorithm=oids.SHA512, parameters=None)
_ML_DSA_65 = asn1.AlgorithmIdentifier(algorithm=oids.ML_DSA_65, parameters=None)
