"""CMP messages, and those that endorse certificates as requests do: rules CMP-…."""

from __future__ import annotations

from collections.abc import Iterator

from tests.kit import forge, tlv
from tests.kit import forge_cmp as cmp
from tests.kit import forge_pki as pki
from tests.kit.forge_pki import GLOBEX, STRANGER
from tests.vectors.cases import Case

SECRET = {"secret": cmp.SECRET.decode()}
WEB = tlv.context(6, b"https://globex.example/", constructed=False)
TWICE = tlv.seq(*[cmp.asked(cmp.template(), GLOBEX.sign)] * 2)
NO_KEY = cmp.template(key=None)
NO_SUBJECT = cmp.template(subject=None)
SERIAL = cmp.template(more=tlv.retag(0x81, tlv.integer(7)))
OTHER_NAME = pki.names(pki.uri("acme/eu-west"))
CLIENT = pki.extension("2.5.29.37", tlv.seq(tlv.oid("1.3.6.1.5.5.7.3.2")))
SHA1 = tlv.algorithm("1.3.14.3.2.26")


def messages() -> Iterator[Case]:
    """Yield good messages and broken ones."""
    for name, why, body, more in (
        ("ir", "An identity key, under a secret", cmp.first(), SECRET),
        ("ir-sha1", "HMAC with SHA-1", cmp.first(protect=cmp.by_secret(mac=tlv.algorithm(cmp.HMAC_SHA1))), SECRET),
        ("cr", "An encryption key, signed by the identity key", cmp.further(), {}),
        ("certconf", "A confirmation", cmp.message(cmp.CERTCONF, cmp.confirmation(), cmp.by_key()), {}),
        ("certconf-nothing", "Everything is rejected", cmp.message(cmp.CERTCONF, tlv.seq(), cmp.by_key()), {}),
        ("rr", "A revocation", cmp.message(cmp.RR, cmp.revocation(), cmp.by_key()), {}),
        ("genm", "For the CA's certificates", cmp.message(cmp.GENM, information(), cmp.by_key()), {}),
        ("unprotected", "Nothing protects it", cmp.message(cmp.GENM, information(), None), {}),
    ):
        yield Case(name, "cmp", "", why, body, more)
    for rule, name, why, body in (
        ("CMP-001", "version-1", "Version 1", cmp.further(version=1)),
        ("CMP-001", "no-transaction", "There is no transactionID", cmp.further(transaction=None)),
        ("CMP-001", "long-transaction", "A transactionID of 17 bytes", cmp.further(transaction=bytes(17))),
        ("CMP-001", "short-nonce", "A senderNonce of 15 bytes", cmp.further(nonce=bytes(15))),
        ("CMP-001", "large", "66,000 bytes", cmp.further(along=tlv.context(1, tlv.seq(tlv.octets(bytes(61000)))))),
        ("CMP-002", "sender", "The sender is a web site", cmp.further(sender=WEB)),
        ("CMP-002", "kind", "It is a popdecc", cmp.message(5, tlv.seq(), cmp.by_key())),
        ("CMP-003", "too-much-work", "A billion rounds", work(1_000_000_000)),
        ("CMP-003", "too-little-work", "99 rounds", work(99)),
        ("CMP-003", "short-salt", "A salt of 7 bytes", cmp.first(protect=cmp.by_secret(salt=bytes(7)))),
        ("CMP-003", "old-hash", "SHA-1 makes the key", cmp.first(protect=cmp.by_secret(owf=SHA1))),
        (
            "CMP-003",
            "half",
            "An algorithm, and no protection",
            cmp.message(cmp.GENM, information(), None, algorithm=forge.GOOD),
        ),
        ("CMP-003", "unused-bits", "The signature's last bits are unused", cmp.further(unused=1)),
        ("CMP-004", "two", "Two requests", cmp.first(TWICE)),
        ("CMP-004", "nothing", "No request", cmp.first(tlv.seq())),
        ("CMP-004", "revoke-nobody", "No serial number", cmp.message(cmp.RR, cmp.revocation(None), cmp.by_key())),
        ("CMP-005", "no-key", "There is no key", asking(NO_KEY)),
        ("CMP-005", "no-subject", "There is no subject", asking(NO_SUBJECT)),
        ("CMP-005", "serial", "It wants a serial number", asking(SERIAL)),
        ("CMP-005", "extension", "It wants to be a TLS client", asking(cmp.template(extensions=[CLIENT]))),
        ("CMP-006", "no-proof", "Nothing proves possession", tlv_first(b"")),
        ("CMP-006", "by-an-ra", "An RA has seen to it", tlv_first(tlv.tlv(0x80))),
        (
            "CMP-006",
            "challenge",
            "A challenge is asked for",
            cmp.further(cmp.encryption(tlv.context(2, tlv.tlv(0x81, b"\1")))),
        ),
        ("CMP-010", "old-hash-confirms", "A confirmation by SHA-1", confirming(SHA1)),
    ):
        yield Case(name, "cmp", rule, why, body)
    wrong = cmp.first(protect=cmp.by_secret(b"another secret"))
    yield Case("other-secret", "cmp", "CMP-008", "Another secret", wrong, SECRET)


def endorsements() -> Iterator[Case]:
    """Yield messages that are kept as certificates' requests."""
    yield Case("cmp-identity", "request", "", "An ir for an identity key, under a secret", cmp.first())
    yield Case("cmp-no-time", "request", "", "An identity needs no time", cmp.first(cmp.identity(None)))
    yield Case("cmp-encryption", "request", "", "A cr for an encryption key", cmp.further())
    for rule, name, why, body in (
        (
            "CMP-005",
            "cmp-other-name",
            "Another alternative name",
            asking(cmp.template(extensions=[OTHER_NAME], start=pki.NOW)),
        ),
        ("CMP-006", "cmp-secret", "A secret protects a request for an encryption key", cmp.first(cmp.encryption())),
        ("CMP-007", "cmp-no-message-time", "It has no messageTime", cmp.further(time=None)),
        ("REQ-001", "cmp-along", "Certificates come along", cmp.further(along=tlv.context(1, tlv.seq(tlv.NULL)))),
        ("REQ-001", "cmp-revocation", "It is a revocation", cmp.message(cmp.RR, cmp.revocation(), cmp.by_key())),
        ("REQ-005", "cmp-other-signer", "A stranger signed it", cmp.further(protect=cmp.by_key(STRANGER))),
    ):
        yield Case(name, "request", rule, why, body)


def information() -> bytes:
    """Return the content of a genm that asks for the CA's certificates."""
    return tlv.seq(tlv.seq(tlv.oid(cmp.CA_CERTS)))


def work(rounds: int) -> bytes:
    """Return a message that wants so much work."""
    return cmp.first(protect=cmp.by_secret(rounds=rounds, honest=1))


def asking(template: bytes) -> bytes:
    """Return an ir with a template."""
    return cmp.first(tlv.seq(cmp.asked(template, GLOBEX.sign)))


def tlv_first(proof: bytes) -> bytes:
    """Return an ir with another proof of possession."""
    return cmp.first(tlv.seq(cmp.asked(cmp.template(), proof)))


def confirming(algorithm: bytes) -> bytes:
    """Return a confirmation by a hash."""
    return cmp.message(cmp.CERTCONF, cmp.confirmation(bytes(20), by=algorithm), cmp.by_key())
