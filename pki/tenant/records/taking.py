"""What is about to be stored: a key that was found good is written down here before the holder has it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime

from pki.core.errors import UnavailableError
from pki.core.ids import DepositId, KeyId
from pki.core.tenants import Address, parse_address
from pki.tenant.ports import KeyName
from pki.tenant.records.database import Database, Row, text_time, time_text


@dataclass(frozen=True)
class Taking:
    """A deposit whose key is good and is to be stored; ``sha512`` is that of its bytes.

    ``alone``: once this was written down, the holder had no key of this name, so the one that it has later is this.
    """

    deposit_id: DepositId
    sequence: int
    sender: Address
    sha512: bytes
    name: KeyName
    size: int
    noted_at: datetime
    alone: bool = False


class Takings:
    """The table of what is about to be stored; a decision removes its row (see ``seen``)."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def note(self, one: Taking) -> None:
        """Write down that a key is going to be stored, as often as one likes.

        UnavailableError while another deposit is about to bring a key of this name: whose it is in the holder would be
        unknown after a kill.
        """
        values = (
            one.deposit_id,
            one.sequence,
            str(one.sender),
            one.sha512,
            str(one.name.owner),
            one.name.key_id,
            one.name.version,
            one.size,
            time_text(one.noted_at),
        )
        try:
            with self._db.write() as db:
                db.execute("DELETE FROM taking WHERE deposit_id = ?", (one.deposit_id,))
                db.execute("INSERT INTO taking VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)", values)
        except sqlite3.IntegrityError:
            raise UnavailableError("Another deposit is about to bring this key", on=str(one.name)) from None

    def is_alone(self, deposit_id: DepositId) -> None:
        """Write down that the holder has no key of this name, now that nobody else may bring one."""
        with self._db.write() as db:
            db.execute("UPDATE taking SET alone = 1 WHERE deposit_id = ?", (deposit_id,))

    def drop(self, deposit_id: DepositId) -> None:
        """Take back what was not stored."""
        with self._db.write() as db:
            db.execute("DELETE FROM taking WHERE deposit_id = ?", (deposit_id,))

    def all(self) -> list[Taking]:
        """Return what is about to be stored, or was when somebody was killed, by number."""
        return [_taking(row) for row in self._db.all("SELECT * FROM taking ORDER BY sequence")]


def _taking(row: Row) -> Taking:
    deposit, sequence, sender, sha512, owner, key, version, size, noted, alone = row
    name = KeyName(parse_address(owner), KeyId(key), version)
    return Taking(
        DepositId(deposit), sequence, parse_address(sender), sha512, name, size, text_time(noted), bool(alone)
    )
