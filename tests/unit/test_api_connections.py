"""What a connection takes for a request, and what it refuses, tried on a socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from pki.server.api import connections
from pki.server.api.connections import MOST_HEAD, Connection
from tests.kit.daemons import free_port
from tests.kit.processes import wait_until

HOST = b"Host: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass
class Echo:
    """Answers with what it was asked; ``/held`` only begins, and goes on when it is told to, or its client is gone.

    ``/pieces`` has no length, ``/large`` has 50 kB.
    """

    port: int
    serving: set[Any] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self.asked.append(scope["path"])
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.append(scope["path"])
                return
            body, more = body + message["body"], message["more_body"]
        if scope["path"] == "/held":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            self.held.append(scope["path"])
            await receive()
            self.gone.append(scope["path"])
            return
        if scope["path"] == "/pieces":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first,", "more_body": True})
            await send({"type": "http.response.body", "body": b"second"})
            return
        target = f"{scope['raw_path'].decode()}?{scope['query_string'].decode()}"
        fields = [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]]
        told = json.dumps([scope["method"], target, fields, body.decode()]).encode()
        if scope["path"] == "/large":
            told = b"x" * 50_000
        size = str(len(told)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", size)]})
        await send({"type": "http.response.body", "body": told})

    def connect(self) -> socket.socket:
        """Return a new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(self, *parts: bytes) -> tuple[list[int], Any]:
        """Send bytes in parts, close our half, and return the answers' statuses and the last one's JSON."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.02 if len(parts) > 1 else 0)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            told = until(connection)
        statuses = [int(one[:3]) for one in told.split(b"HTTP/1.1 ")[1:]]
        return statuses, json.loads(told.rpartition(b"\r\n\r\n")[2]) if statuses[-1:] == [200] else None


def until(connection: socket.socket, end: bytes | None = None) -> bytes:
    """Read until there is no more, or what was read ends in ``end``."""
    told = b""
    # Who had sent more than was read is reset after the answer.
    with suppress(ConnectionResetError):
        while (end is None or not told.endswith(end)) and (part := connection.recv(65536)):
            told += part
    return told


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    """A server whose requests are looked at instead of being served."""
    told = Echo(free_port())
    config = uvicorn.Config(told, port=told.port, http=Connection, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    told.serving = server.server_state.connections
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        wait_until(lambda: server.started, 10)
        yield told
    finally:
        server.should_exit = True
        thread.join(20)


TAKEN = {
    "a query": (b"GET /a?b=%41?c HTTP/1.1\r\n" + HOST + b"\r\n", ["GET", "/a?b=%41?c", [["host", "x"]], ""]),
    "no query": (b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n", ["GET", "/a?", [["host", "x"]], ""]),
    # Routes refuse these: they have to see them.
    "a fragment": (b"GET /a#b?c#d HTTP/1.1\r\n" + HOST + b"\r\n", ["GET", "/a#b?c#d", [["host", "x"]], ""]),
    "two slashes": (b"GET //y:1/a HTTP/1.1\r\n" + HOST + b"\r\n", ["GET", "//y:1/a?", [["host", "x"]], ""]),
    "white space": (
        b"GET / HTTP/1.1\r\n" + HOST + b"A:\t b\t c \t\r\n\r\n",
        ["GET", "/?", [["host", "x"], ["a", "b\t c"]], ""],
    ),
    "a repeated field": (
        b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\na: c\r\n\r\n",
        ["GET", "/?", [["host", "x"], ["a", "b"], ["a", "c"]], ""],
    ),
    "a length": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc",
        ["POST", "/?", [["host", "x"], ["content-length", "3"]], "abc"],
    ),
    "chunks": (
        CHUNKED + b"3;ext=1\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
        ["POST", "/?", [["host", "x"], ["transfer-encoding", "chunked"]], "abcd"],
    ),
    "trailers": (
        CHUNKED + b"3\r\nabc\r\n0\r\nHost: y\r\nSupersedes: z\r\n\r\n",
        ["POST", "/?", [["host", "x"], ["transfer-encoding", "chunked"]], "abc"],
    ),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", ["GET", "/?", [], ""]),
    # Odd, and taken: none of them moves where a request ends.
    "two spaces": (b"GET  /a  HTTP/1.1\r\n" + HOST + b"\r\n", ["GET", "/a?", [["host", "x"]], ""]),
    "ends of lines before": (b"\r\n\n\rGET /a HTTP/1.1\r\n" + HOST + b"\r\n", ["GET", "/a?", [["host", "x"]], ""]),
    "RTSP's name": (b"GET /a RTSP/1.1\r\n" + HOST + b"\r\n", ["GET", "/a?", [["host", "x"]], ""]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken(echo: Echo, name: str) -> None:
    """A request arrives as it was written; trailers are nobody's."""
    request, expected = TAKEN[name]
    assert echo.ask(request) == ([200], expected)


REFUSED = {
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "the same length twice": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\naa",
    "a list of lengths": POST + b"Content-Length: 1, 1\r\n\r\na",
    "a length with a sign": POST + b"Content-Length: +1\r\n\r\na",
    "a length in hex": POST + b"Content-Length: 0x1\r\n\r\na",
    "no length": POST + b"Content-Length: \r\n\r\n",
    "an endless length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: gzip\r\n\r\n",
    "another coding first": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another coding before": (POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "another coding last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunks twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "nearly chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks after a tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a blank after chunks": POST + b"Transfer-Encoding: chunked \r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk in 0x": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "a chunk with bare LF": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "a chunk without an end": CHUNKED + b"3\r\nabc0\r\n\r\n",
    "a chunk that is longer": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "an endless chunk": CHUNKED + b"fffffffffffffffff\r\nabcd\r\n0\r\n\r\n",
    "a bare LF in a chunk's extension": CHUNKED + b"3;a\nabc\r\n0\r\n\r\n",
    "bare LF": b"GET /a HTTP/1.1\nHost: x\n\n",
    "a bare LF after a field": b"GET /a HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
    "a bare LF at the end": b"GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n\n",
    "a bare CR": b"GET /a HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
    "a folded field": b"GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a folded length": POST + b"Content-Length: 1\r\n 2\r\n\r\n0123456789ab",
    "a fold first": b"GET /a HTTP/1.1\r\n Host: x\r\n\r\n",
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "no name": b"GET /a HTTP/1.1\r\nHost: x\r\n: x\r\n\r\n",
    "no colon": b"GET /a HTTP/1.1\r\nHost: x\r\nabc\r\n\r\n",
    "a name beyond ASCII": b"GET /a HTTP/1.1\r\nHost: x\r\na\x80b: x\r\n\r\n",
    "a NUL in a name": b"GET /a HTTP/1.1\r\nHost: x\r\na\x00b: x\r\n\r\n",
    "a NUL in a value": b"GET /a HTTP/1.1\r\nHost: x\r\na: b\x00x\r\n\r\n",
    "a control in a value": b"GET /a HTTP/1.1\r\nHost: x\r\na: b\x01x\r\n\r\n",
    "no host": b"GET /a HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /a HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET /a HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
    "HTTP/0.9": b"GET /a\r\n\r\n",
    "HTTP/2.0": b"GET /a HTTP/2.0\r\nHost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a method in lower case": b"get /a HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method of nobody's": b"FOO /a HTTP/1.1\r\nHost: x\r\n\r\n",
    "WebDAV's method": b"PROPFIND /a HTTP/1.1\r\nHost: x\r\n\r\n",
    "RTSP's method": b"DESCRIBE /a RTSP/1.1\r\nHost: x\r\n\r\n",
    "Icecast's method": b"SOURCE /a ICE/1.0\r\n\r\n",
    "a proxy's target": b"GET http://y/a?b HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel": b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel to a path": b"CONNECT /a HTTP/1.1\r\nHost: x\r\n\r\n",
    "all of the server": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target beyond ASCII": b"GET /a\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a query beyond ASCII": b"GET /a?\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a control in the target": b"GET /a\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tab in the target": b"GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "a body with an upgrade": (POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"),
    "chunks with an upgrade": (
        POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(echo: Echo, name: str) -> None:
    """What somebody in between may read in another way is answered 400 once, and the connection is closed."""
    assert echo.ask(REFUSED[name]) == ([400], None)
    assert echo.ask(REFUSED[name] + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")[0] == [400]
    assert "/smuggled" not in echo.asked


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_coding_with_a_tab_starts_nothing(echo: Echo, method: bytes) -> None:
    """The parser refuses it after its head, which would be too late: who reads no body would have answered."""
    echo.asked.clear()
    head = method + b" /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\t\r\n\r\n"
    assert (echo.ask(head), echo.asked) == (([400], None), [])


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_http_1_0_is_answered_in_http_1_0(echo: Echo, method: bytes) -> None:
    """It knows neither chunks nor 100: what has no length ends with the connection."""
    with echo.connect() as connection:
        connection.sendall(method + b" /pieces HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na")
        head, _, body = until(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    assert body == b"first,second"


def test_http_1_1_is_answered_in_chunks(echo: Echo) -> None:
    """What has no length ends with the last of them, and the connection is kept."""
    with echo.connect() as connection:
        for _ in range(2):
            connection.sendall(POST.replace(b"/", b"/pieces", 1) + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n")
            assert until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"a")
            assert until(connection, b"0\r\n\r\n").endswith(b"\r\n\r\n6\r\nfirst,\r\n6\r\nsecond\r\n0\r\n\r\n")


@pytest.mark.parametrize("upgrade", [b"", b"Connection: upgrade\r\nUpgrade: h2c\r\n"])
def test_who_does_not_wait_is_answered_once(echo: Echo, upgrade: bytes) -> None:
    """Of requests that come before the last answer the first is answered; then the connection is closed."""
    echo.asked.clear()
    statuses, _ = echo.ask(
        b"GET /first HTTP/1.1\r\n" + upgrade + HOST + b"\r\n" + b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
    )
    assert (statuses, echo.asked) == ([200], ["/first"])
    with echo.connect() as connection:
        for _ in range(3):
            connection.sendall(b"GET /in-turn HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"/in-turn" in until(connection, b"]")


def test_an_upgrade_is_not_followed(echo: Echo) -> None:
    """Who asks for another protocol is answered in this one, and what follows is no request."""
    echo.asked.clear()
    asked = b"GET /first HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert echo.ask(asked, b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n")[0] == [200]
    assert echo.asked == ["/first"]


@pytest.mark.parametrize("then", [b"", b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_who_is_gone_is_noticed(echo: Echo, then: bytes) -> None:
    """A request under way hears that its client is gone, whatever came after it."""
    echo.gone.clear()
    echo.held.clear()
    with echo.connect() as connection:
        connection.sendall(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n" + then)
        wait_until(lambda: echo.held == ["/held"], 10)
        assert not echo.gone
    wait_until(lambda: echo.gone == ["/held"], 10)


HALF = MOST_HEAD // 2
ENDLESS = {
    "a field": [b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"a" * HALF],
    "fields": [b"GET / HTTP/1.1\r\nHost: x\r\n", b"A: a\r\n" * (HALF // 6)],
    "a name": [b"GET / HTTP/1.1\r\nHost: x\r\n", b"a" * HALF],
    "a target": [b"GET /", b"a" * HALF],
    "lines before": [b"", b"\r\n" * (HALF // 2)],
    "a chunk's extension": [CHUNKED + b"3;", b"a" * HALF],
    "a trailer": [CHUNKED + b"0\r\nA: ", b"a" * HALF],
    "trailers": [CHUNKED + b"0\r\n", b"A: a\r\n" * (HALF // 6)],
    "requests that nobody reads": [b"GET /held HTTP/1.1\r\nHost: x\r\n\r\nG", b"a" * HALF],
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_cut_off(echo: Echo, name: str) -> None:
    """The server keeps so much of a head, or of what is no body, and no more: then it closes the connection."""
    first, again = ENDLESS[name]
    with echo.connect() as connection:
        sent = 0
        with suppress(ConnectionError):
            connection.sendall(first)
            while sent < 64:
                connection.sendall(again)
                sent += 1
                time.sleep(0.02)
        assert sent < 64


def test_a_large_head_is_431(echo: Echo) -> None:
    """A head of more than 64 KB is told so, in however few pieces it comes; one below is taken."""
    assert echo.ask(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * (MOST_HEAD - 60) + b"\r\n\r\n")[0] == [200]
    assert echo.ask(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * MOST_HEAD + b"\r\n\r\n")[0] == [431]


def test_a_large_body_in_small_pieces_is_taken(echo: Echo) -> None:
    """What is a body is the routes' to limit."""
    body = b"10\r\n0123456789abcdef\r\n" * 20_000 + b"0\r\n\r\n"
    statuses, told = echo.ask(CHUNKED + body)
    assert (statuses, len(told[3])) == ([200], 320_000)


def test_a_body_that_turns_out_wrong_is_refused(echo: Echo) -> None:
    """Who waits for the rest of it hears that there is none."""
    echo.gone.clear()
    with echo.connect() as connection:
        connection.sendall(CHUNKED + b"3\r\nabc\r\n")
        time.sleep(0.05)
        connection.sendall(b"zz\r\n")
        assert until(connection).startswith(b"HTTP/1.1 400 ")
    wait_until(lambda: echo.gone == ["/"], 10)


@pytest.mark.parametrize("then", ["nothing", "its end", "no request"])
def test_who_leaves_a_little_unread_is_cut_off(echo: Echo, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """However the connection comes to be closed, the server does not wait for its reader for ever."""
    monkeypatch.setattr(connections, "STALLED_SECONDS", 0.5)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", echo.port))
        wait_until(lambda: served(echo, slow), 10)
        [connection] = served(echo, slow)
        kept = connection.transport.get_write_buffer_size
        while served(echo, slow) and not kept():
            echo.asked.clear()
            with suppress(OSError):
                slow.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: kept() or not served(echo, slow) or (echo.asked and connection.cycle.response_complete))
        with suppress(OSError):
            if then == "its end":
                slow.shutdown(socket.SHUT_WR)
            elif then == "no request":
                slow.sendall(b"\x00")
        wait_until(lambda: not served(echo, slow))


def served(echo: Echo, client: socket.socket) -> list[Any]:
    """Return the server's side of a connection, while there is one."""
    return [one for one in list(echo.serving) if one.client == client.getsockname()]
