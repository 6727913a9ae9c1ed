"""Another tool's EST client: a plain PKCS #10 for its key, and HTTP as a TLS front hands it on."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import timedelta

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from pki.core import requests, signers
from pki.core.signatures import SignatureAlgorithm
from pki.core.signers import SigningKey
from pki.core.tenants import Address, parse_address
from pki.server.store import tenants
from tests.kit.authority import new_signing_key
from tests.kit.plain import plain
from tests.kit.site import Site, now

ADDRESS = parse_address("acme/eu-west")
ENROLL, REENROLL = "/.well-known/est/simpleenroll", "/.well-known/est/simplereenroll"
BEHIND_A_FRONT: dict[str, object] = {"client_cert_from": "127.0.0.0/8", "long_poll_max": 0}
"""Settings of a server whose client is the TLS front, and that waits for nobody."""


@dataclass
class Client:
    """Another tool's client: a plain PKCS #10 for its key, and HTTP."""

    site: Site
    address: Address = ADDRESS
    key: SigningKey = field(default_factory=lambda: new_signing_key(SignatureAlgorithm.ECDSA_P256))
    certificate: bytes = b""

    def request(self, key: SigningKey | None = None, address: Address | None = None) -> bytes:
        """Return a request for an identity, without a time."""
        return plain(address or self.address, key or self.key)

    def post(
        self, path: str, der: bytes, *, password: tuple[str, str] | None = None, certificate: bytes = b"", **fields: str
    ) -> httpx2.Response:
        """Send a request, as the TLS front hands it on."""
        headers = {"Content-Type": "application/pkcs10", **{k.replace("_", "-"): v for k, v in fields.items()}}
        if password is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(password).encode()).decode()
        if certificate:
            headers["Client-Cert"] = f":{base64.b64encode(certificate).decode()}:"
        return self.site.http.post(path, content=base64.encodebytes(der), headers=headers)

    def invited(self) -> tuple[str, str]:
        """Return what HTTP Basic takes."""
        invitation, secret = self.site.invite(self.address.tenant)
        return invitation.reference, secret

    def enrol(self) -> bytes:
        """Enrol, and return the identity certificate."""
        der, password = self.request(), self.invited()
        assert self.post(ENROLL, der, password=password).status_code == 202
        self.site.work()
        self.certificate = issued(self.post(ENROLL, der, password=password))
        return self.certificate

    def certified(self, der: bytes, certificate: bytes = b"") -> bytes:
        """Return what is issued for a request that a certificate stands for."""
        shown = certificate or self.certificate
        assert self.post(REENROLL, der, certificate=shown).status_code == 202
        self.site.work()
        return issued(self.post(REENROLL, der, certificate=shown))


def for_access(address: Address, key: SigningKey, *, ago: int = 0) -> bytes:
    """Return a request for an access certificate; Ed25519 signs the same request in the same way."""
    signed = now() - timedelta(seconds=ago)
    return requests.access_request(address, key.public.spki, sign=key.sign, signing_time=signed)


def issued(answer: httpx2.Response) -> bytes:
    """Return the one certificate of an answer."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/pkcs7-mime; smime-type=certs-only"
    [found] = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.content, validate=True))
    return found.public_bytes(Encoding.DER)


def refused(answer: httpx2.Response, status: int, *words: str) -> httpx2.Response:
    """Check a refusal in words, with a hint."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    assert "\nhint: " in answer.text
    for word in words:
        assert word in answer.text, answer.text
    return answer


def enrolled(site: Site) -> list[str]:
    """Return who is enrolled."""
    with site.deps.store.read() as unit:
        return [str(one.address) for one in tenants.list_instances(unit)]


def ed25519() -> SigningKey:
    """Return a key as access keys are."""
    return new_signing_key(SignatureAlgorithm.ED25519)


def signing(key: Ed25519PrivateKey) -> SigningKey:
    """Return an access key as one that signs requests."""
    return signers.load(SignatureAlgorithm.ED25519, key.private_bytes_raw())
