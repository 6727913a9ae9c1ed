"""The chain's upper end: root and issuing CA are what they say, in one encoding (rule CRT-014)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ObjectIdentifier as Oid
from hypothesis import given, settings
from hypothesis import strategies as st
from pqcrypto.sign import ml_dsa_65, slh_dsa_sha2_128s
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc5280

from pki.core import asn1, authorities, composites, signatures, x509
from pki.core.errors import AlgorithmError, CertificateError, KeymailboxError, ProfileError
from pki.core.signatures import SignatureAlgorithm
from pki.core.x509 import CertificateKind
from tests.kit import forge_pki as pki
from tests.kit import tlv
from tests.kit.authority import DAY, NOW, Authority, Party, acme, authority, new_signing_key


def verify(leaf_der: bytes, *, issuing_der: bytes, root_der: bytes | None = None) -> None:
    """Verify a chain below the test's root, or below another one."""
    leaf = x509.parse_certificate(leaf_der)
    x509.verify_chain(leaf, issuing_der=issuing_der, root_der=root_der or authority().root_der, now=NOW)


def issuing(*, path_length: int = 0, serial: int = 2) -> bytes:
    """Return a certificate of the issuing CA, whose signature differs each time (FIPS 204 is hedged)."""
    tbs = x509.ca_tbs(
        "Test issuing CA",
        authority().key.public.spki,
        issuer_der=authority().root_der,
        serial=serial,
        not_before=NOW - DAY,
        not_after=NOW + DAY,
        path_length=path_length,
    )
    return x509.assemble(tbs, authority().root_key.sign(tbs))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_flipped_bit_of_an_issuer(data: st.DataObject) -> None:
    """CRT-014: no single bit of the issuing CA's certificate can be changed unseen."""
    der = bytearray(authority().issuing_der)
    bit = data.draw(st.integers(0, len(der) * 8 - 1))
    der[bit // 8] ^= 1 << bit % 8
    with pytest.raises(KeymailboxError):
        verify(acme().identity_der, issuing_der=bytes(der))


def test_unused_bits() -> None:
    """CRT-014: unused bits, for which the decoder would find room after a zero, are refused."""
    der = next(der for _ in range(99) if not (der := issuing())[-1] & 1)
    verify(acme().identity_der, issuing_der=der)
    changed = bytearray(der)
    changed[-SignatureAlgorithm.ML_DSA_65.size - 1] = 1
    with pytest.raises(ProfileError) as caught:
        verify(acme().identity_der, issuing_der=bytes(changed))
    assert caught.value.rule == "CRT-014"


def test_a_serial_that_is_none() -> None:
    """CRT-014: a CA certificate with serial 0 is refused before anything else looks at it."""
    with pytest.raises(ProfileError) as caught:
        verify(acme().identity_der, issuing_der=issuing(serial=0))
    assert caught.value.rule == "CRT-014"


def test_a_ca_key_of_another_kind() -> None:
    """CRT-014: a chain under a curve that is not in the profile is refused, however valid, and the reason is told."""
    key = ec.generate_private_key(ec.SECP521R1())
    name = cx509.Name([cx509.NameAttribute(cx509.NameOID.COMMON_NAME, "EC root")])
    none = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    usage_bits = cx509.KeyUsage(**none, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False)
    root = (
        cx509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(cx509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(usage_bits, critical=True)
        .add_extension(cx509.SubjectKeyIdentifier(bytes(20)), critical=False)
        .sign(key, hashes.SHA512())
    ).public_bytes(Encoding.DER)
    with pytest.raises(ProfileError) as caught:
        verify(acme().identity_der, issuing_der=root, root_der=root)
    assert caught.value.rule == "CRT-014"


S = SignatureAlgorithm
CHAINS = [
    (S.SLH_DSA_SHA2_128S, S.ML_DSA_65),
    (S.SLH_DSA_SHAKE_128F, S.ML_DSA_65),
    (S.ML_DSA_87, S.ML_DSA_65),
    (S.ECDSA_P384, S.ECDSA_P384),
    (S.ML_DSA_65, S.ECDSA_P384),
    (S.ML_DSA_65, S.ECDSA_P256),
    (S.RSA, S.RSA),
    (S.ECDSA_P384, S.RSA),
    (S.RSA, S.ML_DSA_65),
]


@pytest.mark.parametrize(("root", "issuer"), CHAINS, ids=lambda one: one.label)
def test_chains_of_other_algorithms(root: SignatureAlgorithm, issuer: SignatureAlgorithm) -> None:
    """A chain may be of any algorithm of an authority; the list under it too; another root does not pass for it."""
    made = Authority(41, root, issuer)
    party = Party(made, acme().address, 43)
    assert party.verified(now=NOW).identity_key == party.key.public
    assert party.verified(CertificateKind.ENCRYPTION).recipient.public_key == party.recipient.public_key
    assert made.crl([5]).revoked.keys() == {5}
    with pytest.raises(CertificateError) as caught:
        verify(party.identity_der, issuing_der=made.issuing_der, root_der=Authority(51, root, issuer).root_der)
    assert caught.value.rule == "CRT-014"
    changed = bytearray(made.issuing_der)
    changed[-9] ^= 1
    with pytest.raises(CertificateError):
        verify(party.identity_der, issuing_der=bytes(changed), root_der=made.root_der)


def test_crt_014_an_rsa_issuer_that_is_too_small() -> None:
    """CRT-014: an issuing CA with an RSA key of 2048 bits is refused, although its root signed it."""
    small = rsa.generate_private_key(65537, 2048).public_key()
    spki = small.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    good = asn1.decode(asn1.Certificate, issuing(), what="x")
    tbs = asn1.decode(asn1.TbsCertificate, asn1.encode(good.tbs), what="x")
    weak = replace(tbs, public_key=asn1.decode(asn1.SubjectPublicKeyInfo, spki, what="x"))
    der = asn1.encode(weak)
    with pytest.raises(ProfileError, match="3072 to 4096 bits") as caught:
        verify(acme().identity_der, issuing_der=x509.assemble(der, authority().root_key.sign(der)))
    assert caught.value.rule == "CRT-014"


def test_another_verifier_of_an_slh_dsa_root() -> None:
    """Pqcrypto alone verifies both signatures of an SLH-DSA root, found in the certificates by pyasn1."""
    made = Authority(61, S.SLH_DSA_SHA2_128S)
    root, issuing = (ber_decode(der, asn1Spec=rfc5280.Certificate())[0] for der in (made.root_der, made.issuing_der))
    key = root["tbsCertificate"]["subjectPublicKeyInfo"]["subjectPublicKey"].asOctets()
    for one in (root, issuing):
        assert str(one["signatureAlgorithm"]["algorithm"]) == "2.16.840.1.101.3.4.3.20"
        slh_dsa_sha2_128s.verify(key, ber_encode(one["tbsCertificate"]), one["signature"].asOctets())


@pytest.mark.parametrize("algorithm", [S.ML_DSA_65_ECDSA_P256, S.ML_DSA_65_ED25519], ids=lambda one: one.label)
def test_a_composite_root(algorithm: SignatureAlgorithm) -> None:
    """Others' composite CAs verify: both halves of the root's signature are needed."""
    pair = ml_dsa_65.keygen()
    classical = new_signing_key(S.ED25519 if algorithm is S.ML_DSA_65_ED25519 else S.ECDSA_P256)

    def sign(tbs: bytes, *, spoil: bool = False) -> bytes:
        label, represented = composites.represent(algorithm.oid, tbs)
        first = ml_dsa_65.sign(sorted(pair, key=len)[1], represented, label)
        return bytes(first) + classical.sign(represented + b"!" * spoil)

    public = signatures.from_raw(bytes(sorted(pair, key=len)[0]) + classical.public.raw, algorithm)
    fields = {"not_before": NOW - DAY, "not_after": NOW + DAY}
    root_tbs = x509.ca_tbs("Composite root", public.spki, issuer_der=None, serial=1, path_length=1, **fields)
    root = x509.assemble(root_tbs, sign(root_tbs))
    tbs = x509.ca_tbs(
        "Test issuing CA", authority().key.public.spki, issuer_der=root, serial=2, path_length=0, **fields
    )
    verify(acme().identity_der, issuing_der=x509.assemble(tbs, sign(tbs)), root_der=root)
    with pytest.raises(CertificateError) as caught:
        verify(acme().identity_der, issuing_der=x509.assemble(tbs, sign(tbs, spoil=True)), root_der=root)
    assert caught.value.rule == "CRT-014"


def test_a_composite_that_is_not_supported_is_named() -> None:
    """CRT-002, CRT-014: who meets a composite that cannot be verified here reads which one it is."""
    oid = Oid("1.3.6.1.5.5.7.6.54")
    other = asn1.AlgorithmIdentifier(algorithm=oid, parameters=None)
    for der, rule in ((acme().identity_der, "CRT-002"), (authority().issuing_der, "CRT-014")):
        outer = asn1.decode(asn1.Certificate, der, what="x")
        changed = asn1.encode(replace(outer, signature_algorithm=other))
        with pytest.raises(AlgorithmError, match="id-MLDSA87-ECDSA-P521-SHA512 is a composite that is not") as caught:
            if rule == "CRT-002":
                x509.parse_certificate(changed)
            else:
                verify(acme().identity_der, issuing_der=changed)
        assert caught.value.rule == rule


def test_an_algorithm_inside_and_another_outside() -> None:
    """CRT-002: what is named outside of the signature is what was named inside of it."""
    outer = asn1.decode(asn1.Certificate, acme().identity_der, what="x")
    with pytest.raises(ProfileError) as caught:
        x509.parse_certificate(asn1.encode(replace(outer, signature_algorithm=S.ML_DSA_87.identifier)))
    assert caught.value.rule == "CRT-002"


def test_crt_008_another_algorithm_than_the_issuer_s() -> None:
    """CRT-008: a certificate that names another algorithm than its issuer's key is not signed by it."""
    tbs = asn1.decode(asn1.TbsCertificate, x509.parse_certificate(acme().identity_der).tbs, what="x")
    changed = asn1.encode(replace(tbs, signature=S.ML_DSA_87.identifier))
    with pytest.raises(CertificateError) as caught:
        verify(x509.assemble(changed, authority().key.sign(changed)), issuing_der=authority().issuing_der)
    assert caught.value.rule == "CRT-008"


@pytest.mark.parametrize(
    ("above", "extra"),
    [(0, ()), (1, (pki.extension("2.5.29.30", tlv.seq(), critical=True),))],
    ids=["path length", "name constraints"],
)
def test_crt_014_what_limits_an_authority_is_obeyed(above: int, extra: tuple[bytes, ...]) -> None:
    """A root that may have no CA below it has none, and a critical extension that is not understood is refused."""
    self_signed = ("R", pki.ROOT)
    root = pki.ca("R", pki.ROOT, self_signed, serial=1, path=above)
    issuing = pki.ca("I", pki.ISSUING, self_signed, serial=2, path=0, extra=extra)
    with pytest.raises(KeymailboxError) as caught:
        authorities.verify_authorities(issuing_der=issuing, root_der=root, now=NOW)
    assert caught.value.rule == "CRT-014"
