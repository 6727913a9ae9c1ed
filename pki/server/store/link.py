"""Connections to PostgreSQL that notice when it says nothing any more."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors
from sqlalchemy import Connection, text

STATEMENT_SECONDS = 60
"""How long PostgreSQL lets a statement take."""
_SILENCE_SECONDS = 75.0
"""How long it may say nothing: longer than it lets a statement take, so it says something if it is well."""
CONNECTING: dict[str, Any] = {
    "connect_timeout": 5,
    # A host that vanishes without a word is noticed in half a minute, whether something was asked of it or not. Linux
    # would send it again for a quarter of an hour; where there is a time-out it counts no probes, so there are several.
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "tcp_user_timeout": 30_000,
}
"""What libpq is told of every connection."""


class Link(psycopg.Connection[Any]):
    """Gives a server up that stands still: its own time-outs stand still with it, and its kernel goes on answering."""

    unlimited = False
    """Whether a statement may take as long as it does."""

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Wait for an answer; raises OperationalError when there is none for 75 seconds, and closes the connection."""
        if self.unlimited or args or "timeout" in kwargs:
            return super().wait(gen, *args, **kwargs)
        try:
            return super().wait(gen, timeout=_SILENCE_SECONDS, **kwargs)
        except errors._WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError("the server says nothing") from None


def without_limit(connection: Connection) -> None:
    """Let the statements of this transaction take as long as they do."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    link = connection.connection.driver_connection
    assert isinstance(link, Link)
    link.unlimited = True
