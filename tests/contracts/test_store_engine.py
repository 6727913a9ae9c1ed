"""Contract of the store's door: units, errors, bell and schema."""

from __future__ import annotations

import re
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, make_url, text

from pki.core.errors import ConflictError, KeymailboxError, SettingsError, UnavailableError
from pki.core.tenants import TenantName
from pki.server.store import engine as engine_module
from pki.server.store import outbox, schema, tables, tenants
from pki.server.store.bell import packed
from pki.server.store.engine import Store, Unit
from tests.contracts.conftest import Databases
from tests.kit.facts import NOW, invitation
from tests.kit.threads import together

MIGRATIONS = Path(engine_module.__file__).parent / "migrations"


def test_a_unit_commits_at_its_end(store: Store) -> None:
    """What a unit wrote is there for the next one."""
    with store.unit() as unit:
        assert tenants.insert_tenant(unit, TenantName("acme"), NOW)
    with store.read() as unit:
        assert [tenant.name for tenant in tenants.list_tenants(unit)] == ["acme"]


def test_a_scope_lasts_for_its_unit(store: Store) -> None:
    """A scoped unit tells PostgreSQL for whom it works; the next unit on the same connection works for nobody."""
    acme, globex = TenantName("acme"), TenantName("globex")

    def told(unit: Unit) -> list[str]:
        names = ("keymailbox.tenants", "keymailbox.invitation")
        asked = text("SELECT coalesce(current_setting(:name, true), '')")
        return [unit.connection.execute(asked, {"name": name}).scalar_one() for name in names]

    scoped = store.scoped([globex, acme, acme], invitation="0123456789abcdef")
    with scoped.unit() as unit:
        assert unit.scope is not None and unit.scope.tenants == {acme, globex}
        assert store.dialect == "sqlite" or told(unit) == ["acme,globex", "0123456789abcdef"]
    with scoped.scoped([acme]).read() as unit:
        assert store.dialect == "sqlite" or told(unit) == ["acme", ""]
    with store.read() as unit:
        assert unit.scope is None
        assert store.dialect == "sqlite" or told(unit) == ["", ""]


def test_a_failing_unit_leaves_nothing(store: Store) -> None:
    """An exception rolls everything back: rows, jobs and rings."""
    assert store.bell.connected(30)
    mark = store.bell.mark()
    with pytest.raises(RuntimeError), store.unit() as unit:
        tenants.insert_tenant(unit, TenantName("acme"), NOW)
        outbox.add(unit, "issue", "certificate", ["1"], now=NOW)
        raise RuntimeError
    with store.read() as unit:
        assert tenants.list_tenants(unit) == []
        assert outbox.next_due(unit) is None
    assert not store.bell.wait(["queue:issue"], 0.2, since=mark)


def test_a_reading_unit_writes_nothing(store: Store) -> None:
    """On PostgreSQL the database refuses it; nowhere is it kept for others to see before the end."""
    with store.read() as unit:
        assert not unit.writable
    if store.dialect == "postgresql":
        with pytest.raises(KeymailboxError), store.read() as unit:
            tenants.insert_tenant(unit, TenantName("acme"), NOW)


def test_a_reading_unit_sees_one_snapshot(store: Store) -> None:
    """What is committed meanwhile is not seen in the middle of a read."""
    with store.read() as reading:
        assert tenants.list_tenants(reading) == []
        with store.unit() as writing:
            tenants.insert_tenant(writing, TenantName("acme"), NOW)
        assert tenants.list_tenants(reading) == []
    with store.read() as reading:
        assert len(tenants.list_tenants(reading)) == 1


def test_times_come_back_in_utc_to_the_microsecond(store: Store) -> None:
    """A time in another zone is the same moment; one without a zone is refused."""
    tokyo = NOW.astimezone(timezone(timedelta(hours=9)))
    with store.unit() as unit:
        tenants.insert_tenant(unit, TenantName("acme"), tokyo)
    with store.read() as unit:
        (tenant,) = tenants.list_tenants(unit)
    assert tenant.created_at == NOW
    assert tenant.created_at.utcoffset() == timedelta(0)
    with pytest.raises(KeymailboxError), store.unit() as unit:
        tenants.insert_tenant(unit, TenantName("globex"), datetime(2030, 1, 1))


def test_a_broken_constraint_is_a_conflict_without_values(store: Store) -> None:
    """A foreign key without its row is refused, and the message holds no value."""
    with pytest.raises(ConflictError) as caught, store.unit() as unit:
        tenants.insert_invitation(unit, invitation("nobody"))
    assert "nobody" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_writers_wait_for_each_other(store: Store) -> None:
    """Many writers at once all get through."""

    def write(number: int) -> bool:
        with store.unit() as unit:
            return tenants.insert_tenant(unit, TenantName(f"tenant-{number}"), NOW)

    assert all(together(16, write))
    with store.read() as unit:
        assert len(tenants.list_tenants(unit)) == 16


def test_two_stores_share_a_database(store: Store, database_url: str) -> None:
    """Another process's writes are seen, and its locks are waited for."""
    other = Store(database_url)
    stores = [store, other]

    def write(number: int) -> None:
        for turn in range(10):
            with stores[number % 2].unit() as unit:
                tenants.insert_tenant(unit, TenantName(f"tenant-{number}-{turn}"), NOW)

    together(4, write)
    with other.read() as unit:
        assert len(tenants.list_tenants(unit)) == 40
    other.close()


def test_a_busy_database_is_unavailable(store: Store, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    """Who waits too long for a lock is told to come back."""
    monkeypatch.setattr(engine_module, "_WAIT_SECONDS", 0)
    if store.dialect == "postgresql":
        options = engine_module._POSTGRESQL_OPTIONS.replace("lock_timeout=10s", "lock_timeout=100ms")
        monkeypatch.setattr(engine_module, "_POSTGRESQL_OPTIONS", options)
    impatient = Store(database_url)
    with store.unit() as holding:
        tenants.insert_tenant(holding, TenantName("acme"), NOW)
        with pytest.raises(UnavailableError), impatient.unit() as unit:
            tenants.insert_tenant(unit, TenantName("acme"), NOW)
    impatient.close()


def test_a_database_that_is_away_is_unavailable(databases: Databases, dialect: str) -> None:
    """No driver's error leaves the store, and neither does the address of the database."""
    url = "postgresql://postgres:hunter2@127.0.0.1:1/none"
    if dialect == "sqlite":
        url = f"sqlite:///{databases.directory}/missing/kmb.sqlite"
    store = Store(url)
    for opened in (store.unit, store.read):
        with pytest.raises(UnavailableError) as caught, opened():
            pass
        assert "hunter2" not in repr(caught.value) + str(caught.value.__cause__)
    store.close()


def test_lost_connections_are_replaced(store: Store) -> None:
    """After the database threw everybody out, the next unit works."""
    with store.unit() as unit:
        tenants.insert_tenant(unit, TenantName("acme"), NOW)
    if store.dialect == "postgresql":
        with pytest.raises(UnavailableError), store.unit() as unit:
            tenants.insert_tenant(unit, TenantName("globex"), NOW)
            unit.connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    with store.unit() as unit:
        assert [tenant.name for tenant in tenants.list_tenants(unit)] == ["acme"]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_connections_that_were_closed_meanwhile_are_replaced(store: Store) -> None:
    """Nobody's unit fails because the database threw out connections that nobody used; SQLite throws out nobody."""
    with store.unit() as other, store.unit() as unit:
        tenants.insert_tenant(unit, TenantName("acme"), NOW)
        idle = other.connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with store.unit() as unit, store.unit() as other:
        pids = {one.connection.execute(text("SELECT pg_backend_pid()")).scalar_one() for one in (unit, other)}
        assert idle in pids
    with store.unit() as unit:
        mine = unit.connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        for pid in pids - {mine}:
            assert unit.connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}).scalar_one()
    with store.unit() as unit, store.unit() as other:
        for one in (unit, other):
            assert [tenant.name for tenant in tenants.list_tenants(one)] == ["acme"]


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://h/d", "sqlite://", "sqlite:///:memory:", "oracle://u:pw@h/d"])
def test_other_databases_are_refused(url: str) -> None:
    """The settings are wrong, and the message says what is right without repeating a password."""
    with pytest.raises(SettingsError) as caught:
        Store(url)
    assert "pw" not in str(caught.value)
    assert "KMB_DATABASE_URL" in caught.value.hint


def test_sqlite_is_durable_and_checks_foreign_keys(databases: Databases) -> None:
    """The pragmas that durability rests on are really set."""
    store = Store(databases.empty("sqlite"))
    with store.read() as unit:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            assert unit.connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value
    store.close()


def test_the_bell_rings_after_the_commit(store: Store) -> None:
    """Who waits for a topic wakes at once, and finds what was committed; another topic wakes nobody."""
    assert store.bell.connected(30)
    found: list[int] = []
    ready = threading.Event()

    def wait() -> None:
        mark = store.bell.mark()
        ready.set()
        started = time.monotonic()
        if store.bell.wait(["mailbox:acme/eu-west", "queue:x"], 60, since=mark):
            with store.read() as unit:
                found.append(len(tenants.list_tenants(unit)))
        found.append(int(time.monotonic() - started))

    waiting = threading.Thread(target=wait)
    waiting.start()
    ready.wait(30)
    with store.unit() as unit:
        unit.after_commit("mailbox:globex/main")
    with store.unit() as unit:
        tenants.insert_tenant(unit, TenantName("acme"), NOW)
        unit.after_commit("mailbox:acme/eu-west")
        unit.after_commit("mailbox:acme/eu-west")
    waiting.join(90)
    assert found[0] == 1
    assert found[1] < 30
    assert not store.bell.wait(["mailbox:other/one"], 0.05)


def test_a_ring_between_looking_and_waiting_is_not_missed(store: Store) -> None:
    """The mark taken before looking makes the wait return at once."""
    assert store.bell.connected(30)
    mark = store.bell.mark()
    with store.unit() as unit:
        unit.after_commit("events")
    assert store.bell.wait(["events"], 30, since=mark)
    assert store.bell.wait(["events"], 0, since=mark)
    assert not store.bell.wait(["deposit:1"], 0, since=store.bell.mark())


def test_subscribers_hear_topics_until_they_leave(store: Store) -> None:
    """A callback gets the topic; one that fails harms nobody; after unsubscribing it hears nothing."""
    assert store.bell.connected(30)
    heard: list[str] = []
    came = threading.Event()

    def broken(topic: str) -> None:
        raise ValueError

    def listen(topic: str) -> None:
        heard.append(topic)
        if topic == "queue:issue":
            came.set()

    store.bell.subscribe(broken)
    leave = store.bell.subscribe(listen)
    with store.unit() as unit:
        outbox.add(unit, "issue", "certificate", ["1", "2"], now=NOW)
    assert came.wait(30)
    leave()
    count = len(heard)
    store.bell.ring("queue:issue")
    assert len(heard) == count


def test_a_unit_rings_many_topics(store: Store) -> None:
    """However many they are, each is heard by who waits for it, and by who listens to all."""
    assert store.bell.connected(30)
    topics = [f"deposit:{number:032x}" for number in range(1000)] + ["mailbox:acme/eu-west", "queue:sequence"]
    heard: set[str] = set()
    leave = store.bell.subscribe(heard.add)
    mark = store.bell.mark()
    with store.unit() as unit:
        for topic in topics:
            unit.after_commit(topic)
    assert store.bell.wait([topics[-1]], 10, since=mark)
    assert all(store.bell.wait([topic], 10, since=mark) for topic in topics)
    leave()
    assert heard >= set(topics)


def test_the_topics_of_a_batch_are_few_notifications() -> None:
    """Each is shorter than PostgreSQL allows, and queues go alone, for who knows nothing of packing."""
    topics = [f"deposit:{number:032x}" for number in range(1000)]
    told = packed([*topics, "queue:sequence", "queue:validate"])
    assert told[:2] == ["queue:sequence", "queue:validate"]
    assert [topic for line in told[2:] for topic in line.split("\n")] == topics
    assert len(told) < 9
    assert max(map(len, told)) < 8000
    assert packed([]) == []


def test_the_bell_hears_other_processes_and_reconnects(databases: Databases) -> None:
    """On PostgreSQL another store's commit rings here, also after the listening connection was cut."""
    url = databases.migrated("postgresql")
    here, there = Store(url), Store(url)
    assert here.bell.connected(30)
    mark = here.bell.mark()
    with there.unit() as unit:
        unit.connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = :name"
            ),
            {"name": make_url(url).database},
        )
    # The new connection wakes everybody, because a ring may have been lost with the old one.
    assert here.bell.wait(["events"], 30, since=mark)
    mark = here.bell.mark()
    with there.unit() as unit:
        unit.after_commit("events")
    assert here.bell.wait(["events"], 30, since=mark)
    here.close()
    there.close()
    databases.drop(url)


def test_closing_wakes_who_waits(store: Store) -> None:
    """A process that stops does not wait for its long polls."""
    waiting = threading.Thread(target=store.bell.wait, args=(["events"], 30))
    waiting.start()
    time.sleep(0.2)
    store.close()
    waiting.join(25)
    assert not waiting.is_alive()


def test_migrations_run_once_and_together(databases: Databases, dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes may migrate at once; the second time changes nothing."""
    # SQLite's wait for each other, for as long as the first takes.
    monkeypatch.setattr(engine_module, "_WAIT_SECONDS", 60)
    url = databases.empty(dialect)
    stores = [Store(url) for _ in range(3)]
    assert stores[0].schema_version() is None
    together(3, lambda number: stores[number].migrate())
    stores[0].migrate()
    assert stores[0].schema_version() == ScriptDirectory(str(MIGRATIONS)).get_current_head()
    for store in stores:
        store.close()
    databases.drop(url)


def test_earlier_revisions_are_those_that_alembic_knows() -> None:
    """A process tells from the files' names what it must not start on: it does not load Alembic for that."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    known = {one.revision for one in scripts.walk_revisions()}
    assert len(known) > 1
    assert {one for one in known if schema.behind(one)} == known - {scripts.get_current_head()}
    assert not schema.behind("9999")


def test_without_a_schema_the_store_says_what_to_do(databases: Databases, dialect: str) -> None:
    """The hint is the command that makes the schema, or brings an earlier release's to this one's."""
    url = databases.empty(dialect)
    store = Store(url)

    def refused() -> str:
        with pytest.raises(UnavailableError) as caught, store.read() as unit:
            tenants.list_instances(unit)
        return caught.value.hint

    assert refused() == "kmb-server migrate"
    store.migrate()
    with store.unit() as unit:
        unit.connection.execute(text("ALTER TABLE instances RENAME COLUMN enrolled_at TO before"))
    assert refused() == "kmb-server migrate"
    store.close()
    databases.drop(url)


def test_the_migrations_make_what_the_tables_say(databases: Databases, dialect: str) -> None:
    """Migrated and declared schema are the same to the last index and condition."""
    migrated, declared = databases.migrated(dialect), databases.empty(dialect)
    engine = create_engine(declared)
    tables.metadata.create_all(engine)
    engine.dispose()
    assert _schema(migrated) == _schema(declared)
    databases.drop(migrated)
    databases.drop(declared)


def _clauses(statement: str) -> list[str]:
    # The bracket at the end stands alone, or behind a column that was added last.
    return re.split(r",\s+|\n", statement.removesuffix(")"))


def _schema(url: str) -> object:
    """Return the schema as the database itself describes it, without Alembic's own table."""
    engine = create_engine(url)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE tbl_name <> 'alembic_version'"))
            # The same clauses, in any order and with any line breaks: SQLite keeps the text of CREATE TABLE, and of
            # ALTER TABLE at its end, and quotes renamed tables.
            found: object = sorted(
                (
                    name,
                    sorted(clause for part in _clauses(sql or "") if (clause := part.strip(" \t,").replace('"', ""))),
                )
                for name, sql in rows
            )
        else:
            found = [
                sorted(tuple(map(str, row)) for row in connection.execute(text(query)))
                for query in (
                    "SELECT table_name, column_name, data_type, is_nullable, column_default "
                    "FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'",
                    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
                    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
                    "WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'",
                )
            ]
        assert set(tables.metadata.tables) <= set(inspect(engine).get_table_names())
    engine.dispose()
    return found
