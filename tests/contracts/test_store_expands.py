"""Migrations expand: what the previous release reads and writes is there after them, as it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, MetaData, Table, create_engine, make_url
from sqlalchemy.types import TypeEngine

from pki.server.store.engine import Store
from tests.contracts.conftest import Databases
from tests.kit.previous import unpack

_KNOWN = {"table crls has another primary key", "table crls has no constraint on number any more"}
"""Lists are numbered by their issuer now. The previous release names no column where it inserts, so it goes on; a list
that its issuer makes after `migrate` is shown by its API alone, until ours makes the next (docs/operations.md)."""
_MIGRATE = "import sys; from pki.server.store.engine import Store; Store(sys.argv[1]).migrate()"
_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The previous release's code."""
    return unpack(tmp_path_factory.mktemp("previous") / "code")


@pytest.fixture
def engine(databases: Databases, dialect: str, code: Path) -> Iterator[Engine]:
    """A database as the previous release has it."""
    url = databases.empty(dialect)
    subprocess.run([sys.executable, "-c", _MIGRATE, url], cwd=code, check=True, timeout=60)
    found = create_engine(make_url(url).set(drivername=_DRIVERS[dialect]))
    yield found
    found.dispose()
    databases.drop(url)


def reflected(engine: Engine) -> dict[str, Table]:
    """Return the tables that a database has."""
    found = MetaData()
    found.reflect(engine)
    return dict(found.tables)


def written(kind: TypeEngine[object], engine: Engine) -> str:
    """Return a type as the database writes it."""
    return kind.compile(engine.dialect)


def broken(before: dict[str, Table], after: dict[str, Table], engine: Engine) -> list[str]:
    """Return what a release that knows the tables of before would stumble over."""
    faults: list[str] = []
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            faults.append(f"table {name} is gone")
            continue
        for column in old.columns:
            kept = new.columns.get(column.name)
            if kept is None:
                faults.append(f"column {name}.{column.name} is gone")
            elif written(kept.type, engine) != written(column.type, engine):
                faults.append(f"column {name}.{column.name} is of another type")
            elif column.nullable and not kept.nullable:
                faults.append(f"column {name}.{column.name} must not be null any more")
        faults += [
            f"column {name}.{column.name} is new, must not be null and has no default"
            for column in new.columns
            if column.name not in old.columns and not column.nullable and column.server_default is None
        ]
        if [one.name for one in old.primary_key] != [one.name for one in new.primary_key]:
            faults.append(f"table {name} has another primary key")
        kept_unique = {frozenset(one.name for one in index.columns) for index in new.indexes if index.unique}
        kept_unique |= {frozenset(c.name for c in one.columns) for one in new.constraints if hasattr(one, "columns")}
        for constraint in old.constraints:
            columns = frozenset(one.name for one in getattr(constraint, "columns", ()))
            if columns and columns not in kept_unique:
                # ON CONFLICT names columns that have to be unique together.
                faults.append(f"table {name} has no constraint on {', '.join(sorted(columns))} any more")
    return faults


def test_what_the_previous_release_uses_is_there(engine: Engine) -> None:
    """No table, column, key or constraint is gone or narrower but those known, and what is new fills itself."""
    before = reflected(engine)
    assert {"deposits", "jobs", "events"} <= set(before)
    store = Store(engine.url.render_as_string(hide_password=False))
    store.migrate()
    store.close()
    engine.dispose()
    # Exactly these: one that was mended is struck off here, too.
    assert set(broken(before, reflected(engine), engine)) == _KNOWN


def test_a_contraction_is_found(engine: Engine) -> None:
    """What would break the previous release is told: a column dropped, renamed or demanded, a table that is gone."""
    before = reflected(engine)
    with engine.begin() as connection:
        for statement in (
            "ALTER TABLE webhooks RENAME COLUMN url TO address_of",
            "ALTER TABLE jobs DROP COLUMN error",
            "DROP TABLE ticks",
        ):
            connection.exec_driver_sql(statement)
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("ALTER TABLE requests ALTER COLUMN reason SET NOT NULL")
            connection.exec_driver_sql("ALTER TABLE deposits ALTER COLUMN size TYPE text")
            connection.exec_driver_sql("ALTER TABLE deposits DROP CONSTRAINT uq_deposits_recipient")
    found = broken(before, reflected(engine), engine)
    expected = {
        "column webhooks.url is gone",
        "column webhooks.address_of is new, must not be null and has no default",
        "column jobs.error is gone",
        "table ticks is gone",
    }
    if engine.dialect.name == "postgresql":
        expected |= {
            "column requests.reason must not be null any more",
            "column deposits.size is of another type",
            "table deposits has no constraint on recipient, sequence any more",
        }
    assert set(found) == expected
