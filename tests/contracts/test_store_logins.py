"""Contract of the database's logins: each has its rights and no more, and the API sees its callers' rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from pki.core.errors import SettingsError
from pki.core.tenants import TenantName
from pki.server.store.engine import Store
from pki.server.store.rights import RIGHTS
from pki.server.store.tables import metadata
from tests.contracts.conftest import Databases
from tests.kit.rows import CASES, differences, fill
from tests.kit.services import drop_database, login, logins, new_database


@pytest.fixture(scope="module")
def owned(databases: Databases) -> Iterator[str]:
    """A migrated database whose API and workers have logins of their own, with rows; the URL is its owner's."""
    url = new_database(databases.services.postgres.url)
    try:
        migrate(url)
        with connected(url) as connection:
            fill(connection)
        yield url
    finally:
        drop_database(url)


def migrate(url: str, api: str = "", workers: str = "") -> None:
    """Migrate a database with logins: those of its own, or those that are given."""
    store = Store(url)
    try:
        store.migrate(api_url=api or logins(url)[0], workers_url=workers or logins(url)[1])
    finally:
        store.close()


def connected(url: str) -> psycopg.Connection[Any]:
    """Return a connection to a database by its URL."""
    return psycopg.connect(
        make_url(url).set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
    )


def faults(url: str) -> tuple[str, ...]:
    """Return what keeps row-level security from holding in a database."""
    store = Store(url)
    try:
        return store.standing().faults
    finally:
        store.close()


def name_of(url: str) -> str:
    """Return whom a URL logs in."""
    return make_url(url).username or ""


def test_every_table_is_somebodys() -> None:
    """Each table has rights in store/rights.py and rows in tests/kit/rows.py, and nothing else has."""
    assert set(RIGHTS) == set(metadata.tables) == set(CASES)


def test_the_api_reaches_its_callers_rows_alone(owned: str) -> None:
    """On behalf of each tenant, and of nobody, exactly the rows that are its own are seen, changed, deleted, made."""
    with connected(owned) as connection:
        found = differences(connection, name_of(logins(owned)[0]))
        assert not found, "\n".join(found)


@pytest.mark.parametrize("table", sorted(name for name, one in RIGHTS.items() if one.select not in (None, "true")))
def test_a_policy_that_is_open_is_found(owned: str, table: str) -> None:
    """The check above fails when the rows of one table are everybody's: each policy is what keeps them."""
    with connected(owned) as connection, connection.transaction(force_rollback=True):
        statement = sql.SQL("ALTER POLICY keymailbox_select ON {} USING (true)").format(sql.Identifier(table))
        connection.execute(statement)
        found = differences(connection, name_of(logins(owned)[0]))
    assert any(f"rows of {table}" in one for one in found), found


def test_an_invitation_is_seen_by_who_shows_it(owned: str) -> None:
    """Of all invitations, the one whose reference is shown; whoever shows none, or another, sees none."""
    api = logins(owned)[0]
    with connected(api) as connection:
        for shown, seen in (("invitations-globex-reference", 1), ("another", 0), ("", 0)):
            with connection.transaction():
                connection.execute("SELECT set_config('keymailbox.tenants', 'acme', true)")
                connection.execute("SELECT set_config('keymailbox.invitation', %s, true)", [shown])
                rows = connection.execute("SELECT tenant FROM invitations FOR UPDATE").fetchall()
                assert rows == [("globex",)] * seen


def test_a_scoped_store_is_held(owned: str) -> None:
    """Through the store itself: a scope's rows, nobody's without one, and never those of the scope before."""
    store = Store(logins(owned)[0])
    try:
        assert store.login() == (name_of(logins(owned)[0]), True)

        def seen(of: Store) -> list[str]:
            with of.read() as unit:
                return sorted(unit.connection.exec_driver_sql("SELECT sender FROM idempotency").scalars())

        acme, globex = TenantName("acme"), TenantName("globex")
        assert seen(store) == []
        assert seen(store.scoped([acme])) == ["acme/main"]
        assert seen(store.scoped([globex, acme])) == ["acme/main", "globex/main"]
        assert seen(store.scoped([])) == seen(store) == []
    finally:
        store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE deposits DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE deposits OWNER TO CURRENT_USER",
        "DROP POLICY keymailbox_select ON deposits",
        "CREATE POLICY mine ON deposits USING (true)",
        "CREATE TABLE mine (id text)",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DROP TABLE deposits",
        "TRUNCATE deposits",
        "SELECT rolpassword FROM pg_authid",
        "SELECT * FROM bodies_kept",
        "UPDATE alembic_version SET version_num = '0000'",
        "SET ROLE postgres",
        "SET SESSION AUTHORIZATION postgres",
        "ALTER ROLE CURRENT_USER BYPASSRLS",
        "COPY deposits TO PROGRAM 'cat'",
    ],
)
@pytest.mark.parametrize("who", ["api", "workers"])
def test_neither_login_gets_further(owned: str, who: str, statement: LiteralString) -> None:
    """Neither the API's login nor the workers' changes the schema, the rights, or who it is."""
    url = logins(owned)[who == "workers"]
    with connected(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT body_sha512, subject FROM jobs, deposits",
        "SELECT last_sequence FROM mailboxes",
        "UPDATE deposits SET body = 'x'",
        "UPDATE deposits SET recipient = sender",
        "UPDATE requests SET der = 'x'",
        "SELECT keymailbox_drop_shelf(1)",
        "SELECT keymailbox_shelves()",
    ],
)
def test_the_api_is_kept_from_columns_and_functions(owned: str, statement: LiteralString) -> None:
    """What a job is about, others' counts, what was signed and stored, and the owner's functions are not the API's."""
    with connected(logins(owned)[0]) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT set_config('keymailbox.tenants', 'acme', false)")
        connection.execute(statement)


def test_row_level_security_cannot_be_left_out(owned: str) -> None:
    """Who switches it off for himself is refused the rows, and not given all of them."""
    with connected(logins(owned)[0]) as connection:
        connection.execute("SET row_security = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT id FROM deposits")


def test_workers_have_all_rows(owned: str) -> None:
    """The workers' login reads every row of every table, whoever's it is."""
    with connected(owned) as connection, connected(logins(owned)[1]) as workers:
        for name in metadata.tables:
            statement = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))
            assert workers.execute(statement).fetchone() == connection.execute(statement).fetchone() != (0,), name


def test_migrating_again_changes_nothing(owned: str) -> None:
    """What is as it should be is left alone, whether the logins are named or found; nobody waits for a lock then."""

    def policies() -> list[tuple[Any, ...]]:
        with connected(owned) as connection:
            return connection.execute("SELECT oid, xmin FROM pg_policy ORDER BY oid").fetchall()

    before = policies()
    migrate(owned)
    store = Store(owned)
    store.migrate()
    store.close()
    assert faults(owned) == ()
    assert policies() == before


def test_what_was_dropped_comes_back(owned: str) -> None:
    """A policy that is gone or off is told, and migrating brings it back, for the logins that were there."""
    api = name_of(logins(owned)[0])
    with connected(owned) as connection:
        connection.execute("DROP POLICY keymailbox_select ON receipts")
        connection.execute("ALTER TABLE webhooks DISABLE ROW LEVEL SECURITY")
        assert sorted(fault.split()[0] for fault in faults(owned)) == ["receipts", "webhooks"]
        assert differences(connection, api) != []
        migrate(owned)
        assert faults(owned) == ()
        assert differences(connection, api) == []


def test_logins_that_would_not_be_held_are_refused(owned: str) -> None:
    """One login for two, a superuser, one that may become the owner, another database: SettingsError, and no change."""
    api, workers = logins(owned)
    with connected(owned) as connection:
        able = f"{make_url(owned).database}_able"
        owner = f"{make_url(owned).database}_owner"
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN BYPASSRLS").format(sql.Identifier(able)))
        connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(owner)))
        try:
            for one, other in (
                (owned, workers),
                (api, owned),
                (api, api),
                (login(owned, able), workers),
                (api.replace(f"/{make_url(owned).database}", "/another"), workers),
                ("sqlite:////tmp/x", workers),
            ):
                with pytest.raises(SettingsError):
                    migrate(owned, one, other)
            connection.execute(sql.SQL("ALTER TABLE ticks OWNER TO {}").format(sql.Identifier(owner)))
            statement = sql.SQL("GRANT {} TO {}").format(sql.Identifier(owner), sql.Identifier(name_of(api)))
            connection.execute(statement)
            with pytest.raises(SettingsError, match="may become who does"):
                migrate(owned)
            assert faults(owned) == (f"{name_of(api)}: it owns tables, or may become who does",)
        finally:
            connection.execute("ALTER TABLE ticks OWNER TO CURRENT_USER")
            for name in (able, owner):
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_an_owner_that_may_not_make_logins_says_what_to_type(owned: str, databases: Databases) -> None:
    """Where the administrator makes logins, the error has the statement; once they are there, rights are given."""
    url = new_database(databases.services.postgres.url)
    database = make_url(url).database or ""
    owner = login(url, f"{database}_owner")
    api, workers = logins(url)
    with connected(url) as connection:
        try:
            made = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
            password = make_url(owner).password
            connection.execute(made.format(sql.Identifier(name_of(owner)), sql.Literal(password)))
            grant = sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(name_of(owner)))
            connection.execute(grant)
            with pytest.raises(SettingsError) as caught:
                migrate(owner, api, workers)
            assert f'CREATE ROLE "{name_of(api)}" LOGIN' in caught.value.hint
            for one in (api, workers):
                connection.execute(made.format(sql.Identifier(name_of(one)), sql.Literal(make_url(one).password)))
            migrate(owner, api, workers)
            store = Store(owner)
            try:
                assert store.login() == (name_of(owner), False)
                assert store.standing().faults == ()
            finally:
                store.close()
            fill(connection)
            assert differences(connection, name_of(api)) == []
        finally:
            connection.close()
            drop_database(url)
            with connected(owned) as other:
                other.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name_of(owner))))
