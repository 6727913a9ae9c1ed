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
        """Raise an alarm; the same one twice is one."""
        with self._db.write() as db:
            db.execute(
                "INSERT INTO alarms (kind, subject, detail, raised_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (kind, subject, detail, time_text(now)),
            )
        return Alarm(kind, subject, detail, now)

    def all(self) -> list[Alarm]:
        """Return all alarms, oldest first."""
        rows = self._db.all("SELECT kind, subject, detail, raised_at FROM alarms ORDER BY id")
        return [Alarm(kind, subject, detail, text_time(at)) for kind, subject, detail, at in rows]

    def clear(self, kind: str, subject: str) -> None:
        """Take back an alarm whose cause is gone."""
        with self._db.write() as db:
            db.execute("DELETE FROM alarms WHERE kind = ? AND subject = ?", (kind, subject))
