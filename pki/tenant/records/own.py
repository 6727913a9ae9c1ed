"""Our own certificate requests and certificates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pki.core.ids import Fingerprint, RequestId
from pki.tenant.records.database import Database, text_time, time_text


@dataclass(frozen=True)
class OwnRequest:
    """A certificate request that we made. ``state``: open, done or rejected."""

    id: RequestId
    kind: str
    der: bytes
    ski: bytes
    state: str = "open"


@dataclass(frozen=True)
class OwnCertificate:
    """One of our own certificates. ``state``: active, retired or revoked."""

    fingerprint: Fingerprint
    kind: str
    der: bytes
    ski: bytes
    not_before: datetime
    not_after: datetime
    state: str = "active"


class Own:
    """The tables of our requests and certificates."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add_request(self, request: OwnRequest, now: datetime) -> None:
        """Write down a request before it is submitted."""
        with self._db.write() as db:
            db.execute(
                "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (request.id, request.kind, request.der, request.ski.hex(), request.state, time_text(now)),
            )

    def open_request(self, kind: str) -> OwnRequest | None:
        """Return the newest request of this kind that is under way."""
        row = self._db.one(
            "SELECT id, kind, der, ski, state FROM requests WHERE kind = ? AND state = 'open' ORDER BY rowid DESC", kind
        )
        return OwnRequest(RequestId(row[0]), row[1], row[2], bytes.fromhex(row[3]), row[4]) if row else None

    def reject_request(self, request_id: RequestId) -> None:
        """Say that nothing came of a request."""
        with self._db.write() as db:
            db.execute("UPDATE requests SET state = 'rejected' WHERE id = ?", (request_id,))

    def add_certificate(self, certificate: OwnCertificate, request_id: RequestId, now: datetime) -> None:
        """Write down a new active certificate: the earlier one of its kind retires, its request is done."""
        one = certificate
        with self._db.write() as db:
            db.execute(
                "UPDATE certificates SET state = 'retired' WHERE kind = ? AND state = 'active' AND fingerprint <> ?",
                (one.kind, one.fingerprint),
            )
            db.execute(
                "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (
                    one.fingerprint,
                    one.kind,
                    one.der,
                    one.ski.hex(),
                    one.state,
                    time_text(one.not_before),
                    time_text(one.not_after),
                    time_text(now),
                ),
            )
            db.execute("UPDATE requests SET state = 'done' WHERE id = ?", (request_id,))

    def certificates(self, kind: str | None = None) -> list[OwnCertificate]:
        """Return our certificates, newest first."""
        rows = self._db.all(
            "SELECT fingerprint, kind, der, ski, not_before, not_after, state FROM certificates"
            " WHERE kind = coalesce(?, kind) ORDER BY rowid DESC",
            kind,
        )
        return [
            OwnCertificate(Fingerprint(f), k, der, bytes.fromhex(ski), text_time(since), text_time(until), state)
            for f, k, der, ski, since, until, state in rows
        ]

    def active(self, kind: str) -> OwnCertificate | None:
        """Return our active certificate of a kind."""
        return next((one for one in self.certificates(kind) if one.state == "active"), None)

    def mark_revoked(self, fingerprint: Fingerprint) -> None:
        """Write down that a certificate of ours is revoked."""
        with self._db.write() as db:
            db.execute("UPDATE certificates SET state = 'revoked' WHERE fingerprint = ?", (fingerprint,))
