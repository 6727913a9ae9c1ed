"""OpenSSL asks a running server for the status of certificates: lists, delta lists and OCSP, under three algorithms."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki.core import certificates as facts
from pki.core.authorities import ca_key_identifier
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.server import bootstrap
from pki.server.api import ocsp
from pki.server.settings import load_settings
from tests.interop.commands import RefusedError, Tool
from tests.kit.issuers import HeldHands, Issuers, at_work
from tests.kit.site import Instance, Site

ALGORITHMS = (SignatureAlgorithm.ML_DSA_65, SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384)
WITHIN = 10.0
"""Seconds from a revocation to everybody's seeing it."""


@dataclass
class Scene:
    """A server that is at work, an instance with certificates, and OpenSSL with the CA's certificates in its room."""

    site: Site
    openssl: Tool
    acme: Instance
    issuer: str

    def lists(self) -> None:
        """Fetch what was published, into OpenSSL's room."""
        for kind, path in (("full", self.issuer), ("delta", f"{self.issuer}/delta")):
            answer = self.site.http.get(f"/v1/crl/{path}")
            if answer.status_code == 200:
                crl = x509.load_der_x509_crl(answer.content)
                self.openssl.put(f"{kind}.der", answer.content)
                self.openssl.put(f"{kind}.pem", crl.public_bytes(Encoding.PEM))

    def verify(self, leaf: str, *options: str) -> str:
        """Return what ``openssl verify`` says of a certificate."""
        chain = ("-CAfile", "root.pem", "-untrusted", "issuing.pem", "-crl_check")
        return self.openssl.run("verify", *chain, *options, leaf)

    def ask(self, *options: str) -> str:
        """Return what ``openssl ocsp`` makes of the responder's answer."""
        where = ("-url", f"{self.site.url}/v1/ocsp", "-issuer", "issuing.pem", "-CAfile", "root.pem", "-timeout", "60")
        return self.openssl.run("ocsp", *where, *options)

    def revoke(self, der: bytes) -> None:
        """Revoke a certificate as its owner."""
        fingerprint = facts.proof_of_decryption(der)
        path = f"/v1/certificates/{fingerprint}/revocation"
        assert self.acme.call("POST", path, self.acme.revocation(fingerprint), "application/cms").status_code == 200


@pytest.fixture(params=ALGORITHMS, ids=lambda one: one.label)
def scene(
    request: pytest.FixtureRequest, openssl: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    """A server with an issuing CA of this algorithm."""
    # However long the issuer takes: nobody is told to try later.
    monkeypatch.setattr(ocsp, "WAIT_SECONDS", 45.0)
    home, url = tmp_path / "home", f"sqlite:///{tmp_path / 'server.sqlite'}"
    issuers = Issuers((request.param,), at=datetime.now(UTC).replace(microsecond=0))
    issuers.write(home)
    deps = bootstrap.build(load_settings(home=home, database_url=url))
    deps.store.migrate()
    deps.store.close()
    with Site(home, url, log_level="error") as site, at_work(HeldHands(site.deps, issuers.keys)):
        acme = Instance(site, parse_address("acme/eu-west"))
        enrolled = acme.enrol().json()["request_id"]
        assert acme.get(f"/v1/certificate-requests/{enrolled}?wait=20").json()["state"] == "issued"
        listed = acme.get("/v1/directory/acme/eu-west").json()["identity"]
        acme.identity_certificate = base64.b64decode(listed["certificate"])
        chain = {"root": issuers.root_der, "issuing": site.deps.chain.issuing, "leaf": acme.identity_certificate}
        for name, der in chain.items():
            openssl.put(f"{name}.pem", x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
        yield Scene(site, openssl, acme, ca_key_identifier(site.deps.chain.issuing).hex())


def test_openssl_asks_for_the_status(scene: Scene) -> None:
    """By OCSP with and without a nonce, by SHA-1 and SHA-256, and by the lists, before and after a revocation."""
    leaf = ("-cert", "leaf.pem")
    for options in (leaf, ("-no_nonce", *leaf), ("-sha256", *leaf), ("-sha256", "-no_nonce", *leaf)):
        told = scene.ask(*options)
        assert "Response verify OK" in told
        assert "leaf.pem: good" in told
        assert "WARNING" not in told
    told = scene.ask(*leaf, "-serial", "0x1234567890")
    assert "leaf.pem: good" in told
    assert "0x1234567890: unknown" in told
    scene.lists()
    assert "verify OK" in scene.openssl.run("crl", "-in", "full.pem", "-CAfile", "issuing.pem", "-noout")
    assert "leaf.pem: OK" in scene.verify("leaf.pem", "-CRLfile", "full.pem")
    before = scene.openssl.get("full.pem")
    began = time.monotonic()
    scene.revoke(scene.acme.identity_certificate)
    while "leaf.pem: revoked" not in (told := scene.ask(*leaf)):
        assert time.monotonic() - began < WITHIN
    assert "Reason: keyCompromise" in told
    while scene.openssl.get("full.pem") == before:
        assert time.monotonic() - began < WITHIN
        scene.lists()
    while "leaf.pem: revoked" not in scene.ask("-no_nonce", *leaf):
        assert time.monotonic() - began < WITHIN
    with pytest.raises(RefusedError, match="certificate revoked"):
        scene.verify("leaf.pem", "-CRLfile", "full.pem")
    assert "verify OK" in scene.openssl.run("crl", "-in", "full.pem", "-CAfile", "issuing.pem", "-noout")
    # The old list does not know; with the delta list, which it points to, it does.
    scene.openssl.put("old.pem", before)
    scene.openssl.put("both.pem", before + scene.openssl.get("delta.pem"))
    assert "leaf.pem: OK" in scene.verify("leaf.pem", "-CRLfile", "old.pem", "-use_deltas", "-extended_crl")
    with pytest.raises(RefusedError, match="certificate revoked"):
        scene.verify("leaf.pem", "-CRLfile", "both.pem", "-use_deltas", "-extended_crl")
    shown = scene.openssl.run("crl", "-in", "delta.pem", "-noout", "-text")
    assert "X509v3 Delta CRL Indicator: critical" in shown
    assert scene.issuer in scene.openssl.run("crl", "-in", "full.pem", "-noout", "-text")
