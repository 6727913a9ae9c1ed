"""The store's door: units of work on SQLite or PostgreSQL."""

from __future__ import annotations

import copy
import select
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import psycopg
from psycopg.types.array import ListBinaryDumper
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.pool import QueuePool

from pki.core.errors import SettingsError, UnavailableError
from pki.core.tenants import TenantName
from pki.server.store import logins, migrating, schema
from pki.server.store.bell import CHANNEL, Bell, packed
from pki.server.store.failures import translated
from pki.server.store.line import Line
from pki.server.store.link import CONNECTING, STATEMENT_SECONDS, Link
from pki.server.store.migrating import Patience

T = TypeVar("T")

_WAIT_SECONDS = 10
"""How long a unit waits for a lock, a connection or the one SQLite writer before the store counts as unavailable."""
_PATIENCE = Patience()
_POOL_SIZE = 10
_JOURNAL_BYTES = 64 * 1024 * 1024
"""What a burst of writing may leave of SQLite's journal on the disk."""
_READ_ONLY = "keymailbox_read_only"
_POSTGRESQL_OPTIONS = " ".join(
    (
        f"-c lock_timeout={_WAIT_SECONDS}s",
        f"-c statement_timeout={STATEMENT_SECONDS}s",
        "-c idle_in_transaction_session_timeout=60s",
        "-c TimeZone=UTC",
    )
)
_SCOPE = "set_config('keymailbox.tenants', %s, true), set_config('keymailbox.invitation', %s, true)"
_NOT_DURABLE = "set_config('synchronous_commit', 'off', true)"


@dataclass(frozen=True)
class Scope:
    """On whose behalf units work: their tenants, and the one invitation that somebody shows who is none of them yet."""

    tenants: frozenset[TenantName]
    invitation: str = ""


class Unit:
    """One transaction, used by one thread; the store's functions take it first."""

    def __init__(self, connection: Connection, *, writable: bool, scope: Scope | None = None) -> None:
        self.connection = connection
        """For the store's own modules."""
        self.writable = writable
        self.scope = scope
        """None for the operator's own processes, and for what is nobody's in particular."""
        self.topics: dict[str, None] = {}
        self._deferred: dict[Callable[[Unit, Sequence[Any]], None], list[Any]] = {}
        self.then: list[Callable[[], None]] = []

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self.connection.dialect.name

    def after_commit(self, topic: str) -> None:
        """Ring ``topic`` once if, and after, this unit commits."""
        self.topics[topic] = None

    def defer(self, work: Callable[[Unit, Sequence[T]], None], items: Sequence[T]) -> None:
        """Have ``work`` called once, with all that was deferred to it, just before this unit commits.

        What many units change at once is so held for the shortest time, and by one statement, in one order.
        """
        if items:
            self._deferred.setdefault(work, []).extend(items)

    def complete(self) -> None:
        """Do what was deferred."""
        while self._deferred:
            work = next(iter(self._deferred))
            work(self, self._deferred.pop(work))

    def once_committed(self, call: Callable[[], None]) -> None:
        """Call this if, and after, this unit commits: what is counted has happened."""
        self.then.append(call)


class Store:
    """A database and its bell; threads share it, processes that are forked must not."""

    def __init__(self, url: str) -> None:
        """Open lazily: nothing is connected before the first unit. Raises SettingsError on an unusable URL."""
        parsed = _parse(url)
        self._scope: Scope | None = None
        self.dialect = parsed.get_backend_name()
        # SQLite has one writer at a time: waiting for it in line is fair and fast, polling for its lock is neither.
        self._writer = Line() if self.dialect == "sqlite" else None
        if self.dialect == "sqlite":
            self._engine = _sqlite(parsed)
            self.bell = Bell()
        else:
            self._engine = _postgresql(parsed)
            self.bell = Bell(_conninfo(parsed))

    def scoped(self, tenants: Collection[TenantName], *, invitation: str = "") -> Self:
        """Return this store for work on behalf of these tenants, with the same connections and the same bell.

        Under a login that row-level security governs (docs/adr/0024) its units see and write these tenants' rows and
        what is everybody's, and of the invitations the one with this reference; units of the store itself see what is
        everybody's alone. SQLite has no logins: there, and for the tables' owner, a scope keeps nobody from anything.
        """
        view = copy.copy(self)
        view._scope = Scope(frozenset(tenants), invitation)
        return view

    @contextmanager
    def unit(self, *, durable: bool = True) -> Iterator[Unit]:
        """Write transaction: committed durably at the end, rolled back on any exception.

        What is not ``durable`` is seen by everybody at once all the same, and may be forgotten when PostgreSQL crashes
        within the next moments; it is never half done. SQLite has no such choice for one transaction.

        Raises UnavailableError when the database is away or busy: nothing was written, unless the connection was lost
        during the commit itself; repeating the request must therefore be harmless. Raises ConflictError when a
        constraint was broken.
        """
        with translated(), self._writing(), self._engine.connect() as connection:
            with connection.begin():
                unit = self._begun(connection, writable=True, durable=durable)
                yield unit
                unit.complete()
                if unit.topics and self.dialect == "postgresql":
                    connection.execute(
                        text("SELECT pg_notify(:channel, told) FROM unnest(CAST(:told AS text[])) AS told"),
                        {"channel": CHANNEL, "told": packed(unit.topics)},
                    )
        if self.dialect == "sqlite":
            for topic in unit.topics:
                self.bell.ring(topic)
        for call in unit.then:
            call()

    @contextmanager
    def read(self) -> Iterator[Unit]:
        """Read transaction: one snapshot from its first statement on. Raises UnavailableError."""
        options: dict[str, Any] = {_READ_ONLY: True}
        if self.dialect == "postgresql":
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with translated(), self._engine.connect().execution_options(**options) as connection, connection.begin():
            yield self._begun(connection, writable=False)

    def migrate(self, *, api_url: str = "", workers_url: str = "", patience: Patience = _PATIENCE) -> None:
        """Bring the schema to this release's, beside those who work; one process at a time, the others wait.

        On PostgreSQL the logins that the URLs name are made where they are missing, and get their rights: this store's
        own owns the tables. Without URLs, logins that were settled before get theirs on what is new. A later release's
        database is left as it is. Raises SettingsError, before anything is changed, for logins that row-level security
        cannot hold for, and UnavailableError when some table was never free: what was done until then stays.
        """
        wanted = self._logins(api_url, workers_url)
        with translated():
            if self.dialect == "postgresql":
                migrating.migrate(self._engine, wanted, patience)
                return
            with self._writing(), self._engine.connect() as connection, connection.begin():
                while schema.following(connection) is not None:
                    schema.advance(connection)

    def login(self) -> tuple[str, bool]:
        """Return who this store works as, and whether row-level security holds for it; never on SQLite."""
        if self.dialect == "sqlite":
            return "", False
        with self.read() as unit:
            return logins.current(unit.connection)

    def standing(self) -> logins.Standing:
        """Return how the database's logins stand; nobody has one of his own on SQLite."""
        if self.dialect == "sqlite":
            return logins.Standing(None, None)
        with self.read() as unit:
            return logins.standing(unit.connection)

    def rewrite(self) -> bool:
        """Write SQLite's file anew, so that it can give pages back from then on; False where it can, or is PostgreSQL.

        Nobody else may write meanwhile. Raises UnavailableError, before anything is done, without twice the file's
        size of free disk space: the copy and the journal need one each.
        """
        if self.dialect != "sqlite":
            return False
        path = Path(self._engine.url.database or "")
        with translated(), self._writing(), self._engine.connect() as connection:
            driver = connection.connection.driver_connection
            if driver is None or driver.execute("PRAGMA auto_vacuum").fetchone() == (2,):
                return False
            needed = 2 * path.stat().st_size
            if shutil.disk_usage(path.parent).free < needed:
                raise UnavailableError(
                    f"Writing the database anew needs {needed // 1_000_000 + 1} MB of free disk space",
                    on=str(path),
                    hint="make room, stop all processes, then: kmb-server migrate --finish",
                )
            try:
                driver.execute("VACUUM")
            except sqlite3.Error as error:
                raise UnavailableError(
                    f"The database could not be written anew: {error}",
                    on=str(path),
                    hint="stop all processes, then: kmb-server migrate --finish",
                ) from None
        return True

    def schema_version(self) -> str | None:
        """Return the revision that the database is at, None before the first migration."""
        with self.read() as unit:
            return schema.current(unit.connection)

    def is_later(self) -> bool:
        """Return whether a later release than this one has migrated the database."""
        with self.read() as unit:
            return schema.is_later(unit.connection)

    def demand_schema(self) -> str:
        """Return the revision that the database is at; UnavailableError when it lacks migrations of this release."""
        version = self.schema_version()
        if version is None:
            raise UnavailableError("The database has no schema yet", hint="kmb-server migrate")
        if schema.behind(version):
            raise UnavailableError(
                "The database's schema is an earlier release's", on=f"schema {version}", hint="kmb-server migrate"
            )
        return version

    def connections_in_use(self) -> int:
        """Return how many connections of this process are in use now."""
        pool = self._engine.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    def close(self) -> None:
        """Silence the bell and close all connections."""
        self.bell.close()
        self._engine.dispose()

    def _begun(self, connection: Connection, *, writable: bool, durable: bool = True) -> Unit:
        scope = self._scope
        # Until the end of the transaction: the connection's next user starts with nobody's rights.
        settings = [] if scope is None else [_SCOPE]
        settings += [] if durable else [_NOT_DURABLE]
        if settings and self.dialect == "postgresql":
            told = () if scope is None else (",".join(sorted(scope.tenants)), scope.invitation)
            connection.exec_driver_sql(f"SELECT {', '.join(settings)}", told)
        return Unit(connection, writable=writable, scope=scope)

    def _logins(self, api_url: str, workers_url: str) -> logins.Logins | None:
        if not api_url and not workers_url:
            return None
        found = []
        for url in (api_url, workers_url):
            parsed = _parse(url)
            if parsed.get_backend_name() != "postgresql" or parsed.database != self._engine.url.database:
                raise SettingsError("The logins are for another database than their owner's", hint=_LOGINS_HINT)
            if not parsed.username:
                raise SettingsError("A database URL names no login", hint=_LOGINS_HINT)
            found.append(logins.Login(parsed.username, parsed.password))
        return logins.Logins(*found)

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


_LOGINS_HINT = "set KMB_OWNER_DATABASE_URL, KMB_API_DATABASE_URL and KMB_DATABASE_URL: docs/operations.md"
_URL_HINT = "KMB_DATABASE_URL=sqlite:////var/lib/keymailbox/keymailbox.sqlite or postgresql://USER@HOST/DATABASE"


def _conninfo(url: URL) -> str:
    # libpq reads SQLAlchemy's URL once the driver's name is gone.
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


class _Cursor(psycopg.Cursor[Any]):
    """Has results sent in binary: as text, bytes are twice as large, and times are written and read again."""

    def __init__(self, connection: psycopg.Connection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self.format = psycopg.pq.Format.BINARY


def _postgresql(url: URL) -> Engine:
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=_POOL_SIZE,
        max_overflow=_POOL_SIZE,
        pool_timeout=_WAIT_SECONDS,
        hide_parameters=True,
        connect_args={
            "options": _POSTGRESQL_OPTIONS,
            "application_name": CHANNEL,
            "cursor_factory": _Cursor,
            **CONNECTING,
        },
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, cargs: Any, cparams: Any) -> Link:
        return Link.connect(*cargs, **cparams)

    @event.listens_for(engine, "checkin")
    def limit(connection: Link | None, _record: object) -> None:
        if connection is not None:
            connection.unlimited = False

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # Arrays of bytes as text are twice as large, and are escaped and read again byte for byte.
        connection.adapters.register_dumper(list, ListBinaryDumper)

    @event.listens_for(engine, "checkout")
    def look(connection: psycopg.Connection[Any], _record: object, _proxy: object) -> None:
        # Whoever was thrown out has been told so, and that is there to be read: only then it is worth a question.
        if connection.closed or (_has_news(connection) and not _alive(engine, connection)):
            raise DisconnectionError

    return engine


def _has_news(connection: psycopg.Connection[Any]) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _alive(engine: Engine, connection: psycopg.Connection[Any]) -> bool:
    try:
        return engine.dialect.do_ping(connection)  # type: ignore[arg-type]  # psycopg's own, not SQLAlchemy's protocol
    except psycopg.Error:
        return False


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
            # Before anything is written; a file from an earlier release keeps what it has until it is written anew.
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            f"journal_size_limit = {_JOURNAL_BYTES}",
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
