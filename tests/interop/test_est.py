"""EST with other people's client and front: curl and OpenSSL, through haproxy, with what the documentation says."""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from cryptography import x509 as library
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from pki.core import httpsig, x509
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import parse_address
from pki.core.x509 import CertificateKind
from pki.server import bootstrap
from pki.server.adapters.signers.home import ROOT_FOLDER, install, request_issuing
from pki.server.adapters.signers.root import open_root
from pki.server.settings import load_settings
from pki.server.store.engine import Store
from tests.interop.commands import SECONDS, RefusedError, Tool
from tests.kit.daemons import LOOPBACK, apt_install, free_port
from tests.kit.front import front
from tests.kit.site import Homes, Site, now

pytest_plugins = ["tests.kit.api_fixtures"]

ADDRESS = parse_address("acme/eu-west")
BLOCKS = re.findall(r"```bash\n(.*?)```", (Path(__file__).parents[2] / "docs/interop.md").read_text(), re.DOTALL)
FRONT = ("req", "-x509", "-newkey", "EC", "-pkeyopt", "group:P-256", "-nodes", "-days", "2", "-subj", "/CN=front")


@dataclass(frozen=True)
class Served:
    """A server behind haproxy, and a room with the front's certificate where people type."""

    site: Site
    openssl: Tool
    url: str

    def typed(self, commands: str, **variables: str) -> str:
        """Run commands as a person would, with OpenSSL 4 as ``openssl``; RefusedError when one fails."""
        path = self.openssl.room / "bin"
        path.mkdir(exist_ok=True)
        (path / "openssl").write_text(f'#!/bin/sh\nexec {self.openssl.command} "$@"\n')
        (path / "openssl").chmod(0o755)
        environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "SERVER": self.url, **variables}
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", commands],
            cwd=self.openssl.room,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if done.returncode:
            raise RefusedError(done.stdout + done.stderr)
        return done.stdout

    def invitation(self) -> dict[str, str]:
        """Return what an invited person was told."""
        invited, secret = self.site.invite("acme")
        return {"REFERENCE": invited.reference, "SECRET": secret}

    def certificate(self, name: str) -> x509.ParsedCertificate:
        """Return a certificate that a command wrote."""
        found = library.load_pem_x509_certificate(self.openssl.get(name))
        return x509.parse_certificate(found.public_bytes(Encoding.DER))

    def post(self, path: str, body: str, *options: str) -> tuple[int, str]:
        """Send a request with curl; return status and words."""
        words = ["curl", "-s", "--cacert", "front.pem", "-H", "Content-Type: application/pkcs10", *options]
        sent = subprocess.run(
            [*words, "--data-binary", f"@{body}", "-w", "\n%{http_code}", f"{self.url}/.well-known/est/{path}"],
            cwd=self.openssl.room,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        said, _, status = sent.stdout.rpartition("\n")
        return int(status), said


@pytest.fixture
def served(homes: Homes, openssl: Tool, tmp_path: Path) -> Iterator[Served]:
    """A server whose issuing CA is of P-384, with an issuer that works, behind the documentation's front."""
    if shutil.which("curl") is None:
        apt_install("curl", Path("/usr/bin/curl"))
    home, port = homes.new(), free_port()
    _issue_by_p384(home)
    url = f"sqlite:///{tmp_path}/keymailbox.sqlite"
    store = Store(url)
    store.migrate()
    store.close()
    openssl.run(*FRONT, "-addext", f"subjectAltName=IP:{LOOPBACK}", "-keyout", "front.key", "-out", "front.pem")
    openssl.put("keymailbox.pem", openssl.get("front.pem") + openssl.get("front.key"))
    options = {"public_url": f"https://{LOOPBACK}:{port}", "client_cert_from": LOOPBACK, "log_level": "error"}
    with Site(home, url, **options) as site:
        authorities = [site.deps.chain.root, *site.deps.chain.all]
        pem = [library.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in authorities]
        openssl.put("ca.pem", b"".join(pem))
        done = threading.Event()

        def issue() -> None:
            while not done.wait(0.05):
                site.work()

        issuer = threading.Thread(target=issue)
        issuer.start()
        try:
            with front(tmp_path, port, site.port):
                yield Served(site, openssl, f"https://{LOOPBACK}:{port}")
        finally:
            done.set()
            issuer.join()


def _issue_by_p384(home: Path) -> None:
    settings = load_settings(home=home)
    keys = bootstrap.issuing_keys(settings)
    _, request = request_issuing(home, keys, SignatureAlgorithm.ECDSA_P384)
    root = open_root(home / ROOT_FOLDER, settings.passphrase_bytes)
    install(home, keys, root.sign_issuing(request, now()), now())


def test_what_the_documentation_types_works(served: Served) -> None:
    """From an invitation to an identity that renews, and to an access key that /v1 answers, without a tool of ours."""
    assert len(BLOCKS) == 4
    told = served.invitation()
    shown = served.typed(BLOCKS[0])
    root = library.load_der_x509_certificate(served.site.deps.chain.root)
    assert root.fingerprint(hashes.SHA256()).hex(":").upper() in shown
    served.typed(BLOCKS[1], **told)
    identity = served.certificate("identity.pem")
    assert (identity.address, identity.kind) == (ADDRESS, CertificateKind.IDENTITY)
    served.typed(BLOCKS[2])
    renewed = served.certificate("renewed.pem")
    assert (renewed.spki, renewed.kind) == (identity.spki, CertificateKind.IDENTITY)
    assert renewed.serial != identity.serial
    served.typed(BLOCKS[3])
    access = served.certificate("access.pem")
    assert (access.address, access.kind) == (ADDRESS, CertificateKind.ACCESS)
    key = load_pem_private_key(served.openssl.get("access.key"), None)
    assert isinstance(key, Ed25519PrivateKey)
    target, key_id = f"{served.url}/v1/mailboxes/{ADDRESS}", httpsig.key_id(key.public_key().public_bytes_raw())
    signed = httpsig.sign_request(
        "GET", target, {}, b"", key_id=key_id, sign=key.sign, created=now(), nonce=secrets.token_hex(16)
    )
    trusted = ssl.create_default_context(cafile=served.openssl.room / "front.pem")
    assert httpx2.get(target, headers=signed, verify=trusted, trust_env=False).status_code == 200


@pytest.mark.parametrize("algorithm", ["ML-DSA-65", "ED25519"])
def test_openssl_enrols_other_identities(served: Served, algorithm: str) -> None:
    """The same commands with a key of another kind: the request says which."""
    served.typed(BLOCKS[0])
    served.typed(BLOCKS[1].replace("EC -pkeyopt group:P-256", algorithm), **served.invitation())
    found = served.certificate("identity.pem")
    assert x509.identity_public_key(found.spki).algorithm.title.lower() == algorithm.lower()


def test_nobody_gets_in_by_the_front(served: Served) -> None:
    """A forged header, somebody else's certificate, one of another CA, none: refused, and the reason is told."""
    served.typed(
        BLOCKS[1].replace("openssl verify -x509_strict -CAfile ca.pem identity.pem", ""), **served.invitation()
    )
    der = served.certificate("identity.pem").der
    served.typed("base64 identity.csr > again.csr")
    shown = f"Client-Cert: :{base64.b64encode(der).decode()}:"
    for path in ("simplereenroll", "simpleenroll"):
        assert served.post(path, "again.csr", "-H", shown)[0] == 401
    served.openssl.run(*FRONT, "-keyout", "own.key", "-out", "own.pem")
    status, said = served.post("simplereenroll", "again.csr", "--cert", "own.pem", "--key", "own.key")
    assert (status, "not good" in said) == (401, True)
    other = BLOCKS[1].replace("eu-west", "other").replace("identity", "other")
    served.typed(other, **served.invitation())
    status, said = served.post("simplereenroll", "again.csr", "--cert", "other.pem", "--key", "other.key")
    assert (status, "another address" in said) == (400, True)
    with pytest.raises(RefusedError):
        served.typed(BLOCKS[1].replace("identity", "guess"), REFERENCE="00" * 8, SECRET="guess")
    status, _ = served.post("simplereenroll", "again.csr", "--cert", "identity.pem", "--key", "identity.key")
    assert status == 200
