"""What we send: each deposit from the plan to the receipt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pki.core.errors import ExpiredError, RevokedError
from pki.core.ids import DepositId, KeyId
from pki.core.tenants import Address, parse_address
from pki.tenant.ports import KeyName
from pki.tenant.records.database import Database, Row, text_time, time_text

PLANNED = "planned"
PREPARED = "prepared"
FAILED = "failed"
NOT_HELD = frozenset({FAILED, "rejected", "refused", "withdrawn", "expired"})
"""States in which the recipient does not have the key and will not get it by this deposit."""
OVER = ("withdrawn", "refused", "acknowledged", "collected", "expired", "superseded")
"""States of a deposit whose place no other takes any more."""
_OF_CERTIFICATES = (RevokedError.code, ExpiredError.code)
"""Why a deposit is rejected that is sound but for a certificate that it names: it is wrapped again."""
_OF_SENDER = ("[DEP-005]", "[DEP-006]")
"""The rules of the sender's certificate: no other one of the recipient mends that."""

_COLUMNS = (
    "SELECT deposit_id, recipient, owner, key_id, key_version, purpose, expires_at, planned_at, supersedes, state,"
    " detail, body, sha512, certificate, receipt, prepared_at, allow_classical FROM sent"
)
_REMOVED_SINCE = (
    "EXISTS (SELECT 1 FROM removed WHERE removed.owner = sent.owner AND removed.key_id = sent.key_id"
    " AND removed.recipient = sent.recipient AND removed.key_version > sent.key_version)"
)
_INTO = (
    "INSERT INTO sent (deposit_id, recipient, owner, key_id, key_version, purpose, expires_at, planned_at, supersedes,"
    " allow_classical, state, detail)"
)
_PLAN = (
    f"{_INTO} SELECT :deposit_id, :recipient, :owner, :key_id, :key_version, :purpose,"  # noqa: S608  constants
    " :expires_at, :planned_at,"
    " :supersedes, :allow_classical, 'planned', '' WHERE :supersedes ISNULL OR NOT (EXISTS (SELECT 1 FROM removed"
    " WHERE owner = :owner AND key_id = :key_id AND recipient = :recipient AND key_version > :key_version) OR EXISTS"
    f" (SELECT 1 FROM sent WHERE deposit_id = :supersedes AND state IN {OVER})) ON CONFLICT DO NOTHING"
)


@dataclass(frozen=True)
class Sent:
    """A deposit of ours. ``state``: planned, prepared (its bytes are fixed), then what the server says, or failed."""

    deposit_id: DepositId
    recipient: Address
    name: KeyName
    purpose: str
    expires_at: datetime
    planned_at: datetime
    supersedes: DepositId | None = None
    state: str = PLANNED
    detail: str = ""
    body: bytes | None = None
    sha512: bytes | None = None
    certificate: str | None = None
    receipt: bytes | None = None
    prepared_at: datetime | None = None
    allow_classical: bool = False
    """The sender takes for this recipient a key that a quantum computer opens."""

    def waits_for_certificate(self, now: datetime) -> bool:
        """Tell whether it was rejected for its recipient's certificate, and there is still time for another."""
        code = self.detail.partition(":")[0]
        ours = any(rule in self.detail for rule in _OF_SENDER)
        return self.state == "rejected" and code in _OF_CERTIFICATES and not ours and self.expires_at > now


class SentDeposits:
    """The table of what we sent."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def plan(
        self, deposits: Sequence[Sent], *, name: KeyName | None = None, removed: Sequence[Address] | None = None
    ) -> bool:
        """Write down what is to be sent: all or none. What is planned to supersede a deposit twice is planned once,
        and not at all where that was answered or taken back, or the recipient removed from the key, meanwhile.

        ``removed``, which a rotation has, do not get the key ``name`` and are no holders of it from this version on;
        the rotation is running from here on. False when it was already: another process has planned it.
        """
        with self._db.write() as db:
            if name is not None and removed is not None:
                version = (str(name.owner), name.key_id, name.version)
                planned = db.execute(
                    "SELECT 1 FROM rotations WHERE owner = ? AND key_id = ? AND key_version = ? AND state = 'running'",
                    version,
                ).fetchone()
                if planned:
                    return False
                db.execute(
                    "UPDATE rotations SET state = 'running' WHERE owner = ? AND key_id = ? AND key_version = ?", version
                )
                db.executemany(
                    "INSERT INTO removed VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    [(str(name.owner), name.key_id, str(address), name.version) for address in removed],
                )
            db.executemany(
                _PLAN,
                [
                    {
                        "deposit_id": one.deposit_id,
                        "recipient": str(one.recipient),
                        "owner": str(one.name.owner),
                        "key_id": one.name.key_id,
                        "key_version": one.name.version,
                        "purpose": one.purpose,
                        "expires_at": time_text(one.expires_at),
                        "planned_at": time_text(one.planned_at),
                        "supersedes": one.supersedes,
                        "allow_classical": int(one.allow_classical),
                    }
                    for one in deposits
                ],
            )
        return True

    def prepare(self, one: Sent, *, body: bytes, sha512: bytes, certificate: str, now: datetime) -> Sent:
        """Fix the bytes of a deposit before they are sent. When another process did, its bytes are returned."""
        with self._db.write() as db:
            db.execute(
                "UPDATE sent SET state = 'prepared', body = ?, sha512 = ?, certificate = ?, prepared_at = ?"
                " WHERE deposit_id = ? AND state = 'planned'",
                (body, sha512, certificate, time_text(now), one.deposit_id),
            )
        return self.of(one.deposit_id) or replace(one, state=PREPARED, body=body, sha512=sha512)

    def move(self, deposit_id: DepositId, state: str, detail: str = "", *, only: Collection[str] | None = None) -> None:
        """Write down what became of a deposit, ``only`` when it is in one of these states.

        Another process may know more by now: what a verified receipt said stands above everything.
        """
        with self._db.write() as db:
            row = db.execute(
                "SELECT state FROM sent WHERE deposit_id = ? AND receipt IS NULL", (deposit_id,)
            ).fetchone()
            if row is not None and (only is None or row[0] in only):
                # A deposit that failed stays so when another has taken its place meanwhile: the server takes one.
                db.execute(
                    "UPDATE OR IGNORE sent SET state = ?, detail = ? WHERE deposit_id = ?", (state, detail, deposit_id)
                )

    def settle(self, deposit_id: DepositId, state: str, receipt: bytes, detail: str = "") -> None:
        """Keep a verified receipt or refusal with the deposit that it answers."""
        with self._db.write() as db:
            db.execute(
                "UPDATE sent SET state = ?, receipt = ?, detail = ? WHERE deposit_id = ?",
                (state, receipt, detail, deposit_id),
            )

    def of(self, deposit_id: DepositId) -> Sent | None:
        """Return a deposit of ours."""
        row = self._db.one(f"{_COLUMNS} WHERE deposit_id = ?", deposit_id)
        return _sent(row) if row else None

    def replacing(self, deposit_id: DepositId) -> Sent | None:
        """Return the deposit that takes the place of this one."""
        row = self._db.one(f"{_COLUMNS} WHERE supersedes = ? ORDER BY rowid DESC", deposit_id)
        return _sent(row) if row else None

    def all(self, *states: str) -> list[Sent]:
        """Return our deposits in these states (in every state when none is named), oldest first."""
        where = f" WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        return [_sent(row) for row in self._db.all(f"{_COLUMNS}{where} ORDER BY rowid", *states)]

    def of_key(self, owner: Address, key_id: KeyId) -> list[Sent]:
        """Return all deposits of a shared key, oldest first."""
        rows = self._db.all(f"{_COLUMNS} WHERE owner = ? AND key_id = ? ORDER BY rowid", str(owner), key_id)
        return [_sent(row) for row in rows]

    def classical(self, owner: Address, key_id: KeyId) -> set[Address]:
        """Return the recipients for whom the newest deposit of a key may be wrapped classically."""
        newest = {one.recipient: one.allow_classical for one in self.of_key(owner, key_id)}
        return {recipient for recipient, allowed in newest.items() if allowed}

    def holders(self, owner: Address, key_id: KeyId, now: datetime) -> list[Address]:
        """Return who has, or is getting, any version of a key, and was not removed since."""
        removed = self.removed(owner, key_id)
        return sorted(
            {
                one.recipient
                for one in self.of_key(owner, key_id)
                if (one.state not in NOT_HELD or one.waits_for_certificate(now))
                and one.name.version >= removed.get(one.recipient, 0)
            }
        )

    def removed(self, owner: Address, key_id: KeyId) -> dict[Address, int]:
        """Return who was removed from a key, each with the first version that it does not get."""
        rows = self._db.all(
            "SELECT recipient, max(key_version) FROM removed WHERE owner = ? AND key_id = ? GROUP BY recipient",
            str(owner),
            key_id,
        )
        return {parse_address(recipient): int(version) for recipient, version in rows}

    def is_removed(self, one: Sent) -> bool:
        """Tell whether a deposit's recipient was removed from its key since."""
        row = self._db.one(
            "SELECT 1 FROM removed WHERE owner = ? AND key_id = ? AND recipient = ? AND key_version > ?",
            str(one.name.owner),
            one.name.key_id,
            str(one.recipient),
            one.name.version,
        )
        return row is not None

    def rejected_for_certificate(self, now: datetime) -> list[Sent]:
        """Return what was rejected for a certificate and may be wrapped again, oldest first.

        Not what a newer version has overtaken, nor where another deposit of the same version has come, may come, or
        was taken back.
        """
        where = (
            " AND state = 'rejected' AND expires_at > ? AND NOT EXISTS (SELECT 1 FROM sent AS other"
            " WHERE other.owner = sent.owner AND other.key_id = sent.key_id AND (other.key_version > sent.key_version"
            " OR (other.key_version = sent.key_version AND other.recipient = sent.recipient"
            " AND other.state != 'failed' AND (other.rowid > sent.rowid OR other.state != 'rejected'))))"
        )
        found = map(_sent, self._db.all(f"{_COLUMNS} WHERE NOT {_REMOVED_SINCE}{where} ORDER BY rowid", time_text(now)))
        return [one for one in found if one.waits_for_certificate(now)]

    def to_removed(self, states: Collection[str] | None = None) -> list[Sent]:
        """Return the deposits to who was removed from their key since they were planned: all, or in these states."""
        among = "" if states is None else f" AND state IN ({', '.join('?' * len(states))})"
        rows = self._db.all(f"{_COLUMNS} WHERE {_REMOVED_SINCE}{among} ORDER BY rowid", *(states or ()))
        return [_sent(row) for row in rows]


def _sent(row: Row) -> Sent:
    deposit, recipient, owner, key, version, purpose, expires, planned, supersedes, *rest = row
    state, detail, body, sha512, certificate, receipt, prepared, classical = rest
    return Sent(
        deposit_id=DepositId(deposit),
        recipient=parse_address(recipient),
        name=KeyName(parse_address(owner), KeyId(key), version),
        purpose=purpose,
        expires_at=text_time(expires),
        planned_at=text_time(planned),
        supersedes=DepositId(supersedes) if supersedes else None,
        state=state,
        detail=detail,
        body=body,
        sha512=sha512,
        certificate=certificate,
        receipt=receipt,
        prepared_at=text_time(prepared) if prepared else None,
        allow_classical=bool(classical),
    )
