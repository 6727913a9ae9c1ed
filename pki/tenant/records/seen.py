"""What came to us: the decision on each deposit, and the receipt or refusal that answers it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pki.core.errors import ReplayedError
from pki.core.ids import DepositId
from pki.core.tenants import Address, parse_address
from pki.tenant.records.database import Database, Row, time_text

_COLUMNS = "SELECT deposit_id, sequence, sender, sha512, kind, detail, answer, answered FROM seen"


@dataclass(frozen=True)
class Seen:
    """A deposit that was decided on; ``kind`` is receipt or refusal, ``answer`` its signed DER."""

    deposit_id: DepositId
    sequence: int
    sender: Address
    sha512: bytes
    kind: str
    detail: str
    answer: bytes
    answered: bool = False


class SeenDeposits:
    """The table of what we decided."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def decide(self, seen: Seen, now: datetime) -> Seen:
        """Write down a decision; its key is no longer about to be stored. The first one stands: it is returned.

        ReplayedError when the sequence number belongs to another deposit.
        """
        with self._db.write() as db:
            try:
                db.execute(
                    "INSERT INTO seen VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)",
                    (
                        seen.deposit_id,
                        seen.sequence,
                        str(seen.sender),
                        seen.sha512,
                        seen.kind,
                        seen.detail,
                        seen.answer,
                        time_text(now),
                    ),
                )
                db.execute("DELETE FROM taking WHERE deposit_id = ?", (seen.deposit_id,))
            except sqlite3.IntegrityError:
                found = self.of(seen.deposit_id)
                if found is None:
                    raise ReplayedError(
                        "The server gave one number to two deposits", on=f"number {seen.sequence}", hint="kmb doctor"
                    ) from None
                return found
        return seen

    def mark_answered(self, ids: Sequence[DepositId]) -> None:
        """Say that the server has these answers."""
        with self._db.write() as db:
            db.executemany("UPDATE seen SET answered = 1 WHERE deposit_id = ?", [(one,) for one in ids])

    def of(self, deposit_id: DepositId) -> Seen | None:
        """Return the decision on a deposit, if there is one."""
        row = self._db.one(f"{_COLUMNS} WHERE deposit_id = ?", deposit_id)
        return _seen(row) if row else None

    def at(self, sequence: int) -> Seen | None:
        """Return the decision on the deposit with this number, if there is one."""
        row = self._db.one(f"{_COLUMNS} WHERE sequence = ?", sequence)
        return _seen(row) if row else None

    def last(self, upto: int) -> Seen | None:
        """Return the decision with the highest number up to this one."""
        row = self._db.one(f"{_COLUMNS} WHERE sequence <= ? ORDER BY sequence DESC LIMIT 1", upto)
        return _seen(row) if row else None

    def unanswered(self) -> list[Seen]:
        """Return decisions that the server was not told yet."""
        return [_seen(row) for row in self._db.all(f"{_COLUMNS} WHERE answered = 0 ORDER BY sequence")]


def _seen(row: Row) -> Seen:
    deposit, sequence, sender, sha512, kind, detail, answer, answered = row
    return Seen(DepositId(deposit), sequence, parse_address(sender), sha512, kind, detail, answer, bool(answered))
