"""Requests that arrive together become one call of a service, and one commit; each is answered after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

A = TypeVar("A")
B = TypeVar("B")

_MOST = 100


class Gathering(Generic[A, B]):
    """While one batch is being committed the next one gathers: no timer, and no delay where nobody else is there."""

    def __init__(self, service: Callable[[Sequence[A]], Sequence[B]]) -> None:
        """``service`` takes many and gives one answer for each, in order; what it raises is everybody's answer."""
        self._service = service
        self._arrived: list[tuple[A, asyncio.Future[B]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: A) -> B:
        """Return the answer for one item; a client that goes away does not undo what was begun."""
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._arrived.append((item, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        try:
            while self._arrived:
                batch, self._arrived = self._arrived[:_MOST], self._arrived[_MOST:]
                await self._answer(batch)
        finally:
            self._worker = None

    async def _answer(self, batch: Sequence[tuple[A, asyncio.Future[B]]]) -> None:
        try:
            answers = await run_in_threadpool(self._service, [item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
