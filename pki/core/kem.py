"""Key encapsulation: the composite of ML-KEM-768 and X25519 (default), ML-KEM-768, -1024, and -512 to read."""

from __future__ import annotations

import hashlib
import secrets
from enum import Enum

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
    MLKEM1024PrivateKey,
    MLKEM1024PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509 import ObjectIdentifier as Oid
from pqcrypto.kem import ml_kem_512

from pki.core import asn1, oids
from pki.core.errors import AlgorithmError, ProfileError, UnwrapError
from pki.core.profile import Profile

_SEED = 64  # an ML-KEM private key is its seed d ‖ z (FIPS 203 §7.1, RFC 9935 §6)
_X25519 = 32
_RHO = 32
_Q = 3329
_LABEL = bytes.fromhex("5c2e2f2f5e5c")  # draft-ietf-lamps-pq-composite-kem, domain separator of this pair


class KemAlgorithm(Enum):
    """What a deposit may be wrapped to; sizes in bytes.

    ML-KEM-512 is for opening what others made, and its private key is the expanded one (FIPS 203 §6.1): the library
    that has it does not expand seeds.
    """

    COMPOSITE = (oids.ML_KEM_768_X25519, 1216, 1120, 96)
    ML_KEM_768 = (oids.ML_KEM_768, 1184, 1088, 64)
    ML_KEM_1024 = (oids.ML_KEM_1024, 1568, 1568, 64)
    ML_KEM_512 = (oids.ML_KEM_512, 800, 768, 1632)

    def __init__(self, oid: Oid, public_size: int, ciphertext_size: int, private_size: int) -> None:
        self.oid = oid
        self.public_size = public_size
        self.ciphertext_size = ciphertext_size
        self.private_size = private_size

    @property
    def title(self) -> str:
        """The name that people read."""
        return oids.name(self.oid)

    @property
    def classical(self) -> bool:
        """Whether a quantum computer opens it: no."""
        return False


MADE = (KemAlgorithm.COMPOSITE, KemAlgorithm.ML_KEM_768, KemAlgorithm.ML_KEM_1024)
"""What keys are made of, and wrapped for."""


class Hkdf(Enum):
    """The key derivation behind a KEM (RFC 8619); the hash is that of HMAC."""

    SHA256 = (oids.HKDF_SHA256, hashes.SHA256)
    SHA384 = (oids.HKDF_SHA384, hashes.SHA384)
    SHA512 = (oids.HKDF_SHA512, hashes.SHA512)

    def __init__(self, oid: Oid, digest: type[hashes.HashAlgorithm]) -> None:
        self.oid = oid
        self.digest = digest

    @property
    def title(self) -> str:
        """The name that people read."""
        return oids.name(self.oid)

    @property
    def label(self) -> str:
        """The name on command lines, such as ``hkdf-sha512``."""
        return self.title.lower()

    def derive(self, shared: bytes, *, wrap: asn1.AlgorithmIdentifier, size: int, ukm: bytes | None) -> bytes:
        """Return the key of ``size`` bytes that encrypts the content key.

        The info is the DER of CMSORIforKEMOtherInfo (RFC 9629 §5); there is no salt (RFC 9936 §2.2.1).
        """
        info = asn1.encode(asn1.KemOtherInfo(wrap=wrap, kek_length=size, ukm=ukm))
        return HKDF(algorithm=self.digest(), length=size, salt=None, info=info).derive(shared)


def algorithm(oid: Oid, *, rule: str = "ENV-004", profile: Profile = Profile.STRICT) -> KemAlgorithm:
    """Return the algorithm with this OID, or raise AlgorithmError."""
    for member in MADE if profile is Profile.STRICT else KemAlgorithm:
        if member.oid == oid:
            return member
    raise AlgorithmError("This is no key encapsulation that is allowed", on=oids.name(oid), rule=rule)


def generate(alg: KemAlgorithm = KemAlgorithm.COMPOSITE) -> bytes:
    """Return a new private key: the ML-KEM seed, for the composite followed by the X25519 key."""
    _refuse_512(alg)
    return secrets.token_bytes(alg.private_size)


def public_from_private(alg: KemAlgorithm, private: bytes) -> bytes:
    """Return the public key of a private key."""
    if alg is KemAlgorithm.ML_KEM_512:
        return _expanded_512(private)
    ml, x = _load(alg, private)
    public = ml.public_key().public_bytes_raw()
    return public if x is None else public + x.public_key().public_bytes_raw()


def encapsulate(alg: KemAlgorithm, public: bytes) -> tuple[bytes, bytes]:
    """Return ciphertext and shared secret (32 bytes) for a public key; a malformed key raises ProfileError."""
    _refuse_512(alg)
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
    if alg is KemAlgorithm.ML_KEM_512:
        _expanded_512(private)
        return bytes(ml_kem_512.decaps(private, ciphertext))
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
    """Raise ProfileError unless a key has the right size, is reduced (FIPS 203 §7.2), not zero and not of low order."""
    if alg is not KemAlgorithm.ML_KEM_512:
        encapsulate(alg, public)
        return
    if len(public) != alg.public_size:
        raise ProfileError("A public key of ML-KEM-512 has 800 bytes", on=f"{len(public)} bytes", rule="CRT-009")
    _demand_some(public)
    # Two coefficients of 12 bits in each three bytes, then the 32 bytes of rho.
    for a, b, c in zip(public[0:768:3], public[1:768:3], public[2:768:3], strict=True):
        if max(a | (b & 15) << 8, b >> 4 | c << 4) >= _Q:
            raise ProfileError("The ML-KEM public key is malformed", rule="CRT-009")


def spki(alg: KemAlgorithm, public: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo in DER; parameters are absent (RFC 9935 §3)."""
    info = asn1.SubjectPublicKeyInfo(
        algorithm=asn1.AlgorithmIdentifier(algorithm=alg.oid, parameters=None),
        subject_public_key=asn1.BitString(public, 0),
    )
    return asn1.encode(info)


def parse_spki(der: bytes, *, profile: Profile = Profile.STRICT) -> tuple[KemAlgorithm, bytes]:
    """Return algorithm and public key of a SubjectPublicKeyInfo, checked."""
    info = asn1.decode(asn1.SubjectPublicKeyInfo, der, what="The public key")
    alg = algorithm(info.algorithm.algorithm, rule="CRT-009", profile=profile)
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


def _refuse_512(alg: KemAlgorithm) -> None:
    if alg is KemAlgorithm.ML_KEM_512:
        raise AlgorithmError("ML-KEM-512 is opened, but never made or wrapped for", rule="ENV-004")


def _expanded_512(private: bytes) -> bytes:
    """Return the public key inside of an expanded private key: dk_PKE, ek, H(ek), z (FIPS 203 §6.1)."""
    if len(private) != KemAlgorithm.ML_KEM_512.private_size:
        raise ProfileError("An expanded private key of ML-KEM-512 has 1632 bytes", on=f"{len(private)} bytes")
    public, digest = private[768:1568], private[1568:1600]
    if hashlib.sha3_256(public).digest() != digest:
        raise ProfileError("The expanded private key of ML-KEM-512 is damaged")
    return public


def _load_public(alg: KemAlgorithm, public: bytes) -> tuple[_MlKemPublic, X25519PublicKey | None]:
    if len(public) != alg.public_size:
        raise ProfileError(
            f"A public key of {alg.title} has {alg.public_size} bytes", on=f"{len(public)} bytes", rule="CRT-009"
        )
    _demand_some(public[:-_X25519] if alg is KemAlgorithm.COMPOSITE else public)
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


def _demand_some(public: bytes) -> None:
    # FIPS 203 does not ask for it: with t = 0 the ciphertext shows the message to everybody (K-PKE.Encrypt, line 21).
    if not any(public[:-_RHO]):
        raise ProfileError("The ML-KEM public key is zero: anybody could open what is wrapped for it", rule="CRT-009")


def _combine(shared_ml: bytes, shared_x: bytes, ciphertext_x: bytes, public_x: bytes) -> bytes:
    # draft-ietf-lamps-pq-composite-kem, KEM combiner; byte for byte X-Wing's
    return hashlib.sha3_256(shared_ml + shared_x + ciphertext_x + public_x + _LABEL).digest()
