"""Migrations, run from the program: Alembic without a configuration file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, insert

from pki.server.store.tables import APART, switches

_SCRIPTS = Path(__file__).parent / "migrations"


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run what is missing up to ``revision``, within the transaction of ``connection``."""
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    fresh = current(connection) is None
    command.upgrade(config, revision)
    if fresh and revision == "head":
        # No process of an earlier release can be running here.
        connection.execute(insert(switches), {"name": APART})


def current(connection: Connection) -> str | None:
    """Return the revision that the database is at."""
    return MigrationContext.configure(connection).get_current_revision()


def behind(revision: str) -> bool:
    """Tell whether a database at ``revision`` lacks migrations of this release.

    A revision that this release does not know is a later one's, which changed nothing that this one reads.
    """
    return revision in _earlier()


@cache
def _earlier() -> frozenset[str]:
    scripts = ScriptDirectory(str(_SCRIPTS))
    return frozenset(one.revision for one in scripts.walk_revisions()) - {scripts.get_current_head() or ""}
