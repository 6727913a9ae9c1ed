"""Receipts and refusals: the recipient's signed answer to a deposit (RFC 7191)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, oids, signing
from pki.core.der import located
from pki.core.entities import address_of, entity
from pki.core.errorcodes import ErrorCode, parse_code
from pki.core.errors import ProfileError, WrongPartyError, demand
from pki.core.ids import DepositId, deposit_id
from pki.core.profile import Profile
from pki.core.signatures import SignatureAlgorithm, VerifyingKey
from pki.core.signing import SignedObject, UnverifiedSigned
from pki.core.tenants import Address
from pki.core.x509 import Sign

MAX_RECEIPT = 16 * 1024
"""Bytes; an honest receipt has about 3,700."""


class ReceiptKind(StrEnum):
    """What the recipient answers."""

    RECEIPT = "receipt"
    REFUSAL = "refusal"


class RefusalReason(Enum):
    """Why we refuse a deposit: the enumerated codes of RFC 7191 §5 that can occur, with the word that people read."""

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

    @property
    def code(self) -> ErrorCode:
        """What stands on the wire."""
        return ErrorCode(self.number)


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
    """An answer that keeps the profile (rules RCP-001 to RCP-003).

    ``code`` is what a refusal says; of a foreign one it may be none of ours, and then ``reason`` is None. A foreign
    answer names no digest of the deposit: ``digest`` is empty, and `verify` refuses it.
    """

    kind: ReceiptKind
    deposit_id: DepositId
    received_by: Address
    reason: RefusalReason | None
    digest: bytes
    signed: UnverifiedSigned
    code: ErrorCode | None = None

    def verify(
        self, identity_key: VerifyingKey, *, recipient: Address, deposit: DepositId, sha512: bytes
    ) -> VerifiedReceipt:
        """Return the answer if ``recipient`` gave it for exactly these bytes (rules RCP-004, RCP-005)."""
        if self.received_by != recipient or self.deposit_id != deposit:
            raise WrongPartyError("The receipt is for another deposit or recipient", rule="RCP-004")
        if not self.digest or self.digest != sha512:
            raise WrongPartyError("The receipt names other bytes than the deposit's", rule="RCP-005")
        signed = self.signed.verify(identity_key)
        return VerifiedReceipt(self.kind, self.deposit_id, self.received_by, self.reason, signed)


def compose_receipt(
    deposit: DepositId,
    sha512: bytes,
    received_by: Address,
    *,
    signer_ski: bytes,
    sign: Sign,
    signing_time: datetime,
    algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
) -> bytes:
    """Return a signed KeyPackageReceipt in DER: the key is stored. ``algorithm`` is that of ``sign``."""
    receipt = asn1.KeyPackageReceipt(version=2, receipt_of=bytes.fromhex(deposit), received_by=entity(received_by))
    return _sign(oids.KEY_PACKAGE_RECEIPT, asn1.encode(receipt), sha512, signer_ski, sign, algorithm, signing_time)


def compose_refusal(
    deposit: DepositId,
    sha512: bytes,
    received_by: Address,
    reason: RefusalReason,
    *,
    signer_ski: bytes,
    sign: Sign,
    signing_time: datetime,
    algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
) -> bytes:
    """Return a signed KeyPackageError in DER: the key is not accepted. ``algorithm`` is that of ``sign``."""
    error = asn1.KeyPackageError(
        version=2,
        error_of=bytes.fromhex(deposit),
        error_by=entity(received_by),
        error_code=asn1.tlv(reason.code.encode()),
    )
    return _sign(oids.KEY_PACKAGE_ERROR, asn1.encode(error), sha512, signer_ski, sign, algorithm, signing_time)


@located
def parse_receipt(der: bytes, *, profile: Profile = Profile.STRICT) -> UnverifiedReceipt:
    """Return a receipt or refusal that keeps the profile."""
    if len(der) > MAX_RECEIPT:
        raise ProfileError(f"A receipt has at most {MAX_RECEIPT} bytes", on=f"{len(der)} bytes", rule="RCP-001")
    signed = signing.parse(
        der,
        content_types={oids.KEY_PACKAGE_RECEIPT, oids.KEY_PACKAGE_ERROR},
        extra={oids.DEPOSIT_DIGEST} if profile is Profile.STRICT else set(),
        profile=profile,
    )
    digest = b""
    if oids.DEPOSIT_DIGEST in signed.attributes:
        digest = asn1.decode(bytes, signed.attributes[oids.DEPOSIT_DIGEST], what="The deposit's digest")
    if signed.content_type == oids.KEY_PACKAGE_RECEIPT:
        receipt = asn1.decode(asn1.KeyPackageReceipt, signed.content, what="The receipt")
        _demand_version(receipt.version)
        return UnverifiedReceipt(
            ReceiptKind.RECEIPT,
            _id(receipt.receipt_of),
            address_of(receipt.received_by, rule="RCP-003"),
            None,
            digest,
            signed,
        )
    error = asn1.decode(asn1.KeyPackageError, signed.content, what="The refusal")
    _demand_version(error.version)
    if error.error_of is None:
        raise ProfileError("The refusal does not name a deposit", rule="RCP-002")
    code = parse_code(asn1.encode(error.error_code))
    reason = next((one for one in RefusalReason if one.code == code), None)
    demand(reason is not None or profile is Profile.READ, "RCP-002", "The refusal's error code is not one of ours")
    by = address_of(error.error_by, rule="RCP-003")
    return UnverifiedReceipt(ReceiptKind.REFUSAL, _id(error.error_of), by, reason, digest, signed, code)


def _sign(
    content_type: Oid,
    content: bytes,
    sha512: bytes,
    ski: bytes,
    sign: Sign,
    algorithm: SignatureAlgorithm,
    time: datetime,
) -> bytes:
    extra = {oids.DEPOSIT_DIGEST: asn1.encode(sha512)}
    return signing.sign(
        content_type, content, extra=extra, signing_time=time, signer_ski=ski, sign=sign, algorithm=algorithm
    )


def _id(package_id: bytes) -> DepositId:
    if len(package_id) != 16:
        raise ProfileError("The key package id does not have 16 bytes", rule="RCP-002")
    return deposit_id(package_id)


def _demand_version(version: int) -> None:
    if version != 2:
        raise ProfileError("The receipt is not of version 2", rule="RCP-001")
