"""Key encapsulation: the composite of ML-KEM-768 and X25519 (default), ML-KEM-768 and ML-KEM-1024."""

from __future__ import annotations

import hashlib
import secrets
from enum import Enum

from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
    MLKEM1024PrivateKey,
    MLKEM1024PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids
from pki.core.errors import AlgorithmError, ProfileError, UnwrapError

_SEED = 64  # an ML-KEM private key is its seed d ‖ z (FIPS 203 §7.1, RFC 9935 §6)
_X25519 = 32
_LABEL = bytes.fromhex("5c2e2f2f5e5c")  # draft-ietf-lamps-pq-composite-kem, domain separator of this pair


class KemAlgorithm(Enum):
    """What a deposit may be wrapped to; sizes in bytes."""

    COMPOSITE = (oids.ML_KEM_768_X25519, 1216, 1120, 96)
    ML_KEM_768 = (oids.ML_KEM_768, 1184, 1088, 64)
    ML_KEM_1024 = (oids.ML_KEM_1024, 1568, 1568, 64)

    def __init__(self, oid: Oid, public_size: int, ciphertext_size: int, private_size: int) -> None:
        self.oid = oid
        self.public_size = public_size
        self.ciphertext_size = ciphertext_size
        self.private_size = private_size

    @property
    def title(self) -> str:
        """The name that people read."""
        return oids.name(self.oid)


def algorithm(oid: Oid, *, rule: str = "ENV-004") -> KemAlgorithm:
    """Return the algorithm with this OID, or raise AlgorithmError."""
    for member in KemAlgorithm:
        if member.oid == oid:
            return member
    raise AlgorithmError("This key encapsulation is not allowed", on=oids.name(oid), rule=rule)


def generate(alg: KemAlgorithm = KemAlgorithm.COMPOSITE) -> bytes:
    """Return a new private key: the ML-KEM seed, for the composite followed by the X25519 key."""
    return secrets.token_bytes(alg.private_size)


def public_from_private(alg: KemAlgorithm, private: bytes) -> bytes:
    """Return the public key of a private key."""
    ml, x = _load(alg, private)
    public = ml.public_key().public_bytes_raw()
    return public if x is None else public + x.public_key().public_bytes_raw()


def encapsulate(alg: KemAlgorithm, public: bytes) -> tuple[bytes, bytes]:
    """Return ciphertext and shared secret (32 bytes) for a public key; a malformed key raises ProfileError."""
    ml, x = _load_public(alg, public)
    shared_ml, ciphertext_ml = ml.encapsulate()
    if x is None:
        return ciphertext_ml, shared_ml
    ephemeral = X25519PrivateKey.generate()
    ciphertext_x = ephemeral.public_key().public_bytes_raw()
    try:
        shared_x = ephemeral.exchange(x)
    except ValueError:
        raise ProfileError("The X25519 part of the public key has low order", rule="CRT-009") from None
    return ciphertext_ml + ciphertext_x, _combine(shared_ml, shared_x, ciphertext_x, x.public_bytes_raw())


def decapsulate(alg: KemAlgorithm, private: bytes, ciphertext: bytes) -> bytes:
    """Return the shared secret (32 bytes); a ciphertext for another key yields another secret (FIPS 203 §6.3)."""
    if len(ciphertext) != alg.ciphertext_size:
        raise UnwrapError
    ml, x = _load(alg, private)
    if x is None:
        return ml.decapsulate(ciphertext)
    ciphertext_ml, ciphertext_x = ciphertext[:-_X25519], ciphertext[-_X25519:]
    shared_ml = ml.decapsulate(ciphertext_ml)
    try:
        shared_x = x.exchange(X25519PublicKey.from_public_bytes(ciphertext_x))
    except ValueError:
        raise UnwrapError from None
    return _combine(shared_ml, shared_x, ciphertext_x, x.public_key().public_bytes_raw())


def check_public(alg: KemAlgorithm, public: bytes) -> None:
    """Raise ProfileError unless the key has the right size, is reduced (FIPS 203 §7.2) and not of low order."""
    encapsulate(alg, public)


def spki(alg: KemAlgorithm, public: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo in DER; parameters are absent (RFC 9935 §3)."""
    info = asn1.SubjectPublicKeyInfo(
        algorithm=asn1.AlgorithmIdentifier(algorithm=alg.oid, parameters=None),
        subject_public_key=asn1.BitString(public, 0),
    )
    return asn1.encode(info)


def parse_spki(der: bytes) -> tuple[KemAlgorithm, bytes]:
    """Return algorithm and public key of a SubjectPublicKeyInfo, checked."""
    info = asn1.decode(asn1.SubjectPublicKeyInfo, der, what="The public key")
    alg = algorithm(info.algorithm.algorithm, rule="CRT-009")
    if info.algorithm.parameters is not None or info.subject_public_key.padding_bits():
        raise ProfileError("The public key's algorithm has parameters or its bits are not whole bytes", rule="CRT-009")
    public = info.subject_public_key.as_bytes()
    check_public(alg, public)
    return alg, public


def ski(spki_der: bytes) -> bytes:
    """Return the subject key identifier: the first 20 bytes of the SHA-256 of the key's bits (RFC 7093 §2)."""
    info = asn1.decode(asn1.SubjectPublicKeyInfo, spki_der, what="The public key")
    return hashlib.sha256(info.subject_public_key.as_bytes()).digest()[:20]


_MlKemPrivate = MLKEM768PrivateKey | MLKEM1024PrivateKey
_MlKemPublic = MLKEM768PublicKey | MLKEM1024PublicKey


def _load(alg: KemAlgorithm, private: bytes) -> tuple[_MlKemPrivate, X25519PrivateKey | None]:
    if len(private) != alg.private_size:
        raise ProfileError(f"A private key of {alg.title} has {alg.private_size} bytes", on=f"{len(private)} bytes")
    seed = private[:_SEED]
    if alg is KemAlgorithm.ML_KEM_1024:
        return MLKEM1024PrivateKey.from_seed_bytes(seed), None
    ml = MLKEM768PrivateKey.from_seed_bytes(seed)
    if alg is KemAlgorithm.ML_KEM_768:
        return ml, None
    return ml, X25519PrivateKey.from_private_bytes(private[_SEED:])


def _load_public(alg: KemAlgorithm, public: bytes) -> tuple[_MlKemPublic, X25519PublicKey | None]:
    if len(public) != alg.public_size:
        raise ProfileError(
            f"A public key of {alg.title} has {alg.public_size} bytes", on=f"{len(public)} bytes", rule="CRT-009"
        )
    try:
        if alg is KemAlgorithm.ML_KEM_1024:
            return MLKEM1024PublicKey.from_public_bytes(public), None
        if alg is KemAlgorithm.ML_KEM_768:
            return MLKEM768PublicKey.from_public_bytes(public), None
        return (
            MLKEM768PublicKey.from_public_bytes(public[:-_X25519]),
            X25519PublicKey.from_public_bytes(public[-_X25519:]),
        )
    except ValueError:
        raise ProfileError("The ML-KEM public key is malformed", rule="CRT-009") from None


def _combine(shared_ml: bytes, shared_x: bytes, ciphertext_x: bytes, public_x: bytes) -> bytes:
    # draft-ietf-lamps-pq-composite-kem, KEM combiner; byte for byte X-Wing's
    return hashlib.sha3_256(shared_ml + shared_x + ciphertext_x + public_x + _LABEL).digest()
