"""Publishes events on a topic exchange, for those who want to listen."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from kombu import Connection, Exchange, Producer

from pki.core.errors import UnavailableError

_CONNECT_TIMEOUT = 5
_PERSISTENT = 2
# Without confirm_publish, a broker that dies takes with it, silently, what it had not stored yet.
_OPTIONS = {"confirm_publish": True, "read_timeout": 15, "write_timeout": 15}


class ExchangePublisher:
    """An EventPublisher (see ports) on the exchange ``<prefix>.events``, routed by type; threads share it."""

    def __init__(self, url: str, prefix: str) -> None:
        """Connect at the first event. ``url`` as kombu reads it, ``prefix`` as in the settings."""
        self._url = url
        self._exchange = Exchange(f"{prefix}.events", type="topic", durable=True)
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._lock = threading.Lock()

    def publish(self, events: Sequence[Mapping[str, object]]) -> None:
        """Hand over CloudEvents in their order; return when the broker has confirmed all. Raises UnavailableError."""
        with self._lock:
            connection = self._connection or self._open()
            failures: tuple[type[BaseException], ...] = (
                *connection.connection_errors,
                *connection.channel_errors,
                OSError,
            )
            try:
                producer = self._producer or self._produce(connection)
                for event in events:
                    self._publish(producer, event)
            except failures as error:
                self._drop()
                raise UnavailableError("The broker is away", on=type(error).__name__) from None

    def close(self) -> None:
        """Close the connection; the next event opens another."""
        with self._lock:
            self._drop()

    def _open(self) -> Connection:
        options: dict[str, Any] = dict(_OPTIONS)
        self._connection = Connection(self._url, connect_timeout=_CONNECT_TIMEOUT, transport_options=options)
        return self._connection

    def _produce(self, connection: Connection) -> Producer:
        self._producer = Producer(connection.channel(), exchange=self._exchange, auto_declare=True)
        return self._producer

    def _publish(self, producer: Producer, event: Mapping[str, object]) -> None:
        producer.publish(
            structured(event),
            routing_key=str(event["type"]),
            content_type=JSONFormat.CONTENT_TYPE,
            content_encoding="utf-8",
            delivery_mode=_PERSISTENT,
            message_id=str(event["id"]),
            retry=False,
        )

    def _drop(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            connection.release()


def structured(event: Mapping[str, object]) -> bytes:
    """Return a CloudEvent in structured JSON (CloudEvents JSON format §3); raises when an attribute is not allowed."""
    attributes: dict[str, Any] = {name: value for name, value in event.items() if name != "data"}
    attributes["time"] = datetime.fromisoformat(str(attributes["time"]))
    data: Any = event.get("data")
    return JSONFormat().write(CloudEvent(attributes, data))
