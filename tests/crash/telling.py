"""Events: numbered, chained, published, posted; jobs woken; ticks written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import timedelta

from pki.core.errors import NotFoundError
from pki.server.services import notices, webhooks
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


CASES: Mapping[str, Case] = {one.__name__: one for one in (sequence, deliver, register, remove, beat, relay)}
