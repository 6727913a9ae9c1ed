"""Revocation lists: the newest full one of each issuing CA that we verified, for the changes to build on."""

from __future__ import annotations

from pki.tenant.records.database import Database


class RevocationLists:
    """The table of revocation lists."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def of(self, ski: bytes) -> bytes | None:
        """Return the list of an issuing CA, by its key identifier, in DER."""
        row = self._db.one("SELECT der FROM lists WHERE ski = ?", ski.hex())
        return None if row is None else bytes(row[0])

    def keep(self, ski: bytes, number: int, der: bytes) -> None:
        """Keep a list in the place of an older one; a newer one stays. What SQLite cannot number is not kept."""
        if number >= 1 << 63 or self._db.one("SELECT 1 FROM lists WHERE ski = ? AND number >= ?", ski.hex(), number):
            return
        with self._db.write() as db:
            db.execute(
                "INSERT INTO lists VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET number = excluded.number,"
                " der = excluded.der WHERE number < excluded.number",
                (ski.hex(), number, der),
            )
