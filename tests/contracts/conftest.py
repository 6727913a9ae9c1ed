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

from pki.server.store.engine import Store
from tests.kit.services import Services


class Databases:
    """Makes empty and migrated databases; a copy of one that was migrated is much quicker than a migration."""

    def __init__(self, directory: Path, services: Services) -> None:
        self.directory = directory
        self.services = services
        self.made: list[str] = []
        self.templates: dict[str, str] = {}

    def empty(self, dialect: str) -> str:
        """Return the URL of a database without tables."""
        return self._make(dialect)

    def migrated(self, dialect: str) -> str:
        """Return the URL of a database with all tables, and no rows."""
        if dialect not in self.templates:
            url = self._make(dialect)
            store = Store(url)
            store.migrate()
            store.close()
            self.templates[dialect] = url
        return self._make(dialect, self.templates[dialect])

    def drop(self, url: str) -> None:
        """Remove a database; those who are connected are disconnected."""
        if url.startswith("postgresql"):
            self.made.remove(url)
            self._administer(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(_name(url))))

    def close(self) -> None:
        """Remove what is left."""
        for url in list(self.made):
            self.drop(url)

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
    databases.drop(url)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A store on a migrated database without rows."""
    opened = Store(database_url)
    yield opened
    opened.close()
