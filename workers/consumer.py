"""Celery's consumer without its delayed delivery, which nobody here needs, and with an ear for its own deafness."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.worker import consumer
from celery.worker import state as worker_state

_DELAYED_DELIVERY = "celery.worker.consumer.delayed_delivery:DelayedDelivery"
_LOOK_SECONDS = 2.0

# The type stubs have no consumer that can be subclassed.
_Consumer: Any = consumer.Consumer


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

    class Blueprint(_Consumer.Blueprint):  # type: ignore[misc]  # likewise
        """Celery's steps, but for one more and one less."""

        default_steps = (
            *(step for step in _Consumer.Blueprint.default_steps if step != _DELAYED_DELIVERY),
            "workers.consumer:Listening",
        )
