"""Four ears of one recipient: page, long poll, stream and webhook, each as a client of its own hears."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import httpx2

from pki.core import httpsig
from pki.core.errors import KeymailboxError
from pki.tenant.agent import Agent, utc_now
from pki.tenant.client import AccessKey, Client

Heard = list[tuple[int, str, str]]
"""Position, type and subject of each event, in the order in which it came."""


class Ears:
    """Listens for one instance in three ways until it is closed; the fourth, the page, is read at the end."""

    def __init__(self, agent: Agent) -> None:
        """Begin with the first event."""
        self._agent = agent
        self._stop = threading.Event()
        self.polled: Heard = []
        self.streamed: Heard = []
        self.posted: Heard = []
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._poll, self._listen)]
        posted = self.posted

        class Sink(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["content-length"])))
                posted.append((int(told["sequence"]), told["type"], told["subject"]))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Be quiet."""

        self._sink = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
        self._threads.append(threading.Thread(target=self._sink.serve_forever, daemon=True))
        self.hook = f"http://127.0.0.1:{self._sink.server_port}/hook"

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._sink.shutdown()
        self._sink.server_close()

    def page(self) -> Heard:
        """Read all pages."""
        client = self._client()
        found: Heard = []
        after = 0
        while True:
            events, following = client.events(after=after)
            found += [(one.position, one.type, one.subject) for one in events]
            if not events:
                client.close()
                return found
            after = following

    def _client(self) -> Client:
        holder = self._agent.holder
        access = AccessKey(httpsig.key_id(holder.access_public()), holder.sign_request)
        return Client(self._agent.context.server, access, utc_now)

    def _poll(self) -> None:
        client, after = self._client(), 0
        while not self._stop.is_set():
            try:
                events, after = client.events(after=after, wait=2)
            except KeymailboxError:
                self._stop.wait(0.2)
                continue
            self.polled += [(one.position, one.type, one.subject) for one in events]
        client.close()

    def _listen(self) -> None:
        client, last = self._client(), "0"
        while not self._stop.is_set():
            try:
                with client.stream(last) as stream:
                    for message in stream:
                        last = message.id
                        if message.data:
                            told: dict[str, Any] = json.loads(message.data)
                            self.streamed.append((int(message.id), message.event, told["subject"]))
                        if self._stop.is_set():
                            break
            except (KeymailboxError, httpx2.HTTPError, httpx2.StreamError):
                self._stop.wait(0.2)
        # The latest when the server stops.
        client.close()


def once(heard: Heard) -> Heard:
    """Return what was heard without repetitions, which a webhook may have."""
    return list(dict.fromkeys(heard))
