"""Long polls: a coroutine waits for the store's bell, holding neither a thread nor a transaction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from starlette.requests import Request

from pki.server.store.bell import ANYTHING, Bell

_SLICE_SECONDS = 5.0
"""A ring may be lost, and a client may be gone: look for both this often."""

T = TypeVar("T")


class Waiting:
    """Hands the bell's rings, which come from other threads, to the coroutines that wait in one event loop."""

    def __init__(self, bell: Bell, loop: asyncio.AbstractEventLoop) -> None:
        """Subscribe to ``bell``; close() ends it."""
        self._loop = loop
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._closed = False
        self._unsubscribe = bell.subscribe(self._heard)

    @property
    def count(self) -> int:
        """How many requests wait now."""
        return len({id(event) for events in self._waiters.values() for event in events})

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
        event = asyncio.Event()
        for topic in topics:
            self._waiters.setdefault(topic, set()).add(event)
        try:
            while True:
                # Cleared before looking: a ring between the look and the wait is not missed.
                event.clear()
                found = await look()
                remaining = deadline - self._loop.time()
                if enough(found) or remaining <= 0 or self._closed or await request.is_disconnected():
                    return found
                try:
                    await asyncio.wait_for(event.wait(), min(remaining, _SLICE_SECONDS))
                except TimeoutError:
                    continue
        finally:
            for topic in topics:
                events = self._waiters.get(topic, set())
                events.discard(event)
                if not events:
                    self._waiters.pop(topic, None)

    def _heard(self, topic: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            self._loop.call_soon_threadsafe(self._wake, topic)

    def _wake(self, topic: str) -> None:
        if topic == ANYTHING:
            woken = [event for events in self._waiters.values() for event in events]
        else:
            woken = list(self._waiters.get(topic, ()))
        for event in woken:
            event.set()
