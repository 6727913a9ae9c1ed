"""The protection of a CMP message (RFC 9810 §5.1.3): a MAC under a shared secret, or a signature."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids, signatures
from pki.core.cmp import types
from pki.core.errors import AlgorithmError, SignatureError, demand
from pki.core.signatures import IDENTITY, Sign, SignatureAlgorithm

ITERATIONS = (100, 100_000)
"""The fewest (RFC 4211 §4.4 asks for that) and the most, which take a tenth of a second."""
_SALT = (8, 128)
_MAX_MAC = 64
_HASHES: Mapping[Oid, str] = {oids.SHA256: "sha256", oids.SHA384: "sha384", oids.SHA512: "sha512"}
_DIGESTS = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
_MACS: Mapping[Oid, str] = {
    # HMAC with SHA-1 is OpenSSL's default; collisions of SHA-1 do not break it (RFC 6194 §3.3).
    types.HMAC_SHA1: "sha1",
    types.HMAC_WITH_SHA1: "sha1",
    types.HMAC_WITH_SHA256: "sha256",
    types.HMAC_WITH_SHA384: "sha384",
    types.HMAC_WITH_SHA512: "sha512",
}


class Protection(Protocol):
    """Protects what we say."""

    @property
    def identifier(self) -> asn1.AlgorithmIdentifier:
        """What stands in the header."""

    def protect(self, message: bytes, /) -> bytes:
        """Return the bits of the protection."""


@dataclass(frozen=True)
class MacParameters:
    """A password-based MAC (RFC 9481 §6.1.1) whose work is bounded; ``hash`` and ``mac`` are names of hashes."""

    salt: bytes
    hash: str
    iterations: int
    mac: str
    identifier: asn1.AlgorithmIdentifier = field(compare=False, repr=False)

    def with_salt(self, salt: bytes) -> MacParameters:
        """Return the same with another salt."""
        parameters = self.identifier.parameters
        assert isinstance(parameters, asn1.TLV)
        raw = asn1.inner(types.PasswordMac, parameters, what="The parameters of the MAC")
        raw = types.PasswordMac(salt=salt, hash=raw.hash, iterations=raw.iterations, mac=raw.mac)
        identifier = asn1.AlgorithmIdentifier(algorithm=types.PASSWORD_BASED_MAC, parameters=asn1.tlv(asn1.encode(raw)))
        return MacParameters(salt, self.hash, self.iterations, self.mac, identifier)

    def code(self, secret: bytes, message: bytes) -> bytes:
        """Return the MAC of ``message`` (RFC 4211 §4.4)."""
        key, digest = secret + self.salt, _DIGESTS[self.hash]
        for _ in range(self.iterations):
            key = digest(key).digest()
        return hmac.new(key, message, self.mac).digest()

    def verify(self, code: bytes, secret: bytes, message: bytes) -> None:
        """Raise SignatureError unless ``code`` is the MAC of ``message`` (rule CMP-008)."""
        if not hmac.compare_digest(self.code(secret, message), code):
            raise SignatureError("The message is not protected with the secret", rule="CMP-008")


@dataclass(frozen=True)
class SignedBy:
    """The protection is a signature of this algorithm."""

    algorithm: SignatureAlgorithm


@dataclass(frozen=True)
class MacProtection:
    """Protects with a secret."""

    parameters: MacParameters
    secret: bytes = field(repr=False)

    @property
    def identifier(self) -> asn1.AlgorithmIdentifier:
        """What stands in the header."""
        return self.parameters.identifier

    def protect(self, message: bytes, /) -> bytes:
        """Return the MAC."""
        return self.parameters.code(self.secret, message)


@dataclass(frozen=True)
class SignatureProtection:
    """Protects with a key; ``sign`` makes signatures of ``algorithm``."""

    algorithm: SignatureAlgorithm
    sign: Sign = field(repr=False)

    @property
    def identifier(self) -> asn1.AlgorithmIdentifier:
        """What stands in the header."""
        return self.algorithm.identifier

    def protect(self, message: bytes, /) -> bytes:
        """Return the signature."""
        return self.sign(message)


def parse_algorithm(identifier: asn1.AlgorithmIdentifier) -> MacParameters | SignedBy:
    """Return how a message is protected (rule CMP-003): no work beyond the bounds is done for anybody."""
    if identifier.algorithm != types.PASSWORD_BASED_MAC:
        return SignedBy(signatures.algorithm_of(identifier, allowed=IDENTITY, rule="CMP-003"))
    if not isinstance(identifier.parameters, asn1.TLV):
        raise AlgorithmError("The password-based MAC has no parameters", rule="CMP-003")
    raw = asn1.inner(types.PasswordMac, identifier.parameters, what="The parameters of the MAC")
    if raw.hash.algorithm not in _HASHES:
        raise AlgorithmError(
            "The MAC's hash is not SHA-256, SHA-384 or SHA-512",
            on=oids.name(raw.hash.algorithm),
            hint="openssl cmp -digest sha256",
            rule="CMP-003",
        )
    if raw.mac.algorithm not in _MACS:
        raise AlgorithmError(
            "The MAC is not HMAC with SHA-1 or SHA-2",
            on=oids.name(raw.mac.algorithm),
            hint="openssl cmp -mac hmacWithSHA256",
            rule="CMP-003",
        )
    least, most = ITERATIONS
    demand(least <= raw.iterations <= most, "CMP-003", f"The MAC's key is not derived in {least} to {most} rounds")
    least, most = _SALT
    demand(least <= len(raw.salt) <= most, "CMP-003", f"The MAC's salt does not have {least} to {most} bytes")
    for one in (raw.hash, raw.mac):
        plain = one.parameters is None or isinstance(one.parameters, asn1.Null)
        demand(plain, "CMP-003", "The MAC's algorithms have parameters")
    return MacParameters(raw.salt, _HASHES[raw.hash.algorithm], raw.iterations, _MACS[raw.mac.algorithm], identifier)
