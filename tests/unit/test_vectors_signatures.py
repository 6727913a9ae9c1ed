"""Signatures against public vectors: the RFCs' and the composite draft's examples, and NIST's keys for ML-DSA."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA65PrivateKey, MLDSA87PrivateKey

from pki.core import asn1, oids, signatures, signing
from pki.core.errors import ProfileError, SignatureError
from pki.core.profile import Profile
from pki.core.signatures import SignatureAlgorithm
from pki.core.signing import SignerName
from tests.kit.vectors import answers, public

KATS = [
    (SignatureAlgorithm.ML_DSA_44, MLDSA44PrivateKey, "asymmetric/MLDSA/kat_MLDSA_44_det_pure.rsp"),
    (SignatureAlgorithm.ML_DSA_65, MLDSA65PrivateKey, "asymmetric/MLDSA/kat_MLDSA_65_det_pure.rsp"),
    (SignatureAlgorithm.ML_DSA_87, MLDSA87PrivateKey, "asymmetric/MLDSA/kat_MLDSA_87_det_pure.rsp"),
]
SEED = bytes(range(32))
"""The seed of the keys in the examples of RFC 9881 and RFC 9882."""


@pytest.mark.parametrize(
    ("file", "entry", "algorithm"),
    [
        ("rfc9881", "certificate_65", SignatureAlgorithm.ML_DSA_65),
        ("rfc9909", "certificate_128s", SignatureAlgorithm.SLH_DSA_SHA2_128S),
        ("composite-sigs", "certificate_p256", SignatureAlgorithm.ML_DSA_65_ECDSA_P256),
        ("composite-sigs", "certificate_ed25519", SignatureAlgorithm.ML_DSA_65_ED25519),
    ],
)
def test_certificates_of_the_rfcs(file: str, entry: str, algorithm: SignatureAlgorithm) -> None:
    """A certificate's signature verifies under its own key, and no longer when one bit is another."""
    outer = asn1.decode(asn1.Certificate, public(file)[entry], what="The certificate")
    tbs = asn1.encode(outer.tbs)
    inner = asn1.decode(asn1.TbsCertificate, tbs, what="The certificate")
    assert signatures.algorithm_of(outer.signature_algorithm, rule="CRT-002") is algorithm
    assert signatures.algorithm_of(inner.signature, rule="CRT-002") is algorithm
    key = signatures.load(asn1.encode(inner.public_key))
    assert key.algorithm is algorithm
    signature = outer.signature.as_bytes()
    key.verify(signature, tbs)
    with pytest.raises(SignatureError):
        key.verify(signature, tbs[:-1] + bytes([tbs[-1] ^ 1]))
    with pytest.raises(SignatureError):
        key.verify(signature[:-1] + bytes([signature[-1] ^ 1]), tbs)


@pytest.mark.parametrize("other", ["p256", "ed25519"])
def test_the_signatures_of_the_composite_draft(other: str) -> None:
    """The draft's composite signatures verify, over the draft's message alone."""
    vectors = public("composite-sigs")
    tbs = asn1.decode(asn1.Certificate, vectors[f"certificate_{other}"], what="The certificate").tbs
    key = signatures.load(asn1.encode(asn1.decode(asn1.TbsCertificate, asn1.encode(tbs), what="It").public_key))
    key.verify(vectors[f"signature_{other}"], vectors["message"])
    with pytest.raises(SignatureError):
        key.verify(vectors[f"signature_{other}"], vectors["message"] + b".")


def test_the_seeds_of_rfc_9881() -> None:
    """The examples' keys are those of their seed."""
    tbs = asn1.decode(asn1.Certificate, public("rfc9881")["certificate_65"], what="The certificate").tbs
    inner = asn1.decode(asn1.TbsCertificate, asn1.encode(tbs), what="The certificate")
    key = MLDSA65PrivateKey.from_seed_bytes(SEED).public_key()
    assert signatures.from_raw(key.public_bytes_raw()).spki == asn1.encode(inner.public_key)
    assert SEED in public("rfc9881")["private_44"]


def test_the_signed_data_of_rfc_9882() -> None:
    """RFC 9882's SignedData is read and verified, and refused under another name or key, and by the server."""
    der = public("rfc9882")["signed_44"]
    signed = signing.parse(der, content_types={oids.DATA}, extra=(), profile=Profile.READ)
    raw = MLDSA44PrivateKey.from_seed_bytes(SEED).public_key().public_bytes_raw()
    key = signatures.from_raw(raw, SignatureAlgorithm.ML_DSA_44)
    assert signed.signer_serial is not None
    name = SignerName(b"", *signed.signer_serial)
    assert signed.verify(key, name=name).content == b"ML-DSA-44 signed-data example with signed attributes"
    with pytest.raises(SignatureError):
        signed.verify(key, name=SignerName(b"", name.issuer_der, name.serial + 1))
    other = MLDSA44PrivateKey.from_seed_bytes(bytes(32)).public_key().public_bytes_raw()
    with pytest.raises(SignatureError):
        signed.verify(signatures.from_raw(other, SignatureAlgorithm.ML_DSA_44), name=name)
    with pytest.raises(ProfileError) as caught:
        signing.parse(der, content_types={oids.DATA}, extra=())
    assert caught.value.rule == "SIG-001"


@pytest.mark.parametrize(("algorithm", "kind", "path"), KATS, ids=[algorithm.name for algorithm, _, _ in KATS])
def test_known_answers_of_ml_dsa(algorithm: SignatureAlgorithm, kind: type[MLDSA65PrivateKey], path: str) -> None:
    """Keys are NIST's; its signatures, all made for a context, are refused without one (FIPS 204 §5.2)."""
    cases = 0
    for case in answers(path):
        private = kind.from_seed_bytes(bytes.fromhex(case["xi"]))
        raw = bytes.fromhex(case["pk"])
        assert private.public_key().public_bytes_raw() == raw
        key = signatures.from_raw(raw, algorithm)
        message, signed = bytes.fromhex(case["msg"]), bytes.fromhex(case["sm"])
        signature, context = signed[: algorithm.size], bytes.fromhex(case["ctx"])
        private.public_key().verify(signature, message, context)
        with pytest.raises(SignatureError):
            key.verify(signature, message)
        key.verify(private.sign(message), message)
        cases += 1
    assert cases == 100
