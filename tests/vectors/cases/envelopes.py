"""Envelopes for a KEM recipient, and the rules ENV-…."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.kit import forge, tlv
from tests.kit.forge_pki import ACME_KEY, GLOBEX_KEY
from tests.vectors.cases import Case

ABSENT = tlv.algorithm("2.16.840.1.101.3.4.2.3")


def to(reader: forge.Reader = GLOBEX_KEY, **changes: Any) -> list[bytes]:
    """Return one recipient, with something changed."""
    return [forge.kem_recipient(reader, forge.CEK, **changes)]


def broken() -> Iterator[tuple[str, str, str, bytes]]:
    """Yield rule, name, reason and bytes of each broken envelope."""
    content_type = tlv.attribute(forge.CONTENT_TYPE, tlv.oid(forge.DATA))
    context = tlv.attribute(forge.DEPOSIT_CONTEXT, forge.deposit_context())
    unknown = tlv.attribute("1.2.840.113549.1.9.52", tlv.seq())
    twice = tlv.attribute(forge.CONTENT_TYPE, tlv.oid(forge.DATA), tlv.oid(forge.SIGNED_DATA))
    kem_null = tlv.algorithm(GLOBEX_KEY.algorithm.oid.dotted_string, tlv.NULL)
    foreign = forge.Reader(12)
    yield "ENV-001", "data", "The object says that it is id-data", forge.envelope(to(), kind=forge.DATA)
    yield (
        "ENV-001",
        "enveloped-data",
        "EnvelopedData, which nothing authenticates",
        forge.envelope(to(), kind=forge.ENVELOPED_DATA),
    )
    yield "ENV-002", "version-1", "The envelope's version is 1", forge.envelope(to(), version=1)
    yield "ENV-002", "recipient-version-1", "The recipient's version is 1", forge.envelope(to(version=1))
    yield "ENV-003", "no-recipient", "There is no recipient", forge.envelope([])
    yield "ENV-003", "recipient-twice", "One recipient is there twice", forge.envelope(to() + to())
    many = [one for seed in range(20, 37) for one in to(forge.Reader(seed))]
    yield "ENV-003", "17-recipients", "There are 17 recipients", forge.envelope(many)
    yield "ENV-004", "other-type", "The other recipient info is of no known type", forge.envelope(to(other=forge.DATA))
    yield "ENV-004", "unknown-kem", "The KEM is none", forge.envelope(to(kem_id=ABSENT))
    yield "ENV-004", "kem-parameters", "The KEM has NULL parameters", forge.envelope(to(kem_id=kem_null))
    yield "ENV-005", "short-ciphertext", "The KEM ciphertext has a byte less", forge.envelope(to(cut=1))
    short = tlv.context(0, foreign.ski[:19], constructed=False)
    yield "ENV-005", "short-identifier", "The key identifier has 19 bytes", forge.envelope(to(rid=short))
    password = tlv.context(3, tlv.integer(0), tlv.algorithm("1.2.840.113549.1.9.16.3.9"), tlv.octets(bytes(40)))
    yield "ENV-004", "password", "A recipient who knows a password", forge.envelope([*to(), password])
    yield "ENV-006", "unknown-kdf", "The key derivation is none", forge.envelope(to(kdf=ABSENT))
    hkdf_null = tlv.algorithm(forge.HKDF_SHA256, tlv.NULL)
    yield "ENV-006", "kdf-parameters", "The key derivation has NULL parameters", forge.envelope(to(kdf=hkdf_null))
    wrap_128 = tlv.algorithm("2.16.840.1.101.3.4.1.5")
    yield (
        "ENV-007",
        "aes-128-wrap",
        "The content key is wrapped with AES-128",
        forge.envelope(to(wrap=wrap_128, kek_length=16)),
    )
    yield "ENV-007", "kek-length-16", "The wrapping key has 16 bytes", forge.envelope(to(kek_length=16))
    yield (
        "ENV-007",
        "short-wrapped-key",
        "The wrapped key has 32 bytes",
        forge.envelope(to(wrapped=bytes(32))),
    )
    chacha = "1.2.840.113549.1.9.16.3.18"
    yield "ENV-008", "chacha20-poly1305", "Encrypted with something else", forge.envelope(to(), cipher=chacha)
    yield "ENV-009", "no-parameters", "GCM has no parameters", forge.envelope(to(), parameters=b"")
    yield "ENV-009", "nonce-16", "The nonce has 16 bytes", forge.envelope(to(), nonce_size=16)
    for size in range(4, 16):
        yield (
            "ENV-010",
            f"tag-{size}",
            f"The tag has {size} bytes, and says so",
            forge.envelope(to(), tag_size=size, icv=None if size == 12 else size),
        )
    yield "ENV-010", "no-length", "The tag's length is not said, so it is 12", forge.envelope(to(), icv=None)
    yield "ENV-010", "says-12", "The tag's length is said to be 12", forge.envelope(to(), icv=13)
    yield "ENV-010", "shorter-than-said", "The tag has 12 bytes, said are 16", forge.envelope(to(), tag_size=12)
    package = {"content_type": forge.SYMMETRIC_KEY_PACKAGE, "content": forge.key_package()}
    yield (
        "ENV-011",
        "no-attributes",
        "A key package without authenticated attributes",
        forge.envelope(to(), attributes=(), **package),
    )
    yield "ENV-011", "no-content-type", "The content type is missing", forge.envelope(to(), attributes=[context])
    yield (
        "ENV-011",
        "unknown-attribute",
        "There is an attribute that nobody knows",
        forge.envelope(to(), attributes=[content_type, unknown]),
    )
    yield (
        "ENV-011",
        "attribute-twice",
        "The content type is there twice",
        forge.envelope(to(), attributes=[content_type, content_type]),
    )
    yield "ENV-011", "two-values", "The content type has two values", forge.envelope(to(), attributes=[twice])
    yield (
        "ENV-012",
        "other-content-type",
        "The content's type is not the authenticated one",
        forge.envelope(to(), attributes=[content_type], **package),
    )
    swapped = to(forge.Reader(13), rid=tlv.context(0, GLOBEX_KEY.ski, constructed=False))
    yield "-", "other-key", "Wrapped for another key than the named one", forge.envelope(swapped)
    yield "-", "not-for-me", "Not for this recipient", forge.envelope(to(ACME_KEY))
    whole = bytearray(forge.envelope(to()))
    whole[-1] ^= 1
    yield "-", "flipped-tag", "A bit of the tag is flipped", bytes(whole)


def envelopes() -> Iterator[Case]:
    """Yield good envelopes and broken ones."""
    yield Case("envelope", "envelope", "", "An envelope as it should be", forge.envelope(to()))
    two = forge.envelope(to(ACME_KEY) + to())
    yield Case("two-recipients", "envelope", "", "An envelope for two", two)
    ukm = forge.envelope(to(ukm=b"user keying material"))
    yield Case("ukm", "envelope", "", "An envelope with user keying material", ukm)
    for rule, name, why, body in broken():
        yield Case(name, "envelope", rule, why, body)
