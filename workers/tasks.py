"""The one task: do what is due in a queue; the message is the queue's name, all else is read from the database."""

from __future__ import annotations

import os
from typing import cast

from celery import Task, current_app, shared_task
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown

from pki.server import bootstrap
from pki.server.settings import load_settings
from workers.app import QUEUES_VARIABLE, TASK, Application, hush
from workers.handlers import Hands


@shared_task(bind=True, name=TASK)
def drain(self: Task[[str], None], queue: str) -> None:
    """Work off what is due in ``queue``."""
    cast(Application, self.app).working().drain(queue)


@worker_process_init.connect
def open_hands(**_: object) -> None:
    """Give a child process what its tasks work with: opened here, since nothing of it may be shared with others."""
    queues = os.environ[QUEUES_VARIABLE].split(",")
    cast(Application, current_app).hands = Hands(bootstrap.build(load_settings()), queues)


@worker_process_shutdown.connect
def close_hands(**_: object) -> None:
    """Give the connections back."""
    cast(Application, current_app).working().close()


@setup_logging.connect
def log_as_json(**_: object) -> None:
    """Log like the server's other processes."""
    bootstrap.configure_logging(load_settings())
    hush()
