"""Key packages and the rules PKG-…."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from tests.kit import forge, tlv
from tests.kit.authority import NOW
from tests.kit.forge_pki import entity
from tests.vectors.cases import Case

KEY_ALGORITHM = "2.16.840.1.101.2.1.13.1"
VALIDITY = "2.16.840.1.101.2.1.13.6"
ASYMMETRIC = "2.16.840.1.101.2.1.2.78.5"
PURPOSE = "2.16.840.1.101.2.1.13.13"
DISTRIBUTION = "2.16.840.1.101.2.1.13.5"
RECEIVERS = "2.16.840.1.101.2.1.13.16"


def packages() -> Iterator[Case]:
    """Yield good key packages and broken ones."""
    symmetric, private = {"content-type": forge.SYMMETRIC_KEY_PACKAGE}, {"content-type": ASYMMETRIC}
    media = tlv.attribute(forge.MEDIA_TYPE, tlv.utf8("application/x-test"))
    algorithm = tlv.attribute(KEY_ALGORITHM, tlv.seq(tlv.oid(forge.AES_256_GCM)))
    unknown = tlv.attribute("1.2.840.113549.1.9.52", tlv.seq())
    one = tlv.seq(tlv.octets(bytes(32)))
    secret = bytes(range(32))
    ed25519 = tlv.seq(tlv.integer(0), tlv.algorithm("1.3.101.112"), tlv.octets(tlv.octets(secret)))
    encrypted = tlv.seq(tlv.algorithm("1.2.840.113549.1.5.13"), tlv.octets(bytes(48)))
    start = int(NOW.timestamp())
    day = int(timedelta(days=1).total_seconds())

    def said(*attributes: bytes) -> bytes:
        return forge.key_package(attributes=[media, *attributes])

    def validity(*times: int) -> bytes:
        return said(tlv.attribute(VALIDITY, tlv.seq(*(tlv.integer(time) for time in times))))

    def distribution(first: int, last: int) -> bytes:
        times = tlv.seq(tlv.retag(0x80, tlv.integer(first)), tlv.integer(last))
        return said(tlv.attribute(DISTRIBUTION, times))

    def receivers(*addresses: str) -> bytes:
        entities = (tlv.retag(0xA0, entity(forge.address_name(address))) for address in addresses)
        return said(tlv.attribute(RECEIVERS, tlv.seq(*entities)))

    for name, why, kind, body in (
        ("package", "A symmetric key with its media type", symmetric, forge.key_package()),
        ("plain-package", "A symmetric key with nothing said", symmetric, forge.key_package(attributes=())),
        ("private-key", "An Ed25519 key in PKCS #8", private, tlv.seq(ed25519)),
        ("valid-for-a-day", "A key with a validity period", symmetric, validity(start, start + day)),
        ("for-globex", "A key with its receiver", symmetric, receivers("globex/main")),
    ):
        yield Case(name, "package", "", why, body, kind)
    for rule, name, why, kind, body in (
        ("PKG-001", "version-2", "Version 2", symmetric, tlv.seq(tlv.integer(2), tlv.seq(one))),
        ("PKG-001", "no-key", "No key", symmetric, tlv.seq(tlv.seq())),
        ("PKG-001", "two-keys", "Two keys", symmetric, tlv.seq(tlv.seq(one, one))),
        ("PKG-001", "two-private-keys", "Two private keys", private, tlv.seq(ed25519, ed25519)),
        ("PKG-002", "unknown-attribute", "An attribute that nobody knows", symmetric, said(unknown)),
        ("PKG-002", "attribute-twice", "The media type twice", symmetric, said(media)),
        (
            "PKG-003",
            "order",
            "Attributes not in their order",
            symmetric,
            forge.key_package(attributes=[algorithm, media]),
        ),
        ("PKG-004", "version-without-key", "Version 3 of PKCS #8", private, tlv.seq(retold(ed25519, 2))),
        ("DER-001", "encrypted", "An encrypted PKCS #8 key", private, tlv.seq(encrypted)),
        ("PKG-005", "private-in-symmetric", "PKCS #8 as a symmetric key", symmetric, pkcs8_inside(ed25519)),
        ("PKG-006", "empty", "An empty key", symmetric, forge.key_package(b"")),
        ("PKG-006", "media-type", "A media type without a slash", symmetric, forge.key_package(media_type="text")),
        ("PKG-007", "ends-first", "Valid until before it is valid", symmetric, validity(start, start - 1)),
        ("PKG-007", "before-1970", "Valid from before 1970", symmetric, validity(-1, start)),
        ("PKG-007", "huge-time", "Valid from the year 292277026596", symmetric, validity(1 << 63)),
        ("PKG-008", "purpose", "A purpose that is none", symmetric, said(tlv.attribute(PURPOSE, b"\x0a\x01\x63"))),
        ("PKG-009", "no-receivers", "An empty list of receivers", symmetric, receivers()),
        ("PKG-009", "receiver-twice", "A receiver twice", symmetric, receivers("globex/main", "globex/main")),
        (
            "PKG-010",
            "too-early",
            "To be handed over from tomorrow",
            symmetric,
            distribution(start + day, start + 2 * day),
        ),
        ("PKG-010", "too-late", "To be handed over until yesterday", symmetric, distribution(0, start - day)),
        ("PKG-011", "other-receiver", "For another receiver", symmetric, receivers("acme/eu-west")),
    ):
        yield Case(name, "package", rule, why, body, kind)


def retold(key: bytes, version: int) -> bytes:
    """Return a PKCS #8 key that says another version."""
    return key.replace(tlv.integer(0), tlv.integer(version), 1)


def pkcs8_inside(key: bytes) -> bytes:
    """Return a private key in a symmetric key package."""
    return forge.key_package(key, "application/pkcs8")
