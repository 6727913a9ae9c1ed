"""Encryption keys of every kind: encapsulation, agreement, transport; how they are written and what opens with them."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1 as library
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import agreement, asn1, kem, oids, transport
from pki.core.agreement import EcAlgorithm as EcAlgorithm
from pki.core.errors import AlgorithmError, KeymailboxError, MalformedError, ProfileError
from pki.core.kem import KemAlgorithm as KemAlgorithm
from pki.core.profile import Profile
from pki.core.transport import RsaAlgorithm as RsaAlgorithm

KeyAlgorithm: TypeAlias = KemAlgorithm | EcAlgorithm | RsaAlgorithm
"""What an encryption key is for. Each has ``oid``, ``title`` and ``classical``."""
ALGORITHMS: dict[str, KeyAlgorithm] = {
    "composite": KemAlgorithm.COMPOSITE,
    "ml-kem-768": KemAlgorithm.ML_KEM_768,
    "ml-kem-1024": KemAlgorithm.ML_KEM_1024,
    "p-256": EcAlgorithm.P_256,
    "p-384": EcAlgorithm.P_384,
    "rsa-3072": RsaAlgorithm.OAEP_SHA256,
    "rsa-oaep-sha1": RsaAlgorithm.OAEP_SHA1,
}
"""What keys are made of, by the names on command lines."""
_MAX_PRIVATE = 16 * 1024


def generate(alg: KeyAlgorithm) -> bytes:
    """Return a new private key: a seed (composite: and the X25519 key), a scalar, or RSA's PKCS #8."""
    if isinstance(alg, KemAlgorithm):
        return kem.generate(alg)
    return agreement.generate(alg) if isinstance(alg, EcAlgorithm) else transport.generate()


def public_from_private(alg: KeyAlgorithm, private: bytes) -> bytes:
    """Return the public key: a KEM's raw key, an uncompressed point, or an RSAPublicKey in DER."""
    if isinstance(alg, KemAlgorithm):
        return kem.public_from_private(alg, private)
    if isinstance(alg, EcAlgorithm):
        return agreement.public_from_private(alg, private)
    return transport.public_from_private(private)


def recover(alg: KeyAlgorithm, private: bytes, sent: bytes) -> bytes:
    """Return what ``sent`` carries for a private key, or raise UnwrapError.

    KEM: the shared secret in a ciphertext (32 bytes). EC: the ECDH secret with an ephemeral point (32 or 48 bytes).
    RSA: the content key itself.
    """
    if isinstance(alg, KemAlgorithm):
        return kem.decapsulate(alg, private, sent)
    if isinstance(alg, EcAlgorithm):
        return agreement.recover(alg, private, sent)
    return transport.recover(alg, private, sent)


def spki(alg: KeyAlgorithm, public: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo in DER (RFC 9935 §3, RFC 5480 §2.1.1, RFC 8017 §A.1)."""
    identifier = asn1.AlgorithmIdentifier(algorithm=alg.oid, parameters=None)
    if isinstance(alg, EcAlgorithm):
        curve = asn1.tlv(asn1.encode(alg.curve))
        identifier = asn1.AlgorithmIdentifier(algorithm=oids.EC_PUBLIC_KEY, parameters=curve)
    elif isinstance(alg, RsaAlgorithm):
        identifier = asn1.AlgorithmIdentifier(algorithm=oids.RSA_ENCRYPTION, parameters=asn1.Null())
    bits = asn1.BitString(public, 0)
    return asn1.encode(asn1.SubjectPublicKeyInfo(algorithm=identifier, subject_public_key=bits))


@lru_cache(maxsize=512)
def parse_spki(der: bytes, *, profile: Profile = Profile.STRICT) -> tuple[KeyAlgorithm, bytes]:
    """Return algorithm and public key of a SubjectPublicKeyInfo, checked (rule CRT-009).

    An RSA key does not say its hash: it comes back as for SHA-256, and a certificate's capabilities may say otherwise.
    Good ones are remembered: a KEM key is checked by an encapsulation, and is looked at several times on its way.
    """
    info = asn1.decode(asn1.SubjectPublicKeyInfo, der, what="The public key")
    oid, parameters = info.algorithm.algorithm, info.algorithm.parameters
    if oid not in (oids.EC_PUBLIC_KEY, oids.RSA_ENCRYPTION):
        return kem.parse_spki(der, profile=profile)
    public = info.subject_public_key.as_bytes()
    if info.subject_public_key.padding_bits():
        raise ProfileError("The public key's bits are not whole bytes", rule="CRT-009")
    if oid == oids.RSA_ENCRYPTION:
        if not isinstance(parameters, asn1.Null):
            raise ProfileError("The parameters of an RSA key are not NULL", rule="CRT-009")
        transport.check_public(public, profile=profile)
        return RsaAlgorithm.OAEP_SHA256, public
    if not isinstance(parameters, asn1.TLV):
        raise ProfileError("The elliptic curve key does not name its curve", rule="CRT-009")
    alg = agreement.of_curve(asn1.decode(Oid, asn1.encode(parameters), what="The named curve"))
    agreement.check_public(alg, public)
    return alg, public


def load_private(der: bytes) -> tuple[KeyAlgorithm, bytes]:
    """Return algorithm and private key of a PKCS #8 in DER (RFC 5958), as `recover` takes it.

    ML-KEM: the seed, also out of the form that holds both; the expanded form alone is refused, except for ML-KEM-512,
    where it is what is needed. Composite: 96 bytes. Keys may be as small as `Profile.READ` allows. No error tells any
    of the key.
    """
    if len(der) > _MAX_PRIVATE:
        raise ProfileError("A private key has at most 16 KiB", on=f"{len(der)} bytes")
    try:
        info = asn1.decode(PrivateKeyInfo, der, what="The private key")
        oid = info.algorithm.algorithm
        if oid in (oids.EC_PUBLIC_KEY, oids.RSA_ENCRYPTION):
            return _classical(der)
        alg = kem.algorithm(oid, rule="", profile=Profile.READ)
        private = info.private_key if alg is KemAlgorithm.COMPOSITE else _ml_kem(alg, info.private_key)
        kem.public_from_private(alg, private)
    except KeymailboxError as error:
        error.part = None
        raise
    return alg, private


@library.sequence
class PrivateKeyInfo:
    """OneAsymmetricKey, RFC 5958 §2."""

    version: int
    algorithm: asn1.AlgorithmIdentifier
    private_key: bytes
    attributes: Annotated[asn1.SetOf[asn1.TLV] | None, library.Implicit(0)]
    public_key: Annotated[asn1.BitString | None, library.Implicit(1)]


@library.sequence
class SeedAndExpanded:
    """The ``both`` form of an ML-KEM private key, RFC 9935 §6."""

    seed: bytes
    expanded: bytes


_SEED = 64


def _ml_kem(alg: KemAlgorithm, choice: bytes) -> bytes:
    seed = expanded = None
    if choice[:1] == b"\x80":
        # The tag alone differs from an OCTET STRING's (X.690 §8.14).
        seed = asn1.decode(bytes, b"\x04" + choice[1:], what="The private key")
    elif choice[:1] == b"\x04":
        expanded = asn1.decode(bytes, choice, what="The private key")
    else:
        both = asn1.decode(SeedAndExpanded, choice, what="The private key")
        seed, expanded = both.seed, both.expanded
    if alg is KemAlgorithm.ML_KEM_512:
        if expanded is None:
            raise ProfileError(
                "A private key of ML-KEM-512 is needed in its expanded form, not as a seed alone",
                hint="openssl pkey -provparam ml-kem.output_formats=priv-only",
            )
        return expanded
    if seed is None:
        raise ProfileError(
            f"A private key of {alg.title} is needed as a seed, not in its expanded form alone",
            hint="openssl pkey -provparam ml-kem.output_formats=seed-only",
        )
    if expanded is not None and len(seed) == _SEED:
        # d makes the public key, z ends the expanded one: a key whose halves disagree is two keys (RFC 9935 §8).
        public = kem.public_from_private(alg, seed)
        start = len(expanded) - 64 - len(public)
        if expanded[start:-64] != public or expanded[-32:] != seed[32:]:
            raise ProfileError("The seed and the expanded form of the private key disagree")
    return seed


def _classical(der: bytes) -> tuple[KeyAlgorithm, bytes]:
    try:
        key = serialization.load_der_private_key(der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise MalformedError("The private key cannot be read") from None
    if isinstance(key, rsa.RSAPrivateKey):
        private = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        transport.check_public(transport.public_from_private(private), profile=Profile.READ)
        return RsaAlgorithm.OAEP_SHA256, private
    if isinstance(key, ec.EllipticCurvePrivateKey):
        for alg in EcAlgorithm:
            if key.curve.name == _CURVE_NAMES[alg]:
                return alg, key.private_numbers().private_value.to_bytes(alg.size, "big")
    name = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else ""
    raise AlgorithmError("The private key is of no algorithm that is used here", on=name)


_CURVE_NAMES = {EcAlgorithm.P_256: "secp256r1", EcAlgorithm.P_384: "secp384r1"}
