"""Runs what the outbox holds: claim a batch, hand it to its handler, then finish, retry later, or give up."""

from __future__ import annotations

import logging
import secrets
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import partial
from typing import Final, Literal

import structlog

from pki.core.errors import ForbiddenError, KeymailboxError
from pki.server import metrics, tracing
from pki.server.facts import Job
from pki.server.services.deps import Deps
from pki.server.services.leases import LEASE, renewing
from pki.server.store import outbox
from pki.server.store.engine import Unit

_log = logging.getLogger(__name__)
_told = structlog.get_logger("jobs")


class _Finished(Enum):
    FINISHED = "finished"


FINISHED: Final = _Finished.FINISHED
"""What a handler says of a job that it has struck off itself, in the unit that committed what the job was for."""

Outcome = Exception | Literal[_Finished.FINISHED] | None
Handler = Callable[[Deps, Sequence[Job]], Mapping[int, Outcome]]
"""Does jobs of one kind and says for each, by id, None, FINISHED or what went wrong.

It may see a job again: it was not lost.
"""

MAX_ATTEMPTS = 10
_SUSPECTED = 3
_LONGEST_PAUSE = timedelta(hours=1)
_JITTER = 0.2
_random = secrets.SystemRandom()


def run(
    deps: Deps,
    queue: str,
    handlers: Mapping[str, Handler],
    *,
    limit: int = 100,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Claim up to ``limit`` due jobs of a queue, do them, and return how many were claimed.

    A claim is renewed while its jobs are worked on, for a minute at most: what a killed worker had claimed is done by
    another ten seconds later, and what takes longer than that is not done twice.

    Once ``stopping``, what was not begun is given back at once, as if it had not been claimed.

    What fails is due again after 2^attempts seconds, an hour at most, give or take a fifth; after ten attempts, or
    when another would not help, it is dead, for people to see and replay. Raises UnavailableError when the store is
    away: the claims end by themselves.
    """
    claimed = claim(deps, queue, limit)
    work(deps, queue, handlers, claimed.mine, stopping)
    return len(claimed.mine) + claimed.returned


@dataclass(frozen=True)
class Claimed:
    """What was claimed: to be done, and how many more were given back at once."""

    mine: Sequence[Job]
    returned: int


def claim(deps: Deps, queue: str, limit: int) -> Claimed:
    """Claim up to ``limit`` due jobs of a queue for `work`, which renews the claim. Raises UnavailableError."""
    now = deps.clock.now()
    # A claim that a crash of the database forgets is a job that is free again: nothing waits for a disk here.
    with deps.store.unit(durable=False) as unit:
        claimed = outbox.claim(unit, queue, limit, now=now, lease=LEASE)
        suspects = [job for job in claimed if _suspected(job)]
        if suspects and len(claimed) > 1:
            # It may have been one of these that took its worker down: one at a time, so that it takes no other with it.
            outbox.give_back(unit, suspects[1:], now=now)
    metrics.claims.labels(queue, "jobs" if claimed else "nothing").inc()
    if claimed:
        metrics.batch_sizes.labels(queue).observe(len(claimed))
    mine = [job for job in claimed if job not in suspects[1:]]
    return Claimed(mine, len(claimed) - len(mine))


def work(
    deps: Deps,
    queue: str,
    handlers: Mapping[str, Handler],
    claimed: Sequence[Job],
    stopping: Callable[[], bool] = lambda: False,
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Do what was claimed, and renew the claim meanwhile, for a minute at most. Raises UnavailableError.

    What may take its worker down is done last, and within ``alone``: for who does several things at a time.
    """
    if not claimed:
        return
    suspects = [job for job in claimed if _suspected(job)]
    with renewing(LEASE, partial(_keep, deps, claimed)):
        _do(deps, queue, handlers, [job for job in claimed if job not in suspects], stopping)
        if suspects:
            with alone():
                _do(deps, queue, handlers, suspects, stopping)


def _keep(deps: Deps, claimed: Sequence[Job]) -> None:
    with deps.store.unit(durable=False) as unit:
        outbox.renew(unit, claimed, now=deps.clock.now(), lease=LEASE)


def _do(
    deps: Deps, queue: str, handlers: Mapping[str, Handler], claimed: Sequence[Job], stopping: Callable[[], bool]
) -> None:
    groups: dict[str, list[Job]] = defaultdict(list)
    outcomes: dict[int, Outcome] = {}
    for job in claimed:
        if job.attempts > MAX_ATTEMPTS:
            # It took its worker down with it each time: nobody was left to write that down.
            outcomes[job.id] = KeymailboxError("The job never came to an end")
        else:
            groups[job.kind].append(job)
    for kind, jobs in groups.items():
        if stopping():
            break
        outcomes |= _worked(deps, queue, kind, handlers.get(kind), jobs)
    left = [job for job in claimed if outcomes.get(job.id) is not FINISHED]
    if left:
        _conclude(deps, left, outcomes)
    for job in claimed:
        if outcomes.get(job.id) is FINISHED:
            metrics.jobs.labels(job.queue, job.kind, "done").inc()


def _suspected(job: Job) -> bool:
    """Return whether a job was claimed before and its worker never said what came of it."""
    return job.attempts >= _SUSPECTED and job.error is None


def call_another(deps: Deps, queue: str) -> None:
    """Have one more worker of a queue woken."""
    with deps.store.unit() as unit:
        outbox.ring(unit, [queue])


def pause(attempts: int) -> timedelta:
    """Return how long to wait before the next attempt, without jitter."""
    return min(timedelta(seconds=2 ** min(attempts, 16)), _LONGEST_PAUSE)


def describe(error: Exception) -> str:
    """Return what may be written down about an error: our own words, or only the type of what is not ours."""
    return f"{error.code}: {error}" if isinstance(error, KeymailboxError) else type(error).__name__


def _worked(deps: Deps, queue: str, kind: str, handler: Handler | None, jobs: Sequence[Job]) -> Mapping[int, Outcome]:
    """Do the jobs of one kind, and say in one line for which requests."""
    began = time.monotonic()
    with tracing.batch(f"{queue} {kind}", {job.subject: job.trace for job in jobs}) as span:
        outcomes = _call(deps, kind, handler, jobs)
        failed = sum(isinstance(outcomes[job.id], Exception) for job in jobs)
        span.note("keymailbox.jobs", len(jobs))
        span.note("keymailbox.jobs.failed", failed)
        requests = sorted({tracing.request_id(job.trace) for job in jobs if job.trace})
        told = {"requests": requests} if len(requests) > 1 else {}
        took = round((time.monotonic() - began) * 1000, 1)
        metrics.batch_seconds.labels(queue, kind).observe(took / 1000)
        _told.info("worked", queue=queue, kind=kind, jobs=len(jobs), failed=failed, ms=took, **told)
    return outcomes


def _call(deps: Deps, kind: str, handler: Handler | None, jobs: Sequence[Job]) -> Mapping[int, Outcome]:
    if handler is None:
        # A newer release may know it: the job waits for one.
        return {job.id: KeymailboxError("No worker here knows this kind of job", on=kind) for job in jobs}
    try:
        outcomes = handler(deps, jobs)
    except Exception as error:
        _log.warning("the handler of %s failed: %s%s", kind, describe(error), place(error))
        return {job.id: error for job in jobs}
    unanswered = KeymailboxError("The handler gave no answer for this job", on=kind)
    return {job.id: outcomes.get(job.id, unanswered) for job in jobs}


def _conclude(deps: Deps, claimed: Sequence[Job], outcomes: Mapping[int, Outcome]) -> None:
    now = deps.clock.now()
    left = [job for job in claimed if job.id not in outcomes]
    claimed = [job for job in claimed if job.id in outcomes]
    ends: Counter[tuple[str, str, str]] = Counter()
    with deps.store.unit() as unit:
        outbox.finish(unit, [job.id for job in claimed if outcomes[job.id] is None])
        outbox.give_back(unit, left, now=now)
        for job in claimed:
            error = outcomes[job.id]
            if not isinstance(error, Exception):
                ends[job.queue, job.kind, "done"] += 1
                continue
            end = _failed(unit, job, error, now)
            if end:
                ends[job.queue, job.kind, end] += 1
    for labels, count in ends.items():
        metrics.jobs.labels(*labels).inc(count)


def _failed(unit: Unit, job: Job, error: Exception, now: datetime) -> str | None:
    """Write down a failure, and return whether the job is dead or retried; None when another has it by now."""
    facts = {"job": job.id, "queue": job.queue, "kind": job.kind, "subject": job.subject}
    facts |= {"attempt": job.attempts, "error": describe(error)}
    facts |= {"request_id": tracing.request_id(job.trace)} if job.trace else {}
    if job.attempts >= MAX_ATTEMPTS or isinstance(error, ForbiddenError):
        if not outbox.bury(unit, job, now=now, error=describe(error)):
            return None
        _told.error("gave_up", **facts, hint=f"kmb-server dead show {job.id}")
        return "dead"
    due = now + pause(job.attempts) * _random.uniform(1 - _JITTER, 1 + _JITTER)
    if not outbox.retry(unit, job, now=now, due_at=due, error=describe(error)):
        return None
    _told.warning("failed", **facts, again_at=due.isoformat(timespec="seconds"))
    return "retried"


def place(error: Exception) -> str:
    """Return where an error that is not ours came from, without its words: they may hold what no log should."""
    if isinstance(error, KeymailboxError):
        return ""
    return "".join(f", {frame.name} line {frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:])
