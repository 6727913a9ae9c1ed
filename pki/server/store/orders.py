"""Orders of the operator's officers, each with the approval of another once there is one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import RowMapping, select, text, update

from pki.core.orders import OrderId
from pki.server.facts import OrderRecord
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import orders


def hold(unit: Unit) -> None:
    """Let no other unit give, approve or count orders until the end of this one; readers do not wait."""
    if unit.dialect == "postgresql":
        unit.connection.execute(text("LOCK TABLE orders IN SHARE ROW EXCLUSIVE MODE"))


def insert(unit: Unit, record: OrderRecord) -> bool:
    """Store an order; False when the same one is there."""
    row = {
        "id": record.id,
        "kind": record.kind,
        "der": record.der,
        "ordered_by": record.ordered_by,
        "because": record.because,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
    }
    return bool(rows.insert_new(unit, orders, [row], orders.c.id))


def approve(unit: Unit, order_id: OrderId, approval: bytes, approved_by: str, now: datetime) -> None:
    """Write down that an order was approved and carried out."""
    statement = (
        update(orders)
        .where(orders.c.id == order_id)
        .values(approval=approval, approved_by=approved_by, executed_at=now)
    )
    unit.connection.execute(statement)


def order(unit: Unit, order_id: OrderId) -> OrderRecord | None:
    """Return an order."""
    found = many(unit, [order_id])
    return found[0] if found else None


def many(unit: Unit, ids: Sequence[str]) -> list[OrderRecord]:
    """Return the orders that exist."""
    found = []
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(orders).where(orders.c.id.in_(chunk))
        found += [_record(row) for row in unit.connection.execute(statement).mappings()]
    return found


def approved_since(unit: Unit, moment: datetime, kind: str) -> list[OrderRecord]:
    """Return the orders of a kind that were carried out since, first carried out first."""
    statement = (
        select(orders)
        .where(orders.c.executed_at >= moment, orders.c.kind == kind)
        .order_by(orders.c.executed_at, orders.c.id)
    )
    return [_record(row) for row in unit.connection.execute(statement).mappings()]


def newest(unit: Unit, limit: int) -> list[OrderRecord]:
    """Return up to ``limit`` orders, newest first."""
    statement = select(orders).order_by(orders.c.created_at.desc(), orders.c.id).limit(limit)
    return [_record(row) for row in unit.connection.execute(statement).mappings()]


def _record(row: RowMapping) -> OrderRecord:
    return OrderRecord(
        id=OrderId(row["id"]),
        kind=row["kind"],
        der=row["der"],
        ordered_by=row["ordered_by"],
        because=row["because"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        approval=row["approval"],
        approved_by=row["approved_by"],
        executed_at=row["executed_at"],
    )
