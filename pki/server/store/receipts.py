"""Receipts and refusals: one for a deposit, numbered for the deposit's sender."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sqlalchemy import RowMapping, select

from pki.core.errors import ReplayedError
from pki.core.ids import DepositId
from pki.core.tenants import Address
from pki.server.facts import ReceiptRecord
from pki.server.store import mailboxes, rows
from pki.server.store.engine import Unit
from pki.server.store.tables import receipts


def insert(unit: Unit, new: Sequence[tuple[Address, ReceiptRecord]]) -> list[int]:
    """Store the one receipt of each of some deposits, with the deposit's sender; return their numbers in its list.

    Raises ReplayedError when a deposit has a receipt already, ConflictError when it is not there.
    """
    counts = Counter(str(sender) for sender, _ in new)
    last = mailboxes.advance(unit, "last_receipt", counts)
    following = {sender: last[sender] - count for sender, count in counts.items()}
    numbers: list[int] = []
    values = []
    for sender, record in new:
        following[str(sender)] += 1
        numbers.append(following[str(sender)])
        values.append(
            {
                "deposit_id": record.deposit_id,
                "sender": str(sender),
                "number": numbers[-1],
                "kind": record.kind,
                "reason": record.reason,
                "der": record.der,
                "signed_at": record.signed_at,
                "stored_at": record.stored_at,
            }
        )
    inserted = set(rows.insert_new(unit, receipts, values, receipts.c.deposit_id))
    if len(inserted) != len(values):
        answered = sorted({record.deposit_id for _, record in new} - inserted)
        raise ReplayedError("The deposit has a receipt", on=", ".join(answered)[:200])
    return numbers


def by_deposits(unit: Unit, ids: Sequence[DepositId]) -> Mapping[DepositId, ReceiptRecord]:
    """Return the receipts and refusals that some deposits have."""
    found: dict[DepositId, ReceiptRecord] = {}
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(receipts).where(receipts.c.deposit_id.in_(chunk))
        for row in unit.connection.execute(statement).mappings():
            found[DepositId(row["deposit_id"])] = _receipt(row)
    return found


def receipt(unit: Unit, deposit_id: DepositId) -> ReceiptRecord | None:
    """Return the receipt or refusal of a deposit."""
    return by_deposits(unit, [deposit_id]).get(deposit_id)


def of_sender(unit: Unit, sender: Address, *, after: int, limit: int) -> list[tuple[int, ReceiptRecord]]:
    """Return up to ``limit`` receipts for a sender's deposits past the number ``after``, each with its number."""
    statement = (
        select(receipts)
        .where(receipts.c.sender == str(sender), receipts.c.number > after)
        .order_by(receipts.c.number)
        .limit(limit)
    )
    return [(row["number"], _receipt(row)) for row in unit.connection.execute(statement).mappings()]


def _receipt(row: RowMapping) -> ReceiptRecord:
    return ReceiptRecord(
        deposit_id=DepositId(row["deposit_id"]),
        kind=row["kind"],
        reason=row["reason"],
        der=row["der"],
        signed_at=row["signed_at"],
        stored_at=row["stored_at"],
    )
