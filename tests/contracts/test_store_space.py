"""What is deleted leaves nothing behind: files and tables do not grow with what has gone through them."""

from __future__ import annotations

import secrets
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Table, event, text

from pki.core.deposits import DepositState
from pki.core.errors import UnavailableError
from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.profiles import FileProfiles
from pki.server.services import retention, rotation
from pki.server.services.deps import Deps
from pki.server.settings import load_settings
from pki.server.store import access, bodies, deposits, outbox, rows, space, tables
from pki.server.store.engine import Store
from tests.kit.facts import NOW, deposit
from tests.kit.mail import Clock

SIZE = 50_000
COUNT = 400
"""Twenty megabytes."""


def _deps(store: Store, home: Path, clock: Clock) -> Deps:
    return Deps(store, load_settings(home=home), clock, PkiLinter(), FileProfiles(home))


def _cycle(deps: Deps, clock: Clock, count: int = COUNT) -> None:
    """Take deposits in with all that comes along, settle them, and let the time pass for which anything is kept."""
    retention.prepare(deps)
    now = clock.now()
    new = [deposit(body=secrets.token_bytes(SIZE), size=SIZE, received_at=now) for _ in range(count)]
    ids = [one.id for one in new]
    with deps.store.unit() as unit:
        deposits.insert(unit, new)
        deposits.insert_idempotency(unit, {(one.sender, one.id): ("ab", one.id) for one in new}, now)
        access.use_nonces(unit, [access.Nonce("key", name, now + timedelta(minutes=5)) for name in ids])
        outbox.add(unit, "validate", "deposit", ids, now=now)
    with deps.store.unit() as unit:
        jobs = outbox.claim(unit, "validate", count, now=now, lease=timedelta(minutes=1))
        deposits.set_state(unit, ids, DepositState.REJECTED, now=now)
        outbox.finish(unit, [job.id for job in jobs])
    clock.go_on(days=45)
    assert retention.retain(deps).deleted == count
    rotation.purge(deps)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_file_gets_smaller_again(store: Store, database_url: str, tmp_path: Path) -> None:
    """Twenty megabytes of bodies are given back to the disk, all but what may be used next."""
    clock = Clock(NOW)
    path = Path(database_url.removeprefix("sqlite:///"))
    with store.read() as unit:
        assert space.shrinks(unit)
    deps = _deps(store, tmp_path, clock)
    with store.unit() as unit:
        deposits.insert(unit, [deposit(body=secrets.token_bytes(SIZE), size=SIZE) for _ in range(COUNT)])
        full = space.size(unit)
        assert full > SIZE * COUNT
        unit.connection.execute(text("UPDATE deposits SET state = 'rejected', settled_at = received_at"))
    clock.go_on(days=45)
    assert retention.retain(deps).deleted == COUNT
    with store.read() as unit:
        assert space.size(unit) < full / 3
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    assert path.stat().st_size < full / 3


def test_nothing_grows_with_what_has_gone_through(store: Store, tmp_path: Path) -> None:
    """After eight rounds, files and tables are as large as after three, but for the rows that stay for good."""
    clock = Clock(NOW)
    deps = _deps(store, tmp_path, clock)
    sizes = []
    for _ in range(8):
        _cycle(deps, clock, 100)
        with store.unit() as unit:
            if store.dialect == "sqlite":
                sizes.append(space.size(unit))
                continue
        sizes.append(_swept(store))
    # What stays is some hundred bytes a deposit: 500 of them since the third round, of 25 megabytes.
    assert sizes[-1] - sizes[2] < 1_000_000, sizes
    with store.read() as unit:
        assert unit.connection.execute(text("SELECT count(*) FROM bodies")).scalar_one() == 0


def _swept(store: Store) -> int:
    """Return how large PostgreSQL's tables are that rows go through, swept as the daemon does."""
    tables = ("jobs", "nonces", "idempotency", "bodies_kept")
    with store._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in tables:
            connection.execute(text(f"VACUUM {table}"))
        return int(
            connection.execute(
                text(
                    "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'"
                    " AND (relname = ANY(:tables) OR relname LIKE 'bodies%')"
                ),
                {"tables": list(tables)},
            ).scalar_one()
        )


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of an earlier release, which gives nothing back, with twenty megabytes deleted from it."""
    path = tmp_path / "old.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("CREATE TABLE filler (content BLOB)")
    connection.executemany("INSERT INTO filler VALUES (?)", [(bytes(SIZE),)] * COUNT)
    connection.execute("DROP TABLE filler")
    connection.commit()
    connection.close()
    return path


def test_an_old_file_is_written_anew_once(old: Path) -> None:
    """From then on it gives pages back; the second time there is nothing to do."""
    store = Store(f"sqlite:///{old}")
    store.migrate()
    with store.unit() as unit:
        before = space.size(unit)
        assert not space.shrinks(unit) and not space.give_back(unit)
    assert store.rewrite() and not store.rewrite()
    with store.unit() as unit:
        assert space.shrinks(unit) and space.size(unit) < before / 3
        assert bodies.apart(unit)
    store.close()


def test_an_old_file_that_is_in_use_is_left_as_it_is(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes at the time is not overtaken: the command says what to do."""
    monkeypatch.setattr("pki.server.store.engine._WAIT_SECONDS", 1)
    store = Store(f"sqlite:///{old}")
    store.migrate()
    other = sqlite3.connect(old, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="written anew") as caught:
        store.rewrite()
    assert "--finish" in caught.value.hint
    other.execute("ROLLBACK")
    other.close()
    assert store.rewrite()
    store.close()


def test_without_room_nothing_is_begun(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy and the journal need as much as the file each: less is said before anything is written."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": old.stat().st_size})())
    store = Store(f"sqlite:///{old}")
    store.migrate()
    with pytest.raises(UnavailableError, match="free disk space"):
        store.rewrite()
    store.close()


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("table", [tables.idempotency, tables.nonces, tables.tallies], ids=lambda table: table.name)
def test_many_keys_are_looked_up_by_index(store: Store, table: Table) -> None:
    """Keys of two columns are found without a look at each row there is."""
    names = tuple(column.name for column in table.primary_key)
    with store.read() as unit:
        told: list[str] = []
        event.listen(unit.connection, "before_cursor_execute", lambda *given: told.append(given[2]))
        rows.select_each(unit, table, [dict.fromkeys(names, "a"), dict.fromkeys(names, "b")])
        places = tuple("x" for _ in range(told[0].count("?")))
        plan = unit.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {told[0]}", places)
        steps = [row.detail for row in plan]
    assert any(step.startswith(f"SEARCH {table.name} USING") for step in steps), steps
    assert not any(step.startswith(f"SCAN {table.name}") for step in steps), steps
