"""Posts to webhooks: what is under way, the pages of what was given up, and what is tried once more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import literal, select, tuple_, update

from pki.server.facts import Delivery
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.events import delivery
from pki.server.store.tables import deliveries

Place = tuple[datetime, str]
"""When a post was given up, and its id: the order of the pages."""


def dead(unit: Unit, webhook_id: str, *, after: Place | None = None, limit: int) -> list[Delivery]:
    """Return up to ``limit`` of a webhook's dead deliveries past a place, first given up first."""
    order = (deliveries.c.updated_at, deliveries.c.id)
    statement = select(deliveries).where(deliveries.c.webhook_id == webhook_id, deliveries.c.state == "dead")
    if after is not None:
        place = (literal(value, column.type) for value, column in zip(after, order, strict=True))
        statement = statement.where(tuple_(*order) > tuple_(*place))
    return [delivery(row) for row in unit.connection.execute(statement.order_by(*order).limit(limit)).mappings()]


def hold_pending(unit: Unit, ids: Sequence[str]) -> set[str]:
    """Return which deliveries are still to be told; none of them is told or given up by others until the unit ends."""
    found: set[str] = set()
    for chunk in rows.chunks(sorted(set(ids))):
        # In one order, whoever holds them: two who did so crosswise would wait for each other.
        waiting = select(deliveries.c.id).where(deliveries.c.id.in_(chunk), deliveries.c.state == "pending")
        found |= set(unit.connection.execute(waiting.order_by(deliveries.c.id).with_for_update()).scalars())
    return found


def revive(unit: Unit, ids: Sequence[str]) -> list[str]:
    """Have dead deliveries told again at once, with all their attempts; return which were dead."""
    revived: list[str] = []
    for chunk in rows.chunks(sorted(set(ids))):
        dead_ones = deliveries.c.id.in_(chunk), deliveries.c.state == "dead"
        statement = update(deliveries).where(*dead_ones).values(state="pending", attempts=0).returning(deliveries.c.id)
        revived += unit.connection.execute(statement).scalars()
    return revived
