"""Deposits: each rule DEP-… broken once, and a key opens only where its sender meant it to."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc7191

from pki.core import asn1, deposits, envelope, oids, packages, policy, signing
from pki.core.certificates import CertificateKind
from pki.core.deposits import DEPOSIT_MOVES, Context, DepositState
from pki.core.errors import (
    ExpiredError,
    IllegalMoveError,
    KeymailboxError,
    MalformedError,
    ProfileError,
    RevokedError,
    SignatureError,
    StaleError,
    TooLargeError,
    UnwrapError,
    UsageError,
    WrongPartyError,
)
from pki.core.ids import KeyId
from pki.core.kem import MADE, KemAlgorithm
from pki.core.packages import KeyMaterial
from pki.core.x509 import name_der
from tests.kit.authority import DAY, KEY, NOW, PACKAGE_ID, acme, authority, globex

SECOND = timedelta(seconds=1)
CONTEXT = acme().context(globex())
DER = acme().deposit(globex())


def verify(der: bytes, **changes: Any) -> deposits.VerifiedDeposit:
    """Verify a deposit as the server does, with something changed."""
    fields: dict[str, Any] = {
        "sender": acme().verified(),
        "crl": authority().crl(),
        "recipient_skis": {globex().kem_ski},
        "now": NOW,
        **changes,
    }
    return policy.verify_deposit(deposits.parse_deposit(der), **fields)


def composed(
    *,
    inner: bytes | None = None,
    outer: bytes | None = None,
    request: asn1.PackageIdAndReceiptRequest | None = None,
    content: bytes | None = None,
    content_type: Any = oids.SYMMETRIC_KEY_PACKAGE,
    to: Any = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> bytes:
    """Return a deposit put together by hand, so that it can be put together wrongly."""
    outer = CONTEXT.encode() if outer is None else outer
    wrapped = envelope.wrap(
        packages.encode_package(KEY)[1] if content is None else content,
        content_type,
        to or [globex().recipient],
        context=outer if inner is None else inner,
    )
    extra = {
        oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST: asn1.encode(request or identified()),
        oids.DEPOSIT_CONTEXT: outer,
    }
    return signing.sign(
        oids.CONTENT_INFO,
        wrapped,
        extra=extra,
        signing_time=NOW,
        signer_ski=acme().ski,
        sign=sign or acme().key.sign,
    )


def identified(
    package_id: bytes = PACKAGE_ID, *, encrypt: bool = False, to: bytes | None = None, kind: Any = oids.SIREN_DN
) -> asn1.PackageIdAndReceiptRequest:
    """Return the id and receipt request of a deposit."""
    names = [asn1.EntityName(kind=kind, value=to or name_der(acme().address))]
    return asn1.PackageIdAndReceiptRequest(
        package_id=package_id, receipt_request=asn1.ReceiptRequest(encrypt=encrypt, receipts_to=names)
    )


@pytest.mark.parametrize("algorithm", MADE)
def test_the_way_of_a_key(algorithm: KemAlgorithm) -> None:
    """A key that was wrapped, signed and verified comes out as it went in."""
    recipient = acme(algorithm)
    der = globex().deposit(recipient)
    parsed = deposits.parse_deposit(der)
    assert (parsed.id, parsed.size, parsed.signer_ski) == (PACKAGE_ID.hex(), len(der), globex().ski)
    assert parsed.context == globex().context(recipient)
    verified = verify(der, sender=globex().verified(), recipient_skis=[recipient.kem_ski])
    assert deposits.open_deposit(verified, recipient.kem_ski, recipient.decapsulate) == KEY
    assert KEY.key not in der


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(DER) * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    """No single bit of a deposit can be changed unseen."""
    changed = bytearray(DER)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(KeymailboxError):
        verify(bytes(changed))


@settings(max_examples=50, deadline=None)
@given(
    key=st.binary(min_size=1, max_size=4000),
    purpose=st.text(max_size=128).filter(str.isprintable),
    version=st.integers(1, (1 << 31) - 1),
)
def test_any_key_and_context_come_back(key: bytes, purpose: str, version: int) -> None:
    """Whatever key, purpose and version: they come back unchanged."""
    context = replace(CONTEXT, purpose=purpose, key_version=version)
    der = deposits.compose(
        KeyMaterial(key),
        context,
        package_id=secrets.token_bytes(16),
        recipient=globex().recipient,
        signer_ski=acme().ski,
        sign=acme().key.sign,
        signing_time=NOW,
    )
    verified = verify(der)
    assert verified.context == context
    assert deposits.open_deposit(verified, globex().kem_ski, globex().decapsulate).key == key


def test_another_decoder_reads_the_receipt_request() -> None:
    """The id and receipt request are RFC 7191's, as pyasn1 reads and writes it."""
    value = deposits.parse_deposit(DER).signed.attributes[oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST]
    found, rest = ber_decode(value, asn1Spec=rfc7191.KeyPkgIdentifierAndReceiptReq())
    assert not rest
    assert ber_encode(found) == value
    assert bytes(found["pkgID"]) == PACKAGE_ID


@pytest.mark.parametrize("bad", [DER + b"\0", DER[:-1], b"", b"\x30\x80" + DER[4:] + b"\0\0", b"{}"], ids=range(5))
def test_malformed(bad: bytes) -> None:
    """Trailing bytes, cut off bytes, BER and JSON are malformed."""
    with pytest.raises(MalformedError):
        deposits.parse_deposit(bad)


def test_dep_001_size() -> None:
    """DEP-001: the size is checked before anything else."""
    deposits.parse_deposit(DER, max_size=len(DER))
    with pytest.raises(TooLargeError) as caught:
        deposits.parse_deposit(DER, max_size=len(DER) - 1)
    assert caught.value.rule == "DEP-001"
    with pytest.raises(TooLargeError):
        deposits.parse_deposit(bytes(deposits.MAX_DEPOSIT + 1))


def raw(**changes: Any) -> bytes:
    """Return a context with fields that `Context` would not make."""
    fields: dict[str, Any] = {
        "version": 1,
        "sender": "acme/eu-west",
        "recipient": "globex/main",
        "key_id": "k",
        "key_version": 1,
        "purpose": "p",
        "expires": asn1.GeneralizedTime(NOW + DAY),
        **changes,
    }
    return asn1.encode(asn1.DepositContext(**fields))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"sender": "acme"},
        {"recipient": "Globex/main"},
        {"recipient": "globex/main\n"},
        {"key_id": ""},
        {"key_id": "a b"},
        {"key_id": "k" * 129},
        {"key_version": 0},
        {"key_version": 1 << 31},
        {"key_version": -1},
        {"purpose": "x" * 129},
        {"purpose": "a\nb"},
        {"purpose": "a\u202eb"},
    ],
)
def test_dep_002_context(changes: dict[str, Any]) -> None:
    """DEP-002: each field of the context has its form."""
    deposits.parse_deposit(composed(outer=raw()))
    with pytest.raises(ProfileError) as caught:
        deposits.parse_deposit(composed(outer=raw(**changes)))
    assert caught.value.rule == "DEP-002"


NO_REQUEST = asn1.PackageIdAndReceiptRequest(package_id=PACKAGE_ID, receipt_request=None)
TO_TWO = replace(
    identified(),
    receipt_request=asn1.ReceiptRequest(
        encrypt=False, receipts_to=[asn1.EntityName(kind=oids.SIREN_DN, value=name_der(acme().address))] * 2
    ),
)


@pytest.mark.parametrize(
    "request_",
    [
        identified(b"short"),
        identified(bytes(17)),
        identified(encrypt=True),
        identified(to=name_der(globex().address)),
        identified(kind=oids.DATA),
        NO_REQUEST,
        TO_TWO,
    ],
    ids=range(7),
)
def test_dep_003_id_and_receipt_request(request_: asn1.PackageIdAndReceiptRequest) -> None:
    """DEP-003: a 16-byte id, and one receipt to the sender."""
    with pytest.raises(ProfileError) as caught:
        deposits.parse_deposit(composed(request=request_))
    assert caught.value.rule == "DEP-003"


def test_dep_004_what_is_inside() -> None:
    """DEP-004: another content type, or a context inside that differs, is refused (docs/adr/0001)."""
    for bad in (composed(content_type=oids.DATA), composed(inner=raw()), composed(inner=raw(), outer=raw(purpose="q"))):
        with pytest.raises(ProfileError) as caught:
            deposits.parse_deposit(bad)
        assert caught.value.rule == "DEP-004"


def test_an_envelope_signed_again_by_somebody_else() -> None:
    """DEP-004: who strips the signature and signs the envelope as its own does not become its sender."""
    stolen = deposits.parse_deposit(DER).signed.content
    theirs = globex()
    context = replace(CONTEXT, sender=theirs.address).encode()
    extra = {
        oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST: asn1.encode(identified(to=name_der(theirs.address))),
        oids.DEPOSIT_CONTEXT: context,
    }
    again = signing.sign(
        oids.CONTENT_INFO,
        stolen,
        extra=extra,
        signing_time=NOW,
        signer_ski=theirs.ski,
        sign=theirs.key.sign,
    )
    with pytest.raises(ProfileError) as caught:
        deposits.parse_deposit(again)
    assert caught.value.rule == "DEP-004"


def test_dep_005_sender() -> None:
    """DEP-005: only the certificate of the address and key that the deposit names verifies it."""
    with pytest.raises(WrongPartyError) as caught:
        verify(DER, sender=globex().verified())
    assert caught.value.rule == "DEP-005"
    with pytest.raises(WrongPartyError) as caught:
        verify(DER, sender=acme().verified(CertificateKind.ENCRYPTION))
    assert caught.value.rule == "DEP-005"


def test_dep_006_revoked_sender() -> None:
    """DEP-006: a revoked sender's deposit is refused."""
    with pytest.raises(RevokedError) as caught:
        verify(DER, crl=authority().crl([acme().verified().parsed.serial]))
    assert caught.value.rule == "DEP-006"
    verify(DER, crl=None)


def test_dep_007_recipients() -> None:
    """DEP-007: a deposit for another key, or for one more than the recipient's, is refused."""
    with pytest.raises(WrongPartyError) as caught:
        verify(DER, recipient_skis={acme().kem_ski})
    assert caught.value.rule == "DEP-007"
    with pytest.raises(WrongPartyError) as caught:
        verify(composed(to=[globex().recipient, acme().recipient]))
    assert caught.value.rule == "DEP-007"


def test_dep_008_and_009_expiry() -> None:
    """DEP-008, DEP-009: it expires in the future, and within 90 days."""
    verify(acme().deposit(globex(), expires=NOW + 90 * DAY))
    with pytest.raises(ExpiredError) as expired:
        verify(acme().deposit(globex(), expires=NOW))
    assert expired.value.rule == "DEP-008"
    with pytest.raises(ProfileError) as caught:
        verify(acme().deposit(globex(), expires=NOW + 91 * DAY))
    assert caught.value.rule == "DEP-009"


@pytest.mark.parametrize("signed", [NOW - DAY - SECOND, NOW + timedelta(minutes=5) + SECOND])
def test_dep_010_signing_time(signed: Any) -> None:
    """DEP-010: the server takes what was signed in the last day; a recipient may collect later."""
    der = acme().deposit(globex(), signing_time=signed)
    with pytest.raises(StaleError) as caught:
        verify(der)
    assert caught.value.rule == "DEP-010"
    if signed < NOW:
        verify(der, max_age=None)
    for fine in (NOW - DAY, NOW + timedelta(minutes=5)):
        verify(acme().deposit(globex(), signing_time=fine))


def test_sig_006_forged() -> None:
    """SIG-006: the right names under somebody else's signature are refused."""
    with pytest.raises(SignatureError) as caught:
        verify(composed(sign=globex().key.sign))
    assert caught.value.rule == "SIG-006"


def test_opening_fails_in_one_way() -> None:
    """A wrong key and a bad package inside are the same error."""
    for verified, party in ((verify(DER), acme()), (verify(composed(content=b"no package")), globex())):
        with pytest.raises(UnwrapError) as caught:
            deposits.open_deposit(verified, globex().kem_ski, party.decapsulate)
        assert (str(caught.value), caught.value.__cause__) == (str(UnwrapError()), None)
        assert caught.value.__context__ is None


def test_compose_refuses_what_parse_would() -> None:
    """The sender's side finds a bad id or context before it signs."""
    fields: dict[str, Any] = {
        "recipient": globex().recipient,
        "signer_ski": acme().ski,
        "sign": acme().key.sign,
        "signing_time": NOW,
    }
    with pytest.raises(UsageError):
        deposits.compose(KEY, CONTEXT, package_id=b"short", **fields)
    for bad in (replace(CONTEXT, key_id=KeyId("")), replace(CONTEXT, key_version=0)):
        with pytest.raises(ProfileError):
            deposits.compose(KEY, bad, package_id=PACKAGE_ID, **fields)


def test_context_drops_fractions() -> None:
    """A context's time has whole seconds, so it has one encoding."""
    context: Context = replace(CONTEXT, expires=NOW + timedelta(microseconds=5))
    assert deposits.decode_context(context.encode()).expires == NOW


def test_moves() -> None:
    """Every move is in the table or illegal; what is final stays."""
    for old in DepositState:
        for new in DepositState:
            if new in DEPOSIT_MOVES[old]:
                deposits.check_move(old, new)
            else:
                with pytest.raises(IllegalMoveError):
                    deposits.check_move(old, new)
    final = {state for state, moves in DEPOSIT_MOVES.items() if not moves}
    assert final == {
        DepositState.ACKNOWLEDGED,
        DepositState.REFUSED,
        DepositState.REJECTED,
        DepositState.SUPERSEDED,
        DepositState.EXPIRED,
        DepositState.WITHDRAWN,
    }
