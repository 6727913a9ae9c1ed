"""A whole CA in one call, for tests and benchmarks: a root, and an issuing CA whose key is in a file or in a token."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from pathlib import Path

from pki.core.issuers import parse_request
from pki.core.signatures import SignatureAlgorithm
from pki.server import bootstrap
from pki.server.adapters.signers.home import install, issuing_algorithm, request_issuing
from pki.server.adapters.signers.root import create_root, open_root
from pki.server.facts import CaChain
from pki.server.hierarchy import encode_issuers
from pki.server.settings import Settings, load_settings
from tests.kit.tokens import KEY_LABEL, SoftToken


def settings_with(home: Path, token: SoftToken | None = None, **more: object) -> Settings:
    """Return settings for a home, and for a token, which this process's environment has to name (SOFTHSM2_CONF)."""
    named: dict[str, object] = {"home": home, "passphrase": "open sesame", **more}
    if token is not None:
        named |= {
            "pkcs11_module": token.module,
            "pkcs11_token": token.label,
            "pkcs11_key": KEY_LABEL,
            "token_pin": token.pin,
        }
    return load_settings(**named)


def hold_ceremony(settings: Settings, algorithm: str, now: datetime, *, in_token: bool = False) -> CaChain:
    """Make an issuing CA of this algorithm (``p-384``, ``rsa-3072``, …) under a new P-384 root, which is thrown away.

    The home may have no CA yet. Then ``bootstrap.init`` adds what a server needs besides, and makes no other CA.
    """
    passphrase, root = secrets.token_bytes(16), settings.home.parent / f"root-{secrets.token_hex(4)}"
    create_root(root, passphrase, now, SignatureAlgorithm.ECDSA_P384)
    chosen, bits = issuing_algorithm(algorithm)
    keys = bootstrap.issuing_keys(settings, in_token=in_token, rsa_bits=bits)
    request, _ = request_issuing(settings.home, keys, chosen)
    opened = open_root(root, passphrase)
    issued = opened.sign_issuing(parse_request(request).verify(), now)
    both = encode_issuers((issued, opened.certificate_der))
    return install(settings.home, keys, both, now, root_fingerprint=hashlib.sha256(opened.certificate_der).hexdigest())
