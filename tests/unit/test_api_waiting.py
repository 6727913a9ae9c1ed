"""Long polls hear the bell, miss no ring, and end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
from starlette.requests import Request

from pki.server.api.waiting import Waiting
from pki.server.store.bell import ANYTHING, Bell

pytest_plugins = ["tests.kit.api_fixtures"]
pytestmark = pytest.mark.usefixtures("only_the_bell")


def request(*, gone: bool = False) -> Request:
    """Return a request whose client is there, or gone."""

    async def receive() -> dict[str, str]:
        if not gone:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "GET", "headers": []}, receive)


def run(scenario: Callable[[Bell, Waiting], Awaitable[None]]) -> None:
    """Run a scenario with a bell of this process."""

    async def main() -> None:
        bell = Bell()
        waiting = Waiting(bell, asyncio.get_running_loop())
        try:
            await scenario(bell, waiting)
        finally:
            waiting.stop_listening()
        assert waiting.count == 0

    asyncio.run(main())


def looker(found: list[int]) -> Callable[[], Awaitable[int]]:
    """Return a look at how much was found."""

    async def look() -> int:
        return len(found)

    return look


def test_a_ring_from_another_thread_is_heard() -> None:
    """Who waits for a topic is answered when it rings and there is something to see."""

    async def scenario(bell: Bell, waiting: Waiting) -> None:
        found: list[int] = []

        def happen() -> None:
            bell.ring("mailbox:b")
            time.sleep(0.05)
            found.append(1)
            bell.ring("mailbox:a")

        timer = threading.Timer(0.05, happen)
        timer.start()
        started = time.monotonic()
        assert await waiting.until(request(), ["mailbox:a"], 20, looker(found), bool) == 1
        assert time.monotonic() - started < 15
        timer.join()

    run(scenario)


def test_a_ring_during_the_look_is_not_missed() -> None:
    """What happens between the look and the wait is seen by the next look, at once."""

    async def scenario(bell: Bell, waiting: Waiting) -> None:
        looks = 0

        async def look() -> int:
            nonlocal looks
            looks += 1
            if looks == 1:
                bell.ring("deposit:1")
                await asyncio.sleep(0.01)
            return looks

        started = time.monotonic()
        assert await waiting.until(request(), ["deposit:1"], 20, look, lambda seen: seen > 1) == 2
        assert time.monotonic() - started < 15

    run(scenario)


def test_time_is_kept() -> None:
    """Without a wait there is one look; with one, the last look is what is told."""

    async def scenario(_bell: Bell, waiting: Waiting) -> None:
        assert await waiting.until(request(), ["events"], 0, looker([]), bool) == 0
        started = time.monotonic()
        assert await waiting.until(request(), ["events"], 0.2, looker([]), bool) == 0
        assert 0.15 < time.monotonic() - started < 15

    run(scenario)


def test_lost_rings_and_closing_wake_everybody() -> None:
    """After a lost connection everybody looks again; at the end everybody is answered."""

    async def scenario(bell: Bell, waiting: Waiting) -> None:
        found: list[int] = []
        waits = [
            asyncio.create_task(waiting.until(request(), [topic], 20, looker(found), bool)) for topic in ("a", "b")
        ]
        await asyncio.sleep(0.05)
        assert waiting.count == 2
        bell.ring(ANYTHING)
        await asyncio.sleep(0.05)
        assert waiting.count == 2
        waiting.close()
        assert await asyncio.gather(*waits) == [0, 0]

    run(scenario)


def test_nobody_waits_for_who_is_gone() -> None:
    """A client that hung up does not keep a place."""

    async def scenario(_bell: Bell, waiting: Waiting) -> None:
        started = time.monotonic()
        await waiting.until(request(gone=True), ["a"], 20, looker([]), bool)
        assert time.monotonic() - started < 15

    run(scenario)
