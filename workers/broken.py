"""Queues that RabbitMQ has broken or lost: found, and removed, so that who consumes them declares them anew.

A RabbitMQ that is killed just after a quorum queue was declared may keep the queue's name without the queue, or the
queue without a leader. Both can be declared, and the second consumed and published to, yet nothing ever comes out of
them. Nothing is lost with them: messages are wake-ups, and the relay sends them again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import structlog
from kombu import Connection, Queue

_log = structlog.get_logger("broken")

NOT_FOUND = 404
"""RabbitMQ's reply code (AMQP 0-9-1) for whoever would use a queue that is not there."""
INTERNAL_ERROR = 541
"""RabbitMQ's reply code (AMQP 0-9-1) for whoever would consume a quorum queue of which only the name is left."""
_LOCKED = 405
"""And for whoever would declare an exclusive queue that another connection has."""
_ANSWER_SECONDS = 3.0
"""A queue that is well answers in milliseconds; one without a leader never does."""
_DELETE_SECONDS = 20.0
"""RabbitMQ itself waits some seconds for the leader before it deletes by force."""
_LOCKED_SECONDS = 0.5
_LOOK_EVERY = 3.0
"""How many seconds lie between two looks at whether queues are read; each is a question over an open connection."""

Connect = Callable[[], Connection]


class Watch:
    """Looks now and then, in a thread and over a connection of its own, whether queues are there and are read.

    RabbitMQ tells consumers when their queue is deleted, but not always one that has just begun: that would wait for
    ever.
    """

    def __init__(self, connect: Connect, names: Iterable[str]) -> None:
        """Look at nothing yet."""
        self._connect, self._names = connect, tuple(names)
        self._connection: Connection | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.lost: frozenset[str] = frozenset()
        """What nobody could read at two looks in a row."""

    def start(self) -> None:
        """Begin to look, once."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; returns at once."""
        self._stopped.set()

    def _run(self) -> None:
        before: frozenset[str] = frozenset()
        while not self._stopped.wait(_LOOK_EVERY):
            found = self._unread()
            self.lost, before = found & before, found
        self._drop()

    def _unread(self) -> frozenset[str]:
        """Return what is gone or unread; nothing where the broker does not say, which shows elsewhere."""
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connection.connect()
            with self._connection.connection.transport.having_timeout(_ANSWER_SECONDS):
                return frozenset(name for name in self._names if not self._is_read(self._connection, name))
        except Exception:
            self._drop()
            return frozenset()

    def _is_read(self, connection: Connection, name: str) -> bool:
        try:
            with connection.channel() as channel:
                declared: Any = Queue(name, channel=channel).queue_declare(passive=True)
                return bool(declared.consumer_count)
        except connection.channel_errors as error:
            if getattr(error, "reply_code", None) != NOT_FOUND:
                raise
            return False

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.collect(socket_timeout=1)


def remove_broken(connect: Connect, names: Iterable[str]) -> None:
    """Delete those of our queues that are broken; each step is over a connection of its own, which it may break.

    Nothing is raised: whoever goes on to use the queues finds out how they are.
    """
    for name in names:
        # One at a time decides and deletes: a second would delete what the first has made anew meanwhile.
        locked = _asked(connect, partial(_alone, partial(_remove_if_broken, connect, name), f"{name}.mending"))
        if isinstance(locked, ConnectionError):
            return
        if getattr(locked, "reply_code", None) == _LOCKED:
            time.sleep(_LOCKED_SECONDS)


def _remove_if_broken(connect: Connect, name: str) -> None:
    found = _asked(connect, partial(_consume, name))
    if not isinstance(found, TimeoutError) and getattr(found, "reply_code", None) != INTERNAL_ERROR:
        return
    failure = _asked(connect, partial(_delete, name), _DELETE_SECONDS)
    if failure is None:
        _log.warning("queue_deleted", queue=name, why="the broker cannot have it consumed")
    else:
        _log.error("queue_not_deleted", queue=name, error=repr(failure)[:200])


def _alone(work: Callable[[], None], lock: str, channel: Any) -> None:
    # It goes with its connection.
    channel.queue_declare(lock, exclusive=True, auto_delete=True)
    work()


def _consume(name: str, channel: Any) -> None:
    # One message at most, and it goes back with the channel. RabbitMQ says that it consumes before it does: that the
    # queue answers shows in the answer to the next thing that is asked.
    channel.basic_qos(0, 1, False)
    Queue(name, channel=channel).consume("", lambda _body, _message: None)
    channel.basic_qos(0, 1, False)


def _delete(name: str, channel: Any) -> None:
    Queue(name, channel=channel).delete()


def _asked(connect: Connect, ask: Callable[[Any], None], seconds: float = _ANSWER_SECONDS) -> Exception | None:
    """Ask the broker something over a connection of its own; return what went wrong, TimeoutError for no answer.

    What goes wrong before there is a connection says nothing of what was asked: it is ConnectionError, whatever it was.
    """
    found: Exception | None = None
    with _connected(connect) as connection:
        if connection is None:
            found = ConnectionError("the broker is away")
        else:
            # A refusal closes the socket, whose timeout cannot be set back then.
            with suppress(OSError), connection.connection.transport.having_timeout(seconds):
                try:
                    ask(connection.default_channel)
                except Exception as error:
                    found = error
    return found


@contextmanager
def _connected(connect: Connect) -> Iterator[Any]:
    connection = connect()
    try:
        connection.connect()
    except Exception as error:
        _log.warning("away", what="broker", error=type(error).__name__)
        yield None
        return
    try:
        yield connection
    finally:
        # Without a good-bye, to which a broken channel gives no answer.
        connection.collect(socket_timeout=1)
