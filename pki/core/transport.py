"""Key transport: RSA-OAEP (RFC 3560, RFC 8017 §7.1) with SHA-256, and with SHA-1 for hardware that has nothing else."""

from __future__ import annotations

from enum import Enum
from math import gcd, isqrt, prod
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1 as library
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids
from pki.core.errors import AlgorithmError, ProfileError, UnwrapError, demand
from pki.core.profile import Profile

MADE_BITS = 3072
MIN_BITS = {Profile.STRICT: 3072, Profile.READ: 2048}
MAX_BITS = 8192
_SMALL_PRIMES = prod(one for one in range(2, 752) if all(one % least for least in range(2, isqrt(one) + 1)))


class RsaAlgorithm(Enum):
    """OAEP with the hash of label and mask alike; the label is empty."""

    OAEP_SHA256 = ("RSA-OAEP-SHA256", hashes.SHA256)
    OAEP_SHA1 = ("RSA-OAEP-SHA1", hashes.SHA1)

    def __init__(self, title: str, digest: type[hashes.HashAlgorithm]) -> None:
        self.title = title
        self.digest = digest

    @property
    def oid(self) -> Oid:
        """The OID of the key (RFC 8017 §A.1)."""
        return oids.RSA_ENCRYPTION

    @property
    def classical(self) -> bool:
        """Whether a quantum computer opens it: yes."""
        return True

    @property
    def identifier(self) -> asn1.AlgorithmIdentifier:
        """The recipient's AlgorithmIdentifier: RSAES-OAEP-params without what is the default (RFC 8017 §A.2.1)."""
        return asn1.AlgorithmIdentifier(algorithm=oids.RSAES_OAEP, parameters=asn1.tlv(_PARAMETERS[self][0]))


@library.sequence
class OaepParameters:
    """RSAES-OAEP-params, RFC 8017 §A.2.1; absent means SHA-1, MGF1 with SHA-1, and an empty label."""

    digest: Annotated[asn1.AlgorithmIdentifier | None, library.Explicit(0)]
    mask: Annotated[asn1.AlgorithmIdentifier | None, library.Explicit(1)]
    label: Annotated[asn1.AlgorithmIdentifier | None, library.Explicit(2)]


def _oaep(parameters: asn1.Null | None) -> bytes:
    digest = asn1.AlgorithmIdentifier(algorithm=oids.SHA256, parameters=parameters)
    mask = asn1.AlgorithmIdentifier(algorithm=oids.MGF1, parameters=asn1.tlv(asn1.encode(digest)))
    return asn1.encode(OaepParameters(digest=digest, mask=mask, label=None))


# Each has few encodings, so they are compared and not decoded; RFC 4055 §2.1 writes NULL and reads both.
_PARAMETERS: dict[RsaAlgorithm, tuple[bytes, ...]] = {
    RsaAlgorithm.OAEP_SHA256: (_oaep(asn1.Null()), _oaep(None)),
    RsaAlgorithm.OAEP_SHA1: (asn1.encode(OaepParameters(digest=None, mask=None, label=None)),),
}


_HINT = "with openssl cms -encrypt: -keyopt rsa_padding_mode:oaep -keyopt rsa_oaep_md:sha256"


def algorithm(identifier: asn1.AlgorithmIdentifier, *, rule: str = "ENV-014") -> RsaAlgorithm:
    """Return the algorithm of a recipient's AlgorithmIdentifier, or raise AlgorithmError."""
    if identifier.algorithm != oids.RSAES_OAEP:
        # As a recipient's algorithm the key's own identifier means the old padding (RFC 3370 §4.2.1).
        old = identifier.algorithm == oids.RSA_ENCRYPTION
        what = "PKCS #1 v1.5" if old else oids.name(identifier.algorithm)
        raise AlgorithmError("The RSA padding is not OAEP", on=what, hint=_HINT, rule=rule)
    parameters = identifier.parameters
    der = asn1.encode(parameters) if isinstance(parameters, asn1.TLV) else b""
    for member, encodings in _PARAMETERS.items():
        if der in encodings:
            return member
    raise AlgorithmError(
        "RSA-OAEP is with SHA-256 for all, or SHA-1 for all, and no label", hint=_HINT, rule=rule, at=der or None
    )


def generate() -> bytes:
    """Return a new private key of 3072 bits in PKCS #8 (RFC 5208)."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=MADE_BITS)
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_from_private(private: bytes) -> bytes:
    """Return the public key of a private key: an RSAPublicKey in DER (RFC 8017 §A.1.1)."""
    return _load(private).public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)


def check_public(public: bytes, *, profile: Profile = Profile.STRICT) -> None:
    """Raise ProfileError unless the key is in DER, of 3072 (to read: 2048) to 8192 bits, with a usual exponent."""
    load_public(public, profile)


def load_public(public: bytes, profile: Profile = Profile.STRICT, *, largest: int = MAX_BITS) -> rsa.RSAPublicKey:
    """Return the key, for those who encrypt to it or verify under it; raises as `check_public` does."""
    # The size first: what has megabytes is not turned into a number.
    demand(len(public) <= MAX_BITS // 8 + 64, "CRT-009", "The RSA key is too large", public)
    try:
        key = serialization.load_der_public_key(_spki(public))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, rsa.RSAPublicKey):
        raise ProfileError("The RSA key cannot be read", rule="CRT-009")
    smallest = MIN_BITS[profile]
    demand(smallest <= key.key_size <= largest, "CRT-009", f"An RSA key has {smallest} to {largest} bits")
    exponent, modulus = key.public_numbers().e, key.public_numbers().n
    demand(key.key_size % 8 == 0, "CRT-009", "The size of the RSA key is no multiple of 8 bits")
    # SP 800-89 §5.3.3: what has a small factor is no modulus, and an even one trips up those who wrap for it.
    demand(gcd(modulus, _SMALL_PRIMES) == 1, "CRT-009", "The modulus of the RSA key has a small factor")
    least = 65537 if profile is Profile.STRICT else 3
    demand(least <= exponent < 1 << 32 and exponent % 2 == 1, "CRT-009", "The exponent of the RSA key is unusual")
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    demand(encoded == public, "CRT-009", "The RSA key is not in DER")
    return key


def encrypt(alg: RsaAlgorithm, public: bytes, content_key: bytes) -> bytes:
    """Return the content key encrypted for a public key; its size is that of the modulus."""
    return load_public(public).encrypt(content_key, _padding(alg))


def recover(alg: RsaAlgorithm, private: bytes, sent: bytes) -> bytes:
    """Return the content key; whatever is wrong with ``sent`` is one UnwrapError (RFC 8017 §7.1.2, Manger)."""
    key = _load(private)
    try:
        return key.decrypt(sent, _padding(alg))
    except ValueError:
        raise UnwrapError from None


def _padding(alg: RsaAlgorithm) -> padding.OAEP:
    return padding.OAEP(mgf=padding.MGF1(alg.digest()), algorithm=alg.digest(), label=None)


def _load(private: bytes) -> rsa.RSAPrivateKey:
    try:
        # The primes were checked when the key was made or read (`pki.core.keys.load_private`): that takes 100 ms.
        key = serialization.load_der_private_key(private, None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ProfileError("The private RSA key cannot be read")
    return key


def _spki(public: bytes) -> bytes:
    return asn1.encode(
        asn1.SubjectPublicKeyInfo(
            algorithm=asn1.AlgorithmIdentifier(algorithm=oids.RSA_ENCRYPTION, parameters=asn1.Null()),
            subject_public_key=asn1.BitString(public, 0),
        )
    )
