"""What the services hand to the store and get back, and what they need from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from pki.core.certificates import RequestState
from pki.core.crl import Revoked
from pki.core.deposits import DepositState
from pki.core.events import Event
from pki.core.ids import DepositId, Fingerprint, KeyId, RequestId
from pki.core.tenants import Address, TenantName
from pki.core.x509 import CertificateKind

CA_FOLDER = "ca"
ROOT_FILE = "root.der"
ISSUING_FILE = "issuing.der"
"""Where the CA's certificates lie in the server's home."""

# What the services need from outside


class Clock(Protocol):
    """Tells the time; never raises."""

    def now(self) -> datetime:
        """Return the time in UTC, with its zone."""


class Random(Protocol):
    """Gives random bytes fit for keys and serial numbers; never raises."""

    def __call__(self, count: int, /) -> bytes:
        """Return ``count`` fresh bytes."""


class CaSigner(Protocol):
    """The issuing CA's key; only the process that issues holds one.

    Signing leaves no trace of its own: who calls it has stored what is to be signed before. A failure may be retried.
    """

    @property
    def certificate_der(self) -> bytes:
        """The issuing CA's certificate."""

    def sign(self, message: bytes, /) -> bytes:
        """Return the ML-DSA-65 signature over ``message``. Raises UnavailableError when the key is away."""

    def sign_crl(
        self, number: int, this_update: datetime, next_update: datetime, revoked: Iterable[tuple[int, Revoked]], /
    ) -> bytes:
        """Return a full CRL in DER; entries are serial, time and reason. Raises UnavailableError."""


class Notifier(Protocol):
    """Posts to an address that a tenant named, from inside the operator's network: it must not be led astray."""

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Send once, follow no redirect, return the HTTP status.

        Raises ForbiddenError for a target that must not be reached, UnavailableError when there is no answer: it may
        have arrived all the same, so the body carries an id that stays the same when it is sent again.
        """


class EventPublisher(Protocol):
    """The topic exchange for those who want to listen."""

    def publish(self, events: Sequence[Mapping[str, object]]) -> None:
        """Hand over CloudEvents; returns when the broker has confirmed all of them.

        Raises UnavailableError otherwise: some may have gone out, the same ones are published again.
        """


# Facts


@dataclass(frozen=True)
class CaChain:
    """The certificates of the root and of the issuing CA in DER: public, known to every process."""

    root: bytes
    issuing: bytes


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


@dataclass(frozen=True)
class Instance:
    """One KMS instance: its identity key as SubjectPublicKeyInfo in DER, its access key as 32 raw Ed25519 bytes."""

    address: Address
    tenant: TenantName
    identity_spki: bytes
    access_key: bytes
    access_key_id: str
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
class CrlRecord:
    """One published CRL."""

    number: int
    der: bytes
    this_update: datetime
    next_update: datetime


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
    body: bytes | None = field(default=None, repr=False)


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


@dataclass(frozen=True)
class Caller:
    """The instance whose access key signed the request."""

    instance: Instance
