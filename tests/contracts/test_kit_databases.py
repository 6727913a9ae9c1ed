"""A database that is used again cannot be told from a new one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import make_url

from pki.core.tenants import TenantName
from pki.server.store import outbox, tenants
from pki.server.store.engine import Store
from tests.contracts.conftest import Databases

NOW = datetime(2030, 5, 17, tzinfo=UTC)


def _write(url: str) -> int:
    """Write a tenant and a job, and return the job's number."""
    store = Store(url)
    try:
        with store.unit() as unit:
            assert tenants.list_tenants(unit) == []
            tenants.insert_tenant(unit, TenantName("acme"), NOW)
            outbox.add(unit, "validate", "deposit", ["one"], now=NOW)
            return outbox.claim(unit, "validate", 10, now=NOW, lease=timedelta(minutes=1))[0].id
    finally:
        store.close()


def test_rows_and_numbers_are_gone(databases: Databases) -> None:
    """What one test wrote, the next does not see, and its numbers begin where the first one's began."""
    first = databases.migrated("postgresql")
    number = _write(first)
    databases.give_back(first)
    second = databases.migrated("postgresql")
    assert second == first
    assert _write(second) == number
    databases.give_back(second)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE tenants ADD COLUMN more text",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TABLE other (id int)",
        "ALTER TABLE receipts DROP CONSTRAINT uq_receipts_sender",
        "UPDATE alembic_version SET version_num = '0001'",
        "GRANT SELECT ON tenants TO PUBLIC",
    ],
)
def test_a_changed_schema_is_not_used_again(databases: Databases, change: str) -> None:
    """A database whose schema a test has changed is dropped."""
    url = databases.migrated("postgresql")
    server = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(change.encode())
    databases.give_back(url)
    assert url not in databases.spare
    assert url not in databases.made
