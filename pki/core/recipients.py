"""Recipients of an envelope (RecipientInfo, RFC 5652 §6.2): KEM (RFC 9629), key agreement, key transport; the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from cryptography.hazmat import asn1 as library
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import agreement, asn1, kem, oids, transport
from pki.core.errors import AlgorithmError, KeymailboxError, ProfileError, demand
from pki.core.kem import Hkdf
from pki.core.keys import EcAlgorithm, KemAlgorithm, KeyAlgorithm
from pki.core.profile import Profile

MAX_UKM = 1024
_KEK = 32
_WRAPS = {oids.AES256_WRAP: 32, oids.AES128_WRAP: 16, oids.AES192_WRAP: 24}
_CONTENT_KEYS = {Profile.STRICT: (32,), Profile.READ: (16, 24, 32)}
_SKI = {Profile.STRICT: (20, 20), Profile.READ: (1, 64)}
MAX_RECIPIENT = {Profile.STRICT: 4096, Profile.READ: 16384}

Recover = Callable[[KeyAlgorithm, bytes], bytes]
"""Gives what the bytes that were sent carry for the recipient's key, as `pki.core.keys.recover` does."""


@dataclass(frozen=True)
class IssuerSerial:
    """A certificate by its issuer (Name in DER) and serial number."""

    issuer_der: bytes
    serial: int


@dataclass(frozen=True)
class Recipient:
    """A key to wrap for: 20-byte subject key identifier, algorithm, public key; ``kdf`` is what a KEM's owner asks.

    For a foreign certificate without a key identifier ``ski`` is empty and ``issuer_serial`` names it.
    """

    ski: bytes
    algorithm: KeyAlgorithm
    public_key: bytes
    kdf: Hkdf = Hkdf.SHA256
    issuer_serial: IssuerSerial | None = None

    @property
    def rid(self) -> asn1.IssuerAndSerial | bytes:
        """The name in an envelope."""
        named = self.issuer_serial
        if self.ski or named is None:
            return self.ski
        return asn1.IssuerAndSerial(issuer=asn1.tlv(named.issuer_der), serial=named.serial)


@dataclass(frozen=True)
class ParsedRecipient:
    """What an envelope says about one recipient; nothing of it is verified.

    It is named by ``ski`` or, when that is empty, by ``issuer_serial``. ``ciphertext`` is what its key recovers from: a
    KEM ciphertext, an ephemeral point, or an RSA ciphertext; ``encrypted_key`` the wrapped content key, none for RSA.
    """

    ski: bytes
    algorithm: KeyAlgorithm
    ciphertext: bytes
    encrypted_key: bytes
    ukm: bytes | None
    issuer_serial: IssuerSerial | None = None
    kdf: Oid | None = None
    wrap: Oid | None = None

    def content_key(self, recover: Recover) -> bytes:
        """Return the content key; anything may be raised, and the caller makes one error of it."""
        secret = recover(self.algorithm, self.ciphertext)
        if self.wrap is None or self.kdf is None:
            return secret
        return aes_key_unwrap(_kek(secret, self.kdf, self.wrap, self.ukm), self.encrypted_key)


@dataclass(frozen=True)
class UnsupportedRecipient:
    """A recipient whose key could not be used here, and why; only `Profile.READ` lets it stand."""

    kind: str
    reason: str
    ski: bytes = b""
    issuer_serial: IssuerSerial | None = None
    hint: str = ""


def make(recipient: Recipient, content_key: bytes, *, ukm: bytes | None = None) -> asn1.TLV:
    """Return a RecipientInfo; ``ukm`` goes into the key derivation, which RSA has none of."""
    alg = recipient.algorithm
    if isinstance(alg, KemAlgorithm):
        return asn1.tlv(_make_kem(recipient, alg, content_key, ukm))
    if isinstance(alg, EcAlgorithm):
        return asn1.tlv(_make_agreement(recipient, alg, content_key, ukm))
    info = KeyTransport(
        version=2 if recipient.ski else 0,
        rid=recipient.rid,
        algorithm=alg.identifier,
        encrypted_key=transport.encrypt(alg, recipient.public_key, content_key),
    )
    return asn1.tlv(asn1.encode(info))


def read(der: bytes, profile: Profile) -> list[ParsedRecipient | UnsupportedRecipient]:
    """Return what a RecipientInfo says, for a key agreement perhaps of several (rules ENV-002, -004 to -007, -013 …).

    What is well formed but of a kind or algorithm that cannot be used raises AlgorithmError, or to read is kept.
    """
    kind, parser = _KINDS.get(der[0], (f"type {der[0]:#04x}", None))
    try:
        demand(len(der) <= MAX_RECIPIENT[profile], "ENV-005", "A recipient is too large")
        if parser is not None:
            return parser(der, profile)
        return [_unsupported(profile, kind, AlgorithmError(f"A recipient is of a kind that is not allowed: {kind}"))]
    except KeymailboxError as error:
        error.part = error.part or der
        raise


@library.sequence
class KeyTransport:
    """KeyTransRecipientInfo, RFC 5652 §6.2.1: version 2 with a key identifier, 0 with issuer and serial."""

    version: int
    rid: asn1.IssuerAndSerial | Annotated[bytes, library.Implicit(0)]
    algorithm: asn1.AlgorithmIdentifier
    encrypted_key: bytes


@library.sequence
class KeyIdentifier:
    """RecipientKeyIdentifier, RFC 5652 §6.2.2, without date and other attributes."""

    ski: bytes


@library.sequence
class EncryptedKey:
    """RecipientEncryptedKey, RFC 5652 §6.2.2."""

    rid: asn1.IssuerAndSerial | Annotated[KeyIdentifier, library.Implicit(0)]
    key: bytes


@library.sequence
class KeyAgreement:
    """KeyAgreeRecipientInfo, RFC 5652 §6.2.2, version 3."""

    version: int
    originator: Annotated[
        asn1.IssuerAndSerial
        | Annotated[bytes, library.Implicit(0)]
        | Annotated[asn1.SubjectPublicKeyInfo, library.Implicit(1)],
        library.Explicit(0),
    ]
    ukm: Annotated[bytes | None, library.Explicit(1)]
    algorithm: asn1.AlgorithmIdentifier
    keys: list[EncryptedKey]


def _make_kem(recipient: Recipient, alg: KemAlgorithm, content_key: bytes, ukm: bytes | None) -> bytes:
    ciphertext, shared = kem.encapsulate(alg, recipient.public_key)
    info = asn1.KemRecipient(
        version=0,
        rid=recipient.rid,
        kem=asn1.AlgorithmIdentifier(algorithm=alg.oid, parameters=None),
        kem_ciphertext=ciphertext,
        kdf=asn1.AlgorithmIdentifier(algorithm=recipient.kdf.oid, parameters=None),
        kek_length=_KEK,
        ukm=ukm,
        wrap=_identifier(oids.AES256_WRAP),
        encrypted_key=aes_key_wrap(_kek(shared, recipient.kdf.oid, oids.AES256_WRAP, ukm), content_key),
    )
    other = asn1.OtherRecipient(kind=oids.KEM_RECIPIENT_INFO, value=asn1.tlv(asn1.encode(info)))
    return asn1.retagged(0xA4, asn1.encode(other))


def _make_agreement(recipient: Recipient, alg: EcAlgorithm, content_key: bytes, ukm: bytes | None) -> bytes:
    point, shared = agreement.agree(alg, recipient.public_key)
    wrapped, rid = aes_key_wrap(_kek(shared, alg.scheme, oids.AES256_WRAP, ukm), content_key), recipient.rid
    info = KeyAgreement(
        version=3,
        # RFC 5753 §3.1.1: the curve is the recipient's, so it is not said again.
        originator=asn1.SubjectPublicKeyInfo(
            algorithm=asn1.AlgorithmIdentifier(algorithm=oids.EC_PUBLIC_KEY, parameters=None),
            subject_public_key=asn1.BitString(point, 0),
        ),
        ukm=ukm,
        algorithm=asn1.AlgorithmIdentifier(
            algorithm=alg.scheme, parameters=asn1.tlv(asn1.encode(_identifier(oids.AES256_WRAP)))
        ),
        keys=[EncryptedKey(rid=KeyIdentifier(ski=rid) if isinstance(rid, bytes) else rid, key=wrapped)],
    )
    return asn1.retagged(0xA1, asn1.encode(info))


def _parse_kem(der: bytes, profile: Profile) -> list[ParsedRecipient | UnsupportedRecipient]:
    other = asn1.decode(asn1.OtherRecipient, asn1.retagged(0x30, der), what="A recipient")
    if other.kind != oids.KEM_RECIPIENT_INFO:
        wrong = AlgorithmError("A recipient is of another kind than KEM", on=oids.name(other.kind))
        return [_unsupported(profile, f"other ({oids.name(other.kind)})", wrong)]
    info = asn1.inner(asn1.KemRecipient, other.value, what="A KEM recipient")
    demand(info.version == 0, "ENV-002", "The version of a KEM recipient is not 0")
    ski, issuer_serial = _named(info.rid, profile)
    try:
        alg = kem.algorithm(info.kem.algorithm, profile=profile)
        if info.kdf.algorithm not in _HKDFS or info.kdf.parameters is not None:
            raise AlgorithmError(
                "Only HKDF with SHA-256, SHA-384 or SHA-512 is allowed",
                on=oids.name(info.kdf.algorithm),
                rule="ENV-006",
                at=asn1.encode(info.kdf),
            )
        size = _wrap_size(info.wrap, profile)
    except AlgorithmError as error:
        return [_unsupported(profile, "KEM", error, ski, issuer_serial)]
    if info.kem.parameters is not None:
        raise ProfileError("The KEM has parameters", rule="ENV-004", at=asn1.encode(info.kem))
    demand(len(info.kem_ciphertext) == alg.ciphertext_size, "ENV-005", "The KEM ciphertext has a wrong size")
    demand(info.kek_length == size, "ENV-007", "The length of the wrapping key is not that of its algorithm")
    _check_wrapped(info.encrypted_key, info.ukm, profile)
    return [
        ParsedRecipient(
            ski,
            alg,
            info.kem_ciphertext,
            info.encrypted_key,
            info.ukm,
            issuer_serial,
            info.kdf.algorithm,
            info.wrap.algorithm,
        )
    ]


def _parse_agreement(der: bytes, profile: Profile) -> list[ParsedRecipient | UnsupportedRecipient]:
    info = asn1.decode(KeyAgreement, asn1.retagged(0x30, der), what="A key agreement recipient")
    demand(info.version == 3, "ENV-002", "The version of a key agreement recipient is not 3")
    demand(profile is Profile.READ or len(info.keys) == 1, "ENV-013", "A key agreement is for one recipient")
    named = [_named(one.rid.ski if isinstance(one.rid, KeyIdentifier) else one.rid, profile) for one in info.keys]
    try:
        alg, point, wrap = _ephemeral(info, profile)
    except AlgorithmError as error:
        return [_unsupported(profile, "key agreement", error, *one) for one in named]
    for one in info.keys:
        _check_wrapped(one.key, info.ukm, profile)
    return [
        ParsedRecipient(ski, alg, point, one.key, info.ukm, issuer_serial, info.algorithm.algorithm, wrap)
        for one, (ski, issuer_serial) in zip(info.keys, named, strict=True)
    ]


def _ephemeral(info: KeyAgreement, profile: Profile) -> tuple[EcAlgorithm, bytes, Oid]:
    """Return curve and point of the ephemeral key, and the wrap algorithm (rule ENV-013)."""
    scheme = info.algorithm.algorithm
    if scheme not in agreement.SCHEMES:
        raise AlgorithmError(
            "Only one-pass ECDH with the X9.63 key derivation by SHA-256, SHA-384 or SHA-512 is allowed",
            on=oids.name(scheme),
            hint="with openssl cms -encrypt: -keyopt ecdh_kdf_md:sha256",
            rule="ENV-013",
        )
    key = info.originator
    if not isinstance(key, asn1.SubjectPublicKeyInfo) or key.algorithm.algorithm != oids.EC_PUBLIC_KEY:
        raise AlgorithmError("The originator of a key agreement is no ephemeral EC key", rule="ENV-013")
    point = key.subject_public_key.as_bytes()
    alg = agreement.of_point(point, rule="ENV-013")
    curve = key.algorithm.parameters
    said = not isinstance(curve, asn1.TLV) or asn1.encode(curve) == asn1.encode(alg.curve)
    demand(
        said if profile is Profile.READ else curve is None,
        "ENV-013",
        "The ephemeral key names a curve that is not to be named",
    )
    demand(not key.subject_public_key.padding_bits(), "ENV-013", "The ephemeral key is not of whole bytes")
    if profile is Profile.STRICT and scheme != alg.scheme:
        raise AlgorithmError(f"{alg.title} goes with {oids.name(alg.scheme)}", on=oids.name(scheme), rule="ENV-013")
    agreement.check_public(alg, point, rule="ENV-013")
    parameters = info.algorithm.parameters
    demand(isinstance(parameters, asn1.TLV), "ENV-007", "The key agreement does not say how it wraps")
    wrap = asn1.decode(asn1.AlgorithmIdentifier, asn1.encode(parameters), what="The key wrap algorithm")
    _wrap_size(wrap, profile)
    return alg, point, wrap.algorithm


def _parse_transport(der: bytes, profile: Profile) -> list[ParsedRecipient | UnsupportedRecipient]:
    info = asn1.decode(KeyTransport, der, what="A key transport recipient")
    ski, issuer_serial = _named(info.rid, profile)
    version = 2 if issuer_serial is None else 0
    demand(info.version == version, "ENV-002", f"The version of a key transport recipient is not {version}")
    try:
        alg = transport.algorithm(info.algorithm)
    except AlgorithmError as error:
        return [_unsupported(profile, "key transport", error, ski, issuer_serial)]
    sizes = transport.MIN_BITS[profile] // 8, transport.MAX_BITS // 8
    demand(sizes[0] <= len(info.encrypted_key) <= sizes[1], "ENV-005", "The RSA ciphertext has a wrong size")
    return [ParsedRecipient(ski, alg, info.encrypted_key, b"", None, issuer_serial)]


_Parser = Callable[[bytes, Profile], list[ParsedRecipient | UnsupportedRecipient]]
_KINDS: dict[int, tuple[str, _Parser | None]] = {
    0x30: ("key transport", _parse_transport),
    0xA1: ("key agreement", _parse_agreement),
    0xA2: ("key encryption key", None),
    0xA3: ("password", None),
    0xA4: ("other", _parse_kem),
}
"""The tags of RecipientInfo, RFC 5652 §6.2."""
_HKDFS = {one.oid: one for one in Hkdf}


def _unsupported(
    profile: Profile, kind: str, error: AlgorithmError, ski: bytes = b"", issuer_serial: IssuerSerial | None = None
) -> UnsupportedRecipient:
    if profile is Profile.STRICT:
        error.rule = error.rule or "ENV-004"
        raise error
    reason = f"{error.message} ({error.on})" if error.on else error.message
    return UnsupportedRecipient(kind, reason, ski, issuer_serial, error.hint)


def _named(rid: asn1.IssuerAndSerial | bytes, profile: Profile) -> tuple[bytes, IssuerSerial | None]:
    if isinstance(rid, bytes):
        least, most = _SKI[profile]
        demand(least <= len(rid) <= most, "ENV-005", f"A key identifier does not have {least} to {most} bytes", rid)
        return rid, None
    issuer = asn1.encode(rid.issuer)
    demand(profile is Profile.READ, "ENV-005", "A recipient is not named by its key identifier", issuer)
    return b"", IssuerSerial(issuer, rid.serial)


def _wrap_size(wrap: asn1.AlgorithmIdentifier, profile: Profile) -> int:
    allowed = wrap.algorithm == oids.AES256_WRAP if profile is Profile.STRICT else wrap.algorithm in _WRAPS
    if not allowed or wrap.parameters is not None:
        raise AlgorithmError(
            "Only AES-256-wrap is allowed" if profile is Profile.STRICT else "Only AES key wrap is allowed",
            on=oids.name(wrap.algorithm),
            rule="ENV-007",
            at=asn1.encode(wrap),
        )
    return _WRAPS[wrap.algorithm]


def _check_wrapped(encrypted_key: bytes, ukm: bytes | None, profile: Profile) -> None:
    # AES key wrap adds 8 bytes (RFC 3394 §2.2.1).
    fits = len(encrypted_key) - 8 in _CONTENT_KEYS[profile]
    demand(fits, "ENV-007", "The wrapped content key has a wrong size")
    demand(ukm is None or len(ukm) <= MAX_UKM, "ENV-015", f"User keying material has more than {MAX_UKM} bytes")


def _kek(secret: bytes, kdf: Oid, wrap: Oid, ukm: bytes | None) -> bytes:
    identifier, size = _identifier(wrap), _WRAPS[wrap]
    if kdf in _HKDFS:
        return _HKDFS[kdf].derive(secret, wrap=identifier, size=size, ukm=ukm)
    digest: type[hashes.HashAlgorithm] = agreement.SCHEMES[kdf]
    return agreement.derive(secret, digest, wrap=identifier, size=size, ukm=ukm)


def _identifier(oid: Oid) -> asn1.AlgorithmIdentifier:
    return asn1.AlgorithmIdentifier(algorithm=oid, parameters=None)
