"""Deposits: SignedData around AuthEnvelopedData, and the rules SIG-… and DEP-…."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.kit import forge, forge_classical, tlv
from tests.kit.authority import NOW
from tests.kit.forge_pki import ACME, ACME_KEY, DAY, GLOBEX, GLOBEX_KEY, ISSUER_NAME
from tests.vectors.cases import Case
from tests.vectors.cases.readers import RSA

LATER = timedelta(minutes=6)
ED25519 = tlv.algorithm("1.3.101.112")


def inner(
    context: bytes, content: bytes | None = None, content_type: str = forge.SYMMETRIC_KEY_PACKAGE, **more: Any
) -> bytes:
    """Return the envelope of a deposit."""
    readers: Sequence[forge.Reader] = more.get("readers", (GLOBEX_KEY,))
    attributes = [
        tlv.attribute(forge.CONTENT_TYPE, tlv.oid(content_type)),
        tlv.attribute(forge.DEPOSIT_CONTEXT, context),
    ]
    listed = more.get("listed") or [forge.kem_recipient(reader, forge.CEK) for reader in readers]
    package = forge.key_package() if content is None else content
    return forge.envelope(listed, package, content_type=content_type, attributes=attributes)


def extra(context: bytes, request: bytes | None = None) -> list[bytes]:
    """Return the signed attributes of a deposit beside the usual three."""
    return [
        tlv.attribute(forge.PACKAGE_ID, forge.receipt_request() if request is None else request),
        tlv.attribute(forge.DEPOSIT_CONTEXT, context),
    ]


def deposit(
    *,
    context: bytes | None = None,
    inside: bytes | None = None,
    request: bytes | None = None,
    content: bytes | None = None,
    content_type: str = forge.CONTENT_INFO,
    at: Any = NOW,
    attributes: Any = None,
    info: dict[str, Any] | None = None,
    infos: Any = None,
    **outer: Any,
) -> bytes:
    """Return acme's deposit for globex; ``attributes`` and ``infos`` are functions of what they would be."""
    said = forge.deposit_context() if context is None else context
    body = inner(said if inside is None else inside) if content is None else content
    listed = forge.signed_attributes(content_type, body, extra(said, request), at=at)
    listed = listed if attributes is None else attributes(listed)
    fields: dict[str, Any] = {"signer": ACME, **(info or {})}
    signers = [forge.signer_info(attributes=listed, **fields)]
    return forge.signed(content_type, body, signers if infos is None else infos(signers, listed), **outer)


def flipped(message: bytes) -> bytes:
    """Return acme's signature with its first bit another."""
    signature = ACME.sign(message)
    return bytes([signature[0] ^ 0x80]) + signature[1:]


def wrong_digest(listed: list[bytes]) -> list[bytes]:
    """Return the attributes with the digest of nothing."""
    return [*listed[:2], tlv.attribute(forge.MESSAGE_DIGEST, tlv.octets(hashlib.sha512().digest())), *listed[3:]]


def signed_wrongly() -> Iterator[Case]:
    """Yield what breaks the rules of signed objects."""
    issuer_serial = tlv.seq(ISSUER_NAME, tlv.integer(4711))
    null = tlv.algorithm(forge.ML_DSA_65, tlv.NULL)
    sha256 = tlv.algorithm(forge.SHA_256)
    unknown = tlv.attribute("1.2.840.113549.1.9.52", tlv.seq())
    bare = tlv.seq(tlv.seq(tlv.oid(forge.DATA)), tlv.octets(b"x"))
    ed25519 = Ed25519PrivateKey.from_private_bytes(bytes(32))
    for rule, name, why, body in (
        ("SIG-001", "data", "The object says that it is id-data", deposit(kind=forge.DATA)),
        ("SIG-001", "version-4", "SignedData of version 4", deposit(version=4)),
        ("SIG-002", "content-data", "The signed content is id-data", deposit(content_type=forge.DATA, content=bare)),
        ("SIG-003", "no-signer", "Nobody signed", deposit(infos=lambda good, listed: [])),
        (
            "SIG-003",
            "two-signers",
            "Two signers, both right",
            deposit(infos=lambda good, listed: [*good, forge.signer_info(GLOBEX, listed)]),
        ),
        (
            "SIG-003",
            "issuer-and-serial",
            "The signer is named by issuer and serial",
            deposit(info={"sid": issuer_serial, "version": 1}),
        ),
        (
            "SIG-003",
            "short-identifier",
            "The signer's key identifier has 19 bytes",
            deposit(info={"sid": tlv.context(0, ACME.ski[:19], constructed=False)}),
        ),
        (
            "SIG-003",
            "unsigned-attributes",
            "The signer has unsigned attributes",
            deposit(info={"unsigned": tlv.context(1, unknown)}),
        ),
        (
            "SIG-004",
            "sha256",
            "The digest is SHA-256, weaker than ML-DSA-65",
            deposit(info={"digest": sha256}, digests=[sha256]),
        ),
        (
            "SIG-004",
            "null-parameters",
            "The signature algorithm has NULL parameters",
            deposit(info={"algorithm": null}),
        ),
        (
            "SIG-004",
            "two-digests",
            "Two digest algorithms are listed",
            deposit(digests=[forge.SHA512_ID, sha256]),
        ),
        (
            "SIG-004",
            "short-signature",
            "The signature has a byte less",
            deposit(info={"sign": lambda message: ACME.sign(message)[:-1]}),
        ),
        (
            "SIG-005",
            "no-signing-time",
            "There is no signing time",
            deposit(attributes=lambda listed: [listed[0], *listed[2:]]),
        ),
        (
            "SIG-005",
            "unknown-attribute",
            "There is a signed attribute that nobody knows",
            deposit(attributes=lambda listed: [*listed, unknown]),
        ),
        (
            "SIG-005",
            "attribute-twice",
            "The signing time appears twice",
            deposit(attributes=lambda listed: [*listed, tlv.attribute(forge.SIGNING_TIME, tlv.utc(NOW - LATER))]),
        ),
        (
            "SIG-005",
            "two-values",
            "The signing time has two values",
            deposit(
                attributes=lambda listed: [
                    listed[0],
                    tlv.attribute(forge.SIGNING_TIME, tlv.utc(NOW), tlv.utc(NOW - LATER)),
                    *listed[2:],
                ]
            ),
        ),
        (
            "SIG-005",
            "other-content-type",
            "The signed content type is not the content's",
            deposit(attributes=lambda listed: [tlv.attribute(forge.CONTENT_TYPE, tlv.oid(forge.DATA)), *listed[1:]]),
        ),
        ("SIG-006", "flipped-bit", "A bit of the signature is flipped", deposit(info={"sign": flipped})),
        ("SIG-006", "wrong-digest", "The message digest is of other bytes", deposit(attributes=wrong_digest)),
        (
            "SIG-006",
            "implicit-tag-signed",
            "The signature is over the attributes with their implicit tag, not as a SET OF",
            deposit(info={"sign": lambda message: ACME.sign(tlv.retag(0xA0, message))}),
        ),
        (
            "SIG-007",
            "ed25519",
            "A good Ed25519 signature, but the named key is of ML-DSA-65",
            deposit(info={"algorithm": ED25519, "sign": ed25519.sign}),
        ),
        (
            "DER-001",
            "certificates-inside",
            "SignedData carries a set of certificates",
            deposit(certificates=tlv.context(0, tlv.seq())),
        ),
        ("DER-001", "trailing-byte", "A byte follows after the end", deposit() + b"\0"),
    ):
        yield Case(name, "deposit", rule, why, body)


def of_context(why: str, name: str, **changes: Any) -> Case:
    """Return a deposit whose context breaks DEP-002."""
    return Case(name, "deposit", "DEP-002", why, deposit(context=forge.deposit_context(**changes)))


def deposits() -> Iterator[Case]:
    """Yield a good deposit and what breaks its rules."""
    yield Case("deposit", "deposit", "", "A deposit as it should be", deposit())
    yield from signed_wrongly()
    yield Case("limit", "deposit", "DEP-001", "Larger than the limit that is set", deposit(), {"limit": "4096"})
    yield of_context("The context is of version 2", "context-version-2", version=2)
    yield of_context("The sender is no address", "sender-no-address", sender="acme")
    yield of_context("The recipient's address is in capitals", "recipient-capitals", recipient="GLOBEX/main")
    yield of_context("The key id is empty", "no-key-id", key_id="")
    yield of_context("The key version is 0", "key-version-0", key_version=0)
    yield of_context("The key version is 2^63", "key-version-huge", key_version=1 << 63)
    yield of_context("The purpose has a line break", "purpose-line-break", purpose="a\nb")
    for name, why, request in (
        ("short-id", "The id has 15 bytes", forge.receipt_request(bytes(15))),
        (
            "receipt-to-another",
            "The receipt is to go to somebody else",
            forge.receipt_request(bytes(16), "globex/main"),
        ),
        (
            "two-receipts",
            "Two receipts are asked for",
            forge.receipt_request(bytes(16), "acme/eu-west", "globex/main"),
        ),
        ("encrypted-receipt", "The receipt is to be encrypted", forge.receipt_request(bytes(16), encrypt=True)),
        ("no-receipt", "No receipt is asked for", tlv.seq(tlv.octets(bytes(16)))),
    ):
        yield Case(name, "deposit", "DEP-003", why, deposit(request=request))
    other = forge.deposit_context(purpose="other")
    yield Case(
        "other-context", "deposit", "DEP-004", "The context inside is not the one outside", deposit(inside=other)
    )
    data = inner(forge.deposit_context(), b"content", forge.DATA)
    yield Case("no-key-package", "deposit", "DEP-004", "The envelope holds id-data", deposit(content=data))
    stranger = {"signer": GLOBEX}
    yield Case("other-signer", "deposit", "DEP-005", "Signed by somebody else than the sender", deposit(info=stranger))
    named = deposit(context=forge.deposit_context(sender="acme/us-east"), request=us_east())
    yield Case("other-sender", "deposit", "DEP-005", "The sender is not the signer's address", named)
    revoked = {"crl": "crl-acme-revoked"}
    yield Case("sender-revoked", "deposit", "DEP-006", "The sender's certificate is revoked", deposit(), revoked)
    context = forge.deposit_context()
    both = inner(context, readers=(GLOBEX_KEY, ACME_KEY))
    yield Case("second-reader", "deposit", "DEP-007", "Somebody else can open it, too", deposit(content=both))
    sha1 = forge_classical.transport(
        RSA,
        rid=tlv.context(0, GLOBEX_KEY.ski, constructed=False),
        algorithm=tlv.algorithm(forge_classical.OAEP, tlv.seq()),
        digest=hashes.SHA1(),
    )
    lowered = deposit(content=inner(context, listed=[sha1]))
    yield Case("lowered-to-sha1", "deposit", "DEP-012", "RSA-OAEP with SHA-1, for which nobody asked", lowered)
    ended, long = forge.deposit_context(expires=NOW), forge.deposit_context(expires=NOW + 91 * DAY)
    yield Case("expired", "deposit", "DEP-008", "It expires at this very second", deposit(context=ended))
    yield Case("lives-too-long", "deposit", "DEP-009", "It expires in 91 days", deposit(context=long))
    yield Case("signed-later", "deposit", "DEP-010", "Signed six minutes from now", deposit(at=NOW + LATER))
    yield Case("signed-long-ago", "deposit", "DEP-010", "Signed two days ago", deposit(at=NOW - 2 * DAY))
    broken = inner(context, tlv.seq(tlv.seq()))
    yield Case(
        "empty-package", "deposit", "-", "The key package is none: seen by its recipient", deposit(content=broken)
    )


def us_east() -> bytes:
    """Return a receipt request of another instance of the sender."""
    return forge.receipt_request(bytes(range(16)), "acme/us-east")
