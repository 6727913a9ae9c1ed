"""Recipients of the classical kinds, put together by hand as in `tests.kit.forge`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from tests.kit import forge, tlv

EC_KEY = "1.2.840.10045.2.1"
P_256, P_384 = "1.2.840.10045.3.1.7", "1.3.132.0.34"
X963_SHA256, X963_SHA384 = "1.3.132.1.11.1", "1.3.132.1.11.2"
OAEP, MGF1 = "1.2.840.113549.1.1.7", "1.2.840.113549.1.1.8"
PKCS1 = tlv.algorithm("1.2.840.113549.1.1.1", tlv.NULL)


def pkcs8(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """Return a private key in PKCS #8."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return an uncompressed point."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


@dataclass(frozen=True)
class EcReader:
    """An ECDH key from a seed of one repeated byte."""

    seed: int
    curve: str = P_256

    @cached_property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The private key."""
        size, curve = (32, ec.SECP256R1()) if self.curve == P_256 else (48, ec.SECP384R1())
        return ec.derive_private_key(int.from_bytes(bytes([self.seed]) * size, "big"), curve)

    @property
    def ski(self) -> bytes:
        """The key's identifier."""
        return hashlib.sha256(point(self.key.public_key())).digest()[:20]


def agreement(
    reader: EcReader,
    cek: bytes = forge.CEK,
    *,
    version: int = 3,
    scheme: str = "",
    curve_named: bool = False,
    ephemeral: bytes | None = None,
    rids: int = 1,
    wrap: str = forge.AES_256_WRAP,
    ukm: bytes | None = None,
) -> bytes:
    """Return a KeyAgreeRecipientInfo."""
    secret = ec.generate_private_key(reader.key.curve)
    said = scheme or (X963_SHA256 if reader.curve == P_256 else X963_SHA384)
    digest: hashes.HashAlgorithm = hashes.SHA256() if said == X963_SHA256 else hashes.SHA384()
    size = 32 if wrap == forge.AES_256_WRAP else 16
    user = b"" if ukm is None else tlv.context(0, tlv.octets(ukm))
    info = tlv.seq(tlv.algorithm(wrap), user, tlv.context(2, tlv.octets((size * 8).to_bytes(4, "big"))))
    shared = secret.exchange(ec.ECDH(), reader.key.public_key())
    kek = X963KDF(algorithm=digest, length=size, sharedinfo=info).derive(shared)
    named = tlv.oid(reader.curve) if curve_named else b""
    public = point(secret.public_key()) if ephemeral is None else ephemeral
    originator = tlv.retag(0xA1, tlv.seq(tlv.algorithm(EC_KEY, named), tlv.bits(public)))
    rid = tlv.context(0, tlv.octets(reader.ski))
    entry = tlv.seq(rid, tlv.octets(aes_key_wrap(kek, cek)))
    return tlv.context(
        1,
        tlv.integer(version),
        tlv.context(0, originator),
        b"" if ukm is None else tlv.context(1, tlv.octets(ukm)),
        tlv.algorithm(said, tlv.algorithm(wrap)),
        tlv.seq(*[entry] * rids),
    )


@dataclass(frozen=True)
class RsaReader:
    """An RSA key of the CA's making: one for a whole run, or one that is given in PKCS #8."""

    given: bytes = b""

    @cached_property
    def key(self) -> rsa.RSAPrivateKey:
        """The private key."""
        if not self.given:
            return fresh()
        key = serialization.load_der_private_key(self.given, None)
        assert isinstance(key, rsa.RSAPrivateKey)
        return key

    @property
    def ski(self) -> bytes:
        """The key's identifier."""
        public = self.key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
        return hashlib.sha256(public).digest()[:20]


@dataclass(frozen=True)
class RsaSigner:
    """An authority's RSA key: PKCS #1 v1.5."""

    reader: RsaReader

    @property
    def ski(self) -> bytes:
        """The key's identifier."""
        return self.reader.ski

    @property
    def spki(self) -> bytes:
        """The SubjectPublicKeyInfo."""
        return self.reader.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, message: bytes) -> bytes:
        """Return a signature with SHA-384."""
        return self.reader.key.sign(message, padding.PKCS1v15(), hashes.SHA384())

    def sign_otherwise(self, message: bytes) -> bytes:
        """Return a signature with SHA-256, which is not what an authority here makes."""
        return self.reader.key.sign(message, padding.PKCS1v15(), hashes.SHA256())


@lru_cache(maxsize=1)
def fresh() -> rsa.RSAPrivateKey:
    """Return a new RSA key, the same all through a run."""
    return rsa.generate_private_key(65537, 3072)


def oaep(digest: str, mask: str, *, label: bytes = b"") -> bytes:
    """Return RSAES-OAEP-params."""
    return tlv.seq(
        tlv.context(0, tlv.algorithm(digest, tlv.NULL)),
        tlv.context(1, tlv.algorithm(MGF1, tlv.algorithm(mask, tlv.NULL))),
        tlv.context(2, tlv.algorithm("1.2.840.113549.1.1.9", tlv.octets(label))) if label else b"",
    )


def transport(
    reader: RsaReader,
    cek: bytes = forge.CEK,
    *,
    version: int = 2,
    rid: bytes | None = None,
    algorithm: bytes | None = None,
    digest: hashes.HashAlgorithm | None = None,
    mask: hashes.HashAlgorithm | None = None,
    pkcs1: bool = False,
) -> bytes:
    """Return a KeyTransRecipientInfo; ``algorithm`` is what it says, the hashes what it does."""
    used = digest or hashes.SHA256()
    scheme = padding.OAEP(mgf=padding.MGF1(mask or used), algorithm=used, label=None)
    sent = reader.key.public_key().encrypt(cek, padding.PKCS1v15() if pkcs1 else scheme)
    return tlv.seq(
        tlv.integer(version),
        tlv.context(0, reader.ski, constructed=False) if rid is None else rid,
        tlv.algorithm(OAEP, oaep(forge.SHA_256, forge.SHA_256)) if algorithm is None else algorithm,
        tlv.octets(sent),
    )
