"""Key encapsulation against public vectors: the composite draft's, and NIST's for ML-KEM."""

from __future__ import annotations

import pytest

from pki.core import envelope, kem, keys
from pki.core.errors import AlgorithmError, KeymailboxError
from pki.core.kem import KemAlgorithm
from pki.core.profile import Profile
from tests.kit.vectors import answers, public

KATS = [
    (KemAlgorithm.ML_KEM_768, "asymmetric/MLKEM/kat_MLKEM_768.rsp"),
    (KemAlgorithm.ML_KEM_1024, "asymmetric/MLKEM/kat_MLKEM_1024.rsp"),
]


def test_the_vector_of_the_composite_draft() -> None:
    """A private key of the draft, which is the one inside its PKCS #8 form, decapsulates to the draft's secret."""
    vector = public("composite-kem")
    private = vector["dk"]
    assert kem.decapsulate(KemAlgorithm.COMPOSITE, private, vector["c"]) == vector["k"]
    assert vector["dk_pkcs8"].endswith(private)
    ciphertext, shared = kem.encapsulate(
        KemAlgorithm.COMPOSITE, kem.public_from_private(KemAlgorithm.COMPOSITE, private)
    )
    assert kem.decapsulate(KemAlgorithm.COMPOSITE, private, ciphertext) == shared


@pytest.mark.parametrize(("algorithm", "path"), KATS, ids=[algorithm.name for algorithm, _ in KATS])
def test_known_answers_of_ml_kem(algorithm: KemAlgorithm, path: str) -> None:
    """Keys, shared secrets and the secrets of implicit rejection are NIST's, case by case."""
    cases = 0
    for case in answers(path):
        private = bytes.fromhex(case["d"] + case["z"])
        public_key = bytes.fromhex(case["pk"])
        assert kem.public_from_private(algorithm, private) == public_key
        kem.check_public(algorithm, public_key)
        assert kem.decapsulate(algorithm, private, bytes.fromhex(case["ct"])).hex() == case["ss"]
        assert kem.decapsulate(algorithm, private, bytes.fromhex(case["ct_n"])).hex() == case["ss_n"]
        cases += 1
    assert cases == 1000


def test_known_answers_of_ml_kem_512() -> None:
    """ML-KEM-512 is only opened: shared secrets and those of implicit rejection are NIST's."""
    cases = 0
    for case in answers("asymmetric/MLKEM/kat_MLKEM_512.rsp"):
        private = bytes.fromhex(case["sk"])
        assert kem.decapsulate(KemAlgorithm.ML_KEM_512, private, bytes.fromhex(case["ct"])).hex() == case["ss"]
        assert kem.decapsulate(KemAlgorithm.ML_KEM_512, private, bytes.fromhex(case["ct_n"])).hex() == case["ss_n"]
        cases += 1
    assert cases == 1000


def test_the_keys_of_rfc_9935() -> None:
    """The private key of RFC 9935 belongs to its public key, which is read but never wrapped for."""
    vectors = public("rfc9935")
    algorithm, private = keys.load_private(vectors["private_512"])
    assert algorithm is KemAlgorithm.ML_KEM_512
    found, raw = keys.parse_spki(vectors["public_512"], profile=Profile.READ)
    assert (found, raw) == (algorithm, keys.public_from_private(algorithm, private))
    with pytest.raises(KeymailboxError):
        kem.encapsulate(KemAlgorithm.ML_KEM_512, raw)


def test_the_envelope_of_rfc_9936() -> None:
    """RFC 9936's envelope opens with RFC 9935's key; to a server it is outside of the profile."""
    der = public("rfc9936")["envelope_512"]
    algorithm, private = keys.load_private(public("rfc9935")["private_512"])
    parsed = envelope.parse(der, profile=Profile.READ)
    (recipient,) = parsed.recipients
    assert recipient.algorithm is algorithm
    content = envelope.unwrap(parsed, recipient.ski, lambda found, sent: keys.recover(found, private, sent))
    assert content == b"Hello, world!"
    with pytest.raises(AlgorithmError) as caught:
        envelope.parse(der)
    assert caught.value.rule == "ENV-004"
