"""Keys and certificates that OpenSSL makes, for recipients and signers of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cryptography import x509

from pki.core import keys
from pki.core.envelope import IssuerSerial, Recipient
from pki.core.kem import Hkdf
from pki.core.keys import KeyAlgorithm
from tests.interop.commands import Tool

_CONFIG = b"""[req]
distinguished_name = dn
[dn]
[leaf]
subjectKeyIdentifier = hash
"""
OPTIONS = {
    "ML-KEM-512": ("-algorithm", "ML-KEM-512"),
    "ML-KEM-768": ("-algorithm", "ML-KEM-768"),
    "ML-KEM-1024": ("-algorithm", "ML-KEM-1024"),
    "P-256": ("-algorithm", "EC", "-pkeyopt", "group:P-256"),
    "P-384": ("-algorithm", "EC", "-pkeyopt", "group:P-384"),
    "P-521": ("-algorithm", "EC", "-pkeyopt", "group:P-521"),
    "RSA-2048": ("-algorithm", "RSA", "-pkeyopt", "bits:2048"),
    "RSA-3072": ("-algorithm", "RSA", "-pkeyopt", "bits:3072"),
    "ML-DSA-44": ("-algorithm", "ML-DSA-44"),
    "ML-DSA-65": ("-algorithm", "ML-DSA-65"),
    "ML-DSA-87": ("-algorithm", "ML-DSA-87"),
    "Ed25519": ("-algorithm", "ED25519"),
}
"""What `openssl genpkey` is told for each kind of key."""


@dataclass(frozen=True)
class Foreigner:
    """Somebody whose key and certificate OpenSSL made; the files are ``name``.key and ``name``.pem."""

    openssl: Tool
    name: str

    @cached_property
    def certificate(self) -> x509.Certificate:
        """The certificate."""
        return x509.load_pem_x509_certificate(self.openssl.get(f"{self.name}.pem"))

    @property
    def ski(self) -> bytes:
        """The certificate's key identifier: a SHA-1, as OpenSSL makes it."""
        return self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest

    @property
    def issuer_serial(self) -> IssuerSerial:
        """The certificate's other name."""
        return IssuerSerial(self.certificate.issuer.public_bytes(), self.certificate.serial_number)

    @property
    def spki(self) -> bytes:
        """The public key in DER."""
        self.openssl.run("pkey", "-in", f"{self.name}.key", "-pubout", "-outform", "DER", "-out", "public.der")
        return self.openssl.get("public.der")

    @cached_property
    def private(self) -> tuple[KeyAlgorithm, bytes]:
        """The private key, read by us from the PKCS #8 that OpenSSL writes."""
        words = ("pkcs8", "-topk8", "-nocrypt", "-in", f"{self.name}.key", "-outform", "DER", "-out", "private.der")
        self.openssl.run(*words)
        return keys.load_private(self.openssl.get("private.der"))

    def recover(self, algorithm: KeyAlgorithm, sent: bytes) -> bytes:
        """Do what a key holder does for an envelope."""
        return keys.recover(algorithm, self.private[1], sent)

    def recipient(self, kdf: Hkdf = Hkdf.SHA256) -> Recipient:
        """Whom we wrap for."""
        algorithm, public = keys.parse_spki(self.spki)
        return Recipient(self.ski, algorithm, public, kdf)


def foreigner(openssl: Tool, kind: str, name: str = "theirs") -> Foreigner:
    """Let OpenSSL make a key of a kind in `OPTIONS`, and a certificate under its own ML-DSA-65 CA."""
    openssl.put("foreign.cnf", _CONFIG)
    if not (openssl.room / "ca.pem").exists():
        _key(openssl, "ca", "ML-DSA-65")
        root = ("req", "-x509", "-new", "-config", "foreign.cnf", "-key", "ca.key", "-out", "ca.pem")
        openssl.run(*root, "-subj", "/CN=Foreign CA", "-days", "30")
    _key(openssl, name, kind)
    openssl.run("pkey", "-in", f"{name}.key", "-pubout", "-out", f"{name}.pub")
    words = ("x509", "-new", "-force_pubkey", f"{name}.pub", "-subj", f"/CN={name}", "-CA", "ca.pem")
    openssl.run(*words, "-CAkey", "ca.key", "-extfile", "foreign.cnf", "-extensions", "leaf", "-out", f"{name}.pem")
    return Foreigner(openssl, name)


def _key(openssl: Tool, name: str, kind: str) -> None:
    openssl.put(f"{name}.key", b"")
    openssl.run("genpkey", *OPTIONS[kind], "-out", f"{name}.key")
