"""A worker process: Celery's, with child processes that each open their own database session and key."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence

from pki.core.errors import UsageError
from pki.server import bootstrap
from pki.server.settings import PREFIX, Settings
from workers.app import QUEUES, QUEUES_VARIABLE, make_app, queue_name, transport

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
        # A wrong passphrase is said now and here, not by a child for each task.
        bootstrap.signer(settings)
    # The children are fresh interpreters: what the command line said reaches them by the environment.
    os.environ[f"{PREFIX}HOME"] = str(settings.home)
    os.environ[QUEUES_VARIABLE] = ",".join(queues)
    bootstrap.configure_logging(settings)
    logging.captureWarnings(True)
    worker = make_app(settings).Worker(
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
