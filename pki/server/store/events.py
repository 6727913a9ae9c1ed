"""Events in their order, who may see them, who is told, and the ticks and leases of those who do the telling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, Select, and_, delete, exists, func, or_, select, update

from pki.core.errors import ConflictError, NotFoundError
from pki.core.events import GENESIS, Event, EventType
from pki.core.ids import EventId
from pki.core.tenants import Address, TenantName, parse_address
from pki.server.ports import Delivery, SequencedEvent, Webhook
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import cursors, deliveries, event_audience, events, leases, ticks, webhooks

_HEAD = "head"


def append(unit: Unit, new: Sequence[Event]) -> None:
    """Write events, to be numbered later, and wake the sequencer; one whose id is there already is left as it is."""
    if not new:
        return
    values = [
        {
            "id": event.id,
            "type": event.type.value,
            "subject": event.subject,
            "time": event.time,
            "data": json.dumps(dict(event.data), sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        }
        for event in new
    ]
    inserted = set(rows.insert_new(unit, events, values, events.c.id))
    audience = [
        {"event_id": event.id, "address": str(address), "rank": rank}
        for event in new
        if event.id in inserted
        for rank, address in enumerate(dict.fromkeys(event.audience))
    ]
    rows.insert_new(unit, event_audience, audience, event_audience.c.address)
    unit.after_commit("queue:sequence")


def unsequenced(unit: Unit, limit: int) -> list[Event]:
    """Return up to ``limit`` events without a position, in the order in which they were written."""
    statement = select(events).where(events.c.position.is_(None)).order_by(events.c.seq).limit(limit)
    return [_event(row, who) for row, who in _with_audience(unit, statement)]


def unsequenced_count(unit: Unit) -> int:
    """Return how many events have no position yet."""
    return unit.connection.execute(select(func.count()).where(events.c.position.is_(None))).scalar_one()


def head(unit: Unit, lock: bool = True) -> tuple[int, bytes]:
    """Return position and chain of the last event, (0, GENESIS) before the first.

    In a writing unit ``lock`` keeps other sequencers waiting until its end.
    """
    if lock and unit.writable:
        rows.insert_new(unit, cursors, [{"name": _HEAD, "position": 0}], cursors.c.name)
        unit.connection.execute(select(cursors.c.name).where(cursors.c.name == _HEAD).with_for_update())
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
    unit: Unit, position: int, limit: int, *, audience: Address | TenantName | str | None = None
) -> list[SequencedEvent]:
    """Return up to ``limit`` events past ``position``: all, or those for an address, or for a tenant's addresses."""
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
    return [_sequenced(row, who) for row, who in _with_audience(unit, statement)]


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


def insert_webhook(unit: Unit, webhook: Webhook) -> None:
    """Store a webhook; raises ConflictError when its id is taken."""
    row = {
        "id": webhook.id,
        "address": str(webhook.address),
        "url": webhook.url,
        "secret": webhook.secret,
        "types": None if webhook.types is None else json.dumps(list(webhook.types)),
        "created_at": webhook.created_at,
        "disabled_at": webhook.disabled_at,
    }
    if not rows.insert_new(unit, webhooks, [row], webhooks.c.id):
        raise ConflictError("The webhook's id is taken", on=webhook.id)


def webhook(unit: Unit, webhook_id: str) -> Webhook | None:
    """Return one webhook."""
    row = unit.connection.execute(select(webhooks).where(webhooks.c.id == webhook_id)).mappings().one_or_none()
    return None if row is None else _webhook(row)


def list_webhooks(unit: Unit, addresses: Sequence[Address | str] | None = None) -> list[Webhook]:
    """Return the webhooks of some addresses or of all, oldest first, disabled ones too."""
    statement = select(webhooks).order_by(webhooks.c.created_at, webhooks.c.id)
    if addresses is not None:
        statement = statement.where(webhooks.c.address.in_(sorted({str(address) for address in addresses})))
    return [_webhook(row) for row in unit.connection.execute(statement).mappings()]


def disable_webhook(unit: Unit, webhook_id: str, now: datetime) -> None:
    """Stop telling a webhook; the first time counts."""
    unit.connection.execute(
        update(webhooks).where(webhooks.c.id == webhook_id, webhooks.c.disabled_at.is_(None)).values(disabled_at=now)
    )


def delete_webhook(unit: Unit, webhook_id: str, address: Address) -> bool:
    """Remove an address's webhook and its deliveries; False when the address has no such webhook."""
    statement = delete(webhooks).where(webhooks.c.id == webhook_id, webhooks.c.address == str(address))
    return bool(unit.connection.execute(statement).rowcount)


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
        }
        for delivery in new
    ]
    return rows.insert_new(unit, deliveries, values, deliveries.c.id)


def deliveries_by_ids(unit: Unit, ids: Sequence[str]) -> list[Delivery]:
    """Return the deliveries that exist, by id."""
    found = []
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(deliveries).where(deliveries.c.id.in_(chunk)).order_by(deliveries.c.id)
        found += [_delivery(row) for row in unit.connection.execute(statement).mappings()]
    return found


def set_delivery(unit: Unit, delivery_id: str, state: str, *, now: datetime, error: str | None = None) -> None:
    """Write down an attempt and what came of it; raises NotFoundError."""
    statement = (
        update(deliveries)
        .where(deliveries.c.id == delivery_id)
        .values(state=state, attempts=deliveries.c.attempts + 1, last_error=rows.detail(error), updated_at=now)
    )
    if not unit.connection.execute(statement).rowcount:
        raise NotFoundError(on=delivery_id)


def claim_tick(unit: Unit, job: str, period: str) -> bool:
    """Take a period's tick of a job; False when somebody took it before."""
    return bool(rows.insert_new(unit, ticks, [{"job": job, "period": period}], ticks.c.job))


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


def release_lease(unit: Unit, name: str, holder: str) -> None:
    """Give a lease back early."""
    unit.connection.execute(delete(leases).where(and_(leases.c.name == name, leases.c.holder == holder)))


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


def _webhook(row: RowMapping) -> Webhook:
    return Webhook(
        id=row["id"],
        address=parse_address(row["address"]),
        url=row["url"],
        secret=row["secret"],
        types=None if row["types"] is None else tuple(json.loads(row["types"])),
        created_at=row["created_at"],
        disabled_at=row["disabled_at"],
    )


def _delivery(row: RowMapping) -> Delivery:
    return Delivery(
        id=row["id"],
        webhook_id=row["webhook_id"],
        event_id=row["event_id"],
        state=row["state"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        updated_at=row["updated_at"],
    )
