"""Long polls: a coroutine waits for the store's bell, holding neither a thread nor a transaction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import TypeVar

from starlette.requests import Request

from pki.core.errors import KeymailboxError
from pki.server import metrics
from pki.server.api import shares
from pki.server.store.bell import ANYTHING, Bell

_SLICE_SECONDS = 5.0
"""A ring may be lost, and a client may be gone: look for both this often."""

_NET_SECONDS = 5.0

T = TypeVar("T")


class Waiting:
    """Hands the bell's rings, which come from other threads, to the coroutines that wait in one event loop."""

    def __init__(self, bell: Bell, loop: asyncio.AbstractEventLoop) -> None:
        """Subscribe to ``bell``; close() ends it."""
        self._loop = loop
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._closed = False
        self._rings = 0
        self._unsubscribe = bell.subscribe(self._heard)

    @property
    def count(self) -> int:
        """How many requests wait now."""
        return len({id(event) for events in self._waiters.values() for event in events})

    @property
    def closed(self) -> bool:
        """Whether the server stops."""
        return self._closed

    def close(self) -> None:
        """Answer everybody who waits, and nobody waits any more; callable from a signal handler."""
        self._closed = True
        self._wake(ANYTHING)

    def stop_listening(self) -> None:
        """Leave the bell."""
        self.close()
        self._unsubscribe()

    async def until(
        self,
        request: Request,
        topics: Collection[str],
        seconds: float,
        look: Callable[[], Awaitable[T]],
        enough: Callable[[T], bool],
    ) -> T:
        """Return what ``look`` finds, once it is ``enough``, or after ``seconds`` whatever it is."""
        deadline = self._loop.time() + seconds
        with self.listening(topics) as event:
            while True:
                # Cleared before looking: a ring between the look and the wait is not missed.
                event.clear()
                await shares.resume(request)
                found = await look()
                # While it waits it is nobody's turn.
                shares.rest(request)
                remaining = deadline - self._loop.time()
                if enough(found) or remaining <= 0 or self._closed or await request.is_disconnected():
                    return found
                try:
                    await asyncio.wait_for(event.wait(), min(remaining, _SLICE_SECONDS))
                except TimeoutError:
                    continue

    @contextlib.contextmanager
    def listening(self, topics: Collection[str]) -> Iterator[asyncio.Event]:
        """Have an event set whenever one of ``topics`` rings, and at the end."""
        event = asyncio.Event()
        for topic in topics:
            self._waiters.setdefault(topic, set()).add(event)
        metrics.http_waiting.inc()
        try:
            yield event
        finally:
            metrics.http_waiting.dec()
            for topic in topics:
                events = self._waiters.get(topic, set())
                events.discard(event)
                if not events:
                    self._waiters.pop(topic, None)

    async def watch(self, newest: Callable[[], Awaitable[int]]) -> None:
        """Wake everybody when ``newest`` has grown and nothing has rung: then the bell is deaf, and nobody knows.

        One look for all who wait, so that a stream that hears nothing costs nothing.
        """
        seen, rings = -1, self._rings
        while True:
            await asyncio.sleep(_NET_SECONDS)
            if not self._waiters:
                continue
            try:
                found = await newest()
            except KeymailboxError:
                continue
            if found > seen and rings == self._rings:
                self._wake(ANYTHING)
            seen, rings = found, self._rings

    def _heard(self, topic: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            self._loop.call_soon_threadsafe(self._wake, topic)

    def _wake(self, topic: str) -> None:
        self._rings += 1
        if topic == ANYTHING:
            woken = [event for events in self._waiters.values() for event in events]
        else:
            woken = list(self._waiters.get(topic, ()))
        for event in woken:
            event.set()
