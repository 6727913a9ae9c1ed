"""What the answers look like, for ``schemas/openapi.json``; tests hold every answer against it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from pki.core.certificates import CertificateState, RequestState
from pki.core.deposits import DepositState
from pki.core.x509 import CertificateKind
from pki.server.api import bodies

Base64 = Annotated[str, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Hex = Annotated[str, Field(pattern="^[0-9a-f]+$")]
Address = Annotated[str, Field(pattern="^[a-z0-9-]{1,31}/[a-z0-9-]{1,31}$")]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(_Answer):
    """A problem (RFC 9457): programs decide on ``code``; ``rule`` is the number of a broken rule in docs/rules.md."""

    type: Annotated[str, WithJsonSchema({"type": "string", "format": "uri"})]
    title: str
    status: int
    detail: str
    code: str
    hint: str
    rule: str = ""
    retry_after: Annotated[int, Field(ge=1, description="Seconds, with 429 and 503")] = 1
    request_id: Annotated[str, Field(description="With 500: what the log calls this request")] = ""


class Status(_Answer):
    """The process or the service is well."""

    status: Literal["ok"]


class Version(_Answer):
    """What answers."""

    name: str
    version: str
    api: str
    python: str


class Chain(_Answer):
    """The CA's certificates, DER in base64."""

    root: Base64
    issuing: Base64
    former: list[Base64]
    root_fingerprint: Hex


class Enrolled(_Answer):
    """A new instance, and the request for its identity certificate."""

    address: Address
    request_id: Hex
    access_key_id: Hex


class Submitted(_Answer):
    """A certificate request that is under way."""

    id: Hex
    state: RequestState


class Request(_Answer):
    """A certificate request; ``challenge`` is the certificate encrypted to its own key, until possession is proved."""

    id: Hex
    kind: CertificateKind
    address: Address
    state: RequestState
    reason: str | None
    certificate: Base64 | None
    fingerprint: Hex | None
    challenge: Base64 | None
    certificate_state: CertificateState | None


class Certificate(_Answer):
    """A certificate, and the request that endorses it; ``reason`` is a CRLReason (RFC 5280 §5.3.1).

    ``revoked_by`` is ``owner``, or ``operator:`` and the names of two officers, who say ``because``.
    """

    fingerprint: Hex
    address: Address
    kind: CertificateKind
    state: CertificateState
    certificate: Base64
    request: Base64
    not_before: Time
    not_after: Time
    revoked_at: Time | None
    reason: int | None
    revoked_by: str | None
    because: str | None


class Waiting(_Answer):
    """How many deposits wait under a key, by where they stand."""

    received: int
    available: int
    collected: int
    quarantined: int


class OwnCertificate(_Answer):
    """A certificate of the caller's; it should be renewed from ``renewal_due`` on.

    ``revoked_by`` is ``owner``, or ``operator:`` and the names of two officers, who say ``because``.
    """

    fingerprint: Hex
    kind: CertificateKind
    state: CertificateState
    not_before: Time
    not_after: Time
    renewal_due: Time
    revoked_by: str | None
    because: str | None
    waiting: Waiting


class OwnCertificates(_Answer):
    """The caller's certificates, newest first."""

    items: list[OwnCertificate]


class Listed(Certificate):
    """A certificate in use, with the certificate of the CA that issued it."""

    issuing: Base64


class Listing(_Answer):
    """What is active at an address; ``issuing`` is the certificate of the CA that issued the identity."""

    address: Address
    identity: Listed
    encryption: Listed | None
    issuing: Base64


class History(_Answer):
    """All certificates of an address, newest first."""

    certificates: list[Certificate]


class Accepted(_Answer):
    """A deposit that is stored; ``status`` is the path to follow it."""

    id: Hex
    state: DepositState
    status: str


class NotAccepted(_Answer):
    """Why a deposit of several was not stored."""

    error: Problem


class Batch(_Answer):
    """One answer for each deposit, in their order."""

    items: list[Accepted | NotAccepted]


class Rejected(_Answer):
    """Why a deposit was rejected; the code is stable."""

    code: str
    detail: str


class Deposit(_Answer):
    """A deposit without its body; ``certificate`` is the recipient's that it is wrapped for."""

    id: Hex
    sender: Address
    recipient: Address
    state: DepositState
    sequence: int | None
    key_id: str
    key_version: int
    purpose: str
    size: int
    sha256: Hex
    received_at: Time
    expires_at: Time
    collected_at: Time | None
    settled_at: Time | None
    body_deleted_at: Time | None
    certificate: Hex | None
    rejected: Rejected | None
    respond_by: Time | None
    overdue_at: Time | None
    supersedes: Hex | None
    superseded_by: Hex | None


class Mailbox(_Answer):
    """A page of a mailbox; ``next`` is the number to go on after."""

    items: list[Deposit]
    next: int


class Senders(_Answer):
    """Whom and what a mailbox takes: tenants and addresses, bytes, seconds; null is no limit of the recipient's own."""

    mode: Literal["anyone", "known", "listed"]
    listed: list[str]
    max_bytes: int | None
    max_lifetime: int | None
    changed_at: Time | None


class Sent(_Answer):
    """A page of what was sent; ``next`` is the cursor to go on after."""

    items: list[Deposit]
    next: str


class Collected(_Answer):
    """A deposit's bytes."""

    id: Hex
    state: DepositState
    body: Base64


class NotCollected(_Answer):
    """A deposit that was asked for and not handed out."""

    id: bodies.AnyId
    error: Problem


class Collection(_Answer):
    """One answer for each id, in their order."""

    items: list[Collected | NotCollected]


class Receipt(_Answer):
    """A signed receipt or refusal."""

    deposit_id: Hex
    kind: Literal["receipt", "refusal"]
    reason: str | None
    signed_at: Time
    receipt: Base64


class Answered(_Answer):
    """An answer that is stored, now or before."""

    deposit_id: Hex
    kind: Literal["receipt", "refusal"]


class NotAnswered(_Answer):
    """An answer that was handed in and not taken."""

    deposit_id: bodies.AnyId
    error: Problem


class HandedIn(_Answer):
    """What came of each answer, in their order."""

    items: list[Answered | NotAnswered]


class Receipts(_Answer):
    """A page of receipts; ``next`` is the cursor to go on after."""

    items: list[Receipt]
    next: str


class Webhook(_Answer):
    """Where an instance is told; ``types`` null means everything."""

    id: Hex
    url: str
    types: list[str] | None
    created_at: Time
    disabled_at: Time | None


class NewWebhook(Webhook):
    """A webhook with the secret that signs its deliveries: told this once."""

    secret: str


class Webhooks(_Answer):
    """The caller's webhooks."""

    items: list[Webhook]


class Delivery(_Answer):
    """An event that a webhook was not told; of one that is not kept any more, ``type`` and ``subject`` are null."""

    id: Hex
    event: str
    type: str | None
    subject: str | None
    attempts: int
    error: str
    at: Time


class Deliveries(_Answer):
    """What was given up, first given up first, and the cursor of the next page."""

    items: list[Delivery]
    next: str


class Replayed(_Answer):
    """Which deliveries are told again."""

    ids: list[Hex]


class CloudEvent(BaseModel):
    """A CloudEvent 1.0 with its position in the trail; ``data`` is as ``dataschema`` says."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    subject: str
    time: Time
    data: dict[str, Any]
    position: int


class Events(_Answer):
    """A page of events; ``next`` is the position to go on after."""

    items: list[CloudEvent]
    next: int


Told = dict[int | str, dict[str, Any]]


def tells(model: type[BaseModel], status: int = 200, *, etag: bool = False) -> Told:
    """Describe the answer of a route."""
    described: Told = {status: {"model": model, "description": (model.__doc__ or "").split("\n", 1)[0]}}
    if etag:
        described[304] = {"description": "What the client has is current."}
    return described


def tells_binary(media_type: str, description: str, *, etag: bool = False) -> Told:
    """Describe an answer that is not JSON."""
    described: Told = {200: {"description": description, "content": {media_type: {}}}}
    if etag:
        described[304] = {"description": "What the client has is current."}
    return described
