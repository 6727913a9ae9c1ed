"""Nonces of signed requests: each is good once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.rows import insert_returning
from pki.server.store.tables import nonces


@dataclass(frozen=True, order=True)
class Nonce:
    """A nonce of an access key, to be remembered until its request is too old to be accepted anyway."""

    key_id: str
    nonce: str
    expires_at: datetime


def use_nonces(unit: Unit, wanted: Sequence[Nonce]) -> list[bool]:
    """Use up nonces, in one statement; return for each, in order, whether it was fresh: of two alike the first is."""
    rows = [
        {"key_id": one.key_id, "nonce": one.nonce, "expires_at": one.expires_at}
        # In one order everywhere: two units that use the same nonces wait for each other and not in a circle.
        for one in sorted(wanted)
    ]
    fresh = {(row.key_id, row.nonce) for row in insert_returning(unit, nonces, rows, nonces.c.key_id, nonces.c.nonce)}
    told = []
    for one in wanted:
        place = (one.key_id, one.nonce)
        told.append(place in fresh)
        fresh.discard(place)
    return told


def seen(unit: Unit, wanted: Sequence[Nonce]) -> list[bool]:
    """Return for each nonce, in order, whether it was used up."""
    places = [(one.key_id, one.nonce) for one in wanted]
    keys = [{"key_id": one.key_id, "nonce": one.nonce} for one in wanted]
    known = {(row["key_id"], row["nonce"]) for row in rows.select_each(unit, nonces, keys)}
    return [place in known for place in places]


def purge_nonces(unit: Unit, now: datetime, limit: int = 10_000) -> int:
    """Forget the nonces whose requests are too old to be accepted anyway, so many at most; return how many."""
    return rows.delete_first(unit, nonces, nonces.c.expires_at <= now, nonces.c.expires_at, limit)
