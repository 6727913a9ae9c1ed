"""Attributes of CMS and PKCS #10: each at most once, each with one value, none unknown."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids
from pki.core.der import Header, header, parts
from pki.core.errors import ProfileError, demand

MOST = 32
MOST_VALUES = 16


def attribute(oid: Oid, value_der: bytes) -> asn1.Attribute:
    """Return an attribute with one value, given in DER."""
    return asn1.Attribute(oid=oid, values=asn1.SetOf([asn1.tlv(value_der)]))


def measure(data: bytes, listed: Header, *, rule: str) -> None:
    """Refuse more than `MOST` attributes in a list, or `MOST_VALUES` values in one, before one of them is decoded.

    What is no list of attributes passes, or raises MalformedError: decoding will say what is wrong with it.
    """
    for count, one in enumerate(parts(data, listed.content, listed.end), 1):
        demand(count <= MOST, rule, f"There are more than {MOST} attributes")
        if one.constructed and one.content < one.end:
            kind = header(data, one.content, one.end)
            held = header(data, kind.end, one.end) if kind.end < one.end else kind
            for few, _ in enumerate(parts(data, held.content, held.end) if held.constructed else (), 1):
                demand(few <= MOST_VALUES, rule, f"An attribute has more than {MOST_VALUES} values")


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
