"""Key agreement: ephemeral-static ECDH on P-256 and P-384 with the X9.63 key derivation (RFC 5753, SEC 1 §3.6.1)."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from cryptography.hazmat import asn1 as library
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids
from pki.core.errors import AlgorithmError, ProfileError, UnwrapError

_CURVES: dict[Oid, ec.EllipticCurve] = {oids.P_256: ec.SECP256R1(), oids.P_384: ec.SECP384R1()}
SCHEMES: dict[Oid, type[hashes.HashAlgorithm]] = {
    oids.ECDH_SHA256: hashes.SHA256,
    oids.ECDH_SHA384: hashes.SHA384,
    oids.ECDH_SHA512: hashes.SHA512,
    oids.COFACTOR_ECDH_SHA256: hashes.SHA256,
    oids.COFACTOR_ECDH_SHA384: hashes.SHA384,
    oids.COFACTOR_ECDH_SHA512: hashes.SHA512,
}
"""The key agreement schemes that are read, with the hash of their key derivation (RFC 5753 §7.1.4).

The cofactor of both curves is 1, so with it the secret is the same.
"""


class EcAlgorithm(Enum):
    """A curve with the scheme that belongs to it; ``size`` of a coordinate and of the private key, in bytes."""

    P_256 = (oids.P_256, oids.ECDH_SHA256, 32)
    P_384 = (oids.P_384, oids.ECDH_SHA384, 48)

    def __init__(self, curve: Oid, scheme: Oid, size: int) -> None:
        self.curve = curve
        self.scheme = scheme
        self.size = size

    @property
    def oid(self) -> Oid:
        """The OID of the key's curve: that of the key says elliptic curve only."""
        return self.curve

    @property
    def title(self) -> str:
        """The name that people read."""
        return f"ECDH {self.name.replace('_', '-')}"

    @property
    def classical(self) -> bool:
        """Whether a quantum computer opens it: yes."""
        return True

    @property
    def public_size(self) -> int:
        """Bytes of an uncompressed point (SEC 1 §2.3.3)."""
        return 1 + 2 * self.size


@library.sequence
class SharedInfo:
    """ECC-CMS-SharedInfo, RFC 5753 §7.2: the length is that of the key in bits, in 4 bytes."""

    key_info: asn1.AlgorithmIdentifier
    ukm: Annotated[bytes | None, library.Explicit(0)]
    length: Annotated[bytes, library.Explicit(2)]


def generate(alg: EcAlgorithm) -> bytes:
    """Return a new private key: the scalar, big-endian."""
    return ec.generate_private_key(_CURVES[alg.curve]).private_numbers().private_value.to_bytes(alg.size, "big")


def public_from_private(alg: EcAlgorithm, private: bytes) -> bytes:
    """Return the public key of a private key, an uncompressed point."""
    return _point(_load(alg, private).public_key())


def check_public(alg: EcAlgorithm, public: bytes, *, rule: str = "CRT-009") -> None:
    """Raise ProfileError unless the key is an uncompressed point of the curve (SP 800-56A §5.6.2.3)."""
    _load_public(alg, public, rule)


def of_curve(oid: Oid) -> EcAlgorithm:
    """Return the algorithm of a named curve, or raise AlgorithmError."""
    for member in EcAlgorithm:
        if member.curve == oid:
            return member
    raise AlgorithmError("This curve is not allowed", on=oids.name(oid), rule="CRT-009")


def of_point(point: bytes, *, rule: str) -> EcAlgorithm:
    """Return the algorithm that a point is of, by its size, or raise AlgorithmError."""
    for member in EcAlgorithm:
        if len(point) == member.public_size:
            return member
    raise AlgorithmError("The ephemeral key is of no curve that is allowed", on=f"{len(point)} bytes", rule=rule)


def agree(alg: EcAlgorithm, public: bytes) -> tuple[bytes, bytes]:
    """Return an ephemeral point and the shared secret Z with ``public`` (SEC 1 §3.3.1)."""
    theirs = _load_public(alg, public, "CRT-009")
    ephemeral = ec.generate_private_key(_CURVES[alg.curve])
    return _point(ephemeral.public_key()), ephemeral.exchange(ec.ECDH(), theirs)


def recover(alg: EcAlgorithm, private: bytes, point: bytes) -> bytes:
    """Return the shared secret Z of a private key and an ephemeral point; what is no point raises UnwrapError."""
    key = _load(alg, private)
    try:
        return key.exchange(ec.ECDH(), _load_public(alg, point, ""))
    except (ProfileError, ValueError):
        raise UnwrapError from None


def derive(
    shared: bytes, digest: type[hashes.HashAlgorithm], *, wrap: asn1.AlgorithmIdentifier, size: int, ukm: bytes | None
) -> bytes:
    """Return the key of ``size`` bytes that encrypts the content key (RFC 5753 §7.2)."""
    info = asn1.encode(SharedInfo(key_info=wrap, ukm=ukm, length=(8 * size).to_bytes(4, "big")))
    return X963KDF(algorithm=digest(), length=size, sharedinfo=info).derive(shared)


def _load(alg: EcAlgorithm, private: bytes) -> ec.EllipticCurvePrivateKey:
    if len(private) != alg.size:
        raise ProfileError(f"A private key of {alg.title} has {alg.size} bytes", on=f"{len(private)} bytes")
    try:
        return ec.derive_private_key(int.from_bytes(private, "big"), _CURVES[alg.curve])
    except ValueError:
        raise ProfileError(f"The private key of {alg.title} is out of range") from None


def _load_public(alg: EcAlgorithm, public: bytes, rule: str) -> ec.EllipticCurvePublicKey:
    if len(public) != alg.public_size or public[:1] != b"\x04":
        raise ProfileError(
            f"A public key of {alg.title} is an uncompressed point of {alg.public_size} bytes",
            on=f"{len(public)} bytes",
            rule=rule,
        )
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[alg.curve], public)
    except ValueError:
        raise ProfileError(f"The public key is no point of {alg.title}", rule=rule) from None


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    numbers = key.public_numbers()
    size = (key.curve.key_size + 7) // 8
    return b"\x04" + numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")
