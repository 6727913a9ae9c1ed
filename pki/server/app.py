"""The HTTP server: the routes with everything behind them, and how it starts and stops."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from pki.server import bootstrap
from pki.server.api import health, routes
from pki.server.api.connections import Connection
from pki.server.api.entrance import Entrance
from pki.server.api.gathering import Gathering
from pki.server.api.middleware import Observed
from pki.server.api.ocsp import Asking
from pki.server.api.places import Places
from pki.server.api.waiting import Waiting
from pki.server.services import notices, receipts
from pki.server.services.deps import Deps
from pki.server.settings import Settings
from pki.server.stopping import FORCED_SECONDS, STOP_SECONDS, end_within

# With eleven of the entrance, one that stores receipts and one for OCSP, no more than the store has connections: who
# asks waits for a thread, never for a connection.
_THREADS = 7
_GRACE_SECONDS = 10


def create_app(settings: Settings, deps: Deps | None = None) -> FastAPI:
    """Return the application; with ``deps`` it shares a store (and its bell) with workers in the same process."""
    behind = deps or bootstrap.build(settings, for_api=True)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = _THREADS
        app.state.answering = Gathering(partial(receipts.answer_all, behind))
        app.state.entrance = Entrance(behind)
        app.state.shares = app.state.entrance.shares
        app.state.waiting = Waiting(behind.store.bell, asyncio.get_running_loop())
        app.state.places = Places(settings)
        app.state.asking = Asking(behind, app.state.waiting)
        sharing = asyncio.create_task(app.state.shares.watch())
        net = asyncio.create_task(app.state.waiting.watch(partial(run_in_threadpool, notices.newest, behind)))
        try:
            yield
        finally:
            net.cancel()
            sharing.cancel()
            app.state.waiting.stop_listening()
            app.state.entrance.close()
            if deps is None:
                behind.store.close()

    app = routes.build()
    routes.busy_first(app)
    app.router.lifespan_context = lifespan
    app.state.deps = behind
    app.state.draining = False
    app.add_middleware(Observed)
    return app


class Server(uvicorn.Server):
    """uvicorn, tuned, and stopping so that nobody is turned away: see `drain` and `shutdown`."""

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
                http=Connection,
                loop="asyncio",
                lifespan="on",
                ws="none",
                timeout_keep_alive=65,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )

    def ready(self) -> None:
        """Raise UnavailableError while requests cannot be served, or will not be for long."""
        health.check(self._app.state.deps, draining=self._app.state.draining)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order at the first signal, at once at the second; the process then ends by itself, with 0."""
        self.force_exit = self.should_exit
        self.should_exit = True
        served = self._app.state.deps.settings.drain_seconds
        end_within(FORCED_SECONDS if self.force_exit else served + STOP_SECONDS)

    async def main_loop(self) -> None:
        """Serve until a signal, and then until those in front have noticed."""
        await super().main_loop()
        self._app.state.draining = True
        await self.drain(self._app.state.deps.settings.drain_seconds)

    async def drain(self, seconds: float) -> None:
        """Go on serving for a while: /readyz says 503, and who keeps a connection is told to take another."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.force_exit:
            self.server_state.default_headers = [*self.config.encoded_headers, (b"connection", b"close")]
            await asyncio.sleep(0.05)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and keep the garbage collector away from what will never be garbage."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer who waits, then stop."""
        self._app.state.waiting.close()
        await super().shutdown(sockets)
