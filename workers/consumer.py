"""Celery's consumer without delayed delivery, which nobody needs; it notices deafness, and queues that are broken."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import structlog
from amqp.exceptions import ConsumerCancelled
from celery import bootsteps
from celery.utils.threads import bound_open_broker_sockets  # type: ignore[attr-defined]  # newer than the stubs
from celery.worker import consumer
from celery.worker import state as worker_state
from kombu import Connection

from workers.broken import INTERNAL_ERROR, NOT_FOUND, Watch, remove_broken

_log = structlog.get_logger("consumer")

_DELAYED_DELIVERY = "celery.worker.consumer.delayed_delivery:DelayedDelivery"
_LOOK_SECONDS = 2.0
_RETRY_SECONDS = 1
"""Celery asks for a broker that is away more and more seldom, up to every half minute, and would be that late."""

_FAREWELL_SECONDS = 2.0
"""For how long to wait for the broker's answer at the end: Celery would for ever. What it did not hear that we have
done comes once more, and a wake-up too many does no harm."""

_STOP_LOOK_SECONDS = 0.2

_DELETED_SECONDS = 1.0
"""How long to wait before a queue that is being deleted is declared anew: RabbitMQ says so before it has done it. What
is declared meanwhile may become a name that can be neither used nor declared (``cluster_not_formed``)."""

# The type stubs have no consumer that can be subclassed.
_Consumer: Any = consumer.Consumer


def asking_often(connection: Connection) -> Connection:
    """Have a connection's `ensure_connection` try every second, for as long as it is told to."""
    often = partial(
        connection.ensure_connection, interval_start=_RETRY_SECONDS, interval_step=0, interval_max=_RETRY_SECONDS
    )
    setattr(connection, "ensure_connection", often)  # noqa: B010  # a method of this one object
    return connection


class _Looking(bootsteps.StartStopStep):
    """Looks at something now and then, from the worker's event loop.

    The loop takes what a look raises for a lost connection, which it is, and connects again.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Look at nothing yet."""
        super().__init__(parent, **kwargs)
        self._entry: Any = None

    def start(self, parent: Any) -> None:
        """Look now and then, where there is an event loop to look from."""
        if parent.hub is not None:
            self._entry = parent.timer.call_repeatedly(_LOOK_SECONDS, self._look, (parent,))

    def stop(self, parent: Any) -> None:
        """Look no more."""
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.cancel()

    def _look(self, parent: Any) -> None:
        raise NotImplementedError


class Listening(_Looking):
    """Connects again when the worker is alive and deaf.

    On Redis an acknowledgement that fails is logged and forgotten, yet the message counts as in hand; at a prefetch of
    one, the worker then asks for no other, and so never notices that the connection is gone (celery issues 8030, 8091).
    """

    def start(self, parent: Any) -> None:
        """Suspect nothing yet."""
        self._suspected = False
        super().start(parent)

    def _look(self, parent: Any) -> None:
        # Only the channels of virtual transports count messages themselves.
        counted = getattr(parent.task_consumer.channel, "qos", None)
        deaf = counted is not None and not counted.can_consume() and not worker_state.reserved_requests
        if deaf and self._suspected:
            raise ConnectionResetError("the worker holds messages that it does not work on")
        self._suspected = deaf


class Reading(_Looking):
    """Connects again when a queue of RabbitMQ's is gone, or nobody reads it, and nobody has told the worker so."""

    _watch: Watch | None = None

    def start(self, parent: Any) -> None:
        """Have the queues looked at."""
        if parent.hub is not None and parent.connection.transport.driver_type == "amqp":
            connect = partial(parent.app.connection_for_read, heartbeat=0)
            self._watch = Watch(connect, list(parent.app.amqp.queues.consume_from))
            self._watch.start()
            super().start(parent)

    def stop(self, parent: Any) -> None:
        """Look no more."""
        super().stop(parent)
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    def _look(self, _parent: Any) -> None:
        lost = sorted(self._watch.lost) if self._watch is not None else []
        if lost:
            _log.warning("unread", queues=lost)
            # Connected again, it declares them.
            raise ConnectionResetError("nobody reads a queue of this worker's")


class Consumer(_Consumer):  # type: ignore[misc]  # see above
    """Reads wake-ups."""

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect, however long the broker is away."""
        connected: Connection = super().ensure_connected(asking_often(conn))
        return connected

    def stop(self) -> None:
        """Read no more wake-ups, whether the broker answers or not."""
        if self.connection is not None:
            bound_open_broker_sockets(self.connection, _FAREWELL_SECONDS)
        super().stop()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Connect again, and have queues that the broker has broken made anew; raises what would not become better."""
        if isinstance(exc, self.channel_errors) and getattr(exc, "reply_code", None) != NOT_FOUND:
            # Such as queues of the same names that are declared otherwise.
            raise exc
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, ConsumerCancelled):
            time.sleep(_DELETED_SECONDS)
        if isinstance(exc, TimeoutError) or getattr(exc, "reply_code", None) == INTERNAL_ERROR:
            # No answer, where there is a broker, is what a queue without a leader gives. One of them keeps the worker
            # from all of its others, and the relay mends only what it has a wake-up for.
            names = list(self.app.amqp.queues.consume_from)
            mending = threading.Thread(
                target=remove_broken, args=(self.app.connection_for_read, names), name="mending", daemon=True
            )
            mending.start()
            # Each may take half a minute. Who is to stop leaves it undone: whoever consumes next does it again.
            while mending.is_alive():
                worker_state.maybe_shutdown()
                mending.join(_STOP_LOOK_SECONDS)

    class Blueprint(_Consumer.Blueprint):  # type: ignore[misc]  # likewise
        """Celery's steps, but for one more and one less."""

        default_steps = (
            *(step for step in _Consumer.Blueprint.default_steps if step != _DELAYED_DELIVERY),
            "workers.consumer:Listening",
            "workers.consumer:Reading",
        )
