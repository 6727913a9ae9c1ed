"""Migrations, run from the program: Alembic without a configuration file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sqlalchemy import Connection, column, insert, inspect, select, table

from pki.server.store.tables import APART, switches

_SCRIPTS = Path(__file__).parent / "migrations"
_VERSION = table("alembic_version", column("version_num"))
"""Alembic's own table, in which it keeps the one revision that a database is at."""


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run what is missing up to ``revision``, within the transaction of ``connection``."""
    # Only here: with what it imports it is an eighth of each process's start, and one command in a release needs it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    fresh = current(connection) is None
    command.upgrade(config, revision)
    if fresh and revision == "head":
        # No process of an earlier release can be running here.
        connection.execute(insert(switches), {"name": APART})


def following(connection: Connection) -> str | None:
    """Return the next migration that is missing, None where there is none: a later release's schema lacks nothing."""
    there = current(connection)
    if there is None:
        return _revisions()[0]
    return next((one for one in _revisions() if behind(there) and one > there), None)


def advance(connection: Connection) -> None:
    """Run the next migration that is missing, or all of them where nobody works yet."""
    target = following(connection)
    if target is not None:
        upgrade(connection, target if current(connection) else "head")


def is_later(connection: Connection) -> bool:
    """Tell whether a later release than this one has migrated the database."""
    there = current(connection)
    return there is not None and there not in _revisions()


def current(connection: Connection) -> str | None:
    """Return the revision that the database is at."""
    if not inspect(connection).has_table(_VERSION.name):
        return None
    found: str | None = connection.execute(select(_VERSION.c.version_num)).scalar_one_or_none()
    return found


def behind(revision: str) -> bool:
    """Tell whether a database at ``revision`` lacks migrations of this release.

    A revision that this release does not know is a later one's, which changed nothing that this one reads.
    """
    return revision in _revisions()[:-1]


@cache
def _revisions() -> tuple[str, ...]:
    # Each lies in a file NUMBER_words.py, and one follows the other.
    return tuple(sorted(file.name.partition("_")[0] for file in (_SCRIPTS / "versions").glob("[0-9]*_*.py")))
