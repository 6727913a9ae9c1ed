"""Which service does which kind of job, and what a worker process needs for the queues that it serves."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import structlog

from pki.core.errors import KeymailboxError, UnavailableError
from pki.core.ids import DepositId, RequestId
from pki.server import bootstrap
from pki.server.adapters.broker import ExchangePublisher
from pki.server.adapters.notifiers.webhook import WebhookNotifier
from pki.server.ports import CaSigner, Job
from pki.server.services import issuing, jobs, notices, rotation, validation
from pki.server.services.deps import Deps
from pki.server.services.jobs import Handler

_log = structlog.get_logger("worker")

_BATCH = 100
_BATCHES = {"notify": 16}
"""Where a job waits for somebody else's server, a claim is what fits into one round of parallel posts."""
_DRAIN_SECONDS = 30.0
"""A task ends after this long even if more is due, well before it would be killed: the relay wakes another."""


class Hands:
    """What one worker process works with; opens only what its queues need, so only `issue` has the CA's key."""

    def __init__(self, deps: Deps, queues: Collection[str]) -> None:
        """Raises SettingsError and SealError when `issue` is among ``queues`` and the CA's key cannot be opened."""
        self._deps = deps
        self._queues = frozenset(queues)
        self._signer: CaSigner | None = bootstrap.signer(deps.settings) if "issue" in self._queues else None

    def drain(self, queue: str) -> None:
        """Do what is due in a queue. Whatever is the matter, the rows stay and the relay wakes somebody again."""
        if not isinstance(queue, str) or queue not in self._queues:
            # Anybody who reaches the broker can write a message; all it can do is wake who has work.
            _log.warning("not_my_queue", queue=str(queue)[:40])
            return
        try:
            if queue == "sequence":
                # Events are their own jobs: those in the table only ask to look.
                notices.sequence_events(self._deps, self._publisher)
            self._run(queue)
        except UnavailableError as error:
            _log.warning("away", queue=queue, error=str(error))
        except KeymailboxError as error:
            _log.error("failed", queue=queue, error=str(error), code=error.code)

    def close(self) -> None:
        """Give connections back."""
        if "_publisher" in self.__dict__:
            self._publisher.close()
        self._deps.store.close()

    def handlers(self, queue: str) -> Mapping[str, Handler]:
        """Return what is done with each kind of job in a queue."""
        table: Mapping[str, Mapping[str, Handler]] = {
            "validate": {"deposit": _validate},
            "issue": {"certificate": self._issue, "crl": self._publish_crl},
            "sequence": {"events": self._number},
            "notify": {"webhook": self._notify},
            "rotate": {"expire": _expire, "purge": _purge},
            "report": {"chain": _verify_chain},
        }
        return table[queue]

    def _run(self, queue: str) -> None:
        began = time.monotonic()
        batch = _BATCHES.get(queue, _BATCH)
        total, count = 0, batch
        while count == batch and time.monotonic() < began + _DRAIN_SECONDS:
            count = jobs.run(self._deps, queue, self.handlers(queue), limit=batch)
            total += count
        if total:
            _log.info("drained", queue=queue, jobs=total, ms=round((time.monotonic() - began) * 1000))

    @cached_property
    def _publisher(self) -> ExchangePublisher:
        settings = self._deps.settings
        return ExchangePublisher(settings.broker_url, settings.queue_prefix)

    @cached_property
    def _notifier(self) -> WebhookNotifier:
        return WebhookNotifier(allow_private=self._deps.settings.webhook_allow_private)

    # issue

    def _issue(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        results = issuing.issue(deps, self._ca(), [RequestId(job.subject) for job in batch])
        return {job.id: _failure(results[RequestId(job.subject)]) for job in batch}

    def _publish_crl(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        issuing.publish_crl(deps, self._ca())
        return _done(batch)

    def _ca(self) -> CaSigner:
        if self._signer is None:
            raise UnavailableError("This worker does not hold the CA's key", hint="kmb-server worker --queues issue")
        return self._signer

    # sequence

    def _number(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        notices.sequence_events(deps, self._publisher)
        return _done(batch)

    # notify

    def _notify(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        results = notices.deliver(deps, self._notifier, [job.subject for job in batch])
        return {job.id: results[job.subject] for job in batch}


def _validate(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    results = validation.validate(deps, [DepositId(job.subject) for job in batch])
    return {job.id: _failure(results[DepositId(job.subject)]) for job in batch}


def _expire(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    rotation.expire(deps)
    return _done(batch)


def _purge(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    rotation.purge(deps)
    return _done(batch)


def _verify_chain(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    """Recompute the events' hash chain: an altered trail ends as a dead job, which the doctor sees."""
    notices.verify_chain(deps)
    return _done(batch)


def _failure(result: object) -> Exception | None:
    return result if isinstance(result, Exception) else None


def _done(batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    return {job.id: None for job in batch}
