"""Events in their order, who may see them, who is told, and the ticks and leases of those who do the telling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, Select, and_, delete, exists, func, or_, select, update

from pki.core.errors import ConflictError, NotFoundError
from pki.core.events import GENESIS, Event, EventType
from pki.core.ids import EventId
from pki.core.tenants import Address, TenantName
from pki.server import tracing
from pki.server.facts import Delivery, SequencedEvent
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import cursors, deliveries, event_audience, events, leases, ticks, webhooks

_HEAD = "head"


def append(unit: Unit, new: Sequence[Event]) -> None:
    """Write events, to be numbered later, and wake the sequencer; one whose id is there already is left as it is.

    Each remembers which request it comes from, as `tracing` knows it.
    """
    if not new:
        return
    values = [
        {
            "id": event.id,
            "type": event.type.value,
            "subject": event.subject,
            "time": event.time,
            "data": json.dumps(dict(event.data), sort_keys=True, separators=(",", ":"), ensure_ascii=False),
            "trace": tracing.of(event.subject),
        }
        for event in new
    ]
    if unit.scope is None:
        inserted = set(rows.insert_new(unit, events, values, events.c.id))
    elif rows.insert_unseen(unit, events, values) == len(new):
        # Whoever hears of an event is written down next: till then a tenant cannot see it, not even to hear its id.
        inserted = {event.id for event in new}
    else:
        raise ConflictError("An event's id is taken")
    audience = [
        {"event_id": event.id, "address": str(address), "rank": rank}
        for event in new
        if event.id in inserted
        for rank, address in enumerate(dict.fromkeys(event.audience))
    ]
    rows.insert_unseen(unit, event_audience, audience)
    unit.after_commit("queue:sequence")


def unsequenced(unit: Unit, limit: int) -> list[Event]:
    """Return up to ``limit`` events without a position, in the order in which they were written."""
    return [event for event, _ in traced(unit, limit)]


def traced(unit: Unit, limit: int) -> list[tuple[Event, tracing.Trace | None]]:
    """Return what `unsequenced` does, each event with the request that it comes from."""
    statement = select(events).where(events.c.position.is_(None)).order_by(events.c.seq).limit(limit)
    return [(_event(row, who), row["trace"]) for row, who in _with_audience(unit, statement)]


def unsequenced_count(unit: Unit) -> int:
    """Return how many events have no position yet."""
    return unit.connection.execute(select(func.count()).where(events.c.position.is_(None))).scalar_one()


def anything_after(unit: Unit, name: str) -> bool:
    """Return whether there are events without a position, or past where a reader has come."""
    reader = select(cursors.c.position).where(cursors.c.name == f"reader:{name}").scalar_subquery()
    waits = exists().where(events.c.position.is_(None))
    follows = exists().where(events.c.position > func.coalesce(reader, 0))
    return bool(unit.connection.execute(select(or_(waits, follows))).scalar_one())


def head(unit: Unit, lock: bool = True) -> tuple[int, bytes]:
    """Return position and chain of the last event, (0, GENESIS) before the first.

    In a writing unit ``lock`` keeps other sequencers waiting until its end.
    """
    if lock and unit.writable:
        held = select(cursors.c.name).where(cursors.c.name == _HEAD).with_for_update()
        if unit.connection.execute(held).one_or_none() is None:
            rows.insert_new(unit, cursors, [{"name": _HEAD, "position": 0}], cursors.c.name)
            unit.connection.execute(held)
    statement = (
        select(events.c.position, events.c.chain)
        .where(events.c.position.is_not(None))
        .order_by(events.c.position.desc())
        .limit(1)
    )
    row = unit.connection.execute(statement).one_or_none()
    return (0, GENESIS) if row is None else (row.position, row.chain)


def set_positions(unit: Unit, places: Sequence[tuple[EventId, int, bytes]]) -> None:
    """Give events their position and chain value; raises ConflictError when one has a position already."""
    if not places:
        return
    taken = select(func.count()).where(
        events.c.id.in_([event_id for event_id, _, _ in places]), events.c.position.is_not(None)
    )
    if unit.connection.execute(taken).scalar_one():
        raise ConflictError("An event has a position already")
    values = [{"id": event_id, "position": position, "chain": chain} for event_id, position, chain in places]
    rows.update_each(unit, events, values, events.c.id)
    copies = [{"event_id": event_id, "position": position} for event_id, position, _ in places]
    rows.update_each(unit, event_audience, copies, event_audience.c.event_id)


def after(
    unit: Unit,
    position: int,
    limit: int,
    *,
    audience: Address | TenantName | str | None = None,
    kind: EventType | None = None,
) -> list[SequencedEvent]:
    """Return up to ``limit`` events past ``position``: all, or those for an address, or for a tenant's addresses.

    ``kind`` leaves out those of other types.
    """
    statement = select(events).where(events.c.position > position).order_by(events.c.position).limit(limit)
    if audience is not None and "/" in str(audience):
        statement = (
            select(events)
            .join(event_audience, event_audience.c.event_id == events.c.id)
            .where(event_audience.c.address == str(audience), event_audience.c.position > position)
            .order_by(event_audience.c.position)
            .limit(limit)
        )
    elif audience is not None:
        statement = statement.where(
            exists().where(
                event_audience.c.event_id == events.c.id,
                event_audience.c.address.startswith(f"{audience}/", autoescape=True),
            )
        )
    if kind is not None:
        statement = statement.where(events.c.type == kind.value)
    return [_sequenced(row, who) for row, who in _with_audience(unit, statement)]


def last_heard(unit: Unit, audience: Address) -> int:
    """Return the position of the newest numbered event that an address may hear of, 0 before the first."""
    statement = select(func.max(event_audience.c.position)).where(event_audience.c.address == str(audience))
    return unit.connection.execute(statement).scalar_one_or_none() or 0


def events_by_ids(unit: Unit, ids: Sequence[EventId]) -> list[SequencedEvent]:
    """Return the numbered events among ``ids``, in order."""
    found = []
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(events).where(events.c.id.in_(chunk), events.c.position.is_not(None))
        found += [_sequenced(row, who) for row, who in _with_audience(unit, statement)]
    return sorted(found, key=lambda item: item.position)


def cursor(unit: Unit, name: str) -> int:
    """Return how far a reader of the events has come, 0 at first; held until the end of a writing unit."""
    statement = select(cursors.c.position).where(cursors.c.name == f"reader:{name}")
    if unit.writable:
        statement = statement.with_for_update()
    return unit.connection.execute(statement).scalar_one_or_none() or 0


def set_cursor(unit: Unit, name: str, position: int) -> None:
    """Remember how far a reader has come; it never goes back."""
    statement = rows.insert(unit, cursors).values(name=f"reader:{name}", position=position)
    unit.connection.execute(
        statement.on_conflict_do_update(
            index_elements=[cursors.c.name],
            set_={"position": statement.excluded.position},
            where=cursors.c.position < statement.excluded.position,
        )
    )


def anchor(unit: Unit, name: str) -> tuple[int, bytes] | None:
    """Return position and chain value up to which the trail was verified; None before the first time."""
    statement = select(cursors.c.position, cursors.c.chain).where(cursors.c.name == f"reader:{name}")
    row = unit.connection.execute(statement).one_or_none()
    return None if row is None or row.chain is None else (row.position, row.chain)


def set_anchor(unit: Unit, name: str, position: int, chain: bytes | None) -> None:
    """Remember how far the trail was verified, further or less far than before."""
    statement = rows.insert(unit, cursors).values(name=f"reader:{name}", position=position, chain=chain)
    changed = {"position": statement.excluded.position, "chain": statement.excluded.chain}
    unit.connection.execute(statement.on_conflict_do_update(index_elements=[cursors.c.name], set_=changed))


def chain_at(unit: Unit, position: int) -> bytes | None:
    """Return the chain value of the event at a position; None when it is not there."""
    found: bytes | None = unit.connection.execute(
        select(events.c.chain).where(events.c.position == position)
    ).scalar_one_or_none()
    return found


def insert_deliveries(unit: Unit, new: Sequence[Delivery]) -> list[str]:
    """Store deliveries, one for each pair of webhook and event; return the ids of those that were not there."""
    values = [
        {
            "id": delivery.id,
            "webhook_id": delivery.webhook_id,
            "event_id": delivery.event_id,
            "state": delivery.state,
            "attempts": delivery.attempts,
            "last_error": delivery.last_error,
            "updated_at": delivery.updated_at,
            "position": delivery.position,
        }
        for delivery in new
    ]
    return rows.insert_new(unit, deliveries, values, deliveries.c.id)


def deliveries_by_ids(unit: Unit, ids: Sequence[str]) -> list[Delivery]:
    """Return the deliveries that exist, by id."""
    found = []
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(deliveries).where(deliveries.c.id.in_(chunk)).order_by(deliveries.c.id)
        found += [delivery(row) for row in unit.connection.execute(statement).mappings()]
    return found


def pending(unit: Unit, webhook_id: str, limit: int) -> list[Delivery]:
    """Return the first deliveries that a webhook has still to be told, in the order of the trail."""
    statement = (
        select(deliveries)
        .where(
            deliveries.c.webhook_id == webhook_id,
            deliveries.c.state == "pending",
            deliveries.c.position.is_not(None),
        )
        .order_by(deliveries.c.position)
        .limit(limit)
    )
    return [delivery(row) for row in unit.connection.execute(statement).mappings()]


def untold(unit: Unit, hooks: Sequence[str]) -> list[str]:
    """Return those of some webhooks that have still to be told something."""
    waits = exists().where(
        deliveries.c.webhook_id == webhooks.c.id,
        deliveries.c.state == "pending",
        deliveries.c.position.is_not(None),
    )
    statement = select(webhooks.c.id).where(webhooks.c.id.in_(hooks), waits).order_by(webhooks.c.id)
    return list(unit.connection.execute(statement).scalars())


def heads(unit: Unit) -> list[Delivery]:
    """Return for each webhook that is told at all the first delivery that it has still to be told."""
    first = (
        select(deliveries.c.webhook_id, func.min(deliveries.c.position).label("position"))
        .join(webhooks, webhooks.c.id == deliveries.c.webhook_id)
        .where(deliveries.c.state == "pending", webhooks.c.disabled_at.is_(None))
        .group_by(deliveries.c.webhook_id)
        .subquery("first")
    )
    same = and_(deliveries.c.webhook_id == first.c.webhook_id, deliveries.c.position == first.c.position)
    statement = select(deliveries).join(first, same).where(deliveries.c.state == "pending")
    return [delivery(row) for row in unit.connection.execute(statement).mappings()]


def told(unit: Unit, ids: Sequence[EventId]) -> dict[str, tuple[SequencedEvent, tracing.Trace | None]]:
    """Return numbered events by id, each with the request that it comes from."""
    statement = select(events).where(events.c.id.in_(ids), events.c.position.is_not(None))
    return {row["id"]: (_sequenced(row, who), row["trace"]) for row, who in _with_audience(unit, statement)}


def place(unit: Unit, ids: Sequence[str]) -> None:
    """Give deliveries their events' position, where an earlier release queued them without."""
    position = select(events.c.position).where(events.c.id == deliveries.c.event_id).scalar_subquery()
    without = deliveries.c.id.in_(ids), deliveries.c.position.is_(None)
    unit.connection.execute(update(deliveries).where(*without).values(position=position))


def set_delivery(unit: Unit, delivery_id: str, state: str, *, now: datetime, error: str | None = None) -> None:
    """Write down an attempt and what came of it; raises NotFoundError."""
    statement = (
        update(deliveries)
        .where(deliveries.c.id == delivery_id)
        .values(state=state, attempts=deliveries.c.attempts + 1, last_error=rows.detail(error), updated_at=now)
    )
    if not unit.connection.execute(statement).rowcount:
        raise NotFoundError(on=delivery_id)


def set_delivered(unit: Unit, ids: Sequence[str], now: datetime) -> None:
    """Write down that some deliveries succeeded, by one statement; one that is gone does not matter."""
    if ids:
        statement = update(deliveries).where(deliveries.c.id.in_(ids))
        done = {"state": "delivered", "attempts": deliveries.c.attempts + 1, "last_error": None, "updated_at": now}
        unit.connection.execute(statement.values(done))


def claim_tick(unit: Unit, job: str, period: str) -> bool:
    """Take a period's tick of a job; False when somebody took it before."""
    return bool(rows.insert_new(unit, ticks, [{"job": job, "period": period}], ticks.c.job))


def last_tick(unit: Unit, job: str) -> datetime | None:
    """Return the beginning of the newest period of a job's ticks, None before the first."""
    period = unit.connection.execute(select(func.max(ticks.c.period)).where(ticks.c.job == job)).scalar_one_or_none()
    return None if period is None else datetime.fromisoformat(period)


def database_time(unit: Unit) -> datetime:
    """Return what PostgreSQL's machine takes for the time."""
    moment: datetime = unit.connection.execute(select(func.clock_timestamp())).scalar_one()
    return moment.astimezone(UTC)


def purge_ticks(unit: Unit, before: datetime) -> int:
    """Forget the ticks of periods that began before a moment, and return how many; periods are ISO 8601 in UTC."""
    return len(
        unit.connection.execute(delete(ticks).where(ticks.c.period < before.isoformat()).returning(ticks.c.job)).all()
    )


def acquire_lease(unit: Unit, name: str, holder: str, now: datetime, ttl: timedelta) -> bool:
    """Take or keep a lease until ``now + ttl``; False while another holds it."""
    statement = rows.insert(unit, leases).values(name=name, holder=holder, until=now + ttl)
    taken = statement.on_conflict_do_update(
        index_elements=[leases.c.name],
        set_={"holder": statement.excluded.holder, "until": statement.excluded.until},
        where=or_(leases.c.holder == holder, leases.c.until <= now),
    ).returning(leases.c.holder)
    return unit.connection.execute(taken).scalar_one_or_none() == holder


def renew_leases(unit: Unit, holder: str, now: datetime, ttl: timedelta) -> list[str]:
    """Have all that a holder still has last until ``now + ttl``; return the names, without what another has taken."""
    statement = update(leases).where(leases.c.holder == holder).values(until=now + ttl).returning(leases.c.name)
    return list(unit.connection.execute(statement).scalars())


def release_lease(unit: Unit, name: str, holder: str) -> bool:
    """Give a lease back, early or late; False when another has taken it since."""
    mine = and_(leases.c.name == name, leases.c.holder == holder)
    return bool(unit.connection.execute(delete(leases).where(mine)).rowcount)


def _with_audience(unit: Unit, statement: Select[Any]) -> list[tuple[RowMapping, tuple[str, ...]]]:
    found = unit.connection.execute(statement).mappings().all()
    audience: dict[str, list[str]] = {row["id"]: [] for row in found}
    for chunk in rows.chunks(list(audience)):
        who = (
            select(event_audience.c.event_id, event_audience.c.address)
            .where(event_audience.c.event_id.in_(chunk))
            .order_by(event_audience.c.event_id, event_audience.c.rank)
        )
        for row in unit.connection.execute(who):
            audience[row.event_id].append(row.address)
    return [(row, tuple(audience[row["id"]])) for row in found]


def _event(row: RowMapping, audience: tuple[str, ...]) -> Event:
    return Event(
        id=EventId(row["id"]),
        type=EventType(row["type"]),
        subject=row["subject"],
        time=row["time"],
        audience=audience,
        data=json.loads(row["data"]),
    )


def _sequenced(row: RowMapping, audience: tuple[str, ...]) -> SequencedEvent:
    return SequencedEvent(event=_event(row, audience), position=row["position"], chain=row["chain"])


def delivery(row: RowMapping) -> Delivery:
    """Return a row of deliveries as the fact."""
    return Delivery(
        id=row["id"],
        webhook_id=row["webhook_id"],
        event_id=row["event_id"],
        state=row["state"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        updated_at=row["updated_at"],
        position=row["position"],
    )
