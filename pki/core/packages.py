"""Key packages: what is inside of the envelope (SymmetricKeyPackage, RFC 6031)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pki.core import asn1, attributes, oids
from pki.core.errors import ProfileError, UsageError

_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}")
OCTETS = "application/octet-stream"


@dataclass(frozen=True)
class KeyMaterial:
    """A key in the clear, with its media type (RFC 6838); never in a ``repr``."""

    key: bytes = field(repr=False)
    media_type: str = OCTETS

    def __post_init__(self) -> None:
        if not self.key:
            raise UsageError("The key is empty")
        if not _MEDIA_TYPE.fullmatch(self.media_type):
            raise UsageError("The media type is not of the form type/subtype", on=self.media_type[:80])


def encode_package(material: KeyMaterial) -> bytes:
    """Return a SymmetricKeyPackage with one key and its media type, in DER."""
    media_type = attributes.attribute(oids.MEDIA_TYPE, asn1.encode(material.media_type))
    key = asn1.OneSymmetricKey(attrs=[media_type], key=material.key)
    return asn1.encode(asn1.SymmetricKeyPackage(version=1, attrs=None, keys=[key]))


def decode_package(der: bytes) -> KeyMaterial:
    """Return the one key of a SymmetricKeyPackage."""
    package = asn1.decode(asn1.SymmetricKeyPackage, der, what="The key package")
    if package.version != 1 or package.attrs is not None or len(package.keys) != 1:
        raise ProfileError("The key package is not of version 1 with exactly one key", rule="PKG-001")
    (key,) = package.keys
    found = attributes.values(key.attrs or [], required=(), optional=(oids.MEDIA_TYPE,), rule="PKG-002")
    if oids.MEDIA_TYPE not in found:
        return KeyMaterial(key.key)
    return KeyMaterial(key.key, asn1.decode(str, found[oids.MEDIA_TYPE], what="The media type"))
