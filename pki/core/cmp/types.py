"""The types of CMP (RFC 9810 appendix F) and of its certificate requests (RFC 4211 appendix B), declared once."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Union

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core.asn1 import (
    TLV,
    AlgorithmIdentifier,
    BitString,
    EncryptedContent,
    Explicit,
    Extension,
    GeneralizedTime,
    Implicit,
    Null,
    SetOf,
    SubjectPublicKeyInfo,
    UTCTime,
)

PASSWORD_BASED_MAC = Oid("1.2.840.113533.7.66.13")
HMAC_SHA1 = Oid("1.3.6.1.5.5.8.1.2")
HMAC_WITH_SHA1 = Oid("1.2.840.113549.2.7")
HMAC_WITH_SHA256 = Oid("1.2.840.113549.2.9")
HMAC_WITH_SHA384 = Oid("1.2.840.113549.2.10")
HMAC_WITH_SHA512 = Oid("1.2.840.113549.2.11")
AES256_CBC = Oid("2.16.840.1.101.3.4.1.42")
IMPLICIT_CONFIRM = Oid("1.3.6.1.5.5.7.4.13")
CA_CERTIFICATES = Oid("1.3.6.1.5.5.7.4.17")
OLD_CERTIFICATE = Oid("1.3.6.1.5.5.7.5.1.5")


class Body(IntEnum):
    """The kinds of PKIBody that are known here, by the number of their tag (RFC 9810 §5.1.2)."""

    IR = 0
    IP = 1
    CR = 2
    CP = 3
    P10CR = 4
    KUR = 7
    KUP = 8
    RR = 11
    RP = 12
    PKICONF = 19
    GENM = 21
    GENP = 22
    ERROR = 23
    CERTCONF = 24


class Fail(IntEnum):
    """The bits of PKIFailureInfo that are given here (RFC 9810 §5.2.3)."""

    BAD_ALG = 0
    BAD_MESSAGE_CHECK = 1
    BAD_REQUEST = 2
    BAD_TIME = 3
    BAD_CERT_ID = 4
    BAD_DATA_FORMAT = 5
    WRONG_AUTHORITY = 6
    INCORRECT_DATA = 7
    BAD_POP = 9
    CERT_REVOKED = 10
    WRONG_INTEGRITY = 12
    BAD_CERT_TEMPLATE = 19
    SIGNER_NOT_TRUSTED = 20
    TRANSACTION_ID_IN_USE = 21
    UNSUPPORTED_VERSION = 22
    NOT_AUTHORIZED = 23
    SYSTEM_UNAVAIL = 24
    SYSTEM_FAILURE = 25


@asn1.sequence
class Message:
    """PKIMessage, RFC 9810 §5.1; what is protected stays bytes."""

    header: TLV
    body: TLV
    protection: Annotated[BitString | None, Explicit(0)]
    extra_certificates: Annotated[Union[Null, TLV, None], Explicit(1)]  # noqa: UP007  the decoder takes no `TLV | None`


@asn1.sequence
class ProtectedPart:
    """What the protection is over, RFC 9810 §5.1.3."""

    header: TLV
    body: TLV


@asn1.sequence
class InfoTypeAndValue:
    """RFC 9810 §5.3.19."""

    kind: Oid
    value: Union[Null, TLV, None]  # noqa: UP007  as above


@asn1.sequence
class Header:
    """PKIHeader, RFC 9810 §5.1.1."""

    version: int
    sender: TLV
    recipient: TLV
    message_time: Annotated[GeneralizedTime | None, Explicit(0)]
    protection_algorithm: Annotated[AlgorithmIdentifier | None, Explicit(1)]
    sender_key: Annotated[bytes | None, Explicit(2)]
    recipient_key: Annotated[bytes | None, Explicit(3)]
    transaction: Annotated[bytes | None, Explicit(4)]
    sender_nonce: Annotated[bytes | None, Explicit(5)]
    recipient_nonce: Annotated[bytes | None, Explicit(6)]
    free_text: Annotated[Union[Null, TLV, None], Explicit(7)]  # noqa: UP007  as above
    general: Annotated[Union[Null, TLV, None], Explicit(8)]  # noqa: UP007  as above


@asn1.sequence
class PasswordMac:
    """PBMParameter, RFC 4211 §4.4."""

    salt: bytes
    hash: AlgorithmIdentifier
    iterations: int
    mac: AlgorithmIdentifier


@asn1.sequence
class OptionalValidity:
    """RFC 4211 §5."""

    not_before: Annotated[UTCTime | GeneralizedTime | None, Explicit(0)]
    not_after: Annotated[UTCTime | GeneralizedTime | None, Explicit(1)]


@asn1.sequence
class CertTemplate:
    """RFC 4211 §5."""

    version: Annotated[int | None, Implicit(0)]
    serial: Annotated[int | None, Implicit(1)]
    signature: Annotated[AlgorithmIdentifier | None, Implicit(2)]
    issuer: Annotated[Union[Null, TLV, None], Explicit(3)]  # noqa: UP007  as above
    validity: Annotated[OptionalValidity | None, Implicit(4)]
    subject: Annotated[Union[Null, TLV, None], Explicit(5)]  # noqa: UP007  as above
    public_key: Annotated[SubjectPublicKeyInfo | None, Implicit(6)]
    issuer_id: Annotated[BitString | None, Implicit(7)]
    subject_id: Annotated[BitString | None, Implicit(8)]
    extensions: Annotated[list[Extension] | None, Implicit(9)]


@asn1.sequence
class AttributeTypeAndValue:
    """RFC 4211 §3."""

    kind: Oid
    value: TLV


@asn1.sequence
class CertRequest:
    """RFC 4211 §5."""

    number: int
    template: CertTemplate
    controls: list[AttributeTypeAndValue] | None


@asn1.sequence
class CertRequestMessage:
    """CertReqMsg, RFC 4211 §3; the request stays bytes, for they are what is signed."""

    request: TLV
    proof: Union[Null, TLV, None]  # noqa: UP007  as above


@asn1.sequence
class SignatureProof:
    """POPOSigningKey, RFC 4211 §4.1; without poposkInput, since subject and key are named."""

    algorithm: AlgorithmIdentifier
    signature: BitString


@asn1.sequence
class CertId:
    """RFC 4211 §6.5: the issuer is a GeneralName."""

    issuer: TLV
    serial: int


@asn1.sequence
class StatusInfo:
    """PKIStatusInfo, RFC 9810 §5.2.3."""

    status: int
    texts: list[str] | None
    failure: BitString | None


@asn1.sequence
class CertStatus:
    """RFC 9810 §5.3.18."""

    digest: bytes
    number: int
    status: StatusInfo | None
    algorithm: Annotated[AlgorithmIdentifier | None, Explicit(0)]


@asn1.sequence
class RevocationDetails:
    """RevDetails, RFC 9810 §5.3.9."""

    certificate: CertTemplate
    extensions: list[Extension] | None


@asn1.sequence
class CertifiedKeyPair:
    """RFC 9810 §5.3.4, without keys: none are made here."""

    certificate: TLV


@asn1.sequence
class CertResponse:
    """RFC 9810 §5.3.4."""

    number: int
    status: StatusInfo
    pair: CertifiedKeyPair | None


@asn1.sequence
class CertRepMessage:
    """RFC 9810 §5.3.4."""

    authorities: Annotated[list[TLV] | None, Explicit(1)]
    responses: list[CertResponse]


@asn1.sequence
class RevRepContent:
    """RFC 9810 §5.3.10, without identifiers and lists."""

    statuses: list[StatusInfo]


@asn1.sequence
class ErrorContent:
    """ErrorMsgContent, RFC 9810 §5.3.21."""

    status: StatusInfo


@asn1.sequence
class EnvelopedData:
    """RFC 5652 §6.1, as CMP encrypts a certificate (RFC 9810 §5.2.2)."""

    version: int
    recipients: SetOf[TLV]
    encrypted: EncryptedContent
