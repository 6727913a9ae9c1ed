"""Receipts and refusals that another encoder made: ours are read as ours, and others' codes under READ only."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.x509 import ObjectIdentifier as Oid
from pyasn1.codec.der.encoder import encode as ber_encode
from pyasn1_alt_modules import rfc7191

from pki.core import asn1, deposits, oids, receipts, signing
from pki.core.errors import ProfileError, WrongPartyError
from pki.core.profile import Profile
from pki.core.receipts import ReceiptKind, RefusalReason, UnverifiedReceipt
from pki.core.x509 import name_der
from tests.kit.authority import NOW, acme, globex

DEPOSIT = deposits.parse_deposit(acme().deposit(globex()))
SIGNER: dict[str, Any] = {"signer_ski": globex().ski, "sign": globex().key.sign, "signing_time": NOW}


def their_receipt() -> bytes:
    """Return a KeyPackageReceipt of pyasn1's."""
    made = rfc7191.KeyPackageReceipt()
    made["receiptOf"]["pkgID"] = bytes.fromhex(DEPOSIT.id)
    made["receivedBy"]["sirenType"] = rfc7191.id_dn
    made["receivedBy"]["sirenValue"] = name_der(globex().address)
    return bytes(ber_encode(made))


def their_refusal(code: int | Oid, *, named: bool = True) -> bytes:
    """Return a KeyPackageError of pyasn1's."""
    made = rfc7191.KeyPackageError()
    if named:
        made["errorOf"]["pkgID"] = bytes.fromhex(DEPOSIT.id)
    made["errorBy"]["sirenType"] = rfc7191.id_dn
    made["errorBy"]["sirenValue"] = name_der(globex().address)
    if isinstance(code, Oid):
        made["errorCode"]["oid"] = code.dotted_string
    else:
        made["errorCode"]["enum"] = code
    return bytes(ber_encode(made))


def signed(content_type: Oid, content: bytes, *, digest: bool = True) -> bytes:
    """Return content signed by globex, with or without our attribute that names the deposit's bytes."""
    extra = {oids.DEPOSIT_DIGEST: asn1.encode(DEPOSIT.sha512)} if digest else {}
    return signing.sign(content_type, content, extra=extra, **SIGNER)


def read(
    content_type: Oid, content: bytes, profile: Profile = Profile.READ, *, digest: bool = True
) -> UnverifiedReceipt:
    """Parse content that globex signed."""
    return receipts.parse_receipt(signed(content_type, content, digest=digest), profile=profile)


def test_what_another_encoder_writes_is_what_we_write() -> None:
    """Receipt and refusals are byte for byte the same, and come in under the strict profile."""
    args = (DEPOSIT.id, DEPOSIT.sha512, globex().address)
    ours = receipts.parse_receipt(receipts.compose_receipt(*args, **SIGNER))
    assert ours.signed.content == their_receipt()
    assert read(oids.KEY_PACKAGE_RECEIPT, their_receipt(), Profile.STRICT).received_by == globex().address
    for reason in RefusalReason:
        ours = receipts.parse_receipt(receipts.compose_refusal(*args, reason, **SIGNER))
        assert ours.signed.content == their_refusal(reason.number)
        found = read(oids.KEY_PACKAGE_ERROR, their_refusal(reason.number), Profile.STRICT)
        assert (found.kind, found.reason, found.code) == (ReceiptKind.REFUSAL, reason, reason.code)
        assert found.received_by == globex().address


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (60, "ambiguousDecrypt"),
        (127, "other"),
        (200, "code 200"),
        (Oid("2.16.840.1.101.2.1.22.1"), "missingKeyType"),
        (Oid("1.3.6.1.4.1.99999.7"), "1.3.6.1.4.1.99999.7"),
    ],
)
def test_codes_that_are_not_ours(code: int | Oid, name: str) -> None:
    """READ shows another's code by its name; strict, RCP-002, knows our reasons alone."""
    content = their_refusal(code)
    found = read(oids.KEY_PACKAGE_ERROR, content)
    assert found.code is not None
    assert (found.reason, found.code.name, found.deposit_id) == (None, name, DEPOSIT.id)
    with pytest.raises(ProfileError) as caught:
        read(oids.KEY_PACKAGE_ERROR, content, Profile.STRICT)
    assert caught.value.rule == "RCP-002"


def test_a_refusal_of_nothing_is_none() -> None:
    """RCP-002: a refusal that does not say what it refuses answers nothing, in either profile."""
    for profile in Profile:
        with pytest.raises(ProfileError) as caught:
            read(oids.KEY_PACKAGE_ERROR, their_refusal(71, named=False), profile)
        assert caught.value.rule == "RCP-002"


def test_a_foreign_receipt_is_no_proof() -> None:
    """Without our attribute it names no bytes: it can be read, and settles nothing."""
    with pytest.raises(ProfileError):
        read(oids.KEY_PACKAGE_RECEIPT, their_receipt(), Profile.STRICT, digest=False)
    found = read(oids.KEY_PACKAGE_RECEIPT, their_receipt(), digest=False)
    assert (found.kind, found.digest) == (ReceiptKind.RECEIPT, b"")
    with pytest.raises(WrongPartyError) as caught:
        found.verify(globex().verified().identity_key, recipient=globex().address, deposit=DEPOSIT.id, sha512=b"")
    assert caught.value.rule == "RCP-005"
