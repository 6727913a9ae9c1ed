"""Telling what happened: events are numbered and chained, published, and shown to those whom they concern."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pki.core.errors import UsageError
from pki.core.events import Event, EventType, chain_hash
from pki.core.tenants import Address
from pki.server import metrics, tracing
from pki.server.facts import Caller, SequencedEvent
from pki.server.ports import EventPublisher
from pki.server.services import webhooks
from pki.server.services.deps import Deps
from pki.server.services.events import cloudevent as cloudevent
from pki.server.services.leases import Leases
from pki.server.store import events as event_store
from pki.server.store.engine import Unit

RUNG = "events"
"""What rings for all addresses at once: by sequencers of earlier releases."""
MAX_PAGE = 500
_BATCH = 500
_CURSOR = "exchange"
_LEASE = "exchange"


def sequence_events(deps: Deps, publisher: EventPublisher | None) -> int:
    """Number and chain what has happened, queue its webhooks, publish it; return how many events were numbered.

    Several may run at once: one numbers at a time, and one publishes. Raises UnavailableError when the broker is away:
    what is numbered stays so, and is published by the next call.
    """
    leases = Leases(deps)
    count = 0
    published: Sequence[SequencedEvent] = ()
    # What has been published is still to be written down: no need to look for work then.
    while published or _has_work(deps):
        # One commit a batch: that it was published is written down with the numbers of what has come meanwhile.
        with deps.store.unit() as unit:
            numbered = _number(unit, deps.clock.now())
            if published:
                _remember(unit, published)
            published = () if publisher is None else _due(unit, leases)
        count += len(numbered)
        if publisher is not None and published:
            _publish(deps, publisher, leases, published)
        elif len(numbered) < _BATCH:
            break
    return count


def events(
    deps: Deps, caller: Caller, after: int = 0, limit: int = 100, kind: EventType | None = None
) -> list[SequencedEvent]:
    """Return the events past position ``after`` that the caller's address may hear of, of one type or of all."""
    return page(deps, caller, after, limit, kind)[0]


def page(
    deps: Deps, caller: Caller, after: int = 0, limit: int = 100, kind: EventType | None = None
) -> tuple[list[SequencedEvent], int]:
    """Return what `events` does, and the position to go on after: past those of other types, if nothing is left."""
    if not 0 <= after < 1 << 62 or not 1 <= limit <= MAX_PAGE:
        raise UsageError(f"A page of events starts at a position and has 1 to {MAX_PAGE} items")
    with deps.store.read() as unit:
        # Read first: what is numbered meanwhile comes with the items, or the next time.
        newest = event_store.last_heard(unit, caller.instance.address)
        found = event_store.after(unit, after, limit, audience=caller.instance.address, kind=kind)
    last = found[-1].position if found else after
    return found, last if len(found) == limit else max(last, newest)


def newest(deps: Deps, caller: Caller | None = None) -> int:
    """Return the position of the newest event that the caller may hear of, or of all; 0 before the first."""
    with deps.store.read() as unit:
        if caller is None:
            return event_store.head(unit, lock=False)[0]
        return event_store.last_heard(unit, caller.instance.address)


def topic(address: Address | str) -> str:
    """Return what rings when there is an event that ``address`` may hear of."""
    return f"{RUNG}:{address}"


def unnoticed(unit: Unit) -> bool:
    """Return whether there are events that nobody has numbered, or published, yet."""
    return event_store.anything_after(unit, _CURSOR)


def _has_work(deps: Deps) -> bool:
    """Look without writing: there is one writer on SQLite, and most wake-ups find that another has seen to it."""
    with deps.store.read() as unit:
        return unnoticed(unit)


def _number(unit: Unit, now: datetime) -> Sequence[Event]:
    """Number what has happened; the head is held until the unit's end, so that one unit does so after another."""
    position, chain = event_store.head(unit, lock=True)
    found = event_store.traced(unit, _BATCH)
    happened = [one for one, _ in found]
    places = []
    for one in happened:
        position, chain = position + 1, chain_hash(chain, one)
        places.append((one.id, position, chain))
    if happened:
        with tracing.together("events number", [trace for _, trace in found]):
            event_store.set_positions(unit, places)
            numbers = {event_id: number for event_id, number, _ in places}
        webhooks.fan_out(unit, [(one, numbers[one.id], trace) for one, trace in found], now)
        for address in sorted({address for one in happened for address in one.audience}):
            unit.after_commit(topic(address))
        unit.once_committed(lambda: metrics.sequenced.inc(len(happened)))
    return happened


def _due(unit: Unit, leases: Leases) -> Sequence[SequencedEvent]:
    """Return what is to be published next, with the lease for it; without anything, or while another has it, nothing.

    The lease is given up under the head, which who numbers holds: what another numbers meanwhile it publishes itself.
    """
    items = event_store.after(unit, event_store.cursor(unit, _CURSOR), _BATCH)
    if not items:
        leases.release(unit, _LEASE)
        return []
    return items if leases.acquire(unit, _LEASE) else []


def _publish(deps: Deps, publisher: EventPublisher, leases: Leases, items: Sequence[SequencedEvent]) -> None:
    try:
        with leases.renewed():
            publisher.publish([cloudevent(deps, item) for item in items])
    except BaseException:
        with deps.store.unit() as unit:
            leases.release(unit, _LEASE)
        raise


def _remember(unit: Unit, items: Sequence[SequencedEvent]) -> None:
    event_store.set_cursor(unit, _CURSOR, items[-1].position)
    unit.once_committed(lambda: metrics.published.inc(len(items)))
