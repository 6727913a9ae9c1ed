"""An agent hears on a stream where one gets through, and by long polls where none does; it goes on where it was."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pki.core import httpsig
from pki.core.errors import KeymailboxError
from pki.core.tenants import parse_address
from pki.tenant import listening, wire
from pki.tenant.agent import utc_now
from pki.tenant.client import AccessKey, Client
from pki.tenant.journal import Journal
from pki.tenant.listening import Listener
from pki.tenant.records.marks import EVENTS
from tests.kit.memory_holder import MemoryHolder

OWN = "globex/main"


def event(position: int, kind: str, **data: str) -> dict[str, object]:
    """Return an event as the server tells it."""
    return {"position": position, "type": f"keymailbox.{kind}", "subject": "x", "data": data}


def block(told: dict[str, object]) -> bytes:
    """Return an event as it stands in a stream."""
    return f"id: {told['position']}\nevent: {told['type']}\ndata: {json.dumps(told)}\n\n".encode()


class Server(ThreadingHTTPServer):
    """Tells a stream as a test says, and pages of events."""

    daemon_threads = True

    def __init__(self, stream: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.stream = stream
        self.asked: list[tuple[str, str]] = []
        self.events: list[dict[str, object]] = []
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_GET(self) -> None:
        """Answer it."""
        path = urlsplit(self.path).path
        self.server.asked.append((path, self.headers.get("Last-Event-ID", "")))
        if path.endswith("/stream"):
            self.server.stream(self)
            return
        content = json.dumps({"items": self.server.events, "next": 9}).encode()
        self.server.events = []
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@contextmanager
def listener(
    stream: Callable[[BaseHTTPRequestHandler], None], room: Path
) -> Iterator[tuple[Listener, Server, Journal]]:
    """Listen to a server that tells this stream."""
    holder = MemoryHolder()
    access = AccessKey(httpsig.key_id(holder.create_access()), holder.sign_request)
    server = Server(stream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    client = Client(f"http://127.0.0.1:{server.server_port}", access, utc_now, sleep=lambda seconds: None)
    journal = Journal(room / "journal.sqlite")
    made = Listener(client, journal, parse_address(OWN), sleep=time.sleep)
    try:
        yield made, server, journal
    finally:
        server.ended.set()
        made.close()
        client.close()
        journal.close()
        server.shutdown()
        server.server_close()


def head(handler: BaseHTTPRequestHandler) -> None:
    """Begin a stream."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.end_headers()


def heard(made: Listener, step: str) -> set[str]:
    """Return what events ask for until one of them asks for this step."""
    asked: set[str] = set()
    deadline = time.monotonic() + 20
    while step not in asked and time.monotonic() < deadline:
        asked |= made.wait(1)
    return asked


@pytest.mark.parametrize(
    ("type_", "steps"),
    [
        ("deposit.rejected", {"rejections", "rewrap", "alarms"}),
        ("deposit.quarantined", {"rewrap"}),
        ("deposit.overdue", {"alarms"}),
    ],
)
def test_what_goes_wrong_with_ours_asks_for_what_mends_it(tmp_path: Path, type_: str, steps: set[str]) -> None:
    """And for a look at what it did not."""

    def stream(handler: BaseHTTPRequestHandler) -> None:
        head(handler)
        handler.wfile.write(b"id: 3\nretry: 1000\n\n" + block(event(4, type_, sender=OWN, recipient="acme/a")))
        assert isinstance(handler.server, Server)
        handler.server.ended.wait(30)

    with listener(stream, tmp_path) as (made, _, _):
        made.begin()
        assert heard(made, "alarms" if "alarms" in steps else "rewrap") == steps


def test_events_ask_for_steps(tmp_path: Path) -> None:
    """Only those that concern us, by our part in them; a stream that ends is taken up after the last id."""

    def stream(handler: BaseHTTPRequestHandler) -> None:
        head(handler)
        begin = handler.headers.get("Last-Event-ID", "3")
        handler.wfile.write(f"id: {begin}\nretry: 1000\n\n".encode())
        if begin == "3":
            handler.wfile.write(block(event(4, "deposit.available", sender=OWN, recipient="acme/a")))
            handler.wfile.write(block(event(5, "deposit.available", sender="acme/a", recipient=OWN)))
            handler.wfile.write(block(event(6, "deposit.acknowledged", sender=OWN, recipient="acme/a")))
            handler.wfile.write(b"event: odd\ndata: no json\n\nid: 7\n\n")
        else:
            handler.wfile.write(block(event(8, "certificate.revoked", address=OWN)))
            assert isinstance(handler.server, Server)
            handler.server.ended.wait(30)

    with listener(stream, tmp_path) as (made, server, journal):
        made.begin()
        assert heard(made, "rewrap") == {"receive", "receipts", "revocations", "renew", "rewrap"}
        assert made.mode == "stream"
        assert server.asked[:2] == [("/v1/events/stream", ""), ("/v1/events/stream", "7")]
        made.keep()
        assert journal.marks.text(EVENTS) == "8"


def refuse(handler: BaseHTTPRequestHandler) -> None:
    """Know of no stream, as a server of before."""
    handler.send_error(404)


def hold_body(handler: BaseHTTPRequestHandler) -> None:
    """Be a proxy that waits for more before it passes anything on."""
    head(handler)
    assert isinstance(handler.server, Server)
    handler.server.ended.wait(30)


def hold_head(handler: BaseHTTPRequestHandler) -> None:
    """Be a proxy that waits for the end."""
    assert isinstance(handler.server, Server)
    handler.server.ended.wait(30)


def something_else(handler: BaseHTTPRequestHandler) -> None:
    """Be a proxy that has an answer of its own."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.mark.parametrize("stream", [refuse, hold_body, hold_head, something_else])
def test_without_a_stream_it_asks(
    stream: Callable[[BaseHTTPRequestHandler], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of before, and proxies that hold streams up: the same events come by long polls."""
    monkeypatch.setattr(listening, "FIRST_SECONDS", 0.3)
    if stream is hold_head:
        monkeypatch.setattr(wire, "_SILENCE", 0.5)
    with listener(stream, tmp_path) as (made, server, _):
        made.begin()
        assert made.mode == "polling"
        server.events = [event(9, "deposit.available", sender="acme/a", recipient=OWN)]
        assert made.wait(1) == {"receive"}
        assert [path for path, _ in server.asked].count("/v1/events/stream") == 1


def test_a_server_that_is_away_is_not_pressed(tmp_path: Path) -> None:
    """Each attempt waits longer, and what keeps it away is told."""

    def away(handler: BaseHTTPRequestHandler) -> None:
        handler.send_error(503)

    with listener(away, tmp_path) as (made, server, _):
        with pytest.raises(KeymailboxError):
            made.begin()
        assert made.mode == "away"
        made._not_before += 60
        began = time.monotonic()
        assert made.wait(0.3) == frozenset()
        assert time.monotonic() - began >= 0.3
        assert len(server.asked) == 1


@pytest.mark.parametrize("odd", ["é", "x", "-1", "9" * 5000, "1 2", "١٢"])
def test_an_odd_place_is_not_remembered(odd: str, tmp_path: Path) -> None:
    """Whatever a server says once, and whatever was remembered before, does not keep the agent from listening."""

    def stream(handler: BaseHTTPRequestHandler) -> None:
        head(handler)
        handler.wfile.write(b"id: 3\nretry: 1000\n\n")
        handler.wfile.write(f"id: {odd}\n\n".encode())
        handler.wfile.write(block(event(5, "deposit.available", sender="acme/a", recipient=OWN)))
        handler.wfile.write(f"id: {odd}\n\n".encode())

    with listener(stream, tmp_path) as (made, server, journal):
        deadline = time.monotonic() + 20
        while len(server.asked) < 2 and time.monotonic() < deadline:
            made.wait(0.1)
        made.keep()
        assert [place for _, place in server.asked[:2]] == ["", "5"]
        assert journal.marks.text(EVENTS) in ("3", "5")
        journal.marks.set(EVENTS, odd)
        again = Listener(made._client, journal, parse_address(OWN), sleep=time.sleep)
        again.begin()
        again.close()
        assert server.asked[-1] == ("/v1/events/stream", "")


@pytest.mark.parametrize("odd", [b"id: x", b"data: {}"])
def test_a_stream_that_begins_nowhere_is_none(odd: bytes, tmp_path: Path) -> None:
    """Then the agent asks instead, and does not end."""

    def stream(handler: BaseHTTPRequestHandler) -> None:
        head(handler)
        handler.wfile.write(odd + b"\n\n")

    with listener(stream, tmp_path) as (made, _, _journal):
        made.begin()
        assert made.mode == "polling"
        made.wait(0.1)


def test_a_stream_without_end_is_not_all_kept(tmp_path: Path) -> None:
    """While a step takes its time so many messages wait and no more; and who read them ends when nobody listens."""
    written = threading.Event()

    def stream(handler: BaseHTTPRequestHandler) -> None:
        head(handler)
        assert isinstance(handler.server, Server)
        try:
            for position in range(1, 3 * listening._MOST_HEARD):
                handler.wfile.write(block(event(position, "deposit.available", sender="acme/a", recipient=OWN)))
            written.set()
            handler.server.ended.wait(30)
        except OSError:
            pass

    # Of tests before this one a reader may just be ending.
    before = set(threading.enumerate())

    def readers() -> int:
        return sum(thread.name == "stream" for thread in set(threading.enumerate()) - before)

    with listener(stream, tmp_path) as (made, _, _journal):
        made.begin()
        assert written.wait(20)
        deadline = time.monotonic() + 20
        while made._heard.qsize() < listening._MOST_HEARD and time.monotonic() < deadline:
            time.sleep(0.01)
        assert made._heard.qsize() == listening._MOST_HEARD
        assert readers() == 1
        made.close()
        while readers() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert readers() == 0
