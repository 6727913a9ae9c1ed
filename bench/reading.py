"""When deposits came and when they became available, as a site's own database has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import create_engine, func, select
from sqlalchemy.engine import Connection

from pki.server.store.tables import deposits, jobs


def exchanged(database: str, ids: Sequence[str]) -> tuple[list[float], float]:
    """Return how many milliseconds each of these took from accepted to available, and the rate of what came besides.

    That is how many others a second were accepted between the first and the last of them. ``database`` is SQLAlchemy's
    URL.
    """
    ours = deposits.c.id.in_(ids)
    with _reading(database) as connection:
        rows = connection.execute(select(deposits.c.received_at, deposits.c.validated_at).where(ours)).all()
        first, last = min(row.received_at for row in rows), max(row.received_at for row in rows)
        others = (
            select(func.count()).select_from(deposits).where(deposits.c.received_at.between(first, last)).where(~ours)
        )
        besides = connection.execute(others).scalar_one()
    times = [(row.validated_at - row.received_at).total_seconds() * 1000 for row in rows]
    return times, besides / max((last - first).total_seconds(), 0.001)


def validated(database: str, since: datetime) -> float:
    """Return deposits validated a second since a moment, from the first batch to the last, which is not counted."""
    with _reading(database) as connection:
        asked = select(deposits.c.validated_at).where(deposits.c.validated_at > since)
        moments = sorted(connection.execute(asked).scalars())
    # The start is not counted, so the batch that begins last is not either.
    seconds: float = (moments[-1] - moments[0]).total_seconds()
    return float(sum(one < moments[-1] for one in moments) / seconds)


def left(database: str, queue: str) -> int:
    """Return how many jobs a queue still has."""
    with _reading(database) as connection:
        return connection.execute(select(func.count()).select_from(jobs).where(jobs.c.queue == queue)).scalar_one()


@contextmanager
def _reading(database: str) -> Iterator[Connection]:
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
