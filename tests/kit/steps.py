"""Steps that a piece of work takes outside of its memory, of which a chosen one fails: not done, or done and denied."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

import psycopg

from pki.core.errors import UnavailableError
from pki.server.adapters.broker import ExchangePublisher
from pki.server.adapters.notifiers.webhook import WebhookNotifier
from pki.server.ports import CaSigner
from pki.server.store.engine import Store


class How(Enum):
    """How a step fails: it does not happen, or it happens and whoever asked for it hears that it did not."""

    NOT_DONE = "not done"
    DENIED = "done but reported failed"


class Steps:
    """Counts steps of all kinds while it is armed, and says of the n-th how it is to fail.

    Of what does not last by itself, which is what its transaction comes to, only the first and one in ``every`` are
    steps; ``seed`` says which.
    """

    def __init__(self, *, every: int = 1, seed: int = 0) -> None:
        self._every = every
        self._seed = seed
        self._passing = 0
        self._at = 0
        self._how = How.NOT_DONE
        self.count = 0
        self.failed = ""
        """What the step was that failed, nothing before it did."""

    @contextmanager
    def failing(self, at: int, how: How) -> Iterator[None]:
        """Within, the step with the number ``at``, from 1 on, fails; all before and after it work."""
        self._at, self._how, self.count, self.failed, self._passing = at, how, 0, "", 0
        try:
            yield
        finally:
            self._at = 0

    def next(self, what: str, *, lasts: bool = True) -> How | None:
        """Count one step; return how it is to fail, None when it is to work.

        One that does not last by itself has nothing that could be done and denied.
        """
        if not self._at or (self._how is How.DENIED and not lasts):
            return None
        if not lasts:
            self._passing += 1
            if self._passing > 1 and (self._passing + self._seed) % self._every:
                return None
        self.count += 1
        if self.count != self._at:
            return None
        self.failed = what
        return self._how


class SteppedStore(Store):
    """A store each of whose statements and commits is a step: its connection is lost before it, or just after it."""

    def __init__(self, url: str, steps: Steps) -> None:
        super().__init__(url)
        self._steps = steps
        dialect: Any = self._engine.dialect
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, name, self._statement(getattr(dialect, name)))
        dialect.do_commit = self._commit(dialect.do_commit)

    def _statement(self, execute: Any) -> Any:
        def step(cursor: Any, statement: str, *rest: Any, **named: Any) -> Any:
            # Denied it would be the same: what it did goes with its transaction. Only a commit lasts.
            if self._steps.next(f"statement {' '.join(statement.split())[:60]}", lasts=False) is How.NOT_DONE:
                self._cut(cursor.connection)
            return execute(cursor, statement, *rest, **named)

        return step

    def _commit(self, commit: Any) -> Any:
        def step(connection: Any) -> None:
            how = self._steps.next("commit")
            if how is How.NOT_DONE:
                self._cut(connection.driver_connection)
            commit(connection)
            if how is How.DENIED:
                self._deny(connection.driver_connection)

        return step

    def _cut(self, connection: Any) -> None:
        """Cut the line to PostgreSQL, so that the driver itself finds out; SQLite has none: the disk refuses."""
        if self.dialect == "sqlite":
            raise sqlite3.OperationalError("disk I/O error")
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
            line.shutdown(socket.SHUT_RDWR)

    def _deny(self, connection: Any) -> None:
        """Lose the answer."""
        if self.dialect == "sqlite":
            raise sqlite3.OperationalError("disk I/O error")
        with contextlib.suppress(psycopg.Error):
            connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")


class SteppedPublisher(ExchangePublisher):
    """The exchange, where each event that is handed over is a step."""

    def __init__(self, url: str, prefix: str, steps: Steps) -> None:
        super().__init__(url, prefix)
        self._steps = steps

    def _publish(self, producer: Any, event: Mapping[str, object]) -> None:
        how = self._steps.next("publish")
        if how is How.NOT_DONE:
            raise ConnectionResetError
        super()._publish(producer, event)
        if how is How.DENIED:
            raise ConnectionResetError


class SteppedNotifier(WebhookNotifier):
    """Webhooks, where each post is a step."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(allow_private=True)
        self._steps = steps

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Post, unless it is the one that fails."""
        how = self._steps.next("post")
        if how is How.NOT_DONE:
            raise UnavailableError("The post failed")
        status = super().post(url, headers, body)
        if how is How.DENIED:
            raise UnavailableError("The post failed")
        return status


class SteppedSigner:
    """A CA's key, where each signature is a step."""

    def __init__(self, key: CaSigner, steps: Steps) -> None:
        self._key = key
        self._steps = steps
        self.signed: list[bytes] = []
        """What the key has signed, whoever heard of it."""

    @property
    def certificate_der(self) -> bytes:
        """The issuing CA's certificate."""
        return self._key.certificate_der

    def sign(self, message: bytes, /) -> bytes:
        """Sign, unless it is the one that fails."""
        how = self._steps.next("sign")
        if how is How.NOT_DONE:
            raise UnavailableError("The key is away")
        signature = self._key.sign(message)
        self.signed.append(message)
        if how is How.DENIED:
            raise UnavailableError("The key is away")
        return signature


class SteppedWakeUps:
    """What the relay publishes to, where each wake-up is a step; it remembers what the broker got."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.woken: list[str] = []

    def publish(self, queue: str) -> None:
        """Take a wake-up."""
        how = self._steps.next("wake")
        if how is How.NOT_DONE:
            raise UnavailableError("The broker is away")
        self.woken.append(queue)
        if how is How.DENIED:
            raise UnavailableError("The broker is away")

    def mend(self, queue: str) -> None:
        """Nothing is broken."""

    def dead_letters(self) -> int:
        """Nothing was given up."""
        return 0

    def close(self) -> None:
        """There is nothing to close."""
