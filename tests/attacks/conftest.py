"""Attacks on a server's own parts run on both databases, as its contracts do."""

from tests.contracts.conftest import database_url, databases, dialect

__all__ = ["database_url", "databases", "dialect"]
