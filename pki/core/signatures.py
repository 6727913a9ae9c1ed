"""Signature algorithms: which there are, their keys (RFC 3279, 5480, 8410, 9881, 9909), and a signature's check."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey, MLDSA65PublicKey, MLDSA87PublicKey
from cryptography.x509 import ObjectIdentifier as Oid
from pqcrypto import sign as pqcrypto_sign

from pki.core import asn1, composites, oids, transport
from pki.core.errors import AlgorithmError, KeymailboxError, ProfileError, SignatureError, UsageError


class SignatureAlgorithm(Enum):
    """A signature algorithm with its kind of key.

    ``oid`` stands in a signature's AlgorithmIdentifier, ``key_oid`` (for ECDSA with the named ``curve``) in the key's;
    parameters are NULL in both for RSA (RFC 3279 §2.3.1, RFC 4055 §5) and absent otherwise. ``digest`` makes the CMS
    message-digest. ``size`` is that of a signature, ``key_size`` that of the key's bits; for ECDSA and RSA, where they
    vary, the largest ones. Sizes in bytes.
    """

    ML_DSA_44 = ("ML-DSA-44", oids.ML_DSA_44, 1312, 2420, "sha512")
    ML_DSA_65 = ("ML-DSA-65", oids.ML_DSA_65, 1952, 3309, "sha512")
    ML_DSA_87 = ("ML-DSA-87", oids.ML_DSA_87, 2592, 4627, "sha512")
    ECDSA_P256 = ("ECDSA P-256", oids.ECDSA_SHA256, 65, 72, "sha256")
    ECDSA_P384 = ("ECDSA P-384", oids.ECDSA_SHA384, 97, 104, "sha384")
    RSA = ("RSA", oids.RSA_SHA384, 526, 512, "sha384")
    ED25519 = ("Ed25519", oids.ED25519, 32, 64, "sha512")
    SLH_DSA_SHA2_128S = ("SLH-DSA-SHA2-128s", oids.SLH_DSA[0], 32, 7856, "sha256")
    SLH_DSA_SHA2_128F = ("SLH-DSA-SHA2-128f", oids.SLH_DSA[1], 32, 17088, "sha256")
    SLH_DSA_SHA2_192S = ("SLH-DSA-SHA2-192s", oids.SLH_DSA[2], 48, 16224, "sha512")
    SLH_DSA_SHA2_192F = ("SLH-DSA-SHA2-192f", oids.SLH_DSA[3], 48, 35664, "sha512")
    SLH_DSA_SHA2_256S = ("SLH-DSA-SHA2-256s", oids.SLH_DSA[4], 64, 29792, "sha512")
    SLH_DSA_SHA2_256F = ("SLH-DSA-SHA2-256f", oids.SLH_DSA[5], 64, 49856, "sha512")
    SLH_DSA_SHAKE_128S = ("SLH-DSA-SHAKE-128s", oids.SLH_DSA[6], 32, 7856, "sha256")
    SLH_DSA_SHAKE_128F = ("SLH-DSA-SHAKE-128f", oids.SLH_DSA[7], 32, 17088, "sha256")
    SLH_DSA_SHAKE_192S = ("SLH-DSA-SHAKE-192s", oids.SLH_DSA[8], 48, 16224, "sha512")
    SLH_DSA_SHAKE_192F = ("SLH-DSA-SHAKE-192f", oids.SLH_DSA[9], 48, 35664, "sha512")
    SLH_DSA_SHAKE_256S = ("SLH-DSA-SHAKE-256s", oids.SLH_DSA[10], 64, 29792, "sha512")
    SLH_DSA_SHAKE_256F = ("SLH-DSA-SHAKE-256f", oids.SLH_DSA[11], 64, 49856, "sha512")
    ML_DSA_65_ECDSA_P256 = (
        "MLDSA65-ECDSA-P256-SHA512",
        composites.ML_DSA_65_ECDSA_P256,
        1952 + 65,
        3309 + 72,
        "sha512",
    )
    ML_DSA_65_ED25519 = ("MLDSA65-Ed25519-SHA512", composites.ML_DSA_65_ED25519, 1952 + 32, 3309 + 64, "sha512")

    def __init__(self, title: str, oid: Oid, key_size: int, size: int, digest: str) -> None:
        self.title = title
        self.oid = oid
        self.key_size = key_size
        self.size = size
        self.digest = digest

    @property
    def label(self) -> str:
        """The name on command lines and in files, such as ``ml-dsa-65`` or ``p-256``."""
        return self.title.lower().removeprefix("ecdsa ")

    @property
    def curve(self) -> Oid | None:
        """The named curve of an ECDSA key (RFC 5480 §2.1.1.1)."""
        return _CURVES.get(self.title)

    @property
    def key_oid(self) -> Oid:
        """The OID in the key's AlgorithmIdentifier."""
        if self is SignatureAlgorithm.RSA:
            return oids.RSA_ENCRYPTION
        return oids.EC_PUBLIC_KEY if self.curve else self.oid

    @property
    def identifier(self) -> asn1.AlgorithmIdentifier:
        """The signature's AlgorithmIdentifier."""
        return asn1.AlgorithmIdentifier(algorithm=self.oid, parameters=self._parameters)

    @property
    def _parameters(self) -> asn1.Null | None:
        return asn1.Null() if self is SignatureAlgorithm.RSA else None

    def fits(self, size: int) -> bool:
        """Say whether a signature may have ``size`` bytes."""
        if self.curve or self is SignatureAlgorithm.ML_DSA_65_ECDSA_P256:
            # The two INTEGERs lose their leading zeros.
            return self.size - 64 <= size <= self.size
        if self is SignatureAlgorithm.RSA:
            # As large as the modulus, which the key's check compares.
            return RSA_MIN_BITS // 8 <= size <= self.size
        return size == self.size


RSA_MIN_BITS, RSA_MAX_BITS = 3072, 4096
"""What an authority's RSA modulus may have (SP 800-57 part 1, table 2: 128 bits of security)."""

_S = SignatureAlgorithm
_CURVES = {"ECDSA P-256": oids.P_256, "ECDSA P-384": oids.P_384}

IDENTITY: frozenset[SignatureAlgorithm] = frozenset(
    {_S.ML_DSA_44, _S.ML_DSA_65, _S.ML_DSA_87, _S.ECDSA_P256, _S.ECDSA_P384, _S.ED25519}
)
"""What an instance's identity key may be: signs deposits, receipts, requests."""
SLH_DSA: frozenset[SignatureAlgorithm] = frozenset(one for one in _S if one.title.startswith("SLH-DSA"))
"""The twelve pure ones of RFC 9909."""
AUTHORITY: frozenset[SignatureAlgorithm] = frozenset(_S)
"""What may sign certificates that are verified here."""

Sign = Callable[[bytes], bytes]
"""Makes a signature over the bytes that it is given."""


@dataclass(frozen=True)
class VerifyingKey:
    """A public key that is well formed; only `load` and `from_raw` make one. Equal when the keys are."""

    algorithm: SignatureAlgorithm
    spki: bytes
    ski: bytes
    raw: bytes = field(repr=False, compare=False)
    """The key's bits without their SubjectPublicKeyInfo."""
    _check: Callable[[bytes, bytes, str], None] = field(repr=False, compare=False)

    def verify(self, signature: bytes, message: bytes, *, digest: str = "") -> None:
        """Raise SignatureError unless this key signed ``message``.

        ``digest`` is for foreign signatures of ECDSA and RSA under another hash than ours: sha256, sha384 or sha512.
        """
        if not self.algorithm.fits(len(signature)):
            raise SignatureError(on=f"{len(signature)} bytes are no signature of {self.algorithm.title}")
        try:
            self._check(signature, message, digest or self.algorithm.digest)
        except (InvalidSignature, ValueError):
            raise SignatureError from None


def load(
    spki_der: bytes, *, allowed: Collection[SignatureAlgorithm] = AUTHORITY, rule: str = "CRT-009"
) -> VerifyingKey:
    """Return the key of a SubjectPublicKeyInfo in DER.

    Raises MalformedError, AlgorithmError when the algorithm is not ``allowed``, ProfileError when the key is malformed,
    of a wrong size, or one under which anybody could sign; the last two with ``rule``.
    """
    try:
        key = _load(spki_der)
    except ValueError as wrong:
        raise _complaint(spki_der, str(wrong), rule) from None
    if key.algorithm not in allowed:
        raise AlgorithmError("A key of this algorithm may not sign here", on=key.algorithm.title, rule=rule)
    return key


def from_raw(raw: bytes, algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65) -> VerifyingKey:
    """Return the key with these bits; EC points are uncompressed, RSA is an RSAPublicKey. Raises ProfileError."""
    spki = _spki(algorithm, raw) if algorithm is _S.RSA else _prefix(algorithm) + raw
    return load(spki, allowed={algorithm})


def named(label: str, allowed: Collection[SignatureAlgorithm] = IDENTITY) -> SignatureAlgorithm:
    """Return the algorithm with this label, or raise UsageError that lists the allowed ones."""
    for one in SignatureAlgorithm:
        if one in allowed and one.label == label:
            return one
    known = ", ".join(one.label for one in SignatureAlgorithm if one in allowed)
    raise UsageError("There is no such signature algorithm here", on=label, hint=f"one of {known}")


def check_identity(algorithm: SignatureAlgorithm) -> None:
    """Raise AlgorithmError unless an instance's identity key may be of this algorithm."""
    if algorithm not in IDENTITY:
        raise AlgorithmError("An identity key cannot be of this algorithm", on=algorithm.title)


def algorithm_of(
    identifier: asn1.AlgorithmIdentifier, *, allowed: Collection[SignatureAlgorithm] = AUTHORITY, rule: str
) -> SignatureAlgorithm:
    """Return the algorithm of a signature; raises AlgorithmError with ``rule``, naming what it is."""
    found = _BY_OID.get(identifier.algorithm)
    if found is None:
        raise _unknown(identifier.algorithm, rule)
    if found not in allowed:
        raise AlgorithmError("This signature algorithm is not allowed here", on=found.title, rule=rule)
    if identifier.parameters != found.identifier.parameters:
        wrong = "The parameters are not NULL" if found is _S.RSA else "The signature algorithm has parameters"
        raise AlgorithmError(wrong, on=found.title, rule=rule)
    return found


_BY_OID = {one.oid: one for one in SignatureAlgorithm}


@lru_cache(maxsize=32)
def _prefix(algorithm: SignatureAlgorithm) -> bytes:
    # Keys have fixed sizes, RSA's aside, so what stands before the bits is always the same.
    return _spki(algorithm, bytes(algorithm.key_size))[: -algorithm.key_size]


def _spki(algorithm: SignatureAlgorithm, raw: bytes) -> bytes:
    curve = algorithm.curve
    parameters = asn1.tlv(asn1.encode(curve)) if curve else algorithm.identifier.parameters
    return asn1.encode(
        asn1.SubjectPublicKeyInfo(
            algorithm=asn1.AlgorithmIdentifier(algorithm=algorithm.key_oid, parameters=parameters),
            subject_public_key=asn1.BitString(raw, 0),
        )
    )


@lru_cache(maxsize=1024)
def _load(spki_der: bytes) -> VerifyingKey:
    if _RSA_PREFIX in spki_der[: len(_RSA_PREFIX) + 4]:
        return _load_rsa(spki_der)
    for algorithm in SignatureAlgorithm:
        prefix = _prefix(algorithm)
        if len(spki_der) == len(prefix) + algorithm.key_size and spki_der.startswith(prefix):
            raw = spki_der[len(prefix) :]
            try:
                check = _checker(algorithm, raw)
            except ValueError:
                raise ValueError(f"The key is not a good one of {algorithm.title}") from None
            return VerifyingKey(algorithm, spki_der, hashlib.sha256(raw).digest()[:20], raw, check)
    raise ValueError("The key has parameters, a curve, a form or a size that are not in the profile")


_RSA_PREFIX = asn1.encode(asn1.AlgorithmIdentifier(algorithm=oids.RSA_ENCRYPTION, parameters=asn1.Null()))


def _load_rsa(spki_der: bytes) -> VerifyingKey:
    bits = asn1.decode(asn1.SubjectPublicKeyInfo, spki_der, what="The public key").subject_public_key
    raw = bits.as_bytes()
    try:
        key = transport.load_public(raw, largest=RSA_MAX_BITS)
    except ProfileError as error:
        raise ValueError(error.message) from None
    if spki_der != _spki(_S.RSA, raw):
        raise ValueError("The RSA key's bits are not whole bytes")
    return VerifyingKey(_S.RSA, spki_der, hashlib.sha256(raw).digest()[:20], raw, _pkcs1(key))


def _pkcs1(key: rsa.RSAPublicKey) -> Callable[[bytes, bytes, str], None]:
    # RFC 8017 §8.2.2; the library encodes the digest itself and compares, so there is nothing to forge in its form.
    return lambda signature, message, digest: key.verify(signature, message, padding.PKCS1v15(), _HASHES[digest]())


def _complaint(spki_der: bytes, wrong: str, rule: str) -> KeymailboxError:
    oid = asn1.decode(asn1.SubjectPublicKeyInfo, spki_der, what="The public key").algorithm.algorithm
    if oid not in {one.key_oid for one in SignatureAlgorithm}:
        return _unknown(oid, rule)
    return ProfileError(wrong, on=oids.name(oid), rule=rule)


def _unknown(oid: Oid, rule: str) -> AlgorithmError:
    if oid in composites.NAMES:
        return AlgorithmError(f"{composites.NAMES[oid]} is a composite that is not supported", rule=rule)
    return AlgorithmError("This is no signature algorithm of the profile", on=oids.name(oid), rule=rule)


def _checker(algorithm: SignatureAlgorithm, raw: bytes) -> Callable[[bytes, bytes, str], None]:
    if algorithm.curve:
        return _ecdsa(ec.SECP256R1() if algorithm is _S.ECDSA_P256 else ec.SECP384R1(), raw)
    if algorithm in SLH_DSA:
        verify = getattr(pqcrypto_sign, algorithm.label.replace("-", "_")).verify
        return lambda signature, message, _: verify(raw, message, signature)
    if algorithm.oid in composites.SUPPORTED:
        if algorithm is _S.ML_DSA_65_ED25519:
            _demand_full_order(raw[-32:])
        both = composites.load(algorithm.oid, raw)
        return lambda signature, message, _: both(signature, message)
    if algorithm is _S.ED25519:
        _demand_full_order(raw)
        check = Ed25519PublicKey.from_public_bytes(raw).verify
        return lambda signature, message, _: check(signature, message)
    if not any(raw[_RHO:]):
        # With t1 = 0 any short vector is a signature (FIPS 204 algorithm 8): anybody could sign.
        raise ValueError(raw)
    lattice = _LATTICE[algorithm.title].from_public_bytes(raw)
    return lambda signature, message, _: lattice.verify(signature, message)


_RHO = 32
_LATTICE: dict[str, type[MLDSA44PublicKey] | type[MLDSA65PublicKey] | type[MLDSA87PublicKey]] = {
    "ML-DSA-44": MLDSA44PublicKey,
    "ML-DSA-65": MLDSA65PublicKey,
    "ML-DSA-87": MLDSA87PublicKey,
}
_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}


def _ecdsa(curve: ec.EllipticCurve, raw: bytes) -> Callable[[bytes, bytes, str], None]:
    point = ec.EllipticCurvePublicKey.from_encoded_point(curve, raw)
    return lambda signature, message, digest: point.verify(signature, message, ec.ECDSA(_HASHES[digest]()))


_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_SMALL = {
    0,
    1,
    _P - 1,
    int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
    int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
}
"""The y of Ed25519's eight points of small order."""


def _demand_full_order(raw: bytes) -> None:
    # OpenSSL takes any 32 bytes; under a point of small order, one signature is good for every eighth message.
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    square = (y * y - 1) * (_D * y * y + 1) % _P
    if y >= _P or y in _SMALL or pow(square, (_P - 1) // 2, _P) != 1:
        raise ValueError(raw)
