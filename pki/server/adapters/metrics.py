"""A port of its own for figures and liveness: what an operator's machines ask a process, and no tenant."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pki.core.errors import KeymailboxError, SettingsError
from pki.server.metrics import CONTENT_TYPE
from pki.server.settings import Settings

_SECONDS = 10


class Lookout:
    """Answers ``/metrics``, ``/livez`` and ``/readyz`` in threads of its own, so that a busy process answers too."""

    def __init__(self, settings: Settings, figures: Callable[[], bytes], ready: Callable[[], None]) -> None:
        """Listen on KMB_METRICS_HOST and KMB_METRICS_PORT; nowhere when that is 0. Raises SettingsError.

        ``ready`` raises what stands against being of use.
        """
        self._server: ThreadingHTTPServer | None = None
        if not settings.metrics_port:
            return
        try:
            self._server = _Server((settings.metrics_host, settings.metrics_port), _handler(figures, ready))
        except OSError as error:
            raise SettingsError(
                f"The port for figures cannot be had: {error.strerror}",
                on=f"{settings.metrics_host}:{settings.metrics_port}",
                hint="--metrics-port, another for each process on a machine",
            ) from None
        threading.Thread(target=self._server.serve_forever, name="lookout", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: who asked has gone away."""


def _handler(figures: Callable[[], bytes], ready: Callable[[], None]) -> type[BaseHTTPRequestHandler]:
    def is_ready() -> tuple[int, str, bytes]:
        try:
            ready()
        except KeymailboxError as error:
            return 503, "application/json", _json({"status": "unavailable", "detail": str(error), "hint": error.hint})
        return 200, "application/json", _json({"status": "ok"})

    routes: Mapping[str, Callable[[], tuple[int, str, bytes]]] = {
        "/livez": lambda: (200, "application/json", _json({"status": "ok"})),
        "/readyz": is_ready,
        "/metrics": lambda: (200, CONTENT_TYPE, figures()),
    }

    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS
        server_version = "keymailbox"
        sys_version = ""

        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            number, kind, body = route() if route else (404, "text/plain", b"/metrics, /livez and /readyz are here\n")
            self.send_response(number)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: it is asked every few seconds."""

    return Handler


def _json(told: Mapping[str, str]) -> bytes:
    return json.dumps(told, separators=(",", ":")).encode()
