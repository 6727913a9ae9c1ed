"""What the answers look like, for ``schemas/openapi.json``; tests hold every answer against it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from pki.core.certificates import CertificateState, RequestState
from pki.core.deposits import DepositState
from pki.core.x509 import CertificateKind

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
    """A certificate, and the request that endorses it; ``reason`` is a CRLReason (RFC 5280 §5.3.1)."""

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


class Listing(_Answer):
    """What is active at an address, and the CA's issuing certificate."""

    address: Address
    identity: Certificate
    encryption: Certificate | None
    issuing: Base64


class History(_Answer):
    """All certificates of an address, newest first."""

    certificates: list[Certificate]


class Accepted(_Answer):
    """A deposit that is stored; ``status`` is the path to follow it."""

    id: Hex
    state: DepositState
    status: str


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
    certificate: Hex | None
    rejected: Rejected | None
    supersedes: Hex | None
    superseded_by: Hex | None


class Mailbox(_Answer):
    """A page of a mailbox; ``next`` is the number to go on after."""

    items: list[Deposit]
    next: int


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

    id: Hex
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
