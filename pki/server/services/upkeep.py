"""What the doctor asks about processes and machine: who works, who is behind, what was given up, what runs full."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta

from pki.server.services.deps import Deps
from pki.server.services.findings import Finding
from pki.server.store import events as event_store
from pki.server.store import lag

LATE_SECONDS = 60
"""A job that has been due for longer is not being looked after."""
_TICKED = "rotate.expire"
_TICKS = timedelta(minutes=3)
"""That tick is written each minute."""
_APART = timedelta(seconds=5)
_LEAST_FREE = 1 << 30
_GIB = 1 << 30


def queues(deps: Deps) -> Iterator[Finding]:
    """By age: a worker can be alive and deaf, and the beat gives most queues something to do each minute."""
    with deps.store.read() as unit:
        waiting = lag.queues(unit, deps.clock.now())
    for queue, (count, oldest) in sorted(waiting.items()):
        detail = f"{queue}: {_counted(count)} due, the oldest for {oldest:.0f} s"
        yield Finding(
            "queues", oldest < LATE_SECONDS, detail, f"kmb-server relay, and kmb-server worker --queues {queue}"
        )
    if not waiting:
        yield Finding("queues", True, "nothing is due")


def sequencer(deps: Deps) -> Iterator[Finding]:
    """Until an event has its number, nobody hears of it."""
    with deps.store.read() as unit:
        count, since = lag.unsequenced(unit)
    age = 0.0 if since is None else (deps.clock.now() - since).total_seconds()
    behind = f"{_counted(count)} events wait, the first for {age:.0f} s"
    detail = "each event has its number" if since is None else behind
    yield Finding("sequencer", age < LATE_SECONDS, detail, "kmb-server worker --queues sequence")


def beat(deps: Deps) -> Iterator[Finding]:
    """Without ticks nothing expires, and no list is published."""
    with deps.store.read() as unit:
        last = event_store.last_tick(unit, _TICKED)
    if last is None:
        yield Finding("beat", False, "no beat has run yet", "kmb-server beat")
        return
    age = deps.clock.now() - last
    yield Finding("beat", age < _TICKS, f"the last tick is {age.total_seconds():.0f} s old", "kmb-server beat")


def dead(deps: Deps) -> Iterator[Finding]:
    """What was given up waits for people."""
    with deps.store.read() as unit:
        jobs, posts = lag.dead_jobs(unit), lag.dead_deliveries(unit)
    if jobs:
        told = ", ".join(f"{count} of {queue}" for queue, count in sorted(jobs.items()))
        yield Finding("dead", False, f"jobs were given up: {told}", "kmb-server dead list")
    else:
        # Posts are their owners' business: a receiver that is gone is no fault of this server.
        yield Finding("dead", True, f"no job was given up; {_counted(posts)} posts to webhooks were")


def disk(deps: Deps) -> Iterator[Finding]:
    """The home's file system, which with SQLite has the database too; PostgreSQL's is on its own machine."""
    home = deps.settings.home
    if not home.is_dir():
        return
    usage = shutil.disk_usage(home)
    detail = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB are free at {home}"
    yield Finding("disk", usage.free > _LEAST_FREE, detail, f"df -h {home}, and docs/operations.md")


def clock(deps: Deps) -> Iterator[Finding]:
    """Requests, leases and certificates are dated by this machine's clock, what is stored by whoever stored it."""
    if deps.store.dialect == "sqlite":
        yield Finding("clock", True, "the database is on this machine")
        return
    with deps.store.read() as unit:
        before = deps.clock.now()
        theirs = event_store.database_time(unit)
        after = deps.clock.now()
    ahead = theirs - (before + (after - before) / 2)
    seconds = ahead.total_seconds()
    detail = f"the database's is {abs(seconds):.1f} s {'ahead' if seconds > 0 else 'behind'}"
    yield Finding("clock", abs(ahead) < _APART, detail, "chronyc tracking, here and at the database")


def _counted(count: int) -> str:
    return f"{count} or more" if count >= lag.MOST else str(count)
