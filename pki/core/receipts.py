"""Receipts and refusals: the recipient's signed answer to a deposit (RFC 7191)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids, signing, x509
from pki.core.der import located
from pki.core.errors import BadAddressError, ProfileError, WrongPartyError
from pki.core.ids import DepositId, deposit_id
from pki.core.signing import SignedObject, UnverifiedSigned
from pki.core.tenants import Address, parse_address
from pki.core.x509 import Sign, name_der

MAX_RECEIPT = 16 * 1024
"""Bytes; an honest receipt has about 3,700."""


class ReceiptKind(StrEnum):
    """What the recipient answers."""

    RECEIPT = "receipt"
    REFUSAL = "refusal"


class RefusalReason(Enum):
    """Why a deposit is refused: RFC 7191 §4's enumerated codes that can occur, with the word that people read."""

    CANNOT_OPEN = (71, "cannot-open")
    BAD_SIGNATURE = (16, "bad-signature")
    BAD_PACKAGE = (84, "bad-package")
    WRONG_TARGET = (23, "wrong-target")
    REVOKED = (33, "revoked")
    NOT_WANTED = (11, "not-wanted")
    OUTSIDE_PERIOD = (89, "outside-period")

    def __init__(self, number: int, word: str) -> None:
        self.number = number
        self.word = word


@dataclass(frozen=True)
class VerifiedReceipt:
    """An answer whose signer is proved; only `UnverifiedReceipt.verify` makes one."""

    kind: ReceiptKind
    deposit_id: DepositId
    received_by: Address
    reason: RefusalReason | None
    signed: SignedObject


@dataclass(frozen=True)
class UnverifiedReceipt:
    """An answer that keeps the profile (rules RCP-001 to RCP-003)."""

    kind: ReceiptKind
    deposit_id: DepositId
    received_by: Address
    reason: RefusalReason | None
    digest: bytes
    signed: UnverifiedSigned

    def verify(
        self, identity_key: MLDSA65PublicKey, *, recipient: Address, deposit: DepositId, sha512: bytes
    ) -> VerifiedReceipt:
        """Return the answer if ``recipient`` gave it for exactly these bytes (rules RCP-004, RCP-005)."""
        if self.received_by != recipient or self.deposit_id != deposit:
            raise WrongPartyError("The receipt is for another deposit or recipient", rule="RCP-004")
        if self.digest != sha512:
            raise WrongPartyError("The receipt names other bytes than the deposit's", rule="RCP-005")
        signed = self.signed.verify(identity_key)
        return VerifiedReceipt(self.kind, self.deposit_id, self.received_by, self.reason, signed)


def compose_receipt(
    deposit: DepositId, sha512: bytes, received_by: Address, *, signer_ski: bytes, sign: Sign, signing_time: datetime
) -> bytes:
    """Return a signed KeyPackageReceipt in DER: the key is stored."""
    receipt = asn1.KeyPackageReceipt(version=2, receipt_of=bytes.fromhex(deposit), received_by=_entity(received_by))
    return _sign(oids.KEY_PACKAGE_RECEIPT, asn1.encode(receipt), sha512, signer_ski, sign, signing_time)


def compose_refusal(
    deposit: DepositId,
    sha512: bytes,
    received_by: Address,
    reason: RefusalReason,
    *,
    signer_ski: bytes,
    sign: Sign,
    signing_time: datetime,
) -> bytes:
    """Return a signed KeyPackageError in DER: the key is not accepted."""
    error = asn1.KeyPackageError(
        version=2,
        error_of=bytes.fromhex(deposit),
        error_by=_entity(received_by),
        error_code=asn1.tlv(_enumerated(reason.number)),
    )
    return _sign(oids.KEY_PACKAGE_ERROR, asn1.encode(error), sha512, signer_ski, sign, signing_time)


@located
def parse_receipt(der: bytes) -> UnverifiedReceipt:
    """Return a receipt or refusal that keeps the profile."""
    if len(der) > MAX_RECEIPT:
        raise ProfileError(f"A receipt has at most {MAX_RECEIPT} bytes", on=f"{len(der)} bytes", rule="RCP-001")
    signed = signing.parse(
        der, content_types={oids.KEY_PACKAGE_RECEIPT, oids.KEY_PACKAGE_ERROR}, extra={oids.DEPOSIT_DIGEST}
    )
    digest = asn1.decode(bytes, signed.attributes[oids.DEPOSIT_DIGEST], what="The deposit's digest")
    if signed.content_type == oids.KEY_PACKAGE_RECEIPT:
        receipt = asn1.decode(asn1.KeyPackageReceipt, signed.content, what="The receipt")
        _demand_version(receipt.version)
        return UnverifiedReceipt(
            ReceiptKind.RECEIPT, _id(receipt.receipt_of), _address(receipt.received_by), None, digest, signed
        )
    error = asn1.decode(asn1.KeyPackageError, signed.content, what="The refusal")
    _demand_version(error.version)
    if error.error_of is None:
        raise ProfileError("The refusal does not name a deposit", rule="RCP-002")
    reason = _reason(asn1.encode(error.error_code))
    return UnverifiedReceipt(ReceiptKind.REFUSAL, _id(error.error_of), _address(error.error_by), reason, digest, signed)


def _sign(content_type: Oid, content: bytes, sha512: bytes, ski: bytes, sign: Sign, time: datetime) -> bytes:
    extra = {oids.DEPOSIT_DIGEST: asn1.encode(sha512)}
    return signing.sign(content_type, content, extra=extra, signing_time=time, signer_ski=ski, sign=sign)


def _entity(address: Address) -> asn1.EntityName:
    return asn1.EntityName(kind=oids.SIREN_DN, value=name_der(address))


def _address(entity: asn1.EntityName) -> Address:
    if entity.kind != oids.SIREN_DN:
        raise ProfileError("The entity is not named by its distinguished name", rule="RCP-003")
    try:
        address = parse_address(x509.common_name_of(entity.value))
    except BadAddressError as error:
        raise ProfileError("The entity's common name is not an address", on=error.on, rule="RCP-003") from None
    if name_der(address) != entity.value:
        raise ProfileError("The entity is not exactly O = tenant, CN = address", rule="RCP-003")
    return address


def _id(package_id: bytes) -> DepositId:
    if len(package_id) != 16:
        raise ProfileError("The key package id does not have 16 bytes", rule="RCP-002")
    return deposit_id(package_id)


def _demand_version(version: int) -> None:
    if version != 2:
        raise ProfileError("The receipt is not of version 2", rule="RCP-001")


def _enumerated(number: int) -> bytes:
    # The library has no ENUMERATED: X.690 §8.4 encodes it like an INTEGER with tag 10.
    return b"\x0a\x01" + bytes([number])


def _reason(der: bytes) -> RefusalReason:
    for reason in RefusalReason:
        if _enumerated(reason.number) == der:
            return reason
    raise ProfileError("The refusal's error code is not one of ours", rule="RCP-002")
