"""Key encapsulation against public vectors: the composite draft's, and NIST's for ML-KEM."""

from __future__ import annotations

import pytest

from pki.core import kem
from pki.core.kem import KemAlgorithm
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
