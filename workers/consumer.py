"""Celery's consumer without delayed delivery, which nobody needs; it notices deafness, and queues that are broken."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from celery import bootsteps
from celery.worker import consumer
from celery.worker import state as worker_state
from kombu import Connection, Queue

_log = structlog.get_logger("consumer")

_DELAYED_DELIVERY = "celery.worker.consumer.delayed_delivery:DelayedDelivery"
_LOOK_SECONDS = 2.0
_RETRY_SECONDS = 1
"""Celery asks for a broker that is away more and more seldom, up to every half minute, and would be that late."""
_INTERNAL_ERROR = 541
"""RabbitMQ's reply code (AMQP 0-9-1) for whoever would consume a quorum queue of which only the name is left."""

# The type stubs have no consumer that can be subclassed.
_Consumer: Any = consumer.Consumer


def asking_often(connection: Connection) -> Connection:
    """Have a connection's `ensure_connection` try every second, for as long as it is told to."""
    often = partial(
        connection.ensure_connection, interval_start=_RETRY_SECONDS, interval_step=0, interval_max=_RETRY_SECONDS
    )
    setattr(connection, "ensure_connection", often)  # noqa: B010  # a method of this one object
    return connection


def remove_unread(connection: Connection, names: Iterable[str]) -> None:
    """Delete those of our queues that nobody consumes, so that they are declared anew.

    A RabbitMQ that is killed just after a quorum queue was declared may keep the queue's name without the queue, which
    can then be declared, and never be consumed. Nothing is lost: messages are wake-ups, and the relay sends them again.
    """
    for name in names:
        with suppress(*connection.connection_errors, *connection.channel_errors), connection.channel() as channel:
            queue = Queue(name, channel=channel)
            # What it returns is more than its types say: the broker's whole answer.
            answer: Any = queue.queue_declare(passive=True)
            if answer.consumer_count == 0:
                queue.delete()
                _log.warning("queue_deleted", queue=name, why="the broker cannot have it consumed")


class Listening(bootsteps.StartStopStep):
    """Connects again when the worker is alive and deaf.

    On Redis an acknowledgement that fails is logged and forgotten, yet the message counts as in hand; at a prefetch of
    one, the worker then asks for no other, and so never notices that the connection is gone (celery issues 8030, 8091).
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Look at nothing yet."""
        super().__init__(parent, **kwargs)
        self._entry: Any = None
        self._suspected = False

    def start(self, parent: Any) -> None:
        """Look now and then, where there is an event loop to look from."""
        self._suspected = False
        if parent.hub is not None:
            self._entry = parent.timer.call_repeatedly(_LOOK_SECONDS, self._look, (parent,))

    def stop(self, parent: Any) -> None:
        """Look no more."""
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.cancel()

    def _look(self, parent: Any) -> None:
        # Only the channels of virtual transports count messages themselves.
        counted = getattr(parent.task_consumer.channel, "qos", None)
        deaf = counted is not None and not counted.can_consume() and not worker_state.reserved_requests
        if deaf and self._suspected:
            # The loop takes it for a lost connection, which it is, and connects again.
            raise ConnectionResetError("the worker holds messages that it does not work on")
        self._suspected = deaf


class Consumer(_Consumer):  # type: ignore[misc]  # see above
    """Reads wake-ups."""

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect, however long the broker is away."""
        connected: Connection = super().ensure_connected(asking_often(conn))
        return connected

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Connect again, and have queues that the broker has broken made anew."""
        super().on_connection_error_after_connected(exc)
        if getattr(exc, "reply_code", None) == _INTERNAL_ERROR:
            # The error has closed our own connection.
            with suppress(*self.connection_errors), self.app.connection_for_read() as connection:
                remove_unread(connection, list(self.app.amqp.queues.consume_from))

    class Blueprint(_Consumer.Blueprint):  # type: ignore[misc]  # likewise
        """Celery's steps, but for one more and one less."""

        default_steps = (
            *(step for step in _Consumer.Blueprint.default_steps if step != _DELAYED_DELIVERY),
            "workers.consumer:Listening",
        )
