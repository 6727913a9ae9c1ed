"""Webhooks are told side by side: a receiver that is slow holds up no other, nor the task that began with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import structlog

from pki.core.errors import KeymailboxError
from pki.server.facts import Job
from pki.server.services import jobs, webhooks
from pki.server.services.deps import Deps
from pki.server.services.jobs import Handler

_log = structlog.get_logger("couriers")

_AT_ONCE = 16
"""While so many are under way no more is claimed; a claim is so many jobs again, each of another webhook at worst."""
PATIENCE = 1.0
"""Seconds for which a task waits for what it began: who takes longer goes on without it."""


class Couriers:
    """Does the jobs of the queue `notify`, each webhook's for themselves, in a bounded number of threads."""

    def __init__(
        self, deps: Deps, handlers: Mapping[str, Handler], stopping: Callable[[], bool], patience: float | None
    ) -> None:
        """With ``patience``, `drain` returns so many seconds after it began with what lasts longer; None waits."""
        self._deps = deps
        self._handlers = handlers
        self._stopping = stopping
        self._patience = patience
        self._pool = ThreadPoolExecutor(2 * _AT_ONCE, "courier")
        self._changed = threading.Condition()
        self._under_way = 0
        self._suspects = 0
        self._full = False

    def drain(self, seconds: float) -> int:
        """Begin with what is due, for ``seconds`` at most; return how many jobs were claimed. Raises UnavailableError.

        A job is over when its webhook's turn is; till then its claim is renewed, and so is the webhook's lease.
        """
        end = time.monotonic() + seconds
        begun: list[Future[None]] = []
        total, count = 0, _AT_ONCE
        while count == _AT_ONCE and time.monotonic() < end and not self._stopping() and self._room():
            try:
                claimed = jobs.claim(self._deps, webhooks.QUEUE, _AT_ONCE)
                count = len(claimed.mine) + claimed.returned
                if count == _AT_ONCE and not total:
                    jobs.call_another(self._deps, webhooks.QUEUE)
                total += count
                begun += [self._begin(part) for part in webhooks.parted(self._deps, claimed.mine)]
            finally:
                self._end()
        wait(begun, self._patience)
        return total

    def close(self) -> None:
        """Let turns that are under way end."""
        self._pool.shutdown()

    def _room(self) -> bool:
        """Wait for room, as long as patience lasts; without any, who makes some has another task woken.

        Who got room is under way himself till `_end`: what may be claimed next is not begun beside a suspect.
        """
        with self._changed:
            room = self._changed.wait_for(self._roomy, self._patience)
            self._under_way += room
            self._full = self._full or not room
        return room

    def _roomy(self) -> bool:
        return self._under_way < _AT_ONCE and not self._suspects

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until nothing else is under way, and have nothing begun till the end of the body.

        What takes this process down now takes no other job with it. Several such go one after the other.
        """
        with self._changed:
            self._suspects += 1
            self._under_way -= 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._under_way)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._suspects -= 1

    def _begin(self, part: Sequence[Job]) -> Future[None]:
        with self._changed:
            self._under_way += 1
        return self._pool.submit(self._work, part)

    def _work(self, part: Sequence[Job]) -> None:
        try:
            jobs.work(self._deps, webhooks.QUEUE, self._handlers, part, self._stopping, self._alone)
        except KeymailboxError as error:
            # The claim ends by itself.
            _log.warning("away", queue=webhooks.QUEUE, error=str(error), code=error.code)
        except Exception as error:
            # Told here, as nobody may be waiting any more. This claim ends by itself, too.
            _log.error("broken", queue=webhooks.QUEUE, error=f"{jobs.describe(error)}{jobs.place(error)}")
        finally:
            self._end()

    def _end(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
            wanted = self._full and self._roomy()
            self._full = self._full and not wanted
        if wanted:
            try:
                jobs.call_another(self._deps, webhooks.QUEUE)
            except KeymailboxError as error:
                # The relay looks by itself.
                _log.warning("away", queue=webhooks.QUEUE, error=str(error), code=error.code)
