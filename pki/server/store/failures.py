"""The database's errors as ours, which mean the same on SQLite and PostgreSQL and hold no statement and no value."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import SQLITE_FULL

from psycopg.errors import DiskFull, InsufficientPrivilege
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from pki.core.errors import ConflictError, FullError, KeymailboxError, UnavailableError

_log = logging.getLogger(__name__)

_BEHIND = "The database has no schema yet, or an earlier release's"
_NO_RIGHTS = "The database's login has not got its rights on a table yet"
_MISSING = ("UndefinedTable", "UndefinedColumn")
_MISSING_WORDS = ("no such table", "no such column", "has no column named")
"""SQLite's words for the same."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours, without statements and values."""
    try:
        yield
    except KeymailboxError:
        raise
    except PoolTimeoutError:
        raise UnavailableError("All connections to the database are busy", hint="repeat the request") from None
    except (OperationalError, InterfaceError, InternalError) as error:
        if any(words in str(error.orig) for words in _MISSING_WORDS):
            raise UnavailableError(_BEHIND, hint="kmb-server migrate") from None
        _log.warning("database unavailable: %s", type(error.orig).__name__)
        if _is_full(error.orig):
            raise FullError(hint="repeat the request later; the operator has to make room") from None
        raise UnavailableError("The database is away or busy", hint="repeat the request") from None
    except IntegrityError as error:
        raise ConflictError(on=_constraint(error)) from None
    except ProgrammingError as error:
        if type(error.orig).__name__ in _MISSING:
            raise UnavailableError(_BEHIND, hint="kmb-server migrate") from None
        if _lacks_rights(error.orig):
            _log.error("%s: kmb-server migrate, as the tables' owner", _NO_RIGHTS)
            raise UnavailableError(_NO_RIGHTS, hint="set KMB_OWNER_DATABASE_URL, then: kmb-server migrate") from None
        raise KeymailboxError("The database refused a statement", on=type(error.orig).__name__) from None
    except DBAPIError as error:
        if error.connection_invalidated:
            raise UnavailableError("The connection to the database was lost", hint="repeat the request") from None
        raise KeymailboxError("The database refused a statement", on=type(error.orig).__name__) from None
    except SQLAlchemyError as error:
        raise KeymailboxError("The store failed", on=type(error).__name__) from None


def _is_full(error: BaseException | None) -> bool:
    """Say whether the disk under the database is full, which keeps nobody from reading."""
    return isinstance(error, DiskFull) or getattr(error, "sqlite_errorcode", None) == SQLITE_FULL


def _lacks_rights(error: BaseException | None) -> bool:
    """Say whether a login may not use a table or column; a row that its policy refuses is nothing that passes."""
    return isinstance(error, InsufficientPrivilege) and error.diag.source_function == "aclcheck_error"


def _constraint(error: IntegrityError) -> str:
    diagnosis = getattr(error.orig, "diag", None)
    if diagnosis is not None:
        return str(diagnosis.constraint_name or "")
    # SQLite names columns, never values: "UNIQUE constraint failed: deposits.id"
    return str(error.orig).rpartition(": ")[2]
