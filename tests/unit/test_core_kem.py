"""The key encapsulation agrees with public vectors and with another implementation, and refuses bad keys."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pqcrypto.kem import ml_kem_768, ml_kem_1024

from pki.core import asn1, kem, oids
from pki.core.errors import AlgorithmError, MalformedError, ProfileError, UnwrapError
from pki.core.kem import MADE, KemAlgorithm

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "xwing.json").read_text())["vectors"]
ALGORITHMS = MADE
LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_vectors_of_the_x_wing_draft(vector: dict[str, str]) -> None:
    """The combiner is X-Wing's, so its vectors hold; only the private key is expanded (SHAKE256) first."""
    private = hashlib.shake_256(bytes.fromhex(vector["sk"])).digest(96)
    assert kem.public_from_private(KemAlgorithm.COMPOSITE, private) == bytes.fromhex(vector["pk"])
    shared = kem.decapsulate(KemAlgorithm.COMPOSITE, private, bytes.fromhex(vector["ct"]))
    assert shared == bytes.fromhex(vector["ss"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_round_trip(algorithm: KemAlgorithm) -> None:
    """Both sides get the same 32 bytes, and all sizes are the declared ones."""
    private = kem.generate(algorithm)
    public = kem.public_from_private(algorithm, private)
    ciphertext, shared = kem.encapsulate(algorithm, public)
    assert (len(private), len(public), len(ciphertext)) == (
        algorithm.private_size,
        algorithm.public_size,
        algorithm.ciphertext_size,
    )
    assert len(shared) == 32
    assert kem.decapsulate(algorithm, private, ciphertext) == shared


@pytest.mark.parametrize(
    ("algorithm", "other"), [(KemAlgorithm.ML_KEM_768, ml_kem_768), (KemAlgorithm.ML_KEM_1024, ml_kem_1024)]
)
def test_another_implementation_agrees(algorithm: KemAlgorithm, other: Any) -> None:
    """What we wrap opens in pqcrypto, and the other way round."""
    public, private = _ordered(algorithm.public_size, *other.keygen())
    ciphertext, shared = kem.encapsulate(algorithm, public)
    assert other.decaps(private, ciphertext) == shared
    ours = kem.generate(algorithm)
    theirs = other.encaps(kem.public_from_private(algorithm, ours))
    shared, ciphertext = sorted(theirs, key=len)
    assert kem.decapsulate(algorithm, ours, ciphertext) == shared


def test_the_composite_put_together_from_other_parts() -> None:
    """A composite ciphertext made with pqcrypto, X25519 and SHA3-256 by hand opens with our key."""
    private = kem.generate()
    public = kem.public_from_private(KemAlgorithm.COMPOSITE, private)
    shared_ml, ciphertext_ml = sorted(ml_kem_768.encaps(public[:1184]), key=len)
    ephemeral = X25519PrivateKey.generate()
    sent = ephemeral.public_key().public_bytes_raw()
    shared_x = ephemeral.exchange(X25519PublicKey.from_public_bytes(public[1184:]))
    expected = hashlib.sha3_256(shared_ml + shared_x + sent + public[1184:] + b"\\.//^\\").digest()
    assert kem.decapsulate(KemAlgorithm.COMPOSITE, private, ciphertext_ml + sent) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_crt_009_malformed_public_keys(algorithm: KemAlgorithm) -> None:
    """CRT-009: a key of the wrong size, or with a coefficient that is not reduced, is refused."""
    public = kem.public_from_private(algorithm, kem.generate(algorithm))
    kem.check_public(algorithm, public)
    for bad in (b"", public[:-1], public + b"\0", b"\xff\xff\xff" + public[3:]):
        with pytest.raises(ProfileError) as caught:
            kem.check_public(algorithm, bad)
        assert caught.value.rule == "CRT-009"


@pytest.mark.parametrize("point", LOW_ORDER, ids=range(len(LOW_ORDER)))
def test_crt_009_low_order_points(point: bytes) -> None:
    """CRT-009: an X25519 part that makes every shared secret zero is refused, in keys and in ciphertexts."""
    private = kem.generate()
    public = kem.public_from_private(KemAlgorithm.COMPOSITE, private)
    with pytest.raises(ProfileError) as caught:
        kem.check_public(KemAlgorithm.COMPOSITE, public[:-32] + point)
    assert caught.value.rule == "CRT-009"
    ciphertext, _ = kem.encapsulate(KemAlgorithm.COMPOSITE, public)
    with pytest.raises(UnwrapError):
        kem.decapsulate(KemAlgorithm.COMPOSITE, private, ciphertext[:-32] + point)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_changed_ciphertext_yields_another_secret(algorithm: KemAlgorithm) -> None:
    """Implicit rejection: a flipped bit is no error here, the wrapped key simply does not open."""
    private = kem.generate(algorithm)
    ciphertext, shared = kem.encapsulate(algorithm, kem.public_from_private(algorithm, private))
    for place in (0, len(ciphertext) // 2, len(ciphertext) - 1):
        changed = bytearray(ciphertext)
        changed[place] ^= 1
        assert kem.decapsulate(algorithm, private, bytes(changed)) != shared
    with pytest.raises(UnwrapError):
        kem.decapsulate(algorithm, private, ciphertext[:-1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_public_key_info(algorithm: KemAlgorithm) -> None:
    """A SubjectPublicKeyInfo comes back as it went in; parameters, BER and foreign algorithms are refused."""
    public = kem.public_from_private(algorithm, kem.generate(algorithm))
    der = kem.spki(algorithm, public)
    assert kem.parse_spki(der) == (algorithm, public)
    assert kem.ski(der) == hashlib.sha256(public).digest()[:20]
    with pytest.raises(MalformedError):
        kem.parse_spki(der + b"\0")
    for parameters, oid, error in ((asn1.Null(), algorithm.oid, ProfileError), (None, oids.ML_DSA_65, AlgorithmError)):
        info = asn1.SubjectPublicKeyInfo(
            algorithm=asn1.AlgorithmIdentifier(algorithm=oid, parameters=parameters),
            subject_public_key=asn1.BitString(public, 0),
        )
        with pytest.raises(error):
            kem.parse_spki(asn1.encode(info))


def test_private_key_of_the_wrong_size() -> None:
    """The size of a private key is checked, and the error does not show the key."""
    with pytest.raises(ProfileError) as caught:
        kem.public_from_private(KemAlgorithm.COMPOSITE, b"\x41" * 64)
    assert "AAAA" not in str(caught.value)


def _ordered(public_size: int, *keys: bytes) -> tuple[bytes, bytes]:
    public, private = sorted(keys, key=lambda key: len(key) != public_size)
    return public, private
