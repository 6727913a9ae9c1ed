"""A receiver of webhooks on loopback, which remembers what arrived."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Sink:
    """What arrived, and where it listens."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        self.heard: list[str] = []
        """The ids of events, in the order in which their posts came."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 64


@contextmanager
def sink(answering: threading.Event | None = None) -> Iterator[Sink]:
    """Listen until the end of the context; every post is answered 204, once ``answering`` is set."""

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            made.heard.append(self.headers["webhook-id"])
            if answering is not None:
                answering.wait(60)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = _Server(("127.0.0.1", 0), Ear)
    server.daemon_threads = True
    made = Sink(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
