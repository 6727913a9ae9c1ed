"""Attributes of CMS and PKCS #10: each at most once, each with one value, none unknown."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids
from pki.core.errors import ProfileError


def attribute(oid: Oid, value_der: bytes) -> asn1.Attribute:
    """Return an attribute with one value, given in DER."""
    return asn1.Attribute(oid=oid, values=asn1.SetOf([asn1.tlv(value_der)]))


def values(
    attributes: Iterable[asn1.Attribute], *, required: Collection[Oid], optional: Collection[Oid] = (), rule: str
) -> dict[Oid, bytes]:
    """Return the one value of each attribute in DER; missing, doubled and unknown ones raise ProfileError."""
    found: dict[Oid, bytes] = {}
    for item in attributes:
        oid, held = item.oid, item.values.as_list()
        if oid in found:
            raise ProfileError("An attribute appears twice", on=oids.name(oid), rule=rule, at=asn1.encode(item))
        if oid not in required and oid not in optional:
            raise ProfileError("An attribute is unknown", on=oids.name(oid), rule=rule, at=asn1.encode(item))
        if len(held) != 1:
            raise ProfileError(
                "An attribute has not exactly one value", on=oids.name(oid), rule=rule, at=asn1.encode(item)
            )
        found[oid] = asn1.encode(held[0])
    for oid in required:
        if oid not in found:
            raise ProfileError("An attribute is missing", on=oids.name(oid), rule=rule)
    return found
