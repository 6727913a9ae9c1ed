"""What the owner of an encryption key prefers: SMIMECapabilities (RFC 8551 §2.5.2) in its certificate (RFC 4262)."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat import asn1 as library

from pki.core import asn1, oids, transport
from pki.core.der import members
from pki.core.errors import AlgorithmError, ProfileError
from pki.core.kem import Hkdf, KemAlgorithm
from pki.core.keys import KeyAlgorithm
from pki.core.transport import RsaAlgorithm

MAX_ENTRIES = 16
MAX_SIZE = 1024
"""Bytes."""
_SEQUENCE = 0x30


@dataclass(frozen=True)
class Capabilities:
    """The first key derivation of a KEM, and RSA-OAEP's hash: SHA-1 only where that is listed and SHA-256 is not."""

    kdf: Hkdf
    oaep: RsaAlgorithm
    der: bytes

    def algorithm(self, key: KeyAlgorithm) -> KeyAlgorithm:
        """Return what a key of this certificate is used with: a key of RSA does not say its hash itself."""
        return self.oaep if isinstance(key, RsaAlgorithm) else key


def prefer(algorithm: KeyAlgorithm, kdf: Hkdf = Hkdf.SHA256) -> Capabilities | None:
    """Return what has to be said so that others wrap with just this; None where they would without a word.

    A key derivation is a KEM's: with another key than that, another than the default raises AlgorithmError.
    """
    if kdf is not Hkdf.SHA256:
        if not isinstance(algorithm, KemAlgorithm):
            raise AlgorithmError(f"{kdf.title} goes with a KEM", on=algorithm.title, hint="leave out --kdf")
        entry = asn1.AlgorithmIdentifier(algorithm=kdf.oid, parameters=None)
    elif algorithm is RsaAlgorithm.OAEP_SHA1:
        entry = algorithm.identifier
    else:
        return None
    return parse_capabilities(encode([entry]))


@library.sequence
class Listed:
    """A holder of SMIMECapabilities: a SEQUENCE OF cannot stand alone."""

    entries: list[asn1.AlgorithmIdentifier]


def encode(entries: list[asn1.AlgorithmIdentifier]) -> bytes:
    """Return SMIMECapabilities in DER; the first is the one that is preferred."""
    (der,) = members(asn1.encode(Listed(entries=entries)), _SEQUENCE, most=1)
    return der


def parse_capabilities(der: bytes) -> Capabilities:
    """Return the preferences in SMIMECapabilities; unknown ones are passed over, too many refused (rule CRT-015)."""
    if len(der) > MAX_SIZE:
        raise ProfileError(f"The capabilities have more than {MAX_SIZE} bytes", on=f"{len(der)} bytes", rule="CRT-015")
    listed = members(der, _SEQUENCE, most=MAX_ENTRIES + 1)
    if not 1 <= len(listed) <= MAX_ENTRIES:
        raise ProfileError(f"There are not 1 to {MAX_ENTRIES} capabilities", rule="CRT-015", at=der)
    entries = [asn1.decode(asn1.AlgorithmIdentifier, one, what="A capability") for one in listed]
    kdfs = [_KDFS[one.algorithm] for one in entries if one.algorithm in _KDFS and one.parameters is None]
    oaep = {_oaep(one) for one in entries}
    sha1 = RsaAlgorithm.OAEP_SHA1 in oaep and RsaAlgorithm.OAEP_SHA256 not in oaep
    return Capabilities(
        kdf=kdfs[0] if kdfs else Hkdf.SHA256,
        oaep=RsaAlgorithm.OAEP_SHA1 if sha1 else RsaAlgorithm.OAEP_SHA256,
        der=der,
    )


_KDFS = {one.oid: one for one in Hkdf}


def _oaep(entry: asn1.AlgorithmIdentifier) -> RsaAlgorithm | None:
    if entry.algorithm != oids.RSAES_OAEP:
        return None
    try:
        return transport.algorithm(entry)
    except AlgorithmError:
        return None
