"""Key packages: what is inside of the envelope (SymmetricKeyPackage, RFC 6031; AsymmetricKeyPackage, RFC 5958)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from cryptography.hazmat.asn1 import sequence
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, attributes, keyattributes, oids
from pki.core.der import Header, header, members, parts
from pki.core.errors import KeymailboxError, UsageError, demand
from pki.core.keyattributes import NOTHING_SAID, KeyAttributes
from pki.core.profile import Profile

_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}")
OCTETS = "application/octet-stream"
PKCS8 = "application/pkcs8"
"""A private key as one unencrypted OneAsymmetricKey in DER (RFC 5958 §7)."""
CONTENT_TYPES = frozenset({oids.SYMMETRIC_KEY_PACKAGE, oids.ASYMMETRIC_KEY_PACKAGE})
_ORDER = (oids.MEDIA_TYPE, *keyattributes.ORDER)
_SEQUENCE, _FIRST = 0x30, 0xA0
_MAX_ATTRIBUTES = 64 * 1024
_MOST_PARTS = 5
"""Of a package or of a key in PKCS #8."""


@dataclass(frozen=True)
class KeyMaterial:
    """A key in the clear, with its media type (RFC 6838) and what is said of it; the key is never in a ``repr``."""

    key: bytes = field(repr=False)
    media_type: str = OCTETS
    attributes: KeyAttributes = NOTHING_SAID

    def __post_init__(self) -> None:
        if not self.key:
            raise UsageError("The key is empty")
        if not _MEDIA_TYPE.fullmatch(self.media_type):
            raise UsageError("The media type is not of the form type/subtype", on=self.media_type[:80])


@sequence
class OneAsymmetricKey:
    """PrivateKeyInfo of PKCS #8 with room for the public key, RFC 5958 §2."""

    version: int
    algorithm: asn1.AlgorithmIdentifier
    private_key: bytes
    attributes: Annotated[asn1.SetOf[asn1.Attribute] | None, asn1.Implicit(0)]
    public_key: Annotated[asn1.BitString | None, asn1.Implicit(1)]


def encode_package(material: KeyMaterial) -> tuple[Oid, bytes]:
    """Return the content type and the key package in DER; PKCS #8 that is none raises UsageError."""
    said = keyattributes.encode(material.attributes)
    if material.media_type == PKCS8:
        one = _with_attributes(material.key, [attributes.attribute(oid, value) for oid, value in said.items()])
        return oids.ASYMMETRIC_KEY_PACKAGE, asn1.retagged(_SEQUENCE, asn1.encode(one))
    values = {oids.MEDIA_TYPE: asn1.encode(material.media_type), **said}
    attrs = [attributes.attribute(oid, value) for oid, value in values.items()]
    keys = [asn1.OneSymmetricKey(attrs=attrs, key=material.key)]
    return oids.SYMMETRIC_KEY_PACKAGE, asn1.encode(asn1.SymmetricKeyPackage(version=1, attrs=None, keys=keys))


def decode_package(content_type: Oid, der: bytes, *, profile: Profile = Profile.STRICT) -> KeyMaterial:
    """Return the one key of a package (rules PKG-001 to PKG-009); no error holds a byte of the content.

    READ passes over attributes that it does not know, in any order, and takes those of a whole symmetric package too.
    """
    try:
        if content_type == oids.ASYMMETRIC_KEY_PACKAGE:
            return _asymmetric(der, profile)
        demand(content_type == oids.SYMMETRIC_KEY_PACKAGE, "PKG-005", "The content is not a key package")
        return _symmetric(der, profile)
    except KeymailboxError as error:
        error.part = None
        raise


def _symmetric(der: bytes, profile: Profile) -> KeyMaterial:
    _measure(der)
    package = asn1.decode(asn1.SymmetricKeyPackage, der, what="The key package")
    strict = profile is Profile.STRICT
    plain = package.version == 1 and (package.attrs is None or not strict) and len(package.keys) == 1
    demand(plain, "PKG-001", "The key package is not of version 1 with exactly one key")
    (one,) = package.keys
    # RFC 6031 §2: SIZE (1..MAX)
    demand(one.attrs is None or bool(one.attrs) or not strict, "PKG-002", "The key has an empty list of attributes")
    found = _values(package.attrs or [], profile) | _values(one.attrs or [], profile)
    ordered = list(found) == [oid for oid in _ORDER if oid in found]
    demand(ordered or not strict, "PKG-003", "The key's attributes are not in order")
    media_type = OCTETS
    if oids.MEDIA_TYPE in found:
        media_type = asn1.decode(str, found[oids.MEDIA_TYPE], what="The media type")
    demand(media_type != PKCS8 or not strict, "PKG-005", "A PKCS #8 key is not in an asymmetric key package")
    # What is written there is not told: it may be anything.
    named = _MEDIA_TYPE.fullmatch(media_type) is not None
    demand(named and len(one.key) > 0, "PKG-006", "The key is empty, or its media type is not of the form type/subtype")
    return KeyMaterial(one.key, media_type, keyattributes.decode(found, profile=profile))


def _asymmetric(der: bytes, profile: Profile) -> KeyMaterial:
    keys = members(der, _SEQUENCE, most=2)
    demand(len(keys) == 1, "PKG-001", "The key package does not hold exactly one key")
    one = _parsed(keys[0])
    listed = [] if one.attributes is None else one.attributes.as_list()
    ours = [item for item in listed if item.oid in keyattributes.ORDER]
    rest = [item for item in listed if item.oid not in keyattributes.ORDER]
    said = keyattributes.decode(_values(ours, profile), profile=profile)
    return KeyMaterial(asn1.encode(_replaced(one, rest)), PKCS8, said)


def _measure(der: bytes) -> None:
    """Refuse many keys and many attributes before one of them is decoded (rules PKG-001, PKG-002)."""
    outer = header(der, 0, len(der))
    for count, part in enumerate(parts(der, outer.content, outer.end) if outer.constructed else (), 1):
        demand(count <= _MOST_PARTS, "PKG-001", "The key package has too many parts")
        if part.tag == _FIRST:
            _demand_few(der, part)
        elif part.tag == _SEQUENCE:
            if part.content == part.end:
                break
            key = header(der, part.content, part.end)
            if key.tag != _SEQUENCE:
                break
            demand(key.end == part.end, "PKG-001", "The key package does not hold exactly one key")
            if der[key.content : min(key.content + 1, key.end)] == bytes([_SEQUENCE]):
                _demand_few(der, header(der, key.content, key.end))


def _demand_few(der: bytes, listed: Header) -> None:
    small = listed.end - listed.content <= _MAX_ATTRIBUTES
    demand(small, "PKG-002", f"A key's attributes have more than {_MAX_ATTRIBUTES} bytes")
    attributes.measure(der, listed, rule="PKG-002")


def _values(listed: Iterable[asn1.Attribute], profile: Profile) -> dict[Oid, bytes]:
    known = [item for item in listed if profile is Profile.STRICT or item.oid in _ORDER]
    return attributes.values(known, required=(), optional=_ORDER, rule="PKG-002")


def _parsed(der: bytes) -> OneAsymmetricKey:
    outer = header(der, 0, len(der))
    for count, part in enumerate(parts(der, outer.content, outer.end) if outer.constructed else (), 1):
        demand(count <= _MOST_PARTS, "PKG-004", "The private key has too many parts")
        if part.tag == _FIRST:
            _demand_few(der, part)
    one = asn1.decode(OneAsymmetricKey, der, what="The private key")
    versioned = one.version == 1 if one.public_key is not None else one.version in (0, 1)
    demand(versioned, "PKG-004", "The private key is not PKCS #8 of the version that its parts ask for")
    empty = one.attributes is not None and not one.attributes.as_list()
    demand(not empty, "PKG-004", "The private key has an empty set of attributes")
    return one


def _with_attributes(der: bytes, said: list[asn1.Attribute]) -> bytes:
    try:
        one = _parsed(der)
    except KeymailboxError:
        one = None
    if one is None:
        raise UsageError(
            "The key is not an unencrypted PKCS #8 private key in DER",
            hint="openssl pkcs8 -topk8 -nocrypt -outform DER -in KEY -out KEY.p8",
        )
    own = [] if one.attributes is None else one.attributes.as_list()
    if any(item.oid in keyattributes.ORDER for item in own):
        raise UsageError("The PKCS #8 key has attributes that are to be given beside it", hint="kmb key create --help")
    return asn1.encode(_replaced(one, [*own, *said]))


def _replaced(one: OneAsymmetricKey, listed: list[asn1.Attribute]) -> OneAsymmetricKey:
    return OneAsymmetricKey(
        version=one.version,
        algorithm=one.algorithm,
        private_key=one.private_key,
        attributes=asn1.SetOf(listed) if listed else None,
        public_key=one.public_key,
    )
