"""The CMS, PKCS #10 and key package types, declared once; DER only."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, TypeVar, Union

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core.der import complaint, not_der

TLV = asn1.TLV
Null = asn1.Null
BitString = asn1.BitString
SetOf = asn1.SetOf
Implicit = asn1.Implicit
Explicit = asn1.Explicit
GeneralizedTime = asn1.GeneralizedTime
UTCTime = asn1.UTCTime

T = TypeVar("T")
_INTEGER, _ENUMERATED, _SEQUENCE = 0x02, 0x0A, 0x30
_YEAR_2050 = datetime(2050, 1, 1, tzinfo=UTC)


def decode(kind: type[T], der: bytes, *, what: str) -> T:
    """Decode DER into ``kind``; trailing bytes, BER and all else raise MalformedError naming ``what`` and where."""
    try:
        return asn1.decode_der(kind, der)
    except (ValueError, OverflowError, RecursionError) as error:
        wrong = complaint(der)
        failed = not_der(
            f"{what} is not in DER of the expected structure", on=wrong.message if wrong else _short(error), at=der
        )
        failed.offset = wrong.offset if wrong else None
    raise failed


def inner(kind: type[T], value: asn1.TLV, *, what: str) -> T:
    """Decode a value of any type into ``kind``, as `decode` does, without a copy of its bytes."""
    try:
        found: T = value.parse(kind)
        return found
    except (ValueError, OverflowError, RecursionError):
        pass
    # The slow way knows where.
    return decode(kind, asn1.encode_der(value), what=what)


def encode(value: object) -> bytes:
    """Encode a declared type into DER."""
    return asn1.encode_der(value)


@lru_cache(maxsize=256)
def encoded_oid(oid: Oid) -> bytes:
    """Return an object identifier in DER; the few that there are are encoded once."""
    return asn1.encode_der(oid)


def tlv(der: bytes) -> asn1.TLV:
    """Return DER as a value of any type."""
    return asn1.decode_der(asn1.TLV, der)


def retagged(tag: int, der: bytes) -> bytes:
    """Return a value of the same content under another tag: an implicit one, or SEQUENCE around an OCTET STRING's."""
    return bytes([tag]) + der[1:]


def sequence_of(ders: Iterable[bytes]) -> bytes:
    """Return a SEQUENCE OF values that are in DER each: the library takes no list as a root."""
    return retagged(_SEQUENCE, encode(b"".join(ders)))


def enumerated(number: int) -> bytes:
    """Return an ENUMERATED in DER: the library has none, and it is an INTEGER under tag 10 (X.690 §8.4)."""
    return retagged(_ENUMERATED, encode(number))


def enumerated_number(der: bytes, *, what: str) -> int:
    """Return the number in an ENUMERATED, or raise MalformedError naming ``what``."""
    if der[:1] != bytes([_ENUMERATED]):
        raise not_der(f"{what} is not an ENUMERATED", at=der)
    return decode(int, retagged(_INTEGER, der), what=what)


def signed(tbs: bytes, algorithm: AlgorithmIdentifier, signature: bytes) -> bytes:
    """Return what X.509 signs, certificate or revocation list, from its to-be-signed part and the signature over it."""
    return encode(Certificate(tbs=tlv(tbs), signature_algorithm=algorithm, signature=BitString(signature, 0)))


def time(moment: datetime) -> asn1.UTCTime | asn1.GeneralizedTime:
    """Return a time to the second as certificates write it: from 2050 on with the century (RFC 5280 §4.1.2.5)."""
    moment = moment.astimezone(UTC).replace(microsecond=0)
    return UTCTime(moment) if moment < _YEAR_2050 else GeneralizedTime(moment)


def _short(error: Exception) -> str:
    # The library's text names fields and positions, never values.
    return str(error).removeprefix("error parsing asn1 value: ")[:200]


# X.509, RFC 5280


@asn1.sequence
class AlgorithmIdentifier:
    """RFC 5280 §4.1.1.2."""

    algorithm: Oid
    parameters: Union[Null, TLV, None]  # noqa: UP007  the decoder takes no `TLV | None`


@asn1.sequence
class SubjectPublicKeyInfo:
    """RFC 5280 §4.1.2.7."""

    algorithm: AlgorithmIdentifier
    subject_public_key: BitString


@asn1.sequence
class Extension:
    """RFC 5280 §4.1."""

    oid: Oid
    critical: Annotated[bool, asn1.Default(False)]
    value: bytes


@asn1.sequence
class Validity:
    """RFC 5280 §4.1.2.5; UTCTime until 2049, GeneralizedTime from 2050."""

    not_before: UTCTime | GeneralizedTime
    not_after: UTCTime | GeneralizedTime


@asn1.sequence
class TbsCertificate:
    """RFC 5280 §4.1.2, version 3."""

    version: Annotated[int, Explicit(0)]
    serial: int
    signature: AlgorithmIdentifier
    issuer: TLV
    validity: Validity
    subject: TLV
    public_key: SubjectPublicKeyInfo
    extensions: Annotated[list[Extension], Explicit(3)]


@asn1.sequence
class Certificate:
    """RFC 5280 §4.1; the to-be-signed part stays bytes, because bytes are what was signed."""

    tbs: TLV
    signature_algorithm: AlgorithmIdentifier
    signature: BitString


@asn1.sequence
class RevokedCertificate:
    """One entry of a revocation list, RFC 5280 §5.1.2.6."""

    serial: int
    revoked_at: UTCTime | GeneralizedTime
    extensions: list[Extension] | None


@asn1.sequence
class TbsCertList:
    """RFC 5280 §5.1.2, version 2; an empty list of entries is left out."""

    version: int
    signature: AlgorithmIdentifier
    issuer: TLV
    this_update: UTCTime | GeneralizedTime
    next_update: UTCTime | GeneralizedTime
    revoked: list[RevokedCertificate] | None
    extensions: Annotated[list[Extension], Explicit(0)]


# PKCS #10, RFC 2986


@asn1.sequence
class Attribute:
    """RFC 5652 §5.3."""

    oid: Oid
    values: SetOf[TLV]


@asn1.sequence
class RequestInfo:
    """RFC 2986 §4.1."""

    version: int
    subject: TLV
    public_key: SubjectPublicKeyInfo
    attributes: Annotated[SetOf[Attribute], Implicit(0)]


@asn1.sequence
class Request:
    """RFC 2986 §4.2."""

    info: TLV
    signature_algorithm: AlgorithmIdentifier
    signature: BitString


@asn1.sequence
class IssuerAndSerial:
    """RFC 5652 §10.2.4."""

    issuer: TLV
    serial: int


@asn1.sequence
class PossessionStatement:
    """RFC 9883 §3, without the optional certificate: the verifier uses its own copy."""

    signer: IssuerAndSerial


# CMS, RFC 5652


@asn1.sequence
class ContentInfo:
    """RFC 5652 §3."""

    content_type: Oid
    content: Annotated[TLV, Explicit(0)]


@asn1.sequence
class EncapsulatedContent:
    """RFC 5652 §5.2; here the content is never detached."""

    content_type: Oid
    content: Annotated[bytes, Explicit(0)]


@asn1.sequence
class SignerInfo:
    """RFC 5652 §5.3, version 3: the signer is named by its subject key identifier."""

    version: int
    sid: Annotated[bytes, Implicit(0)]
    digest_algorithm: AlgorithmIdentifier
    signed_attrs: Annotated[SetOf[Attribute], Implicit(0)]
    signature_algorithm: AlgorithmIdentifier
    signature: bytes


@asn1.sequence
class SignedData:
    """RFC 5652 §5.1, without certificates and CRLs."""

    version: int
    digest_algorithms: SetOf[AlgorithmIdentifier]
    content: EncapsulatedContent
    signer_infos: SetOf[SignerInfo]


@asn1.sequence
class MeasuredSignedData:
    """RFC 5652 §5.1, whose lists are measured before they are decoded."""

    version: int
    digest_algorithms: TLV
    content: EncapsulatedContent
    signer_infos: TLV


@asn1.sequence
class DetachedContent:
    """RFC 5652 §5.2, without the content."""

    content_type: Oid


@asn1.sequence
class DetachedSignedData:
    """RFC 5652 §5.1 of what was signed and is kept elsewhere, or no more."""

    version: int
    digest_algorithms: TLV
    content: DetachedContent
    signer_infos: TLV


@asn1.sequence
class AnySignerInfo:
    """RFC 5652 §5.3, with a signer of any name, and with unsigned attributes, which nobody looks at."""

    version: int
    sid: TLV
    digest_algorithm: AlgorithmIdentifier
    signed_attrs: Annotated[SetOf[Attribute] | None, Implicit(0)]
    signature_algorithm: AlgorithmIdentifier
    signature: bytes
    unsigned_attrs: Annotated[SetOf[Attribute] | None, Implicit(1)]


@asn1.sequence
class KemRecipient:
    """KEMRecipientInfo, RFC 9629 §3, version 0."""

    version: int
    rid: IssuerAndSerial | Annotated[bytes, Implicit(0)]
    kem: AlgorithmIdentifier
    kem_ciphertext: bytes
    kdf: AlgorithmIdentifier
    kek_length: int
    ukm: Annotated[bytes | None, Explicit(0)]
    wrap: AlgorithmIdentifier
    encrypted_key: bytes


@asn1.sequence
class OtherRecipient:
    """OtherRecipientInfo, RFC 5652 §6.2.5."""

    kind: Oid
    value: TLV


@asn1.sequence
class EncryptedContent:
    """RFC 5652 §6.1."""

    content_type: Oid
    algorithm: AlgorithmIdentifier
    ciphertext: Annotated[bytes, Implicit(0)]


@asn1.sequence
class AuthEnvelopedData:
    """RFC 5083 §2.1, version 0."""

    version: int
    recipients: SetOf[TLV]
    encrypted: EncryptedContent
    auth_attrs: Annotated[SetOf[Attribute] | None, Implicit(1)]
    mac: bytes


@asn1.sequence
class GcmParameters:
    """RFC 5084 §3.2; an absent length means 12, we always write 16."""

    nonce: bytes
    tag_length: Annotated[int, asn1.Default(12)]


@asn1.sequence
class KemOtherInfo:
    """CMSORIforKEMOtherInfo, RFC 9629 §5."""

    wrap: AlgorithmIdentifier
    kek_length: int
    ukm: Annotated[bytes | None, Explicit(0)]


# Key packages and receipts, RFC 6031 and RFC 7191


@asn1.sequence
class OneSymmetricKey:
    """RFC 6031 §2; the key itself is not optional here."""

    attrs: list[Attribute] | None
    key: bytes


@asn1.sequence
class SymmetricKeyPackage:
    """RFC 6031 §2, version 1 (the default, so not written)."""

    version: Annotated[int, asn1.Default(1)]
    attrs: Annotated[list[Attribute] | None, Implicit(0)]
    keys: list[OneSymmetricKey]


@asn1.sequence
class EntityName:
    """SIREntityName, RFC 7191 §2: a type and the DER of a value in an OCTET STRING."""

    kind: Oid
    value: bytes


@asn1.sequence
class ReceiptRequest:
    """KeyPkgReceiptReq, RFC 7191 §3, without receiptsFrom: the recipient answers."""

    encrypt: Annotated[bool, asn1.Default(False)]
    receipts_to: list[EntityName]


@asn1.sequence
class PackageIdAndReceiptRequest:
    """KeyPkgIdentifierAndReceiptReq, RFC 7191 §3."""

    package_id: bytes
    receipt_request: ReceiptRequest | None


@asn1.sequence
class KeyPackageReceipt:
    """RFC 7191 §4, version 2 (the default)."""

    version: Annotated[int, asn1.Default(2)]
    receipt_of: bytes
    received_by: EntityName


@asn1.sequence
class KeyPackageError:
    """RFC 7191 §5, version 2; the error code is an ENUMERATED or an OID, kept as it came."""

    version: Annotated[int, asn1.Default(2)]
    error_of: Annotated[bytes | None, Explicit(0)]
    error_by: EntityName
    error_code: TLV


# Ours


@asn1.sequence
class DepositContext:
    """Who hands what to whom: signed by the sender and authenticated with the content."""

    version: int
    sender: str
    recipient: str
    key_id: str
    key_version: int
    purpose: str
    expires: GeneralizedTime


@asn1.sequence
class RevocationRequest:
    """The owner's wish: which certificate (SHA-256 of its DER), why (RFC 5280 §5.3.1), when."""

    version: int
    fingerprint: bytes
    reason: int
    requested: GeneralizedTime
