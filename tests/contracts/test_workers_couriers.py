"""A receiver of webhooks that is slow holds up no other, nor the task that began with it; nothing of it is lost."""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import structlog
from sqlalchemy import select, update

from pki.core.events import EventType
from pki.server.adapters.notifiers.webhook import WebhookNotifier
from pki.server.services import notices, webhooks
from pki.server.services.events import event
from pki.server.services.jobs import Handler
from pki.server.store import events as event_store
from pki.server.store import tables
from pki.server.store.engine import Store
from tests.kit.mail import ACME, GLOBEX, Office
from tests.kit.processes import wait_until
from tests.kit.sink import Sink, sink
from workers.couriers import Couriers
from workers.handlers import Hands

_SLOW = 0.2
"""Seconds for which a task waits here for who is slow."""


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    """A server whose webhooks may be on this machine, and are waited for as long as a test takes."""
    patient = partial(WebhookNotifier, timeout=120)
    monkeypatch.setattr("workers.handlers.WebhookNotifier", patient)
    return Office(store, database_url, tmp_path, webhook_allow_private=True)


@pytest.fixture
def hands(office: Office) -> Iterator[Hands]:
    """A worker of the queue."""
    made = Hands(office.deps, ["notify"], patience=_SLOW)
    yield made
    made.close()


def happen(office: Office, count: int) -> list[str]:
    """Let something happen that both hear of; return the events' ids."""
    now, both = office.clock.now(), (ACME.address, GLOBEX.address)
    told = [event(EventType.DEPOSIT_EXPIRED, secrets.token_hex(16), now, *both) for _ in range(count)]
    with office.store.unit() as unit:
        event_store.append(unit, told)
    notices.sequence_events(office.deps, None)
    return [one.id for one in told]


def heard(receiver: Sink, wanted: list[str]) -> None:
    """Wait until a receiver has heard exactly this, in this order."""
    wait_until(lambda: len(receiver.heard) >= len(wanted))
    assert receiver.heard == wanted


def left(office: Office) -> bool:
    """Return whether there are jobs, claimed or not."""
    with office.store.read() as unit:
        return unit.connection.execute(select(tables.jobs.c.id).limit(1)).first() is not None


def test_who_is_slow_holds_up_nobody(office: Office, hands: Hands) -> None:
    """While one does not answer the other hears all, also what happens later; then the slow one does, in order."""
    answering = threading.Event()
    with sink(answering) as slow, sink() as quick:
        webhooks.register(office.deps, office.caller(ACME), slow.url)
        webhooks.register(office.deps, office.caller(GLOBEX), quick.url)
        wanted = happen(office, 30)
        hands.drain("notify")
        heard(quick, wanted)
        wanted += happen(office, 30)
        hands.drain("notify")
        heard(quick, wanted)
        assert slow.heard == wanted[:1]
        answering.set()
        wait_until(lambda: hands.drain("notify") or not left(office))
        assert slow.heard == wanted


def test_no_more_is_begun_than_there_is_room_for(office: Office, hands: Hands) -> None:
    """While as many as there is room for do not answer, the others' jobs wait unclaimed, and another task is called."""
    answering = threading.Event()
    rung: list[str] = []
    office.store.bell.subscribe(rung.append)
    with sink(answering) as slow:
        for _ in range(webhooks.MAX_WEBHOOKS):
            webhooks.register(office.deps, office.caller(ACME), slow.url)
            webhooks.register(office.deps, office.caller(GLOBEX), slow.url)
        happen(office, 2)
        for _ in range(4):
            hands.drain("notify")
        begun = len(slow.heard)
        assert begun <= 2 * webhooks.MAX_WEBHOOKS
        threads = sum(thread.name.startswith("courier") for thread in threading.enumerate())
        assert threads <= 32
        rung.clear()
        answering.set()
        wait_until(lambda: "queue:notify" in rung)
        wait_until(lambda: hands.drain("notify") or not left(office))
        assert len(slow.heard) == 4 * webhooks.MAX_WEBHOOKS


def test_what_may_take_its_worker_down_is_tried_alone(office: Office, hands: Hands) -> None:
    """While another post is under way none of the suspects is begun, then one at a time, and nothing beside it."""
    first, then = threading.Event(), threading.Event()
    with sink(first) as usual, sink(then) as suspect, sink() as late:
        webhooks.register(office.deps, office.caller(GLOBEX), usual.url)
        happen(office, 1)
        hands.drain("notify")
        wait_until(lambda: len(usual.heard) == 1)
        for _ in range(3):
            webhooks.register(office.deps, office.caller(ACME), suspect.url)
        told = event(EventType.DEPOSIT_EXPIRED, "ab" * 16, office.clock.now(), ACME.address)
        with office.store.unit() as unit:
            event_store.append(unit, [told])
        notices.sequence_events(office.deps, None)
        with office.store.unit() as unit:
            # Three workers died while they were at these.
            nobodys = tables.jobs.c.lease_until.is_(None)
            unit.connection.execute(update(tables.jobs).where(nobodys).values(attempts=3))
        for _ in range(4):
            hands.drain("notify")
        assert suspect.heard == []
        first.set()
        wait_until(lambda: len(suspect.heard) == 1)
        webhooks.register(office.deps, office.caller(GLOBEX), late.url)
        happen(office, 1)
        for _ in range(4):
            hands.drain("notify")
        assert (len(suspect.heard), late.heard) == (1, [])
        then.set()
        wait_until(lambda: hands.drain("notify") or not left(office))
        assert (suspect.heard.count(told.id), len(late.heard)) == (3, 1)


def test_nothing_is_forgotten_when_a_turn_ends(office: Office, hands: Hands) -> None:
    """What happens at any moment of another's turn is told, in order and once, without the look for what is forgotten.

    Who is woken for it goes away while another tells the webhook: that one has to see it, or leave a job.
    """
    chance, over = random.Random(7), threading.Event()
    other = Hands(office.deps, ["notify"], patience=_SLOW)

    def drain(worker: Hands) -> None:
        while not over.is_set():
            worker.drain("notify")

    with sink() as receiver:
        webhooks.register(office.deps, office.caller(ACME), receiver.url)
        workers = [threading.Thread(target=drain, args=(one,)) for one in (hands, other)]
        for one in workers:
            one.start()
        wanted: list[str] = []
        try:
            for number in range(60):
                wanted += happen(office, 1 + number % 2)
                # A turn takes about as long.
                over.wait(chance.uniform(0, 0.02))
            wait_until(lambda: not left(office))
        finally:
            over.set()
            for one in workers:
                one.join()
        assert receiver.heard == wanted
    other.close()


def test_what_breaks_is_told_though_nobody_waits(office: Office) -> None:
    """An error of another kind than ours is logged by its type and place, also after the task went on without it."""
    webhooks.register(office.deps, office.caller(ACME), "https://hooks.acme.example/in")
    happen(office, 1)
    going_on = threading.Event()

    class Broken(dict[str, Handler]):
        def get(self, *_: object) -> Handler:  # type: ignore[override]  # it returns nothing
            """Fail where no handler does, when nobody waits any more."""
            going_on.wait(60)
            raise RuntimeError("a secret")

    couriers = Couriers(office.deps, Broken(), lambda: False, _SLOW)
    with structlog.testing.capture_logs() as caught:
        assert couriers.drain(5) == 1
        going_on.set()
        couriers.close()
    (line,) = [one for one in caught if one["event"] == "broken"]
    assert line["error"].startswith("RuntimeError, ") and "secret" not in str(line)


def test_what_a_task_left_behind_is_not_begun_by_another(office: Office, hands: Hands) -> None:
    """A webhook that is still being told is nobody else's, in this process or in another."""
    answering = threading.Event()
    other = Hands(office.deps, ["notify"], patience=_SLOW)
    with sink(answering) as slow:
        webhooks.register(office.deps, office.caller(ACME), slow.url)
        first = happen(office, 1)
        hands.drain("notify")
        wait_until(lambda: slow.heard == first)
        second = happen(office, 1)
        hands.drain("notify")
        other.drain("notify")
        assert slow.heard == first
        answering.set()
        heard(slow, first + second)
        # Stopped in order, a worker leaves nothing half done.
        hands.close()
        assert not left(office)
    other.close()
