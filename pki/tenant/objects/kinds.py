"""Which object of the profile some DER is, by its shape alone."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids
from pki.core.der import Header, header, parts
from pki.core.errors import MalformedError
from pki.tenant.objects import shapes
from pki.tenant.objects.shapes import Shape


class Kind(StrEnum):
    """What an object is; the values stand in JSON."""

    DEPOSIT = "deposit"
    ENVELOPE = "envelope"
    UNAUTHENTICATED = "unauthenticated-envelope"
    SIGNED = "signed-data"
    RECEIPT = "receipt"
    REFUSAL = "refusal"
    REVOCATION = "revocation-request"
    REQUEST = "certificate-request"
    CERTIFICATE = "certificate"
    CRL = "revocation-list"
    PACKAGE = "key-package"
    CAPABILITIES = "capabilities"
    PUBLIC = "public-key"
    PRIVATE = "private-key"
    ENCRYPTED = "encrypted-private-key"
    CMS = "cms"
    UNKNOWN = "unknown"


SECRET = frozenset({Kind.PACKAGE, Kind.PRIVATE, Kind.UNKNOWN})
"""What may hold a key in the clear."""
_SHAPES: dict[Kind, Shape] = {
    Kind.REQUEST: shapes.REQUEST,
    Kind.CERTIFICATE: shapes.CERTIFICATE,
    Kind.CRL: shapes.REVOCATION_LIST,
    Kind.CAPABILITIES: shapes.CAPABILITIES,
    Kind.PUBLIC: shapes.PUBLIC_KEY,
    Kind.PRIVATE: shapes.ONE_ASYMMETRIC,
    Kind.ENCRYPTED: shapes.ENCRYPTED_KEY,
    Kind.UNKNOWN: shapes.ANY,
}
_SIGNED = {
    oids.KEY_PACKAGE_RECEIPT: Kind.RECEIPT,
    oids.KEY_PACKAGE_ERROR: Kind.REFUSAL,
    oids.REVOCATION_REQUEST: Kind.REVOCATION,
}
_CONTENTS = {
    oids.AUTH_ENVELOPED_DATA: Kind.ENVELOPE,
    oids.ENVELOPED_DATA: Kind.UNAUTHENTICATED,
    oids.SYMMETRIC_KEY_PACKAGE: Kind.PACKAGE,
    oids.ASYMMETRIC_KEY_PACKAGE: Kind.PACKAGE,
}
_CONTEXT = asn1.encode(oids.DEPOSIT_CONTEXT)


def kind_of(der: bytes) -> Kind:
    """Return what an object is; raises MalformedError when not even its first header is DER."""
    header(der, 0, len(der))
    try:
        return _kind(der)
    except MalformedError:
        return Kind.UNKNOWN


def shape_of(der: bytes, kind: Kind) -> Shape:
    """Return the shape that an object of this kind is shown by."""
    if kind is Kind.PACKAGE:
        first = _children(der, header(der, 0, len(der)), 1)[0]
        if first.tag == 0x06:
            return shapes.CONTENT_INFO
        return (
            shapes.ASYMMETRIC_PACKAGE if package_type(der) == oids.ASYMMETRIC_KEY_PACKAGE else shapes.SYMMETRIC_PACKAGE
        )
    return _SHAPES.get(kind, shapes.CONTENT_INFO)


def package_type(der: bytes) -> Oid:
    """Return the content type of a key package that stands alone."""
    first, *_ = _children(der, header(der, 0, len(der)), 1)
    inner = _children(der, first, 1)
    private = bool(inner) and inner[0].tag == 0x02
    return oids.ASYMMETRIC_KEY_PACKAGE if private else oids.SYMMETRIC_KEY_PACKAGE


def _kind(der: bytes) -> Kind:
    top = header(der, 0, len(der))
    if top.tag != 0x30 or top.end != len(der):
        return Kind.UNKNOWN
    parts = _children(der, top, 6)
    tags = [one.tag for one in parts]
    if tags[:2] == [0x06, 0xA0]:
        return _cms(der, parts)
    if tags == [0x30, 0x30, 0x03]:
        return _signed_by_a_key(der, parts[0])
    if tags == [0x30, 0x03]:
        return Kind.PUBLIC
    if tags[:3] == [0x02, 0x30, 0x04]:
        return Kind.PRIVATE
    if tags == [0x30, 0x04]:
        return Kind.ENCRYPTED
    if not tags:
        return Kind.UNKNOWN
    return _list(der, parts)


def _list(der: bytes, parts: list[Header]) -> Kind:
    # A symmetric key package may begin with its version or its attributes; the keys are a list of lists.
    keys = next((one for one in parts if one.tag == 0x30), None)
    inner = _children(der, keys, 3) if keys is not None else []
    tags = [one.tag for one in inner]
    if tags[:1] == [0x06] and all(one.tag == 0x30 for one in parts):
        return Kind.CAPABILITIES
    if tags[:3] == [0x02, 0x30, 0x04]:
        return Kind.PACKAGE
    if tags[:1] == [0x30] and all(one.tag in (0x02, 0xA0, 0x30) for one in parts):
        held = [one.tag for one in _children(der, inner[0], 3)]
        return Kind.PACKAGE if held in ([0x30, 0x04], [0x04]) else Kind.UNKNOWN
    return Kind.UNKNOWN


def _signed_by_a_key(der: bytes, body: Header) -> Kind:
    parts = _children(der, body, 6)
    tags = [one.tag for one in parts]
    if tags[:1] == [0xA0]:
        return Kind.CERTIFICATE
    times = (0x17, 0x18)
    if len(tags) > 3 and (tags[3] in times or tags[2] in times):
        return Kind.CRL
    if tags[:3] == [0x02, 0x30, 0x30] and len(tags) == 4 and tags[3] == 0xA0:
        return Kind.REQUEST
    return Kind.CERTIFICATE if tags[:3] == [0x02, 0x30, 0x30] else Kind.UNKNOWN


def _cms(der: bytes, parts: list[Header]) -> Kind:
    content_type = _oid(der, parts[0])
    if content_type != oids.SIGNED_DATA:
        return _CONTENTS.get(content_type, Kind.CMS)
    signed = _children(der, parts[1], 1)
    body = _children(der, signed[0], 3) if signed and signed[0].constructed else []
    if len(body) < 3 or not body[2].constructed:
        return Kind.CMS
    held = _children(der, body[2], 1)
    inner = _oid(der, held[0]) if held and held[0].tag == 0x06 else oids.DATA
    if inner == oids.CONTENT_INFO and der.find(_CONTEXT, body[2].end) >= 0:
        return Kind.DEPOSIT
    return _SIGNED.get(inner, Kind.SIGNED)


def _children(der: bytes, one: Header, most: int) -> list[Header]:
    return list(islice(parts(der, one.content, one.end), most))


def _oid(der: bytes, one: Header) -> Oid:
    if one.end - one.start > 80:
        raise MalformedError("An object identifier is too long")
    return asn1.decode(Oid, der[one.start : one.end], what="The content type")
