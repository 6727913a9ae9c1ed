"""A webhook is told one thing after the other, in the order of the trail, whoever works and whatever fails."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Self

import pytest
from sqlalchemy import select, update
from sqlalchemy.event import listen, remove

from pki.core.errors import ForbiddenError, UnavailableError
from pki.core.events import EventType
from pki.server.services import jobs, notices, webhooks
from pki.server.services.events import event
from pki.server.store import events as event_store
from pki.server.store import outbox, tables
from pki.server.store import webhooks as webhook_store
from pki.server.store.engine import Store
from tests.kit.mail import ACME, GLOBEX, Office
from tests.kit.processes import wait_until

URL = "https://hooks.acme.example/in"


@pytest.fixture
def office(store: Store, database_url: str, tmp_path: Path) -> Office:
    """Three certified instances."""
    return Office(store, database_url, tmp_path)


class Receiver:
    """Remembers what it took, in the order in which it came, and what it was offered; refuses what it is told to."""

    def __init__(self) -> None:
        self.offered: list[int] = []
        self.taken: list[int] = []
        self.refuses: set[int] = set()
        self.away = False
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Take a post."""
        number = int(json.loads(body)["sequence"])
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.offered.append(number)
        threading.Event().wait(0.002)
        with self._lock:
            self.inside -= 1
            if self.away:
                raise UnavailableError("no answer")
            if number in self.refuses:
                return 500
            self.taken.append(number)
        return 204


def work(office: Office, receiver: Receiver, limit: int = 16) -> int:
    """Do what is due in the queue once, as a worker does."""

    def tell(deps: object, batch: object) -> Mapping[int, Exception | None]:
        assert isinstance(batch, list)
        again = [job.subject for job in batch if job.error]
        webhooks.deliver(office.deps, receiver, [job.subject for job in batch], again=again)
        return {job.id: None for job in batch}

    return jobs.run(office.deps, webhooks.QUEUE, {webhooks.JOB: tell}, limit=limit)


def drain(office: Office, receiver: Receiver) -> None:
    """Work until nothing is due."""
    while work(office, receiver):
        pass


def positions(office: Office) -> list[int]:
    """Return what there is to tell the owner."""
    found = notices.events(office.deps, office.caller(ACME), limit=500)
    return [item.position for item in found if item.event.type is EventType.DEPOSIT_AVAILABLE]


def happen(office: Office, count: int) -> list[int]:
    """Send the owner deposits and number the events; return their positions."""
    before = positions(office)
    office.send_available(GLOBEX, ACME, count)
    notices.sequence_events(office.deps, None)
    return [one for one in positions(office) if one not in before]


def waiting(office: Office) -> int:
    """Return how many jobs there are."""
    with office.store.read() as unit:
        statement = select(tables.jobs.c.id).where(tables.jobs.c.queue == webhooks.QUEUE)
        return len(unit.connection.execute(statement).all())


def subscribe(office: Office) -> None:
    """Make the owner's webhook."""
    webhooks.register(office.deps, office.caller(ACME), URL, [EventType.DEPOSIT_AVAILABLE.value])


def test_posts_are_in_the_order_of_the_trail(office: Office) -> None:
    """One after the other, however many jobs there are and in which order they are claimed."""
    subscribe(office)
    wanted = happen(office, 20) + happen(office, 20)
    receiver = Receiver()
    drain(office, receiver)
    assert receiver.taken == wanted
    assert receiver.most == 1


def test_what_happens_together_is_one_job_of_each_webhook(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many deliveries; the job is of the first of them, in its owner's lane, and tells them all."""
    monkeypatch.setattr(webhooks, "_TURN_SECONDS", 60.0)
    subscribe(office)
    webhooks.register(office.deps, office.caller(GLOBEX), URL, [EventType.DEPOSIT_AVAILABLE.value])
    wanted = happen(office, 150)
    with office.store.read() as unit:
        found = select(tables.jobs.c.lane, tables.deliveries.c.position).join_from(
            tables.jobs, tables.deliveries, tables.jobs.c.subject == tables.deliveries.c.id
        )
        lanes = {(one.address.tenant, wanted[0]) for one in (ACME, GLOBEX)}
        assert {tuple(row) for row in unit.connection.execute(found)} == lanes
    assert waiting(office) == 2
    receiver = Receiver()
    assert work(office, receiver) == 2
    assert sorted(receiver.taken) == sorted(wanted * 2)
    assert waiting(office) == 0


def test_what_comes_later_waits_for_what_failed(office: Office) -> None:
    """Nothing overtakes; when the receiver is back it gets everything, in order, and nothing twice."""
    subscribe(office)
    first, second, *rest = happen(office, 5)
    receiver = Receiver()
    receiver.refuses = {second}
    drain(office, receiver)
    later = happen(office, 3)
    drain(office, receiver)
    assert (receiver.taken, receiver.offered) == ([first], [first, second])
    office.clock.go_on(seconds=10)
    drain(office, receiver)
    assert receiver.offered == [first, second, second]
    receiver.refuses.clear()
    office.clock.go_on(seconds=60)
    drain(office, receiver)
    assert receiver.taken == [first, second, *rest, *later]


def test_one_that_is_dead_is_passed_over(office: Office) -> None:
    """After ten attempts the next has its turn; replayed, the dead one is told late, before what is newer still."""
    subscribe(office)
    first, second, third = happen(office, 3)
    receiver = Receiver()
    receiver.refuses = {first}
    for _ in range(12):
        drain(office, receiver)
        office.clock.go_on(hours=1)
    assert receiver.offered == [first] * 10 + [second, third]
    receiver.refuses.clear()
    with office.store.unit() as unit:
        dead = outbox.dead(unit, webhooks.QUEUE)
        assert [job.attempts for job in dead] == [10]
        assert outbox.replay(unit, [job.id for job in dead], office.clock.now()) == 1
    fourth = happen(office, 1)
    drain(office, receiver)
    assert receiver.taken == [second, third, first, *fourth]


def test_several_workers_tell_one_webhook_in_order(office: Office) -> None:
    """Four at once: never two posts to one webhook at a time, and nothing left behind."""
    subscribe(office)
    wanted = [position for _ in range(12) for position in happen(office, 5)]
    assert waiting(office) == 12
    receiver = Receiver()
    workers = [threading.Thread(target=drain, args=(office, receiver)) for _ in range(4)]
    for one in workers:
        one.start()
    for one in workers:
        one.join(60)
    drain(office, receiver)
    assert receiver.taken == wanted
    assert receiver.most == 1


class Interrupted:
    """Has something done in a thread of its own just before one of this thread's statements or commits."""

    def __init__(self, store: Store, at: int, work: Callable[[], None]) -> None:
        self._store, self._at, self._mine = store, at, threading.get_ident()
        self._other = threading.Thread(target=work)
        self.reached = False

    def __enter__(self) -> Self:
        listen(self._store._engine, "before_cursor_execute", self._step)
        listen(self._store._engine, "commit", self._step)
        return self

    def __exit__(self, *_: object) -> None:
        remove(self._store._engine, "before_cursor_execute", self._step)
        remove(self._store._engine, "commit", self._step)
        if self.reached:
            self._other.join(20)

    def _step(self, *_: object) -> None:
        self._at -= threading.get_ident() == self._mine
        if self._at == 0 and not self.reached:
            self.reached = True
            self._other.start()
            # It comes to its end, unless it waits for what this thread holds.
            self._other.join(0.3)


@pytest.mark.parametrize("seconds", [5.0, 0.0])
def test_what_comes_at_any_moment_of_a_turn_is_told(
    office: Office, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Another event, whose job another worker does: it finds the webhook taken, and who has it has to see the event."""
    monkeypatch.setattr(webhooks, "_TURN_SECONDS", seconds)
    webhooks.register(office.deps, office.caller(ACME), URL, [EventType.DEPOSIT_EXPIRED.value])
    wanted: list[int] = []
    receiver = Receiver()

    def come() -> None:
        told = event(EventType.DEPOSIT_EXPIRED, secrets.token_hex(16), office.clock.now(), ACME.address)
        with office.store.unit() as unit:
            event_store.append(unit, [told])
        notices.sequence_events(office.deps, None)
        wanted.append(notices.newest(office.deps))

    def another() -> None:
        come()
        drain(office, receiver)

    for at in count(1):
        come()
        with Interrupted(office.store, at, another) as interrupted:
            work(office, receiver, limit=1)
        drain(office, receiver)
        assert (receiver.taken, receiver.most, waiting(office)) == (wanted, 1, 0), f"at step {at}"
        if not interrupted.reached:
            break
    assert at > 20


class Killed(BaseException):
    """What no handler catches."""


def test_what_was_given_up_takes_nothing_with_it(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's own delivery is dead, and the worker killed at the next: the rest is told when the claim is over."""
    subscribe(office)
    wanted = happen(office, 4)

    class Worker(Receiver):
        """The target of the first is forbidden; at the second the worker dies."""

        def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
            """Take no post."""
            self.offered.append(int(json.loads(body)["sequence"]))
            if len(self.offered) == 1:
                raise ForbiddenError("a private address")
            raise Killed

    dies, receiver = Worker(), Receiver()
    monkeypatch.setattr(webhooks, "_POSTS", 1)
    with pytest.raises(Killed):
        work(office, dies, limit=1)
    assert dies.offered == wanted[:2]
    office.clock.go_on(seconds=15)
    drain(office, receiver)
    assert receiver.taken == wanted[1:]
    assert webhooks.look(office.deps) == 0


def test_a_turn_has_an_end(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has much to be told gives way to others, and goes on where he was."""
    monkeypatch.setattr(webhooks, "_TURN_SECONDS", 0.0)
    subscribe(office)
    wanted = happen(office, 10)
    receiver = Receiver()
    assert work(office, receiver, limit=1) == 1
    assert receiver.taken == wanted[:1]
    drain(office, receiver)
    assert receiver.taken == wanted


def test_what_a_killed_worker_held_goes_on(office: Office) -> None:
    """Its claim of the webhook ends, and what nobody was woken for is found by the look."""
    subscribe(office)
    wanted = happen(office, 3)
    receiver = Receiver()
    with office.store.read() as unit:
        (hook,) = webhook_store.list_webhooks(unit)
    with office.store.unit() as unit:
        lease = timedelta(seconds=30)
        assert event_store.acquire_lease(unit, f"webhook:{hook.id}", "killed", office.clock.now(), lease)
    drain(office, receiver)
    assert receiver.taken == []
    assert webhooks.look(office.deps) == 0
    office.clock.go_on(seconds=61)
    assert webhooks.look(office.deps) == 1
    drain(office, receiver)
    assert receiver.taken == wanted
    assert webhooks.look(office.deps) == 0


def test_who_stood_still_posts_nothing_more(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose lease ran out while it posted leaves the rest to who has the webhook now."""
    monkeypatch.setattr(webhooks, "_LEASE_TIME", timedelta(seconds=0.2))
    subscribe(office)
    wanted = happen(office, 3)

    class Paused(Receiver):
        def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
            """Have another worker take the webhook while this one stands still."""
            with office.store.unit() as unit:
                unit.connection.exec_driver_sql("UPDATE leases SET holder = 'another'")
            threading.Event().wait(0.5)
            return super().post(url, headers, body)

    receiver = Paused()
    office.clock.go_on(seconds=1)
    work(office, receiver)
    assert receiver.taken == wanted[:1]


class Lost(Receiver):
    """Has the webhook taken over while its first post is under way, answers that one as it was told, no other well."""

    def __init__(self, office: Office, other: Receiver, answer: int) -> None:
        super().__init__()
        self._office, self._other, self._answer = office, other, answer

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Stand still for longer than lease and claim, seen from the other worker."""
        if self.offered:
            return 500
        with self._office.store.unit() as unit:
            over = update(tables.leases).values(holder="vanished", until=self._office.clock.now())
            unit.connection.execute(over)
            unit.connection.execute(update(tables.jobs).values(lease_until=self._office.clock.now()))
        drain(self._office, self._other)
        super().post(url, headers, body)
        return self._answer


def standing(office: Office) -> list[str]:
    """Return what has become of the deliveries, in the order of the trail."""
    with office.store.read() as unit:
        statement = select(tables.deliveries.c.state).order_by(tables.deliveries.c.position)
        return list(unit.connection.execute(statement).scalars())


@pytest.mark.parametrize("answer", [500, 410])
def test_who_lost_a_webhook_undoes_nothing(office: Office, answer: int) -> None:
    """What another delivered meanwhile is not pending again, nor dead, nor is the webhook disabled."""
    subscribe(office)
    wanted = happen(office, 3)
    other = Receiver()
    lost = Lost(office, other, answer)
    work(office, lost, limit=1)
    assert lost.offered == wanted[:1]
    assert standing(office) == ["delivered"] * 3
    office.clock.go_on(minutes=5)
    later = happen(office, 1)
    drain(office, other)
    assert other.taken == wanted + later


@pytest.mark.parametrize(("answer", "again"), [(204, 1), (500, 2), (410, 2)])
def test_who_lost_a_webhook_says_only_what_was_taken(office: Office, answer: int, again: int) -> None:
    """What it delivered is not told again; what failed goes on as who has the webhook now has left it."""
    subscribe(office)
    wanted = happen(office, 3)
    other = Receiver()
    other.away = True
    work(office, Lost(office, other, answer), limit=1)
    assert standing(office) == ["delivered" if answer == 204 else "pending", "pending", "pending"]
    other.away = False
    office.clock.go_on(seconds=4)
    assert webhooks.look(office.deps) == 0
    drain(office, other)
    assert standing(office) == ["delivered"] * 3
    assert other.offered.count(wanted[0]) == again


def test_a_post_that_takes_long_keeps_its_webhook(office: Office) -> None:
    """The lease of a worker that waits for a receiver is renewed, and so is its claim: nobody else begins."""
    subscribe(office)
    wanted = happen(office, 2)
    other = Receiver()

    class Slow(Receiver):
        def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
            """Take longer than lease and claim last, together; each is renewed on the way."""
            for _ in range(3):
                office.clock.go_on(seconds=4)
                wait_until(lambda: all(until > office.clock.now() + timedelta(seconds=4.5) for until in ends(office)))
                drain(office, other)
            return super().post(url, headers, body)

    receiver = Slow()
    drain(office, receiver)
    assert (receiver.taken, other.offered) == (wanted, [])


def ends(office: Office) -> list[datetime]:
    """Return until when the webhook, and the claims of the queue, are held."""
    with office.store.read() as unit:
        held = unit.connection.execute(select(tables.leases.c.until)).scalars().all()
        claimed = select(tables.jobs.c.lease_until).where(tables.jobs.c.lease_until.is_not(None))
        return [*held, *unit.connection.execute(claimed).scalars()]


def test_a_pause_is_not_cut_short(office: Office) -> None:
    """The look leaves alone what waits for its next attempt."""
    subscribe(office)
    happen(office, 2)
    receiver = Receiver()
    receiver.away = True
    for _ in range(8):
        drain(office, receiver)
        office.clock.go_on(seconds=400)
    office.clock.go_on(seconds=-300)
    assert webhooks.look(office.deps) == 0


def test_what_an_earlier_release_queued_is_told(office: Office) -> None:
    """It had a job for each, and without a position one gets it when its turn comes."""
    subscribe(office)
    wanted = happen(office, 3)
    with office.store.unit() as unit:
        unit.connection.exec_driver_sql("UPDATE deliveries SET position = NULL")
        others = select(tables.deliveries.c.id).where(tables.deliveries.c.id.not_in(select(tables.jobs.c.subject)))
        ids = list(unit.connection.execute(others).scalars())
        outbox.add(unit, webhooks.QUEUE, webhooks.JOB, ids, now=office.clock.now())
    receiver = Receiver()
    drain(office, receiver)
    assert receiver.taken == wanted
