"""The server's API: a method for each thing that one can ask it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from pki.core.errors import (
    AccessError,
    KeymailboxError,
    MalformedError,
    UnavailableError,
)
from pki.core.ids import DepositId, Fingerprint, RequestId
from pki.core.senders import SenderPolicy
from pki.core.tenants import Address
from pki.tenant import messages
from pki.tenant.messages import (
    AuthorityView,
    Collected,
    DepositView,
    EventView,
    ExpiringView,
    Handed,
    HistoryEntry,
    Json,
    Listing,
    OwnView,
    ReceiptView,
    RequestView,
    Stored,
)
from pki.tenant.problems import error_of
from pki.tenant.wire import ATTEMPTS, Wire
from pki.tenant.wire import AccessKey as AccessKey

PAGE = 100
"""Receipts on a page."""
MAX_ANSWERS = 100
"""Receipts that are handed in together."""
_MAX_WAIT = 25
"""Seconds of one long poll; the server's own limit is 30."""
_DIGITS = 18
"""A cursor of receipts has so many at most."""


class Client(Wire):
    """One server, one signer. Methods are named for what they do; each raises an error of the family."""

    # The authority

    def authority(self) -> AuthorityView:
        """Return the certificates that the server names: not verified; compare the root out of band."""
        return messages.authority(self._get("/v1/ca", signed=False).json())

    def crl(self, issuer: bytes) -> bytes | None:
        """Return the newest revocation list of the issuing CA with this key identifier, or None when there is none."""
        answer = self._call("GET", f"/v1/crl/{issuer.hex()}", signed=False, passes=(404,))
        return None if answer.status == 404 else answer.body

    def delta(self, issuer: bytes) -> bytes | None:
        """Return what changed since an earlier revocation list of this issuing CA, or None when there is no such."""
        answer = self._call("GET", f"/v1/crl/{issuer.hex()}/delta", signed=False, passes=(404,))
        return None if answer.status == 404 else answer.body

    def skew(self) -> timedelta | None:
        """Return how far the server's clock is ahead of ours (to the second), if it says."""
        answer = self._get("/livez", signed=False)
        told = answer.headers.get("date")
        if told is None:
            return None
        try:
            return parsedate_to_datetime(told) - self._clock()
        except (ValueError, TypeError):
            return None

    def version(self) -> Json:
        """Return what the server says about itself."""
        return self._get("/version", signed=False).json()

    # Enrolment and certificates

    def enrol(self, reference: str, secret: str, address: Address, access_key: bytes, request: bytes) -> None:
        """Use an invitation. Not tried again by itself: an invitation works once."""
        body = {
            "reference": reference,
            "secret": secret,
            "address": str(address),
            "access_key": base64.b64encode(access_key).decode(),
            "identity_request": base64.b64encode(request).decode(),
        }
        self._post_json("/v1/enrolments", body, idempotent=False)

    def submit_request(self, der: bytes) -> RequestId:
        """Submit a certificate request; the same bytes again are the same request."""
        answer = self._call("POST", "/v1/certificate-requests", body=der, content_type="application/pkcs10")
        return RequestId(messages.text(answer.json(), "id"))

    def request(self, request_id: RequestId, *, wait: float = 0) -> RequestView:
        """Return the state of a request, after waiting for a change up to ``wait`` seconds."""
        path = f"/v1/certificate-requests/{_part(request_id)}"
        return messages.request_view(self._get(path, _seconds(wait)).json())

    def prove(self, request_id: RequestId, sha256: str) -> RequestView:
        """Show that the certificate could be decrypted."""
        path = f"/v1/certificate-requests/{_part(request_id)}/proof"
        return messages.request_view(self._post_json(path, {"sha256": sha256}).json())

    def revoke(self, fingerprint: Fingerprint, revocation: bytes) -> None:
        """Ask to revoke one of our certificates with a signed request."""
        path = f"/v1/certificates/{_part(fingerprint)}/revocation"
        self._call("POST", path, body=revocation, content_type="application/cms")

    def listing(self, address: Address) -> Listing:
        """Return the directory's entry for an address: not verified."""
        return messages.listing(self._get(f"/v1/directory/{address}").json())

    def history(self, address: Address) -> list[HistoryEntry]:
        """Return every certificate of an address, newest first: not verified."""
        return messages.history(self._get(f"/v1/directory/{address}/history").json())

    def own_certificates(self, *, attempts: int = ATTEMPTS) -> list[OwnView]:
        """Return our certificates as the server lists them, newest first, with what waits under each key."""
        body = self._call("GET", "/v1/certificates", attempts=attempts).json()
        return [messages.own_view(item) for item in messages.items(body, "items")]

    def reminders(self, *, after: int) -> tuple[list[ExpiringView], int]:
        """Return a page of reminders that a certificate of ours ends, and the position to go on after."""
        body = self._get("/v1/events", {"after": str(after), "type": "keymailbox.certificate.expiring"}).json()
        found = [messages.expiring_view(item) for item in messages.items(body, "items")]
        return found, messages.number(body, "next")

    # Deposits

    def deposit(
        self,
        body: bytes,
        *,
        idempotency_key: str,
        supersedes: DepositId | None = None,
        respond_by: datetime | None = None,
    ) -> DepositId:
        """Deposit and return the id, as `deposit_one` does."""
        return self.deposit_one(Handed(body, idempotency_key, supersedes, respond_by)).id

    def deposit_one(self, one: Handed) -> Stored:
        """Deposit; the same body under the same key again is the same deposit, wherever it stands by now."""
        headers = {"Idempotency-Key": one.idempotency_key} | ({"Supersedes": one.supersedes} if one.supersedes else {})
        if one.respond_by is not None:
            headers["Respond-By"] = messages.time_text(one.respond_by)
        answer = self._call("POST", "/v1/deposits", body=one.body, content_type="application/cms", headers=headers)
        return _stored(answer.json())

    def deposit_many(self, handed: Sequence[Handed]) -> list[Stored | KeymailboxError]:
        """Deposit several at once, 100 at most; each gets its own answer, in order, or what is wrong with it.

        Raises what fails the whole request; the same again under the same keys is the same deposits.
        """
        items = [messages.handed(one) for one in handed]
        told = messages.items(self._post_json("/v1/deposits/batch", {"items": items}).json(), "items")
        if len(told) != len(handed):
            raise MalformedError("The server's answer has not one item for each deposit", hint="kmb doctor")
        return [_deposited(item, one.idempotency_key) for item, one in zip(told, handed, strict=True)]

    def status(self, deposit_id: DepositId, *, wait: float = 0) -> DepositView:
        """Return a deposit's state; with ``wait``, once it is validated or the seconds have passed."""
        query = _seconds(wait) | ({"state": "received"} if wait > 0 else {})
        return messages.deposit_view(self._get(f"/v1/deposits/{_part(deposit_id)}", query).json())

    def withdraw(self, deposit_id: DepositId) -> DepositView:
        """Take back a deposit that was not collected yet."""
        return messages.deposit_view(self._post_json(f"/v1/deposits/{_part(deposit_id)}/withdrawal", {}).json())

    def page(self, address: Address, *, after: int, limit: int = 100, wait: float = 0) -> tuple[list[DepositView], int]:
        """Return our mailbox's deposits after a sequence number, and the number to go on from."""
        query = {"after": str(after), "limit": str(limit)} | _seconds(wait)
        body = self._get(f"/v1/mailboxes/{address}", query).json()
        return [messages.deposit_view(item) for item in messages.items(body, "items")], messages.number(body, "next")

    def collect(self, address: Address, ids: Sequence[DepositId]) -> list[Collected]:
        """Fetch the bytes of deposits; each id gets its own answer."""
        body = self._post_json(f"/v1/mailboxes/{address}/collection", {"ids": list(ids)}).json()
        return [_collected(item) for item in messages.items(body, "items")]

    def senders(self, address: Address) -> SenderPolicy:
        """Return whom and what our mailbox takes."""
        return messages.sender_policy(self._get(f"/v1/mailboxes/{address}/senders").json())

    def set_senders(self, address: Address, policy: SenderPolicy) -> SenderPolicy:
        """Choose whom and what our mailbox takes."""
        lifetime = policy.max_lifetime
        told = {
            "mode": policy.mode.value,
            "listed": list(policy.listed),
            "max_bytes": policy.max_bytes,
            "max_lifetime": None if lifetime is None else int(lifetime.total_seconds()),
        }
        answer = self._call(
            "PUT", f"/v1/mailboxes/{address}/senders", body=json.dumps(told).encode(), content_type="application/json"
        )
        return messages.sender_policy(answer.json())

    def answer(self, deposit_id: DepositId, receipt: bytes) -> None:
        """Hand in a signed receipt or refusal."""
        path = f"/v1/deposits/{_part(deposit_id)}/receipt"
        self._call("POST", path, body=receipt, content_type="application/cms")

    def answer_all(self, answers: Sequence[tuple[DepositId, bytes]]) -> list[KeymailboxError | None]:
        """Hand in signed receipts and refusals, 100 at most; for each None, or why it was not taken."""
        items = [{"deposit_id": one, "receipt": base64.b64encode(der).decode()} for one, der in answers]
        body = json.dumps({"items": items}).encode()
        # A server of before takes one at a time.
        answer = self._call("POST", "/v1/receipts", body=body, content_type="application/json", passes=(404, 405))
        if answer.status in (404, 405):
            return [self._answered(one, der) for one, der in answers]
        told = messages.items(answer.json(), "items")
        if [item.get("deposit_id") for item in told] != [one for one, _ in answers]:
            raise MalformedError("The server did not answer each receipt", hint="kmb doctor")
        errors = [item.get("error") for item in told]
        return [None if one is None else error_of(messages.mapping(one), 400, "receipt") for one in errors]

    def _answered(self, deposit_id: DepositId, receipt: bytes) -> KeymailboxError | None:
        try:
            self.answer(deposit_id, receipt)
        except (UnavailableError, AccessError):
            raise
        except KeymailboxError as error:
            return error
        return None

    def events(self, *, after: int, wait: float = 0) -> tuple[list[EventView], int]:
        """Return a page of events that concern us past a position, and the position to go on after."""
        body = self._get("/v1/events", {"after": str(after), "limit": "500"} | _seconds(wait)).json()
        return [messages.event_view(item) for item in messages.items(body, "items")], messages.number(body, "next")

    def newest_event(self) -> int:
        """Return the position of the newest event that concerns us."""
        query = {"after": "0", "limit": "500", "type": "keymailbox.webhook.dead"}
        return messages.number(self._get("/v1/events", query).json(), "next")

    def sent(self, *, state: str | None = None, after: str = "", limit: int = 100) -> tuple[list[DepositView], str]:
        """Return a page of what we sent, and the cursor of the next; an empty cursor is the end."""
        query = {"limit": str(limit)} | ({"state": state} if state else {}) | ({"after": after} if after else {})
        body = self._get("/v1/sent", query).json()
        return [messages.deposit_view(item) for item in messages.items(body, "items")], _cursor(body)

    def receipts(self, *, after: str = "") -> tuple[list[ReceiptView], str]:
        """Return a page of receipts for what we sent: not verified; and the cursor of the next."""
        body = self._get("/v1/receipts", {"limit": str(PAGE)} | ({"after": after} if after else {})).json()
        following = _cursor(body)
        # It is remembered: what an honest server refuses would keep us from our receipts for ever.
        if following and not (following.isascii() and following.isdigit() and len(following) <= _DIGITS):
            raise MalformedError("The server's cursor of receipts is no number", on=following[:40], hint="kmb doctor")
        return [messages.receipt_view(item) for item in messages.items(body, "items")], following


def _collected(item: Json) -> Collected:
    deposit_id = DepositId(messages.text(item, "id"))
    error = item.get("error")
    if error is not None:
        return Collected(deposit_id, None, error_of(messages.mapping(error), 400, deposit_id))
    return Collected(deposit_id, messages.blob(item, "body"), None)


def _deposited(item: Json, on: str) -> Stored | KeymailboxError:
    error = item.get("error")
    if error is not None:
        return error_of(messages.mapping(error), 400, on)
    return _stored(item)


def _stored(item: Json) -> Stored:
    return Stored(DepositId(messages.text(item, "id")), messages.text(item, "state"))


def _cursor(body: Json) -> str:
    found = body.get("next")
    if found is None:
        return ""
    return str(found) if isinstance(found, int) else messages.text(body, "next")


def _part(value: str) -> str:
    return quote(value, safe="")


def _seconds(wait: float) -> dict[str, str]:
    return {"wait": str(int(min(wait, _MAX_WAIT)))} if wait >= 1 else {}
