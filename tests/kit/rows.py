"""Rows of three tenants in every table, and which of them the API may see and change on behalf of whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Integer, LargeBinary, Table

from pki.server.store.columns import Utc
from pki.server.store.tables import metadata

ACME, GLOBEX, INITECH = "acme", "globex", "initech"
TENANTS = (ACME, GLOBEX, INITECH)
NOBODY = ""
EVERYBODY = frozenset(TENANTS)
_NONE: frozenset[str] = frozenset()

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """Rows of one table by name; on behalf of a tenant the API sees, changes and deletes those that are listed.

    A scope that is not listed has none of them. ``new`` are rows to be inserted on behalf of acme, ``refused`` those
    that must not be.
    """

    rows: Mapping[str, Row]
    seen: Mapping[str, Iterable[str]] = field(default_factory=dict)
    changed: Mapping[str, Iterable[str]] = field(default_factory=dict)
    deleted: Mapping[str, Iterable[str]] = field(default_factory=dict)
    new: tuple[Row, ...] = ()
    refused: tuple[Row, ...] = ()


def _each(column: str, form: str = "{}/main", **more: Any) -> dict[str, Row]:
    """One row for each tenant, named after it."""
    return {name: {column: form.format(name), **more} for name in TENANTS}


_OWN = {name: {name} for name in TENANTS}
_ALL: Mapping[str, Iterable[str]] = dict.fromkeys((*TENANTS, NOBODY), EVERYBODY)
# From acme to globex: one that is numbered, one that is not; and one that concerns neither.
_MAIL: Mapping[str, Row] = {
    "sent": {"id": "1" * 32, "sender": "acme/main", "recipient": "globex/main", "state": "available", "sequence": 1},
    "new": {"id": "2" * 32, "sender": "acme/main", "recipient": "globex/main", "state": "received", "sequence": None},
    "other": {
        "id": "3" * 32,
        "sender": "initech/main",
        "recipient": "initech/spy",
        "state": "available",
        "sequence": 1,
    },
}
_MAIL_SEEN = {ACME: {"sent", "new"}, GLOBEX: {"sent"}, INITECH: {"other"}}
_OF_MAIL: Mapping[str, Row] = {name: {"deposit_id": row["id"]} for name, row in _MAIL.items()}
_ANYBODYS: Mapping[str, Row] = {name: {} for name in TENANTS}

_TALLIES: Mapping[str, Row] = {
    "sent": {"sender": "acme/main", "recipient": ""},
    "mailbox": {"sender": "", "recipient": "globex/main"},
    "pair": {"sender": "acme/main", "recipient": "globex/main"},
    "share": {"sender": "acme", "recipient": "globex/main"},
    "other": {"sender": "initech/a", "recipient": "initech/b"},
}
_TOTALS = {"sent", "mailbox"}
_BOTH = {"pair", "share"}
_TALLIES_SEEN = {ACME: _TOTALS | _BOTH, GLOBEX: _TOTALS | _BOTH, INITECH: _TOTALS | {"other"}, NOBODY: _TOTALS}

CASES: Mapping[str, Case] = {
    "tenants": Case(_each("name", "{}"), seen=_OWN, refused=({"name": "acme"}, {"name": "umbrella"})),
    "invitations": Case(_each("tenant", "{}"), refused=({"tenant": "acme"},)),
    "instances": Case(
        {name: {"address": f"{name}/main", "tenant": name} for name in TENANTS},
        seen=_ALL,
        changed=_OWN,
        new=({"address": "acme/new", "tenant": "acme"},),
        refused=(
            {"address": "globex/new", "tenant": "globex"},
            {"address": "globex/new", "tenant": "acme"},
            {"address": "acme/new", "tenant": "globex"},
        ),
    ),
    "nonces": Case(_ANYBODYS, seen=_ALL, new=({},)),
    "requests": Case(
        _each("address", state="pending", serial=None, tbs=None),
        seen=_OWN,
        changed=_OWN,
        new=({"address": "acme/main", "serial": None, "tbs": None, "challenge": None},),
        refused=(
            {"address": "globex/main", "serial": None, "tbs": None, "challenge": None},
            {"address": "acme/main", "serial": "ab", "tbs": None, "challenge": None},
        ),
    ),
    "certificates": Case(
        _each("address", state="active", kind="encryption")
        | {f"{name}-unproved": {"address": f"{name}/main", "state": "unproved"} for name in TENANTS},
        seen={name: {*TENANTS, f"{name}-unproved"} for name in TENANTS} | {NOBODY: EVERYBODY},
        changed={name: {name, f"{name}-unproved"} for name in TENANTS},
        refused=({"address": "acme/main", "state": "unproved"},),
    ),
    "reminders": Case(_ANYBODYS, refused=({},)),
    "orders": Case({name: {"kind": "lift"} for name in TENANTS}, refused=({"kind": "lift"},)),
    "revocations": Case(
        {name: {"fingerprint": f"certificates-{name}-fingerprint"} for name in TENANTS},
        seen=_OWN,
        new=({"fingerprint": "certificates-acme-unproved-fingerprint", "evidence": "owner", "order_id": None},),
        refused=(
            {"fingerprint": "certificates-globex-unproved-fingerprint", "evidence": "owner", "order_id": None},
            {"fingerprint": "certificates-acme-unproved-fingerprint", "evidence": "order", "order_id": None},
            {
                "fingerprint": "certificates-acme-unproved-fingerprint",
                "evidence": "owner",
                "order_id": "orders-acme-id",
            },
        ),
    ),
    "crls": Case(_ANYBODYS, seen=_ALL, refused=({},)),
    "ocsp_responses": Case(
        _ANYBODYS, seen=_ALL, new=({"der": None, "status": None},), refused=({"der": b"forged", "status": "good"},)
    ),
    "ocsp_questions": Case(
        _ANYBODYS, seen=_ALL, deleted=_ALL, new=({"response": None},), refused=({"response": b"forged"},)
    ),
    "cmp_exchanges": Case(
        _ANYBODYS,
        seen=_ALL,
        changed=_ALL,
        deleted=_ALL,
        new=({"response": None},),
        refused=({"response": b"forged"},),
    ),
    "cmp_transactions": Case(_each("address"), refused=({"address": "acme/main"},)),
    "mailboxes": Case(
        _each("address"),
        seen=_ALL,
        changed=_ALL,
        new=({"address": "umbrella/main", "last_sequence": 0},),
        refused=({"address": "umbrella/main", "last_sequence": 7},),
    ),
    "deposits": Case(
        _MAIL,
        seen=_MAIL_SEEN,
        changed=_MAIL_SEEN,
        new=({"sender": "acme/main", "recipient": "globex/main", "state": "received", "sequence": None},),
        refused=(
            {"sender": "globex/main", "recipient": "acme/main", "state": "received", "sequence": None},
            {"sender": "acme/main", "recipient": "globex/main", "state": "available", "sequence": None},
            {"sender": "acme/main", "recipient": "globex/main", "state": "received", "sequence": 9},
        ),
    ),
    "bodies": Case(
        _OF_MAIL,
        seen=_MAIL_SEEN,
        new=({"deposit_id": _MAIL["sent"]["id"]},),
        refused=({"deposit_id": _MAIL["other"]["id"]}, {"deposit_id": "4" * 32}),
    ),
    "counterfoils": Case(_OF_MAIL, seen=_MAIL_SEEN, refused=({},)),
    "switches": Case(_ANYBODYS, seen=_ALL, refused=({},)),
    "idempotency": Case(
        _each("sender"), seen=_OWN, new=({"sender": "acme/main"},), refused=({"sender": "globex/main"},)
    ),
    "receipts": Case(
        {name: {"deposit_id": row["id"], "sender": row["sender"]} for name, row in _MAIL.items()},
        seen=_MAIL_SEEN,
        refused=(
            # As the sender of it; for what is somebody else's; and by somebody else's count.
            {"deposit_id": _MAIL["sent"]["id"], "sender": "acme/main"},
            {"deposit_id": _MAIL["other"]["id"], "sender": "initech/a"},
            {"deposit_id": "4" * 32, "sender": "globex/main"},
        ),
    ),
    "limits": Case(_each("subject", "{}"), seen=_ALL, refused=({"subject": "acme"},)),
    "policies": Case(
        _each("address", senders="listed"),
        seen=_ALL,
        changed=_OWN,
        new=({"address": "acme/new", "senders": "anyone"},),
        refused=({"address": "globex/new", "senders": "anyone"},),
    ),
    "listed_senders": Case(
        # Who takes whom.
        {
            "acme-globex": {"address": "acme/main", "sender": "globex"},
            "globex-acme": {"address": "globex/main", "sender": "acme/main"},
            "globex-initech": {"address": "globex/main", "sender": "initech"},
        },
        seen={
            ACME: {"acme-globex", "globex-acme"},
            GLOBEX: {"acme-globex", "globex-acme", "globex-initech"},
            INITECH: {"globex-initech"},
        },
        deleted={ACME: {"acme-globex"}, GLOBEX: {"globex-acme", "globex-initech"}},
        new=({"address": "acme/main", "sender": "initech"},),
        refused=({"address": "globex/main", "sender": "acme"},),
    ),
    "tallies": Case(
        _TALLIES,
        seen=_TALLIES_SEEN,
        changed=_TALLIES_SEEN,
        new=({"sender": "acme/main", "recipient": "initech/a"}, {"sender": "", "recipient": "initech/a"}),
        refused=({"sender": "globex/main", "recipient": "initech/a"},),
    ),
    "jobs": Case(
        _ANYBODYS,
        seen=_ALL,
        new=({"dead_at": None, "lease_until": None},),
        refused=({"dead_at": datetime.now(UTC), "lease_until": None},),
    ),
    "events": Case(
        {name: {"id": f"event-{name}"} for name in TENANTS},
        seen=_OWN,
        new=({"position": None, "chain": None},),
        refused=({"position": 99, "chain": None}, {"position": None, "chain": b"forged"}),
    ),
    "event_audience": Case(
        {name: {"event_id": f"event-{name}", "address": f"{name}/main"} for name in TENANTS},
        seen=_OWN,
        new=({"event_id": "event-acme", "address": "globex/main", "position": None},),
        refused=({"event_id": "event-acme", "address": "globex/other", "position": 7},),
    ),
    "cursors": Case(_ANYBODYS, refused=({},)),
    "webhooks": Case(
        _each("address"),
        seen=_OWN,
        deleted=_OWN,
        new=({"address": "acme/main"},),
        refused=({"address": "globex/main"},),
    ),
    "deliveries": Case(
        {name: {"webhook_id": f"webhooks-{name}-id", "state": "pending"} for name in TENANTS},
        seen=_OWN,
        refused=({"webhook_id": "webhooks-acme-id", "state": "pending"},),
    ),
    "ticks": Case(_ANYBODYS, refused=({},)),
    "leases": Case(_ANYBODYS, refused=({},)),
}
"""Of every table. A new one goes here and into store/rights.py: whose are its rows, and what does the API do there?"""


def fill(connection: psycopg.Connection[Any]) -> None:
    """Put the rows of all cases, and no others, into a database, as its owner."""
    with connection.transaction():
        # As a replica checks no foreign keys.
        connection.execute("SET LOCAL session_replication_role = replica")
        for name, case in CASES.items():
            connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(name)))
            for place, (label, given) in enumerate(case.rows.items()):
                insert(connection, metadata.tables[name], given, label, place)


def insert(connection: psycopg.Connection[Any], table: Table, given: Row, label: str, place: int) -> int:
    """Insert a row with the columns that are given, and of all others something that fits and names ``label``."""
    row = {column.name: _value(table, column, label, place) for column in table.columns} | dict(given)
    counter = table.autoincrement_column
    if counter is not None and counter.autoincrement is not False:
        row.pop(counter.name)
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table.name),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(sql.Placeholder() * len(row)),
    )
    return connection.execute(statement, list(row.values())).rowcount


def differences(connection: psycopg.Connection[Any], api: str) -> list[str]:
    """Return where what the API's login can do differs from the cases; leaves all as it was."""
    found: list[str] = []
    for name, case in CASES.items():
        table = metadata.tables[name]
        for scope in (*TENANTS, NOBODY):
            for verb, expected in (("see", case.seen), ("change", case.changed), ("delete", case.deleted)):
                wanted = len(set(expected.get(scope, _NONE)))
                got = _reached(connection, api, scope, _statement(connection, api, table, verb))
                if got != wanted:
                    found.append(f"{scope or 'nobody'} can {verb} {got} rows of {name}, not {wanted}")
        for rows, wanted in ((case.new, 1), (case.refused, 0)):
            for row in rows:
                got = _reached(connection, api, ACME, (table, row))
                if got != wanted:
                    found.append(f"acme can insert {got} rows into {name}, not {wanted}: {dict(row)}")
    return found


def _reached(
    connection: psycopg.Connection[Any], api: str, scope: str, what: sql.Composed | tuple[Table, Row] | None
) -> int:
    """Return how many rows a statement of the API's reaches on somebody's behalf; nothing of it stays."""
    if what is None:
        return 0
    with connection.transaction(force_rollback=True):
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(api)))
        if scope:
            connection.execute("SELECT set_config('keymailbox.tenants', %s, true)", [scope])
        try:
            with connection.transaction():
                return insert(connection, *what, "new", 50) if isinstance(what, tuple) else _count(connection, what)
        except psycopg.errors.InsufficientPrivilege:
            return 0


def _count(connection: psycopg.Connection[Any], statement: sql.Composed) -> int:
    return connection.execute(statement).rowcount


def _statement(connection: psycopg.Connection[Any], api: str, table: Table, verb: str) -> sql.Composed | None:
    """Return what reaches all rows that there are to reach, by a column that the API may name."""
    right = {"see": "SELECT", "change": "UPDATE", "delete": "SELECT"}[verb]
    row = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
        " AND has_column_privilege(%s, attrelid, attnum, %s) ORDER BY attnum LIMIT 1",
        [table.name, api, right],
    ).fetchone()
    if row is None:
        return None
    form = {"see": "SELECT {1} FROM {0}", "change": "UPDATE {0} SET {1} = {1}", "delete": "DELETE FROM {0}"}[verb]
    return sql.SQL(form).format(sql.Identifier(table.name), sql.Identifier(row[0]))  # type: ignore[arg-type]


def _value(table: Table, column: Any, label: str, place: int) -> Any:
    kind = column.type
    if isinstance(kind, Utc):
        return datetime(2026, 11, 1, tzinfo=UTC)
    if isinstance(kind, LargeBinary):
        return f"{table.name}-{label}-{column.name}".encode()
    if isinstance(kind, Integer):
        return place
    return f"{table.name}-{label}-{column.name}"
