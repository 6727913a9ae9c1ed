"""A worker process: Celery's, with child processes that each open their own database session and key."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pki.core.errors import KeymailboxError, UnavailableError, UsageError
from pki.server import bootstrap
from pki.server.services.deps import Deps
from pki.server.services.upkeep import LATE_SECONDS
from pki.server.settings import PREFIX, Settings
from pki.server.stopping import FORCED_SECONDS, STOP_SECONDS, end_within, told_before
from pki.server.store import lag, outbox
from workers.app import QUEUES, QUEUES_VARIABLE, make_app, queue_name, transport
from workers.children import counted_children

KEYLESS = ("validate", "notify", "rotate", "report")
"""The queues of an ordinary worker: `issue` has the CA's key, and `sequence` is served by one at a time."""


def parse_queues(text: str) -> tuple[str, ...]:
    """Return queue names written with commas between; raises UsageError."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in QUEUES]
    if unknown or not names:
        raise UsageError(
            "There is no such queue" if unknown else "A worker needs a queue",
            on=", ".join(unknown)[:80],
            hint=f"kmb-server worker --queues {','.join(KEYLESS)}",
        )
    return names


def run(settings: Settings, queues: Sequence[str], concurrency: int) -> int:
    """Work until a signal says to stop; return the exit code. Raises SettingsError and SealError before it begins."""
    if transport(settings) == "memory":
        raise UsageError(
            "On memory:// the worker is inside of the server process",
            on=f"{PREFIX}BROKER_URL",
            hint=f"kmb-server dev --home {settings.home}, or set {PREFIX}BROKER_URL",
        )
    if "issue" in queues:
        # A wrong profile, passphrase or PIN is said now and here, not by a child for each task; no key is kept here.
        bootstrap.check_profiles(bootstrap.build(settings))
        bootstrap.check_keys(settings)
    # The children are fresh interpreters: what the command line said reaches them by the environment.
    os.environ[f"{PREFIX}HOME"] = str(settings.home)
    os.environ[QUEUES_VARIABLE] = ",".join(queues)
    bootstrap.configure_logging(settings)
    logging.captureWarnings(True)
    deps = bootstrap.build(settings)
    try:
        with (
            counted_children() as counted,
            bootstrap.watched(deps, "", lambda: _ready(deps, queues), counted=counted),
        ):
            _look_first(deps, queues)
            return _work(settings, queues, concurrency)
    finally:
        deps.store.close()


def _look_first(deps: Deps, queues: Sequence[str]) -> None:
    """Have this worker woken once it listens: what it is to do may have been waiting for long, and seldom rung for."""
    with suppress(KeymailboxError), deps.store.unit() as unit:
        outbox.ring(unit, queues)


def _work(settings: Settings, queues: Sequence[str], concurrency: int) -> int:
    worker = _timed(make_app(settings).Worker)(
        hostname=f"{'-'.join(queues)}@{socket.gethostname()}",
        queues=[queue_name(settings, queue) for queue in queues],
        pool="prefork",
        concurrency=concurrency,
        loglevel="WARNING",
        quiet=True,
        without_mingle=True,
        without_gossip=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


# The type stubs have no worker that can be subclassed.
def _timed(base: Any) -> Any:
    """Return Celery's worker, which ends in time when it is told to stop, whatever its handlers of signals wait for."""

    class Timed(base):  # type: ignore[misc]  # see above
        def install_platform_tweaks(self, worker: Any) -> None:
            super().install_platform_tweaks(worker)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                _time_first(number)

    return Timed


def _time_first(number: int) -> None:
    """Set the timer before Celery's handler is called, which at a second signal waits for the children."""
    handler: Any = signal.getsignal(number)

    def told(number: int, frame: object) -> None:
        end_within(FORCED_SECONDS if told_before() else STOP_SECONDS)
        handler(number, frame)
        if signal.getsignal(number) is not told:
            # It has put another in its place.
            _time_first(number)

    signal.signal(number, told)


def _ready(deps: Deps, queues: Sequence[str]) -> None:
    """A worker can be alive and deaf: what counts is for how long its queues' jobs have been due."""
    deps.store.demand_schema()
    with deps.store.read() as unit:
        late = {queue: age for queue, (_, age) in lag.queues(unit, deps.clock.now(), queues).items()}
    for queue, age in late.items():
        if age > LATE_SECONDS:
            raise UnavailableError(f"A job has been due for {age:.0f} s", on=queue, hint="kmb-server doctor")
