"""The HTTP server: the routes with everything behind them, and how it starts and stops."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI

from pki.server import bootstrap
from pki.server.api import routes
from pki.server.api.gathering import Gathering
from pki.server.api.metrics import Metrics
from pki.server.api.middleware import Observed
from pki.server.api.waiting import Waiting
from pki.server.services import deposits
from pki.server.services.deps import Deps
from pki.server.settings import Settings

# No more threads than the store has connections: a request waits for a thread, never for a connection.
_THREADS = 16
_GRACE_SECONDS = 10


def create_app(settings: Settings, deps: Deps | None = None) -> FastAPI:
    """Return the application; with ``deps`` it shares a store (and its bell) with workers in the same process."""
    behind = deps or bootstrap.build(settings)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = _THREADS
        app.state.accepting = Gathering(partial(deposits.accept_all, behind))
        app.state.waiting = Waiting(behind.store.bell, asyncio.get_running_loop())
        try:
            yield
        finally:
            app.state.waiting.stop_listening()
            if deps is None:
                behind.store.close()

    app = routes.build()
    app.router.lifespan_context = lifespan
    app.state.deps = behind
    app.state.metrics = metrics
    app.add_middleware(Observed, metrics=metrics)
    return app


class Server(uvicorn.Server):
    """uvicorn, tuned, and answering who waits in a long poll before it stops."""

    def __init__(self, settings: Settings, deps: Deps | None = None) -> None:
        """Serve ``settings.host`` and ``port``; call run(), or run(sockets=[…]) with a bound socket."""
        self._app = create_app(settings, deps)
        super().__init__(
            uvicorn.Config(
                self._app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                ws="none",
                timeout_keep_alive=65,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and keep the garbage collector away from what will never be garbage."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer who waits, then stop."""
        self._app.state.waiting.close()
        await super().shutdown(sockets)
