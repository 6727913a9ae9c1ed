"""Who is to take whose place: each deposit names the one that was accepted last to supersede it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select

from pki.core.deposits import DepositState
from pki.core.ids import DepositId
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.tables import deposits


def on_their_way(unit: Unit, olds: Sequence[DepositId]) -> dict[DepositId, DepositId]:
    """Return, for each of these deposits that has one, the successor that nobody has judged yet.

    This unit holds the old ones: whoever names one of them waits, and then sees what is noted here.
    """
    old, new = deposits.alias("old"), deposits.alias("new")
    found: dict[DepositId, DepositId] = {}
    for chunk in rows.chunks(sorted(set(olds))):
        statement = (
            select(old.c.id, new.c.id)
            .join(new, new.c.id == old.c.successor)
            .where(old.c.id.in_(chunk), new.c.state == DepositState.RECEIVED.value)
        )
        found |= {DepositId(one): DepositId(other) for one, other in unit.connection.execute(statement)}
    return found


def note(unit: Unit, successors: Mapping[DepositId, DepositId]) -> None:
    """Write down the successors of deposits, which this unit holds, by their ids."""
    values = [{"id": old, "successor": new} for old, new in sorted(successors.items())]
    rows.update_each(unit, deposits, values, deposits.c.id)
