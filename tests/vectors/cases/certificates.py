"""Certificates, revocation lists, requests, receipts and revocations: rules CRT-…, CRL-…, REQ-…, RCP-…, REV-…."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from tests.kit import forge, tlv
from tests.kit import forge_pki as pki
from tests.kit.authority import NOW
from tests.kit.forge_classical import RsaSigner
from tests.kit.forge_pki import DAY, GLOBEX, GLOBEX_KEY, STRANGER, certificate, request
from tests.vectors.cases import Case
from tests.vectors.cases import readers as classical

NULLED = tlv.algorithm(forge.ML_DSA_65, tlv.NULL)
RSA = tlv.algorithm("1.2.840.113549.1.1.11", tlv.NULL)
RSA_SHA384, RSA_BARE = tlv.algorithm("1.2.840.113549.1.1.12", tlv.NULL), tlv.algorithm("1.2.840.113549.1.1.12")
PSS = tlv.algorithm("1.2.840.113549.1.1.10", tlv.NULL)
RSA_ISSUING = RsaSigner(classical.RSA)
BY_RSA = {"issuing": "issuing-rsa"}
TWO = (("2.5.4.10", "globex"), ("2.5.4.3", "globex/main"), ("2.5.4.6", "DE"))
CAPABILITIES, HKDF_SHA512 = "1.2.840.113549.1.9.15", "1.2.840.113549.1.9.16.3.30"
ODD_NAME = tlv.seq(tlv.set_of(tlv.seq(tlv.oid("2.5.4.3"), tlv.bits(b"globex/main"))))
ENCRYPTION = {"use": "encryption", "request": "globex-encryption-request"}


def certificates() -> Iterator[Case]:
    """Yield good certificates and broken ones, all for globex/main."""
    uri = pki.uri("globex/main")
    right = [pki.usage(), pki.names(uri), pki.ski(GLOBEX.ski), pki.aki()]

    def only(position: int, *instead: bytes) -> bytes:
        return certificate(extensions=[*right[:position], *instead, *right[position + 1 :]])

    yield Case("identity", "certificate", "", "A certificate for signing", certificate())
    yield Case("encryption", "certificate", "", "A certificate for encryption", certificate(key=GLOBEX_KEY), ENCRYPTION)
    inside_out = tlv.seq(tlv.algorithm(GLOBEX_KEY.algorithm.oid.dotted_string), tlv.bits(bytes(1216)))
    critical = pki.extension("1.3.6.1.4.1.55738.1", tlv.NULL, critical=True)
    both = tlv.seq(tlv.context(0, pki.ISSUING.ski, constructed=False), tlv.context(2, b"\x01", constructed=False))
    for rule, name, why, body in (
        ("CRT-001", "version-2", "Version 2", certificate(version=1)),
        ("CRT-001", "serial-0", "The serial is 0", certificate(serial=0)),
        ("CRT-001", "serial-negative", "The serial is negative", certificate(serial=-1)),
        ("CRT-001", "serial-21-bytes", "The serial has 21 bytes", certificate(serial=1 << 160)),
        ("CRT-002", "null-parameters", "NULL parameters inside and outside", certificate(inner=NULLED, outer=NULLED)),
        ("CRT-002", "other-outside", "Another algorithm outside than inside", certificate(outer=RSA)),
        ("CRT-002", "unused-bits", "The signature's last bits are said to be unused", certificate(unused=3)),
        (
            "CRT-003",
            "not-yet",
            "Valid from tomorrow",
            certificate(not_before=NOW + DAY, not_after=NOW + 2 * DAY),
        ),
        ("CRT-003", "expired", "Expired a second ago", certificate(not_after=NOW - timedelta(seconds=1))),
        ("CRT-017", "sixteen-years", "Valid for 16 years", certificate(not_after=NOW + 16 * 365 * DAY)),
        ("CRT-004", "two-names", "Two addresses", only(1, pki.names(uri, pki.uri("acme/eu-west")))),
        ("CRT-004", "no-address", "The name is a web site", only(1, pki.names("https://example.com/"))),
        ("CRT-004", "other-subject", "The subject names more", certificate(subject=forge.name(*TWO))),
        ("CRT-005", "unknown-critical", "An unknown critical extension", certificate(extensions=[*right, critical])),
        ("CRT-005", "no-authority-key", "No authority key identifier", only(3)),
        ("CRT-005", "issuer-and-serial", "The authority key identifier has a serial", only(3, aki(both))),
        ("CRT-005", "other-identifier", "The key identifier is another key's", only(2, pki.ski(STRANGER.ski))),
        ("CRT-006", "not-critical", "The key usage is not critical", only(0, pki.usage(critical=False))),
        ("CRT-006", "both-uses", "For signing and for encryption", only(0, pki.usage(b"\x05\xa0"))),
        ("CRT-006", "certificate-signing", "For signing certificates", only(0, pki.usage(b"\x02\x04"))),
        ("CRT-018", "server", "For TLS servers", certificate(extensions=[*right, clients("1", critical=True)])),
        ("CRT-018", "client-not-critical", "clientAuth, not critical", certificate(extensions=[*right, clients("2")])),
        ("CRT-009", "client", "ML-DSA for access", certificate(extensions=[*right, clients("2", critical=True)])),
        ("CRT-007", "other-issuer", "Another issuer's name", certificate(issuer=forge.name(("2.5.4.3", "Other")))),
        ("CRT-007", "other-authority-key", "Another issuer's key identifier", only(3, pki.aki(pki.ROOT.ski))),
        ("CRT-008", "other-signer", "Signed by the root", certificate(sign=pki.ROOT.sign)),
        (
            "CRT-009",
            "short-key",
            "The key has a byte less",
            certificate(spki=tlv.seq(forge.GOOD, tlv.bits(bytes(1951)))),
        ),
        ("CRT-009", "rsa-key", "The identity key is an RSA key", certificate(spki=tlv.seq(RSA, tlv.bits(bytes(270))))),
        ("CRT-011", "other-address", "For another address", certificate("globex/other")),
        ("CRT-011", "other-use", "For encryption, and not for signing", certificate(key=GLOBEX_KEY)),
        ("CRT-012", "other-key", "The request is for another key", certificate(key=STRANGER)),
        ("DER-001", "extension-twice", "An extension is there twice", certificate(extensions=[*right, right[0]])),
    ):
        yield Case(name, "certificate", rule, why, body)
    many = [pki.extension(f"1.2.3.{number}", tlv.NULL) for number in range(13)]
    crowd = certificate(extensions=[*right, *many])
    yield Case("17-extensions", "certificate", "CRT-016", "17 extensions", crowd)
    odd_name = certificate(subject=ODD_NAME)
    yield Case("odd-name", "certificate", "CRT-004", "The subject's name is a BIT STRING", odd_name)
    low = certificate(key=GLOBEX_KEY, spki=inside_out)
    yield Case("low-order", "certificate", "CRT-009", "The X25519 part is of low order", low, ENCRYPTION)
    composite = tlv.algorithm(GLOBEX_KEY.algorithm.oid.dotted_string)
    nothing = tlv.seq(composite, tlv.bits(bytes(1152) + GLOBEX_KEY.public[1152:]))
    zero = certificate(key=GLOBEX_KEY, spki=nothing)
    yield Case("zero-key", "certificate", "CRT-009", "The ML-KEM part is zero but for rho", zero, ENCRYPTION)
    null = tlv.algorithm(GLOBEX_KEY.algorithm.oid.dotted_string, tlv.NULL)
    odd = certificate(key=GLOBEX_KEY, spki=tlv.seq(null, tlv.bits(GLOBEX_KEY.public)))
    yield Case("key-parameters", "certificate", "CRT-009", "The key's algorithm has NULL parameters", odd, ENCRYPTION)
    for count, size in ((17, 0), (1, 1024)):
        listed = tlv.seq(*[tlv.algorithm(HKDF_SHA512, tlv.octets(bytes(size)) if size else b"")] * count)
        names = [pki.usage(pki.ENCIPHERMENT), pki.names(uri), pki.ski(GLOBEX_KEY.ski), pki.aki()]
        many = certificate(key=GLOBEX_KEY, extensions=[*names, pki.extension(CAPABILITIES, listed)])
        why = f"Capabilities: {count} of them" if count > 1 else "Capabilities of more than 1 KiB"
        yield Case(f"capabilities-{count}", "certificate", "CRT-015", why, many, ENCRYPTION)
    old = {"request": "globex-old-request"}
    yield Case("old-request", "certificate", "CRT-013", "It starts three days after its request", certificate(), old)
    revoked = {"crl": "crl-globex-revoked"}
    yield Case("revoked", "certificate", "CRT-010", "It is on the revocation list", certificate(), revoked)
    pretender = {"issuing": "issuing-no-ca"}
    yield Case("issuer-no-ca", "certificate", "CRT-014", "Its issuer is not a CA", certificate(), pretender)
    stranger = {"issuing": "issuing-of-another-root"}
    yield Case("other-root", "certificate", "CRT-014", "Its issuer is of another root", certificate(), stranger)
    yield Case(
        "other-request", "certificate", "REQ-005", "A stranger endorsed it", certificate(), {"request": "forged"}
    )


def clients(purpose: str, *, critical: bool = False) -> bytes:
    """Return an extended key usage with one purpose (RFC 5280 §4.2.1.12)."""
    return pki.extension("2.5.29.37", tlv.seq(tlv.oid(f"1.3.6.1.5.5.7.3.{purpose}")), critical=critical)


def certificates_by_rsa() -> Iterator[Case]:
    """Yield certificates under an issuing CA with an RSA key."""
    listed = [pki.usage(), pki.names(pki.uri("globex/main")), pki.ski(GLOBEX.ski), pki.aki(RSA_ISSUING.ski)]
    for rule, name, why, algorithm, sign in (
        ("", "identity-by-rsa", "Signed by RSA, PKCS #1 v1.5 with SHA-384", RSA_SHA384, RSA_ISSUING.sign),
        ("CRT-002", "rsa-no-parameters", "The parameters are absent, not NULL", RSA_BARE, RSA_ISSUING.sign),
        ("CRT-002", "rsa-sha256", "RSA with SHA-256", RSA, RSA_ISSUING.sign_otherwise),
        ("CRT-002", "rsa-pss", "It says that the padding is PSS", PSS, RSA_ISSUING.sign),
        ("CRT-008", "rsa-other-hash", "SHA-256 inside of the signature", RSA_SHA384, RSA_ISSUING.sign_otherwise),
    ):
        body = certificate(inner=algorithm, outer=algorithm, extensions=listed, sign=sign)
        yield Case(name, "certificate", rule, why, body, {**BY_RSA, "crl": "crl-rsa"})


def crl_by_rsa(serials: Sequence[int] = ()) -> bytes:
    """Return a revocation list of the issuing CA with an RSA key."""
    return pki.crl(serials, algorithm=RSA_SHA384, by=RSA_ISSUING.ski, sign=RSA_ISSUING.sign)


def aki(value: bytes) -> bytes:
    """Return an authority key identifier with this value."""
    return pki.extension(pki.AKI, value)


def lists() -> Iterator[Case]:
    """Yield good revocation lists and broken ones."""
    delta = pki.extension(pki.DELTA, tlv.integer(1), critical=True)
    yield Case("empty", "crl", "", "Nothing is revoked", pki.crl())
    yield Case("one", "crl", "", "One certificate is revoked", pki.crl([4711]))
    yield Case("by-rsa", "crl", "", "Signed by RSA", crl_by_rsa([4711]), BY_RSA)
    yield Case("not-by-rsa", "crl", "CRL-001", "Another issuing CA's key is RSA", crl_by_rsa())
    for rule, name, why, body in (
        ("CRL-001", "other-signer", "The root signed it", pki.crl(sign=pki.ROOT.sign)),
        ("CRL-001", "other-issuer", "It names another issuer", pki.crl(issuer=forge.name(("2.5.4.3", "Other")))),
        ("CRL-002", "delta", "It is a delta list", pki.crl(extra=[delta])),
        ("DER-001", "odd-name", "The issuer's name is a BIT STRING", pki.crl(issuer=ODD_NAME)),
        ("CRL-003", "stale", "Its next update was a second ago", stale()),
    ):
        yield Case(name, "crl", rule, why, body)


def stale() -> bytes:
    """Return a list that is out of date."""
    return pki.crl(at=NOW - DAY, until=NOW - timedelta(seconds=1))


def requests() -> Iterator[Case]:
    """Yield good requests and broken ones."""
    time = tlv.attribute(forge.SIGNING_TIME, tlv.utc(NOW))
    unknown = tlv.attribute("1.2.840.113549.1.9.7", tlv.utf8("challenge"))
    yield Case("identity", "request", "", "For an identity key", request())
    yield Case("encryption", "request", "", "For an encryption key", request(key=GLOBEX_KEY))
    mine, theirs = pki.names(pki.uri("globex/main")), pki.names(pki.uri("acme/eu-west"))
    constraints = pki.extension("2.5.29.19", tlv.seq(tlv.boolean(True)), critical=True)
    yield Case("identity-plain", "request", "", "Another tool's, without a time", request(attributes=()))
    asks = request(attributes=[wish(pki.usage(), mine, pki.ski(GLOBEX.ski))])
    yield Case("identity-asks", "request", "", "It asks for what the certificate gets", asks)
    printable = tlv.seq(*(tlv.set_of(tlv.seq(tlv.oid(kind), tlv.tlv(0x13, said.encode()))) for kind, said in TWO[:2]))
    yield Case("identity-printable", "request", "", "The subject is of PrintableStrings", request(subject=printable))
    for rule, name, why, body in (
        ("REQ-001", "version-2", "Version 2", request(version=1)),
        ("REQ-001", "large", "17,000 bytes", request(attributes=[tlv.attribute(forge.DATA, tlv.octets(bytes(12000)))])),
        ("REQ-002", "rsa", "It says that the signature is RSA's", request(algorithm=RSA)),
        ("REQ-002", "unused-bits", "The signature's last bits are unused", request(unused=1)),
        ("REQ-003", "more-names", "The subject names more", request(subject=forge.name(*TWO))),
        ("REQ-003", "no-tenant", "The subject has no organization", request(subject=forge.name(TWO[1]))),
        ("REQ-004", "no-time", "There is no time", request(key=GLOBEX_KEY, attributes=[pki.statement()])),
        ("REQ-008", "other-name", "It asks for another address", request(attributes=[wish(theirs)])),
        ("REQ-008", "authority", "It asks to be a CA", request(attributes=[wish(pki.usage(), constraints)])),
        ("REQ-008", "name-twice", "It asks for one extension twice", request(attributes=[wish(mine, mine)])),
        ("REQ-004", "challenge-password", "It asks for more", request(attributes=[time, unknown])),
        ("REQ-004", "no-statement", "Nobody stands for the key", request(key=GLOBEX_KEY, attributes=[time])),
        ("REQ-005", "other-signer", "A stranger signed it", request(key=GLOBEX_KEY, sign=STRANGER.sign)),
        ("REQ-005", "other-identity", "Another identity key", request(key=STRANGER, sign=STRANGER.sign)),
    ):
        yield Case(name, "request", rule, why, body)


def wish(*extensions: bytes) -> bytes:
    """Return an attribute that asks for extensions (RFC 2985 §5.4.2)."""
    return tlv.attribute("1.2.840.113549.1.9.14", tlv.seq(*extensions))


def receipts() -> Iterator[Case]:
    """Yield a good receipt, a good refusal, and broken ones."""
    dns = pki.entity(b"globex.example", "1.3.6.1.4.1.55738.2")
    comma = pki.entity(forge.name(*TWO))
    yield Case("receipt", "receipt", "", "A receipt", pki.receipt())
    yield Case("refusal", "receipt", "", "A refusal: it could not be opened", pki.refusal())
    large = pki.answer(pki.RECEIPT, tlv.seq(tlv.octets(bytes(13000))))
    for rule, name, why, body in (
        ("RCP-001", "version-3", "Version 3", pki.receipt(version=3)),
        ("RCP-001", "large", "17,000 bytes", large),
        ("RCP-002", "short-id", "The deposit's id has 15 bytes", pki.receipt(deposit=bytes(15))),
        ("RCP-002", "no-deposit", "A refusal of nothing", pki.refusal(deposit=None)),
        ("RCP-002", "unknown-reason", "Refused for want of memory", pki.refusal(error=b"\x0a\x01\x11")),
        ("RCP-003", "other-kind-of-name", "The recipient is named by a host", pki.receipt(by=dns)),
        ("RCP-003", "more-names", "The recipient's name has a country", pki.receipt(by=comma)),
        (
            "RCP-004",
            "other-recipient",
            "Given by somebody else",
            pki.receipt(by=pki.entity(forge.address_name("acme/eu-west"))),
        ),
        ("RCP-004", "other-deposit", "For another deposit", pki.receipt(deposit=bytes(16))),
        ("RCP-005", "other-bytes", "For other bytes", pki.receipt(sha512=bytes(64))),
        ("SIG-006", "other-signer", "Signed by a stranger", pki.receipt(signer=STRANGER)),
    ):
        yield Case(name, "receipt", rule, why, body)


def revocations() -> Iterator[Case]:
    """Yield a good revocation request and broken ones."""
    yield Case("revocation", "revocation", "", "A key is compromised", pki.revocation())
    changes: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("REV-001", "version-2", "Version 2", {"version": 2}),
        ("REV-001", "short-fingerprint", "The fingerprint has 31 bytes", {"fingerprint": bytes(31)}),
        ("SIG-006", "other-signer", "A stranger's wish", {"signer": STRANGER}),
        ("-", "reason", "Reason 6 is not for owners", {"reason": 6}),
    )
    for rule, name, why, fields in changes:
        yield Case(name, "revocation", rule, why, pki.revocation(**fields))
