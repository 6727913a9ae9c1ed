"""CMP exchanges, a message and its answer each, and the transactions that they belong to."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update

from pki.core.certificates import ENDORSEMENT_WINDOW
from pki.core.ids import RequestId
from pki.core.tenants import parse_address
from pki.server.facts import Exchange, Transaction
from pki.server.store.engine import Unit
from pki.server.store.rows import insert_new
from pki.server.store.tables import cmp_exchanges as exchanges
from pki.server.store.tables import cmp_transactions as transactions


def insert(unit: Unit, exchange: Exchange) -> bool:
    """Store a message that waits for its answer; False when it is there already."""
    return bool(insert_new(unit, exchanges, [vars(exchange)], exchanges.c.digest))


def exchange(unit: Unit, digest: str, *, lock: bool = False) -> Exchange | None:
    """Return an exchange, held until the end of the unit when ``lock``."""
    statement = select(exchanges).where(exchanges.c.digest == digest)
    if lock:
        statement = statement.with_for_update()
    row = unit.connection.execute(statement).mappings().one_or_none()
    return None if row is None else Exchange(**row)


def count_unanswered(unit: Unit, now: datetime) -> int:
    """Return how many messages wait for their answer."""
    statement = select(func.count()).where(exchanges.c.response.is_(None), exchanges.c.expires_at > now)
    return int(unit.connection.execute(statement).scalar_one())


def ask_again(unit: Unit, digest: str) -> None:
    """Count that an unanswered message came once more."""
    statement = update(exchanges).where(exchanges.c.digest == digest).values(asked=exchanges.c.asked + 1)
    unit.connection.execute(statement)


def answer(unit: Unit, digest: str, response: bytes, expires_at: datetime) -> None:
    """Store the answer in the message's stead, unless there is one, and ring ``cmp:<digest>`` after the commit."""
    statement = update(exchanges).where(exchanges.c.digest == digest, exchanges.c.response.is_(None))
    unit.connection.execute(statement.values(response=response, request=b"", expires_at=expires_at))
    unit.after_commit(f"cmp:{digest}")


def open_transaction(unit: Unit, transaction: Transaction) -> bool:
    """Store a transaction; False when its id is taken."""
    row = vars(transaction) | {"address": str(transaction.address)}
    return bool(insert_new(unit, transactions, [row], transactions.c.id))


def transaction(unit: Unit, transaction_id: str, *, lock: bool = False) -> Transaction | None:
    """Return a transaction, held until the end of the unit when ``lock``."""
    statement = select(transactions).where(transactions.c.id == transaction_id)
    if lock:
        statement = statement.with_for_update()
    row = unit.connection.execute(statement).mappings().one_or_none()
    if row is None:
        return None
    return Transaction(**{**row, "address": parse_address(row["address"]), "request_id": RequestId(row["request_id"])})


def set_state(unit: Unit, transaction_id: str, old: str, new: str) -> None:
    """Move a transaction on; one that is not in the state ``old`` stays as it is."""
    chosen = update(transactions).where(transactions.c.id == transaction_id, transactions.c.state == old)
    unit.connection.execute(chosen.values(state=new))


def purge_exchanges(unit: Unit, now: datetime) -> int:
    """Forget the exchanges whose time is over; return how many."""
    return unit.connection.execute(delete(exchanges).where(exchanges.c.expires_at <= now)).rowcount


def purge(unit: Unit, now: datetime) -> int:
    """Forget the exchanges whose time is over, and transactions some days after theirs; return how many.

    A message that was recorded can come with another signature that is as good: that of ECDSA has two forms. As long as
    its time is not refused (REQ-007), it is its transactionID that is known.
    """
    gone = purge_exchanges(unit, now)
    over = transactions.c.expires_at <= now - _REMEMBERED
    return gone + unit.connection.execute(delete(transactions).where(over)).rowcount


_REMEMBERED = ENDORSEMENT_WINDOW + timedelta(hours=1)
