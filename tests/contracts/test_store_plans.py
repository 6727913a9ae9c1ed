"""Row-level security leaves PostgreSQL its indexes: what the API's login reads is found as the owner finds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, make_url

from pki.core.ids import DepositId
from pki.core.tenants import TenantName, parse_address
from pki.server.store import bodies, deposits, events, receipts
from pki.server.store.engine import Store, Unit
from tests.contracts.conftest import Databases
from tests.kit.facts import NOW
from tests.kit.services import drop_database, logins, new_database

ROWS = 20_000
ACME = parse_address("acme/i7")
"""One of two hundred senders, to a hundred recipients."""

_FILL = """
INSERT INTO switches (name) VALUES ('bodies-apart') ON CONFLICT DO NOTHING;
INSERT INTO deposits (id, sender, recipient, state, sequence, body, body_sha256, body_sha512, size, key_id, key_version,
    purpose, signing_time, received_at, expires_at, recipient_ski, sender_ski)
SELECT lpad(n::text, 32, '0'), 'acme/i' || n % 200, 'globex/i' || n % 100, 'available', n / 100 + 1, '', '', '', 1, 'k',
    1, 'p', now(), now() - n * interval '1 second', now() + interval '1 day', 'ski' || n % 100, 'ski'
FROM generate_series(1, %(rows)s) n;
INSERT INTO bodies (deposit_id, week, body) SELECT id, 1, 'x' FROM deposits;
INSERT INTO receipts (deposit_id, sender, number, kind, der, signed_at, stored_at)
SELECT id, sender, row_number() OVER (PARTITION BY sender ORDER BY id), 'receipt', 'x', now(), now() FROM deposits;
INSERT INTO events (id, type, subject, time, data, position)
SELECT id, 'keymailbox.deposit.available', id, now(), '{}', row_number() OVER (ORDER BY id) FROM deposits;
INSERT INTO event_audience (event_id, address, rank, position)
SELECT e.id, d.sender, 0, e.position FROM events e JOIN deposits d ON d.id = e.id;
INSERT INTO event_audience (event_id, address, rank, position)
SELECT e.id, d.recipient, 1, e.position FROM events e JOIN deposits d ON d.id = e.id;
ANALYZE;
"""

READS: dict[str, Callable[[Unit], object]] = {
    "a page of a mailbox": lambda unit: deposits.page(unit, parse_address("globex/i7"), 100, 50),
    "a page of what was sent": lambda unit: deposits.sent(unit, ACME, limit=50),
    "a page of receipts": lambda unit: receipts.of_sender(unit, ACME, after=10, limit=50),
    "a page of events": lambda unit: events.after(unit, 100, 50, audience=ACME),
    "the newest event": lambda unit: events.last_heard(unit, ACME),
    "deposits by id": lambda unit: deposits.many(unit, [DepositId(f"{7 + 200 * n:032}") for n in range(20)]),
    "bodies by id": lambda unit: bodies.fetch(unit, {DepositId(f"{7 + 200 * n:032}"): NOW for n in range(20)}),
    "what waits under a key": lambda unit: deposits.waiting(unit, ["ski7"]),
}


@pytest.fixture(scope="module")
def filled(databases: Databases) -> Iterator[str]:
    """A database with logins, and many rows of many addresses."""
    url = new_database(databases.services.postgres.url)
    try:
        store = Store(url)
        store.migrate(api_url=logins(url)[0], workers_url=logins(url)[1])
        store.close()
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            for statement in _FILL.replace("%(rows)s", str(ROWS)).split(";\n"):
                if statement.strip():
                    connection.execute(statement.encode())
        yield url
    finally:
        drop_database(url)


def plans(store: Store, read: Callable[[Unit], object]) -> list[dict[str, Any]]:
    """Return the nodes of the plans of what a function of the store asks, as they were executed."""
    asked: list[tuple[str, Any]] = []
    nodes: list[dict[str, Any]] = []

    def overhear(_c: Any, _u: Any, statement: str, parameters: Any, _x: Any, _m: bool) -> None:
        asked.append((statement, parameters))

    with store.read() as unit:
        event.listen(unit.connection, "before_cursor_execute", overhear)
        read(unit)
        event.remove(unit.connection, "before_cursor_execute", overhear)
        for statement, parameters in asked:
            explained = unit.connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            found = explained.scalar_one()
            told = json.loads(found) if isinstance(found, str) else found
            waiting = [told[0]["Plan"]]
            while waiting:
                node = waiting.pop()
                nodes.append(node)
                waiting += node.get("Plans", [])
    return nodes


@pytest.mark.parametrize("name", READS)
def test_the_api_reads_by_an_index(filled: str, name: str) -> None:
    """No table is read through, and hardly a row is fetched only to be left out; policies do not change the way in."""
    store, owner = Store(logins(filled)[0]), Store(filled)
    try:
        assert store.login()[1]
        held = plans(store.scoped([TenantName("acme"), TenantName("globex")]), READS[name])
        free = plans(owner, READS[name])
    finally:
        store.close()
        owner.close()
    assert held and free
    scanned = [node["Relation Name"] for node in held if node["Node Type"] == "Seq Scan" and node["Actual Rows"] > 100]
    assert scanned == []
    removed = sum(node.get("Rows Removed by Filter", 0) for node in held)
    assert removed <= 100 + sum(node.get("Rows Removed by Filter", 0) for node in free)

    def indexes(nodes: list[dict[str, Any]]) -> set[str]:
        return {node["Index Name"] for node in nodes if "Index Name" in node}

    assert indexes(free) <= indexes(held)
