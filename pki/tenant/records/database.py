"""The journal's file: SQLite in WAL mode with full synchronisation; one transaction for each step."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pki.core.errors import SettingsError, UnavailableError
from pki.tenant import disk

_VERSION = 7
_ISSUERS = (
    "CREATE TABLE issuers (ski TEXT PRIMARY KEY, der BLOB NOT NULL, relied_until TEXT NOT NULL,"
    " first_seen TEXT NOT NULL)"
)
_LISTS = "CREATE TABLE lists (ski TEXT PRIMARY KEY, number INTEGER NOT NULL, der BLOB NOT NULL)"
_ROTATIONS = (
    "CREATE TABLE rotations (owner TEXT NOT NULL, key_id TEXT NOT NULL, key_version INTEGER NOT NULL,"
    " state TEXT NOT NULL, purpose TEXT NOT NULL, lifetime REAL NOT NULL, deadline TEXT, holders TEXT NOT NULL,"
    " removed TEXT NOT NULL, classical TEXT NOT NULL, started_at TEXT NOT NULL,"
    " PRIMARY KEY (owner, key_id, key_version))"
)
_TAKING = (
    "CREATE TABLE taking (deposit_id TEXT PRIMARY KEY, sequence INTEGER NOT NULL, sender TEXT NOT NULL,"
    " sha512 BLOB NOT NULL, owner TEXT NOT NULL, key_id TEXT NOT NULL, key_version INTEGER NOT NULL,"
    " size INTEGER NOT NULL, noted_at TEXT NOT NULL, UNIQUE (owner, key_id, key_version))"
)
_ALONE = "ALTER TABLE taking ADD COLUMN alone INTEGER NOT NULL DEFAULT 0"
_SCHEMA = (
    "CREATE TABLE pins (address TEXT PRIMARY KEY, identity_key BLOB NOT NULL, how TEXT NOT NULL,"
    " pinned_at TEXT NOT NULL)",
    "CREATE TABLE pin_changes (id INTEGER PRIMARY KEY, address TEXT NOT NULL, before BLOB NOT NULL,"
    " after BLOB NOT NULL, changed_at TEXT NOT NULL)",
    "CREATE TABLE requests (id TEXT PRIMARY KEY, kind TEXT NOT NULL, der BLOB NOT NULL, ski TEXT NOT NULL,"
    " state TEXT NOT NULL, created_at TEXT NOT NULL)",
    "CREATE TABLE certificates (fingerprint TEXT PRIMARY KEY, kind TEXT NOT NULL, der BLOB NOT NULL,"
    " ski TEXT NOT NULL, state TEXT NOT NULL, not_before TEXT NOT NULL, not_after TEXT NOT NULL,"
    " stored_at TEXT NOT NULL)",
    "CREATE TABLE sent (deposit_id TEXT PRIMARY KEY, recipient TEXT NOT NULL, owner TEXT NOT NULL,"
    " key_id TEXT NOT NULL, key_version INTEGER NOT NULL, purpose TEXT NOT NULL, expires_at TEXT NOT NULL,"
    " state TEXT NOT NULL, body BLOB, sha512 BLOB, certificate TEXT, detail TEXT NOT NULL, supersedes TEXT,"
    " receipt BLOB, planned_at TEXT NOT NULL, prepared_at TEXT, allow_classical INTEGER NOT NULL DEFAULT 0)",
    "CREATE INDEX sent_by_key ON sent (owner, key_id, key_version)",
    "CREATE INDEX sent_by_state ON sent (state)",
    "CREATE UNIQUE INDEX sent_once_instead ON sent (supersedes) WHERE state NOT IN ('failed', 'rejected')",
    "CREATE TABLE removed (owner TEXT NOT NULL, key_id TEXT NOT NULL, recipient TEXT NOT NULL,"
    " key_version INTEGER NOT NULL, PRIMARY KEY (owner, key_id, recipient, key_version))",
    "CREATE TABLE seen (deposit_id TEXT PRIMARY KEY, sequence INTEGER NOT NULL UNIQUE, sender TEXT NOT NULL,"
    " sha512 BLOB NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL, answer BLOB NOT NULL, answered INTEGER NOT NULL,"
    " decided_at TEXT NOT NULL)",
    "CREATE TABLE marks (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE holes (sequence INTEGER PRIMARY KEY, noticed_at TEXT NOT NULL, filled_at TEXT)",
    "CREATE TABLE alarms (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL,"
    " raised_at TEXT NOT NULL, seen_at TEXT, UNIQUE (kind, subject))",
    _ISSUERS,
    _LISTS,
    _ROTATIONS,
    _TAKING,
    _ALONE,
)
_UPGRADES = {
    1: "ALTER TABLE sent ADD COLUMN allow_classical INTEGER NOT NULL DEFAULT 0",
    2: _ISSUERS,
    3: _LISTS,
    4: _ROTATIONS,
    5: _TAKING,
    6: _ALONE,
}
"""What makes the next version of an earlier one; each adds, so that nothing that was written is lost."""

Row = tuple[Any, ...]


class Database:
    """One open journal file. Several processes may have it open; one writes at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it with all its tables."""
        disk.private_folder(path.parent)
        self._lock = threading.RLock()
        self._path = path
        hint = "restore it from your backup, or enrol again under another name"
        try:
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            with self.write() as db:
                version = int(db.execute("PRAGMA user_version").fetchone()[0])
                if version == 0:
                    for statement in _SCHEMA:
                        db.execute(statement)
                for earlier in range(version or _VERSION, _VERSION):
                    db.execute(_UPGRADES[earlier])
                if version < _VERSION:
                    db.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.OperationalError as error:
            # Not damaged: a disk that is full, or where we may not write.
            raise _unwritten(error, path) from None
        except sqlite3.DatabaseError as error:
            raise SettingsError("The journal cannot be opened", on=f"{path}: {error}", hint=hint) from None
        if version > _VERSION:
            self.close()
            raise SettingsError("The journal was written by a newer release", on=str(path), hint="kmb version")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def check(self) -> None:
        """Raise SettingsError when the file is damaged."""
        told = str(self._db.execute("PRAGMA quick_check").fetchone()[0])
        if told != "ok":
            raise SettingsError("The journal is damaged", on=told[:200], hint="restore it from your backup")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on the disk when the block ends, without effect when it raises."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                raise UnavailableError("The journal is busy", on=str(error), hint="try again") from None
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                # A full disk has rolled back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise _unwritten(error, self._path) from None
                raise

    def one(self, query: str, *values: object) -> Row | None:
        """Return the first row, if there is one."""
        with self._lock:
            try:
                row: Row | None = self._db.execute(query, values).fetchone()
            except sqlite3.OperationalError as error:
                raise _unread(error, self._path) from None
        return row

    def all(self, query: str, *values: object) -> list[Row]:
        """Return all rows."""
        with self._lock:
            try:
                return list(self._db.execute(query, values))
            except sqlite3.OperationalError as error:
                raise _unread(error, self._path) from None


def _unwritten(error: sqlite3.OperationalError, path: Path) -> UnavailableError:
    hint = "df -h, and who may write there; then the same again"
    return UnavailableError("The journal cannot be written", on=f"{path}: {error}", hint=hint)


def _unread(error: sqlite3.OperationalError, path: Path) -> UnavailableError:
    return UnavailableError("The journal cannot be read", on=f"{path}: {error}", hint="kmb doctor")


def time_text(moment: datetime) -> str:
    """Return a time as text that sorts."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def text_time(text: str) -> datetime:
    """Return the time in a text."""
    return datetime.fromisoformat(text)
