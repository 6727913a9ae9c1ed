"""Every contract is proved on both databases: SQLite in a file, and a PostgreSQL server that really runs."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from pki.server.api import shares
from pki.server.store import engine
from pki.server.store.engine import Store
from tests.kit.services import Services, drop_database, logins
from tests.kit.tokens import SoftToken, forget, soft_token


class Databases:
    """Makes empty and migrated databases; a copy of one that was migrated is much quicker than a migration.

    On PostgreSQL one that a test gives back is used again, which is much quicker than a copy: without its rows, and
    only if the test has left the schema as it was.
    """

    def __init__(self, directory: Path, services: Services) -> None:
        self.directory = directory
        self.services = services
        self.made: list[str] = []
        self.templates: dict[str, str] = {}
        self.spare: list[str] = []
        self.shape: object = None

    def empty(self, dialect: str) -> str:
        """Return the URL of a database without tables."""
        return self._make(dialect)

    def migrated(self, dialect: str) -> str:
        """Return the URL of a database with all tables, and no rows."""
        if dialect not in self.templates:
            url = self._make(dialect)
            store = Store(url)
            api, workers = logins(url) if dialect == "postgresql" else ("", "")
            # A copy has the same logins with the same rights: they are the whole cluster's.
            store.migrate(api_url=api, workers_url=workers)
            store.close()
            self.templates[dialect] = url
            if dialect == "postgresql":
                with _connected(url) as connection:
                    self.shape = _shape(connection)
        if dialect == "postgresql" and self.spare:
            return self.spare.pop()
        return self._make(dialect, self.templates[dialect])

    def give_back(self, url: str) -> None:
        """Take a migrated database that a test has done with; those who are connected are disconnected."""
        if not url.startswith("postgresql"):
            return
        try:
            with _connected(url) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                if _shape(connection) == self.shape:
                    connection.execute("SET lock_timeout = '5s'")
                    connection.execute(_emptying(connection))
                    self.spare.append(url)
                    return
        except psycopg.Error:
            # Whatever the test did to it: it is not used again.
            pass
        self.drop(url)

    def drop(self, url: str) -> None:
        """Remove a database; those who are connected are disconnected."""
        if url.startswith("postgresql"):
            self.made.remove(url)
            self._administer(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(_name(url))))

    def close(self) -> None:
        """Remove what is left."""
        for url in list(self.made):
            self.drop(url)
        for url in self.templates.values():
            if url.startswith("postgresql"):
                drop_database(url)

    def _make(self, dialect: str, template: str | None = None) -> str:
        name = f"kmb_test_{secrets.token_hex(6)}"
        if dialect == "sqlite":
            path = self.directory / f"{name}.sqlite"
            if template is not None:
                shutil.copyfile(template.removeprefix("sqlite:///"), path)
            return f"sqlite:///{path}"
        source = sql.Identifier("template0" if template is None else _name(template))
        self._administer(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), source))
        url = make_url(self.services.postgres.url).set(database=name).render_as_string(hide_password=False)
        self.made.append(url)
        return url

    def _administer(self, statement: sql.Composed) -> None:
        server = make_url(self.services.postgres.url).set(drivername="postgresql")
        with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(statement)


def _connected(url: str) -> psycopg.Connection[tuple[object, ...]]:
    server = make_url(url).set(drivername="postgresql")
    return psycopg.connect(server.render_as_string(hide_password=False), autocommit=True)


def _shape(connection: psycopg.Connection[tuple[object, ...]]) -> object:
    """Return what a test may have altered besides rows: tables, columns, constraints, triggers, functions, rights."""
    return connection.execute(
        "SELECT (SELECT json_agg((relname, relkind, relacl::text, relrowsecurity) ORDER BY relname)::text FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace),"
        " (SELECT json_agg((attrelid::regclass::text, attname, atttypid::int, attnotnull) ORDER BY attrelid, attnum)"
        "::text FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE c.relnamespace = 'public'::regnamespace),"
        " (SELECT json_agg(conname ORDER BY conname)::text FROM pg_constraint),"
        " (SELECT json_agg((tgname, tgenabled) ORDER BY tgname)::text FROM pg_trigger WHERE NOT tgisinternal),"
        " (SELECT json_agg((rulename, ev_enabled) ORDER BY rulename)::text FROM pg_rewrite),"
        " (SELECT count(*) FROM pg_proc), (SELECT json_agg((polname, polrelid) ORDER BY polname, polrelid)::text"
        " FROM pg_policy), (SELECT json_agg(setconfig)::text FROM pg_db_role_setting"
        " WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())),"
        " (SELECT json_agg(version_num)::text FROM alembic_version)"
    ).fetchone()


def _emptying(connection: psycopg.Connection[tuple[object, ...]]) -> sql.Composed:
    """Return one transaction that deletes all rows but those of a new schema, and lets numbers begin anew."""
    tables = connection.execute(
        "SELECT tablename FROM pg_tables"
        " WHERE schemaname = 'public' AND tablename NOT IN ('alembic_version', 'switches')"
    ).fetchall()
    counters = connection.execute("SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'").fetchall()
    # As a replica checks no foreign keys, in whatever order rows go.
    parts = [sql.SQL("SET LOCAL session_replication_role = replica")]
    parts += [sql.SQL("DELETE FROM {}").format(sql.Identifier(str(name))) for (name,) in tables]
    parts += [sql.SQL("ALTER SEQUENCE {} RESTART").format(sql.Identifier(str(name))) for (name,) in counters]
    return sql.SQL("BEGIN; {}; COMMIT").format(sql.SQL("; ").join(parts))


def _name(url: str) -> str:
    return make_url(url).database or ""


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Databases that are gone when the tests are over."""
    with Services() as services:
        made = Databases(tmp_path_factory.mktemp("databases"), services)
        yield made
        made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Each test that asks for a store runs on both."""
    return str(request.param)


@pytest.fixture
def database_url(databases: Databases, dialect: str) -> Iterator[str]:
    """A migrated database without rows."""
    url = databases.migrated(dialect)
    yield url
    databases.give_back(url)


@pytest.fixture
def store(database_url: str, patient: None) -> Iterator[Store]:
    """A store on a migrated database without rows."""
    opened = Store(database_url)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is turned away for having waited for its turn or for a connection: on a slow machine that takes longer."""
    monkeypatch.setattr(shares, "PATIENCE_SECONDS", 50.0)
    monkeypatch.setattr(engine, "_WAIT_SECONDS", 60)


@pytest.fixture
def soft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftToken]:
    """A token of its own for each test, which this process sees."""
    made = soft_token(tmp_path / "hsm")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    forget()
    yield made
    forget()
