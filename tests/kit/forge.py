"""Objects of the profile put together by hand: right unless told otherwise, and each wrong thing is the only one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from pki.core import kem
from pki.core.kem import KemAlgorithm
from tests.kit import tlv
from tests.kit.authority import NOW

DATA = "1.2.840.113549.1.7.1"
SIGNED_DATA = "1.2.840.113549.1.7.2"
ENVELOPED_DATA = "1.2.840.113549.1.7.3"
AUTH_ENVELOPED_DATA = "1.2.840.113549.1.9.16.1.23"
CONTENT_INFO = "1.2.840.113549.1.9.16.1.6"
SYMMETRIC_KEY_PACKAGE = "1.2.840.113549.1.9.16.1.25"
CONTENT_TYPE = "1.2.840.113549.1.9.3"
MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
SIGNING_TIME = "1.2.840.113549.1.9.5"
ML_DSA_65 = "2.16.840.1.101.3.4.3.18"
SHA_256 = "2.16.840.1.101.3.4.2.1"
SHA_512 = "2.16.840.1.101.3.4.2.3"
KEM_RECIPIENT = "1.2.840.113549.1.9.16.13.3"
HKDF_SHA256 = "1.2.840.113549.1.9.16.3.28"
AES_256_WRAP = "2.16.840.1.101.3.4.1.45"
AES_256_GCM = "2.16.840.1.101.3.4.1.46"
OURS = "2.25.190657131263726506617233032095942278161"
DEPOSIT_CONTEXT = f"{OURS}.1.1"
DEPOSIT_DIGEST = f"{OURS}.1.2"
MEDIA_TYPE = f"{OURS}.1.3"
REVOCATION = f"{OURS}.2.1"
PACKAGE_ID = "2.16.840.1.101.2.1.5.65"
SIREN_DN = "2.16.840.1.101.2.1.16.0"
SHA512_ID = tlv.algorithm(SHA_512)
GOOD = tlv.algorithm(ML_DSA_65)


@dataclass(frozen=True)
class Signer:
    """An ML-DSA-65 key from a seed of one repeated byte."""

    seed: int

    @cached_property
    def key(self) -> MLDSA65PrivateKey:
        """The private key."""
        return MLDSA65PrivateKey.from_seed_bytes(bytes([self.seed]) * 32)

    @cached_property
    def public(self) -> bytes:
        """The public key's bits."""
        return self.key.public_key().public_bytes_raw()

    @property
    def ski(self) -> bytes:
        """The key's identifier."""
        return hashlib.sha256(self.public).digest()[:20]

    @property
    def spki(self) -> bytes:
        """The SubjectPublicKeyInfo."""
        return tlv.seq(GOOD, tlv.bits(self.public))

    def sign(self, message: bytes) -> bytes:
        """Return a signature."""
        return self.key.sign(message)


def name(*parts: tuple[str, str]) -> bytes:
    """Return a Name of these attributes (their OIDs and texts)."""
    return tlv.seq(*(tlv.set_of(tlv.seq(tlv.oid(kind), tlv.utf8(text))) for kind, text in parts))


def address_name(address: str) -> bytes:
    """Return an instance's distinguished name."""
    return name(("2.5.4.10", address.partition("/")[0]), ("2.5.4.3", address))


def content_info(kind: str, content: bytes) -> bytes:
    """Return a ContentInfo."""
    return tlv.seq(tlv.oid(kind), tlv.context(0, content))


def signed_attributes(
    content_type: str, content: bytes, extra: Sequence[bytes] = (), *, at: datetime = NOW, digest: str = "sha512"
) -> list[bytes]:
    """Return the three attributes that every signed object has, and ``extra`` ones."""
    return [
        tlv.attribute(CONTENT_TYPE, tlv.oid(content_type)),
        tlv.attribute(SIGNING_TIME, tlv.utc(at)),
        tlv.attribute(MESSAGE_DIGEST, tlv.octets(hashlib.new(digest, content).digest())),
        *extra,
    ]


def signer_info(
    signer: Signer,
    attributes: Sequence[bytes],
    *,
    version: int = 3,
    sid: bytes | None = None,
    digest: bytes = SHA512_ID,
    algorithm: bytes = GOOD,
    sign: Callable[[bytes], bytes] | None = None,
    unsigned: bytes = b"",
) -> bytes:
    """Return a SignerInfo; ``sid`` is the whole SignerIdentifier."""
    listed = tlv.set_of(*attributes)
    signature = (sign or signer.sign)(listed)
    named = tlv.context(0, signer.ski, constructed=False) if sid is None else sid
    return tlv.seq(
        tlv.integer(version), named, digest, tlv.retag(0xA0, listed), algorithm, tlv.octets(signature), unsigned
    )


def signed(
    content_type: str,
    content: bytes,
    infos: Sequence[bytes],
    *,
    version: int = 3,
    digests: Sequence[bytes] = (SHA512_ID,),
    certificates: bytes = b"",
    kind: str = SIGNED_DATA,
) -> bytes:
    """Return a SignedData in its ContentInfo."""
    inner = tlv.seq(tlv.oid(content_type), tlv.context(0, tlv.octets(content)))
    parts = (tlv.integer(version), tlv.set_of(*digests), inner, certificates, tlv.set_of(*infos))
    return content_info(kind, tlv.seq(*parts))


@dataclass(frozen=True)
class Reader:
    """An encryption key from a seed of one repeated byte."""

    seed: int
    algorithm: KemAlgorithm = KemAlgorithm.COMPOSITE

    @cached_property
    def private(self) -> bytes:
        """The private key."""
        return bytes([self.seed]) * self.algorithm.private_size

    @cached_property
    def public(self) -> bytes:
        """The public key's bits."""
        return kem.public_from_private(self.algorithm, self.private)

    @property
    def ski(self) -> bytes:
        """The key's identifier."""
        return hashlib.sha256(self.public).digest()[:20]

    @property
    def spki(self) -> bytes:
        """The SubjectPublicKeyInfo."""
        return tlv.seq(tlv.algorithm(self.algorithm.oid.dotted_string), tlv.bits(self.public))

    @property
    def pkcs8(self) -> bytes:
        """The private key in PKCS #8: the seed's choice of RFC 9935, for the composite the bare key."""
        inner = (
            self.private
            if self.algorithm is KemAlgorithm.COMPOSITE
            else tlv.context(0, self.private, constructed=False)
        )
        return tlv.seq(tlv.integer(0), tlv.algorithm(self.algorithm.oid.dotted_string), tlv.octets(inner))


def kem_recipient(
    reader: Reader,
    cek: bytes,
    *,
    version: int = 0,
    rid: bytes | None = None,
    kem_id: bytes | None = None,
    kdf: bytes | None = None,
    wrap: bytes | None = None,
    kek_length: int = 32,
    ukm: bytes | None = None,
    other: str = KEM_RECIPIENT,
    tag: int = 0xA4,
    cut: int = 0,
    wrapped: bytes | None = None,
    digest: hashes.HashAlgorithm | None = None,
) -> bytes:
    """Return a KEMRecipientInfo as RecipientInfo; ``cut`` shortens the KEM ciphertext, ``digest`` is HKDF's."""
    ciphertext, shared = kem.encapsulate(reader.algorithm, reader.public)
    user = b"" if ukm is None else tlv.context(0, tlv.octets(ukm))
    wrapping = wrap or tlv.algorithm(AES_256_WRAP)
    info = tlv.seq(wrapping, tlv.integer(kek_length), user)
    kek = HKDF(algorithm=digest or hashes.SHA256(), length=kek_length, salt=None, info=info).derive(shared)
    recipient = tlv.seq(
        tlv.integer(version),
        tlv.context(0, reader.ski, constructed=False) if rid is None else rid,
        kem_id or tlv.algorithm(reader.algorithm.oid.dotted_string),
        tlv.octets(ciphertext[: len(ciphertext) - cut]),
        kdf or tlv.algorithm(HKDF_SHA256),
        tlv.integer(kek_length),
        user,
        wrapping,
        tlv.octets(aes_key_wrap(kek, cek) if wrapped is None else wrapped),
    )
    return tlv.retag(tag, tlv.seq(tlv.oid(other), recipient))


CEK = bytes(range(100, 132))


def envelope(
    recipients: Sequence[bytes],
    content: bytes = b"content",
    *,
    kind: str = AUTH_ENVELOPED_DATA,
    version: int = 0,
    content_type: str = DATA,
    attributes: Sequence[bytes] | None = None,
    nonce_size: int = 12,
    tag_size: int = 16,
    icv: int | None = 16,
    cipher: str = AES_256_GCM,
    parameters: bytes | None = None,
    cek: bytes = CEK,
) -> bytes:
    """Return an AuthEnvelopedData that every recipient of ``cek`` can open; ``attributes`` () leaves them out."""
    nonce = os.urandom(nonce_size)
    listed = [tlv.attribute(CONTENT_TYPE, tlv.oid(content_type))] if attributes is None else list(attributes)
    aad = tlv.set_of(*listed) if listed else b""
    sealed = AESGCM(cek).encrypt(nonce, content, aad or None)
    gcm = tlv.seq(tlv.octets(nonce), b"" if icv is None else tlv.integer(icv)) if parameters is None else parameters
    body = tlv.seq(
        tlv.integer(version),
        tlv.set_of(*recipients),
        tlv.seq(
            tlv.oid(content_type), tlv.algorithm(cipher, gcm), tlv.context(0, sealed[: len(content)], constructed=False)
        ),
        tlv.retag(0xA1, aad) if listed else b"",
        tlv.octets(sealed[len(content) :][:tag_size]),
    )
    return content_info(kind, body)


def deposit_context(
    *,
    version: int = 1,
    sender: str = "acme/eu-west",
    recipient: str = "globex/main",
    key_id: str = "orders-2030",
    key_version: int = 3,
    purpose: str = "orders",
    expires: datetime = NOW + timedelta(days=30),
) -> bytes:
    """Return a DepositContext."""
    texts = [tlv.utf8(text) for text in (sender, recipient, key_id)]
    return tlv.seq(tlv.integer(version), *texts, tlv.integer(key_version), tlv.utf8(purpose), tlv.generalized(expires))


def receipt_request(package_id: bytes = bytes(range(16)), *to: str, encrypt: bool = False) -> bytes:
    """Return a KeyPkgIdentifierAndReceiptReq that asks for receipts ``to`` these addresses."""
    names = [tlv.seq(tlv.oid(SIREN_DN), tlv.octets(address_name(one))) for one in to or ("acme/eu-west",)]
    flag = tlv.boolean(True) if encrypt else b""
    return tlv.seq(tlv.octets(package_id), tlv.seq(flag, tlv.seq(*names)))


def key_package(
    key: bytes = bytes(range(32)), media_type: str = "application/x-test", attributes: Sequence[bytes] | None = None
) -> bytes:
    """Return a SymmetricKeyPackage with one key."""
    listed = [tlv.attribute(MEDIA_TYPE, tlv.utf8(media_type))] if attributes is None else list(attributes)
    return tlv.seq(tlv.seq(tlv.seq(tlv.seq(*listed) if listed else b"", tlv.octets(key))))
