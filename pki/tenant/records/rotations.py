"""Rotations of shared keys: written down before anything is done, so that an interrupted one is taken up again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pki.core.ids import KeyId
from pki.core.tenants import Address, parse_address
from pki.tenant.ports import KeyName
from pki.tenant.records.database import Database, Row, text_time, time_text

INTENDED = "intended"
"""The next version may be in the holder, and nothing is planned yet."""
RUNNING = "running"

_COLUMNS = (
    "SELECT owner, key_id, key_version, state, purpose, lifetime, deadline, holders, removed, classical, started_at"
    " FROM rotations"
)


@dataclass(frozen=True)
class Rotation:
    """One new version of a key of ours: who gets it, who does not any more, and by when answers are wanted."""

    name: KeyName
    purpose: str
    lifetime: timedelta
    deadline: datetime | None
    holders: tuple[Address, ...]
    removed: tuple[Address, ...]
    classical: tuple[Address, ...]
    started_at: datetime
    state: str = INTENDED


class Rotations:
    """The table of rotations."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def intend(self, one: Rotation) -> None:
        """Write a rotation down before its key is made."""
        with self._db.write() as db:
            db.execute(
                "INSERT INTO rotations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    str(one.name.owner),
                    one.name.key_id,
                    one.name.version,
                    one.state,
                    one.purpose,
                    one.lifetime.total_seconds(),
                    time_text(one.deadline) if one.deadline else None,
                    _texts(one.holders),
                    _texts(one.removed),
                    _texts(one.classical),
                    time_text(one.started_at),
                ),
            )

    def forget(self, name: KeyName) -> None:
        """Take back a rotation whose key was never made."""
        with self._db.write() as db:
            db.execute(
                "DELETE FROM rotations WHERE owner = ? AND key_id = ? AND key_version = ? AND state = ?",
                (str(name.owner), name.key_id, name.version, INTENDED),
            )

    def of(self, name: KeyName) -> Rotation | None:
        """Return the rotation that made this version."""
        where = " WHERE owner = ? AND key_id = ? AND key_version = ?"
        row = self._db.one(_COLUMNS + where, str(name.owner), name.key_id, name.version)
        return _rotation(row) if row else None

    def all(self, *, state: str = "", owner: Address | None = None, key_id: KeyId | None = None) -> list[Rotation]:
        """Return rotations, oldest first: all, or those in one state, or of one key."""
        found = [_rotation(row) for row in self._db.all(f"{_COLUMNS} ORDER BY rowid")]
        return [
            one
            for one in found
            if state in ("", one.state)
            and (owner is None or one.name.owner == owner)
            and (key_id is None or one.name.key_id == key_id)
        ]


def _texts(addresses: Sequence[Address]) -> str:
    return json.dumps([str(one) for one in addresses])


def _addresses(text: str) -> tuple[Address, ...]:
    return tuple(parse_address(one) for one in json.loads(text))


def _rotation(row: Row) -> Rotation:
    owner, key, version, state, purpose, lifetime, deadline, holders, removed, classical, started = row
    return Rotation(
        name=KeyName(parse_address(owner), KeyId(key), version),
        purpose=purpose,
        lifetime=timedelta(seconds=lifetime),
        deadline=text_time(deadline) if deadline else None,
        holders=_addresses(holders),
        removed=_addresses(removed),
        classical=_addresses(classical),
        started_at=text_time(started),
        state=state,
    )
