"""Verdicts on deposits, written down for many at once: available with a number, or rejected with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from pki.core.deposits import DepositState
from pki.core.ids import DepositId, Fingerprint
from pki.server import metrics
from pki.server.facts import DepositRecord
from pki.server.store import limits, mailboxes, rows
from pki.server.store.engine import Unit
from pki.server.store.tables import deposits

Progress = tuple[DepositState, int | None, str | None]
"""How far a deposit has come: its state, its number, and the code that it was rejected with."""


def hold(unit: Unit, ids: Sequence[DepositId]) -> Mapping[DepositId, Progress]:
    """Return how far deposits have come, those that exist, held until the end of the unit."""
    found: dict[DepositId, Progress] = {}
    columns = (deposits.c.id, deposits.c.state, deposits.c.sequence, deposits.c.rejected_code)
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(*columns).where(deposits.c.id.in_(chunk)).order_by(deposits.c.id).with_for_update()
        for row in unit.connection.execute(statement):
            found[DepositId(row.id)] = (DepositState(row.state), row.sequence, row.rejected_code)
    return found


def admit(
    unit: Unit, sound: Sequence[tuple[DepositRecord, Fingerprint, Fingerprint]], now: datetime
) -> Mapping[DepositId, int]:
    """Make deposits available, in the order given, and return the numbers that they get in their mailboxes.

    Each comes with the certificates of its recipient and its sender; this unit holds them all, and they are received.
    To what is counted (`limits`) that makes no difference.
    """
    if not sound:
        return {}
    counts = Counter(str(record.recipient) for record, _, _ in sound)
    last = mailboxes.advance(unit, "last_sequence", counts)
    following = {recipient: last[recipient] - count for recipient, count in counts.items()}
    values: list[dict[str, Any]] = []
    for record, recipient_certificate, sender_certificate in sound:
        following[str(record.recipient)] += 1
        values.append(
            {
                "id": record.id,
                "state": DepositState.AVAILABLE.value,
                "sequence": following[str(record.recipient)],
                "validated_at": now,
                "certificate_fingerprint": recipient_certificate,
                "sender_fingerprint": sender_certificate,
            }
        )
    rows.update_each(unit, deposits, values, deposits.c.id)
    since = [(now - record.received_at).total_seconds() for record, _, _ in sound]
    unit.once_committed(lambda: metrics.moved(DepositState.AVAILABLE, since))
    return {DepositId(value["id"]): value["sequence"] for value in values}


def reject(unit: Unit, refused: Sequence[tuple[DepositRecord, str, str]], now: datetime) -> None:
    """Reject deposits, each with its code and what is wrong; this unit holds them all, and they are received."""
    values = [
        {
            "id": record.id,
            "state": DepositState.REJECTED.value,
            "validated_at": now,
            "settled_at": now,
            "rejected_code": code,
            "rejected_detail": rows.detail(detail),
        }
        for record, code, detail in refused
    ]
    rows.update_each(unit, deposits, values, deposits.c.id)
    unit.once_committed(lambda: metrics.moved(DepositState.REJECTED, count=len(values)))
    for record, _, _ in refused:
        places = (str(record.sender), str(record.recipient), record.size)
        limits.settle(unit, limits.moved(*places, DepositState.RECEIVED, DepositState.REJECTED))
