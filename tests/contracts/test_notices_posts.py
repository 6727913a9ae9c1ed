"""A post goes to the address that was looked at, once, within its time, and never into the operator's network."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pki.core.errors import ForbiddenError, KeymailboxError, UnavailableError
from pki.server.adapters.notifiers.webhook import WebhookNotifier, is_public
from tests.kit.threads import together

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


class Sink:
    """A TCP server on loopback that writes down what arrives and says what it was told."""

    def __init__(self, listener: socket.socket, talk: Callable[[socket.socket], None]) -> None:
        self.port: int = listener.getsockname()[1]
        self.heard: list[bytes] = []
        self.connections = 0
        self._listener = listener
        self._talk = talk
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, suppress(OSError):
                connection.settimeout(5)
                self._talk(connection)

    def read(self, connection: socket.socket) -> None:
        """Read one request."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            body += connection.recv(65536)
        self.heard.append(head + b"\r\n\r\n" + body)


@contextmanager
def sink(
    answer: bytes = OK, talk: Callable[[socket.socket], None] | None = None, host: str = "127.0.0.1"
) -> Iterator[Sink]:
    """Listen on loopback."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:

        def say(connection: socket.socket) -> None:
            made.read(connection)
            connection.sendall(answer)

        made = Sink(listener, talk or say)
        yield made
        # A close does not wake who waits in accept; a shutdown does.
        listener.shutdown(socket.SHUT_RDWR)


def test_a_post_arrives_whole() -> None:
    """Method, path, host, headers and body are those that were asked for."""
    with sink() as server:
        status = WebhookNotifier(allow_private=True).post(
            f"http://localhost:{server.port}/in?x=1", {"webhook-id": "7", "content-type": "text/plain"}, b"hello"
        )
    (request,) = server.heard
    lines = request.split(b"\r\n")
    assert status == 204
    assert lines[0] == b"POST /in?x=1 HTTP/1.1"
    lower = [line.lower() for line in lines]
    assert f"host: localhost:{server.port}".encode() in lower
    assert b"webhook-id: 7" in lower
    assert lines[-1] == b"hello"


def test_ipv6_literals_are_reached() -> None:
    """An address in brackets is an address."""
    try:
        with sink(host="::1") as server:
            assert WebhookNotifier(allow_private=True).post(f"http://[::1]:{server.port}/", {}, b"") == 204
            assert server.connections == 1
    except OSError:
        pytest.skip("no IPv6 on this machine")


@pytest.mark.parametrize("status", [200, 204, 301, 302, 307, 404, 410, 500])
def test_the_status_is_told_and_no_redirect_followed(status: int) -> None:
    """Where a receiver points to is not gone to."""
    with sink() as other:
        answer = f"HTTP/1.1 {status} X\r\nLocation: http://127.0.0.1:{other.port}/\r\nContent-Length: 0\r\n\r\n"
        with sink(answer.encode()) as server:
            assert WebhookNotifier(allow_private=True).post(f"http://127.0.0.1:{server.port}/", {}, b"x") == status
            assert server.connections == 1
        assert other.connections == 0


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's own proxy would resolve the name once more."""
    with sink() as proxy, sink() as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        WebhookNotifier(allow_private=True).post(f"http://127.0.0.1:{server.port}/", {}, b"")
        assert (proxy.connections, server.connections) == (0, 1)


def silent(connection: socket.socket) -> None:
    """Say nothing."""
    time.sleep(20)


def drip(connection: socket.socket) -> None:
    """Send a header byte by byte, each in time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
    for _ in range(200):
        connection.sendall(b"y")
        time.sleep(0.1)


@pytest.mark.parametrize("talk", [silent, drip])
def test_a_slow_receiver_has_a_deadline(talk: Callable[[socket.socket], None]) -> None:
    """The whole exchange has one, so that dripping does not help."""
    with sink(talk=talk) as server:
        start = time.monotonic()
        with pytest.raises(UnavailableError, match="in time"):
            WebhookNotifier(allow_private=True, timeout=0.5).post(f"http://127.0.0.1:{server.port}/", {}, b"")
        assert time.monotonic() - start < 15


def test_an_endless_answer_is_not_read() -> None:
    """The status is all that is asked of a receiver."""

    def endless(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"ffff\r\n" + bytes(0xFFFF) + b"\r\n")

    with sink(talk=endless) as server:
        start = time.monotonic()
        assert WebhookNotifier(allow_private=True).post(f"http://127.0.0.1:{server.port}/", {}, b"") == 200
        assert time.monotonic() - start < 9.5


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 999999 \r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000]
)
def test_a_broken_answer_is_no_answer(answer: bytes) -> None:
    """Whatever comes back, the error is ours and says nothing of the inside."""
    with sink(answer) as server, pytest.raises(UnavailableError):
        WebhookNotifier(allow_private=True, timeout=3).post(f"http://127.0.0.1:{server.port}/", {}, b"")


@contextmanager
def keeping(posts_a_connection: int = 100) -> Iterator[Sink]:
    """Listen on loopback, and take several posts over a connection."""

    def talk(connection: socket.socket) -> None:
        for _ in range(posts_a_connection):
            made[0].read(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    made: list[Sink] = []
    with sink(talk=talk) as server:
        made.append(server)
        yield server


def test_a_connection_is_used_again() -> None:
    """For the same host at the same address; another name for it has its own."""
    notifier = WebhookNotifier(allow_private=True)
    with keeping() as server:
        for _ in range(3):
            assert notifier.post(f"http://127.0.0.1:{server.port}/a", {"webhook-id": "7"}, b"x") == 200
        assert server.connections == 1
        assert len(server.heard) == 3
    notifier.close()


def test_several_at_once_have_a_connection_each() -> None:
    """Webhooks at one host that are told at the same time: none of them connects again for its next post."""
    meeting = threading.Barrier(8)
    connections: list[int] = []

    class Ear(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            """Answer when all eight are under way, again and again."""
            connections.append(self.client_address[1])
            while self.request.recv(65536):
                meeting.wait(60)
                self.request.sendall(OK)

    notifier = WebhookNotifier(allow_private=True, timeout=60)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Ear) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        for _ in range(3):
            assert together(8, lambda _: notifier.post(url, {}, b"")) == [204] * 8
        assert len(connections) == 8
        notifier.close()
        server.shutdown()


def test_a_name_has_a_connection_of_its_own() -> None:
    """What was agreed with one host is not used for another one that lies at the same address."""
    notifier = WebhookNotifier(allow_private=True)
    with sink(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as server:
        for host in ("localhost", "127.0.0.1"):
            assert notifier.post(f"http://{host}:{server.port}/", {}, b"") == 200
        assert server.connections == 2
        assert b"host: 127.0.0.1" in server.heard[1].lower()
    notifier.close()


def test_a_connection_that_was_ended_meanwhile_is_no_failure() -> None:
    """The receiver closes after each answer without saying so: the post is sent over a new one."""
    notifier = WebhookNotifier(allow_private=True)
    with keeping(posts_a_connection=1) as server:
        for _ in range(5):
            assert notifier.post(f"http://127.0.0.1:{server.port}/", {}, b"x") == 200
        assert len(server.heard) == 5
    notifier.close()


def test_kept_connections_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receivers that were told longest ago go first."""
    monkeypatch.setattr("pki.server.adapters.notifiers.webhook._KEPT", 2)
    notifier = WebhookNotifier(allow_private=True)
    with ExitStack() as stack:
        servers = [stack.enter_context(sink(b"HTTP/1.1 204 No Content\r\n\r\n")) for _ in range(4)]
        for server in servers:
            assert notifier.post(f"http://127.0.0.1:{server.port}/", {}, b"") == 204
        assert [place[3] for place in notifier._wires._kept] == [server.port for server in servers[2:]]
    notifier.close()


def test_nobody_there_is_no_answer() -> None:
    """A closed port, and a name without an address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", "http://nobody.invalid/"):
        with pytest.raises(UnavailableError):
            WebhookNotifier(allow_private=True, timeout=5).post(url, {}, b"")


def test_tls_is_for_the_name_and_untrusted_is_refused(tmp_path: Path) -> None:
    """The handshake asks for the name, not for the address, and a certificate that nobody vouches for ends it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, start, start + datetime.timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    names: list[str | None] = []
    context.sni_callback = lambda _, server_name, __: names.append(server_name)

    def talk(connection: socket.socket) -> None:
        with suppress(ssl.SSLError):
            context.wrap_socket(connection, server_side=True).close()

    with sink(talk=talk) as server, pytest.raises(UnavailableError):
        WebhookNotifier(allow_private=True).post(f"https://localhost:{server.port}/", {}, b"")
    assert names == ["localhost"]
    assert not server.heard


INSIDE = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "017700000001",
    "0177.0.0.1",
    "127.0.0.53",
    "127.255.255.254",
    "0.0.0.0",
    "0",
    "0.1.2.3",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.254",
    "192.168.0.1",
    "192.168.255.255",
    "100.64.0.1",
    "100.127.255.254",
    "169.254.169.254",
    "169.254.0.1",
    "2852039166",
    "0xa9fea9fe",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:169.254.169.254]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::7f00:1]",
    "[100::1]",
    "[100:0:0:1::1]",
    "[2001::1]",
    "[2001:0:7f00:1::1]",
    "[2001:10::1]",
    "[2001:20::1]",
    "[2001:db8::1]",
    "[2001:2::1]",
    "[2002:7f00:1::1]",
    "[2002:a9fe:a9fe::1]",
    "[3fff::1]",
    "[5f00::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[febf::1]",
    "[fec0::1]",
    "[ff02::1]",
    "[ff0e::1]",
    "[2600:1::5efe:7f00:1]",
    "[2600:1::200:5efe:a9fe:a9fe]",
    "[4000::1]",
    "[e000::1]",
    "[fe80::1%25eth0]",
    "[fe80::1%25lo]",
]


@pytest.fixture(scope="module")
def notifier() -> WebhookNotifier:
    """A notifier as it runs in production."""
    return WebhookNotifier(timeout=2)


@pytest.mark.parametrize("host", INSIDE)
def test_the_inside_is_forbidden(notifier: WebhookNotifier, host: str) -> None:
    """No way of writing an address that is not on the public internet sends a packet."""
    with sink() as server:
        with pytest.raises((ForbiddenError, UnavailableError)) as caught:
            notifier.post(f"https://{host}:{server.port}/", {}, b"")
        assert server.connections == 0
    with suppress(ValueError):
        address = ipaddress.ip_address(host.strip("[]"))
        assert not is_public(address)
        # An address with a zone is no name that anybody resolves: it does not come as far as being forbidden.
        assert isinstance(caught.value, ForbiddenError) or "%" in host


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "https://u:p@example.com/",
        "https:///x",
        "https://",
        "x",
        "",
        "https://[::1/",
        "https://\x00/",
    ],
)
def test_other_urls_are_forbidden(notifier: WebhookNotifier, url: str) -> None:
    """Only https to a host, without a password; the URL is not repeated, for it may hold a token."""
    with pytest.raises(KeymailboxError) as caught:
        notifier.post(url, {}, b"")
    assert isinstance(caught.value, ForbiddenError)
    assert "p@" not in str(caught.value)


@pytest.mark.parametrize("address", ["93.184.215.14", "1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "2a00:1450::1"])
def test_the_outside_is_public(address: str) -> None:
    """Ordinary addresses pass."""
    assert is_public(ipaddress.ip_address(address))


def answers(*addresses: str) -> Callable[..., list[Any]]:
    """Return a resolver that knows these addresses for every name, one set for each question."""
    return lambda host, port, **_: [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses
    ]


def test_one_bad_address_spoils_a_name(notifier: WebhookNotifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a public and a private address is refused, in either order."""
    for addresses in (("93.184.215.14", "127.0.0.1"), ("127.0.0.1", "93.184.215.14"), ()):
        monkeypatch.setattr(socket, "getaddrinfo", answers(*addresses))
        with pytest.raises(ForbiddenError):
            notifier.post("https://hooks.example/", {}, b"")


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look-up, which could say something else, does not happen: the connection goes to what was checked."""
    with sink() as server:
        asked: list[str] = []
        real = socket.getaddrinfo

        def resolve(host: Any, port: Any, *args: Any, **options: Any) -> Any:
            if host != "hooks.example":
                return real(host, port, *args, **options)
            asked.append(host)
            return answers("127.0.0.1" if len(asked) == 1 else "127.0.0.2")(host, port)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        assert WebhookNotifier(allow_private=True).post(f"http://hooks.example:{server.port}/", {}, b"") == 204
        assert asked == ["hooks.example"]
        assert f"host: hooks.example:{server.port}".encode() in server.heard[0].lower()
