"""Celery's consumer without its delayed delivery: a retry here is a row that is due later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery.worker import consumer

_UNWANTED = "celery.worker.consumer.delayed_delivery:DelayedDelivery"

if TYPE_CHECKING:

    class Consumer(consumer.Consumer):
        """Reads wake-ups."""

else:

    class Consumer(consumer.Consumer):
        """Reads wake-ups."""

        class Blueprint(consumer.Consumer.Blueprint):
            """Celery's steps but one."""

            default_steps = tuple(step for step in consumer.Consumer.Blueprint.default_steps if step != _UNWANTED)
