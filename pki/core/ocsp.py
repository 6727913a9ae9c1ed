"""OCSP (RFC 6960; RFC 5019 for GET, RFC 9654 for nonces): requests are read, responses composed, signed like lists."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, IntEnum
from functools import lru_cache
from typing import Annotated, Union

from cryptography import x509
from cryptography.hazmat.asn1 import Default, sequence
from cryptography.x509 import ObjectIdentifier as Oid
from cryptography.x509.oid import OCSPExtensionOID

from pki.core import asn1, der, oids
from pki.core.authorities import authority_key
from pki.core.crl import Reason, Revoked
from pki.core.der import located
from pki.core.errors import CertificateError, demand

MAX_REQUEST_BYTES = 4096
MAX_ASKED = 16
"""Certificates that one request may ask about."""
MAX_NONCE_BYTES = 128
"""RFC 9654 §2.1."""

BASIC = Oid("1.3.6.1.5.5.7.48.1.1")  # RFC 6960 §4.2.1
ARCHIVE_CUTOFF = Oid("1.3.6.1.5.5.7.48.1.6")  # RFC 6960 §4.4.4
_NONCE = OCSPExtensionOID.NONCE
_MAX_SERIAL_BYTES = 20


class Refusal(IntEnum):
    """Why there is no response: OCSPResponseStatus, RFC 6960 §4.2.1. None of them is signed."""

    MALFORMED = 1
    INTERNAL = 2
    TRY_LATER = 3
    UNAUTHORIZED = 6


class Standing(Enum):
    """What is said of a certificate that is not revoked: CertStatus, RFC 6960 §4.2.1."""

    GOOD = b"\x80\x00"
    UNKNOWN = b"\x82\x00"


Status = Standing | Revoked


@sequence
class _CertId:
    """RFC 6960 §4.1.1."""

    hash_algorithm: asn1.AlgorithmIdentifier
    name_hash: bytes
    key_hash: bytes
    serial: int


@sequence
class _Asked:
    """Request, RFC 6960 §4.1.1."""

    cert_id: asn1.TLV
    extensions: Annotated[list[asn1.Extension] | None, asn1.Explicit(0)]


@sequence
class _TbsRequest:
    """RFC 6960 §4.1.1; who asks is not looked at."""

    version: Annotated[int, asn1.Explicit(0), Default(0)]
    requestor: Annotated[Union[asn1.Null, asn1.TLV, None], asn1.Explicit(1)]  # noqa: UP007  as in `pki.core.asn1`
    asked: asn1.TLV
    extensions: Annotated[list[asn1.Extension] | None, asn1.Explicit(2)]


@sequence
class _Request:
    """OCSPRequest, RFC 6960 §4.1.1; a signature is not looked at, since everybody may ask."""

    tbs: asn1.TLV
    signature: Annotated[Union[asn1.Null, asn1.TLV, None], asn1.Explicit(0)]  # noqa: UP007  as above


@sequence
class _SingleResponse:
    """RFC 6960 §4.2.1."""

    cert_id: asn1.TLV
    status: asn1.TLV
    this_update: asn1.GeneralizedTime
    next_update: Annotated[asn1.GeneralizedTime | None, asn1.Explicit(0)]
    extensions: Annotated[list[asn1.Extension] | None, asn1.Explicit(1)]


@sequence
class _ResponseData:
    """RFC 6960 §4.2.1, version 1 (the default, so not written)."""

    version: Annotated[int, asn1.Explicit(0), Default(0)]
    responder: asn1.TLV
    produced_at: asn1.GeneralizedTime
    responses: list[_SingleResponse]
    extensions: Annotated[list[asn1.Extension] | None, asn1.Explicit(1)]


@sequence
class _RevokedInfo:
    """RFC 6960 §4.2.1."""

    at: asn1.GeneralizedTime
    reason: Annotated[Union[asn1.Null, asn1.TLV, None], asn1.Explicit(0)]  # noqa: UP007  as above


@sequence
class _ResponseBytes:
    """RFC 6960 §4.2.1."""

    kind: Oid
    response: bytes


@sequence
class _Response:
    """OCSPResponse, RFC 6960 §4.2.1."""

    status: asn1.TLV
    content: Annotated[_ResponseBytes | None, asn1.Explicit(0)]


@dataclass(frozen=True)
class IssuerId:
    """How a request names an issuing CA: hashes of its name and of its key's bits, and the algorithm's OID."""

    algorithm: Oid
    name_hash: bytes
    key_hash: bytes

    @property
    def digest(self) -> str:
        """The hash's name, one of `DIGESTS`; empty for any other, which names nobody here."""
        return _DIGESTS.get(self.algorithm, "")


@dataclass(frozen=True)
class CertId:
    """One certificate that is asked about; ``der`` comes back in the response as it was."""

    issuer: IssuerId
    serial: int
    der: bytes


@dataclass(frozen=True)
class Request:
    """A request that is well formed; it has 1 to 16 certificates, and perhaps a nonce."""

    asked: tuple[CertId, ...]
    nonce: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """What is said of one certificate; ``archive_cutoff`` for one that has expired (RFC 6960 §4.4.4)."""

    cert_id: CertId
    status: Status
    this_update: datetime
    next_update: datetime
    archive_cutoff: datetime | None = None


@located
def parse_request(request_der: bytes) -> Request:
    """Read a request (rules OCS-001 to OCS-004), counted before it is decoded; raises MalformedError, ProfileError."""
    demand(len(request_der) <= MAX_REQUEST_BYTES, "OCS-001", f"The request has more than {MAX_REQUEST_BYTES} bytes")
    outer = asn1.decode(_Request, request_der, what="The OCSP request")
    tbs = asn1.inner(_TbsRequest, outer.tbs, what="The OCSP request")
    demand(tbs.version == 0, "OCS-002", "The request is not of version 1")
    asked = der.members(asn1.encode(tbs.asked), 0x30, most=MAX_REQUEST_BYTES)
    demand(1 <= len(asked) <= MAX_ASKED, "OCS-001", f"The request asks about {len(asked)} certificates, not 1 to 16")
    return Request(tuple(_asked(one) for one in asked), _nonce(tbs.extensions or []))


@lru_cache(maxsize=64)
def issuer_ids(issuing_der: bytes) -> tuple[IssuerId, ...]:
    """Return how requests may name an issuing CA, SHA-1 first (RFC 6960 §4.3 asks for it, RFC 5019 §2.1.1 too)."""
    name = x509.load_der_x509_certificate(issuing_der).subject.public_bytes()
    bits = _key_bits(issuing_der)
    return tuple(
        IssuerId(oid, hashlib.new(digest, name).digest(), hashlib.new(digest, bits).digest())
        for oid, digest in _DIGESTS.items()
    )


def issuer_of(request: Request, candidates: Sequence[bytes]) -> bytes:
    """Return the one of these issuing CAs that a request is about; CertificateError when it is not exactly one.

    Only the CA that issued a certificate answers for it: nobody else may sign (RFC 6960 §4.2.2.2).
    """
    for issuing_der in candidates:
        if all(one.issuer in issuer_ids(issuing_der) for one in request.asked):
            return issuing_der
    raise CertificateError("The certificates are not all of one issuing CA here", rule="OCS-005")


def cert_id(issuer: IssuerId, serial: int) -> CertId:
    """Return how one certificate is named; parameters of the hash are NULL, as everybody writes them."""
    algorithm = asn1.AlgorithmIdentifier(algorithm=issuer.algorithm, parameters=asn1.Null())
    named = _CertId(hash_algorithm=algorithm, name_hash=issuer.name_hash, key_hash=issuer.key_hash, serial=serial)
    return CertId(issuer, serial, asn1.encode(named))


def encode_request(request: Request) -> bytes:
    """Return a request in DER."""
    asked = b"".join(asn1.encode(_Asked(cert_id=asn1.tlv(one.der), extensions=None)) for one in request.asked)
    nonce = None if request.nonce is None else [_nonce_extension(request.nonce)]
    tbs = _TbsRequest(version=0, requestor=None, asked=asn1.tlv(_wrapped(0x30, asked)), extensions=nonce)
    return asn1.encode(_Request(tbs=asn1.tlv(asn1.encode(tbs)), signature=None))


def response_tbs(
    issuing_der: bytes, answers: Sequence[Answer], *, produced_at: datetime, nonce: bytes | None = None
) -> bytes:
    """Return the to-be-signed part of a response; `assemble` adds the issuing CA's signature."""
    data = _ResponseData(
        version=0,
        responder=asn1.tlv(_responder(issuing_der)),
        produced_at=_time(produced_at),
        responses=[_single(one) for one in answers],
        extensions=None if nonce is None else [_nonce_extension(nonce)],
    )
    return asn1.encode(data)


def assemble(tbs: bytes, signature: bytes, issuing_der: bytes) -> bytes:
    """Return the whole response; no certificate is inside, as the issuing CA's own key signed it."""
    # A BasicOCSPResponse without certificates has a Certificate's outer form (RFC 6960 §4.2.1).
    basic = asn1.signed(tbs, authority_key(issuing_der).algorithm.identifier, signature)
    content = _ResponseBytes(kind=BASIC, response=basic)
    return asn1.encode(_Response(status=asn1.tlv(asn1.enumerated(0)), content=content))


def refuse(why: Refusal) -> bytes:
    """Return the response that says why there is none."""
    return asn1.encode(_Response(status=asn1.tlv(asn1.enumerated(int(why))), content=None))


_DIGESTS = {oids.SHA1: "sha1", oids.SHA256: "sha256"}
DIGESTS = tuple(_DIGESTS.values())
"""How an issuer may be named, first the way that most requests do."""


def _asked(one_der: bytes) -> CertId:
    one = asn1.decode(_Asked, one_der, what="A request for one certificate")
    _check_critical(one.extensions or [])
    named = asn1.inner(_CertId, one.cert_id, what="A certificate's name")
    size = (named.serial.bit_length() + 7) // 8
    demand(size <= _MAX_SERIAL_BYTES, "OCS-004", "A serial number has more than 20 bytes", at=one_der)
    # What the hash is of decides who can be meant: an unknown one is nobody's.
    issuer = IssuerId(named.hash_algorithm.algorithm, named.name_hash, named.key_hash)
    return CertId(issuer, named.serial, asn1.encode(one.cert_id))


def _nonce(extensions: Sequence[asn1.Extension]) -> bytes | None:
    _check_critical(extensions)
    found = [one.value for one in extensions if one.oid == _NONCE]
    demand(len(found) <= 1, "OCS-003", "There is more than one nonce")
    if not found:
        return None
    nonce = asn1.decode(bytes, found[0], what="The nonce")
    demand(0 < len(nonce) <= MAX_NONCE_BYTES, "OCS-003", "The nonce has not 1 to 128 bytes", at=found[0])
    return nonce


def _check_critical(extensions: Sequence[asn1.Extension]) -> None:
    unknown = [one for one in extensions if one.critical and one.oid != _NONCE]
    demand(not unknown, "OCS-002", "A critical extension of the request is not understood")


def _single(answer: Answer) -> _SingleResponse:
    cutoff = answer.archive_cutoff
    extensions = None
    if cutoff is not None:
        extensions = [asn1.Extension(oid=ARCHIVE_CUTOFF, critical=False, value=asn1.encode(_time(cutoff)))]
    return _SingleResponse(
        cert_id=asn1.tlv(answer.cert_id.der),
        status=asn1.tlv(_status(answer.status)),
        this_update=_time(answer.this_update),
        next_update=_time(answer.next_update),
        extensions=extensions,
    )


def _status(status: Status) -> bytes:
    if isinstance(status, Standing):
        return status.value
    # RFC 5280 §5.3.1: absent rather than unspecified
    named = None if status.reason is Reason.UNSPECIFIED else asn1.tlv(asn1.enumerated(int(status.reason)))
    return asn1.retagged(0xA1, asn1.encode(_RevokedInfo(at=_time(status.at), reason=named)))


@lru_cache(maxsize=64)
def _responder(issuing_der: bytes) -> bytes:
    # byKey: always SHA-1 (RFC 6960 §4.2.1), which names and proves nothing.
    digest = hashlib.sha1(_key_bits(issuing_der), usedforsecurity=False).digest()
    return _wrapped(0xA2, asn1.encode(digest))


def _key_bits(issuing_der: bytes) -> bytes:
    spki = asn1.decode(asn1.SubjectPublicKeyInfo, authority_key(issuing_der).spki, what="The issuing CA's key")
    return spki.subject_public_key.as_bytes()


def _nonce_extension(nonce: bytes) -> asn1.Extension:
    return asn1.Extension(oid=_NONCE, critical=False, value=asn1.encode(nonce))


def _time(moment: datetime) -> asn1.GeneralizedTime:
    return asn1.GeneralizedTime(moment.astimezone(UTC).replace(microsecond=0))


def _wrapped(tag: int, content: bytes) -> bytes:
    # The length comes from the library's own OCTET STRING.
    return asn1.retagged(tag, asn1.encode(content))
