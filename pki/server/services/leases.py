"""Leases are short and renewed while their holder works: who vanishes is succeeded within ten seconds."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import structlog

from pki.core.errors import KeymailboxError
from pki.server.services.deps import Deps
from pki.server.store import events as event_store
from pki.server.store.engine import Unit

_log = structlog.get_logger("leases")

LEASE = timedelta(seconds=8)
"""How long a holder's silence is taken for work: with the relay's look, others go on within ten seconds."""
LONGEST = timedelta(minutes=1)
"""How long a lease is renewed at most: who has come to no end by then hangs."""
_RENEWALS = 4
"""How often a lease is renewed before it would end: three may fail, or be late."""


@contextmanager
def renewing(lease: timedelta, renew: Callable[[], None]) -> Iterator[None]:
    """Call ``renew`` a few times in each ``lease``, in a thread, until the body ends; a failure is tried again."""
    over = threading.Event()
    end = time.monotonic() + LONGEST.total_seconds()

    def work() -> None:
        while not over.wait(lease.total_seconds() / _RENEWALS) and time.monotonic() < end:
            try:
                renew()
            except KeymailboxError as error:
                _log.warning("not_renewed", error=str(error), code=error.code)

    thread = threading.Thread(target=work, name="renewing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Leases:
    """The named leases of one holder, under a name that nobody else has."""

    def __init__(self, deps: Deps, lease: timedelta = LEASE) -> None:
        """Hold nothing yet."""
        self._deps = deps
        self._lease = lease
        self._holder = secrets.token_hex(8)
        self._sure: dict[str, float] = {}

    def acquire(self, unit: Unit, name: str) -> bool:
        """Take or keep a lease; False while another holds it."""
        # Counted from before it is written: the clock of the machine goes on while this process stands still.
        until = time.monotonic() + self._lease.total_seconds()
        if not event_store.acquire_lease(unit, name, self._holder, self._deps.clock.now(), self._lease):
            return False
        self._sure[name] = until
        return True

    def release(self, unit: Unit, name: str) -> bool:
        """Give a lease back; False when another has had it meanwhile, and may have done what was to be done."""
        self._sure.pop(name, None)
        return event_store.release_lease(unit, name, self._holder)

    def sure(self, name: str) -> bool:
        """Say whether nobody else can have a lease yet, as it was taken or renewed so short a time ago."""
        return time.monotonic() < self._sure.get(name, 0.0)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Keep what is held until the body ends."""
        with renewing(self._lease, self._renew):
            yield

    def _renew(self) -> None:
        until = time.monotonic() + self._lease.total_seconds()
        with self._deps.store.unit(durable=False) as unit:
            kept = event_store.renew_leases(unit, self._holder, self._deps.clock.now(), self._lease)
        for name in kept:
            # Not what was given back meanwhile.
            if name in self._sure:
                self._sure[name] = until
