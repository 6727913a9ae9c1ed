"""A loopback TCP proxy with which a test takes a database or a broker away, and gives it back."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self

LOOPBACK = "127.0.0.1"
CHUNK = 65536


class TcpProxy:
    """Forwards one loopback port to a target until it is cut; its port stays the same all its life."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._connected = False
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

    def restore(self) -> None:
        """Accept connections again; nothing happens if it does already."""
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
            server = socket.create_connection(self._target, timeout=5)
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
        back = threading.Thread(target=_pump, args=(server, client), name="proxy-back", daemon=True)
        back.start()
        _pump(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()


def _bound() -> socket.socket:
    """A socket bound to a free port by its number: Linux keeps only such a port through shutdown and listen."""
    for _ in range(20):
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = probe.getsockname()[1]
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            listener.close()
        else:
            return listener
    raise OSError("no loopback port is free")


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the source ends, then end the sink's half, so that a half-closed connection stays one."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _reset(connection: socket.socket) -> None:
    """Drop a connection at once: linger 0 sends a reset, and shutdown wakes the thread that waits in it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
