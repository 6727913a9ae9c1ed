"""Private keys in PKCS #8 files (RFC 5958), also under a passphrase (PBES2, RFC 8018 §6.2): to open and to sign."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1 as library
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, keys, oids, signers
from pki.core.der import header
from pki.core.errors import AlgorithmError, KeymailboxError, MalformedError, ProfileError, SealError, UsageError
from pki.core.keys import KeyAlgorithm
from pki.core.signatures import SignatureAlgorithm
from pki.core.signers import SigningKey
from pki.tenant.holders.passphrase import Passphrase

T = TypeVar("T")
_MAX_KEY = 16 * 1024
_MAX_ROUNDS = 10_000_000
_MAX_SCRYPT = 1 << 28
"""Bytes of memory that a key file may ask for."""
_PASSPHRASE_HINT = "put the passphrase into a file and name it in KMB_PASSPHRASE_FILE"  # noqa: S105  a hint


@dataclass(frozen=True)
class OpeningKey:
    """A private key that envelopes are opened with; ``spki`` is its public half in DER."""

    algorithm: KeyAlgorithm
    spki: bytes
    _secret: bytes = field(repr=False)

    def recover(self, algorithm: KeyAlgorithm, sent: bytes) -> bytes:
        """Return what ``sent`` carries for this key, as `pki.core.keys.recover` does."""
        # An RSA key does not say its hash: the recipient's entry does.
        if type(algorithm) is not type(self.algorithm) or algorithm.oid != self.algorithm.oid:
            raise AlgorithmError("The key is of another algorithm", on=self.algorithm.title)
        return keys.recover(algorithm, self._secret, sent)


def load_opening(der: bytes, passphrase: Passphrase | None = None) -> OpeningKey:
    """Return the encryption key of a PKCS #8 in DER; see `pki.core.keys.load_private` for its forms.

    An encrypted one needs ``passphrase``: without it UsageError, with another one SealError.
    """
    algorithm, secret = keys.load_private(_decrypted(der, passphrase))
    return OpeningKey(algorithm, keys.spki(algorithm, keys.public_from_private(algorithm, secret)), secret)


def load_signing(der: bytes, passphrase: Passphrase | None = None) -> SigningKey:
    """Return the identity key of a PKCS #8 in DER: ML-DSA (RFC 9881 §6), ECDSA, Ed25519 (RFC 8410 §7)."""
    try:
        plain = _decrypted(der, passphrase)
        info = asn1.decode(keys.PrivateKeyInfo, plain, what="The private key")
        for algorithm in _SEEDED:
            if algorithm.oid == info.algorithm.algorithm:
                return signers.load(algorithm, _seed(info.private_key))
        if info.algorithm.algorithm == SignatureAlgorithm.ED25519.oid:
            seed = asn1.decode(bytes, info.private_key, what="The private key")
            return signers.load(SignatureAlgorithm.ED25519, seed)
        if info.algorithm.algorithm != oids.EC_PUBLIC_KEY:
            raise _no_signer(oids.name(info.algorithm.algorithm))
        return _elliptic(plain)
    except KeymailboxError as error:
        error.part = None
        raise


_S = SignatureAlgorithm
_SEEDED = (_S.ML_DSA_44, _S.ML_DSA_65, _S.ML_DSA_87)
_CURVES = {"secp256r1": _S.ECDSA_P256, "secp384r1": _S.ECDSA_P384}


def _no_signer(name: str) -> AlgorithmError:
    hint = "a key of ML-DSA, ECDSA on P-256 or P-384, or Ed25519"
    return AlgorithmError("A key of this algorithm does not sign here", on=name, hint=hint)


def _seed(choice: bytes) -> bytes:
    # RFC 9881 §6: a seed under [0], an expanded key, or both.
    if choice[:1] == b"\x80":
        return asn1.decode(bytes, asn1.retagged(0x04, choice), what="The private key")
    if choice[:1] == b"\x04":
        raise ProfileError(
            "A private key of ML-DSA is needed as a seed, not in its expanded form alone",
            hint="openssl pkey -provparam ml-dsa.output_formats=seed-only",
        )
    return asn1.decode(keys.SeedAndExpanded, choice, what="The private key").seed


def _elliptic(der: bytes) -> SigningKey:
    try:
        key = serialization.load_der_private_key(der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise MalformedError("The private key cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise _no_signer(key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else "")
    algorithm = _CURVES[key.curve.name]
    size = signers.secret_size(algorithm)
    return signers.load(algorithm, key.private_numbers().private_value.to_bytes(size, "big"))


@library.sequence
class _Encrypted:
    """EncryptedPrivateKeyInfo, RFC 5958 §3."""

    algorithm: asn1.AlgorithmIdentifier
    data: bytes


@library.sequence
class _Pbes2:
    """RFC 8018 §A.4."""

    derivation: asn1.AlgorithmIdentifier
    scheme: asn1.AlgorithmIdentifier


@library.sequence
class _Pbkdf2:
    """RFC 8018 §A.2; the salt's other choice was never used."""

    salt: bytes
    rounds: int
    size: int | None
    prf: asn1.AlgorithmIdentifier | None


@library.sequence
class _Scrypt:
    """RFC 7914 §7."""

    salt: bytes
    cost: int
    block: int
    parallel: int
    size: int | None


_PBES2 = Oid("1.2.840.113549.1.5.13")
_PBKDF2 = Oid("1.2.840.113549.1.5.12")
_SCRYPT = Oid("1.3.6.1.4.1.11591.4.11")
_PRFS: dict[str, type[hashes.HashAlgorithm]] = {
    "1.2.840.113549.2.7": hashes.SHA1,
    "1.2.840.113549.2.9": hashes.SHA256,
    "1.2.840.113549.2.10": hashes.SHA384,
    "1.2.840.113549.2.11": hashes.SHA512,
}
_CBC = {"2.16.840.1.101.3.4.1.2": 16, "2.16.840.1.101.3.4.1.22": 24, "2.16.840.1.101.3.4.1.42": 32}


def _decrypted(der: bytes, passphrase: Passphrase | None) -> bytes:
    if len(der) > _MAX_KEY:
        raise ProfileError("A private key has at most 16 KiB", on=f"{len(der)} bytes")
    # In the clear, a version stands first; encrypted, an algorithm (RFC 5958 §2, §3).
    outer = header(der, 0, len(der))
    if der[outer.content : outer.content + 1] != b"\x30":
        return der
    if passphrase is None:
        raise UsageError("The private key is encrypted, and there is no passphrase", hint=_PASSPHRASE_HINT)
    sealed = asn1.decode(_Encrypted, der, what="The encrypted private key")
    if sealed.algorithm.algorithm != _PBES2:
        raise _unsupported(sealed.algorithm.algorithm)
    parameters = _parameters(_Pbes2, sealed.algorithm)
    size = _CBC.get(parameters.scheme.algorithm.dotted_string)
    if size is None:
        raise _unsupported(parameters.scheme.algorithm)
    vector = _parameters(bytes, parameters.scheme)
    if len(vector) != 16:
        raise MalformedError("The encrypted private key has no good initial vector")
    secret = _derive(parameters.derivation, size, passphrase.reveal())
    try:
        decryptor = Cipher(algorithms.AES(secret), modes.CBC(vector)).decryptor()
        unpadder = padding.PKCS7(128).unpadder()
        plain = unpadder.update(decryptor.update(sealed.data) + decryptor.finalize()) + unpadder.finalize()
        asn1.decode(keys.PrivateKeyInfo, plain, what="The private key")
    except (ValueError, MalformedError):
        hint = "check KMB_PASSPHRASE_FILE"
        raise SealError("The private key cannot be opened with this passphrase", hint=hint) from None
    return plain


def _derive(derivation: asn1.AlgorithmIdentifier, size: int, passphrase: bytes) -> bytes:
    if derivation.algorithm == _PBKDF2:
        told = _parameters(_Pbkdf2, derivation)
        prf = "1.2.840.113549.2.7" if told.prf is None else told.prf.algorithm.dotted_string
        if prf not in _PRFS or told.size not in (None, size) or not 0 < told.rounds <= _MAX_ROUNDS:
            raise _unsupported(derivation.algorithm)
        return PBKDF2HMAC(_PRFS[prf](), size, told.salt, told.rounds).derive(passphrase)
    if derivation.algorithm == _SCRYPT:
        asked = _parameters(_Scrypt, derivation)
        positive = asked.cost > 1 and asked.block > 0 and asked.parallel > 0
        # A power of two, and no more memory than is decent (RFC 7914 §6).
        bounded = positive and asked.cost & (asked.cost - 1) == 0 and asked.parallel <= 16
        if not bounded or 128 * asked.cost * asked.block > _MAX_SCRYPT or asked.size not in (None, size):
            raise _unsupported(derivation.algorithm)
        return Scrypt(asked.salt, size, asked.cost, asked.block, asked.parallel).derive(passphrase)
    raise _unsupported(derivation.algorithm)


def _parameters(kind: type[T], identifier: asn1.AlgorithmIdentifier) -> T:
    if not isinstance(identifier.parameters, asn1.TLV):
        raise MalformedError("The encrypted private key does not say how it is encrypted")
    return asn1.inner(kind, identifier.parameters, what="The encryption of the private key")


def _unsupported(oid: Oid) -> AlgorithmError:
    return AlgorithmError(
        "The private key is encrypted in a way, or at a cost, that is not supported",
        on=oids.name(oid),
        hint="openssl pkcs8 -topk8 -v2 aes-256-cbc -in KEY -out KEY.pem",
    )
