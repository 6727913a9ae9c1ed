"""The Celery application, made from the server's settings; each setting answers a failure that was seen or reported."""

from __future__ import annotations

import logging
from typing import Any, Protocol
from urllib.parse import urlsplit

from celery import Celery
from kombu import Exchange, Queue

from pki.core.errors import SettingsError, UnavailableError
from pki.server.adapters.broker import answering
from pki.server.settings import Settings

QUEUES = ("validate", "issue", "sequence", "notify", "rotate", "report")
"""The queues, by the name that jobs and bell topics use."""

TASK = "keymailbox.drain"

QUEUES_VARIABLE = "KMB_QUEUES"
"""The queues that a worker serves, with commas between: its child processes are told by the environment."""

TASK_SECONDS = 120
"""A task that runs longer is killed; far below the 30 minutes after which RabbitMQ gives up on a consumer."""


def queue_name(settings: Settings, queue: str) -> str:
    """Return what a queue is called at the broker."""
    return f"{settings.queue_prefix}.{queue}"


def dead_letter_name(settings: Settings) -> str:
    """Return what exchange and queue of the undeliverable wake-ups are called at RabbitMQ."""
    return f"{settings.queue_prefix}.dead"


def transport(settings: Settings) -> str:
    """Return ``amqp``, ``redis`` or ``memory``; raises SettingsError for any other broker."""
    scheme = urlsplit(settings.broker_url).scheme
    known = {"amqp": "amqp", "amqps": "amqp", "pyamqp": "amqp", "redis": "redis", "rediss": "redis", "memory": "memory"}
    if scheme not in known:
        raise SettingsError(
            "The broker is neither RabbitMQ nor Redis",
            on=scheme or "KMB_BROKER_URL",
            hint="KMB_BROKER_URL=amqp://USER@HOST//, redis://HOST/0 or memory://",
        )
    return known[scheme]


class Drains(Protocol):
    """Works a queue off: what the task is handed its queue's name for."""

    def drain(self, queue: str) -> None:
        """Do what is due."""

    def close(self) -> None:
        """Give connections back."""


class Application(Celery):
    """A Celery application that knows what its process works with."""

    hands: Drains | None = None

    def working(self) -> Drains:
        """Return what the tasks of this process work with."""
        if self.hands is None:
            raise UnavailableError("This worker could not open what it works with", hint="its log says why")
        return self.hands


def make_app(settings: Settings) -> Application:
    """Return an application on the broker of ``settings``; nothing connects before it is used."""
    kind = transport(settings)
    app = Application("keymailbox", set_as_current=False)
    app.conf.update(
        broker_url=settings.broker_url,
        include=["workers.tasks"],
        task_queues=tuple(_queue(settings, name, kind) for name in QUEUES),
        task_default_queue=queue_name(settings, "validate"),
        # A misspelt queue is an error, not a new queue that nobody reads.
        task_create_missing_queues=False,
        # A killed worker must not have acknowledged what it had not done, nor hold what it has not begun.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        # An outage may last: at the start, and later.
        broker_connection_retry_on_startup=True,
        broker_connection_retry=True,
        broker_connection_max_retries=None,
        # And a queue may be deleted between its declaration and its consumption: workers.consumer sorts these out.
        broker_channel_error_retry=True,
        broker_connection_timeout=5,
        broker_transport_options=_transport_options(settings, kind),
        # After a connection loss the broker delivers again: the first run stops, so that two do not run side by side.
        worker_cancel_long_running_tasks_on_connection_loss=True,
        # A hanging task is killed; its rows' lease runs out and another takes them.
        task_time_limit=TASK_SECONDS,
        # Forked children share the parent's sockets and locks: fresh interpreters open their own.
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=60,
        # Results and workflow are rows.
        result_backend=None,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # Transient queues are refused from RabbitMQ 4.3 on: exclusive where there are any, and no remote control,
        # so nobody with the broker's password steers a worker.
        control_queue_exclusive=True,
        event_queue_exclusive=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # Global QoS does not exist on quorum queues.
        worker_detect_quorum_queues=True,
        # Nor are there ETAs here, for which Celery would declare thirty more queues.
        worker_consumer="workers.consumer:Consumer",
        # JSON only: nothing that the broker delivers is ever unpickled.
        accept_content=["json"],
        task_serializer="json",
        # Arguments would go to the log.
        task_send_sent_event=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        timezone="UTC",
    )
    return app


def dead_letter_queue(settings: Settings) -> Queue:
    """Return the queue that keeps wake-ups which RabbitMQ could not deliver: the relay looks at it and raises alarm."""
    name = dead_letter_name(settings)
    exchange = Exchange(name, type="fanout", durable=True)
    return Queue(name, exchange, durable=True, queue_arguments={"x-queue-type": "quorum", "x-max-length": 10_000})


def hush() -> None:
    """Keep quiet about every wake-up that was received and followed: the services log what they did."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It misses a host name in memory://.
    logging.getLogger("kombu.connection").setLevel(logging.ERROR)


def _queue(settings: Settings, name: str, kind: str) -> Queue:
    full = queue_name(settings, name)
    arguments: dict[str, Any] = {}
    if kind == "amqp":
        arguments = {
            # Replicated, and written down before it is confirmed.
            "x-queue-type": "quorum",
            # RabbitMQ 4 drops after 20 redeliveries and 3 never does: the same everywhere, and not without a trace.
            "x-delivery-limit": 20,
            "x-dead-letter-exchange": dead_letter_name(settings),
        }
    # Not a direct exchange, which Celery passes by: whoever operates this may bind a queue and see the wake-ups.
    exchange = Exchange(f"{settings.queue_prefix}.wakeups", type="topic", durable=True)
    return Queue(full, exchange, routing_key=full, durable=True, queue_arguments=arguments)


def _transport_options(settings: Settings, kind: str) -> dict[str, Any]:
    if kind == "amqp":
        # Without confirms a publish into a dying connection is lost without a word.
        return {"confirm_publish": True, **answering(settings.broker_url)}
    if kind == "redis":
        # A wake-up that a dead worker held comes back soon; a half-open connection is noticed.
        return {
            # Everything of ours under one prefix, in a Redis that may have other tenants.
            "global_keyprefix": f"{settings.queue_prefix}:",
            "visibility_timeout": 2 * TASK_SECONDS,
            **answering(settings.broker_url),
            "socket_keepalive": True,
            "health_check_interval": 15,
        }
    # In memory nothing wakes the consumer: it looks this often, which costs well under 1 % of a core.
    return {"polling_interval": 0.02}
