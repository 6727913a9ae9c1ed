"""Pins: the identity key that stands for each peer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from pki.core.signatures import SignatureAlgorithm, VerifyingKey, from_raw, load
from pki.core.tenants import Address, parse_address
from pki.tenant.records.database import Database, text_time, time_text

FIRST_CONTACT = "first-contact"
CONFIRMED = "confirmed"


@dataclass(frozen=True)
class Pin:
    """The identity key that stands for a peer, and how it came to be trusted."""

    address: Address
    identity_key: VerifyingKey
    how: str
    """``first-contact``, or ``confirmed`` by a person."""
    pinned_at: datetime

    @property
    def fingerprint(self) -> str:
        """What two people compare: the SHA-256 of the identity key, in hex."""
        return identity_fingerprint(self.identity_key)


def identity_fingerprint(identity_key: VerifyingKey) -> str:
    """Return the SHA-256 of an identity key's bits, in hex; it stays the same when the certificate is renewed."""
    return hashlib.sha256(identity_key.raw).hexdigest()


class Pins:
    """The table of pins."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def of(self, address: Address) -> Pin | None:
        """Return the pin of a peer."""
        row = self._db.one("SELECT identity_key, how, pinned_at FROM pins WHERE address = ?", str(address))
        return Pin(address, _key(row[0]), row[1], text_time(row[2])) if row else None

    def all(self) -> list[Pin]:
        """Return all pins, by address."""
        rows = self._db.all("SELECT address, identity_key, how, pinned_at FROM pins ORDER BY address")
        return [Pin(parse_address(a), _key(key), how, text_time(at)) for a, key, how, at in rows]

    def first(self, address: Address, identity_key: VerifyingKey, now: datetime) -> Pin:
        """Pin at first contact; when there is a pin by now, that one stands and is returned."""
        with self._db.write() as db:
            db.execute(
                "INSERT INTO pins VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (str(address), identity_key.spki, FIRST_CONTACT, time_text(now)),
            )
        return self.of(address) or Pin(address, identity_key, FIRST_CONTACT, now)

    def confirm(self, address: Address, identity_key: VerifyingKey, now: datetime) -> Pin:
        """Pin what a person confirmed, in the place of any earlier pin; a change is written down."""
        with self._db.write() as db:
            old = db.execute("SELECT identity_key FROM pins WHERE address = ?", (str(address),)).fetchone()
            if old and _key(old[0]) != identity_key:
                db.execute(
                    "INSERT INTO pin_changes (address, before, after, changed_at) VALUES (?, ?, ?, ?)",
                    (str(address), old[0], identity_key.spki, time_text(now)),
                )
            db.execute(
                "INSERT OR REPLACE INTO pins VALUES (?, ?, ?, ?)",
                (str(address), identity_key.spki, CONFIRMED, time_text(now)),
            )
        return Pin(address, identity_key, CONFIRMED, now)


def _key(kept: bytes) -> VerifyingKey:
    # Journals from before there were other algorithms hold the raw key of ML-DSA-65, which is no SubjectPublicKeyInfo.
    return from_raw(kept) if len(kept) == SignatureAlgorithm.ML_DSA_65.key_size else load(kept)
