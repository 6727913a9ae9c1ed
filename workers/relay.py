"""The relay turns what was committed to the outbox into wake-ups at the broker, and outlives both of their outages."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn, Protocol

import structlog
from celery import Celery
from kombu import Connection
from kombu.exceptions import KombuError

from pki.core.errors import KeymailboxError, UnavailableError
from pki.server import metrics
from pki.server.adapters.broker import close_soon
from pki.server.services import notices
from pki.server.services.deps import Deps
from pki.server.settings import Settings
from pki.server.store import outbox
from pki.server.store.bell import ANYTHING
from workers.app import QUEUES, TASK, dead_letter_name, dead_letter_queue, queue_name, transport
from workers.broken import remove_broken

_log = structlog.get_logger("relay")

_TOPIC = "queue:"
_POLL_SECONDS = 2.0
"""How often to look into the outbox although no bell rang: the safety net."""
_UNNOTICED_LAST = 6.0
"""Seconds between two wake-ups for events that nobody numbers, at most: with the look after it, less than ten."""
_GAP_SECONDS = 0.02
"""A task claims whatever is due, so one wake-up for a queue in this time is enough."""
_JOBS_A_TASK = 100
_TASKS_AT_ONCE = 8
_PAUSE_FIRST, _PAUSE_LAST = 0.1, 2.0
_CONFIRM_SECONDS = 2.0
"""How long one queue may hold up the others; a broker that is well confirms in milliseconds."""
_ASIDE_SECONDS = 4.0
"""For how long a queue is left alone then, while it is looked at whether it is broken."""
_DEAD_LETTERS_EVERY = 60.0


class UnconfirmedError(Exception):
    """The broker is there, and one of its queues does not say that it has a wake-up; its relay alone hears of it."""


class Publisher(Protocol):
    """Hands wake-ups to a broker; used by one thread."""

    def publish(self, queue: str) -> None:
        """Hand one over; returns when the broker has it. Raises UnavailableError: it may have gone out all the same.

        UnconfirmedError, when it is only this queue that does not take it.
        """

    def mend(self, queue: str) -> None:
        """See to it that a queue that takes nothing is made anew if it is broken; returns at once."""

    def dead_letters(self) -> int:
        """Return how many wake-ups the broker gave up. Raises UnavailableError."""

    def close(self) -> None:
        """Give the connection up."""


class WakeUps:
    """Publishes the names of queues over one connection, made anew after each failure; used by one thread."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        """Connect at the first use."""
        self._app = app
        self._settings = settings
        self._kind = transport(settings)
        self._connection: Connection | None = None
        self._mending: threading.Thread | None = None

    def publish(self, queue: str) -> None:
        """Hand one over; returns when the broker has confirmed it. Raises UnavailableError, UnconfirmedError."""
        try:
            producer = self._app.amqp.Producer(self._connected())
        except Exception as error:
            self._broken(error)
        try:
            self._app.send_task(
                TASK,
                args=(queue,),
                queue=queue_name(self._settings, queue),
                producer=producer,
                retry=False,
                confirm_timeout=_CONFIRM_SECONDS,
                ignore_result=True,
            )
        except Exception as error:
            if isinstance(error.__cause__, TimeoutError):
                self._drop()
                raise UnconfirmedError("The broker does not confirm a wake-up") from None
            self._broken(error)

    def mend(self, queue: str) -> None:
        """Delete a queue of RabbitMQ's that is broken; one at a time, and in a thread: it takes seconds."""
        if self._kind != "amqp" or (self._mending is not None and self._mending.is_alive()):
            return
        connect = partial(self._app.connection_for_write, heartbeat=0)
        names = [queue_name(self._settings, queue)]
        self._mending = threading.Thread(target=remove_broken, args=(connect, names), name="mending", daemon=True)
        self._mending.start()

    def dead_letters(self) -> int:
        """Return how many wake-ups RabbitMQ gave up; 0 at other brokers. Raises UnavailableError."""
        if self._kind != "amqp":
            return 0
        try:
            name = dead_letter_name(self._settings)
            channel: Any = self._connected().default_channel
            return int(channel.queue_declare(queue=name, passive=True).message_count)
        except Exception as error:
            self._broken(error)

    def close(self) -> None:
        """Give the connection up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            close_soon(connection)

    def _connected(self) -> Connection:
        if self._connection is None:
            # No heartbeat: nobody reads between two publishes. A dead peer shows when no confirmation comes.
            connection: Connection = self._app.connection_for_write(heartbeat=0)
            self._connection = connection
            connection.connect()
            if self._kind == "amqp":
                dead_letter_queue(self._settings).bind(connection.default_channel).declare()
        return self._connection

    def _broken(self, error: Exception) -> NoReturn:
        connection = self._connection
        away: tuple[type[BaseException], ...] = (KombuError, OSError)
        if connection is not None:
            away += connection.connection_errors + connection.channel_errors
        self._drop()
        if not isinstance(error, away):
            raise error
        raise UnavailableError("The broker is away", on=type(error).__name__) from None

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.collect(socket_timeout=1)


class Relay:
    """Hears the bell's ``queue:*`` topics, looks into the outbox now and then, and publishes wake-ups."""

    def __init__(self, deps: Deps, wake_ups: Publisher) -> None:
        """Subscribe in run()."""
        self._deps = deps
        self._wake_ups = wake_ups
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._waiting: dict[str, int] = {}
        self._look_at = 0.0
        self._sent: dict[str, float] = {}
        self._unnoticed_pause = _POLL_SECONDS
        self._store_pause = _Pause("database")
        self._broker_pause = _Pause("broker")
        self._dead_letters_at = 0.0

    def run(self) -> None:
        """Relay until stop()."""
        unsubscribe = self._deps.store.bell.subscribe(self._heard)
        try:
            while not self._stopped.is_set():
                self._changed.clear()
                self._look()
                self._publish()
                self._changed.wait(self._until_next())
        finally:
            unsubscribe()
            self._wake_ups.close()

    def stop(self) -> None:
        """Let run() return."""
        self._stopped.set()
        self._changed.set()

    def ready(self) -> None:
        """Raise UnavailableError while the database or the broker is away."""
        self._deps.store.demand_schema()
        if self._broker_pause.failing:
            raise UnavailableError("The broker is away", hint="KMB_BROKER_URL, and the broker's log")

    def _heard(self, topic: str) -> None:
        if topic == ANYTHING:
            self._look_at = 0.0
        elif topic.startswith(_TOPIC) and topic.removeprefix(_TOPIC) in QUEUES:
            self._want({topic.removeprefix(_TOPIC): 1})
        else:
            return
        self._changed.set()

    def _want(self, jobs: Mapping[str, int]) -> None:
        with self._lock:
            for queue, count in jobs.items():
                tasks = min(math.ceil(count / _JOBS_A_TASK), _TASKS_AT_ONCE)
                self._waiting[queue] = max(tasks, self._waiting.get(queue, 0))

    def _look(self) -> None:
        """Ask the outbox what is due, unless it was asked a moment ago."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _POLL_SECONDS
        now = self._deps.clock.now()
        try:
            # Most looks find nothing, and so take nothing from who writes.
            with self._deps.store.read() as unit:
                following = outbox.next_due(unit)
            due: Mapping[str, int] = {}
            if following is not None and following <= now:
                with self._deps.store.unit() as unit:
                    due = outbox.due_queues(unit, now)
                    following = outbox.next_due(unit)
            due = {**due, **self._unnoticed()}
        except KeymailboxError as error:
            self._look_at = time.monotonic() + self._store_pause.failed(error)
            return
        self._store_pause.worked()
        self._want({queue: count for queue, count in due.items() if queue in QUEUES})
        if following is not None:
            seconds = max((following - now).total_seconds(), 2 * _GAP_SECONDS)
            self._look_at = time.monotonic() + min(seconds, _POLL_SECONDS)

    def _unnoticed(self) -> Mapping[str, int]:
        """Wake for events, which have no job, as a ring or a message may be lost: less often while nobody comes."""
        if time.monotonic() <= self._sent.get("sequence", -math.inf) + self._unnoticed_pause:
            return {}
        with self._deps.store.read() as unit:
            waiting = notices.unnoticed(unit)
        self._unnoticed_pause = min(2 * self._unnoticed_pause, _UNNOTICED_LAST) if waiting else _POLL_SECONDS
        return {"sequence": 1} if waiting else {}

    def _publish(self) -> None:
        """Send what is wanted, each queue at most once in the gap; what cannot be sent stays wanted."""
        if self._broker_pause.resting():
            return
        try:
            for queue in self._ready():
                self._send(queue, self._take(queue))
            self._alarm()
        except UnavailableError as error:
            metrics.broker_up().set(0)
            self._broker_pause.failed(error)
        else:
            metrics.broker_up().set(1)
            self._broker_pause.worked()

    def _send(self, queue: str, count: int) -> None:
        try:
            for _ in range(count):
                self._wake_ups.publish(queue)
                self._sent[queue] = time.monotonic()
                metrics.wake_ups.labels(queue).inc()
        except UnconfirmedError as error:
            # The others go on.
            _log.warning("unconfirmed", queue=queue, error=str(error))
            self._want({queue: 1})
            self._sent[queue] = time.monotonic() + _ASIDE_SECONDS
            self._wake_ups.mend(queue)
        except UnavailableError:
            self._want({queue: 1})
            raise

    def _ready(self) -> list[str]:
        limit = time.monotonic() - _GAP_SECONDS
        with self._lock:
            return [queue for queue in self._waiting if self._sent.get(queue, -math.inf) <= limit]

    def _take(self, queue: str) -> int:
        with self._lock:
            return self._waiting.pop(queue, 0)

    def _alarm(self) -> None:
        """Say so when RabbitMQ has given wake-ups up: the rows still wait, but something is wrong with a worker."""
        if time.monotonic() < self._dead_letters_at:
            return
        self._dead_letters_at = time.monotonic() + _DEAD_LETTERS_EVERY
        count = self._wake_ups.dead_letters()
        metrics.dead_letters().set(count)
        if count:
            _log.error("dead_letters", count=count, hint="kmb-server doctor")

    def _until_next(self) -> float:
        """Return for how many seconds nothing is to be done, unless the bell rings."""
        now = time.monotonic()
        seconds = max(self._look_at - now, 0.0)
        with self._lock:
            waiting = list(self._waiting)
        if waiting:
            gap = min(max(self._sent.get(queue, 0.0) + _GAP_SECONDS - now, 0.0) for queue in waiting)
            seconds = min(seconds, max(gap, self._broker_pause.remaining()))
        return max(seconds, 0.001)


class _Pause:
    """How long to leave something alone that is away: doubling, bounded, logged at the first failure and the end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._seconds = 0.0
        self._until = 0.0

    @property
    def failing(self) -> bool:
        return bool(self._seconds)

    def failed(self, error: Exception) -> float:
        if not self._seconds:
            _log.warning("away", what=self._what, error=str(error))
        self._seconds = min(max(2 * self._seconds, _PAUSE_FIRST), _PAUSE_LAST)
        self._until = time.monotonic() + self._seconds
        return self._seconds

    def worked(self) -> None:
        if self._seconds:
            _log.info("back", what=self._what)
        self._seconds = self._until = 0.0

    def remaining(self) -> float:
        return max(self._until - time.monotonic(), 0.0)

    def resting(self) -> bool:
        return self.remaining() > 0
