"""Counts the statements that a store is asked for: what a batch costs must not grow with what is in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import event

from pki.server.store.engine import Store


@dataclass
class Told:
    """What was said to the database."""

    statements: list[str] = field(default_factory=list)
    commits: int = 0

    @property
    def count(self) -> int:
        """How many statements there were."""
        return len(self.statements)


@contextmanager
def counted(store: Store, *, here: bool = False) -> Iterator[Told]:
    """Count until the end of the block; one statement for many rows is one.

    ``here`` counts only what this thread says: who works for long renews its claims in another.
    """
    told = Told()
    engine = store._engine
    own = threading.get_ident()

    def counts() -> bool:
        return not here or threading.get_ident() == own

    def said(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if counts():
            told.statements.append(statement)

    def committed(_connection: object) -> None:
        told.commits += counts()

    event.listen(engine, "before_cursor_execute", said)
    event.listen(engine, "commit", committed)
    try:
        yield told
    finally:
        event.remove(engine, "before_cursor_execute", said)
        event.remove(engine, "commit", committed)
