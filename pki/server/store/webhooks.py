"""Webhooks: whom they tell, where, and which of them are switched off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import RowMapping, delete, select, update

from pki.core.errors import ConflictError
from pki.core.tenants import Address, parse_address
from pki.server.facts import Webhook
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import webhooks


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
