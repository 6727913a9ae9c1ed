"""Revocation lists are the issuing CA's, full and fresh: each rule CRL-… broken once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc5280

from pki.core import crl
from pki.core.crl import Reason, Revoked
from pki.core.errors import CertificateError, KeymailboxError, StaleError, UsageError
from pki.core.signatures import SignatureAlgorithm
from tests.kit import forge_pki as pki
from tests.kit import tlv
from tests.kit.authority import DAY, NOW, Authority, authority
from tests.vectors.cases.status import POINT, delta


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
        .sign(MLDSA65PrivateKey.from_seed_bytes(bytes([authority().seed + 1]) * 32), None)
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


def test_crl_002_hidden_deltas() -> None:
    """CRL-002: a delta list whose mark is not critical, and an entry about another issuer, are no full list either."""
    issuing = pki.ca("Test issuing CA", pki.ISSUING, ("Test root", pki.ROOT), serial=2, path=0)
    other = pki.extension("2.5.29.29", tlv.seq(tlv.context(4, pki.ISSUER_NAME)), critical=True)
    for der in (delta(critical=False), pki.crl([5], entry=other)):
        with pytest.raises(CertificateError) as caught:
            crl.verify_crl(der, issuing_der=issuing, now=NOW)
        assert caught.value.rule == "CRL-002"


def test_crl_004_what_a_delta_list_says() -> None:
    """CRL-004: a full list, and a list with one more critical extension, are no delta list."""
    issuing = pki.ca("Test issuing CA", pki.ISSUING, ("Test root", pki.ROOT), serial=2, path=0)
    for der in (pki.crl(), delta(critical=False), delta(extra=[POINT])):
        with pytest.raises(CertificateError) as caught:
            crl.verify_delta(der, issuing_der=issuing, now=NOW)
        assert caught.value.rule == "CRL-004"
    with pytest.raises(StaleError) as stale:
        crl.verify_delta(delta(), issuing_der=issuing, now=NOW + 2 * DAY)
    assert stale.value.rule == "CRL-003"


def test_crl_005_to_007_what_it_builds_on() -> None:
    """CRL-005, -006, -007: a delta list is refused on an older base, when it is not newer, and for another CA."""
    full = authority().crl([5])
    later = Authority(seed=101).crl([5])
    for base, number, onto, rule in ((8, 9, full, "CRL-005"), (6, 7, full, "CRL-006"), (7, 8, later, "CRL-007")):
        made = authority().delta_der([6], number=number, base=base)
        change = crl.verify_delta(made, issuing_der=authority().issuing_der, now=NOW)
        with pytest.raises((CertificateError, StaleError)) as caught:
            crl.apply_delta(onto, change)
        assert caught.value.rule == rule


def test_a_list_with_its_changes_is_the_list_to_come() -> None:
    """What was revoked since is added, what left is gone, number and times are the delta list's."""
    full = authority().crl([5, 6])
    at = NOW + timedelta(hours=1)
    made = authority().delta_der([9], number=12, base=3, removed=[5], at=at)
    change = crl.verify_delta(made, issuing_der=authority().issuing_der, now=at)
    whole = crl.apply_delta(full, change)
    assert (change.base, set(change.revoked), change.removed) == (3, {9}, {5})
    assert (whole.number, whole.this_update, whole.next_update, set(whole.revoked)) == (12, at, at + DAY, {6, 9})


_REVOKED = st.dictionaries(
    st.integers(1, 40), st.builds(Revoked, st.sampled_from([NOW - DAY, NOW]), st.sampled_from(Reason)), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(before=_REVOKED, after=_REVOKED)
def test_base_and_delta_are_the_full_list(before: dict[int, Revoked], after: dict[int, Revoked]) -> None:
    """Whatever changes between two full lists, the first with the delta list to it says what the second says."""
    ca = authority()

    def made(number: int, revoked: dict[int, Revoked], **more: Any) -> bytes:
        times = {"this_update": NOW, "next_update": NOW + DAY}
        tbs = crl.crl_tbs(ca.issuing_der, number=number, revoked=revoked.items(), **times, **more)
        return crl.assemble(tbs, ca.key.sign(tbs), ca.issuing_der)

    base = crl.verify_crl(made(1, before), issuing_der=ca.issuing_der, now=NOW)
    full = crl.verify_crl(made(2, after), issuing_der=ca.issuing_der, now=NOW)
    new, gone = crl.changes(base, after)
    change = crl.verify_delta(made(2, new, base=1, removed=gone), issuing_der=ca.issuing_der, now=NOW)
    assert crl.apply_delta(base, change) == full


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
