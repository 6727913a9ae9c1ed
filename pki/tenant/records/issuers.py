"""Issuing CAs: each one that the server ever showed us under the pinned root, and until when we rely on it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pki.tenant.records.database import Database, text_time, time_text

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class SeenIssuer:
    """An issuing CA by its key identifier, with its certificate in DER."""

    ski: bytes
    der: bytes
    relied_until: datetime
    """The latest end of a certificate under it that we have verified."""
    first_seen: datetime


class Issuers:
    """The table of issuing CAs."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def see(self, ski: bytes, der: bytes, now: datetime) -> bool:
        """Remember an issuing CA; True when it is new."""
        with self._db.write() as db:
            added = db.execute(
                "INSERT INTO issuers VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (ski.hex(), der, time_text(_NEVER), time_text(now)),
            )
            return added.rowcount == 1

    def rely(self, ski: bytes, until: datetime) -> None:
        """Say that a certificate under it is good, until then at the most."""
        text = time_text(until)
        if self._db.one("SELECT 1 FROM issuers WHERE ski = ? AND relied_until < ?", ski.hex(), text):
            with self._db.write() as db:
                db.execute(
                    "UPDATE issuers SET relied_until = ? WHERE ski = ? AND relied_until < ?", (text, ski.hex(), text)
                )

    def all(self) -> list[SeenIssuer]:
        """Return all of them, in the order in which they were seen."""
        rows = self._db.all("SELECT ski, der, relied_until, first_seen FROM issuers ORDER BY rowid")
        return [SeenIssuer(bytes.fromhex(ski), der, text_time(until), text_time(at)) for ski, der, until, at in rows]
