"""The chain's upper end: root and issuing CA are what they say, in one encoding (rule CRT-014)."""

from __future__ import annotations

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from pki.core import signing, x509
from pki.core.errors import CertificateError, KeymailboxError, ProfileError
from pki.core.x509 import CertificateKind
from tests.kit.authority import DAY, NOW, acme, authority


def verify(leaf_der: bytes, *, issuing_der: bytes, root_der: bytes | None = None) -> None:
    """Verify a chain below the test's root, or below another one."""
    leaf = x509.parse_certificate(leaf_der)
    x509.verify_chain(leaf, issuing_der=issuing_der, root_der=root_der or authority().root_der, now=NOW)


def issuing(*, path_length: int = 0, serial: int = 2) -> bytes:
    """Return a certificate of the issuing CA, whose signature differs each time (FIPS 204 is hedged)."""
    tbs = x509.ca_tbs(
        "Test issuing CA",
        x509.spki_of(authority().key.public_key()),
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
    changed[-signing.SIGNATURE_SIZE - 1] = 1
    with pytest.raises(ProfileError) as caught:
        verify(acme().identity_der, issuing_der=bytes(changed))
    assert caught.value.rule == "CRT-014"


def test_a_serial_that_is_none() -> None:
    """CRT-014: a CA certificate with serial 0 is refused before anything else looks at it."""
    with pytest.raises(ProfileError) as caught:
        verify(acme().identity_der, issuing_der=issuing(serial=0))
    assert caught.value.rule == "CRT-014"


def test_a_ca_key_of_another_kind() -> None:
    """CRT-014: a chain of elliptic curves is not ours, however valid."""
    key = ec.generate_private_key(ec.SECP256R1())
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
        .sign(key, hashes.SHA256())
    ).public_bytes(Encoding.DER)
    tbs = x509.tbs_certificate(
        serial=5,
        issuer_der=root,
        address=acme().address,
        spki=acme().spki,
        not_before=NOW,
        not_after=NOW + DAY,
        kind=CertificateKind.IDENTITY,
    )
    leaf = x509.assemble(tbs, acme().key.sign(tbs))
    with pytest.raises(CertificateError) as caught:
        verify(leaf, issuing_der=root, root_der=root)
    assert caught.value.rule == "CRT-014"
