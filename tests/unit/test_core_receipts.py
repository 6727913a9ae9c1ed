"""Receipts, refusals and revocation requests: each rule RCP-… and REV-… broken once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509 as cx509
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode as ber_decode
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc7191

from pki.core import asn1, deposits, oids, receipts, revocations, signing
from pki.core.crl import Reason
from pki.core.errors import KeymailboxError, ProfileError, SignatureError, UsageError, WrongPartyError
from pki.core.ids import DepositId, fingerprint
from pki.core.receipts import ReceiptKind, RefusalReason
from pki.core.x509 import name_der
from tests.kit.authority import NOW, acme, globex

DEPOSIT = deposits.parse_deposit(acme().deposit(globex()))
SIGNER: dict[str, Any] = {"signer_ski": globex().ski, "sign": globex().key.sign, "signing_time": NOW}
RECEIPT = receipts.compose_receipt(DEPOSIT.id, DEPOSIT.sha512, globex().address, **SIGNER)
REFUSAL = receipts.compose_refusal(DEPOSIT.id, DEPOSIT.sha512, globex().address, RefusalReason.CANNOT_OPEN, **SIGNER)
FINGERPRINT = fingerprint(globex().encryption_der)
REVOCATION = revocations.compose_revocation(FINGERPRINT, Reason.KEY_COMPROMISE, **SIGNER)


def verify(der: bytes, **changes: Any) -> receipts.VerifiedReceipt:
    """Verify an answer for the deposit, with something changed."""
    fields: dict[str, Any] = {
        "identity_key": globex().key.public,
        "recipient": globex().address,
        "deposit": DEPOSIT.id,
        "sha512": DEPOSIT.sha512,
        **changes,
    }
    return receipts.parse_receipt(der).verify(fields.pop("identity_key"), **fields)


def test_receipt() -> None:
    """A receipt says who received which deposit."""
    found = verify(RECEIPT)
    assert (found.kind, found.deposit_id, found.received_by, found.reason) == (
        ReceiptKind.RECEIPT,
        DEPOSIT.id,
        globex().address,
        None,
    )


@pytest.mark.parametrize("reason", list(RefusalReason))
def test_refusal(reason: RefusalReason) -> None:
    """A refusal says why, and pyasn1 reads the same reason with RFC 7191's types."""
    der = receipts.compose_refusal(DEPOSIT.id, DEPOSIT.sha512, globex().address, reason, **SIGNER)
    found = verify(der)
    assert (found.kind, found.reason) == (ReceiptKind.REFUSAL, reason)
    content = receipts.parse_receipt(der).signed.content
    error, rest = ber_decode(content, asn1Spec=rfc7191.KeyPackageError())
    assert not rest
    assert ber_encode(error) == content
    assert int(error["errorCode"]["enum"]) == reason.number
    assert bytes(error["errorOf"]["pkgID"]) == bytes.fromhex(DEPOSIT.id)


def test_another_decoder_reads_a_receipt() -> None:
    """The receipt is RFC 7191's KeyPackageReceipt."""
    content = receipts.parse_receipt(RECEIPT).signed.content
    found, rest = ber_decode(content, asn1Spec=rfc7191.KeyPackageReceipt())
    assert not rest
    assert ber_encode(found) == content
    assert bytes(found["receivedBy"]["sirenValue"]) == name_der(globex().address)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([RECEIPT, REFUSAL, REVOCATION]), st.data())
def test_any_flipped_bit_is_refused(der: bytes, data: st.DataObject) -> None:
    """No single bit can be changed unseen."""
    bit = data.draw(st.integers(0, len(der) * 8 - 1))
    changed = bytearray(der)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(KeymailboxError):
        if der is REVOCATION:
            revocations.parse_revocation(bytes(changed)).verify(globex().key.public)
        else:
            verify(bytes(changed))


def signed(content_type: Any, content: Any, digest: bytes = DEPOSIT.sha512) -> bytes:
    """Return a well signed answer with any content."""
    extra = {oids.DEPOSIT_DIGEST: asn1.encode(digest)}
    return signing.sign(content_type, asn1.encode(content), extra=extra, **SIGNER)


def of_receipt(**changes: Any) -> bytes:
    """Return a receipt with fields changed."""
    content = asn1.decode(asn1.KeyPackageReceipt, receipts.parse_receipt(RECEIPT).signed.content, what="x")
    return signed(oids.KEY_PACKAGE_RECEIPT, replace(content, **changes))


def of_refusal(**changes: Any) -> bytes:
    """Return a refusal with fields changed."""
    content = asn1.decode(asn1.KeyPackageError, receipts.parse_receipt(REFUSAL).signed.content, what="x")
    return signed(oids.KEY_PACKAGE_ERROR, replace(content, **changes))


def entity(value: bytes, kind: Any = oids.SIREN_DN) -> asn1.EntityName:
    """Return an entity's name."""
    return asn1.EntityName(kind=kind, value=value)


def common_name(text: str) -> bytes:
    """Return a distinguished name of one common name."""
    return cx509.Name([cx509.NameAttribute(cx509.NameOID.COMMON_NAME, text)]).public_bytes()


BROKEN: list[tuple[str, bytes]] = [
    ("RCP-001", bytes(receipts.MAX_RECEIPT + 1)),
    ("RCP-001", of_receipt(version=1)),
    ("RCP-001", of_refusal(version=3)),
    ("RCP-002", of_receipt(receipt_of=b"short")),
    ("RCP-002", of_refusal(error_of=None)),
    ("RCP-002", of_refusal(error_of=bytes(17))),
    ("RCP-002", of_refusal(error_code=asn1.tlv(b"\x0a\x01\x63"))),
    ("RCP-002", of_refusal(error_code=asn1.tlv(b"\x02\x01\x47"))),
    ("RCP-003", of_receipt(received_by=entity(name_der(globex().address), oids.DATA))),
    ("RCP-003", of_receipt(received_by=entity(common_name("globex/main")))),
    ("RCP-003", of_refusal(error_by=entity(common_name("globex")))),
]


@pytest.mark.parametrize(("rule", "der"), BROKEN, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(BROKEN)])
def test_broken_rule(rule: str, der: bytes) -> None:
    """Each rule of an answer's form, broken once under a good signature, names itself."""
    with pytest.raises(ProfileError) as caught:
        receipts.parse_receipt(der)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("RCP-004", lambda: {"deposit": DepositId("00" * 16)}),
        ("RCP-004", lambda: {"recipient": acme().address}),
        ("RCP-005", lambda: {"sha512": bytes(64)}),
    ],
)
def test_an_answer_to_something_else(rule: str, change: Callable[[], dict[str, Any]]) -> None:
    """RCP-004, RCP-005: an answer counts for its own deposit, its own recipient and exactly these bytes."""
    with pytest.raises(WrongPartyError) as caught:
        verify(RECEIPT, **change())
    assert caught.value.rule == rule


def test_a_forged_answer() -> None:
    """SIG-006: the sender cannot write its own receipt."""
    with pytest.raises(SignatureError):
        verify(RECEIPT, identity_key=acme().key.public)


# Revocation requests


def test_revocation() -> None:
    """A revocation request names certificate, reason and time."""
    found = revocations.parse_revocation(REVOCATION).verify(globex().key.public)
    assert (found.named.fingerprint, found.reason, found.requested) == (FINGERPRINT, Reason.KEY_COMPROMISE, NOW)
    with pytest.raises(SignatureError):
        revocations.parse_revocation(REVOCATION).verify(acme().key.public)


@pytest.mark.parametrize("changes", [{"version": 2}, {"fingerprint": bytes(31)}, None])
def test_rev_001(changes: dict[str, Any] | None) -> None:
    """REV-001: version 1, one certificate, and not too large."""
    if changes is None:
        der = bytes(revocations.MAX_REVOCATION + 1)
    else:
        content = asn1.decode(asn1.RevocationRequest, revocations.parse_revocation(REVOCATION).signed.content, what="x")
        der = signing.sign(oids.REVOCATION_REQUEST, asn1.encode(replace(content, **changes)), extra={}, **SIGNER)
    with pytest.raises(ProfileError) as caught:
        revocations.parse_revocation(der)
    assert caught.value.rule == "REV-001"


def test_an_unknown_reason() -> None:
    """A reason that an owner may not give is refused."""
    content = asn1.decode(asn1.RevocationRequest, revocations.parse_revocation(REVOCATION).signed.content, what="x")
    der = signing.sign(oids.REVOCATION_REQUEST, asn1.encode(replace(content, reason=6)), extra={}, **SIGNER)
    with pytest.raises(UsageError):
        revocations.parse_revocation(der)
