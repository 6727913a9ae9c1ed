"""What arrives together is one call; each gets its own answer, and nobody waits for nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from pki.core.errors import BusyError, UnavailableError
from pki.server.api.gathering import Gathering


def test_what_arrives_during_a_call_is_the_next_call() -> None:
    """The first goes at once and alone; the others, which came meanwhile, go together and in order."""
    batches: list[list[int]] = []
    started, gate = threading.Event(), threading.Event()

    def double(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        started.set()
        assert gate.wait(60)
        return [2 * item for item in items]

    async def scenario() -> list[int]:
        gathering = Gathering(double)
        tasks = [asyncio.create_task(gathering.submit(0))]
        assert await asyncio.to_thread(started.wait, 60)
        tasks += [asyncio.create_task(gathering.submit(item)) for item in range(1, 151)]
        await asyncio.sleep(0.01)
        gate.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(scenario()) == [2 * item for item in range(151)]
    assert batches == [[0], list(range(1, 101)), list(range(101, 151))]


def test_a_failure_is_everybodys_and_over_with() -> None:
    """When the call fails, all of its batch hear so, and the next one is served again."""
    away = True

    def accept(items: Sequence[int]) -> list[int]:
        if away:
            raise UnavailableError
        return list(items)

    async def scenario() -> None:
        nonlocal away
        gathering = Gathering(accept)
        answers = await asyncio.gather(*(gathering.submit(item) for item in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [UnavailableError] * 3
        away = False
        assert await gathering.submit(7) == 7

    asyncio.run(scenario())


def test_who_goes_away_takes_nothing_along() -> None:
    """A client that hangs up does not undo what was begun, nor disturb the others."""
    done: list[int] = []

    def accept(items: Sequence[int]) -> list[int]:
        done.extend(items)
        return list(items)

    async def scenario() -> None:
        gathering = Gathering(accept)
        leaving = asyncio.create_task(gathering.submit(1))
        staying = asyncio.create_task(gathering.submit(2))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == 2
        with pytest.raises(asyncio.CancelledError):
            await leaving

    asyncio.run(scenario())
    assert done == [1, 2]


def test_several_batches_at_once() -> None:
    """As many as are allowed are under way, and no more: what comes meanwhile waits, and goes together."""
    under_way: list[int] = []
    most: list[int] = []
    begun, gate = threading.Semaphore(0), threading.Event()

    def slowly(items: Sequence[int]) -> list[int]:
        under_way.append(len(items))
        most.append(len(under_way))
        begun.release()
        assert gate.wait(60)
        under_way.pop()
        return list(items)

    async def scenario() -> None:
        gathering = Gathering(slowly, at_once=2)
        tasks = []
        for item in range(2):
            tasks.append(asyncio.create_task(gathering.submit(item)))
            assert await asyncio.to_thread(begun.acquire, timeout=60)
        tasks += [asyncio.create_task(gathering.submit(item)) for item in range(2, 10)]
        await asyncio.sleep(0.02)
        assert most == [1, 2]
        gate.set()
        assert await asyncio.gather(*tasks) == list(range(10))

    asyncio.run(scenario())
    assert max(most) == 2


def test_what_is_heavy_goes_alone() -> None:
    """A batch holds what weighs no more than it may, or one that weighs more than that."""
    batches: list[list[int]] = []

    def keep(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return list(items)

    async def scenario() -> None:
        gathering = Gathering(keep, most=10, weigh=lambda item: item)
        assert await asyncio.gather(*(gathering.submit(item) for item in (4, 6, 3, 50, 1))) == [4, 6, 3, 50, 1]

    asyncio.run(scenario())
    assert batches == [[4, 6], [3], [50], [1]]


def test_when_there_is_no_room() -> None:
    """Who comes when too many wait is told to come again, and the others are answered; then there is room again."""
    gate = threading.Event()

    def slowly(items: Sequence[int]) -> list[int]:
        assert gate.wait(60)
        return list(items)

    async def scenario() -> None:
        gathering = Gathering(slowly, room=5)
        first = asyncio.create_task(gathering.submit(0))
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(gathering.submit(item)) for item in range(1, 6)]
        await asyncio.sleep(0.01)
        with pytest.raises(BusyError) as caught:
            await gathering.submit(6)
        assert caught.value.retry_after
        gate.set()
        assert await asyncio.gather(first, *waiting) == list(range(6))
        assert await gathering.submit(7) == 7

    asyncio.run(scenario())


def test_who_is_alone_waits_for_nobody() -> None:
    """After a large batch the next has patience for a moment only, and a second lone one none."""
    batches: list[int] = []

    def keep(items: Sequence[int]) -> list[int]:
        batches.append(len(items))
        return list(items)

    async def scenario() -> None:
        gathering = Gathering(keep)
        await asyncio.gather(*(gathering.submit(item) for item in range(50)))
        assert await asyncio.wait_for(gathering.submit(1), 5) == 1
        loop = asyncio.get_running_loop()
        timers: list[object] = []
        later = loop.call_later
        loop.call_later = lambda *given, **more: timers.append(given) or later(*given, **more)  # type: ignore[method-assign,func-returns-value,assignment]
        assert await gathering.submit(2) == 2
        assert not timers

    asyncio.run(scenario())
    assert batches == [50, 1, 1]


def test_a_timer_that_is_early_is_enough() -> None:
    """Of a loop whose clock is behind its timers nobody waits for ever."""

    class Early(asyncio.SelectorEventLoop):
        """Calls at once what is due later."""

        def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
            self.call_soon(callback, *args)
            return asyncio.TimerHandle(self.time() + delay, callback, args, self)

    async def scenario() -> None:
        gathering: Gathering[int, int] = Gathering(list)
        await asyncio.gather(*(gathering.submit(item) for item in range(10)))
        async with asyncio.timeout(5):
            assert await gathering.submit(7) == 7

    with asyncio.Runner(loop_factory=Early) as runner:
        runner.run(scenario())
