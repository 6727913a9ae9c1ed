"""Contract of `migrate` beside processes at work: nobody waits for long or is broken off, and nothing is half done."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import create_engine, make_url, text

from pki.core.errors import SettingsError, UnavailableError
from pki.server.store import schema
from pki.server.store.engine import Store
from pki.server.store.migrating import Patience
from pki.server.store.rights import RIGHTS
from tests.contracts.conftest import Databases
from tests.kit.daemons import open_scratch, remove
from tests.kit.processes import wait_until
from tests.kit.services import drop_database, logins, new_database, own_postgres

DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}
SECONDS = 20.0
PATIENCE = 35.0
"""Less than the autovacuum here takes."""
ANOTHERS_SECONDS = 3
"""How long others wait for a lock here: less than the services' ten seconds, and more than any step is in line."""


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """A database without tables; the URL is its owner's."""
    url = new_database(databases.services.postgres.url)
    yield url
    drop_database(url)


@contextlib.contextmanager
def at(url: str, revision: str) -> Iterator[Store]:
    """Bring a database to a revision, and have a store on it."""
    engine = create_engine(make_url(url).set(drivername=DRIVERS["postgresql"]))
    with engine.begin() as connection:
        schema.upgrade(connection, revision)
    engine.dispose()
    with contextlib.closing(Store(url)) as store:
        yield store


@contextlib.contextmanager
def somebody(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else's connection."""
    told = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(told, options=f"-c lock_timeout={ANOTHERS_SECONDS}s") as connection:
        yield connection


def in_line(url: str, table: LiteralString) -> None:
    """Wait until a lock on a table is waited for."""
    waiting = sql.SQL(
        "SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()"
        " WHERE NOT l.granted AND l.relation = {}::regclass"
    ).format(table)
    deadline = time.monotonic() + SECONDS
    with somebody(url) as connection:
        connection.autocommit = True
        while not connection.execute(waiting).fetchone():
            assert time.monotonic() < deadline, f"nobody waits for {table}"
            time.sleep(0.01)


@contextlib.contextmanager
def begun(store: Store, long: psycopg.Connection[Any], url: str = "") -> Iterator[Future[None]]:
    """Migrate in a thread of its own, with logins where the owner's URL is given; in the end ``long`` lets go."""
    api, workers = logins(url) if url else ("", "")
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(store.migrate, api_url=api, workers_url=workers)
        finally:
            long.rollback()


def test_who_comes_later_gets_past_a_migration_that_waits(database: str) -> None:
    """A long transaction keeps the migration from a table, and the migration keeps nobody else from it."""
    with at(database, "0017") as store, somebody(database) as long, somebody(database) as quick:
        long.execute("SELECT count(*) FROM deposits")
        with begun(store, long) as migration:
            in_line(database, "deposits")
            assert quick.execute("SELECT count(*) FROM deposits").fetchone() == (0,)
            quick.commit()
            assert not migration.done()
            long.commit()
            migration.result(SECONDS)
        assert not schema.behind(str(store.schema_version()))


def test_who_comes_later_gets_past_rights_that_wait(database: str) -> None:
    """The same where a table is to be governed for the first time: the rights on the others are given meanwhile."""
    with at(database, "head") as store, somebody(database) as long, somebody(database) as quick:
        long.execute("SELECT count(*) FROM webhooks")
        with begun(store, long, database) as migration:
            in_line(database, "webhooks")
            assert quick.execute("SELECT count(*) FROM webhooks").fetchone() == (0,)
            governed = "SELECT DISTINCT polrelid::regclass::text FROM pg_policy"
            before = list(RIGHTS)[: list(RIGHTS).index("webhooks")]
            assert {name for (name,) in quick.execute(governed)} == set(before) > {"deposits"}
            quick.commit()
            assert not migration.done()
            long.commit()
            migration.result(SECONDS)
        assert store.standing().api is not None
        assert store.standing().faults == ()


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_knot_is_undone_by_the_migration(database: str, broken_off: bool) -> None:
    """Two tables in one order here and in the other there: it lets go, or PostgreSQL breaks it off, and it comes again.

    The other goes on. With ``broken_off`` PostgreSQL looks for knots before the half second is over.
    """
    with at(database, "0010") as store, somebody(database) as long:
        if broken_off:
            name = sql.Identifier(make_url(database).database or "")
            long.execute(sql.SQL("ALTER DATABASE {} SET deadlock_timeout = '400ms'").format(name))
            long.commit()
            long.execute("SET deadlock_timeout = '60s'")
        long.execute("SELECT count(*) FROM events")
        with begun(store, long) as migration:
            # It has deliveries, and waits for events.
            in_line(database, "events")
            long.execute("UPDATE deliveries SET attempts = 0")
            assert not migration.done()
            long.commit()
            migration.result(SECONDS)
        assert not schema.behind(str(store.schema_version()))


def test_who_tells_a_webhook_gets_by(database: str) -> None:
    """Deliveries, then events and jobs: the migration of all three has nothing of it while it waits for the first."""
    with at(database, "0010") as store, somebody(database) as long:
        long.execute("UPDATE deliveries SET attempts = 0")
        with begun(store, long) as migration:
            in_line(database, "deliveries")
            long.execute("SET LOCAL lock_timeout = '1ms'")
            for table in ("events", "jobs"):
                long.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(sql.Identifier(table)))
            long.commit()
            migration.result(SECONDS)


def test_a_migration_that_never_gets_a_table_says_so(database: str) -> None:
    """It names the step and what to do, what was done before stays, and the next run goes on from there."""
    with at(database, "0016") as store, somebody(database) as long:
        # The index of 0017 lets others read; the column of 0018 does not.
        long.execute("SELECT count(*) FROM deposits")
        told: list[str] = []
        with pytest.raises(UnavailableError) as caught:
            store.migrate(patience=Patience(8, told.append))
        assert str(caught.value) == "A table is in use all the time, by somebody's long transaction (migration 0018)"
        assert caught.value.hint.endswith("then: kmb-server migrate")
        assert told == ["migration 0018: a table is in use; trying again for 8 s"]
        assert store.schema_version() == "0017"
        long.commit()
        store.migrate()
        assert not schema.behind(str(store.schema_version()))


def test_rights_that_were_given_up_are_told_and_gone_on_with(database: str) -> None:
    """Between two tables: what is wanting is told, is unavailable and no error, and the next run needs no URLs."""
    api, workers = logins(database)
    with at(database, "head") as store, somebody(database) as long, contextlib.closing(Store(api)) as served:
        long.execute("SELECT count(*) FROM webhooks")
        with pytest.raises(UnavailableError) as caught:
            store.migrate(api_url=api, workers_url=workers, patience=Patience(1))
        assert str(caught.value).endswith("(the rights on webhooks)")
        long.commit()
        assert store.standing().api is not None
        wanting = list(RIGHTS)[list(RIGHTS).index("webhooks") :]
        assert store.standing().faults == tuple(f"{name} is not as this release has it" for name in wanting)
        with pytest.raises(UnavailableError) as refused, served.read() as unit:
            unit.connection.execute(text("SELECT id FROM webhooks"))
        assert refused.value.hint.endswith("kmb-server migrate")
        # Who works there is told the same.
        with contextlib.closing(Store(workers)) as other:
            assert other.standing() == served.standing() == store.standing()
        store.migrate()
        assert store.standing().faults == ()
        with served.read() as unit:
            unit.connection.execute(text("SELECT id FROM webhooks"))


def test_a_right_that_is_another_one_now_is_told(database: str) -> None:
    """Policies that are called as they should be, and were made from other conditions, are made anew."""
    api, workers = logins(database)
    with at(database, "head") as store, somebody(database) as before:
        store.migrate(api_url=api, workers_url=workers)
        before.execute("DROP POLICY keymailbox_select ON deposits")
        before.execute(
            sql.SQL("CREATE POLICY keymailbox_select ON deposits FOR SELECT TO {} USING (true)").format(
                sql.Identifier(make_url(api).username or "")
            )
        )
        before.execute("COMMENT ON POLICY keymailbox_workers ON deposits IS 'of an earlier release'")
        before.commit()
        assert store.standing().faults == ("deposits is not as this release has it",)
        store.migrate()
        assert store.standing().faults == ()
        condition = "SELECT pg_get_expr(polqual, polrelid) FROM pg_policy WHERE polname = 'keymailbox_select'"
        ((found,),) = before.execute(f"{condition} AND polrelid = 'deposits'::regclass").fetchall()
        assert found != "true"


def test_logins_are_looked_at_before_anything_changes(database: str) -> None:
    """Who names one that row-level security cannot hold for is told while the schema is as it was."""
    with at(database, "0009") as store:
        with pytest.raises(SettingsError):
            store.migrate(api_url=database, workers_url=logins(database)[1])
        assert store.schema_version() == "0009"


def test_who_may_become_the_owner_is_refused_where_there_are_no_tables_yet(database: str) -> None:
    """He owns nothing then, and makes nothing: he is found as a member."""
    api, workers = logins(database)
    with somebody(database) as connection, contextlib.closing(Store(database)) as store:
        name = sql.Identifier(make_url(api).username or "")
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN NOINHERIT").format(name))
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(make_url(database).username or ""), name))
        connection.commit()
        with pytest.raises(SettingsError) as caught:
            store.migrate(api_url=api, workers_url=workers)
        assert "it may become the owner" in str(caught.value)
        assert store.schema_version() is None


def test_only_the_owner_migrates(database: str) -> None:
    """Another login is told that it is the wrong one, and what to set; nothing is changed."""
    api, workers = logins(database)
    # Whoever is not the owner may make no tables.
    with somebody(database) as connection:
        name = sql.Identifier(make_url(workers).username or "")
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    refusals = []
    for wanted in ((), (api, workers)):
        if wanted:
            with contextlib.closing(Store(database)) as store:
                store.migrate(api_url=api, workers_url=workers)
        with contextlib.closing(Store(workers)) as store, pytest.raises(SettingsError) as caught:
            store.migrate()
        assert "set KMB_OWNER_DATABASE_URL" in caught.value.hint
        refusals.append(str(caught.value).partition(" (")[0])
    assert refusals == ["The login may not change the schema", "Only the tables' owner may change the schema"]


def test_what_acts_as_the_owner_is_nobody_s_at_first(database: str) -> None:
    """From the migration on that makes them, whether or not logins get their rights after it."""
    with at(database, "0010"), somebody(database) as connection:
        found = connection.execute(
            "SELECT proname, has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc"
            " WHERE prosecdef AND proname LIKE 'keymailbox%' ORDER BY 1"
        ).fetchall()
    assert found == [(f"keymailbox_{name}", False) for name in ("drop_shelf", "make_shelf", "shelves")]


def test_who_was_started_too_early_has_not_counted_in_the_way(databases: Databases, dialect: str) -> None:
    """A process that counted a tenant's share before the migration that counts all of them: they are counted once."""
    url = databases.empty(dialect)
    engine = create_engine(make_url(url).set(drivername=DRIVERS[dialect]))
    row = "INSERT INTO tallies VALUES (:sender, 'globex/main', :deposits, 700, 3, :today, :deposits, 0)"
    with engine.begin() as connection:
        schema.upgrade(connection, "0018")
        for sender, deposits, today in (("acme/eu", 5, 4), ("acme/us", 2, 1), ("acme", 1, 1)):
            connection.execute(text(row), {"sender": sender, "deposits": deposits, "today": today})
    with contextlib.closing(Store(url)) as store:
        store.migrate()
        assert not schema.behind(str(store.schema_version()))
    with engine.begin() as connection:
        found = connection.execute(
            text("SELECT deposits, bytes, day, today, accepted FROM tallies WHERE sender = 'acme'")
        ).all()
    engine.dispose()
    databases.drop(url)
    assert [tuple(one) for one in found] == [(7, 1400, 3, 1, 7)]


@pytest.fixture
def vacuumed() -> Iterator[str]:
    """A database whose nonces are being vacuumed by PostgreSQL itself, for minutes; it has a server of its own."""
    room = open_scratch()
    try:
        server = own_postgres(room)
    except BaseException:
        remove(room)
        raise
    try:
        url = new_database(server.url)
        with at(url, "head"):
            pass
        with somebody(url) as connection:
            connection.autocommit = True
            for statement in (
                "ALTER SYSTEM SET autovacuum_naptime = 1",
                "SELECT pg_reload_conf()",
                # A tenth of a second for each page.
                "ALTER TABLE nonces SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,"
                " autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_cost_delay = 100)",
                "INSERT INTO nonces SELECT 'key', i::text, now() FROM generate_series(1, 100000) AS i",
                "DELETE FROM nonces",
            ):
                connection.execute(statement)
            wait_until(lambda: connection.execute(_VACUUMING).fetchone())
        yield url
    finally:
        server.stop()
        remove(room)


_VACUUMING = (
    "SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.granted"
    " AND l.relation = 'nonces'::regclass AND a.backend_type = 'autovacuum worker'"
)


def test_an_autovacuum_is_no_hindrance(vacuumed: str) -> None:
    """PostgreSQL breaks one off for who stands in line long enough: a step does that now and then."""
    api, workers = logins(vacuumed)
    with contextlib.closing(Store(vacuumed)) as store:
        store.migrate(api_url=api, workers_url=workers, patience=Patience(PATIENCE))
        assert store.standing().faults == ()


def test_several_at_once_migrate_once(database: str) -> None:
    """Those who migrate at the same time take turns: all end well, and the logins have their rights."""
    gate, (api, workers) = threading.Barrier(4), logins(database)

    def migrate() -> None:
        with contextlib.closing(Store(database)) as store:
            gate.wait(SECONDS)
            store.migrate(api_url=api, workers_url=workers)

    with at(database, "0009") as store, ThreadPoolExecutor(gate.parties) as pool:
        for one in [pool.submit(migrate) for _ in range(gate.parties)]:
            one.result(SECONDS * 3)
        assert not schema.behind(str(store.schema_version()))
        assert store.standing().faults == ()


def test_a_later_release_s_database_is_left_as_it_is(databases: Databases, dialect: str) -> None:
    """Who goes back may type what he always does: neither the schema nor anybody's rights are changed."""
    url = databases.migrated(dialect)
    engine = create_engine(make_url(url).set(drivername=DRIVERS[dialect]))
    store = Store(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        if dialect == "postgresql":
            connection.execute(text("DROP POLICY keymailbox_select ON receipts"))
    store.migrate()
    assert store.schema_version() == "9999"
    assert store.standing().faults == ()
    store.close()
    if dialect == "postgresql":
        with engine.begin() as connection:
            kept = connection.execute(text("SELECT polname FROM pg_policy WHERE polrelid = 'receipts'::regclass"))
            assert set(kept.scalars()) == {"keymailbox_insert", "keymailbox_workers"}
    engine.dispose()
    databases.drop(url)


def test_what_a_condition_looks_at_is_given_first() -> None:
    """While rights are given table by table, no condition looks at a table whose rights are still to come."""
    given: set[str] = set()
    found: set[str] = set()
    for name, rights in RIGHTS.items():
        given.add(name)
        said = " ".join(filter(None, (rights.select, rights.insert, rights.update, rights.into, rights.delete)))
        looked_at = set(re.findall(r"FROM (\w+)", said))
        assert looked_at <= given, name
        found |= looked_at
    assert {"deposits", "certificates", "webhooks", "event_audience"} <= found
