"""Worker, relay and ticks as threads of the server's own process, on kombu's ``memory://``: nothing else to start."""

from __future__ import annotations

import threading

import structlog
from celery.worker import WorkController
from celery.worker import state as worker_state

from pki.core.errors import KeymailboxError
from pki.server.services.deps import Deps
from workers.app import QUEUES, hush, make_app
from workers.beat import Beat
from workers.couriers import PATIENCE
from workers.handlers import Hands
from workers.relay import Relay, WakeUps

_log = structlog.get_logger("embedded")

_THREADS = 4
_START_SECONDS = 10.0
_STOP_SECONDS = 30.0


class Embedded:
    """Does all the work of a server in its process; one in a process at a time, since Celery's stop flag is global."""

    def __init__(self, deps: Deps) -> None:
        """Share the server's store, whose bell is heard in this process only. Opens the CA's key: SealError."""
        self._app = make_app(deps.settings)
        self._stopping = threading.Event()
        self._hands = Hands(deps, QUEUES, self._stopping.is_set, PATIENCE)
        self._app.hands = self._hands
        self._relay = Relay(deps, WakeUps(self._app, deps.settings))
        self._beat = Beat(deps)
        self._ready = threading.Event()
        self._worker: WorkController | None = None
        self._threads = [
            threading.Thread(target=self._work, name="worker", daemon=True),
            threading.Thread(target=self._relay.run, name="relay", daemon=True),
            threading.Thread(target=self._beat.run, name="beat", daemon=True),
        ]

    def start(self) -> None:
        """Start, and return when the worker listens; raises KeymailboxError when it does not."""
        # Without a default application, what a task of another thread does vanishes silently.
        self._app.set_default()
        hush()
        worker_state.should_stop = None
        for thread in self._threads:
            thread.start()
        if not self._ready.wait(_START_SECONDS):
            raise KeymailboxError("The worker inside of the server does not start", hint="kmb-server doctor")

    def stop(self) -> None:
        """Let running batches end, then stop; what was not begun stays in the outbox."""
        self._stopping.set()
        self._beat.stop()
        self._relay.stop()
        worker_state.should_stop = 0  # type: ignore[assignment]  # an exit code asks the worker to stop
        for thread in self._threads:
            thread.join(_STOP_SECONDS)
            if thread.is_alive():
                _log.warning("still_running", thread=thread.name)
        worker_state.should_stop = None
        self._hands.close()

    def _work(self) -> None:
        self._worker = WorkController(
            app=self._app,
            hostname="embedded@localhost",
            pool="threads",
            concurrency=_THREADS,
            loglevel="WARNING",
            without_mingle=True,
            without_gossip=True,
            without_heartbeat=True,
            ready_callback=lambda _consumer: self._ready.set(),
        )
        self._worker.start()
