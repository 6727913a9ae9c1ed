"""Contract of the outbox: nothing is lost, nothing is claimed twice."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from pki.server.store import lag, outbox
from pki.server.store.engine import Store
from tests.kit.facts import NOW, at
from tests.kit.threads import together

LEASE = timedelta(seconds=60)


def _fill(store: Store, count: int, queue: str = "validate") -> None:
    with store.unit() as unit:
        outbox.add(unit, queue, "deposit", [f"subject-{number}" for number in range(count)], now=NOW)


def test_jobs_are_claimed_in_order_and_leased(store: Store) -> None:
    """The longest due comes first; a claimed job is nobody else's until the lease is over."""
    with store.unit() as unit:
        outbox.add(unit, "validate", "deposit", ["second"], now=NOW, due_at=at(2))
        outbox.add(unit, "validate", "deposit", ["first"], now=NOW, due_at=at(1))
        outbox.add(unit, "validate", "deposit", ["later"], now=NOW, due_at=at(100))
        outbox.add(unit, "issue", "certificate", ["elsewhere"], now=NOW)
        outbox.add(unit, "issue", "certificate", [], now=NOW)
    with store.unit() as unit:
        claimed = outbox.claim(unit, "validate", 10, now=at(2), lease=LEASE)
    assert [(job.subject, job.attempts, job.kind, job.queue) for job in claimed] == [
        ("first", 1, "deposit", "validate"),
        ("second", 1, "deposit", "validate"),
    ]
    assert claimed[0].created_at == NOW
    with store.unit() as unit:
        assert outbox.claim(unit, "validate", 10, now=at(61), lease=LEASE) == []
        again = outbox.claim(unit, "validate", 1, now=at(62), lease=LEASE)
    assert [(job.subject, job.attempts) for job in again] == [("first", 2)]


def test_a_claim_that_fails_is_undone(store: Store) -> None:
    """A worker that dies within the claim leaves the job as it was."""
    _fill(store, 1)
    with pytest.raises(RuntimeError), store.unit() as unit:
        assert outbox.claim(unit, "validate", 1, now=NOW, lease=LEASE)
        raise RuntimeError
    with store.unit() as unit:
        (job,) = outbox.claim(unit, "validate", 1, now=NOW, lease=LEASE)
    assert job.attempts == 1


def test_claims_at_once_never_double(store: Store) -> None:
    """Eight workers empty a queue; each job is claimed by one of them."""
    _fill(store, 200)

    def work(_number: int) -> list[int]:
        mine: list[int] = []
        while True:
            with store.unit() as unit:
                claimed = [job.id for job in outbox.claim(unit, "validate", 7, now=NOW, lease=LEASE)]
            if not claimed:
                return mine
            mine += claimed

    claims = [job_id for mine in together(8, work) for job_id in mine]
    assert len(claims) == len(set(claims)) == 200


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_nobody_waits_for_a_claim(store: Store) -> None:
    """While one worker's claim is not committed, another gets other jobs; SQLite has one writer at a time."""
    _fill(store, 4)
    with store.unit() as first:
        held = {job.id for job in outbox.claim(first, "validate", 2, now=NOW, lease=LEASE)}
        with store.unit() as second:
            assert not held & {job.id for job in outbox.claim(second, "validate", 4, now=NOW, lease=LEASE)}


def test_finished_jobs_are_gone(store: Store) -> None:
    """Finishing twice is harmless, and an id is never used again."""
    _fill(store, 2)
    with store.unit() as unit:
        ids = [job.id for job in outbox.claim(unit, "validate", 2, now=NOW, lease=LEASE)]
        outbox.finish(unit, ids)
        outbox.finish(unit, ids)
        assert outbox.next_due(unit) is None
    _fill(store, 1)
    with store.unit() as unit:
        (job,) = outbox.claim(unit, "validate", 2, now=NOW, lease=LEASE)
    assert job.id > max(ids)


def test_a_retry_is_due_later(store: Store) -> None:
    """The lease is given back, the attempt stays counted, the error is kept."""
    _fill(store, 1)
    with store.unit() as unit:
        (job,) = outbox.claim(unit, "validate", 1, now=NOW, lease=LEASE)
        outbox.retry(unit, job, now=NOW, due_at=at(30), error="away \0\ud800" * 500)
        assert outbox.next_due(unit) == at(30)
        assert outbox.claim(unit, "validate", 1, now=at(29), lease=LEASE) == []
        assert outbox.due_queues(unit, at(30)) == {"validate": 1}
        (again,) = outbox.claim(unit, "validate", 1, now=at(30), lease=LEASE)
    assert again.attempts == 2
    assert again.error is not None and again.error.startswith("away ") and len(again.error) <= 500


def test_who_lost_a_claim_touches_nothing_of_anothers(store: Store) -> None:
    """Whoever has claimed the job since keeps it, with the attempts that it has; once it is free it stays so."""
    _fill(store, 3)
    with store.unit() as unit:
        late = outbox.claim(unit, "validate", 3, now=NOW, lease=LEASE)
        own = outbox.claim(unit, "validate", 3, now=NOW + LEASE, lease=LEASE)
        one, two, three = late

        def nothing() -> None:
            outbox.give_back(unit, late, now=at(1))
            assert not outbox.retry(unit, two, now=at(1), due_at=at(1), error="away")
            assert not outbox.bury(unit, three, now=at(1), error="hopeless")

        nothing()
        assert outbox.claim(unit, "validate", 3, now=NOW + LEASE, lease=LEASE) == []
        assert outbox.dead(unit) == []
        outbox.give_back(unit, own, now=at(1))
        nothing()
        again = outbox.claim(unit, "validate", 3, now=NOW + LEASE, lease=LEASE)
        assert [(job.id, job.attempts, job.error) for job in again] == [(job.id, 2, None) for job in (one, two, three)]


def test_a_claim_that_is_over_and_nobodys_else_is_concluded(store: Store) -> None:
    """Who is late, and first all the same, gives back, retries and buries what it had."""
    _fill(store, 3)
    with store.unit() as unit:
        one, two, three = outbox.claim(unit, "validate", 3, now=NOW, lease=LEASE)
        after = NOW + 2 * LEASE
        outbox.give_back(unit, [one], now=after)
        assert outbox.retry(unit, two, now=after, due_at=after, error="away")
        assert outbox.bury(unit, three, now=after, error="hopeless")
        again = outbox.claim(unit, "validate", 3, now=after, lease=LEASE)
        assert {job.id: job.attempts for job in again} == {one.id: 1, two.id: 2}
        assert [job.id for job in outbox.dead(unit)] == [three.id]


def test_dead_jobs_are_listed_and_replayed(store: Store) -> None:
    """A buried job is never claimed nor woken, until a person replays it with a fresh count of attempts."""
    _fill(store, 1)
    _fill(store, 1, "notify")
    with store.unit() as unit:
        (job,) = outbox.claim(unit, "validate", 1, now=NOW, lease=LEASE)
        (other,) = outbox.claim(unit, "notify", 1, now=NOW, lease=LEASE)
        outbox.bury(unit, job, now=at(1), error="hopeless")
        outbox.bury(unit, other, now=at(2), error="gone")
        assert outbox.next_due(unit) is None
        assert outbox.due_queues(unit, at(10_000)) == {}
        assert lag.queues(unit, at(10_000)) == {}
        assert outbox.claim(unit, "validate", 1, now=at(10_000), lease=LEASE) == []
        assert [(dead.id, dead.error, dead.dead_at) for dead in outbox.dead(unit)] == [
            (job.id, "hopeless", at(1)),
            (other.id, "gone", at(2)),
        ]
        assert [dead.id for dead in outbox.dead(unit, "notify")] == [other.id]
    mark = store.bell.mark()
    with store.unit() as unit:
        assert outbox.replay(unit, [job.id, 999_999], at(3)) == 1
        assert outbox.replay(unit, [job.id], at(3)) == 0
    assert store.bell.wait(["queue:validate"], 30, since=mark)
    with store.unit() as unit:
        (again,) = outbox.claim(unit, "validate", 1, now=at(3), lease=LEASE)
        assert (again.id, again.attempts) == (job.id, 1)
        assert [dead.id for dead in outbox.dead(unit)] == [other.id]


def test_wake_ups_back_off(store: Store) -> None:
    """A queue that nobody works on is woken after 0, 2, 4, 8 … 300 seconds, not all the time."""
    _fill(store, 3)
    moment, pauses = 0.0, []
    with store.unit() as unit:
        for _ in range(11):
            assert outbox.due_queues(unit, at(moment)) == {"validate": 3}
            assert outbox.due_queues(unit, at(moment)) == {}
            due = outbox.next_due(unit)
            assert due is not None
            pauses.append((due - at(moment)).total_seconds())
            moment += pauses[-1]
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_a_vanished_workers_jobs_wake_the_queue_again(store: Store) -> None:
    """A claimed job asks for nobody until its lease is over, and then at once."""
    _fill(store, 1)
    with store.unit() as unit:
        assert outbox.due_queues(unit, NOW) == {"validate": 1}
        outbox.claim(unit, "validate", 1, now=at(1), lease=LEASE)
        assert outbox.due_queues(unit, at(60)) == {}
        assert outbox.next_due(unit) == at(61)
        assert outbox.due_queues(unit, at(61)) == {"validate": 1}


def test_lag_counts_what_is_due_and_not_done(store: Store) -> None:
    """Claimed jobs count, jobs for later do not; the age is in seconds."""
    _fill(store, 2)
    with store.unit() as unit:
        outbox.add(unit, "validate", "deposit", ["later"], now=NOW, due_at=at(1000))
        outbox.add(unit, "notify", "webhook", ["1"], now=NOW, due_at=at(4))
        outbox.claim(unit, "validate", 1, now=at(1), lease=LEASE)
        assert lag.queues(unit, at(4.5)) == {"validate": (2, 4.5), "notify": (1, 0.5)}


def test_two_relays_do_not_wake_twice(store: Store) -> None:
    """The jobs that one relay looks at are put off before another sees them."""
    _fill(store, 50)
    counts = []
    lock = threading.Lock()

    def relay(_number: int) -> None:
        with store.unit() as unit:
            woken = outbox.due_queues(unit, NOW)
        with lock:
            counts.append(sum(woken.values()))

    together(4, relay)
    assert sum(counts) == 50
