"""Contract of every route: who did not sign this very request, just now and for this server, is turned away."""

from __future__ import annotations

import secrets
import select
import socket
from contextlib import suppress
from datetime import timedelta

import httpx2
import pytest

from pki.core.tenants import parse_address
from tests.kit.daemons import NOBODY
from tests.kit.site import Instance, Site, code, now

pytest_plugins = ["tests.kit.api_fixtures"]

PATH = "/v1/sent?limit=5"
REFUSED = (401, "not-authenticated")


@pytest.fixture
def enrolled(site: Site) -> Instance:
    """An instance whose access key is known, and nothing else."""
    made = Instance(site, parse_address("acme/eu-west"))
    assert made.enrol().status_code == 201
    return made


def send(site: Site, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> httpx2.Response:
    """Send a request as it is."""
    return site.http.request(method, path, content=body, headers=headers)


def test_a_signed_request_is_answered(enrolled: Instance) -> None:
    """The signature covers method, path, query and body, and is accepted once."""
    assert enrolled.get(PATH).json() == {"items": [], "next": ""}


def test_a_missing_signature_is_refused(site: Site) -> None:
    """Without a signature there is nothing to see, on any signed route."""
    for method, path in [("GET", PATH), ("POST", "/v1/deposits"), ("GET", "/v1/directory/acme/eu-west")]:
        answer = send(site, method, path, {})
        assert code(answer) == REFUSED
        assert answer.headers["www-authenticate"] == "Signature"


def test_an_unsigned_body_is_not_read(site: Site) -> None:
    """Whoever does not even claim to have signed cannot make the server take a body in."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        head = f"POST /v1/deposits HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_a_stale_signature_is_refused(enrolled: Instance) -> None:
    """A signature is good for five minutes, and for thirty seconds of skew."""
    for age in (timedelta(seconds=302), timedelta(seconds=-120), timedelta(days=400), timedelta(days=-400)):
        answer = enrolled.call("GET", PATH, created=now() - age)
        assert code(answer) == REFUSED
        assert "too old" in answer.json()["detail"]
    assert enrolled.call("GET", PATH, created=now() - timedelta(seconds=200)).status_code == 200


def test_a_replayed_request_is_refused(site: Site, enrolled: Instance) -> None:
    """The very same request a second time is a replay, also on another connection."""
    headers = enrolled.signature("GET", PATH)
    assert send(site, "GET", PATH, headers).status_code == 200
    assert code(httpx2.get(site.url + PATH, headers=headers, trust_env=False, verify=NOBODY)) == (409, "replayed")


@pytest.mark.parametrize(("path", "status"), [("/v1/mailboxes/acme/eu-west", 200), ("/v1/mailboxes/globex/main", 404)])
@pytest.mark.parametrize("query", ["", "?wait=0.1"])
def test_a_poll_is_good_once(site: Site, enrolled: Instance, path: str, status: int, query: str) -> None:
    """Whether it waits or not, and also where it is refused: the second time it is a replay."""
    headers = enrolled.signature("GET", path + query)
    assert send(site, "GET", path + query, headers).status_code == status
    assert code(send(site, "GET", path + query, headers)) == (409, "replayed")


def test_a_nonce_is_one_keys_own(site: Site, enrolled: Instance) -> None:
    """Two keys may happen on the same nonce; one key may not use it twice, for whatever request."""
    other = Instance(site, parse_address("globex/main"))
    assert other.enrol().status_code == 201
    nonce = secrets.token_hex(16)
    assert enrolled.call("GET", PATH, nonce=nonce).status_code == 200
    assert other.call("GET", PATH, nonce=nonce).status_code == 200
    assert code(enrolled.call("GET", "/v1/webhooks", nonce=nonce)) == (409, "replayed")


def test_another_body_is_refused(site: Site, enrolled: Instance) -> None:
    """A signature for one body does not carry another."""
    headers = enrolled.signature("POST", "/v1/deposits", b"signed") | {"Content-Type": "application/cms"}
    answer = send(site, "POST", "/v1/deposits", headers, b"resent")
    assert code(answer) == REFUSED
    assert "another body" in answer.json()["detail"]


def test_a_body_needs_its_digest(site: Site, enrolled: Instance) -> None:
    """Taking the digest away, or putting the other body's in, breaks the signature."""
    for change in (
        {"Content-Digest": ""},
        {"Content-Digest": enrolled.signature("POST", PATH, b"x")["Content-Digest"]},
    ):
        headers = enrolled.signature("GET", PATH) | change
        assert code(send(site, "GET", PATH, {name: value for name, value in headers.items() if value})) == REFUSED


def test_another_target_is_refused(site: Site, enrolled: Instance) -> None:
    """Method, path and query are signed."""
    headers = enrolled.signature("GET", PATH)
    for method, path in [("POST", PATH), ("GET", "/v1/receipts?limit=5"), ("GET", "/v1/sent?limit=6")]:
        answer = send(site, method, path, headers)
        assert code(answer) in (REFUSED, (405, "method-not-allowed"))
    assert send(site, "GET", PATH, headers).status_code == 200


def test_another_hosts_request_is_refused(site: Site, enrolled: Instance) -> None:
    """A server that a tenant also talks to cannot pass the tenant's requests on to this one."""
    foreign = Instance(site, enrolled.address, access=enrolled.access)
    headers = dict(foreign.signature("GET", PATH))
    answer = send(site, "GET", PATH, headers | {"Host": "mallory.example"})
    assert code(answer) == REFUSED
    assert site.url in answer.json()["hint"]


def test_an_unknown_key_is_refused(site: Site) -> None:
    """A good signature under a key that nobody enrolled is worth nothing."""
    stranger = Instance(site, parse_address("nobody/here"))
    assert code(stranger.get(PATH)) == REFUSED


def test_a_flipped_signature_is_refused(site: Site, enrolled: Instance) -> None:
    """Any other signature value is refused, and a garbled one too."""
    headers = enrolled.signature("GET", PATH)
    good = headers["Signature"]
    middle = len(good) // 2
    flipped = good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :]
    for value in (flipped, "kmb=::", "kmb=:AAAA:", "x", 'kmb=:"', good + ", " + good.replace("kmb", "two")):
        assert code(send(site, "GET", PATH, headers | {"Signature": value})) == REFUSED
    for value in ("kmb", "kmb=()", 'kmb=("@method");keyid="x"', "((((", "kmb=" + "(" * 3000, "kmb=1"):
        assert code(send(site, "GET", PATH, headers | {"Signature-Input": value})) == REFUSED
    # None of it has used the nonce up.
    assert send(site, "GET", PATH, headers).status_code == 200


def test_a_signature_that_covers_less_is_refused(site: Site, enrolled: Instance) -> None:
    """What is covered is not the client's to choose."""
    headers = enrolled.signature("GET", PATH)
    less = headers["Signature-Input"].replace(' "@query"', "")
    assert less != headers["Signature-Input"]
    assert code(send(site, "GET", PATH, headers | {"Signature-Input": less})) == REFUSED


def test_an_oversized_body_is_refused_unread(site: Site, enrolled: Instance) -> None:
    """A declared length past the cap is refused before a byte of it is read."""
    size = site.settings.max_body_bytes + 1
    signed = enrolled.signature("POST", "/v1/deposits", b"")
    head = [f"POST /v1/deposits HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nContent-Length: {size}"]
    head += [f"{name}: {value}" for name, value in signed.items()]
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        connection.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_an_oversized_stream_is_cut(site: Site, enrolled: Instance) -> None:
    """A body of undeclared length is read up to the cap and no further."""
    signed = enrolled.signature("POST", "/v1/deposits", b"")
    head = [f"POST /v1/deposits HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nTransfer-Encoding: chunked"]
    head += [f"{name}: {value}" for name, value in signed.items()]
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        connection.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
        answer = b""
        while not answer and sent < 64:
            with suppress(ConnectionError):
                connection.sendall(chunk)
            sent += 1
            if select.select([connection], [], [], 0.2 if sent * 0x10000 > site.settings.max_body_bytes else 0)[0]:
                answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent < 64


BAD_BODIES = [
    ("/v1/webhooks", "application/json", b"{", (400, "malformed")),
    ("/v1/webhooks", "application/json", b"", (400, "malformed")),
    ("/v1/webhooks", "application/json", b"\xff\xfe", (400, "malformed")),
    ("/v1/webhooks", "application/json", b"[" * 100_000, (400, "malformed")),
    ("/v1/webhooks", "application/json", b'{"url": 1}', (400, "bad-request")),
    ("/v1/webhooks", "application/json", b'{"url": "https://a.example/", "more": 1}', (400, "bad-request")),
    ("/v1/webhooks", "application/json", b'{"url": "https://a.example/\\u0000"}', (400, "bad-request")),
    ("/v1/webhooks", "application/json", b"[]", (400, "bad-request")),
    ("/v1/webhooks", "text/plain", b'{"url": "https://a.example/"}', (400, "bad-request")),
    ("/v1/certificate-requests", "application/json", b"{}", (400, "bad-request")),
    ("/v1/certificate-requests", "application/pkcs10", b"", (400, "malformed")),
    ("/v1/certificate-requests", "application/pkcs10", b"\x30\x80\x00\x00", (400, "malformed")),
    ("/v1/certificate-requests", "application/pkcs10", b"\x30" * 8_000, (400, "malformed")),
    ("/v1/nothing", "application/json", b"{}", (404, "not-found")),
]


def test_malformed_bodies_are_told(enrolled: Instance) -> None:
    """What is not JSON or DER, or not the right JSON, is told as such, and never as a server's fault."""
    for path, content_type, body, expected in BAD_BODIES:
        assert code(enrolled.call("POST", path, body, content_type)) == expected, (path, body[:40])


NOWHERE = "/v1/directory/acme/a%2Fb"
BAD_QUERIES = [
    "/v1/mailboxes/acme/eu-west?after=-1",
    "/v1/mailboxes/acme/eu-west?after=99999999999999999999",
    "/v1/mailboxes/acme/eu-west?limit=501",
    "/v1/mailboxes/acme/eu-west?wait=soon",
    "/v1/mailboxes/acme/eu-west?wait=nan",
    "/v1/mailboxes/ACME/eu-west",
    "/v1/mailboxes/acme/%00",
    "/v1/deposits/0",
    "/v1/deposits/%00%00",
    "/v1/sent?after=%00",
    "/v1/sent?state=lost",
    NOWHERE,
]


def test_malformed_queries_are_told(site: Site, enrolled: Instance) -> None:
    """Paths and queries outside of their form are bad requests or nothing that exists, never faults; and good once."""
    for path in BAD_QUERIES:
        headers = enrolled.signature("GET", path)
        answer = send(site, "GET", path, headers)
        assert answer.status_code in (400, 404), path
        code(answer)
        # Where nothing is, nobody asks for a signature.
        again = code(answer) if path == NOWHERE else (409, "replayed")
        assert code(send(site, "GET", path, headers)) == again, path


def test_every_answer_has_an_id(site: Site, enrolled: Instance) -> None:
    """The id under which the log speaks of a request is in its answer, new for each."""
    answers = [enrolled.get(PATH), send(site, "GET", PATH, {}), send(site, "GET", "/livez", {})]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 3
    assert all(len(one) == 32 for one in ids)
