"""One snapshot of the database, for who asks whether everything in it holds together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from sqlalchemy import RowMapping, select

from pki.server.store import tables
from pki.server.store.engine import Unit

Complaints = Iterator[str]
"""What does not hold, in words: the row and what is wrong with it."""


class Seen:
    """One snapshot of the database; each table is read once."""

    def __init__(self, unit: Unit, *, settled: bool) -> None:
        self.unit = unit
        self.settled = settled
        self._rows: dict[str, list[RowMapping]] = {}

    def rows(self, table: str) -> list[RowMapping]:
        """Return a table's rows, without what makes them heavy."""
        if table not in self._rows:
            columns = [one for one in tables.metadata.tables[table].c if one.name != "body"]
            self._rows[table] = list(self.unit.connection.execute(select(*columns)).mappings())
        return self._rows[table]

    def by(self, table: str, column: str) -> dict[Any, RowMapping]:
        """Return a table's rows by a column that is unique."""
        return {row[column]: row for row in self.rows(table)}

    @cached_property
    def trails(self) -> dict[str, list[RowMapping]]:
        """The events of each subject, in the order in which they were written."""
        found: dict[str, list[RowMapping]] = defaultdict(list)
        for row in sorted(self.rows("events"), key=lambda row: row["seq"]):
            found[row["subject"]].append(row)
        return found

    @cached_property
    def waiting(self) -> Counter[tuple[str, str]]:
        """How many jobs that are alive each kind and subject has."""
        return Counter((row["kind"], row["subject"]) for row in self.rows("jobs") if row["dead_at"] is None)

    @cached_property
    def kinds_waiting(self) -> set[str]:
        """The kinds of jobs that wait, dead or alive."""
        return {row["kind"] for row in self.rows("jobs")}
