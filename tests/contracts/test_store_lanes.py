"""Contract of the outbox between lanes: who adds ten thousand jobs does not hold up who adds one."""

from __future__ import annotations

from datetime import timedelta

from pki.server.store import outbox
from pki.server.store.engine import Store
from tests.kit.facts import NOW, at

LEASE = timedelta(seconds=60)


def _add(store: Store, lane: str, count: int, *, rank: int = outbox.USUAL) -> None:
    with store.unit() as unit:
        subjects = [f"{lane}-{number}" for number in range(count)]
        outbox.add(unit, "validate", "deposit", subjects, now=NOW, lanes=[lane] * count, rank=rank)


def _claim(store: Store, limit: int, seconds: int = 0) -> list[str]:
    with store.unit() as unit:
        return [job.subject for job in outbox.claim(unit, "validate", limit, now=at(seconds), lease=LEASE)]


def test_one_job_does_not_wait_for_ten_thousand(store: Store) -> None:
    """Another lane's single job is in the next claim, however many wait before it."""
    _add(store, "flood", 10_000)
    _claim(store, 300)
    _add(store, "quiet", 1)
    assert "quiet-0" in _claim(store, 2)


def test_lanes_take_turns(store: Store) -> None:
    """Two that wait get half of each claim, in the order of each; the first gets nothing back for what it had alone."""
    _add(store, "first", 1000)
    _claim(store, 500)
    _add(store, "second", 1000)
    for _ in range(3):
        claimed = _claim(store, 100)
        assert abs(sum(one.startswith("second") for one in claimed) - 50) <= 1
    assert claimed[-1] in ("first-649", "second-149", "first-650", "second-150")


def test_an_empty_queue_owes_nobody(store: Store) -> None:
    """What a lane did while nobody else was there does not count against it once the queue was empty."""
    _add(store, "busy", 500)
    while _claim(store, 200):
        pass
    _add(store, "other", 500)
    _add(store, "busy", 1)
    assert "busy-0" in _claim(store, 2)


def test_one_call_may_add_for_several(store: Store) -> None:
    """Jobs of one transaction are of many lanes, each in the order given."""
    with store.unit() as unit:
        lanes = ["a"] * 5 + ["b"] * 2
        outbox.add(unit, "validate", "deposit", [f"{lane}{n}" for n, lane in enumerate(lanes)], now=NOW, lanes=lanes)
    assert set(_claim(store, 4)) == {"a0", "a1", "b5", "b6"}
    assert _claim(store, 4) == ["a2", "a3", "a4"]


def test_rank_goes_before_turn(store: Store) -> None:
    """Lanes take turns among jobs of one rank; what is urgent overtakes them all."""
    _add(store, "usual", 10)
    _add(store, "urgent", 1, rank=outbox.URGENT)
    assert _claim(store, 1) == ["urgent-0"]


def test_retries_go_one_for_one_with_new_jobs(store: Store) -> None:
    """A lane whose jobs fail does not hold up what is new, and is not starved by it."""
    _add(store, "failing", 100)
    with store.unit() as unit:
        for job in outbox.claim(unit, "validate", 100, now=NOW, lease=LEASE):
            outbox.retry(unit, job, now=NOW, due_at=at(1), error="away")
    _add(store, "fresh", 100)
    claimed = _claim(store, 10, seconds=1)
    assert sum(one.startswith("fresh") for one in claimed) == 5


def test_what_an_earlier_release_adds_is_claimed(store: Store) -> None:
    """Its jobs have neither lane nor turn."""
    from sqlalchemy import update

    from pki.server.store.tables import jobs

    _add(store, "", 2)
    with store.unit() as unit:
        unit.connection.execute(update(jobs).values(turn=None))
    assert _claim(store, 5) == ["-0", "-1"]
