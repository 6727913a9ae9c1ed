"""Delta lists and OCSP requests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from tests.kit import forge, tlv
from tests.kit import forge_pki as pki
from tests.vectors.cases import Case

SHA1, SHA256, SHA512 = "1.3.14.3.2.26", "2.16.840.1.101.3.4.2.1", "2.16.840.1.101.3.4.2.3"
NONCE = "1.3.6.1.5.5.7.48.1.2"
REMOVED = pki.extension("2.5.29.21", tlv.tlv(0x0A, b"\x08"))
POINT = pki.extension("2.5.29.28", tlv.seq(tlv.context(1, b"\xff", constructed=False)), critical=True)


def delta(
    serials: Sequence[int] = (),
    *,
    number: int = 8,
    base: int = 7,
    critical: bool = True,
    entry: bytes = b"",
    extra: Sequence[bytes] = (),
) -> bytes:
    """Return a delta list, by default to the full one of the vectors; ``entry`` are extensions of each entry."""
    indicator = pki.extension(pki.DELTA, tlv.integer(base), critical=critical)
    return pki.crl(serials, number=number, extra=[indicator, *extra], entry=entry)


def deltas() -> Iterator[Case]:
    """Yield good delta lists and broken ones."""
    yield Case("one", "crl-delta", "", "One certificate more is revoked", delta([4711]))
    yield Case("gone", "crl-delta", "", "One certificate has left the list", delta([4711], entry=REMOVED))
    for rule, name, why, body in (
        ("CRL-004", "full", "It is a full list", pki.crl([4711], number=8)),
        ("CRL-004", "not-critical", "What it builds on is not critical", delta(critical=False)),
        ("CRL-004", "partial", "It is for user certificates alone", delta(extra=[POINT])),
        ("CRL-005", "newer-base", "It builds on the list after this one", delta(base=8, number=9)),
        ("CRL-006", "older", "It has the number of the full list", delta(number=7, base=6)),
    ):
        yield Case(name, "crl-delta", rule, why, body)
    other = {"full": "crl-next", "full-issuing": "issuing-next"}
    yield Case("other-issuer", "crl-delta", "CRL-007", "The full list is another issuing CA's", delta(), other)


def named(serial: int = 4711, hashed: str = SHA1, *, issuer: bytes = pki.ISSUER_NAME, key: bytes = b"") -> bytes:
    """Return a CertID."""
    digest = {SHA1: "sha1", SHA256: "sha256", SHA512: "sha512"}[hashed]
    return tlv.seq(
        tlv.algorithm(hashed, tlv.NULL),
        tlv.octets(hashlib.new(digest, issuer).digest()),
        tlv.octets(hashlib.new(digest, key or pki.ISSUING.public).digest()),
        tlv.integer(serial),
    )


def question(
    asked: Sequence[bytes] = (), *, version: bytes = b"", extensions: Sequence[bytes] = (), single: bytes = b""
) -> bytes:
    """Return an OCSP request, by default for one certificate."""
    wanted = [tlv.seq(one, single) for one in asked or [named()]]
    more = tlv.context(2, tlv.seq(*extensions)) if extensions else b""
    return tlv.seq(tlv.seq(version, tlv.seq(*wanted), more))


def nonce(size: int) -> bytes:
    """Return the extension with a nonce."""
    return pki.extension(NONCE, tlv.octets(bytes(size)))


def questions() -> Iterator[Case]:
    """Yield good OCSP requests and broken ones."""
    unknown = pki.extension("1.2.3.4", tlv.NULL, critical=True)
    other = named(issuer=forge.name(("2.5.4.3", "Other")))
    for name, why, body in (
        ("sha-1", "The issuer is named by SHA-1", question()),
        ("sha-256", "The issuer is named by SHA-256", question([named(hashed=SHA256)])),
        ("nonce", "With a nonce of 128 bytes", question(extensions=[nonce(128)])),
        ("16", "About 16 certificates", question([named(serial) for serial in range(1, 17)])),
    ):
        yield Case(name, "ocsp-request", "", why, body)
    for rule, name, why, body in (
        ("OCS-001", "17", "About 17 certificates", question([named(serial) for serial in range(1, 18)])),
        ("OCS-001", "none", "About no certificate", tlv.seq(tlv.seq(tlv.seq()))),
        ("OCS-001", "large", "5,000 bytes", question(extensions=[pki.extension("1.2.3", bytes(5000))])),
        ("OCS-002", "version-2", "Version 2", question(version=tlv.context(0, tlv.integer(1)))),
        ("OCS-002", "critical", "A critical extension", question(extensions=[unknown])),
        (
            "OCS-002",
            "critical-single",
            "A critical extension of one",
            question(single=tlv.context(0, tlv.seq(unknown))),
        ),
        ("OCS-003", "empty-nonce", "An empty nonce", question(extensions=[nonce(0)])),
        ("OCS-003", "long-nonce", "A nonce of 129 bytes", question(extensions=[nonce(129)])),
        ("OCS-003", "two-nonces", "Two nonces", question(extensions=[nonce(16), nonce(16)])),
        ("OCS-004", "long-serial", "A serial number of 21 bytes", question([named(1 << 160)])),
        ("OCS-005", "other-name", "Another issuer's name", question([other])),
        ("OCS-005", "other-key", "Another issuer's key", question([named(key=pki.STRANGER.public)])),
        ("OCS-005", "mixed", "One of another issuer", question([named(), other])),
        ("OCS-005", "sha-512", "The issuer is named by SHA-512", question([named(hashed=SHA512)])),
        (
            "DER-001",
            "bare-nonce",
            "A nonce without its OCTET STRING",
            question(extensions=[pki.extension(NONCE, bytes(16))]),
        ),
    ):
        yield Case(name, "ocsp-request", rule, why, body)
