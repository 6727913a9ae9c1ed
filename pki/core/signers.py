"""Private signing keys, for holders and the CA's signer: made and used; secrets are raw bytes that they seal."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA65PrivateKey, MLDSA87PrivateKey
from pqcrypto import sign as pqcrypto_sign

from pki.core.errors import AlgorithmError, ProfileError
from pki.core.signatures import IDENTITY, SLH_DSA, Sign, SignatureAlgorithm, VerifyingKey, from_raw

_S = SignatureAlgorithm
MADE: frozenset[SignatureAlgorithm] = IDENTITY | SLH_DSA
"""What can sign here; composites are verified only, and RSA is made in tokens."""


@dataclass(frozen=True)
class SigningKey:
    """A private key ready for use: ``sign`` makes signatures that ``public`` verifies."""

    public: VerifyingKey
    sign: Sign = field(repr=False)


def generate(algorithm: SignatureAlgorithm) -> bytes:
    """Return a new secret: the seed of ML-DSA (FIPS 204 §6.1) and Ed25519, the scalar of ECDSA, SK of SLH-DSA."""
    if algorithm not in MADE:
        raise AlgorithmError("Keys of this algorithm are not made here", on=algorithm.title)
    if algorithm in SLH_DSA:
        # The pair comes in either order of the library; the secret is the longer half (FIPS 205 §9.1).
        return bytes(max(_slh_dsa(algorithm).keygen(), key=len))
    if algorithm.curve:
        size = algorithm.key_size // 2
        return ec.generate_private_key(_curve(algorithm)).private_numbers().private_value.to_bytes(size, "big")
    return secrets.token_bytes(32)


def load(algorithm: SignatureAlgorithm, secret: bytes) -> SigningKey:
    """Return the key of a secret; raises ProfileError when it is none of ``algorithm``."""
    if algorithm not in MADE:
        raise AlgorithmError("Keys of this algorithm are not made here", on=algorithm.title)
    if len(secret) != secret_size(algorithm):
        raise ProfileError("The private key has a wrong size", on=algorithm.title)
    if algorithm in SLH_DSA:
        # SK = SK.seed ‖ SK.prf ‖ PK (FIPS 205 §9.1)
        public, library = secret[-algorithm.key_size :], _slh_dsa(algorithm)
        return SigningKey(from_raw(public, algorithm), lambda message: bytes(library.sign(secret, message)))
    if algorithm.curve:
        return _ecdsa(algorithm, secret)
    key = _SEEDED[algorithm](secret)
    return SigningKey(from_raw(key.public_key().public_bytes_raw(), algorithm), key.sign)


def secret_size(algorithm: SignatureAlgorithm) -> int:
    """Return the bytes of a secret."""
    if algorithm in SLH_DSA:
        return 2 * algorithm.key_size
    return algorithm.key_size // 2 if algorithm.curve else 32


_Seeded = MLDSA44PrivateKey | MLDSA65PrivateKey | MLDSA87PrivateKey | Ed25519PrivateKey
_SEEDED: dict[SignatureAlgorithm, Callable[[bytes], _Seeded]] = {
    _S.ML_DSA_44: MLDSA44PrivateKey.from_seed_bytes,
    _S.ML_DSA_65: MLDSA65PrivateKey.from_seed_bytes,
    _S.ML_DSA_87: MLDSA87PrivateKey.from_seed_bytes,
    _S.ED25519: Ed25519PrivateKey.from_private_bytes,
}


def _ecdsa(algorithm: SignatureAlgorithm, secret: bytes) -> SigningKey:
    try:
        key = ec.derive_private_key(int.from_bytes(secret, "big"), _curve(algorithm))
    except ValueError:
        raise ProfileError("The private key is out of range", on=algorithm.title) from None
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    hashed = ec.ECDSA(hashes.SHA256() if algorithm is _S.ECDSA_P256 else hashes.SHA384())
    return SigningKey(from_raw(point, algorithm), lambda message: key.sign(message, hashed))


def _curve(algorithm: SignatureAlgorithm) -> ec.EllipticCurve:
    return ec.SECP256R1() if algorithm is _S.ECDSA_P256 else ec.SECP384R1()


class _SlhDsa(Protocol):
    """A submodule of pqcrypto."""

    def keygen(self) -> tuple[bytes, bytes]: ...

    def sign(self, secret: bytes, message: bytes, /) -> bytes: ...


def _slh_dsa(algorithm: SignatureAlgorithm) -> _SlhDsa:
    library: _SlhDsa = getattr(pqcrypto_sign, algorithm.label.replace("-", "_"))
    return library
