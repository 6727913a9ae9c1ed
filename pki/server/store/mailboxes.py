"""Mailboxes: the counters that number what arrives at an address, without gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import mailboxes

Counted = Literal["last_sequence", "last_receipt"]


def advance(unit: Unit, counter: Counted, by: Mapping[str, int]) -> Mapping[str, int]:
    """Count some addresses' mailboxes on, each by its number; return the last number given out for each.

    The mailboxes are held until the end of the unit, so numbers become visible in their order.
    """
    # One statement, its rows in address order: two units that need the same mailboxes wait for each other, in order.
    if not by:
        return {}
    fresh = {"last_sequence": 0, "last_receipt": 0}
    values = [{"address": address, **fresh, counter: by[address]} for address in sorted(by)]
    statement = rows.insert(unit, mailboxes)
    upsert = statement.on_conflict_do_update(
        index_elements=[mailboxes.c.address],
        set_={counter: mailboxes.c[counter] + statement.excluded[counter]},
    ).returning(mailboxes.c.address, mailboxes.c[counter].label("last"))
    return {row.address: row.last for row in unit.connection.execute(upsert, values)}
