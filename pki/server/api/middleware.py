"""Around every request: an id and a span, one log line, the figures, and an answer even to what nobody foresaw."""

from __future__ import annotations

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pki.server import metrics, tracing
from pki.server.api import problems, shares

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})


class Observed:
    """ASGI middleware; query strings and bodies are never logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = structlog.get_logger("pki.server.api")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        span = tracing.begin("HTTP", _traceparent(scope))
        request_id = tracing.request_id(span.trace)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        metrics.http_open.inc()
        started = time.perf_counter()
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception as error:
            response = problems.unforeseen(error)
            if status == 0:
                await response(scope, receive, observed)
        finally:
            shares.end(scope)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - started
            # The path's template and never the path: the number of series is bounded.
            metrics.http_requests.labels(method, route, str(status)).inc()
            metrics.http_seconds.labels(route).observe(seconds)
            metrics.http_open.dec()
            level = self._log.debug if route in _QUIET else self._log.info
            level("request", method=method, route=route, status=status, ms=round(seconds * 1000, 1))
            span.rename(f"{method} {route}")
            span.note("http.request.method", method)
            span.note("http.route", route)
            span.note("http.response.status_code", status)
            span.end("" if status < 500 else str(status))


def _traceparent(scope: Scope) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), "")
