"""How far the workers are behind, found by a few index reads however much waits or has been kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import func, select

from pki.server.store.engine import Unit
from pki.server.store.outbox import IDLE, URGENT, USUAL
from pki.server.store.tables import deliveries, events, jobs

QUEUES = ("validate", "issue", "sequence", "notify", "rotate", "report")
MOST = 10_000
"""Nobody acts differently on more than this, and to count further would cost more the further behind one is."""


def queues(unit: Unit, now: datetime, names: Collection[str] = QUEUES) -> Mapping[str, tuple[int, float]]:
    """Return for each queue in which something is due how many jobs, to MOST, and for how many seconds the oldest.

    Where more than MOST wait for their turn, the oldest of those whose turn comes first.
    """
    found: dict[str, tuple[int, float]] = {}
    for queue in names:
        alive = [jobs.c.queue == queue, jobs.c.dead_at.is_(None)]
        in_turn = select(jobs.c.due_at).where(*alive, jobs.c.turn.is_not(None)).limit(MOST).subquery()
        count, oldest = unit.connection.execute(select(func.count(), func.min(in_turn.c.due_at))).one()
        times = [oldest]
        for rank in (URGENT, USUAL, IDLE):
            # Those without a turn lie in the index by the time at which they are due: the first is enough.
            due = [*alive, jobs.c.turn.is_(None), jobs.c.rank == rank, jobs.c.due_at <= now]
            first = select(jobs.c.due_at).where(*due).order_by(jobs.c.due_at).limit(1)
            times.append(unit.connection.execute(first).scalar_one_or_none())
            some = select(jobs.c.id).where(*due).limit(MOST).subquery()
            count += unit.connection.execute(select(func.count()).select_from(some)).scalar_one()
        since = min((moment for moment in times if moment is not None), default=None)
        if since is not None:
            found[queue] = (min(count, MOST), (now - since).total_seconds())
    return found


def dead_jobs(unit: Unit) -> Mapping[str, int]:
    """Return for each queue how many jobs were given up, MOST in all."""
    some = select(jobs.c.queue).where(jobs.c.dead_at.is_not(None)).limit(MOST).subquery()
    found = unit.connection.execute(select(some.c.queue, func.count().label("dead")).group_by(some.c.queue))
    return {row.queue: row.dead for row in found}


def unsequenced(unit: Unit) -> tuple[int, datetime | None]:
    """Return how many events have no position yet, to MOST, and since when the first of them waits."""
    waiting = events.c.position.is_(None)
    some = select(events.c.seq).where(waiting).limit(MOST).subquery()
    count = unit.connection.execute(select(func.count()).select_from(some)).scalar_one()
    oldest = unit.connection.execute(select(events.c.time).where(waiting).order_by(events.c.seq).limit(1))
    return count, oldest.scalar_one_or_none()


def dead_deliveries(unit: Unit) -> int:
    """Return how many posts to webhooks were given up, to MOST."""
    some = select(deliveries.c.id).where(deliveries.c.state == "dead").limit(MOST).subquery()
    return int(unit.connection.execute(select(func.count()).select_from(some)).scalar_one())
