"""What the server says, read with suspicion into frozen facts; nothing here is verified yet."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pki.core.errors import KeymailboxError, MalformedError
from pki.core.ids import DepositId, Fingerprint, RequestId
from pki.core.senders import SenderMode, SenderPolicy
from pki.core.tenants import Address, parse_address

Json = Mapping[str, object]


@dataclass(frozen=True)
class AuthorityView:
    """The certificates of the CA, in DER: the root, the current issuing CA, and former ones, newest first."""

    root: bytes
    issuing: bytes
    former: tuple[bytes, ...]


@dataclass(frozen=True)
class RequestView:
    """A certificate request, as the server tells."""

    id: RequestId
    kind: str
    state: str
    reason: str | None
    certificate: bytes | None
    fingerprint: str | None
    challenge: bytes | None
    certificate_state: str | None


@dataclass(frozen=True)
class Listed:
    """A certificate in the directory with the request that endorses it."""

    certificate: bytes
    request: bytes
    state: str
    issuing: bytes | None
    """The certificate of the CA that issued it; None from a server that knows one such CA only."""


@dataclass(frozen=True)
class Listing:
    """The directory's entry for one address."""

    address: Address
    identity: Listed
    encryption: Listed | None
    issuing: bytes


@dataclass(frozen=True)
class HistoryEntry:
    """One certificate that was ever issued for an address."""

    fingerprint: Fingerprint
    kind: str
    state: str
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None


@dataclass(frozen=True)
class OwnView:
    """A certificate of ours as the server lists it; ``waiting`` deposits under its key are not answered."""

    fingerprint: Fingerprint
    state: str
    waiting: int
    revoked_by: str | None = None
    because: str | None = None


@dataclass(frozen=True)
class ExpiringView:
    """A reminder: ``days`` is the threshold that was passed before ``not_after``."""

    fingerprint: Fingerprint
    kind: str
    days: int
    not_after: datetime


@dataclass(frozen=True)
class EventView:
    """Something happened; ``data`` is what the event says of it."""

    position: int
    type: str
    subject: str
    data: Json


@dataclass(frozen=True)
class DepositView:
    """A deposit, as the server tells."""

    id: DepositId
    sender: Address
    recipient: Address
    state: str
    sequence: int | None
    key_id: str
    key_version: int
    purpose: str
    size: int
    sha256: str
    received_at: datetime
    expires_at: datetime
    collected_at: datetime | None
    settled_at: datetime | None
    rejected: tuple[str, str] | None
    superseded_by: str | None
    respond_by: datetime | None = None


@dataclass(frozen=True)
class ReceiptView:
    """A receipt or refusal, as the server tells, with its bytes."""

    deposit_id: DepositId
    kind: str
    der: bytes


@dataclass(frozen=True)
class Collected:
    """One answer to a collection: the deposit's bytes, or the error's code."""

    id: DepositId
    body: bytes | None
    error: KeymailboxError | None


@dataclass(frozen=True)
class Handed:
    """A deposit that is handed in, alone or together with others."""

    body: bytes
    idempotency_key: str
    supersedes: DepositId | None = None
    respond_by: datetime | None = None


@dataclass(frozen=True)
class Stored:
    """A deposit that the server has taken, and where it stands."""

    id: DepositId
    state: str


def handed(one: Handed) -> Json:
    """Return a deposit as it stands in a request for several."""
    told: dict[str, object] = {
        "body": base64.b64encode(one.body).decode(),
        "idempotency_key": one.idempotency_key,
    }
    if one.supersedes is not None:
        told["supersedes"] = one.supersedes
    if one.respond_by is not None:
        told["respond_by"] = time_text(one.respond_by)
    return told


def authority(body: object) -> AuthorityView:
    """Read the CA's certificates."""
    o = mapping(body)
    former = o.get("former", [])
    if not isinstance(former, list):
        raise _bad("former")
    return AuthorityView(blob(o, "root"), blob(o, "issuing"), tuple(blob({"former": one}, "former") for one in former))


def request_view(body: object) -> RequestView:
    """Read a certificate request's state."""
    o = mapping(body)
    return RequestView(
        id=RequestId(text(o, "id")),
        kind=text(o, "kind", default=""),
        state=text(o, "state"),
        reason=maybe_text(o, "reason"),
        certificate=maybe_blob(o, "certificate"),
        fingerprint=maybe_text(o, "fingerprint"),
        challenge=maybe_blob(o, "challenge"),
        certificate_state=maybe_text(o, "certificate_state"),
    )


def listing(body: object) -> Listing:
    """Read a directory entry."""
    o = mapping(body)
    encryption = o.get("encryption")
    return Listing(
        address=parse_address(text(o, "address")),
        identity=_listed(o.get("identity")),
        encryption=None if encryption is None else _listed(encryption),
        issuing=blob(o, "issuing"),
    )


def history(body: object) -> list[HistoryEntry]:
    """Read the history of an address."""
    return [
        HistoryEntry(
            fingerprint=Fingerprint(text(o, "fingerprint")),
            kind=text(o, "kind"),
            state=text(o, "state"),
            not_before=time(o, "not_before"),
            not_after=time(o, "not_after"),
            revoked_at=maybe_time(o, "revoked_at"),
        )
        for o in items(body, "certificates")
    ]


def own_view(o: Json) -> OwnView:
    """Read one certificate of ours."""
    counts = mapping(o.get("waiting"))
    return OwnView(
        fingerprint=Fingerprint(text(o, "fingerprint")),
        state=text(o, "state"),
        waiting=sum(number(counts, one) for one in counts),
        revoked_by=maybe_text(o, "revoked_by"),
        because=maybe_text(o, "because"),
    )


def event_view(body: Json) -> EventView:
    """Read an event."""
    return EventView(number(body, "position"), text(body, "type"), text(body, "subject"), mapping(body.get("data")))


def expiring_view(o: Json) -> ExpiringView:
    """Read an event that reminds of a certificate's end."""
    data = mapping(o.get("data"))
    return ExpiringView(
        Fingerprint(text(o, "subject")), text(data, "kind"), number(data, "days"), time(data, "not_after")
    )


def sender_policy(body: Json) -> SenderPolicy:
    """Return whom and what a mailbox takes."""
    try:
        mode = SenderMode(text(body, "mode"))
    except ValueError:
        raise MalformedError("The server's answer has an unknown mode", on="mode") from None
    listed = body.get("listed")
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise MalformedError("The server's answer has no list", on="listed")
    lifetime = body.get("max_lifetime")
    return SenderPolicy(
        mode,
        tuple(listed),
        None if body.get("max_bytes") is None else number(body, "max_bytes"),
        None if lifetime is None else timedelta(seconds=number(body, "max_lifetime")),
    )


def deposit_view(body: object) -> DepositView:
    """Read a deposit's state."""
    o = mapping(body)
    rejected = o.get("rejected")
    reason = mapping(rejected) if rejected is not None else None
    return DepositView(
        id=DepositId(text(o, "id")),
        sender=parse_address(text(o, "sender")),
        recipient=parse_address(text(o, "recipient")),
        state=text(o, "state"),
        sequence=maybe_number(o, "sequence"),
        key_id=text(o, "key_id"),
        key_version=number(o, "key_version"),
        purpose=text(o, "purpose", default=""),
        size=number(o, "size"),
        sha256=text(o, "sha256"),
        received_at=time(o, "received_at"),
        expires_at=time(o, "expires_at"),
        collected_at=maybe_time(o, "collected_at"),
        settled_at=maybe_time(o, "settled_at"),
        rejected=(text(reason, "code"), text(reason, "detail", default="")) if reason is not None else None,
        superseded_by=maybe_text(o, "superseded_by"),
        respond_by=maybe_time(o, "respond_by"),
    )


def receipt_view(o: Json) -> ReceiptView:
    """Read one item of the list of receipts."""
    return ReceiptView(DepositId(text(o, "deposit_id")), text(o, "kind"), blob(o, "receipt"))


# One field each


def mapping(value: object) -> Json:
    """Return a JSON object, or raise MalformedError."""
    if not isinstance(value, dict):
        raise MalformedError("The server's answer is not the JSON that was expected", hint="kmb doctor")
    return value


def items(body: object, field: str) -> list[Json]:
    """Return a list of JSON objects."""
    found = mapping(body).get(field)
    if not isinstance(found, list):
        raise _bad(field)
    return [mapping(item) for item in found]


def text(o: Json, field: str, *, default: str | None = None) -> str:
    """Return a text, made safe for a terminal."""
    found = o.get(field)
    if found is None and default is not None:
        return default
    if not isinstance(found, str):
        raise _bad(field)
    return printable(found)


def maybe_text(o: Json, field: str) -> str | None:
    """Return a text or null."""
    return None if o.get(field) is None else text(o, field)


def number(o: Json, field: str) -> int:
    """Return a whole number."""
    found = o.get(field)
    if not isinstance(found, int) or isinstance(found, bool):
        raise _bad(field)
    return found


def maybe_number(o: Json, field: str) -> int | None:
    """Return a whole number or null."""
    return None if o.get(field) is None else number(o, field)


def blob(o: Json, field: str) -> bytes:
    """Return bytes from base64."""
    found = o.get(field)
    if not isinstance(found, str):
        raise _bad(field)
    try:
        return base64.b64decode(found, validate=True)
    except (binascii.Error, ValueError):
        raise _bad(field) from None


def maybe_blob(o: Json, field: str) -> bytes | None:
    """Return bytes from base64, or null."""
    return None if o.get(field) is None else blob(o, field)


def time(o: Json, field: str) -> datetime:
    """Return a time with a zone, in UTC (RFC 3339)."""
    try:
        found = datetime.fromisoformat(text(o, field))
    except ValueError:
        raise _bad(field) from None
    if found.tzinfo is None:
        raise _bad(field)
    return found.astimezone(UTC)


def time_text(moment: datetime) -> str:
    """Return a time as we write it: RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def maybe_time(o: Json, field: str) -> datetime | None:
    """Return a time or null."""
    return None if o.get(field) is None else time(o, field)


def printable(value: str, limit: int = 4000) -> str:
    """Drop what could move a terminal's cursor or colour its letters."""
    return "".join(letter if letter.isprintable() else " " for letter in value[:limit])


def _listed(value: object) -> Listed:
    o = mapping(value)
    return Listed(
        certificate=blob(o, "certificate"),
        request=blob(o, "request"),
        state=text(o, "state"),
        issuing=maybe_blob(o, "issuing"),
    )


def _bad(field: str) -> MalformedError:
    return MalformedError(
        "The server's answer lacks something or has it in the wrong form", on=field, hint="kmb doctor"
    )
