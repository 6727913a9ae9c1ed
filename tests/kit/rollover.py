"""A roll-over of a server's issuing CA, with the root that `init` left in the home."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from pki.core import issuers, x509
from pki.core.authorities import authority_key
from pki.core.signatures import SignatureAlgorithm
from pki.server import bootstrap
from pki.server.adapters.signers import home as ca
from pki.server.adapters.signers.root import Root, open_root
from pki.server.facts import CaChain
from pki.server.settings import Settings
from tests.kit.authority import new_signing_key


def root_of(settings: Settings) -> Root:
    """Open the root beside a server's CA."""
    return open_root(settings.home / ca.ROOT_FOLDER, settings.passphrase_bytes)


def pem(*certificates: bytes) -> bytes:
    """Return certificates as a ceremony writes them."""
    return b"".join(load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in certificates)


def certify(
    settings: Settings,
    root: Root,
    algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
    *,
    at: datetime | None = None,
) -> bytes:
    """Make the server's next issuing key, and have it certified; return what the ceremony writes."""
    _, request = ca.request_issuing(settings.home, bootstrap.issuing_keys(settings), algorithm)
    return pem(root.sign_issuing(request, at or datetime.now(UTC)), root.certificate_der)


def roll_over(
    settings: Settings, algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65, *, at: datetime | None = None
) -> CaChain:
    """Give the server its next issuing CA."""
    content = certify(settings, root_of(settings), algorithm, at=at)
    return ca.install(settings.home, bootstrap.issuing_keys(settings), content, at or datetime.now(UTC))


def issuer_of(chain: CaChain, certificate_der: bytes) -> str:
    """Return ``current`` or ``former``: under which a certificate was issued."""
    aki = x509.parse_certificate(certificate_der).aki
    return "current" if authority_key(chain.issuing).ski == aki else "former"


def another_issuing_ca(name: str = "keymailbox issuing 0badc0de") -> bytes:
    """Return an issuing CA under a root of somebody else."""
    moment = datetime.now(UTC)
    root, issuing = new_signing_key(), new_signing_key()
    tbs = issuers.root_tbs("keymailbox root 0badc0de", root.public, serial=1, now=moment)
    root_der = x509.assemble(tbs, root.sign(tbs))
    request = issuers.parse_request(issuers.compose_request(name, issuing.public, issuing.sign)).verify()
    tbs = issuers.issuing_tbs(request, root_der=root_der, serial=2, now=moment)
    return x509.assemble(tbs, root.sign(tbs))


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
