"""Whom and what recipients take deposits from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from sqlalchemy import delete, select

from pki.core.senders import SenderMode, SenderPolicy
from pki.core.tenants import Address, parse_address
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import listed_senders, policies


def of(unit: Unit, recipients: Sequence[Address]) -> Mapping[Address, SenderPolicy]:
    """Return the policies that recipients have set; a second statement for the lists, where there may be some."""
    found = rows.select_among(unit, policies.c.address, map(str, recipients), *policies.c)
    listed: dict[str, list[str]] = {}
    for chunk in rows.chunks([row.address for row in found]):
        statement = select(listed_senders).where(listed_senders.c.address.in_(chunk)).order_by(listed_senders.c.sender)
        for row in unit.connection.execute(statement):
            listed.setdefault(row.address, []).append(row.sender)
    return {
        parse_address(row.address): SenderPolicy(
            mode=SenderMode(row.senders),
            listed=tuple(listed.get(row.address, ())),
            max_bytes=row.max_bytes,
            max_lifetime=None if row.max_lifetime is None else timedelta(seconds=row.max_lifetime),
            changed_at=row.changed_at,
        )
        for row in found
    }


def put(unit: Unit, recipient: Address, policy: SenderPolicy) -> None:
    """Set a recipient's policy, in the place of the one before."""
    statement = rows.insert(unit, policies).values(
        address=str(recipient),
        senders=policy.mode.value,
        max_bytes=policy.max_bytes,
        max_lifetime=None if policy.max_lifetime is None else int(policy.max_lifetime.total_seconds()),
        changed_at=policy.changed_at,
    )
    new = statement.excluded
    names = ("senders", "max_bytes", "max_lifetime", "changed_at")
    unit.connection.execute(
        statement.on_conflict_do_update(index_elements=[policies.c.address], set_={name: new[name] for name in names})
    )
    unit.connection.execute(delete(listed_senders).where(listed_senders.c.address == str(recipient)))
    listed = [{"address": str(recipient), "sender": one} for one in policy.listed]
    rows.insert_new(unit, listed_senders, listed, listed_senders.c.sender)
