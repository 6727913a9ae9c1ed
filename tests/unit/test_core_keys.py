"""Encryption keys of every kind are read as others write them, and bad ones are refused."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM1024PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pqcrypto.kem import ml_kem_512

from pki.core import agreement, asn1, keys, oids, transport
from pki.core.errors import AlgorithmError, KeymailboxError, ProfileError, UnwrapError
from pki.core.keys import ALGORITHMS, EcAlgorithm, KemAlgorithm, KeyAlgorithm, RsaAlgorithm
from pki.core.profile import Profile
from tests.kit import tlv

RSA = rsa.generate_private_key(public_exponent=65537, key_size=3072)
SMALL = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVES = {EcAlgorithm.P_256: ec.SECP256R1(), EcAlgorithm.P_384: ec.SECP384R1()}


def pkcs8(key: Any) -> bytes:
    """Return a private key in PKCS #8."""
    form = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption()))


def spki(key: Any) -> bytes:
    """Return a public key in DER."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(serialization.Encoding.DER, form))


def one_key(oid: Any, private: bytes, **more: Any) -> bytes:
    """Return a OneAsymmetricKey."""
    fields: dict[str, Any] = {"version": 0, "attributes": None, "public_key": None, **more}
    identifier = asn1.AlgorithmIdentifier(algorithm=oid, parameters=None)
    return asn1.encode(keys.PrivateKeyInfo(algorithm=identifier, private_key=private, **fields))


def test_every_algorithm_says_whether_a_quantum_computer_opens_it() -> None:
    """The names on command lines are those of what is made, and the classical ones are known as such."""
    assert {name for name, algorithm in ALGORITHMS.items() if algorithm.classical} == {
        "p-256",
        "p-384",
        "rsa-3072",
        "rsa-oaep-sha1",
    }
    assert len({algorithm.title for algorithm in ALGORITHMS.values()}) == len(ALGORITHMS)


@pytest.mark.parametrize("alg", list(EcAlgorithm))
def test_elliptic_curve_keys_are_those_of_the_library(alg: EcAlgorithm) -> None:
    """Keys, secrets and encodings agree with the library's own."""
    private = keys.generate(alg)
    public = keys.public_from_private(alg, private)
    theirs = ec.derive_private_key(int.from_bytes(private, "big"), CURVES[alg])
    assert keys.spki(alg, public) == spki(theirs.public_key())
    assert keys.parse_spki(spki(theirs.public_key())) == (alg, public)
    assert keys.load_private(pkcs8(theirs)) == (alg, private)
    point, shared = agreement.agree(alg, public)
    peer = ec.EllipticCurvePublicKey.from_encoded_point(CURVES[alg], point)
    assert theirs.exchange(ec.ECDH(), peer) == shared == keys.recover(alg, private, point)


def test_the_key_derivation_is_that_of_x9_63() -> None:
    """One block of the X9.63 KDF by hand: hash of secret, counter 1, and ECC-CMS-SharedInfo (RFC 5753 §7.2)."""
    wrap = asn1.AlgorithmIdentifier(algorithm=oids.AES256_WRAP, parameters=None)
    info = bytes.fromhex("3019300b060960864801650304012da00404026162a206040400000100".replace("3019", "301b", 1))
    info = info[:2] + info[2:15] + bytes.fromhex("a00404026162") + bytes.fromhex("a206040400000100")
    expected = hashlib.sha256(b"z" * 32 + bytes([0, 0, 0, 1]) + info).digest()
    assert agreement.derive(b"z" * 32, hashes.SHA256, wrap=wrap, size=32, ukm=b"ab") == expected


@pytest.mark.parametrize("alg", list(RsaAlgorithm))
def test_rsa_keys_are_those_of_the_library(alg: RsaAlgorithm) -> None:
    """What the library encrypts opens, and the other way round."""
    private = pkcs8(RSA)
    public = keys.public_from_private(alg, private)
    assert keys.spki(alg, public) == spki(RSA.public_key())
    assert keys.parse_spki(spki(RSA.public_key())) == (RsaAlgorithm.OAEP_SHA256, public)
    assert keys.load_private(private) == (RsaAlgorithm.OAEP_SHA256, private)
    oaep = padding.OAEP(padding.MGF1(alg.digest()), alg.digest(), None)
    assert keys.recover(alg, private, RSA.public_key().encrypt(b"c" * 32, oaep)) == b"c" * 32
    assert RSA.decrypt(transport.encrypt(alg, public, b"c" * 32), oaep) == b"c" * 32
    for bad in (b"", bytes(384), b"\xff" * 384):
        with pytest.raises(UnwrapError):
            keys.recover(alg, private, bad)


def test_rsa_keys_of_bad_size_or_form() -> None:
    """CRT-009: below 3072 bits (to read 2048), above 8192, with a small exponent, or not in DER."""
    small = spki(SMALL.public_key())
    assert keys.parse_spki(small, profile=Profile.READ)[0] is RsaAlgorithm.OAEP_SHA256
    public = keys.public_from_private(RsaAlgorithm.OAEP_SHA256, pkcs8(RSA))
    three = rsa.RSAPublicNumbers(3, RSA.public_key().public_numbers().n).public_key()
    longer = b"\x30\x83\x00" + public[2:]
    number = RSA.public_key().public_numbers().n
    for modulus in (number + 1, 1 << 3071, (1 << 3072) - 1):
        with pytest.raises(ProfileError, match="small factor") as caught:
            keys.parse_spki(rsa_spki(tlv.seq(tlv.integer(modulus), tlv.integer(65537))))
        assert caught.value.rule == "CRT-009"
    for bad in (small, spki(three), rsa_spki(longer), rsa_spki(b""), rsa_spki(bytes(9000)), rsa_spki(public + b"\0")):
        with pytest.raises(ProfileError) as caught:
            keys.parse_spki(bad)
        assert caught.value.rule == "CRT-009"
    with pytest.raises(ProfileError):
        keys.parse_spki(rsa_spki(public, parameters=None))
    with pytest.raises(ProfileError):
        keys.load_private(pkcs8(rsa.generate_private_key(public_exponent=65537, key_size=1024)))


def rsa_spki(public: bytes, parameters: asn1.Null | None = asn1.Null()) -> bytes:  # noqa: B008  a constant
    """Return a SubjectPublicKeyInfo with any RSA key."""
    identifier = asn1.AlgorithmIdentifier(algorithm=oids.RSA_ENCRYPTION, parameters=parameters)
    bits = asn1.BitString(public, 0)
    return asn1.encode(asn1.SubjectPublicKeyInfo(algorithm=identifier, subject_public_key=bits))


def test_crt_009_bad_points() -> None:
    """CRT-009: points that are compressed, of another curve or of none, and curves that are not allowed."""
    alg = EcAlgorithm.P_256
    public = keys.public_from_private(alg, keys.generate(alg))
    private = keys.generate(alg)
    for bad in (
        b"\x02" + public[1:33],
        public[:-1],
        b"\x05" + public[1:],
        public[:-1] + bytes([public[-1] ^ 1]),
        b"\0",
    ):
        with pytest.raises(ProfileError) as caught:
            keys.parse_spki(keys.spki(alg, bad))
        assert caught.value.rule == "CRT-009"
        with pytest.raises(UnwrapError):
            keys.recover(alg, private, bad)
    for key in (ec.generate_private_key(ec.SECP521R1()), X25519PrivateKey.generate()):
        with pytest.raises(AlgorithmError):
            keys.parse_spki(spki(key.public_key()))
    for parameters in (None, asn1.Null()):
        identifier = asn1.AlgorithmIdentifier(algorithm=oids.EC_PUBLIC_KEY, parameters=parameters)
        bits = asn1.BitString(public, 0)
        with pytest.raises(ProfileError):
            keys.parse_spki(asn1.encode(asn1.SubjectPublicKeyInfo(algorithm=identifier, subject_public_key=bits)))


@pytest.mark.parametrize("kind", [MLKEM768PrivateKey, MLKEM1024PrivateKey])
def test_seeds_are_taken_out_of_pkcs8(kind: Any) -> None:
    """The seed form is the library's; of both forms the seed is taken if they agree; expanded alone is refused."""
    key = kind.generate()
    alg = KemAlgorithm.ML_KEM_768 if kind is MLKEM768PrivateKey else KemAlgorithm.ML_KEM_1024
    seed, public = key.private_bytes_raw(), key.public_key().public_bytes_raw()
    assert keys.load_private(pkcs8(key)) == (alg, seed)
    start = bytes(alg.public_size - 32)
    expanded = start + public + hashlib.sha3_256(public).digest() + seed[32:]
    both = asn1.encode(keys.SeedAndExpanded(seed=seed, expanded=expanded))
    assert keys.load_private(one_key(alg.oid, both)) == (alg, seed)
    other = asn1.encode(keys.SeedAndExpanded(seed=bytes(64), expanded=expanded))
    for bad in (other, asn1.encode(expanded), b"\x80\x01\x00", b"", b"\x30\x00", b"\x04"):
        with pytest.raises(KeymailboxError) as caught:
            keys.load_private(one_key(alg.oid, bad))
        assert caught.value.part is None or seed not in caught.value.part


def test_ml_kem_512_and_composite_in_pkcs8() -> None:
    """ML-KEM-512 is taken expanded, as its library needs it; the composite is 96 bytes as they are."""
    _, expanded = sorted(ml_kem_512.keygen(), key=len)
    alg = KemAlgorithm.ML_KEM_512
    both = asn1.encode(keys.SeedAndExpanded(seed=bytes(64), expanded=expanded))
    for form in (both, asn1.encode(expanded)):
        assert keys.load_private(one_key(alg.oid, form)) == (alg, expanded)
    with pytest.raises(ProfileError, match="expanded"):
        keys.load_private(one_key(alg.oid, b"\x80\x40" + bytes(64)))
    private = keys.generate(KemAlgorithm.COMPOSITE)
    assert keys.load_private(one_key(oids.ML_KEM_768_X25519, private)) == (KemAlgorithm.COMPOSITE, private)
    with pytest.raises(ProfileError):
        keys.load_private(one_key(oids.ML_KEM_768_X25519, private[:-1]))


@pytest.mark.parametrize("alg", [*ALGORITHMS.values()])
def test_no_error_tells_of_the_key(alg: KeyAlgorithm) -> None:
    """A private key that cannot be used does not show in the error."""
    short = one_key(oids.ML_KEM_768, tlv.context(0, b"SECRET", constructed=False))
    for bad in (b"\x30\x03SEC", b"SECRET" * 4000, b"", short):
        with pytest.raises(KeymailboxError) as caught:
            keys.load_private(bad)
        assert "SEC" not in str(caught.value) + repr(caught.value)
        assert caught.value.part is None
    with pytest.raises(ProfileError) as wrong:
        keys.public_from_private(alg, b"SECRET")
    assert "SECRET" not in str(wrong.value)


def test_other_private_keys() -> None:
    """Keys that are for something else are refused by name."""
    for key in (X25519PrivateKey.generate(), ec.generate_private_key(ec.SECP521R1())):
        with pytest.raises(AlgorithmError):
            keys.load_private(pkcs8(key))
