"""Alarms: what a person has to look at, because a program cannot put it right."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pki.tenant.records.database import Database, text_time, time_text


@dataclass(frozen=True)
class Alarm:
    """What is wrong (``kind``), with what (``subject``), and in words."""

    kind: str
    subject: str
    detail: str
    raised_at: datetime


class Alarms:
    """The table of alarms."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def sound(self, kind: str, subject: str, detail: str, now: datetime) -> Alarm:
        """Raise an alarm; the same one twice is one, and one that a person took note of stands again."""
        with self._db.write() as db:
            db.execute(
                "INSERT INTO alarms (kind, subject, detail, raised_at) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
                " SET detail = excluded.detail, raised_at = excluded.raised_at, seen_at = NULL WHERE seen_at NOTNULL",
                (kind, subject, detail, time_text(now)),
            )
        return Alarm(kind, subject, detail, now)

    def standing(self, kind: str, subject: str) -> bool:
        """Return whether this alarm was raised and not taken back, noted by a person or not."""
        return self._db.one("SELECT id FROM alarms WHERE kind = ? AND subject = ?", kind, subject) is not None

    def detail(self, kind: str, subject: str) -> str:
        """Return what a standing alarm says, nothing when there is none."""
        row = self._db.one("SELECT detail FROM alarms WHERE kind = ? AND subject = ?", kind, subject)
        return str(row[0]) if row else ""

    def subjects(self, kind: str) -> list[str]:
        """Return what there are alarms of one kind about, noted by a person or not."""
        return [str(row[0]) for row in self._db.all("SELECT subject FROM alarms WHERE kind = ? ORDER BY id", kind)]

    def all(self) -> list[Alarm]:
        """Return the alarms that nobody took note of, oldest first."""
        rows = self._db.all("SELECT kind, subject, detail, raised_at FROM alarms WHERE seen_at ISNULL ORDER BY id")
        return [Alarm(kind, subject, detail, text_time(at)) for kind, subject, detail, at in rows]

    def note(self, now: datetime) -> None:
        """A person took note of all of them; they stay in the journal."""
        with self._db.write() as db:
            db.execute("UPDATE alarms SET seen_at = ? WHERE seen_at ISNULL", (time_text(now),))

    def clear(self, kind: str, subject: str) -> None:
        """Take back an alarm whose cause is gone."""
        with self._db.write() as db:
            db.execute("DELETE FROM alarms WHERE kind = ? AND subject = ?", (kind, subject))
