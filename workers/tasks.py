"""The one task: do what is due in a queue; the message is the queue's name, all else is read from the database."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import cast

from celery import Task, current_app, shared_task
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown, worker_shutting_down

from pki.server import bootstrap, tracing
from pki.server.settings import load_settings
from workers.app import QUEUES_VARIABLE, TASK, Application, hush
from workers.children import say_stop, stopping
from workers.couriers import PATIENCE
from workers.handlers import Hands


@shared_task(bind=True, name=TASK)
def drain(self: Task[[str], None], queue: str) -> None:
    """Work off what is due in ``queue``."""
    cast(Application, self.app).working().drain(queue)


@worker_process_init.connect
def open_hands(**_: object) -> None:
    """Give a child process what its tasks work with: opened here, since nothing of it may be shared with others."""
    queues = os.environ[QUEUES_VARIABLE].split(",")
    settings = load_settings()
    bootstrap.record_traces(settings, _role(queues))
    cast(Application, current_app).hands = Hands(bootstrap.build(settings), queues, stopping, PATIENCE)
    # The garbage collector is kept away from what will never be garbage: it cost a tenth of a worker's time.
    gc.collect()
    gc.freeze()


@worker_process_shutdown.connect
def close_hands(**_: object) -> None:
    """Give the connections back."""
    cast(Application, current_app).working().close()
    tracing.close()


@worker_shutting_down.connect
def begin_nothing_more(**_: object) -> None:
    """Have the children end with the batches that they are at, in the parent that was told to stop."""
    say_stop()


@setup_logging.connect
def log_as_json(**_: object) -> None:
    """Log like the server's other processes."""
    bootstrap.configure_logging(load_settings())
    hush()


def _role(queues: Sequence[str]) -> str:
    known: dict[tuple[str, ...], str] = {("validate",): "validator", ("issue",): "issuer", ("sequence",): "sequencer"}
    return known.get(tuple(queues), "worker")
