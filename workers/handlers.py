"""Which service does which kind of job, and what a worker process needs for the queues that it serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

import structlog

from pki.core.errors import KeymailboxError, UnavailableError
from pki.core.ids import DepositId, RequestId
from pki.server import bootstrap
from pki.server.adapters.broker import ExchangePublisher
from pki.server.adapters.notifiers.webhook import WebhookNotifier
from pki.server.facts import Job
from pki.server.ports import CaKeys, SecretOpener
from pki.server.services import (
    deliveries,
    evidence,
    issuing,
    jobs,
    notices,
    ocsp,
    renewals,
    retention,
    rotation,
    status,
    trail,
    validation,
    webhooks,
)
from pki.server.services.cmp import handling
from pki.server.services.deps import Deps
from pki.server.services.jobs import FINISHED, Handler, Outcome
from pki.server.store import outbox
from pki.server.store.engine import Unit
from workers.couriers import Couriers

_log = structlog.get_logger("worker")

_BATCH = 100
_DRAIN_SECONDS = 30.0
"""A task ends after this long even if more is due, well before it would be killed: the relay wakes another."""


class Hands:
    """What one worker process works with; opens only what its queues need, so only `issue` has the CA's key."""

    def __init__(
        self,
        deps: Deps,
        queues: Collection[str],
        stopping: Callable[[], bool] = lambda: False,
        patience: float | None = None,
    ) -> None:
        """Raises SettingsError and SealError when `issue` is among ``queues`` and the CA's key cannot be opened.

        Once ``stopping``, nothing more is begun. With ``patience``, seconds, `drain` leaves slow webhooks behind, which
        are told on until `close`.
        """
        self._deps = deps
        self._stopping = stopping
        self._queues = frozenset(queues)
        issues = "issue" in self._queues
        if issues:
            # A profile that is too wide is said now, not with the first request.
            bootstrap.check_profiles(deps)
        self._keys = bootstrap.OpenKeys(deps) if issues else None
        self._opener: SecretOpener | None = bootstrap.registration(deps.settings) if issues else None
        tells = webhooks.QUEUE in self._queues
        self._notifier = WebhookNotifier(allow_private=deps.settings.webhook_allow_private) if tells else None
        self._couriers = Couriers(deps, self.handlers(webhooks.QUEUE), stopping, patience)

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
        """End what `drain` left behind, and give connections back."""
        self._couriers.close()
        if "_publisher" in self.__dict__:
            self._publisher.close()
        if self._notifier is not None:
            self._notifier.close()
        self._deps.store.close()

    def handlers(self, queue: str) -> Mapping[str, Handler]:
        """Return what is done with each kind of job in a queue."""
        table: Mapping[str, Mapping[str, Handler]] = {
            "validate": {"deposit": _validate},
            "issue": {
                "certificate": self._issue,
                "crl": self._publish_crl,
                "cmp": self._answer_cmp,
                "ocsp": self._answer_ocsp,
                "ocsp-refresh": self._refresh_ocsp,
            },
            "sequence": {"events": self._number},
            "notify": {webhooks.JOB: self._notify, webhooks.LOOK: _look, webhooks.REPLAY: self._replay},
            "rotate": {"expire": _expire, "purge": _purge, "remind": _remind, "retain": _retain},
            "report": {"chain": _verify_chain},
        }
        return table[queue]

    def _run(self, queue: str) -> None:
        began = time.monotonic()
        # Where a job waits for somebody else's server, it must not hold up those that were claimed with it.
        total = self._couriers.drain(_DRAIN_SECONDS) if queue == webhooks.QUEUE else self._work_off(queue)
        if total:
            _log.info("drained", queue=queue, jobs=total, ms=round((time.monotonic() - began) * 1000))

    def _work_off(self, queue: str) -> int:
        end = time.monotonic() + _DRAIN_SECONDS
        total, count = 0, _BATCH
        while count == _BATCH and time.monotonic() < end and not self._stopping():
            count = jobs.run(self._deps, queue, self.handlers(queue), limit=_BATCH, stopping=self._stopping)
            if count == _BATCH and not total:
                # There is more than one can take at once: whoever is idle may help.
                jobs.call_another(self._deps, queue)
            total += count
        return total

    @cached_property
    def _publisher(self) -> ExchangePublisher:
        settings = self._deps.settings
        return ExchangePublisher(settings.broker_url, settings.queue_prefix)

    # issue

    def _issue(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        results = issuing.issue(deps, self._ca(), [RequestId(job.subject) for job in batch])
        return {job.id: _failure(results[RequestId(job.subject)]) for job in batch}

    def _publish_crl(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        status.publish(deps, self._ca())
        if any(job.subject != issuing.CRL_JOB for job in batch):
            # The beat's: a few times a day what proves each revocation is verified again, here, where the officers are.
            evidence.look(deps)
        return _done(batch)

    def _answer_ocsp(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        return self._say_status(ocsp.answer_questions, batch)

    def _refresh_ocsp(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        return self._say_status(ocsp.refresh, batch)

    def _say_status(self, work: Callable[[Deps, CaKeys], int], batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        """Answer what there is; a failure is not kept for later, as whoever asked asks again and so does the beat."""
        try:
            work(self._deps, self._ca())
        except KeymailboxError as error:
            _log.warning("status_not_signed", error=str(error), code=error.code)
        return _done(batch)

    def _answer_cmp(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        results = handling.handle(handling.Desk(deps, self._ca(), self._opener), [job.subject for job in batch])
        return {job.id: results[job.subject] for job in batch}

    def _ca(self) -> CaKeys:
        if self._keys is None:
            raise UnavailableError("This worker does not hold the CA's key", hint="kmb-server worker --queues issue")
        return self._keys()

    # sequence

    def _number(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        notices.sequence_events(deps, self._publisher)
        return _done(batch)

    # notify

    def _notify(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Outcome]:
        again = {job.subject for job in batch if job.error}
        struck: set[int] = set()

        def done(unit: Unit) -> None:
            """Strike the jobs off in the commit that lets go of their webhook."""
            ids = [job.id for job in batch]
            outbox.finish(unit, ids)
            unit.once_committed(lambda: struck.update(ids))

        webhooks.deliver(deps, self._posting(), [job.subject for job in batch], again=again, done=done)
        return {job.id: FINISHED if job.id in struck else None for job in batch}

    def _replay(self, deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
        subjects = [job.subject for job in batch]
        deliveries.revive(deps, subjects)
        # All of them: one may have been revived before, by a worker that was killed then.
        webhooks.deliver(deps, self._posting(), subjects)
        return _done(batch)

    def _posting(self) -> WebhookNotifier:
        if self._notifier is None:
            raise UnavailableError("This worker tells no webhooks", hint="kmb-server worker --queues notify")
        return self._notifier


def _validate(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Outcome]:
    """Validate, and strike the jobs off in the commit of the verdicts."""
    struck: set[int] = set()

    def done(unit: Unit, ids: Collection[DepositId]) -> None:
        found = [job.id for job in batch if job.subject in ids]
        outbox.finish(unit, found)
        struck.update(found)

    results = validation.validate(deps, [DepositId(job.subject) for job in batch], done)

    def outcome(job: Job) -> Outcome:
        # A deposit that is not there needs nothing done; a commit that failed has struck nothing off.
        failure = _failure(results.get(DepositId(job.subject)))
        return FINISHED if failure is None and job.id in struck else failure

    return {job.id: outcome(job) for job in batch}


def _look(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    webhooks.look(deps)
    return _done(batch)


def _expire(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    rotation.expire(deps)
    return _done(batch)


def _remind(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    renewals.remind(deps)
    return _done(batch)


def _purge(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    rotation.purge(deps)
    return _done(batch)


def _retain(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    # A tick that comes while the one before is still being worked off begins nothing anew.
    subjects = sorted({job.subject for job in batch}, reverse=True)
    retention.retain(deps, subjects[0])
    return _done(batch)


def _verify_chain(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    """Verify the events' hash chain: an altered trail ends as a dead job, which the doctor sees."""
    trail.verify(deps)
    return _done(batch)


def _failure(result: object) -> Exception | None:
    return result if isinstance(result, Exception) else None


def _done(batch: Sequence[Job]) -> Mapping[int, Exception | None]:
    return {job.id: None for job in batch}
