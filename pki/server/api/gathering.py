"""Requests that arrive together become one call of a service, and one commit; each is answered after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from pki.core.errors import BusyError
from pki.server import metrics

A = TypeVar("A")
B = TypeVar("B")

_MOST = 100
_ROOM = 2_000
_PATIENCE_SECONDS = 0.003
_RETRY_SECONDS = 1


class Gathering(Generic[A, B]):
    """While some batches are being committed the next one gathers; who is alone waits for nobody.

    ``at_once`` batches are under way at most. Where the last batch had several, the next one has a few milliseconds
    of patience until about as many are there again, where a batch costs enough to be worth it.
    """

    def __init__(
        self,
        service: Callable[[Sequence[A]], Sequence[B]],
        *,
        executor: Executor | None = None,
        at_once: int = 1,
        patient: bool = True,
        most: int = _MOST,
        room: int = _ROOM,
        weigh: Callable[[A], int] = lambda _: 1,
    ) -> None:
        """``service`` takes many and gives one answer for each, in order; what it raises is everybody's answer.

        It is called in a thread of ``executor``, with items that weigh ``most`` together, or with one that weighs more.
        ``room`` is what may wait: who comes when it is full is told to come again.
        """
        self._service = service
        self._executor = executor
        self._at_once = at_once
        self._patient = patient
        self._most = most
        self._room = room
        self._weigh = weigh
        self._arrived: list[tuple[A, int, asyncio.Future[B]]] = []
        self._weight = 0
        self._expected = 1
        self._patience: asyncio.TimerHandle | None = None
        self._impatient = False
        self._due = False
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: A) -> B:
        """Return the answer for one item; a client that goes away does not undo what was begun.

        Raises BusyError when too many wait, and what the service raises.
        """
        weight = self._weigh(item)
        if self._weight and self._weight + weight > self._room:
            raise BusyError("Too many requests wait to be stored", retry_after=_RETRY_SECONDS)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[B] = loop.create_future()
        self._arrived.append((item, weight, future))
        self._weight += weight
        if not self._due:
            # Not at once: whoever arrived in the same breath is heard first.
            self._due = True
            loop.call_soon(self._look, loop)
        began = time.perf_counter()
        try:
            return await future
        finally:
            metrics.gathering_seconds.observe(time.perf_counter() - began)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = False
        if not self._arrived or len(self._running) >= self._at_once:
            return
        if self._weight * 2 > self._expected or self._impatient or not self._patient:
            self._start(loop)
        elif self._patience is None:
            self._patience = loop.call_later(_PATIENCE_SECONDS, self._lose_patience, loop)

    def _lose_patience(self, loop: asyncio.AbstractEventLoop) -> None:
        # Remembered, and not read off the clock: of some loops it is a little behind their timers.
        self._impatient = True
        self._look(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._impatient = False
        count = weight = 0
        for _, one, _ in self._arrived:
            if count and weight + one > self._most:
                break
            count, weight = count + 1, weight + one
        batch, self._arrived = self._arrived[:count], self._arrived[count:]
        self._weight -= weight
        self._expected = weight
        task = loop.create_task(self._answer(batch))
        self._running.add(task)
        task.add_done_callback(self._ended)
        if self._arrived:
            self._look(loop)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not self._due and self._arrived:
            # Those who were just answered may have the next thing to say.
            self._due = True
            loop = task.get_loop()
            loop.call_soon(self._look, loop)

    async def _answer(self, batch: Sequence[tuple[A, int, asyncio.Future[B]]]) -> None:
        metrics.gathered.observe(len(batch))
        items = [item for item, _, _ in batch]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._executor, self._service, items)
        except Exception as error:
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, _, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
