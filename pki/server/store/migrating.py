"""PostgreSQL's schema and rights brought to this release's beside processes that work on them, a step at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from psycopg.errors import DeadlockDetected, InsufficientPrivilege, LockNotAvailable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from pki.core.errors import SettingsError, UnavailableError
from pki.server.store import logins, schema
from pki.server.store.link import without_limit

T = TypeVar("T")

_WAIT = 500
"""How many milliseconds a step stands in line for a table, and everybody else behind it. Less than PostgreSQL's
deadlock_timeout (1 s): in a knot this is the one that gives way, mostly before somebody else is broken off."""
_EVERY = 4
"""One attempt of so many stands in line for longer than deadlock_timeout: that is when PostgreSQL breaks off an
autovacuum that is in somebody's way, which would else keep a step from a large table for hours."""
_LONGEST = 3000
"""Not where that is more milliseconds than these: others stand behind it, and give up after ten seconds."""
_LINE = text(
    "SELECT set_config('lock_timeout', (:wait + CASE WHEN :longer AND setting::integer <= :longest"
    " THEN setting::integer ELSE 0 END)::text, true) FROM pg_settings WHERE name = 'deadlock_timeout'"
)
_PAUSES = (0.5, 1.0, 2.0, 5.0)
"""How many seconds those who stood behind a step have before it stands in line again; the last one is repeated."""


@dataclass(frozen=True)
class Patience:
    """For how many seconds a step is begun again while somebody is in its way, and who is told when that begins."""

    seconds: float = 300.0
    tell: Callable[[str], None] = lambda _: None


def migrate(engine: Engine, wanted: logins.Logins | None, patience: Patience) -> None:
    """Run each missing migration, then give each login its rights on each table: every step is a transaction.

    A step that somebody's transaction keeps from a table for half a second (each fourth time one and a half) lets go of
    all that it has, and is begun again; then UnavailableError. What was done stays done: the next run goes on from
    there. One process does this at a time, the others wait. Raises what `logins.agree` does, before anything changes.
    """

    def take(step: Callable[[Connection], T], what: str) -> T:
        return _take(engine, step, what, patience)

    if take(schema.is_later, "the schema"):
        # Its rights are for what it has; those that this release would give are too few or too many.
        return
    names = take(partial(logins.agree, wanted=wanted), "the logins")
    if take(schema.current, "the schema") is None:
        take(partial(_make, names=names), "the schema")
    while (missing := take(schema.following, "the schema")) is not None:
        take(schema.advance, f"migration {missing}")
    if names is None:
        return
    take(partial(logins.settle_functions, names=names), "the rights on functions")
    for table in take(partial(logins.unsettled, names=names), "the rights"):
        take(partial(logins.settle, table=table, names=names), f"the rights on {table}")
    take(partial(logins.settle_version, names=names), "the rights on the version")


def _make(connection: Connection, names: tuple[str, str] | None) -> None:
    """Do all of it at once, where nobody works yet whom it could keep waiting: commits for each step take a second."""
    schema.advance(connection)
    if names is not None:
        logins.settle_functions(connection, names)
        for table in logins.unsettled(connection, names):
            logins.settle(connection, table, names)


def _take(engine: Engine, step: Callable[[Connection], T], what: str, patience: Patience) -> T:
    attempts, spent = 0, 0.0
    while True:
        attempts += 1
        began = time.monotonic()
        try:
            with engine.connect() as connection, connection.begin():
                without_limit(connection)
                # Whoever else migrates may need long, and nobody stands behind who waits here: it costs no patience.
                connection.execute(text("SET LOCAL lock_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('keymailbox schema'))"))
                began = time.monotonic()
                connection.execute(_LINE, _line(attempts))
                return step(connection)
        except OperationalError as error:
            if not isinstance(error.orig, DeadlockDetected | LockNotAvailable):
                raise
        except ProgrammingError as error:
            if not isinstance(error.orig, InsufficientPrivilege):
                raise
            raise SettingsError(
                "The login may not change the schema",
                on=f"{engine.url.username or ''}, {what}",
                hint=logins.OWNER_HINT,
            ) from None
        pause = _PAUSES[min(attempts, len(_PAUSES)) - 1]
        spent += time.monotonic() - began + pause
        if spent > patience.seconds:
            raise UnavailableError("A table is in use all the time, by somebody's long transaction", on=what, hint=_WHO)
        if attempts == 1:
            patience.tell(f"{what}: a table is in use; trying again for {patience.seconds:.0f} s")
        time.sleep(pause)


def _line(attempts: int) -> dict[str, object]:
    return {"wait": _WAIT, "longer": attempts % _EVERY == 0, "longest": _LONGEST}


_WHO = (
    "as PostgreSQL's administrator look for it (SELECT pid, xact_start, query FROM pg_stat_activity WHERE"
    " datname = current_database() AND xact_start IS NOT NULL ORDER BY xact_start) and end it, then: kmb-server migrate"
)
