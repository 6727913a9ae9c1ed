"""Each signature algorithm verifies what it should and nothing else, also against another implementation."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509 import ObjectIdentifier as Oid
from pqcrypto import sign as pqcrypto_sign

from pki.core import asn1, composites, oids, signatures, signers
from pki.core.errors import AlgorithmError, KeymailboxError, MalformedError, ProfileError, SignatureError, UsageError
from pki.core.signatures import IDENTITY, SLH_DSA, SignatureAlgorithm, VerifyingKey

S = SignatureAlgorithm
FAST = sorted(IDENTITY | {S.SLH_DSA_SHA2_128F, S.SLH_DSA_SHAKE_256F}, key=lambda one: one.name)
MESSAGE = b"what is signed"


def spki(oid: Oid, raw: bytes, parameters: object = None) -> bytes:
    """Return a SubjectPublicKeyInfo."""
    return asn1.encode(
        asn1.SubjectPublicKeyInfo(
            algorithm=asn1.AlgorithmIdentifier(algorithm=oid, parameters=parameters),  # type: ignore[arg-type]  # wrong ones too
            subject_public_key=asn1.BitString(raw, 0),
        )
    )


@pytest.mark.parametrize("algorithm", FAST, ids=lambda one: one.label)
def test_round_trip(algorithm: SignatureAlgorithm) -> None:
    """What a key signed verifies; another message, another key and any shorter signature do not."""
    key, other = (signers.load(algorithm, signers.generate(algorithm)) for _ in range(2))
    signature = key.sign(MESSAGE)
    assert algorithm.fits(len(signature))
    public = signatures.load(key.public.spki)
    assert public == key.public and public.algorithm is algorithm
    assert public.ski == hashlib.sha256(public.raw).digest()[:20]
    public.verify(signature, MESSAGE)
    for who, what, signed in (
        (public, b"another", signature),
        (other.public, MESSAGE, signature),
        (public, MESSAGE, signature[:-1]),
        (public, MESSAGE, signature + b"\0"),
        (public, MESSAGE, bytes(algorithm.size)),
        (public, MESSAGE, b""),
    ):
        with pytest.raises(SignatureError):
            who.verify(signed, what)


@pytest.mark.parametrize("algorithm", sorted(SLH_DSA, key=lambda one: one.name), ids=lambda one: one.label)
def test_the_twelve_slh_dsa(algorithm: SignatureAlgorithm) -> None:
    """Sizes are those of RFC 9909 and FIPS 205, table 2, as the library has them."""
    library = getattr(pqcrypto_sign, algorithm.label.replace("-", "_"))
    assert (algorithm.key_size, algorithm.size) == (library.PUBLIC_KEY_SIZE, library.SIGNATURE_SIZE)
    assert oids.name(algorithm.oid) == algorithm.title
    key = signatures.from_raw(bytes(algorithm.key_size), algorithm)
    with pytest.raises(SignatureError):
        key.verify(bytes(algorithm.size), MESSAGE)


@pytest.mark.parametrize("algorithm", [S.ML_DSA_44, S.ML_DSA_65, S.ML_DSA_87], ids=lambda one: one.label)
def test_another_implementation_of_ml_dsa(algorithm: SignatureAlgorithm) -> None:
    """Pqcrypto verifies ours, and we verify pqcrypto's."""
    library = getattr(pqcrypto_sign, algorithm.label.replace("-", "_"))
    key = signers.load(algorithm, signers.generate(algorithm))
    library.verify(key.public.raw, MESSAGE, key.sign(MESSAGE))
    public, private = sorted(library.keygen(), key=len)
    signatures.from_raw(public, algorithm).verify(library.sign(private, MESSAGE), MESSAGE)


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("algorithm", [S.ECDSA_P256, S.ECDSA_P384], ids=lambda one: one.label)
def test_ecdsa_under_another_hash(algorithm: SignatureAlgorithm, digest: str) -> None:
    """A foreign ECDSA signature verifies under the hash that is named, and under no other."""
    curve = ec.SECP256R1() if algorithm is S.ECDSA_P256 else ec.SECP384R1()
    private = ec.generate_private_key(curve)
    key = signatures.load(der(private.public_key()))
    chosen = {"sha256": hashes.SHA256, "sha384": hashes.SHA384, "sha512": hashes.SHA512}
    signature = private.sign(MESSAGE, ec.ECDSA(chosen[digest]()))
    key.verify(signature, MESSAGE, digest=digest)
    for other in set(chosen) - {digest}:
        with pytest.raises(SignatureError):
            key.verify(signature, MESSAGE, digest=other)


# RSA: an authority's, PKCS #1 v1.5


@lru_cache(maxsize=4)
def rsa_pair(bits: int, exponent: int = 65537) -> rsa.RSAPrivateKey:
    """Return an RSA key, which is slow to make."""
    return rsa.generate_private_key(exponent, bits)


@pytest.mark.parametrize("bits", [3072, 4096])
def test_rsa(bits: int) -> None:
    """An RSA key verifies PKCS #1 v1.5 with SHA-384: no other padding, hash, message, key or size."""
    private = rsa_pair(bits)
    key = signatures.load(der(private.public_key()))
    assert key.algorithm is S.RSA and key == signatures.from_raw(key.raw, S.RSA)
    assert key.ski == hashlib.sha256(key.raw).digest()[:20]
    signature = private.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA384())
    assert S.RSA.fits(len(signature)) and len(signature) * 8 == bits
    key.verify(signature, MESSAGE)
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    other = signatures.load(der(rsa_pair(7168 - bits).public_key()))
    for who, what, signed in (
        (key, b"another", signature),
        (other, MESSAGE, signature),
        (key, MESSAGE, signature[:-1]),
        (key, MESSAGE, b"\0" + signature),
        (key, MESSAGE, bytes(bits // 8)),
        (key, MESSAGE, private.sign(MESSAGE, pss, hashes.SHA384())),
        (key, MESSAGE, private.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())),
    ):
        with pytest.raises(SignatureError):
            who.verify(signed, what)


def test_rsa_between_the_two_sizes() -> None:
    """Any modulus from 3072 to 4096 bits will do."""
    private = rsa_pair(3200)
    signatures.load(der(private.public_key())).verify(
        private.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA384()), MESSAGE
    )


def test_crt_002_parameters() -> None:
    """RSA's parameters are NULL, exactly; everybody else's are absent (RFC 4055 §5, RFC 9881 §2)."""
    good = asn1.AlgorithmIdentifier(algorithm=oids.RSA_SHA384, parameters=asn1.Null())
    assert signatures.algorithm_of(good, rule="CRT-002") is S.RSA and S.RSA.identifier.parameters == asn1.Null()
    for oid, wrong in (
        (oids.RSA_SHA384, None),
        (oids.RSA_SHA384, asn1.tlv(b"\x04\x00")),
        (oids.ML_DSA_65, asn1.Null()),
        (oids.ECDSA_SHA384, asn1.Null()),
        (oids.RSA_SHA256, asn1.Null()),
        (oids.RSA_ENCRYPTION, asn1.Null()),
    ):
        with pytest.raises(AlgorithmError) as caught:
            signatures.algorithm_of(asn1.AlgorithmIdentifier(algorithm=oid, parameters=wrong), rule="CRT-002")
        assert caught.value.rule == "CRT-002"


# Composites: the halves are made with two libraries, and the message representative by hand


def composite(algorithm: SignatureAlgorithm) -> tuple[VerifyingKey, bytes, bytes]:
    """Return a composite key, its ML-DSA signature and its traditional signature."""
    label = {
        S.ML_DSA_65_ECDSA_P256: b"COMPSIG-MLDSA65-ECDSA-P256-SHA512",
        S.ML_DSA_65_ED25519: b"COMPSIG-MLDSA65-Ed25519-SHA512",
    }[algorithm]
    prefix = bytes.fromhex("436f6d706f73697465416c676f726974686d5369676e61747572657332303235")
    represented = prefix + label + b"\0" + hashlib.sha512(MESSAGE).digest()
    public, private = sorted(pqcrypto_sign.ml_dsa_65.keygen(), key=len)
    lattice = bytes(pqcrypto_sign.ml_dsa_65.sign(private, represented, label))
    if algorithm is S.ML_DSA_65_ED25519:
        edwards = Ed25519PrivateKey.generate()
        raw, traditional = edwards.public_key().public_bytes_raw(), edwards.sign(represented)
    else:
        point = ec.generate_private_key(ec.SECP256R1())
        raw = point.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        traditional = point.sign(represented, ec.ECDSA(hashes.SHA256()))
    return signatures.load(spki(algorithm.oid, public + raw)), lattice, traditional


COMPOSITES = pytest.mark.parametrize(
    "algorithm", [S.ML_DSA_65_ECDSA_P256, S.ML_DSA_65_ED25519], ids=lambda one: one.label
)


@COMPOSITES
def test_composites_verify(algorithm: SignatureAlgorithm) -> None:
    """Both halves good: the whole is good."""
    key, lattice, traditional = composite(algorithm)
    assert key.algorithm is algorithm
    key.verify(lattice + traditional, MESSAGE)


@COMPOSITES
def test_composites_need_both_halves(algorithm: SignatureAlgorithm) -> None:
    """One good half, in its place or alone, is not enough."""
    key, lattice, traditional = composite(algorithm)
    _, other_lattice, other_traditional = composite(algorithm)
    spoilt = bytes([lattice[0] ^ 1]) + lattice[1:]
    for signature in (
        lattice + other_traditional,
        other_lattice + traditional,
        spoilt + traditional,
        lattice + traditional[:-1] + bytes([traditional[-1] ^ 1]),
        lattice,
        traditional,
        traditional + lattice,
        lattice + traditional + b"\0",
    ):
        with pytest.raises(SignatureError):
            key.verify(signature, MESSAGE)
    with pytest.raises(SignatureError):
        signatures.from_raw(key.raw[:1952]).verify(lattice, MESSAGE)


@pytest.mark.parametrize("oid", sorted(composites.NAMES, key=lambda oid: int(oid.dotted_string.rpartition(".")[2])))
def test_other_composites_are_named(oid: Oid) -> None:
    """A composite that is not supported is called by its name, as a key and as a signature."""
    assert len(composites.NAMES) == 18
    if oid in composites.SUPPORTED:
        assert signatures.load(spki(oid, good_composite(oid))).algorithm.oid == oid
        return
    identifier = asn1.AlgorithmIdentifier(algorithm=oid, parameters=None)
    for ask in (
        lambda: signatures.load(spki(oid, bytes(2000))),
        lambda: signatures.algorithm_of(identifier, rule="CRT-002"),
    ):
        with pytest.raises(AlgorithmError, match=f"{composites.NAMES[oid]} is a composite that is not supported"):
            ask()


def good_composite(oid: Oid) -> bytes:
    """Return the bits of a composite key."""
    return composite(next(one for one in S if one.oid == oid))[0].raw


# Keys that are refused


def der(key: Any) -> bytes:
    """Return a key's SubjectPublicKeyInfo."""
    made: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return made


P256 = signers.load(S.ECDSA_P256, signers.generate(S.ECDSA_P256)).public
CURVE = asn1.tlv(asn1.encode(oids.P_256))
MINUS_ONE = (2**255 - 20).to_bytes(32, "little")
SMALL = [
    bytes(32),
    b"\1" + bytes(31),
    MINUS_ONE,
    bytes(31) + b"\x80",
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    b"\xff" * 32,
    b"\2" + bytes(31),
]
RSA_3072 = signatures.load(der(rsa_pair(3072).public_key())).raw
EVEN = RSA_3072[:-6] + bytes([RSA_3072[-6] & 0xFE]) + RSA_3072[-5:]
BAD_KEYS: list[tuple[bytes, type[KeymailboxError]]] = [
    (b"", MalformedError),
    (P256.spki + b"\0", MalformedError),
    (P256.spki[:-1], MalformedError),
    (spki(oids.EC_PUBLIC_KEY, bytes(65), CURVE), ProfileError),
    (spki(oids.EC_PUBLIC_KEY, b"\4" + bytes(64), CURVE), ProfileError),
    (spki(oids.EC_PUBLIC_KEY, b"\2" + P256.raw[1:33], CURVE), ProfileError),
    (spki(oids.EC_PUBLIC_KEY, P256.raw), ProfileError),
    (spki(oids.EC_PUBLIC_KEY, P256.raw, asn1.tlv(asn1.encode(oids.P_384))), ProfileError),
    (der(ec.generate_private_key(ec.SECP521R1()).public_key()), ProfileError),
    (spki(oids.ML_DSA_65, bytes(1951)), ProfileError),
    (spki(oids.ML_DSA_65, bytes(1952), asn1.Null()), ProfileError),
    (spki(oids.SLH_DSA[0], bytes(31)), ProfileError),
    (spki(composites.ML_DSA_65_ECDSA_P256, bytes(1952 + 65)), ProfileError),
    *[(der(rsa_pair(bits).public_key()), ProfileError) for bits in (2048, 3064, 4104)],
    (der(rsa_pair(3072, 3).public_key()), ProfileError),
    (spki(oids.RSA_ENCRYPTION, RSA_3072), ProfileError),
    (spki(oids.RSA_ENCRYPTION, RSA_3072 + b"\0", asn1.Null()), ProfileError),
    (spki(oids.RSA_ENCRYPTION, bytes(398), asn1.Null()), ProfileError),
    (spki(oids.RSA_ENCRYPTION, EVEN, asn1.Null()), ProfileError),
    (spki(oids.RSASSA_PSS, RSA_3072, asn1.Null()), AlgorithmError),
    (der(Ed448PrivateKey.generate().public_key()), AlgorithmError),
    (spki(oids.ML_KEM_768, bytes(1184)), AlgorithmError),
    *[(spki(oids.ED25519, raw), ProfileError) for raw in SMALL],
    *[(spki(composites.ML_DSA_65_ED25519, bytes(1952) + raw), ProfileError) for raw in SMALL[:2]],
]


@pytest.mark.parametrize(("key", "error"), BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_crt_009_bad_keys(key: bytes, error: type[KeymailboxError]) -> None:
    """CRT-009: malformed keys, keys under which anybody signs, and keys of other algorithms are refused, each time."""
    for _ in range(2):
        with pytest.raises(error) as caught:
            signatures.load(key)
        assert error is MalformedError or caught.value.rule == "CRT-009"


def test_an_authority_s_key_is_no_identity() -> None:
    """SLH-DSA, RSA and composites certify, and are not what an instance signs with."""
    slh_dsa = signers.load(S.SLH_DSA_SHA2_128F, signers.generate(S.SLH_DSA_SHA2_128F)).public
    for key in (slh_dsa, signatures.load(der(rsa_pair(3072).public_key()))):
        assert signatures.load(key.spki) == key
        with pytest.raises(AlgorithmError, match="may not sign here"):
            signatures.load(key.spki, allowed=IDENTITY)


def test_labels() -> None:
    """People name algorithms by their labels; another label is answered with the list."""
    assert {signatures.named(one.label) for one in IDENTITY} == IDENTITY
    assert signatures.named("p-256") is S.ECDSA_P256
    for wrong in ("rsa", "slh-dsa-sha2-128s"):
        with pytest.raises(UsageError) as caught:
            signatures.named(wrong)
        assert "ml-dsa-65" in caught.value.hint


@pytest.mark.parametrize("algorithm", sorted(IDENTITY, key=lambda one: one.name), ids=lambda one: one.label)
def test_private_keys(algorithm: SignatureAlgorithm) -> None:
    """A secret of a wrong size, or an impossible one, is refused without being shown; a key's text shows none."""
    secret = signers.generate(algorithm)
    assert len(secret) == signers.secret_size(algorithm)
    assert secret.hex() not in repr(signers.load(algorithm, secret)) and repr(secret) not in repr(
        signers.load(algorithm, secret)
    )
    for wrong in (
        secret[:-1],
        secret + b"\0",
        *([b"\xff" * len(secret), bytes(len(secret))] if algorithm.curve else []),
    ):
        with pytest.raises(ProfileError) as caught:
            signers.load(algorithm, wrong)
        assert repr(wrong)[2:-1] not in str(caught.value)


def test_composites_are_not_made() -> None:
    """A composite has no private key here, and RSA's are in tokens."""
    for algorithm in (S.ML_DSA_65_ED25519, S.RSA):
        with pytest.raises(AlgorithmError):
            signers.load(algorithm, bytes(32))
        with pytest.raises(AlgorithmError):
            signers.generate(algorithm)
