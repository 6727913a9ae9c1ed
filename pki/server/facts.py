"""What is stored, as the services hand it to the store and get it back: frozen facts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from pki.core.certificates import CertificateState, RequestState, renewal_due
from pki.core.deposits import DepositState
from pki.core.events import Event
from pki.core.ids import DepositId, Fingerprint, KeyId, RequestId
from pki.core.orders import OrderId
from pki.core.tenants import Address, TenantName
from pki.core.x509 import CertificateKind


@dataclass(frozen=True)
class CaChain:
    """The certificates of the root and of the issuing CAs in DER: public, known to every process.

    New certificates are issued under ``issuing``; those under ``former``, newest first, still verify.
    """

    root: bytes
    issuing: bytes
    former: tuple[bytes, ...] = ()

    @property
    def all(self) -> tuple[bytes, ...]:
        """Each issuing CA's certificate, the current one first."""
        return (self.issuing, *self.former)


@dataclass(frozen=True)
class Tenant:
    """One tenant."""

    name: TenantName
    created_at: datetime


@dataclass(frozen=True)
class Invitation:
    """A one-time enrolment token; the secret itself is known to the invited only."""

    reference: str
    tenant: TenantName
    secret_hash: bytes = field(repr=False)
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    used_by: Address | None = None
    sealed_secret: bytes | None = field(default=None, repr=False)
    """The secret for the issuer process alone (docs/adr/0015); None from before there was a registration key."""


@dataclass(frozen=True)
class Instance:
    """One KMS instance: its identity key as SubjectPublicKeyInfo in DER, its access key as 32 raw Ed25519 bytes.

    Who was enrolled by EST or CMP has no access key until an access certificate was issued to it.
    """

    address: Address
    tenant: TenantName
    identity_spki: bytes
    access_key: bytes | None
    access_key_id: str | None
    enrolled_at: datetime


@dataclass(frozen=True)
class RequestRecord:
    """One certificate request on its way."""

    id: RequestId
    address: Address
    kind: CertificateKind
    der: bytes
    state: RequestState
    created_at: datetime
    reason: str | None = None
    fingerprint: Fingerprint | None = None
    challenge: bytes | None = None


@dataclass(frozen=True)
class Exchange:
    """One CMP message or, when it is there, the answer; ``digest`` is the message's SHA-256 in hex."""

    digest: str
    request: bytes = field(repr=False)
    response: bytes | None = field(repr=False)
    asked: int
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class Transaction:
    """A CMP transaction: who opened it by which exchange, for which request, and the nonce that we answered with.

    ``state`` is ``issuing``, ``confirming`` or ``closed``.
    """

    id: str
    digest: str
    credential: str
    address: Address
    request_id: RequestId
    number: int
    nonce: bytes
    state: str
    expires_at: datetime


@dataclass(frozen=True)
class RevocationRecord:
    """What proves that a certificate was revoked; all in DER, and all to be verified again before it is believed.

    ``evidence`` is ``owner`` (``request`` is signed by the key of the identity certificate ``signer``, and is about
    this certificate or about ``named``, with which it falls; ``endorsement`` is the request for an encryption
    certificate, which the same key has signed), ``order`` (two officers, see ``order_id``) or ``legacy``
    (revoked before there was evidence). A row may say anything else: it came from a table that somebody can edit.
    """

    fingerprint: Fingerprint
    evidence: str
    certificate: bytes = field(repr=False)
    created_at: datetime
    request: bytes | None = field(default=None, repr=False)
    signer: bytes | None = field(default=None, repr=False)
    named: bytes | None = field(default=None, repr=False)
    endorsement: bytes | None = field(default=None, repr=False)
    order_id: str | None = None


@dataclass(frozen=True)
class OrderRecord:
    """An officer's signed order, and the approval of another; ``kind`` is ``revocation`` or ``lift``.

    What is believed of it is what the two objects say, in DER; the rest is for people.
    """

    id: OrderId
    kind: str
    der: bytes = field(repr=False)
    ordered_by: str
    because: str
    created_at: datetime
    expires_at: datetime
    approval: bytes | None = field(default=None, repr=False)
    approved_by: str | None = None
    executed_at: datetime | None = None


@dataclass(frozen=True)
class CrlRecord:
    """One publication of an issuing CA: the full CRL, and the delta list to the full one with the number ``base``.

    ``issuer`` is the issuing CA's key identifier in hex.
    """

    number: int
    der: bytes = field(repr=False)
    this_update: datetime
    next_update: datetime
    issuer: str = ""
    base: int | None = None
    delta: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class CrlHead:
    """What a publication is, without its bytes; as `CrlRecord`."""

    issuer: str
    number: int
    this_update: datetime
    next_update: datetime
    base: int | None


@dataclass(frozen=True)
class CertificateSummary:
    """A certificate without its bytes: what has to be renewed in time; ``ski`` in hex."""

    fingerprint: Fingerprint
    address: Address
    kind: CertificateKind
    state: CertificateState
    serial: int
    ski: str
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    revoked_by: str | None = None
    because: str | None = None

    @property
    def renewal_due(self) -> datetime:
        """When agents renew it by themselves."""
        return renewal_due(self.not_before, self.not_after)


@dataclass(frozen=True)
class Standing:
    """What the directory says of a certificate, without its bytes; ``issuer`` is a key identifier in hex."""

    serial: int
    issuer: str
    state: CertificateState
    revoked_at: datetime | None
    reason: int
    not_after: datetime


@dataclass(frozen=True)
class OcspResponse:
    """A response that is made before anybody asks, for one certificate and one way to name its issuer.

    ``der`` is None before the first one; ``status`` is ``good`` or ``revoked``; ``refresh_at`` is when the next one is
    due, None for a certificate that has expired.
    """

    serial: int
    algorithm: str
    issuer: str
    der: bytes | None = field(repr=False)
    status: str | None
    this_update: datetime | None
    next_update: datetime | None
    refresh_at: datetime | None


@dataclass(frozen=True)
class OcspQuestion:
    """A request that has to be answered freshly; ``id`` is the SHA-256 of ``request`` in hex."""

    id: str
    request: bytes = field(repr=False)
    asked_at: datetime


@dataclass(frozen=True)
class Job:
    """One claimed piece of work; ``attempts`` counts this one."""

    id: int
    queue: str
    kind: str
    subject: str
    attempts: int
    created_at: datetime
    due_at: datetime | None = None
    dead_at: datetime | None = None
    error: str | None = None
    trace: str | None = None
    """The request that it comes from, as a W3C traceparent."""


@dataclass(frozen=True)
class Tally:
    """What is under way of one sender, in one mailbox, or of a pair; ``today`` was accepted on ``day``, since 1970.

    Without a recipient it is all of a sender's, without a sender all of a mailbox. A tenant's name as the sender stands
    for all its instances.
    """

    sender: str
    recipient: str
    deposits: int = 0
    bytes: int = 0
    day: int = 0
    today: int = 0
    accepted: int = 0
    acknowledged: int = 0


@dataclass(frozen=True)
class NewDeposit:
    """A deposit as it arrived, not validated yet; key identifiers and ``body_sha256`` in hex."""

    id: DepositId
    sender: Address
    recipient: Address
    body: bytes = field(repr=False)
    body_sha256: str
    body_sha512: bytes
    size: int
    key_id: KeyId
    key_version: int
    purpose: str
    signing_time: datetime
    received_at: datetime
    expires_at: datetime
    recipient_ski: str
    sender_ski: str
    supersedes: DepositId | None = None
    respond_by: datetime | None = None
    """By when the sender wants an answer; it is told, nothing ends by it."""


@dataclass(frozen=True)
class DepositRecord:
    """A deposit as it is stored; ``body`` only where it was asked for."""

    id: DepositId
    sender: Address
    recipient: Address
    state: DepositState
    sequence: int | None
    body_sha256: str
    body_sha512: bytes
    size: int
    key_id: KeyId
    key_version: int
    purpose: str
    signing_time: datetime
    received_at: datetime
    expires_at: datetime
    validated_at: datetime | None
    collected_at: datetime | None
    settled_at: datetime | None
    recipient_ski: str
    sender_ski: str
    rejected_code: str | None
    rejected_detail: str | None
    supersedes: DepositId | None
    superseded_by: DepositId | None
    certificate_fingerprint: Fingerprint | None
    sender_fingerprint: Fingerprint | None
    respond_by: datetime | None = None
    overdue_at: datetime | None = None
    body: bytes | None = field(default=None, repr=False)
    body_deleted_at: datetime | None = None
    """When the bytes were deleted, where that was asked for."""


@dataclass(frozen=True)
class ReceiptRecord:
    """A verified receipt or refusal."""

    deposit_id: DepositId
    kind: str
    reason: str | None
    der: bytes
    signed_at: datetime
    stored_at: datetime


@dataclass(frozen=True)
class Shelved:
    """A body that is stored, and what decides about it; ``settled_at`` is None while the deposit is open.

    ``numbered``: the deposit was available once, so its sender's signature was found to be good. ``deleted``: there is
    a counterfoil instead, and nobody is given the body any more.
    """

    deposit_id: DepositId
    settled_at: datetime | None
    numbered: bool
    size: int
    body_sha256: str
    deleted: bool


@dataclass(frozen=True)
class CounterfoilRecord:
    """What is kept of a deposit whose body was deleted; ``der`` is None where the signature never was verified."""

    deposit_id: DepositId
    deleted_at: datetime
    der: bytes | None = field(repr=False)


@dataclass(frozen=True)
class ReportRow:
    """One line of the distribution report: who was given which key, and what became of it."""

    deposit: DepositRecord
    receipt: ReceiptRecord | None


@dataclass(frozen=True)
class SequencedEvent:
    """An event with its place in the trail."""

    event: Event
    position: int
    chain: bytes


@dataclass(frozen=True)
class Webhook:
    """Where an instance wants to be told; ``types`` None means all."""

    id: str
    address: Address
    url: str
    secret: str = field(repr=False)
    types: tuple[str, ...] | None
    created_at: datetime
    disabled_at: datetime | None = None


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one webhook: ``pending``, ``delivered`` or ``dead``."""

    id: str
    webhook_id: str
    event_id: str
    state: str
    attempts: int
    last_error: str | None
    updated_at: datetime
    position: int | None = None
    """The event's, which is the order of a webhook's posts; None where an earlier release queued it."""


@dataclass(frozen=True)
class Caller:
    """The instance whose access key signed the request."""

    instance: Instance
