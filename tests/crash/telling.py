"""Events: numbered, chained, published, posted; jobs woken; ticks written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import timedelta

from pki.core.errors import ForbiddenError, NotFoundError
from pki.server.facts import Job
from pki.server.services import deliveries, jobs, notices, webhooks
from pki.server.services.deps import Deps
from pki.server.services.jobs import Outcome
from pki.server.store import outbox
from tests.crash.attempts import Attempt, Case, client
from tests.kit.steps import SteppedWakeUps
from tests.kit.town import Town
from workers.beat import schedule, tick
from workers.relay import Relay


def sequence(town: Town) -> Attempt:
    """Events are numbered, fanned out to webhooks and published."""
    _listen(town)
    [found] = town.deliver(town.acme, town.globex)

    def check() -> None:
        heard = [one.event.subject for one in notices.events(town.deps, town.caller(town.acme), limit=500)]
        position = 0
        while page := notices.events(town.deps, town.caller(town.acme), after=position, limit=500):
            heard += [one.event.subject for one in page]
            position = page[-1].position
        assert found in heard

    return Attempt(lambda: town.hands.drain("sequence"), check)


def deliver(town: Town) -> Attempt:
    """A webhook hears of each event at least once, by an id that stays the same."""
    hook = _listen(town)
    town.deliver(town.acme, town.globex, 2)
    town.hands.drain("sequence")

    def check() -> None:
        webhooks.remove(town.deps, town.caller(town.globex), hook)
        told = {one.event.id for one in notices.events(town.deps, town.caller(town.globex), after=town.mark, limit=500)}
        assert told
        assert told <= set(town.ear.heard)

    return Attempt(lambda: town.hands.drain("notify"), check)


class _Refusing:
    """A notifier that may post nowhere: what it is given is given up at once."""

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Refuse."""
        raise ForbiddenError("The webhook's address is private")


def tell_again(town: Town) -> Attempt:
    """What a webhook was not told, its owner has told again: each event at least once, and nothing stays given up."""
    hook, caller = _listen(town), town.caller(town.globex)
    town.deliver(town.acme, town.globex, 2)
    town.hands.drain("sequence")

    def refuse(deps: Deps, batch: Sequence[Job]) -> Mapping[int, Outcome]:
        webhooks.deliver(deps, _Refusing(), [job.subject for job in batch])
        return dict.fromkeys((job.id for job in batch), None)

    while jobs.run(town.deps, webhooks.QUEUE, {webhooks.JOB: refuse}):
        pass
    given_up = {found.event.id for _, found in deliveries.dead(town.deps, caller, hook)[0] if found is not None}

    def work() -> None:
        deliveries.replay(town.deps, caller, hook)
        town.hands.drain("notify")

    def check() -> None:
        left, _ = deliveries.dead(town.deps, caller, hook)
        webhooks.remove(town.deps, caller, hook)
        assert left == []
        assert given_up
        assert given_up <= set(town.ear.heard)

    return Attempt(work, check, work, given_up=True)


def replay(town: Town) -> Attempt:
    """A job that was given up is taken up by the operator, and done once."""
    [found] = town.send(town.acme, town.globex)
    with town.deps.store.unit() as unit:
        [job] = outbox.claim(unit, "validate", 100, now=town.clock.now(), lease=timedelta(minutes=1))
        assert outbox.bury(unit, job, now=town.clock.now(), error="tried too often")

    def work() -> None:
        with town.deps.store.unit() as unit:
            outbox.replay(unit, [one.id for one in outbox.dead(unit, "validate")], town.clock.now())
        town.hands.drain("validate")

    def check() -> None:
        with town.deps.store.read() as unit:
            assert outbox.dead(unit, "validate") == []
        assert town.state(found) == "available"

    return Attempt(work, check, work, given_up=True)


def register(town: Town) -> Attempt:
    """A webhook; whoever did not hear of it registers another, and removes what it finds too many."""
    told: list[str] = []

    def work() -> None:
        told[:] = [webhooks.register(town.deps, town.caller(town.acme), town.ear.url).id]

    def check() -> None:
        found = [one.id for one in webhooks.listed(town.deps, town.caller(town.acme))]
        assert set(told) <= set(found)
        for one in found:
            webhooks.remove(town.deps, town.caller(town.acme), one)

    return client(work, check)


def remove(town: Town) -> Attempt:
    """A webhook with a delivery on its way; who hears that it is not there has removed it."""
    hook = _listen(town)
    town.deliver(town.acme, town.globex)
    town.hands.drain("sequence")

    def work() -> None:
        webhooks.remove(town.deps, town.caller(town.globex), hook)

    def again() -> None:
        with contextlib.suppress(NotFoundError):
            work()

    return Attempt(work, lambda: None, again)


def beat(town: Town) -> Attempt:
    """Each tick of a period is written once, with its job."""
    town.clock.step(timedelta(days=2))
    now = town.clock.now()
    due = schedule(town.deps.settings)

    def again() -> None:
        town.tick()
        assert {(one.kind, one.period(now).isoformat()) for one in due} <= town.jobs()

    def check() -> None:
        assert not any(tick(town.deps, one, now) for one in due)

    return Attempt(town.tick, check, again)


def relay(town: Town) -> Attempt:
    """Whoever has work is woken, sooner or later, whatever the broker says."""
    town.send(town.acme, town.globex)
    wake_ups = SteppedWakeUps(town.steps)

    def work() -> None:
        looking = Relay(town.deps, wake_ups)
        looking._look()
        looking._publish()

    return Attempt(work, lambda: None)


def _listen(town: Town) -> str:
    """Return a webhook of globex that hears of everything from now on."""
    town.recover()
    caller = town.caller(town.globex)
    for one in webhooks.listed(town.deps, caller):
        webhooks.remove(town.deps, caller, one.id)
    town.mark = town.last_position()
    return webhooks.register(town.deps, caller, town.ear.url).id


CASES: Mapping[str, Case] = {
    one.__name__: one for one in (sequence, deliver, tell_again, replay, register, remove, beat, relay)
}
