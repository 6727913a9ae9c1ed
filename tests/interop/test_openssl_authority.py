"""A CA that is OpenSSL's from root to leaf: with our profile its certificates and its list are good to us."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pki.core import asn1, crl, requests, x509
from pki.core.certificates import CertificateKind
from pki.core.crl import Reason
from pki.core.errors import CertificateError, KeymailboxError
from pki.core.tenants import parse_address
from pki.core.x509 import key_identifier
from tests.interop.commands import Tool

ADDRESS = parse_address("acme/eu-west")
ALGORITHMS = {
    "ML-DSA-87": ("-algorithm", "ML-DSA-87"),
    "SLH-DSA-SHA2-128s": ("-algorithm", "SLH-DSA-SHA2-128s"),
    "SLH-DSA-SHAKE-192f": ("-algorithm", "SLH-DSA-SHAKE-192f"),
    "P-384": ("-algorithm", "EC", "-pkeyopt", "group:P-384"),
}
LEAVES = {
    CertificateKind.IDENTITY: ("-algorithm", "ML-DSA-65"),
    CertificateKind.ENCRYPTION: ("-algorithm", "ML-KEM-768"),
    CertificateKind.ACCESS: ("-algorithm", "ED25519"),
}
CONFIG = f"""[req]
distinguished_name = dn
[dn]
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
[leaf]
keyUsage = critical, USAGE
subjectAltName = URI:{ADDRESS.uri}
subjectKeyIdentifier = SKI
authorityKeyIdentifier = keyid:always
[ca]
default_ca = list
[list]
database = index
crlnumber = number
default_md = DIGEST
crl_extensions = listed
[listed]
authorityKeyIdentifier = keyid:always
"""
USAGES = {
    CertificateKind.IDENTITY: "digitalSignature",
    CertificateKind.ENCRYPTION: "keyEncipherment",
    CertificateKind.ACCESS: "digitalSignature\nextendedKeyUsage = critical, clientAuth",
}


def make(openssl: Tool, root: tuple[str, ...], issuing: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Return certificates of a root and an issuing CA, in DER."""
    for name, options in (("root", root), ("issuing", issuing)):
        openssl.put(f"{name}.key", b"")
        openssl.run("genpkey", *options, "-out", f"{name}.key")
    openssl.put("ca.cnf", CONFIG.encode())
    words: tuple[str, ...] = (
        "req",
        "-x509",
        "-new",
        "-config",
        "ca.cnf",
        "-extensions",
        "authority",
        "-days",
        "30",
        "-outform",
        "DER",
    )
    # Unless told, OpenSSL takes SHA-256 for P-384, too; the profile's is SHA-384.
    if root == ALGORITHMS["P-384"]:
        words = (*words, "-sha384")
    openssl.run(*words, "-key", "root.key", "-subj", "/CN=Their root", "-out", "root.der")
    under = ("-CA", "root.der", "-CAkey", "root.key")
    openssl.run(*words, *under, "-key", "issuing.key", "-subj", "/CN=Their issuing CA", "-out", "issuing.der")
    return openssl.get("issuing.der"), openssl.get("root.der")


def leaf(openssl: Tool, kind: CertificateKind) -> bytes:
    """Return a certificate of the issuing CA for a new key."""
    openssl.put("leaf.key", b"")
    openssl.run("genpkey", *LEAVES[kind], "-out", "leaf.key")
    openssl.run("pkey", "-in", "leaf.key", "-pubout", "-outform", "DER", "-out", "leaf.pub")
    identifier = key_identifier(openssl.get("leaf.pub")).hex()
    openssl.put("leaf.cnf", CONFIG.replace("USAGE", USAGES[kind]).replace("SKI", identifier).encode())
    words = ("x509", "-new", "-force_pubkey", "leaf.pub", "-subj", "/O=acme/CN=acme\\/eu-west", "-days", "9")
    signed = ("-CA", "issuing.der", "-CAkey", "issuing.key", "-extfile", "leaf.cnf", "-extensions", "leaf")
    openssl.run(*words, *signed, "-outform", "DER", "-out", "leaf.der")
    return openssl.get("leaf.der")


@pytest.mark.parametrize("kind", list(CertificateKind))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_we_verify_openssls_chains(openssl: Tool, name: str, kind: CertificateKind) -> None:
    """Root, issuing CA and leaf of OpenSSL's making pass our rules, and fail them under another root."""
    issuing, root = make(openssl, ALGORITHMS[name], LEAVES[CertificateKind.IDENTITY])
    parsed, now = x509.parse_certificate(leaf(openssl, kind)), datetime.now(UTC)
    x509.verify_chain(parsed, issuing_der=issuing, root_der=root, now=now)
    assert (parsed.address, parsed.kind) == (ADDRESS, kind)
    _, other = make(openssl, ALGORITHMS[name], LEAVES[CertificateKind.IDENTITY])
    with pytest.raises(CertificateError):
        x509.verify_chain(parsed, issuing_der=issuing, root_der=other, now=now)


@pytest.mark.parametrize(("name", "digest"), [("ML-DSA-87", "null"), ("P-384", "sha384")])
def test_we_believe_openssls_list(openssl: Tool, name: str, digest: str) -> None:
    """A list of OpenSSL's, with a revoked certificate and its reason."""
    issuing, _ = make(openssl, ALGORITHMS[name], ALGORITHMS[name])
    serial = x509.parse_certificate(leaf(openssl, CertificateKind.IDENTITY)).serial
    openssl.put("ca.cnf", CONFIG.replace("DIGEST", digest).encode())
    openssl.put("index", b"")
    openssl.put("number", b"07\n")
    words = ("ca", "-config", "ca.cnf", "-cert", "issuing.der", "-keyfile", "issuing.key")
    openssl.run(*words, "-revoke", "leaf.der", "-crl_reason", "keyCompromise")
    openssl.run(*words, "-gencrl", "-crldays", "1", "-out", "crl.pem")
    openssl.run("crl", "-in", "crl.pem", "-outform", "DER", "-out", "crl.der")
    found = crl.verify_crl(openssl.get("crl.der"), issuing_der=issuing, now=datetime.now(UTC))
    assert found.number == 7
    assert {one: entry.reason for one, entry in found.revoked.items()} == {serial: Reason.KEY_COMPROMISE}
    assert found.next_update - found.this_update == timedelta(days=1)
    # As DER has it: OpenSSL's serial is random, and may be shorter.
    named = asn1.encode(serial)
    altered = openssl.get("crl.der").replace(named, named[:-1] + bytes([named[-1] ^ 1]))
    assert altered != openssl.get("crl.der")
    with pytest.raises(KeymailboxError):
        crl.verify_crl(altered, issuing_der=issuing, now=datetime.now(UTC))


@pytest.mark.parametrize("algorithm", ["ML-DSA-65", "EC:P-256", "EC:P-384", "ED25519"])
def test_openssls_request_is_good_for_an_identity(openssl: Tool, algorithm: str) -> None:
    """A plain PKCS #10 of OpenSSL's, with nothing or with what the profile gives anyway (docs/adr/0016)."""
    name, _, group = algorithm.partition(":")
    openssl.run("genpkey", "-algorithm", name, *(("-pkeyopt", f"group:{group}") if group else ()), "-out", "leaf.key")
    digest = ("-sha384",) if group == "P-384" else ()
    words = ("req", "-new", *digest, "-key", "leaf.key", "-subj", "/O=acme/CN=acme\\/eu-west", "-outform", "DER")
    for asks in ((), ("keyUsage=critical,digitalSignature", f"subjectAltName=URI:{ADDRESS.uri}")):
        openssl.run(*words, *(word for wish in asks for word in ("-addext", wish)), "-out", "request.der")
        unverified = requests.parse_request(openssl.get("request.der"))
        assert (unverified.kind, unverified.address) == (CertificateKind.IDENTITY, ADDRESS)
        assert unverified.verify(x509.identity_public_key(unverified.spki)).signing_time is None


def test_openssls_request_for_access_and_one_that_asks_for_too_much(openssl: Tool) -> None:
    """REQ-008: clientAuth makes it one for access; what the certificate would not get is refused by name."""
    openssl.run("genpkey", "-algorithm", "ED25519", "-out", "leaf.key")
    words = ("req", "-new", "-key", "leaf.key", "-subj", "/O=acme/CN=acme\\/eu-west", "-outform", "DER")
    openssl.run(*words, "-addext", "extendedKeyUsage=critical,clientAuth", "-out", "request.der")
    unverified = requests.parse_request(openssl.get("request.der"))
    assert unverified.kind is CertificateKind.ACCESS
    unverified.verify(x509.access_public_key(unverified.spki))
    for wish, named in (
        ("extendedKeyUsage=serverAuth", "not given: extended key usage"),
        ("subjectAltName=DNS:acme.example", "another subject alternative name"),
        ("basicConstraints=critical,CA:TRUE", "not given: basic constraints"),
    ):
        openssl.run(*words, "-addext", wish, "-out", "request.der")
        with pytest.raises(KeymailboxError) as caught:
            requests.parse_request(openssl.get("request.der"))
        assert (caught.value.rule, named in caught.value.message) == ("REQ-008", True)
