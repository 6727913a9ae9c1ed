"""What arrives together is one call; each gets its own answer, and nobody waits for nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from pki.core.errors import UnavailableError
from pki.server.api.gathering import Gathering


def test_what_arrives_during_a_call_is_the_next_call() -> None:
    """The first goes at once and alone; the others, which came meanwhile, go together and in order."""
    batches: list[list[int]] = []
    started, gate = threading.Event(), threading.Event()

    def double(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        started.set()
        assert gate.wait(5)
        return [2 * item for item in items]

    async def scenario() -> list[int]:
        gathering = Gathering(double)
        tasks = [asyncio.create_task(gathering.submit(0))]
        assert await asyncio.to_thread(started.wait, 5)
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
