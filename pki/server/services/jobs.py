"""Runs what the outbox holds: claim a batch, hand it to its handler, then finish, retry later, or give up."""

from __future__ import annotations

import logging
import secrets
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from pki.core.errors import ForbiddenError, KeymailboxError
from pki.server.ports import Job
from pki.server.services.deps import Deps
from pki.server.store import outbox

_log = logging.getLogger(__name__)

Handler = Callable[[Deps, Sequence[Job]], Mapping[int, Exception | None]]
"""Does jobs of one kind and says for each, by id, None or what went wrong. It may see a job again: it was not lost."""

LEASE = timedelta(minutes=1)
"""How long a claim lasts; a handler takes less, or its jobs are done twice."""
MAX_ATTEMPTS = 10
_LONGEST_PAUSE = timedelta(hours=1)
_JITTER = 0.2
_random = secrets.SystemRandom()


def run(deps: Deps, queue: str, handlers: Mapping[str, Handler], *, limit: int = 100) -> int:
    """Claim up to ``limit`` due jobs of a queue, do them, and return how many were claimed.

    What fails is due again after 2^attempts seconds, an hour at most, give or take a fifth; after ten attempts, or
    when another would not help, it is dead, for people to see and replay. Raises UnavailableError when the store is
    away: the claims end by themselves.
    """
    now = deps.clock.now()
    with deps.store.unit() as unit:
        claimed = outbox.claim(unit, queue, limit, now=now, lease=LEASE)
    groups: dict[str, list[Job]] = defaultdict(list)
    outcomes: dict[int, Exception | None] = {}
    for job in claimed:
        if job.attempts > MAX_ATTEMPTS:
            # It took its worker down with it each time: nobody was left to write that down.
            outcomes[job.id] = KeymailboxError("The job never came to an end")
        else:
            groups[job.kind].append(job)
    for kind, jobs in groups.items():
        outcomes |= _call(deps, kind, handlers.get(kind), jobs)
    if claimed:
        _conclude(deps, claimed, outcomes)
    return len(claimed)


def pause(attempts: int) -> timedelta:
    """Return how long to wait before the next attempt, without jitter."""
    return min(timedelta(seconds=2 ** min(attempts, 16)), _LONGEST_PAUSE)


def describe(error: Exception) -> str:
    """Return what may be written down about an error: our own words, or only the type of what is not ours."""
    return f"{error.code}: {error}" if isinstance(error, KeymailboxError) else type(error).__name__


def _call(deps: Deps, kind: str, handler: Handler | None, jobs: Sequence[Job]) -> Mapping[int, Exception | None]:
    if handler is None:
        # A newer release may know it: the job waits for one.
        return {job.id: KeymailboxError("No worker here knows this kind of job", on=kind) for job in jobs}
    try:
        outcomes = handler(deps, jobs)
    except Exception as error:
        _log.warning("the handler of %s failed: %s%s", kind, describe(error), _place(error))
        return {job.id: error for job in jobs}
    unanswered = KeymailboxError("The handler gave no answer for this job", on=kind)
    return {job.id: outcomes.get(job.id, unanswered) for job in jobs}


def _conclude(deps: Deps, claimed: Sequence[Job], outcomes: Mapping[int, Exception | None]) -> None:
    now = deps.clock.now()
    with deps.store.unit() as unit:
        outbox.finish(unit, [job.id for job in claimed if outcomes[job.id] is None])
        for job in claimed:
            error = outcomes[job.id]
            if error is None:
                continue
            if job.attempts >= MAX_ATTEMPTS or isinstance(error, ForbiddenError):
                _log.error("gave up %s job %d in %s: %s", job.kind, job.id, job.queue, describe(error))
                outbox.bury(unit, job.id, now=now, error=describe(error))
            else:
                due = now + pause(job.attempts) * _random.uniform(1 - _JITTER, 1 + _JITTER)
                outbox.retry(unit, job.id, now=now, due_at=due, error=describe(error))


def _place(error: Exception) -> str:
    # Where an error that is not ours came from, without its words: they may hold what nobody should read in a log.
    if isinstance(error, KeymailboxError):
        return ""
    return "".join(f", {frame.name} line {frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:])
