"""The client signs every attempt anew, repeats only what is safe, and turns problems into the one family of errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pki.core import httpsig
from pki.core.errors import (
    AddressTakenError,
    AlgorithmError,
    BusyError,
    IdempotencyError,
    KeymailboxError,
    MalformedError,
    NotFoundError,
    NotWelcomeError,
    PinError,
    QuotaError,
    RevokedError,
    TooLargeError,
    UnavailableError,
)
from pki.core.ids import DepositId
from pki.core.tenants import parse_address
from pki.tenant import wire
from pki.tenant.client import AccessKey, Client

SERVER = "http://127.0.0.1:1"
NOW = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
ACME = parse_address("acme/eu-west")
KEY = Ed25519PrivateKey.generate()
Answering = Callable[[httpx2.Request], httpx2.Response]


class Scripted:
    """A server that gives the answers it is told to, one after the other, and keeps the requests."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers: Iterator[httpx2.Response | Exception] = iter(answers)
        self.requests: list[httpx2.Request] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a request."""
        request.read()
        self.requests.append(request)
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self) -> Client:
        """Return a client of this server."""
        access = AccessKey(httpsig.key_id(KEY.public_key().public_bytes_raw()), KEY.sign)
        transport = httpx2.MockTransport(self)
        return Client(SERVER, access, lambda: NOW, sleep=self.slept.append, transport=transport)


def away(status: int = 503, **headers: str) -> httpx2.Response:
    """A passing failure."""
    return httpx2.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


def problem(status: int, code: str, retry_after: str = "", **more: str) -> httpx2.Response:
    """A problem as RFC 9457 has it."""
    later = {"retry-after": retry_after} if retry_after else {}
    body = {"type": "about:blank", "title": "A title.", "status": status, "code": code, **more}
    return httpx2.Response(status, json=body, headers={"content-type": "application/problem+json"} | later)


ACCEPTED = {"id": "a" * 32, "state": "received", "status": "/v1/deposits/x"}


def test_a_request_is_signed_for_the_server() -> None:
    """What goes out verifies under the access key: method, URL, body, time."""
    server = Scripted(httpx2.Response(202, json=ACCEPTED))
    server.client().deposit(b"body", idempotency_key="k")
    (request,) = server.requests
    verified = httpsig.verify_request(
        request.method, str(request.url), dict(request.headers), b"body", resolve=lambda _: KEY.public_key(), now=NOW
    )
    assert verified.created == NOW
    assert request.headers["idempotency-key"] == "k"


@pytest.mark.parametrize("failure", [away(), away(502), away(429), httpx2.ReadError("cut"), httpx2.ConnectError("no")])
def test_what_is_idempotent_is_repeated(failure: httpx2.Response | Exception) -> None:
    """A deposit has its key, so it may be repeated: the same bytes, another nonce."""
    server = Scripted(failure, httpx2.Response(202, json=ACCEPTED))
    assert server.client().deposit(b"body", idempotency_key="k") == "a" * 32
    first, second = server.requests
    assert (first.content, first.headers["idempotency-key"]) == (second.content, second.headers["idempotency-key"])
    assert first.headers["signature-input"] != second.headers["signature-input"]
    assert len(server.slept) == 1


@pytest.mark.parametrize("failure", [away(), httpx2.ReadError("cut")])
def test_an_enrolment_is_not_repeated(failure: httpx2.Response | Exception) -> None:
    """An invitation works once: whether it was used, the caller has to find out."""
    server = Scripted(failure)
    with pytest.raises(UnavailableError):
        server.client().enrol("ref", "secret", ACME, b"key", b"request")
    assert len(server.requests) == 1


def test_what_never_left_is_repeated() -> None:
    """A refused connection has done nothing, so even an enrolment may try again."""
    server = Scripted(httpx2.ConnectError("no"), httpx2.Response(201, json={}))
    server.client().enrol("ref", "secret", ACME, b"key", b"request")
    assert len(server.requests) == 2


def test_it_gives_up_in_the_end() -> None:
    """After five attempts the error names the server, and what to do."""
    server = Scripted(*[httpx2.ConnectError("no")] * 5)
    with pytest.raises(UnavailableError) as caught:
        server.client().crl(b"\x01")
    assert SERVER in caught.value.on
    assert caught.value.hint
    assert len(server.requests) == 5
    assert server.slept == sorted(server.slept)


@pytest.mark.parametrize("failure", [away(retry_after="30"), away(retry_after="2")])
def test_who_is_to_stop_does_not_try_again(failure: httpx2.Response) -> None:
    """An agent hears SIGTERM at the end of one attempt, not of five with half a minute between them."""
    server = Scripted(*[failure] * 5)
    client = server.client()
    client.stopping = lambda: sum(server.slept) >= 3
    with pytest.raises(UnavailableError, match="cannot be reached"):
        client.crl(b"\x01")
    assert len(server.requests) < 3 and sum(server.slept) < 4


def test_the_server_says_when_to_come_back() -> None:
    """Retry-After is kept, up to half a minute."""
    server = Scripted(away(retry_after="7"), away(retry_after="86400"), httpx2.Response(200, content=b"crl"))
    assert server.client().crl(b"\x01") == b"crl"
    assert server.slept == [7.0, 30.0]


def test_a_busy_server_is_given_time() -> None:
    """429 has done nothing: the same again after Retry-After, an enrolment as well."""
    busy = problem(429, "busy", retry_after="3")
    server = Scripted(busy, busy, httpx2.Response(201, json={}))
    server.client().enrol("ref", "secret", ACME, b"key", b"request")
    assert server.slept == [3.0, 3.0]


def test_a_full_quota_is_not_waited_for() -> None:
    """What frees up in an hour is told at once, with the time."""
    server = Scripted(problem(429, "quota", detail="Full.", retry_after="3600"))
    with pytest.raises(QuotaError, match="Full") as caught:
        server.client().deposit(b"body", idempotency_key="key")
    assert (caught.value.retry_after, server.slept) == (3600, [])


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "not-welcome", NotWelcomeError),
        (429, "busy", BusyError),
        (429, "quota", QuotaError),
        (404, "not-found", NotFoundError),
        (409, "address-taken", AddressTakenError),
        (409, "idempotency-key-reused", IdempotencyError),
        (413, "too-large", TooLargeError),
        (422, "algorithm-not-allowed", AlgorithmError),
        (422, "certificate-revoked", RevokedError),
        (503, "unavailable", UnavailableError),
    ],
)
def test_a_problem_becomes_its_error(status: int, code: str, kind: type[KeymailboxError]) -> None:
    """The code decides the class; words and rule come along, and what to do is not the server's to say."""
    server = Scripted(*[problem(status, code, detail="Details.", rule="DEP-001", hint="do this")] * 5)
    with pytest.raises(kind) as caught:
        server.client().status(DepositId("a" * 32))
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.rule) == ("Details.", "DEP-001")
    assert caught.value.hint != "do this"


def test_an_unknown_code_is_an_error_all_the_same() -> None:
    """A newer server may have codes that we do not know."""
    with pytest.raises(KeymailboxError, match="Details"):
        Scripted(problem(418, "teapot", detail="Details.")).client().status(DepositId("a" * 32))


def test_a_server_cannot_talk_anybody_into_a_key() -> None:
    """The next command never comes from the server, and its words cannot move the cursor."""
    answer = problem(
        422, "identity-changed", detail="\x1b[2Jall is \x07well", hint="kmb peer verify globex/main --accept"
    )
    with pytest.raises(PinError) as caught:
        Scripted(answer).client().status(DepositId("a" * 32))
    assert caught.value.hint == ""
    assert "\x1b" not in caught.value.message
    assert "\x07" not in caught.value.message


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"items": 3}', b'{"items": [3]}', b'{"items": [{"id": 5}], "next": 1}', b"[" * 100_000],
)
def test_nonsense_is_malformed(content: bytes) -> None:
    """Whatever the server says instead of what was asked is one error, never a traceback."""
    with pytest.raises(MalformedError):
        Scripted(httpx2.Response(200, content=content)).client().page(ACME, after=0)


def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads no more than its limit."""
    monkeypatch.setattr(wire, "_MAX_ANSWER", 1000)
    with pytest.raises(TooLargeError):
        Scripted(httpx2.Response(200, content=b"x" * 1001)).client().crl(b"\x01")


def test_redirects_are_not_followed() -> None:
    """A signature is for one host."""
    with pytest.raises(KeymailboxError):
        Scripted(httpx2.Response(302, headers={"location": "http://evil.example/"})).client().crl(b"\x01")


def test_the_clock_of_the_server() -> None:
    """The difference is told to the second, or not at all."""
    told = httpx2.Response(200, headers={"date": "Mon, 04 May 2026 12:31:00 GMT"})
    skew = Scripted(told).client().skew()
    assert skew is not None
    assert skew.total_seconds() == 60
    assert Scripted(httpx2.Response(200)).client().skew() is None


def test_an_item_of_a_collection_fails_alone() -> None:
    """Each id has its own answer."""
    items = [
        {"id": "a" * 32, "state": "collected", "body": "Ym9keQ=="},
        {"id": "b" * 32, "error": {"code": "expired", "detail": "Gone.", "status": 422}},
    ]
    server = Scripted(httpx2.Response(200, content=json.dumps({"items": items}).encode()))
    good, bad = server.client().collect(ACME, [DepositId("a" * 32), DepositId("b" * 32)])
    assert (good.body, good.error) == (b"body", None)
    assert bad.body is None
    assert bad.error is not None
    assert bad.error.code == "expired"


@pytest.mark.parametrize("odd", ["zz", "ff", "é", "-1", "9" * 19, "1 2"])
def test_a_cursor_of_receipts_is_a_number(odd: str) -> None:
    """It is remembered, so what the server would refuse the next time is refused now."""
    with pytest.raises(MalformedError):
        Scripted(httpx2.Response(200, json={"items": [], "next": odd})).client().receipts()
    for good in ("", "17"):
        assert Scripted(httpx2.Response(200, json={"items": [], "next": good})).client().receipts() == ([], good)
