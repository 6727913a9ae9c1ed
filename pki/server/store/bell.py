"""The bell wakes who waits for something to be committed; a slow poll is the safety net for a ring not heard."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable

import psycopg
from psycopg import sql

from pki.server.store.link import CONNECTING, Link

_log = logging.getLogger(__name__)

CHANNEL = "keymailbox"
ANYTHING = "*"
"""The topic that subscribers hear after a silence in which rings may have been lost."""

_BETWEEN = "\n"
_PAYLOAD = 7_900
"""Bytes, all ASCII; PostgreSQL takes less than 8,000 in a notification."""
_REMEMBERED = 10_000
_LISTEN_SLICE = 0.2  # seconds between looks at the stop flag
_RECONNECT_MAX = 10.0


def packed(topics: Iterable[str]) -> list[str]:
    """Return what to notify PostgreSQL's listeners with: a batch rings many topics, and each notification costs each.

    A queue's topic goes alone: a relay of an earlier release knows no others.
    """
    alone, lines = [], [""]
    for topic in topics:
        if topic.startswith("queue:"):
            alone.append(topic)
        elif lines[-1] and len(lines[-1]) + len(topic) < _PAYLOAD:
            lines[-1] += _BETWEEN + topic
        else:
            lines.append(topic)
    return [line for line in (*alone, *lines) if line]


class Bell:
    """Rings topics to waiting threads and subscribers; rings may be lost or doubled, so it is a hint and never a fact.

    With ``conninfo`` (a libpq connection string) the rings of all processes on that PostgreSQL are heard: a thread
    LISTENs from the first listener on and reconnects by itself. Without it, the bell is heard in this process only.
    """

    def __init__(self, conninfo: str | None = None) -> None:
        self._conninfo = conninfo
        self._lock = threading.Lock()
        self._count = 0
        self._forgotten = 0  # rings up to this one may be missing from _last
        self._last: OrderedDict[str, int] = OrderedDict()
        self._waiters: dict[str, set[threading.Event]] = {}
        self._subscribers: list[Callable[[str], None]] = []
        self._stop = threading.Event()
        self._connected = threading.Event()
        self._listener: threading.Thread | None = None

    def mark(self) -> int:
        """Return a mark to hand to ``wait``: take it before looking at the store, and no ring in between is missed."""
        self._listen()
        with self._lock:
            return self._count

    def wait(self, topics: Collection[str], timeout: float, *, since: int | None = None) -> bool:
        """Wait up to ``timeout`` seconds for one of ``topics``, rung after the mark ``since``; False when none rang."""
        self._listen()
        heard = threading.Event()
        with self._lock:
            if since is not None and self._rung_after(topics, since):
                return True
            for topic in topics:
                self._waiters.setdefault(topic, set()).add(heard)
        try:
            return heard.wait(max(timeout, 0))
        finally:
            with self._lock:
                for topic in topics:
                    waiters = self._waiters.get(topic, set())
                    waiters.discard(heard)
                    if not waiters:
                        self._waiters.pop(topic, None)

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback(topic)`` at each ring, from another thread, briefly; returns the way to stop it.

        After a lost connection the topic is ``ANYTHING``: whatever was missed, look for yourself.
        """
        with self._lock:
            self._subscribers.append(callback)
        self._listen()

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._subscribers:
                    self._subscribers.remove(callback)

        return unsubscribe

    def ring(self, topic: str) -> None:
        """Wake who waits for ``topic`` in this process."""
        with self._lock:
            self._count += 1
            if topic == ANYTHING:
                self._forgotten = self._count
                woken = [event for waiters in self._waiters.values() for event in waiters]
            else:
                self._remember(topic)
                woken = list(self._waiters.get(topic, ()))
            subscribers = list(self._subscribers)
        for event in woken:
            event.set()
        for callback in subscribers:
            # What was committed is committed: the committer does not suffer from who listens.
            try:
                callback(topic)
            except Exception:
                _log.exception("a listener failed on %s", topic)

    def close(self) -> None:
        """Stop listening and wake everybody."""
        self._stop.set()
        self.ring(ANYTHING)
        listener = self._listener
        if listener is not None and listener is not threading.current_thread():
            listener.join(5)

    def connected(self, timeout: float) -> bool:
        """Wait until rings of other processes are heard; True at once where there are none to hear."""
        self._listen()
        return self._conninfo is None or self._connected.wait(timeout)

    def _rung_after(self, topics: Collection[str], mark: int) -> bool:
        return self._forgotten > mark or any(self._last.get(topic, 0) > mark for topic in topics)

    def _remember(self, topic: str) -> None:
        self._last[topic] = self._count
        self._last.move_to_end(topic)
        if len(self._last) > _REMEMBERED:
            _, self._forgotten = self._last.popitem(last=False)

    def _listen(self) -> None:
        if self._conninfo is None:
            return
        with self._lock:
            if self._listener is None and not self._stop.is_set():
                self._listener = threading.Thread(target=self._run, name="bell", daemon=True)
                self._listener.start()

    def _run(self) -> None:
        pause = 0.1
        while not self._stop.is_set():
            try:
                with Link.connect(self._conninfo or "", autocommit=True, **CONNECTING) as connection:
                    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                    pause = 0.1
                    # Also at the first connection: something may have rung between the start and LISTEN.
                    self.ring(ANYTHING)
                    self._connected.set()
                    self._hear(connection)
            except psycopg.Error:
                self._connected.clear()
                self._stop.wait(pause)
                pause = min(pause * 2, _RECONNECT_MAX)

    def _hear(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        while not self._stop.is_set():
            for notify in connection.notifies(timeout=_LISTEN_SLICE):
                for topic in notify.payload.split(_BETWEEN):
                    self.ring(topic)
                if self._stop.is_set():
                    return
