"""The server over HTTP: every request signed, problems turned into the error family, safe things tried again."""

from __future__ import annotations

import base64
import json
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlencode, urlsplit

import httpx2

from pki.core import httpsig
from pki.core.errors import (
    KeymailboxError,
    MalformedError,
    TooLargeError,
    UnavailableError,
)
from pki.core.ids import DepositId, Fingerprint, RequestId
from pki.core.tenants import Address
from pki.tenant import messages
from pki.tenant.messages import Collected, DepositView, HistoryEntry, Json, Listing, ReceiptView, RequestView
from pki.tenant.ports import Clock

_ATTEMPTS = 5
_MAX_ANSWER = 48 * 1024 * 1024
_PASSING = frozenset({429, 502, 503, 504})
_MAX_WAIT = 25
"""Seconds of one long poll; the server's own limit is 30."""


@dataclass(frozen=True)
class AccessKey:
    """Signs requests: the id that the server knows the key by, and the holder's signature over the base."""

    key_id: str
    sign: Callable[[bytes], bytes]


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Json:
        try:
            return messages.mapping(json.loads(self.body))
        except (ValueError, RecursionError):
            raise MalformedError("The server's answer is not JSON", hint="kmb doctor") from None


class Client:
    """One server, one signer. Methods are named for what they do; each raises an error of the family."""

    def __init__(
        self,
        server: str,
        access: AccessKey | None,
        clock: Clock,
        *,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Talk to ``server`` (no slash at its end); without ``access`` only unsigned requests work."""
        self._server = server
        self._access = access
        self._clock = clock
        self._sleep = sleep
        # A proxy from the environment is for the world outside, not for this machine.
        local = urlsplit(server).hostname in ("127.0.0.1", "::1", "localhost")
        self._http = httpx2.Client(
            timeout=httpx2.Timeout(40, connect=10), follow_redirects=False, trust_env=not local, transport=transport
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    # The authority

    def authority(self) -> tuple[bytes, bytes]:
        """Return the root and the issuing certificate that the server names; compare the root out of band."""
        body = self._get("/v1/ca", signed=False).json()
        return messages.blob(body, "root"), messages.blob(body, "issuing")

    def crl(self) -> bytes | None:
        """Return the newest revocation list, or None when the server has none."""
        answer = self._call("GET", "/v1/crl", signed=False, passes=(404,))
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

    # Deposits

    def deposit(self, body: bytes, *, idempotency_key: str, supersedes: DepositId | None = None) -> DepositId:
        """Deposit; the same body under the same key again is the same deposit."""
        headers = {"Idempotency-Key": idempotency_key} | ({"Supersedes": supersedes} if supersedes else {})
        answer = self._call("POST", "/v1/deposits", body=body, content_type="application/cms", headers=headers)
        return DepositId(messages.text(answer.json(), "id"))

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

    def answer(self, deposit_id: DepositId, receipt: bytes) -> None:
        """Hand in a signed receipt or refusal."""
        path = f"/v1/deposits/{_part(deposit_id)}/receipt"
        self._call("POST", path, body=receipt, content_type="application/cms")

    def sent(self, *, state: str | None = None, after: str = "", limit: int = 100) -> tuple[list[DepositView], str]:
        """Return a page of what we sent, and the cursor of the next; an empty cursor is the end."""
        query = {"limit": str(limit)} | ({"state": state} if state else {}) | ({"after": after} if after else {})
        body = self._get("/v1/sent", query).json()
        return [messages.deposit_view(item) for item in messages.items(body, "items")], _cursor(body)

    def receipts(self, *, after: str = "") -> tuple[list[ReceiptView], str]:
        """Return a page of receipts for what we sent: not verified; and the cursor of the next."""
        body = self._get("/v1/receipts", {"after": after} if after else None).json()
        return [messages.receipt_view(item) for item in messages.items(body, "items")], _cursor(body)

    # One request

    def _get(self, path: str, query: Mapping[str, str] | None = None, *, signed: bool = True) -> _Answer:
        return self._call("GET", f"{path}?{urlencode(query)}" if query else path, signed=signed)

    def _post_json(self, path: str, body: Mapping[str, object], *, idempotent: bool = True) -> _Answer:
        content = json.dumps(body).encode()
        return self._call("POST", path, body=content, content_type="application/json", idempotent=idempotent)

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
        idempotent: bool = True,
        passes: Sequence[int] = (),
    ) -> _Answer:
        url = self._server + path
        plain = dict(headers or {}) | ({"Content-Type": content_type} if content_type else {})
        for attempt in range(1, _ATTEMPTS + 1):
            # Each attempt is a request of its own: the server takes a nonce once only.
            full = plain | (self._signature(method, url, plain, body) if signed else {})
            try:
                answer = self._exchange(method, url, full, body)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if attempt == _ATTEMPTS:
                    raise self._away(type(error).__name__) from None
                delay = _back_off(attempt)
            except httpx2.TransportError as error:
                if attempt == _ATTEMPTS or not idempotent:
                    raise self._away(type(error).__name__) from None
                delay = _back_off(attempt)
            else:
                if answer.status < 300 or answer.status in passes:
                    return answer
                if answer.status not in _PASSING or not idempotent or attempt == _ATTEMPTS:
                    raise _problem(answer, f"{method} {urlsplit(url).path}")
                delay = max(_back_off(attempt), _retry_after(answer))
            self._sleep(delay)
        raise self._away("no answer")

    def _exchange(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        with self._http.stream(method, url, headers=dict(headers), content=body or None) as response:
            parts: list[bytes] = []
            size = 0
            for part in response.iter_bytes():
                size += len(part)
                if size > _MAX_ANSWER:
                    raise TooLargeError("The server's answer is larger than the limit", on=urlsplit(url).path)
                parts.append(part)
            named = {name.lower(): value for name, value in response.headers.items()}
            return _Answer(response.status_code, named, b"".join(parts))

    def _signature(self, method: str, url: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        if self._access is None:
            raise UnavailableError("This needs an access key", on=urlsplit(url).path, hint="kmb enroll")
        return httpsig.sign_request(
            method,
            url,
            headers,
            body,
            key_id=self._access.key_id,
            sign=self._access.sign,
            created=self._clock(),
            nonce=secrets.token_hex(16),
        )

    def _away(self, why: str) -> UnavailableError:
        return UnavailableError("The server cannot be reached", on=f"{self._server}: {why}", hint="kmb doctor")


def _collected(item: Json) -> Collected:
    deposit_id = DepositId(messages.text(item, "id"))
    error = item.get("error")
    if error is not None:
        return Collected(deposit_id, None, _from_problem(messages.mapping(error), 400, deposit_id))
    return Collected(deposit_id, messages.blob(item, "body"), None)


def _cursor(body: Json) -> str:
    found = body.get("next")
    if found is None:
        return ""
    return str(found) if isinstance(found, int) else messages.text(body, "next")


def _problem(answer: _Answer, on: str) -> KeymailboxError:
    try:
        return _from_problem(answer.json(), answer.status, on)
    except MalformedError:
        return _from_problem({}, answer.status, on)


def _from_problem(problem: Json, status: int, on: str) -> KeymailboxError:
    """RFC 9457: the code names the class; the words are the server's, and are shown as such."""
    try:
        code = messages.text(problem, "code", default="")
        told = messages.text(problem, "detail", default="") or messages.text(problem, "title", default="")
        rule = messages.text(problem, "rule", default="")
    except MalformedError:
        code = told = rule = ""
    kind = _family().get(code)
    if kind is None:
        kind = UnavailableError if status in _PASSING else KeymailboxError
        told = told or f"The server answered {status}"
    # What to type next is ours to say: a server must not talk anybody into accepting a key.
    return kind(told[:500], on=on, hint=_HINTS.get(code, ""), rule=rule[:20])


_HINTS = {
    "invitation-refused": "ask the operator for: kmb-server tenant invite TENANT --json",
    "address-taken": "choose another instance name: kmb enroll TENANT/OTHER …",
    "unknown-recipient": "check the address with its owner: kmb whoami shows it there",
    "too-large": "send something smaller: keys, not documents",
    "illegal-state": "kmb receipt list shows where everything stands",
}


def _family() -> dict[str, type[KeymailboxError]]:
    found: dict[str, type[KeymailboxError]] = {}
    waiting: list[type[KeymailboxError]] = [KeymailboxError]
    while waiting:
        kind = waiting.pop()
        found[kind.code] = kind
        waiting.extend(kind.__subclasses__())
    return found


def _part(value: str) -> str:
    return quote(value, safe="")


def _seconds(wait: float) -> dict[str, str]:
    return {"wait": str(int(min(wait, _MAX_WAIT)))} if wait >= 1 else {}


def _back_off(attempt: int) -> float:
    return min(0.2 * 2.0**attempt, 5.0) * (0.5 + random.random() / 2)  # noqa: S311  jitter, not a secret


def _retry_after(answer: _Answer) -> float:
    told = answer.headers.get("retry-after", "")
    return min(float(told), 30.0) if told.isdigit() else 0.0
