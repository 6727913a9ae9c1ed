"""Publishes events on a topic exchange, for those who want to listen."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from kombu import Connection, Exchange, Producer

from pki.core.errors import UnavailableError

_CONNECT_TIMEOUT = 5
_REDIS_SECONDS = 5
_PERSISTENT = 2
_CONFIRM_SECONDS = 15
_FAREWELL_SECONDS = 2


def answering(url: str) -> dict[str, Any]:
    """Return the transport options under which a broker that was asked and says nothing is an error.

    By default it is waited for without an end, and a signal is not heard meanwhile. RabbitMQ says nothing for a while
    when it has no leader for a queue; Redis has no such reason.
    """
    if urlsplit(url).scheme in ("redis", "rediss"):
        return {"socket_connect_timeout": _CONNECT_TIMEOUT, "socket_timeout": _REDIS_SECONDS}
    return {"read_timeout": _CONFIRM_SECONDS, "write_timeout": _CONFIRM_SECONDS}


class ExchangePublisher:
    """An EventPublisher (see ports) on the exchange ``<prefix>.events``, routed by type; threads share it."""

    def __init__(self, url: str, prefix: str) -> None:
        """Connect at the first event. ``url`` as kombu reads it, ``prefix`` as in the settings."""
        self._url = url
        self._exchange = Exchange(f"{prefix}.events", type="topic", durable=True)
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._confirms: _Confirms | None = None
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
                    if self._confirms is not None:
                        self._confirms.expect()
                    self._publish(producer, event)
                if self._confirms is not None:
                    self._confirms.wait(connection)
            except failures as error:
                self._drop()
                raise UnavailableError("The broker is away", on=type(error).__name__) from None

    def close(self) -> None:
        """Close the connection; the next event opens another."""
        with self._lock:
            self._drop()

    def _open(self) -> Connection:
        options = answering(self._url)
        self._connection = Connection(self._url, connect_timeout=_CONNECT_TIMEOUT, transport_options=options)
        return self._connection

    def _produce(self, connection: Connection) -> Producer:
        channel = connection.channel()
        self._producer = Producer(channel, exchange=self._exchange, auto_declare=True)
        if connection.transport.driver_type == "amqp":
            self._confirms = _Confirms(channel)
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
        connection, self._connection, self._producer, self._confirms = self._connection, None, None, None
        if connection is not None:
            close_soon(connection)


def close_soon(connection: Connection) -> None:
    """Close a connection in order; a broker that says nothing is waited for two seconds at each of two steps."""
    if connection.connected:
        # py-amqp's; to other brokers nothing is said that wants an answer.
        socket = getattr(getattr(connection.connection, "transport", None), "sock", None)
        if socket is not None:
            socket.settimeout(_FAREWELL_SECONDS)
    connection.release()


def examine(url: str, prefix: str) -> str:
    """Say what there is to say of a broker; raises UnavailableError when it is away or has given wake-ups up."""
    if url.startswith("memory"):
        return "in this process: nothing to be away"
    connection = Connection(url, connect_timeout=_CONNECT_TIMEOUT, transport_options=answering(url))
    failures: tuple[type[BaseException], ...] = (*connection.connection_errors, OSError)
    name = f"{prefix}.dead"
    count = 0
    try:
        connection.connect()
        if connection.transport.driver_type == "amqp":
            # It is not there before the relay has run once.
            with contextlib.suppress(*connection.channel_errors):
                channel: Any = connection.channel()
                count = int(channel.queue_declare(queue=name, passive=True).message_count)
    except failures as error:
        hint = "start it, or set KMB_BROKER_URL right; deposits are accepted meanwhile"
        raise UnavailableError("The broker is away", on=type(error).__name__, hint=hint) from None
    finally:
        close_soon(connection)
    if count:
        hint = f"a worker dies of what it is handed: its log, then rabbitmqctl purge_queue {name}"
        raise UnavailableError(f"{count} wake-ups were given up", on=name, hint=hint)
    return f"{connection.transport.driver_type} answers"


class _Confirms:
    """RabbitMQ's word that it has stored messages, waited for once for all: without it a broker that dies loses them.

    Its own way of waiting, for each message before the next is sent, costs a round trip and a disk for each.
    """

    def __init__(self, channel: Any) -> None:
        channel.confirm_select()
        channel.events["basic_ack"].add(self._stored)
        channel.events["basic_nack"].add(self._refused)
        # The broker counts them from 1, on each channel.
        self._last = 0
        self._open: set[int] = set()

    def expect(self) -> None:
        """One more message is about to be sent."""
        self._last += 1
        self._open.add(self._last)

    def wait(self, connection: Connection) -> None:
        """Return when all that was sent is stored; raises OSError."""
        end = time.monotonic() + _CONFIRM_SECONDS
        while self._open:
            connection.drain_events(timeout=max(end - time.monotonic(), 0.01))

    def _stored(self, tag: int, multiple: bool) -> None:
        self._open = {one for one in self._open if one > tag} if multiple else self._open - {tag}

    def _refused(self, tag: int, multiple: bool) -> None:
        raise ConnectionAbortedError("a message was not stored")


def structured(event: Mapping[str, object]) -> bytes:
    """Return a CloudEvent in structured JSON (CloudEvents JSON format §3); raises when an attribute is not allowed."""
    attributes: dict[str, Any] = {name: value for name, value in event.items() if name != "data"}
    attributes["time"] = datetime.fromisoformat(str(attributes["time"]))
    data: Any = event.get("data")
    return JSONFormat().write(CloudEvent(attributes, data))
