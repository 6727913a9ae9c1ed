"""The beat writes ticks: jobs that are due because time has passed, each once however many beats run."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from pki.core.errors import KeymailboxError
from pki.server.services.deps import Deps
from pki.server.settings import Settings
from pki.server.store import events, outbox

_log = structlog.get_logger("beat")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PAUSE_FIRST, _PAUSE_LAST = 0.5, 10.0
_LONGEST_WAIT = 5.0


@dataclass(frozen=True)
class Tick:
    """What is due how often: a job of ``kind`` in ``queue``."""

    queue: str
    kind: str
    every: timedelta
    rank: int = outbox.USUAL

    @property
    def job(self) -> str:
        """The name under which its periods are remembered."""
        return f"{self.queue}.{self.kind}"

    def period(self, now: datetime) -> datetime:
        """Return the start of the period that ``now`` is in, the same on every machine."""
        return _EPOCH + (now - _EPOCH) // self.every * self.every


def schedule(settings: Settings) -> tuple[Tick, ...]:
    """Return what recurs."""
    return (
        # The bell wakes the sequencer within milliseconds; this is for a ring that was lost.
        Tick("sequence", "events", timedelta(seconds=15)),
        # A webhook is looked at when something happens or its pause is over; this is for what was forgotten in a race.
        Tick("notify", "look", timedelta(seconds=60)),
        Tick("rotate", "expire", timedelta(seconds=60)),
        # Each request leaves a nonce: forgotten soon, their table stays small.
        Tick("rotate", "purge", timedelta(minutes=5)),
        Tick("rotate", "remind", timedelta(hours=1)),
        # A shelf that is in use when it is to be dropped has three more chances that day.
        Tick("rotate", "retain", timedelta(hours=6), outbox.IDLE),
        # Nobody wraps without a fresh list: three more chances before the last one is stale.
        Tick("issue", "crl", settings.crl_lifetime / 4, outbox.URGENT),
        Tick("issue", "ocsp-refresh", timedelta(seconds=60), outbox.IDLE),
        Tick("report", "chain", timedelta(days=1)),
    )


def tick(deps: Deps, due: Tick, now: datetime) -> bool:
    """Write the job of ``now``'s period; False when that was done before, by this beat or another."""
    period = due.period(now).isoformat()
    with deps.store.unit() as unit:
        if not events.claim_tick(unit, due.job, period):
            return False
        outbox.add(unit, due.queue, due.kind, [period], now=now, rank=due.rank)
    return True


class Beat:
    """Writes each tick at the beginning of its period, and one at the start for the period that is running."""

    def __init__(self, deps: Deps) -> None:
        """Begin in run()."""
        self._deps = deps
        self._schedule = schedule(deps.settings)
        self._done: dict[str, datetime] = {}
        self._stopped = threading.Event()

    def run(self) -> None:
        """Tick until stop()."""
        pause = 0.0
        while not self._stopped.is_set():
            now = self._deps.clock.now()
            try:
                self._tick(now)
            except KeymailboxError as error:
                if not pause:
                    _log.warning("away", what="database", error=str(error))
                pause = min(max(2 * pause, _PAUSE_FIRST), _PAUSE_LAST)
            else:
                pause = 0.0
            self._stopped.wait(pause or self._until_next(now))

    def stop(self) -> None:
        """Let run() return."""
        self._stopped.set()

    def ready(self) -> None:
        """Raise UnavailableError while the database is away, or its schema an earlier release's."""
        self._deps.store.demand_schema()

    def _tick(self, now: datetime) -> None:
        for due in self._schedule:
            period = due.period(now)
            if self._done.get(due.job) != period:
                tick(self._deps, due, now)
                self._done[due.job] = period

    def _until_next(self, now: datetime) -> float:
        following = min(due.period(now) + due.every for due in self._schedule)
        # The clock may be set: look now and then.
        return min(max((following - now).total_seconds(), 0.01), _LONGEST_WAIT)
