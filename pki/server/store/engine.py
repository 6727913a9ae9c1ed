"""The store's door: units of work on SQLite or PostgreSQL, and errors that mean the same on both."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from pki.core.errors import ConflictError, KeymailboxError, SettingsError, UnavailableError
from pki.server.store import schema
from pki.server.store.bell import CHANNEL, Bell

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 10
"""How long a unit waits for a lock, a connection or the one SQLite writer before the store counts as unavailable."""
_POOL_SIZE = 10
_READ_ONLY = "keymailbox_read_only"
_POSTGRESQL_OPTIONS = " ".join(
    (
        f"-c lock_timeout={_WAIT_SECONDS}s",
        "-c statement_timeout=60s",
        "-c idle_in_transaction_session_timeout=60s",
        "-c TimeZone=UTC",
    )
)
# A database host that vanishes without a word is noticed in about a minute.
_KEEPALIVE = {"keepalives": 1, "keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3}


class Unit:
    """One transaction, used by one thread; the store's functions take it first."""

    def __init__(self, connection: Connection, *, writable: bool) -> None:
        self.connection = connection
        """For the store's own modules."""
        self.writable = writable
        self.topics: dict[str, None] = {}

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self.connection.dialect.name

    def after_commit(self, topic: str) -> None:
        """Ring ``topic`` once if, and after, this unit commits."""
        self.topics[topic] = None


class Store:
    """A database and its bell; threads share it, processes that are forked must not."""

    def __init__(self, url: str) -> None:
        """Open lazily: nothing is connected before the first unit. Raises SettingsError on an unusable URL."""
        parsed = _parse(url)
        self.dialect = parsed.get_backend_name()
        # SQLite has one writer at a time: waiting for it in line is fair and fast, polling for its lock is neither.
        self._writer = threading.Lock() if self.dialect == "sqlite" else None
        if self.dialect == "sqlite":
            self._engine = _sqlite(parsed)
            self.bell = Bell()
        else:
            self._engine = _postgresql(parsed)
            self.bell = Bell(_conninfo(parsed))

    @contextmanager
    def unit(self) -> Iterator[Unit]:
        """Write transaction: committed durably at the end, rolled back on any exception.

        Raises UnavailableError when the database is away or busy: nothing was written, unless the connection was lost
        during the commit itself; repeating the request must therefore be harmless. Raises ConflictError when a
        constraint was broken.
        """
        with _translated(), self._writing(), self._engine.connect() as connection:
            with connection.begin():
                unit = Unit(connection, writable=True)
                yield unit
                if unit.topics and self.dialect == "postgresql":
                    connection.execute(
                        text("SELECT pg_notify(:channel, topic) FROM unnest(CAST(:topics AS text[])) AS topic"),
                        {"channel": CHANNEL, "topics": list(unit.topics)},
                    )
        if self.dialect == "sqlite":
            for topic in unit.topics:
                self.bell.ring(topic)

    @contextmanager
    def read(self) -> Iterator[Unit]:
        """Read transaction: one snapshot from its first statement on. Raises UnavailableError."""
        options: dict[str, Any] = {_READ_ONLY: True}
        if self.dialect == "postgresql":
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with _translated(), self._engine.connect().execution_options(**options) as connection, connection.begin():
            yield Unit(connection, writable=False)

    def migrate(self) -> None:
        """Bring the schema to this release's; one process at a time, the others wait."""
        with _translated(), self._writing(), self._engine.connect() as connection, connection.begin():
            if self.dialect == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = 0"))
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('keymailbox schema'))"))
            schema.upgrade(connection)

    def schema_version(self) -> str | None:
        """Return the revision that the database is at, None before the first migration."""
        with self.read() as unit:
            return schema.current(unit.connection)

    def close(self) -> None:
        """Silence the bell and close all connections."""
        self.bell.close()
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=_WAIT_SECONDS):
            raise UnavailableError("The database is busy", hint="repeat the request")
        try:
            yield
        finally:
            self._writer.release()


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # The text may hold a password, so it is not repeated.
        raise SettingsError("The database URL cannot be read", hint=_URL_HINT) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed.set(drivername="sqlite+pysqlite")
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    raise SettingsError("The database is neither PostgreSQL nor a SQLite file", on=backend, hint=_URL_HINT)


_URL_HINT = "KMB_DATABASE_URL=sqlite:////var/lib/keymailbox/keymailbox.sqlite or postgresql://USER@HOST/DATABASE"


def _conninfo(url: URL) -> str:
    # libpq reads SQLAlchemy's URL once the driver's name is gone.
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=_POOL_SIZE,
        max_overflow=_POOL_SIZE,
        pool_timeout=_WAIT_SECONDS,
        hide_parameters=True,
        connect_args={"connect_timeout": 5, "options": _POSTGRESQL_OPTIONS, "application_name": CHANNEL, **_KEEPALIVE},
    )


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url,
        pool_size=_POOL_SIZE,
        max_overflow=4 * _POOL_SIZE,
        pool_timeout=_WAIT_SECONDS,
        hide_parameters=True,
        connect_args={"timeout": _WAIT_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver starts no transaction of its own
        for pragma in (
            f"busy_timeout = {_WAIT_SECONDS * 1000}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get(_READ_ONLY, False)
        # A writer takes its lock at once: upgrading a read lock later can fail without being allowed to wait.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into ours, without statements and values."""
    try:
        yield
    except KeymailboxError:
        raise
    except PoolTimeoutError:
        raise UnavailableError("All connections to the database are busy", hint="repeat the request") from None
    except (OperationalError, InterfaceError, InternalError) as error:
        if "no such table" in str(error.orig):  # SQLite's word for PostgreSQL's UndefinedTable
            raise UnavailableError("The database has no schema yet", hint="kmb-server migrate") from None
        _log.warning("database unavailable: %s", type(error.orig).__name__)
        raise UnavailableError("The database is away or busy", hint="repeat the request") from None
    except IntegrityError as error:
        raise ConflictError(on=_constraint(error)) from None
    except ProgrammingError as error:
        if type(error.orig).__name__ == "UndefinedTable":
            raise UnavailableError("The database has no schema yet", hint="kmb-server migrate") from None
        raise KeymailboxError("The database refused a statement", on=type(error.orig).__name__) from None
    except DBAPIError as error:
        if error.connection_invalidated:
            raise UnavailableError("The connection to the database was lost", hint="repeat the request") from None
        raise KeymailboxError("The database refused a statement", on=type(error.orig).__name__) from None
    except SQLAlchemyError as error:
        raise KeymailboxError("The store failed", on=type(error).__name__) from None


def _constraint(error: IntegrityError) -> str:
    diagnosis = getattr(error.orig, "diag", None)
    if diagnosis is not None:
        return str(diagnosis.constraint_name or "")
    # SQLite names columns, never values: "UNIQUE constraint failed: deposits.id"
    return str(error.orig).rpartition(": ")[2]
