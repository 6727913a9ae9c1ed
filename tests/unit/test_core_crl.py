"""Revocation lists are the issuing CA's, full and fresh: each rule CRL-… broken once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc5280

from pki.core import crl
from pki.core.crl import Reason
from pki.core.errors import CertificateError, KeymailboxError, StaleError, UsageError
from pki.core.signatures import SignatureAlgorithm
from tests.kit.authority import DAY, NOW, Authority, authority


def test_crl_round_trip() -> None:
    """A list keeps number, times, serials and reasons; another decoder reads it."""
    found = authority().crl([5, 6])
    assert (found.number, found.this_update, found.next_update) == (7, NOW, NOW + DAY)
    assert {serial: entry.reason for serial, entry in found.revoked.items()} == {
        5: Reason.KEY_COMPROMISE,
        6: Reason.KEY_COMPROMISE,
    }
    der = authority().crl_der([5, 6])
    other, rest = ber_decode(der, asn1Spec=rfc5280.CertificateList())
    assert not rest
    assert ber_encode(other) == der


def test_crl_001_signature_and_issuer() -> None:
    """CRL-001: another CA's list, and a list altered by one bit, are refused."""
    with pytest.raises(CertificateError) as caught:
        crl.verify_crl(authority().crl_der(), issuing_der=Authority(seed=101).issuing_der, now=NOW)
    assert caught.value.rule == "CRL-001"
    changed = bytearray(authority().crl_der([5]))
    changed[-1] ^= 1
    with pytest.raises(CertificateError) as caught:
        crl.verify_crl(bytes(changed), issuing_der=authority().issuing_der, now=NOW)
    assert caught.value.rule == "CRL-001"


def test_crl_001_unused_bits() -> None:
    """CRL-001: unused bits, for which the decoder would find room after a zero, are refused."""
    der = next(der for serial in range(99) if not (der := authority().crl_der([serial + 1]))[-1] & 1)
    changed = bytearray(der)
    changed[-SignatureAlgorithm.ML_DSA_65.size - 1] = 1
    with pytest.raises(CertificateError) as caught:
        crl.verify_crl(bytes(changed), issuing_der=authority().issuing_der, now=NOW)
    assert caught.value.rule == "CRL-001"


def test_crl_002_critical_extension() -> None:
    """CRL-002: a delta list, which is marked by a critical extension, is not taken for a full one."""
    issuing = cx509.load_der_x509_certificate(authority().issuing_der)
    delta = (
        cx509.CertificateRevocationListBuilder()
        .issuer_name(issuing.subject)
        .last_update(NOW)
        .next_update(NOW + DAY)
        .add_extension(cx509.CRLNumber(8), critical=False)
        .add_extension(cx509.DeltaCRLIndicator(7), critical=True)
        .sign(authority().crl_key, None)
    )
    with pytest.raises(CertificateError) as caught:
        crl.verify_crl(delta.public_bytes(Encoding.DER), issuing_der=authority().issuing_der, now=NOW)
    assert caught.value.rule == "CRL-002"


def test_crl_003_stale() -> None:
    """CRL-003: past its nextUpdate a list says nothing."""
    der = authority().crl_der()
    crl.verify_crl(der, issuing_der=authority().issuing_der, now=NOW + DAY)
    with pytest.raises(StaleError) as caught:
        crl.verify_crl(der, issuing_der=authority().issuing_der, now=NOW + DAY + timedelta(seconds=1))
    assert caught.value.rule == "CRL-003"


def test_reasons() -> None:
    """An owner may give five reasons, and no other."""
    assert [crl.parse_reason(number) for number in (0, 1, 3, 4, 5)] == list(Reason)
    for number in (-1, 2, 6, 9):
        with pytest.raises(UsageError):
            crl.parse_reason(number)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    """No single bit of a list can be changed unseen."""
    der = bytearray(authority().crl_der([5]))
    bit = data.draw(st.integers(0, len(der) * 8 - 1))
    der[bit // 8] ^= 1 << bit % 8
    with pytest.raises(KeymailboxError):
        crl.verify_crl(bytes(der), issuing_der=authority().issuing_der, now=NOW)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_junk(junk: bytes) -> None:
    """Junk raises our errors only."""
    with pytest.raises(KeymailboxError):
        crl.verify_crl(junk, issuing_der=authority().issuing_der, now=NOW)
