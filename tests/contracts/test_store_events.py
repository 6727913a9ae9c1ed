"""Contract of events, webhooks, ticks and leases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from pki.core.errors import ConflictError, NotFoundError
from pki.core.events import GENESIS, Event, chain_hash
from pki.core.ids import EventId
from pki.core.tenants import TenantName, parse_address
from pki.server.facts import Delivery, Webhook
from pki.server.store import events, webhooks
from pki.server.store.engine import Store
from tests.kit.facts import ACME, GLOBEX, NOW, at, event
from tests.kit.threads import together


def _append(store: Store, *new: Event) -> list[Event]:
    with store.unit() as unit:
        events.append(unit, new)
    return list(new)


def _sequence(store: Store, limit: int = 100) -> int:
    with store.unit() as unit:
        position, chain = events.head(unit)
        places = []
        for item in events.unsequenced(unit, limit):
            position, chain = position + 1, chain_hash(chain, item)
            places.append((item.id, position, chain))
        events.set_positions(unit, places)
        return len(places)


def test_events_wait_for_their_position_in_order(store: Store) -> None:
    """They come back as they were written, wake the sequencer, and an id counts once."""
    mark = store.bell.mark()
    first, second = _append(store, event(GLOBEX, ACME), event())
    assert store.bell.wait(["queue:sequence"], 30, since=mark)
    _append(store, replace(first, subject="other"))
    _append(store)
    with store.read() as unit:
        assert events.unsequenced(unit, 10) == [first, second]
        assert events.unsequenced(unit, 1) == [first]
        assert events.unsequenced_count(unit) == 2
        assert events.after(unit, 0, 10) == []
        assert events.head(unit) == (0, GENESIS)


def test_positions_are_given_once(store: Store) -> None:
    """The head moves on; an event that has a position keeps it, and a position belongs to one event."""
    first, second = _append(store, event(ACME), event(ACME))
    with store.unit() as unit:
        events.set_positions(unit, [(first.id, 1, b"one")])
        events.set_positions(unit, [])
        assert events.head(unit) == (1, b"one")
    for places in ([(first.id, 2, b"two")], [(second.id, 1, b"two")]):
        with pytest.raises(ConflictError), store.unit() as unit:
            events.set_positions(unit, places)
    with store.read() as unit:
        assert events.head(unit) == (1, b"one")
        assert events.unsequenced(unit, 10) == [second]
        assert [item.event.id for item in events.events_by_ids(unit, [second.id, first.id])] == [first.id]


def test_sequencers_at_once_make_one_chain(store: Store) -> None:
    """Writers and sequencers at the same time: positions without gaps, each link over the one before."""

    def work(number: int) -> None:
        for _ in range(10):
            if number % 2:
                _sequence(store, 7)
            else:
                _append(store, event(ACME), event(GLOBEX))

    together(6, work)
    while _sequence(store):
        pass
    with store.read() as unit:
        trail = events.after(unit, 0, 1000)
        assert events.unsequenced_count(unit) == 0
    assert [item.position for item in trail] == list(range(1, 61))
    chain = GENESIS
    for item in trail:
        chain = chain_hash(chain, item.event)
        assert item.chain == chain


def test_events_are_read_by_audience(store: Store) -> None:
    """All, or those that name an address, or those that name any address of a tenant, each once."""
    west, east = ACME, parse_address("acme/us-east")
    lookalike = parse_address("acme-2/main")
    _append(store, event(west, GLOBEX), event(GLOBEX), event(east, west), event(lookalike), event())
    _sequence(store)
    with store.read() as unit:

        def positions(after: int, limit: int, audience: object = None) -> list[int]:
            return [item.position for item in events.after(unit, after, limit, audience=audience)]  # type: ignore[arg-type]  # all

        assert positions(0, 10) == [1, 2, 3, 4, 5]
        assert positions(2, 2) == [3, 4]
        assert positions(0, 10, west) == positions(0, 10, str(west)) == [1, 3]
        assert positions(1, 10, GLOBEX) == [2]
        assert positions(0, 1, GLOBEX) == [1]
        assert positions(0, 10, TenantName("acme")) == [1, 3]
        assert positions(0, 10, parse_address("acme/none")) == []
        assert events.after(unit, 2, 1)[0].event.audience == (str(east), str(west))


def test_a_cursor_never_goes_back(store: Store) -> None:
    """Readers have cursors of their own, which the head does not disturb."""
    with store.unit() as unit:
        assert events.cursor(unit, "head") == 0
        events.set_cursor(unit, "head", 5)
        events.set_cursor(unit, "head", 3)
        events.set_cursor(unit, "exchange", 1)
        events.head(unit)
    with store.read() as unit:
        assert events.cursor(unit, "head") == 5
        assert events.cursor(unit, "exchange") == 1


def _webhook(webhook_id: str, **changes: object) -> Webhook:
    hook = Webhook(webhook_id, ACME, "https://acme.example/hook", "whsec_s3cret", None, NOW, None)
    return replace(hook, **changes)  # type: ignore[arg-type]  # any field


def test_webhooks_are_kept_listed_disabled_and_removed(store: Store) -> None:
    """An address removes its own only; disabling keeps the first time; no secret is shown."""
    first = _webhook("w1")
    second = _webhook("w2", types=("keymailbox.deposit.available",), created_at=at(1))
    other = _webhook("w3", address=GLOBEX, created_at=at(2))
    with store.unit() as unit:
        for hook in (other, second, first):
            webhooks.insert_webhook(unit, hook)
        with pytest.raises(ConflictError):
            webhooks.insert_webhook(unit, first)
        assert webhooks.webhook(unit, "w2") == second
        assert webhooks.webhook(unit, "none") is None
        assert webhooks.list_webhooks(unit) == [first, second, other]
        assert webhooks.list_webhooks(unit, [ACME]) == [first, second]
        assert webhooks.list_webhooks(unit, [str(GLOBEX), "x/y"]) == [other]
        assert webhooks.list_webhooks(unit, []) == []
        webhooks.disable_webhook(unit, "w1", at(5))
        webhooks.disable_webhook(unit, "w1", at(6))
        assert webhooks.webhook(unit, "w1") == replace(first, disabled_at=at(5))
        assert not webhooks.delete_webhook(unit, "w3", ACME)
        assert webhooks.delete_webhook(unit, "w3", GLOBEX)
        assert not webhooks.delete_webhook(unit, "w3", GLOBEX)
    assert "s3cret" not in repr(first)


def test_an_event_is_delivered_to_a_webhook_once(store: Store) -> None:
    """Fanning out twice adds nothing; attempts are counted; removing the webhook removes its deliveries."""
    (happened,) = _append(store, event(ACME))
    first = Delivery("d1", "w1", happened.id, "pending", 0, None, NOW)
    with store.unit() as unit:
        webhooks.insert_webhook(unit, _webhook("w1"))
        assert events.insert_deliveries(unit, [first]) == ["d1"]
        assert events.insert_deliveries(unit, [first, replace(first, id="d2")]) == []
        assert events.deliveries_by_ids(unit, ["d1", "d2"]) == [first]
        events.set_delivery(unit, "d1", "pending", now=at(1), error="503")
        events.set_delivery(unit, "d1", "delivered", now=at(2))
        assert events.deliveries_by_ids(unit, ["d1"]) == [
            Delivery("d1", "w1", happened.id, "delivered", 2, None, at(2))
        ]
        with pytest.raises(NotFoundError):
            events.set_delivery(unit, "d2", "dead", now=at(1))
        assert webhooks.delete_webhook(unit, "w1", ACME)
        assert events.deliveries_by_ids(unit, ["d1"]) == []
    with pytest.raises(ConflictError), store.unit() as unit:
        webhooks.insert_webhook(unit, _webhook("w1"))
        events.insert_deliveries(unit, [replace(first, event_id=EventId("none"))])


def test_a_tick_is_taken_once(store: Store) -> None:
    """Of many beats one gets the period."""

    def tick(_number: int) -> bool:
        with store.unit() as unit:
            return events.claim_tick(unit, "expire", "2030-05-17T12:30")

    assert sum(together(6, tick)) == 1
    with store.unit() as unit:
        assert events.claim_tick(unit, "expire", "2030-05-17T12:31")
        assert events.claim_tick(unit, "renew", "2030-05-17T12:30")


def test_old_ticks_are_forgotten(store: Store) -> None:
    """A tick whose period began before the moment is gone, one that began at it stays."""
    with store.unit() as unit:
        for minute in (0, 1, 2):
            assert events.claim_tick(unit, "expire", at(60 * minute).isoformat())
        assert events.purge_ticks(unit, at(120)) == 2
        assert not events.claim_tick(unit, "expire", at(120).isoformat())
        assert events.claim_tick(unit, "expire", at(0).isoformat())


def test_a_lease_has_one_holder(store: Store) -> None:
    """The holder renews it, another gets it when it is over or given back."""
    ttl = timedelta(seconds=30)
    with store.unit() as unit:
        assert events.acquire_lease(unit, "sequencer", "a", NOW, ttl)
        assert not events.acquire_lease(unit, "sequencer", "b", at(29), ttl)
        assert events.acquire_lease(unit, "sequencer", "a", at(20), ttl)
        assert not events.acquire_lease(unit, "sequencer", "b", at(49), ttl)
        assert events.acquire_lease(unit, "sequencer", "b", at(50), ttl)
        assert not events.release_lease(unit, "sequencer", "a")
        assert not events.acquire_lease(unit, "sequencer", "a", at(51), ttl)
        assert events.release_lease(unit, "sequencer", "b")
        assert events.acquire_lease(unit, "sequencer", "a", at(52), ttl)

    def take(number: int) -> bool:
        with store.unit() as unit:
            return events.acquire_lease(unit, "other", str(number), NOW, ttl)

    assert sum(together(6, take)) == 1
