"""The outbox: the only road from a request to a worker; a job is a row, written together with what it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Executable,
    RowMapping,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    union_all,
    update,
)

from pki.server import tracing
from pki.server.facts import Job
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import jobs

URGENT, USUAL, IDLE = 0, 1, 2
"""Ranks: a revocation overtakes what waits in its queue, and what anybody may cause lets all else go first."""

_WAKE_FIRST = timedelta(seconds=2)
_WAKE_LAST = timedelta(seconds=300)
_WAKE_BATCH = 1000


def add(
    unit: Unit,
    queue: str,
    kind: str,
    subjects: Sequence[str],
    *,
    now: datetime,
    due_at: datetime | None = None,
    rank: int = USUAL,
    lanes: Sequence[str] = (),
) -> None:
    """Write one job for each subject, due at ``due_at`` or at once, and ring ``queue:<name>`` after the commit.

    Each remembers which request it comes from, as `tracing` knows it.
    ``lanes`` says whose each job is: a lane gets its next turn after that of its last job, or with the first that waits
    in the queue, whichever is later (start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996, §2.1).
    """
    if not subjects:
        return
    due = due_at or now
    places: Counter[str] = Counter()
    values = []
    for subject, lane in zip(subjects, lanes or [""] * len(subjects), strict=True):
        places[lane] += 1
        values.append(
            {
                "queue": queue,
                "kind": kind,
                "subject": subject,
                "created_at": now,
                "due_at": due,
                "wake_at": due,
                "attempts": 0,
                "wakes": 0,
                "rank": rank,
                "trace": tracing.of(subject),
                "lane": lane,
                # What is due later has no turn: it would be in the way of who comes after it.
                "turn": places[lane] if due <= now else None,
            }
        )
    _insert(unit, values)
    ring(unit, [queue])


def claim(unit: Unit, queue: str, limit: int, *, now: datetime, lease: timedelta) -> list[Job]:
    """Lease up to ``limit`` due jobs of a queue, by rank, and count the attempt.

    In each rank the lanes take turns, and what has no turn (a retry, or a claim that ran out) goes longest due first,
    one for one with the others. No two claims get the same job before its lease is over; nobody waits for anybody.
    """
    # In their own statements, because only those can be locked; in CTEs, which are evaluated once: as a plain subquery
    # one could be repeated, and claim more.
    waiting = select(jobs.c.id, jobs.c.rank, jobs.c.turn, jobs.c.due_at).where(
        jobs.c.queue == queue, jobs.c.due_at <= now, jobs.c.dead_at.is_(None), _free(now)
    )
    fresh = waiting.where(jobs.c.turn.is_not(None)).order_by(jobs.c.rank, jobs.c.turn, jobs.c.id)
    again = waiting.where(jobs.c.turn.is_(None)).order_by(jobs.c.rank, jobs.c.due_at, jobs.c.id)
    places = [
        select(
            one.c.id,
            one.c.rank,
            func.row_number().over(partition_by=one.c.rank, order_by=[order, one.c.id]).label("place"),
        )
        for one, order in (
            (one, one.c[by])
            for one, by in (
                (fresh.limit(limit).with_for_update(skip_locked=True).cte("fresh"), "turn"),
                (again.limit(limit).with_for_update(skip_locked=True).cte("again"), "due_at"),
            )
        )
    ]
    both = union_all(*places).subquery("both")
    due = select(both.c.id).order_by(both.c.rank, both.c.place, both.c.id).limit(limit).cte("due")
    statement = (
        update(jobs)
        .where(jobs.c.id.in_(select(due.c.id)))
        # Should the worker vanish, the relay wakes another when the lease is over.
        .values(lease_until=now + lease, attempts=jobs.c.attempts + 1, wake_at=now + lease, wakes=0, turn=None)
        .returning(jobs)
    )
    claimed = unit.connection.execute(statement).mappings().all()
    return [_job(row) for row in sorted(claimed, key=lambda row: (row["rank"], row["due_at"], row["id"]))]


def renew(unit: Unit, claimed: Sequence[Job], *, now: datetime, lease: timedelta) -> None:
    """Have claims last until ``now + lease``: those that are not over, and not another's, who counted an attempt more.

    Waits for nobody: a row that is locked is just being struck off.
    """
    for number in sorted({job.attempts for job in claimed}):
        for chunk in rows.chunks(sorted(job.id for job in claimed if job.attempts == number)):
            held = select(jobs.c.id).where(jobs.c.id.in_(chunk), *_claimed(number))
            one = held.with_for_update(skip_locked=True).cte("held")
            statement = update(jobs).where(jobs.c.id.in_(select(one.c.id)))
            unit.connection.execute(statement.values(lease_until=now + lease, wake_at=now + lease))


def waits(unit: Unit, queue: str, kind: str) -> bool:
    """Return whether a job of a kind waits that nobody has claimed: another like it would do nothing more."""
    statement = select(jobs.c.id).where(
        jobs.c.queue == queue, jobs.c.kind == kind, jobs.c.dead_at.is_(None), jobs.c.lease_until.is_(None)
    )
    return unit.connection.execute(statement.limit(1)).first() is not None


def finish(unit: Unit, ids: Sequence[int]) -> None:
    """Remove jobs that are done; those that are gone already do not matter."""
    for chunk in rows.chunks(sorted(ids)):
        unit.connection.execute(delete(jobs).where(jobs.c.id.in_(chunk)))


def retry(unit: Unit, job: Job, *, now: datetime, due_at: datetime, error: str) -> bool:
    """Give a claimed job back, due later; False when the claim is over and another's, or nobody's."""
    statement = (
        update(jobs)
        .where(jobs.c.id == job.id, *_claimed(job.attempts))
        .values(due_at=due_at, wake_at=due_at, wakes=0, lease_until=None, error=rows.detail(error))
        .returning(jobs.c.queue)
    )
    queues = unit.connection.execute(statement).scalars().all()
    if due_at <= now:
        ring(unit, queues)
    return bool(queues)


def give_back(unit: Unit, claimed: Sequence[Job], *, now: datetime) -> None:
    """Let others have what was claimed and not begun: at once, and without an attempt counted.

    What another has claimed since is left alone, as in `retry` and `bury`.
    """
    for number in sorted({job.attempts for job in claimed}):
        for chunk in rows.chunks(sorted(job.id for job in claimed if job.attempts == number)):
            statement = update(jobs).where(jobs.c.id.in_(chunk), *_claimed(number))
            unit.connection.execute(statement.values(lease_until=None, wake_at=now, wakes=0, attempts=number - 1))
    ring(unit, sorted({job.queue for job in claimed}))


def bury(unit: Unit, job: Job, *, now: datetime, error: str) -> bool:
    """Give a claimed job up, for people to see and replay; False when the claim is over and another's, or nobody's."""
    statement = (
        update(jobs)
        .where(jobs.c.id == job.id, *_claimed(job.attempts))
        .values(dead_at=now, lease_until=None, error=rows.detail(error))
    )
    return bool(unit.connection.execute(statement).rowcount)


def add_dead(unit: Unit, queue: str, kind: str, subject: str, *, now: datetime, error: str, attempts: int) -> None:
    """Write down what was given up without a job of its own, for people to see and replay."""
    values = {"queue": queue, "kind": kind, "subject": subject, "attempts": attempts, "error": rows.detail(error)}
    values |= dict.fromkeys(("created_at", "due_at", "wake_at", "dead_at"), now)
    unit.connection.execute(insert(jobs).values(**values, wakes=0, rank=USUAL, lane="", trace=tracing.of(subject)))


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


def dead(unit: Unit, queue: str | None = None, limit: int | None = None) -> list[Job]:
    """Return the jobs that were given up, first given up first, at most ``limit``."""
    statement = select(jobs).where(jobs.c.dead_at.is_not(None)).order_by(jobs.c.dead_at, jobs.c.id)
    if queue is not None:
        statement = statement.where(jobs.c.queue == queue)
    if limit is not None:
        statement = statement.limit(limit)
    return [_job(row) for row in unit.connection.execute(statement).mappings()]


def dead_job(unit: Unit, job_id: int) -> Job | None:
    """Return a job that was given up."""
    statement = select(jobs).where(jobs.c.id == job_id, jobs.c.dead_at.is_not(None))
    row = unit.connection.execute(statement).mappings().one_or_none()
    return None if row is None else _job(row)


def forget_dead(unit: Unit, queue: str, kind: str, subjects: Sequence[str]) -> int:
    """Remove the dead jobs about these subjects; return how many there were."""
    count = 0
    for chunk in rows.chunks(sorted(set(subjects))):
        about = (jobs.c.queue == queue, jobs.c.dead_at.is_not(None), jobs.c.kind == kind, jobs.c.subject.in_(chunk))
        count += unit.connection.execute(delete(jobs).where(*about)).rowcount
    return count


def discard(unit: Unit, ids: Sequence[int]) -> int:
    """Remove dead jobs for good; return how many there were."""
    count = 0
    for chunk in rows.chunks(sorted(set(ids))):
        statement = delete(jobs).where(jobs.c.id.in_(chunk), jobs.c.dead_at.is_not(None))
        count += unit.connection.execute(statement).rowcount
    return count


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
        ring(unit, queues)
    return count


def _insert(unit: Unit, values: Sequence[Mapping[str, Any]]) -> None:
    names = tuple(values[0])
    given: Any = rows.arrays(names, values)
    if unit.dialect == "sqlite":
        given = [{f"new_{name}": value for name, value in one.items()} for one in values]
    unit.connection.execute(_inserting(unit.dialect, names), given)


@cache
def _inserting(dialect: str, names: tuple[str, ...]) -> Executable:
    # Both are the first or last entry of an index, however many wait.
    others = jobs.alias("others")
    in_turn = others.c.dead_at.is_(None) & others.c.turn.is_not(None)

    def turn(queue: Any, lane: Any, rank: Any, place: Any) -> ColumnElement[int]:
        last = select(func.max(others.c.turn)).where(others.c.queue == queue, others.c.lane == lane, in_turn)
        head = select(func.min(others.c.turn)).where(others.c.queue == queue, others.c.rank == rank, in_turn)
        bases = (func.coalesce(last.scalar_subquery(), 0), func.coalesce(head.scalar_subquery(), 1) - 1)
        later = func.greatest(*bases) if dialect == "postgresql" else func.max(*bases)
        return cast("ColumnElement[int]", later + place)

    if dialect == "sqlite":
        # Each row sees those before it.
        given = {name: bindparam(f"new_{name}", type_=jobs.c[name].type) for name in names}
        place = case((given["turn"].is_(None), None), else_=1)
        return insert(jobs).values(given | {"turn": turn(given["queue"], given["lane"], given["rank"], place)})
    source = rows.unnested(jobs, names)
    # Once for each lane: a look for each row would pass by all that this very statement has added before it.
    each = select(source.c.queue, source.c.lane, source.c.rank).distinct().subquery("each")
    base = turn(each.c.queue, each.c.lane, each.c.rank, 0)
    bases = select(each.c.lane, base.label("base")).cte("bases").prefix_with("MATERIALIZED")
    ordered = [name for name in names if name != "turn"]
    # Looked up and not joined: rows stay in the order given, and so do their ids.
    own = select(bases.c.base).where(bases.c.lane == source.c.lane).scalar_subquery()
    chosen = select(*(source.c[name] for name in ordered), own + source.c.turn)
    return insert(jobs).from_select([*ordered, "turn"], chosen)


def _claimed(attempts: int) -> tuple[ColumnElement[bool], ...]:
    """Say whether a claim is still the one that counted so many attempts: whoever claims the job counts one more."""
    return jobs.c.attempts == attempts, jobs.c.lease_until.is_not(None), jobs.c.dead_at.is_(None)


def _free(now: datetime) -> ColumnElement[bool]:
    return or_(jobs.c.lease_until.is_(None), jobs.c.lease_until <= now)


def ring(unit: Unit, queues: Sequence[str]) -> None:
    """Ring ``queue:<name>`` after the commit."""
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
        trace=row["trace"],
    )
