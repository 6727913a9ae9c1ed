"""The outbox: the only road from a request to a worker; a job is a row, written together with what it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, RowMapping, delete, func, or_, select, update

from pki.server.ports import Job
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import jobs

_WAKE_FIRST = timedelta(seconds=2)
_WAKE_LAST = timedelta(seconds=300)
_WAKE_BATCH = 1000


def add(
    unit: Unit, queue: str, kind: str, subjects: Sequence[str], *, now: datetime, due_at: datetime | None = None
) -> None:
    """Write one job for each subject, due at ``due_at`` or at once, and ring ``queue:<name>`` after the commit."""
    if not subjects:
        return
    due = due_at or now
    values = [
        {
            "queue": queue,
            "kind": kind,
            "subject": subject,
            "created_at": now,
            "due_at": due,
            "wake_at": due,
            "attempts": 0,
            "wakes": 0,
        }
        for subject in subjects
    ]
    rows.insert_new(unit, jobs, values, jobs.c.id)
    _ring(unit, [queue])


def claim(unit: Unit, queue: str, limit: int, *, now: datetime, lease: timedelta) -> list[Job]:
    """Lease up to ``limit`` due jobs of a queue, longest due first, and count the attempt.

    No two claims get the same job before its lease is over; nobody waits for anybody.
    """
    due = (
        select(jobs.c.id)
        .where(jobs.c.queue == queue, jobs.c.due_at <= now, jobs.c.dead_at.is_(None), _free(now))
        .order_by(jobs.c.due_at, jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")  # a CTE is evaluated once: as a plain subquery it could be repeated, and claim more
    )
    statement = (
        update(jobs)
        .where(jobs.c.id.in_(select(due.c.id)))
        # Should the worker vanish, the relay wakes another when the lease is over.
        .values(lease_until=now + lease, attempts=jobs.c.attempts + 1, wake_at=now + lease, wakes=0)
        .returning(jobs)
    )
    claimed = unit.connection.execute(statement).mappings().all()
    return [_job(row) for row in sorted(claimed, key=lambda row: (row["due_at"], row["id"]))]


def finish(unit: Unit, ids: Sequence[int]) -> None:
    """Remove jobs that are done; those that are gone already do not matter."""
    for chunk in rows.chunks(sorted(ids)):
        unit.connection.execute(delete(jobs).where(jobs.c.id.in_(chunk)))


def retry(unit: Unit, job_id: int, *, now: datetime, due_at: datetime, error: str) -> None:
    """Give a job back, due later."""
    statement = (
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.dead_at.is_(None))
        .values(due_at=due_at, wake_at=due_at, wakes=0, lease_until=None, error=rows.detail(error))
        .returning(jobs.c.queue)
    )
    queues = unit.connection.execute(statement).scalars().all()
    if due_at <= now:
        _ring(unit, queues)


def bury(unit: Unit, job_id: int, *, now: datetime, error: str) -> None:
    """Give a job up: it stays, for people to see and replay."""
    statement = (
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.dead_at.is_(None))
        .values(dead_at=now, lease_until=None, error=rows.detail(error))
    )
    unit.connection.execute(statement)


def due_queues(unit: Unit, now: datetime) -> Mapping[str, int]:
    """Return the queues to wake with how many jobs wait for it, and put their next wake-up off.

    The back-off is 2 s, 4 s, … 300 s; a thousand jobs at most are looked at, the rest is found by the next call.
    """
    statement = (
        select(jobs.c.id, jobs.c.queue, jobs.c.wakes)
        .where(jobs.c.dead_at.is_(None), jobs.c.wake_at <= now, jobs.c.due_at <= now, _free(now))
        .order_by(jobs.c.wake_at)
        .limit(_WAKE_BATCH)
        .with_for_update(skip_locked=True)
    )
    woken = unit.connection.execute(statement).all()
    for wakes in sorted({row.wakes for row in woken}):
        ids = sorted(row.id for row in woken if row.wakes == wakes)
        pause = min(_WAKE_FIRST * 2 ** min(wakes, 16), _WAKE_LAST)
        unit.connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(wakes=wakes + 1, wake_at=now + pause))
    return Counter(row.queue for row in woken)


def next_due(unit: Unit) -> datetime | None:
    """Return when ``due_queues`` has something to say next, None while nothing waits."""
    found: datetime | None = unit.connection.execute(
        select(jobs.c.wake_at).where(jobs.c.dead_at.is_(None)).order_by(jobs.c.wake_at).limit(1)
    ).scalar_one_or_none()
    return found


def dead(unit: Unit, queue: str | None = None) -> list[Job]:
    """Return the jobs that were given up, first given up first."""
    statement = select(jobs).where(jobs.c.dead_at.is_not(None)).order_by(jobs.c.dead_at, jobs.c.id)
    if queue is not None:
        statement = statement.where(jobs.c.queue == queue)
    return [_job(row) for row in unit.connection.execute(statement).mappings()]


def replay(unit: Unit, ids: Sequence[int], now: datetime) -> int:
    """Make dead jobs due again, with all their attempts; return how many there were."""
    count = 0
    for chunk in rows.chunks(sorted(ids)):
        statement = (
            update(jobs)
            .where(jobs.c.id.in_(chunk), jobs.c.dead_at.is_not(None))
            .values(dead_at=None, attempts=0, wakes=0, due_at=now, wake_at=now, lease_until=None)
            .returning(jobs.c.queue)
        )
        queues = unit.connection.execute(statement).scalars().all()
        count += len(queues)
        _ring(unit, queues)
    return count


def lag(unit: Unit, now: datetime) -> Mapping[str, tuple[int, float]]:
    """Return for each queue how many jobs are due and not done, and for how many seconds the oldest is."""
    statement = (
        select(jobs.c.queue, func.count().label("waiting"), func.min(jobs.c.due_at).label("oldest"))
        .where(jobs.c.dead_at.is_(None), jobs.c.due_at <= now)
        .group_by(jobs.c.queue)
    )
    found = unit.connection.execute(statement)
    return {row.queue: (row.waiting, (now - row.oldest).total_seconds()) for row in found}


def _free(now: datetime) -> ColumnElement[bool]:
    return or_(jobs.c.lease_until.is_(None), jobs.c.lease_until <= now)


def _ring(unit: Unit, queues: Sequence[str]) -> None:
    for queue in queues:
        unit.after_commit(f"queue:{queue}")


def _job(row: RowMapping) -> Job:
    return Job(
        id=row["id"],
        queue=row["queue"],
        kind=row["kind"],
        subject=row["subject"],
        attempts=row["attempts"],
        created_at=row["created_at"],
        due_at=row["due_at"],
        dead_at=row["dead_at"],
        error=row["error"],
    )
