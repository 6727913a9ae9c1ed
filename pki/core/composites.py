"""Composite ML-DSA signatures (draft-ietf-lamps-pq-composite-sigs, revision of April 2026): verified, never made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.x509 import ObjectIdentifier as Oid

_ARC = "1.3.6.1.5.5.7.6"
_PREFIX = b"CompositeAlgorithmSignatures2025"
_ML_DSA_65_KEY = 1952
_ML_DSA_65_SIGNATURE = 3309

NAMES: Mapping[Oid, str] = {
    Oid(f"{_ARC}.{number}"): f"id-{title}"
    for number, title in enumerate(
        (
            "MLDSA44-RSA2048-PSS-SHA256",
            "MLDSA44-RSA2048-PKCS15-SHA256",
            "MLDSA44-Ed25519-SHA512",
            "MLDSA44-ECDSA-P256-SHA256",
            "MLDSA65-RSA3072-PSS-SHA512",
            "MLDSA65-RSA3072-PKCS15-SHA512",
            "MLDSA65-RSA4096-PSS-SHA512",
            "MLDSA65-RSA4096-PKCS15-SHA512",
            "MLDSA65-ECDSA-P256-SHA512",
            "MLDSA65-ECDSA-P384-SHA512",
            "MLDSA65-ECDSA-brainpoolP256r1-SHA512",
            "MLDSA65-Ed25519-SHA512",
            "MLDSA87-ECDSA-P384-SHA512",
            "MLDSA87-ECDSA-brainpoolP384r1-SHA512",
            "MLDSA87-Ed448-SHAKE256",
            "MLDSA87-RSA3072-PSS-SHA512",
            "MLDSA87-RSA4096-PSS-SHA512",
            "MLDSA87-ECDSA-P521-SHA512",
        ),
        start=37,
    )
}
"""All composites of the draft, whether they can be verified here or not."""

ML_DSA_65_ECDSA_P256 = Oid(f"{_ARC}.45")
ML_DSA_65_ED25519 = Oid(f"{_ARC}.48")
SUPPORTED = frozenset({ML_DSA_65_ECDSA_P256, ML_DSA_65_ED25519})

Check = Callable[[bytes, bytes], None]
"""Takes signature and message; raises InvalidSignature or ValueError unless both halves are good."""


def represent(oid: Oid, message: bytes) -> tuple[bytes, bytes]:
    """Return label and message representative M' (draft §2.2), for SHA-512 and an empty application context."""
    label = f"COMPSIG-{NAMES[oid].removeprefix('id-')}".encode()
    return label, _PREFIX + label + b"\x00" + hashlib.sha512(message).digest()


def load(oid: Oid, raw: bytes) -> Check:
    """Return the check for a supported composite's public key: ML-DSA-65 ‖ traditional (draft §4.1).

    Raises ValueError when a half is malformed.
    """
    post_quantum = MLDSA65PublicKey.from_public_bytes(raw[:_ML_DSA_65_KEY])
    traditional = _traditional(oid, raw[_ML_DSA_65_KEY:])

    def check(signature: bytes, message: bytes) -> None:
        label, represented = represent(oid, message)
        # The label is also ML-DSA's context, so that neither half can be cut out and used alone (draft §3.3).
        post_quantum.verify(signature[:_ML_DSA_65_SIGNATURE], represented, label)
        traditional(signature[_ML_DSA_65_SIGNATURE:], represented)

    return check


def _traditional(oid: Oid, raw: bytes) -> Check:
    if oid == ML_DSA_65_ED25519:
        return Ed25519PublicKey.from_public_bytes(raw).verify
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw)
    return lambda signature, message: point.verify(signature, message, ec.ECDSA(hashes.SHA256()))
