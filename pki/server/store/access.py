"""Nonces of signed requests: each is good once."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete

from pki.core.errors import ReplayedError
from pki.server.store.engine import Unit
from pki.server.store.rows import insert_new
from pki.server.store.tables import nonces


def use_nonce(unit: Unit, key_id: str, nonce: str, expires_at: datetime) -> None:
    """Use up a nonce of a key until ``expires_at``; raises ReplayedError the second time."""
    row = {"key_id": key_id, "nonce": nonce, "expires_at": expires_at}
    if not insert_new(unit, nonces, [row], nonces.c.nonce):
        raise ReplayedError("The same request was presented before", hint="sign the request again, with a new nonce")


def purge_nonces(unit: Unit, now: datetime) -> int:
    """Forget the nonces whose requests are too old to be accepted anyway; return how many."""
    return unit.connection.execute(delete(nonces).where(nonces.c.expires_at <= now)).rowcount
