"""A loopback TCP proxy with which a test takes a database or a broker away, and gives it back."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self

from tests.kit.daemons import LOOPBACK, free_port

CHUNK = 65536


class TcpProxy:
    """Forwards one loopback port to a target until it is cut; its port stays the same all its life."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._connected = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = _bound()
        self._acceptor: threading.Thread | None = None
        self.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The loopback port to connect to."""
        return int(self._listener.getsockname()[1])

    def cut(self) -> None:
        """Drop every connection and refuse new ones; nothing happens if it is cut already."""
        with self._lock:
            self._connected = False
            acceptor, self._acceptor = self._acceptor, None
            if acceptor is not None:
                # On Linux this stops listening, yet keeps the port bound: no one else can take it meanwhile.
                self._listener.shutdown(socket.SHUT_RDWR)
            for connection in self._open:
                _reset(connection)
            self._open.clear()
        if acceptor is not None:
            acceptor.join()

    def hold(self) -> None:
        """Let nothing through any more, and say nothing: what a network does that swallows its packets."""
        self._flowing.clear()

    def restore(self) -> None:
        """Accept connections again, and let through what was held; nothing happens if it does already."""
        self._flowing.set()
        with self._lock:
            if self._acceptor is None:
                self._connected = True
                self._listener.listen(128)
                self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
                self._acceptor.start()

    def close(self) -> None:
        """Cut, and give the port back."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), name="proxy-out", daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        try:
            server = self._reached()
        except OSError:
            _reset(client)
            return
        server.settimeout(None)
        with self._lock:
            if not self._connected:
                _reset(client)
                _reset(server)
                return
            self._open |= {client, server}
        back = threading.Thread(target=self._pump, args=(server, client), name="proxy-back", daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _reached(self) -> socket.socket:
        return socket.create_connection(self._target, timeout=5)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Copy until the source ends, then end the sink's half, so that a half-closed connection stays one."""
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._flowing.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class Balancer(TcpProxy):
    """The same in front of several targets: each connection goes to the next one that takes it."""

    def __init__(self, host: str, ports: list[int]) -> None:
        self._targets = [(host, port) for port in ports]
        self._next = 0
        super().__init__(host, ports[0])

    def _reached(self) -> socket.socket:
        self._next += 1
        for place in range(len(self._targets)):
            with contextlib.suppress(OSError):
                return socket.create_connection(self._targets[(self._next + place) % len(self._targets)], timeout=5)
        raise ConnectionRefusedError


def _bound() -> socket.socket:
    """A socket bound to a free port by its number: Linux keeps only such a port through shutdown and listen."""
    for _ in range(20):
        port = free_port()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            listener.close()
        else:
            return listener
    raise OSError("no loopback port is free")


def _reset(connection: socket.socket) -> None:
    """Drop a connection at once: linger 0 sends a reset, and shutdown wakes the thread that waits in it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
