"""Envelopes for the other kinds of recipients, and what only a recipient may read."""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.hazmat.primitives import hashes

from pki.core.kem import KemAlgorithm
from tests.kit import forge, tlv
from tests.kit.forge import Reader
from tests.kit.forge_classical import (
    OAEP,
    P_384,
    X963_SHA384,
    EcReader,
    RsaReader,
    agreement,
    fresh,
    oaep,
    pkcs8,
    transport,
)
from tests.kit.forge_pki import GLOBEX_KEY
from tests.kit.vectors import FOLDER, load
from tests.vectors.cases import Case

ML_KEM_768, ML_KEM_1024 = Reader(12, KemAlgorithm.ML_KEM_768), Reader(12, KemAlgorithm.ML_KEM_1024)
P256, P384 = EcReader(12), EcReader(12, P_384)
_RSA_FILE = FOLDER / "keys" / "rsa-3072-key.txt"
# RSA keys come from no seed: the one that is there stays.
RSA = RsaReader(load(_RSA_FILE).body if _RSA_FILE.exists() else pkcs8(fresh()))
SHA_1 = "1.3.14.3.2.26"
HKDF_SHA384, HKDF_SHA512 = "1.2.840.113549.1.9.16.3.29", "1.2.840.113549.1.9.16.3.30"
READ = {"profile": "read"}


def readers() -> Iterator[Case]:
    """Yield good and broken envelopes for ML-KEM, ECDH and RSA keys, and those that only a recipient reads."""
    for name, why, key, recipient in (
        ("ml-kem-768", "For an ML-KEM-768 key", "ml-kem-768-key", forge.kem_recipient(ML_KEM_768, forge.CEK)),
        ("ml-kem-1024", "For an ML-KEM-1024 key", "ml-kem-1024-key", forge.kem_recipient(ML_KEM_1024, forge.CEK)),
        ("p-256", "For a P-256 key", "p-256-key", agreement(P256)),
        ("p-384", "For a P-384 key", "p-384-key", agreement(P384)),
        ("p-256-ukm", "Key agreement with user keying material", "p-256-key", agreement(P256, ukm=b"ukm")),
        ("rsa-sha256", "For an RSA key, OAEP with SHA-256", "rsa-3072-key", transport(RSA)),
        ("rsa-sha1", "For an RSA key, OAEP with SHA-1", "rsa-3072-key", sha1()),
        ("hkdf-sha384", "HKDF with SHA-384", "globex-encryption-key", hkdf(HKDF_SHA384, hashes.SHA384())),
        ("hkdf-sha512", "HKDF with SHA-512", "globex-encryption-key", hkdf(HKDF_SHA512, hashes.SHA512())),
    ):
        yield Case(name, "envelope", "", why, forge.envelope([recipient]), {"private": key})
    yield from classical()
    yield from foreign()


def hkdf(oid: str, digest: hashes.HashAlgorithm) -> bytes:
    """Return a KEM recipient with another hash."""
    return forge.kem_recipient(GLOBEX_KEY, forge.CEK, kdf=tlv.algorithm(oid), digest=digest)


def sha1() -> bytes:
    """Return an RSA recipient with OAEP's defaults, which are SHA-1."""
    return transport(RSA, algorithm=tlv.algorithm(OAEP, tlv.seq()), digest=hashes.SHA1())


def classical() -> Iterator[Case]:
    """Yield broken recipients of the classical kinds."""
    mixed = transport(
        RSA, algorithm=tlv.algorithm(OAEP, oaep(forge.SHA_256, SHA_1)), digest=hashes.SHA256(), mask=hashes.SHA1()
    )
    label = transport(RSA, algorithm=tlv.algorithm(OAEP, oaep(forge.SHA_256, forge.SHA_256, label=b"label")))
    pkcs1 = transport(RSA, algorithm=tlv.algorithm("1.2.840.113549.1.1.1", tlv.NULL), pkcs1=True)
    off_curve = b"\x04" + bytes(63) + b"\x01"
    long = agreement(P256, ukm=bytes(1025))
    for rule, name, why, key, recipient in (
        ("ENV-002", "agreement-version-2", "Key agreement of version 2", "p-256-key", agreement(P256, version=2)),
        ("ENV-002", "transport-version-0", "Key transport of version 0", "rsa-3072-key", transport(RSA, version=0)),
        ("ENV-013", "curve-named", "The ephemeral key names its curve", "p-256-key", agreement(P256, curve_named=True)),
        ("ENV-013", "not-on-curve", "The ephemeral key is no point", "p-256-key", agreement(P256, ephemeral=off_curve)),
        ("ENV-013", "other-hash", "P-256 with SHA-384", "p-256-key", agreement(P256, scheme=X963_SHA384)),
        ("ENV-013", "two-at-once", "One key agreement for two", "p-256-key", agreement(P256, rids=2)),
        ("ENV-014", "mixed-hashes", "OAEP with SHA-256, its mask with SHA-1", "rsa-3072-key", mixed),
        ("ENV-014", "label", "OAEP with a label", "rsa-3072-key", label),
        ("ENV-014", "pkcs1", "PKCS #1 version 1.5 padding", "rsa-3072-key", pkcs1),
        ("ENV-015", "long-ukm", "1,025 bytes of user keying material", "p-256-key", long),
    ):
        yield Case(name, "envelope", rule, why, forge.envelope([recipient]), {"private": key})


def foreign() -> Iterator[Case]:
    """Yield what only a recipient reads, and what not even a recipient does."""
    aes_128, half = "2.16.840.1.101.3.4.1.6", forge.CEK[:16]
    password = tlv.context(3, tlv.integer(0), tlv.algorithm("1.2.840.113549.1.9.16.3.9"), tlv.octets(bytes(40)))
    ours = forge.kem_recipient(GLOBEX_KEY, forge.CEK)
    wrap_128 = tlv.algorithm("2.16.840.1.101.3.4.1.5")
    small = forge.kem_recipient(GLOBEX_KEY, half, wrap=wrap_128, kek_length=16)
    unknown = tlv.attribute("1.2.840.113549.1.9.52", tlv.seq())
    typed = tlv.attribute(forge.CONTENT_TYPE, tlv.oid(forge.DATA))
    for name, why, body in (
        ("aes-128", "AES-128-GCM under AES-128-wrap", forge.envelope([small], cek=half, cipher=aes_128)),
        ("no-attributes", "id-data without authenticated attributes", forge.envelope([ours], attributes=())),
        ("unknown-attribute", "An attribute that nobody knows", forge.envelope([ours], attributes=[typed, unknown])),
        ("password-too", "A password opens it as well", forge.envelope([ours, password])),
    ):
        yield Case(f"read-{name}", "envelope", "", why, body, READ)
    package = {"content_type": forge.SYMMETRIC_KEY_PACKAGE, "content": forge.key_package()}
    for rule, name, why, body in (
        ("ENV-001", "enveloped-data", "Not authenticated", forge.envelope([ours], kind=forge.ENVELOPED_DATA)),
        ("ENV-010", "tag-12", "The tag has 12 bytes", forge.envelope([ours], tag_size=12, icv=None)),
        ("ENV-011", "no-attributes", "A key package", forge.envelope([ours], attributes=(), **package)),
    ):
        yield Case(f"read-{name}", "envelope", rule, why, body, READ)
