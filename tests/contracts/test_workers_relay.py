"""The relay wakes soon, seldom, and in spite of outages; on both databases."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from pki.core.errors import UnavailableError
from pki.core.events import EventType
from pki.core.tenants import parse_address
from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.profiles import FileProfiles
from pki.server.bootstrap import SystemClock
from pki.server.services.deps import Deps
from pki.server.services.events import event
from pki.server.settings import load_settings
from pki.server.store import events, outbox
from pki.server.store.engine import Store
from workers.relay import Relay, UnconfirmedError


class Broker:
    """A broker in memory that can be away."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.tried: list[str] = []
        self.away = False
        self.closed = False
        self.broken = ""
        self.mended: list[str] = []

    def publish(self, queue: str) -> None:
        """Take a wake-up."""
        self.tried.append(queue)
        if self.away:
            raise UnavailableError("The broker is away")
        if queue == self.broken:
            raise UnconfirmedError("The broker does not confirm a wake-up")
        self.woken.append(queue)

    def mend(self, queue: str) -> None:
        """Remember that."""
        self.mended.append(queue)

    def dead_letters(self) -> int:
        """Nothing was given up."""
        return 0

    def close(self) -> None:
        """Remember that."""
        self.closed = True


@pytest.fixture
def deps(store: Store, tmp_path: Path) -> Deps:
    """A store with its clock."""
    return Deps(store, load_settings(home=tmp_path), SystemClock(), PkiLinter(), FileProfiles(tmp_path))


def test_a_commit_wakes_at_once(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bell is heard: long before the next look into the outbox."""
    monkeypatch.setattr("workers.relay._POLL_SECONDS", 60.0)
    with _relaying(deps) as broker:
        _add(deps, "validate")
        _until(lambda: "validate" in broker.woken)
    assert broker.closed


def test_a_burst_is_one_wake_up_now_and_then(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred commits are a few wake-ups, and the last one comes after the last commit."""
    # However slow the commits are.
    monkeypatch.setattr("workers.relay._GAP_SECONDS", 0.5)
    with _relaying(deps) as broker:
        for _ in range(200):
            _add(deps, "validate")
        before = len(broker.woken)
        _add(deps, "validate")
        _until(lambda: len(broker.woken) > before)
        time.sleep(0.7)
    assert 1 <= len(broker.woken) < 150


def test_what_nobody_rang_for_is_found(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that were there before, or whose ring was lost, are found by looking; a backlog wakes several tasks."""
    # Nothing is woken for twice meanwhile.
    monkeypatch.setattr(outbox, "_WAKE_FIRST", timedelta(seconds=60))
    _add(deps, "validate", count=950)
    _add(deps, "notify")
    with _relaying(deps) as broker:
        _until(lambda: "notify" in broker.woken)
        _until(lambda: "validate" in broker.woken)
        time.sleep(0.3)
    assert broker.woken.count("notify") == 1
    assert 2 <= broker.woken.count("validate") <= 9


def test_events_that_nobody_rang_for_are_found(deps: Deps) -> None:
    """An event has no job; that somebody should number it is seen all the same, also when the ring was lost."""
    with deps.store.unit() as unit:
        told = event(EventType.DEPOSIT_EXPIRED, "ab" * 16, deps.clock.now(), parse_address("acme/eu-west"))
        events.append(unit, [told])
    with _relaying(deps) as broker:
        _until(lambda: "sequence" in broker.woken)


def test_events_that_nobody_numbers_are_woken_for_less_often(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at each look, for as long as there is no sequencer; yet never so rarely that one that came would wait."""
    monkeypatch.setattr("workers.relay._POLL_SECONDS", 0.1)
    monkeypatch.setattr("workers.relay._UNNOTICED_LAST", 0.8)
    with deps.store.unit() as unit:
        told = event(EventType.DEPOSIT_EXPIRED, "ab" * 16, deps.clock.now(), parse_address("acme/eu-west"))
        events.append(unit, [told])
    with _relaying(deps) as broker:
        began = time.monotonic()
        _until(lambda: len(broker.woken) >= 3)
        time.sleep(3)
        before = len(broker.woken)
        assert broker.woken.count("sequence") <= 4 + (time.monotonic() - began) / 0.8
        _until(lambda: len(broker.woken) > before)


def test_nobody_takes_it_and_the_wake_ups_get_rare(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untouched job is woken for again after two, four, eight times as long: neither at each look nor evenly."""
    monkeypatch.setattr("workers.relay._POLL_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "_WAKE_FIRST", timedelta(seconds=0.2))
    with _relaying(deps) as broker:
        began = time.monotonic()
        _add(deps, "validate")
        _until(lambda: len(broker.woken) >= 2)
        time.sleep(3)
        count, took = len(broker.woken), time.monotonic() - began
    # At once, and after one, two, four times 0.2 s; one more that was just under way.
    assert count <= 2 + math.log2(took / 0.2 + 1)


def test_a_job_is_woken_for_when_it_is_due(deps: Deps) -> None:
    """A retry is a row that is due later."""
    with _relaying(deps) as broker:
        _add(deps, "rotate", after=1.0)
        _until(lambda: len(broker.woken) >= 2)


def test_a_queue_that_takes_nothing_holds_up_no_other(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked after, and left alone for a while; what was for it is not forgotten."""
    monkeypatch.setattr("workers.relay._ASIDE_SECONDS", 1.0)
    broker = Broker()
    broker.broken = "notify"
    with _relaying(deps, broker):
        began = time.monotonic()
        _add(deps, "notify")
        _until(lambda: "notify" in broker.mended)
        for count in range(1, 6):
            _add(deps, "validate")
            _until(lambda: broker.woken.count("validate") >= count)  # noqa: B023  at once
            time.sleep(0.05)
        # At each of five wake-ups it was not tried: once a second at most.
        assert broker.tried.count("notify") <= 2 + (time.monotonic() - began) / 1.0
        assert set(broker.woken) == {"validate"}
        _until(lambda: len(broker.mended) >= 2)
        broker.broken = ""
        _until(lambda: "notify" in broker.woken)


def test_a_broker_that_was_away_hears_it_all(deps: Deps) -> None:
    """What could not be sent is sent when the broker is back; meanwhile it is left alone for longer and longer."""
    broker = Broker()
    broker.away = True
    with _relaying(deps, broker):
        _add(deps, "validate")
        _add(deps, "sequence")
        _until(lambda: bool(broker.tried))
        time.sleep(1.5)
        assert len(broker.tried) < 12
        broker.away = False
        _until(lambda: {"validate", "sequence"} <= set(broker.woken))


def test_topics_that_are_no_queues_wake_nobody(deps: Deps) -> None:
    """The bell rings for others too."""
    with _relaying(deps) as broker:
        for topic in ("mailbox:globex/main", "queue:", "queue:unheard-of", "events"):
            deps.store.bell.ring(topic)
        time.sleep(0.3)
    assert broker.woken == []


@contextmanager
def _relaying(deps: Deps, broker: Broker | None = None) -> Iterator[Broker]:
    broker = broker or Broker()
    relay = Relay(deps, broker)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        # The ring that ends the start of listening has it look; what is added then is not found by that look.
        assert deps.store.bell.connected(30)
        _until(lambda: relay._look_at > 0)
        time.sleep(0.1)
        yield broker
    finally:
        relay.stop()
        thread.join(30)
        assert not thread.is_alive()


def _add(deps: Deps, queue: str, *, count: int = 1, after: float = 0) -> None:
    now = deps.clock.now()
    with deps.store.unit() as unit:
        subjects = [str(number) for number in range(count)]
        outbox.add(unit, queue, "thing", subjects, now=now, due_at=now + timedelta(seconds=after))


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
