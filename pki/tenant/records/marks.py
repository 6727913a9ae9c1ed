"""Numbers and cursors that we remember: how far we have read, and what may only grow."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from pki.tenant.records.database import Database, text_time, time_text

MAILBOX = "mailbox"
RECEIPTS = "receipts"
CRL = "crl"
REMINDERS = "reminders"
EVENTS = "events"
LOOKED_UP = "looked-up"
"""With an address after it: when that peer was looked up for sending."""
REJECTED = "rejected"
"""And when it had no other certificate, for what was rejected for the one it had."""


class Marks:
    """The tables of marks and of holes in the mailbox's sequence."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def text(self, name: str) -> str:
        """Return a mark, or an empty text."""
        row = self._db.one("SELECT value FROM marks WHERE name = ?", name)
        return str(row[0]) if row else ""

    def number(self, name: str) -> int:
        """Return a number, or 0."""
        return int(self.text(name) or 0)

    def set(self, name: str, value: str) -> None:
        """Set a mark."""
        with self._db.write() as db:
            db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))

    def note(self, name: str, now: datetime) -> None:
        """Set a mark to the time."""
        self.set(name, time_text(now))

    def is_within(self, span: timedelta, name: str, now: datetime) -> bool:
        """Tell whether a mark was set to a time not longer ago than this."""
        at = self.text(name)
        return bool(at) and now - text_time(at) < span

    def grow(self, name: str, number: int) -> int:
        """Raise a number that may only grow, and return the highest that was ever seen."""
        with self._db.write() as db:
            row = db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
            if row and int(row[0]) >= number:
                return int(row[0])
            db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, str(number)))
        return number

    def note_holes(self, sequences: Sequence[int], now: datetime) -> None:
        """Remember numbers that the server did not show."""
        with self._db.write() as db:
            db.executemany(
                "INSERT INTO holes VALUES (?, ?, NULL) ON CONFLICT DO NOTHING",
                [(number, time_text(now)) for number in sequences],
            )

    def open_holes(self) -> list[int]:
        """Return the numbers that are still missing."""
        return [row[0] for row in self._db.all("SELECT sequence FROM holes WHERE filled_at IS NULL ORDER BY sequence")]

    def fill_hole(self, sequence: int, now: datetime) -> None:
        """Say that a missing number has turned up and is settled."""
        with self._db.write() as db:
            db.execute("UPDATE holes SET filled_at = ? WHERE sequence = ?", (time_text(now), sequence))
