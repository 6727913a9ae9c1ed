"""Deposits: a key wrapped for one recipient and signed by its sender."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from pki.core import asn1, envelope, oids, packages, signing
from pki.core.der import located
from pki.core.envelope import ParsedEnvelope, Recipient, Recover
from pki.core.errors import (
    BadAddressError,
    IllegalMoveError,
    KeymailboxError,
    ProfileError,
    TooLargeError,
    UnwrapError,
    UsageError,
)
from pki.core.ids import DepositId, KeyId, deposit_id, key_id
from pki.core.packages import KeyMaterial
from pki.core.signatures import SignatureAlgorithm
from pki.core.signing import SignedObject, UnverifiedSigned
from pki.core.tenants import Address, parse_address
from pki.core.x509 import Sign, name_der

MAX_DEPOSIT = 1024 * 1024
"""Bytes, unless configured otherwise."""
_MAX_PURPOSE = 128
_MAX_VERSION = 1 << 31


class DepositState(StrEnum):
    """Where a deposit stands."""

    RECEIVED = "received"
    AVAILABLE = "available"
    COLLECTED = "collected"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


_S = DepositState
DEPOSIT_MOVES: Mapping[DepositState, frozenset[DepositState]] = {
    _S.RECEIVED: frozenset({_S.AVAILABLE, _S.REJECTED, _S.EXPIRED, _S.WITHDRAWN}),
    # Superseded without a quarantine: its recipient has renewed its key, and the sender wrapped again.
    _S.AVAILABLE: frozenset({_S.COLLECTED, _S.QUARANTINED, _S.SUPERSEDED, _S.EXPIRED, _S.WITHDRAWN}),
    # Never expired: the recipient may hold the key, and its receipt is evidence whenever it comes.
    _S.COLLECTED: frozenset({_S.ACKNOWLEDGED, _S.REFUSED}),
    _S.QUARANTINED: frozenset({_S.SUPERSEDED, _S.EXPIRED, _S.WITHDRAWN}),
    _S.ACKNOWLEDGED: frozenset(),
    _S.REFUSED: frozenset(),
    _S.REJECTED: frozenset(),
    _S.SUPERSEDED: frozenset(),
    _S.EXPIRED: frozenset(),
    _S.WITHDRAWN: frozenset(),
}


WAITING = (_S.RECEIVED, _S.AVAILABLE, _S.COLLECTED, _S.QUARANTINED)
"""Where a deposit still needs the key that it is wrapped for: all from which it can go on."""


def check_move(old: DepositState, new: DepositState) -> None:
    """Raise IllegalMoveError unless a deposit may go from ``old`` to ``new``."""
    if new not in DEPOSIT_MOVES[old]:
        raise IllegalMoveError(f"A deposit that is {old} cannot become {new}")


@dataclass(frozen=True)
class Context:
    """Who hands which key to whom; signed by the sender and authenticated with the wrapped key."""

    sender: Address
    recipient: Address
    key_id: KeyId
    key_version: int
    purpose: str
    expires: datetime

    def encode(self) -> bytes:
        """Return the context in DER."""
        context = asn1.DepositContext(
            version=1,
            sender=str(self.sender),
            recipient=str(self.recipient),
            key_id=self.key_id,
            key_version=self.key_version,
            purpose=self.purpose,
            expires=asn1.GeneralizedTime(self.expires.astimezone(UTC).replace(microsecond=0)),
        )
        return asn1.encode(context)


def decode_context(der: bytes) -> Context:
    """Return a context, each field checked (rule DEP-002)."""
    raw = asn1.decode(asn1.DepositContext, der, what="The deposit's context")
    if raw.version != 1:
        raise ProfileError("The deposit's context is not of version 1", rule="DEP-002")
    if not 1 <= raw.key_version < _MAX_VERSION:
        # The number itself is not told: a sender may have made it megabytes long.
        raise ProfileError("A key version is from 1 to 2147483647", rule="DEP-002")
    if len(raw.purpose) > _MAX_PURPOSE or not raw.purpose.isprintable():
        raise ProfileError("A purpose has at most 128 printable characters", rule="DEP-002")
    expires = raw.expires.as_datetime().replace(tzinfo=UTC)
    if expires.microsecond:
        raise ProfileError("A time is in whole seconds", on=str(expires), rule="DEP-002")
    try:
        sender, recipient, named = parse_address(raw.sender), parse_address(raw.recipient), key_id(raw.key_id)
    except (BadAddressError, UsageError) as error:
        raise ProfileError(error.message, on=error.on, hint=error.hint, rule="DEP-002") from None
    return Context(
        sender=sender,
        recipient=recipient,
        key_id=named,
        key_version=raw.key_version,
        purpose=raw.purpose,
        expires=expires,
    )


@dataclass(frozen=True)
class UnverifiedDeposit:
    """A deposit that keeps the profile; who sent it is a claim."""

    id: DepositId
    context: Context
    signer_ski: bytes
    signing_time: datetime
    signed: UnverifiedSigned
    envelope: ParsedEnvelope

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return len(self.signed.der)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole, in hex; computed when it is asked for."""
        return hashlib.sha256(self.signed.der).hexdigest()

    @property
    def sha512(self) -> bytes:
        """The SHA-512 of the whole; computed when it is asked for."""
        return hashlib.sha512(self.signed.der).digest()


@dataclass(frozen=True)
class VerifiedDeposit:
    """A deposit whose sender is proved; only `pki.core.policy` makes one."""

    id: DepositId
    context: Context
    signed: SignedObject
    envelope: ParsedEnvelope

    @property
    def sha512(self) -> bytes:
        """The SHA-512 of the whole, which a receipt names; computed when it is asked for."""
        return hashlib.sha512(self.signed.der).digest()


def compose(
    material: KeyMaterial,
    context: Context,
    *,
    package_id: bytes,
    recipient: Recipient,
    signer_ski: bytes,
    sign: Sign,
    signing_time: datetime,
    algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
) -> bytes:
    """Return a deposit in DER: wrapped for ``recipient`` and signed; ``package_id`` is 16 random bytes.

    ``algorithm`` is that of ``sign``.
    """
    deposit_id(package_id)
    context_der = context.encode()
    decode_context(context_der)
    content_type, package = packages.encode_package(material)
    wrapped = envelope.wrap(package, content_type, [recipient], context=context_der)
    sender = asn1.EntityName(kind=oids.SIREN_DN, value=name_der(context.sender))
    request = asn1.PackageIdAndReceiptRequest(
        package_id=package_id, receipt_request=asn1.ReceiptRequest(encrypt=False, receipts_to=[sender])
    )
    return signing.sign(
        oids.CONTENT_INFO,
        wrapped,
        extra={oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST: asn1.encode(request), oids.DEPOSIT_CONTEXT: context_der},
        signing_time=signing_time,
        signer_ski=signer_ski,
        sign=sign,
        algorithm=algorithm,
    )


@located
def parse_deposit(der: bytes, *, max_size: int = MAX_DEPOSIT) -> UnverifiedDeposit:
    """Return a deposit that keeps the profile (rules SIG-…, ENV-…, DEP-001 to DEP-004); size first, then structure."""
    if len(der) > max_size:
        raise TooLargeError(f"A deposit has at most {max_size} bytes", on=f"{len(der)} bytes", rule="DEP-001")
    signed = signing.parse(
        der,
        content_types={oids.CONTENT_INFO},
        extra={oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST, oids.DEPOSIT_CONTEXT},
    )
    context_der = signed.attributes[oids.DEPOSIT_CONTEXT]
    context = decode_context(context_der)
    identified = asn1.decode(
        asn1.PackageIdAndReceiptRequest,
        signed.attributes[oids.KEY_PACKAGE_ID_AND_RECEIPT_REQUEST],
        what="The key package id",
    )
    request = identified.receipt_request
    asked = [] if request is None or request.encrypt else [(name.kind, name.value) for name in request.receipts_to]
    if len(identified.package_id) != 16 or asked != [(oids.SIREN_DN, name_der(context.sender))]:
        raise ProfileError("The deposit does not ask for one receipt to its sender under a 16-byte id", rule="DEP-003")
    wrapped = envelope.parse(signed.content)
    if wrapped.content_type not in packages.CONTENT_TYPES:
        raise ProfileError("The envelope does not hold a key package", rule="DEP-004")
    if wrapped.context != context_der:
        raise ProfileError("The context inside differs from the one outside", rule="DEP-004")
    return UnverifiedDeposit(
        id=deposit_id(identified.package_id),
        context=context,
        signer_ski=signed.signer_ski,
        signing_time=signed.signing_time,
        signed=signed,
        envelope=wrapped,
    )


def open_deposit(deposit: VerifiedDeposit, ski: bytes, decapsulate: Recover) -> KeyMaterial:
    """Return the key for the recipient ``ski``; whatever goes wrong is one and the same UnwrapError."""
    content = envelope.unwrap(deposit.envelope, ski, decapsulate)
    try:
        return packages.decode_package(deposit.envelope.content_type, content)
    except KeymailboxError:
        # Neither the reason nor the frame shall hold the key.
        content = b""
    raise UnwrapError
