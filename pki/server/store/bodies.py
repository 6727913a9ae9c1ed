"""The bytes of deposits, on shelves: one for each week of arrival, dropped whole when nothing on it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, delete, func, literal, select, text, update

from pki.core.ids import DepositId
from pki.server.facts import CounterfoilRecord, Shelved
from pki.server.store import rows
from pki.server.store.engine import Unit
from pki.server.store.link import without_limit
from pki.server.store.tables import APART, bodies, counterfoils, deposits, switches

KEPT = -1
"""The shelf of what outlives its week: never dropped, cleared row by row."""
INSIDE = -2
"""What stands for a shelf: the rows of deposits from before bodies had a table of their own."""
_FIRST_MONDAY = datetime(1969, 12, 29, tzinfo=UTC)
_switched: WeakKeyDictionary[Engine, bool] = WeakKeyDictionary()


def week_of(moment: datetime) -> int:
    """Return the number of the week, from Monday on in UTC, that a moment lies in; 0 is that of 1970-01-01."""
    return (moment - _FIRST_MONDAY) // timedelta(weeks=1)


def monday(week: int) -> datetime:
    """Return when a week begins."""
    return _FIRST_MONDAY + week * timedelta(weeks=1)


def apart(unit: Unit) -> bool:
    """Return whether bodies are written to their own table; once they are, they always are."""
    engine = unit.connection.engine
    if not _switched.get(engine):
        found = unit.connection.execute(select(switches.c.name).where(switches.c.name == APART)).first()
        _switched[engine] = found is not None
    return _switched[engine]


def set_apart(unit: Unit) -> None:
    """Have bodies written to their own table from now on, by this process and by those that look next."""
    rows.insert_new(unit, switches, [{"name": APART}], switches.c.name)


def insert(unit: Unit, arrived: Sequence[tuple[DepositId, datetime, bytes]]) -> None:
    """Put bodies on the shelves of the weeks in which they arrived."""
    values = [{"deposit_id": name, "week": week_of(moment), "body": body} for name, moment, body in arrived]
    rows.insert_new(unit, bodies, values, bodies.c.week)


def fetch(unit: Unit, arrived: Mapping[DepositId, datetime]) -> Mapping[DepositId, bytes]:
    """Return the bodies of the deposits that arrived at these times, those that there are."""
    found: dict[DepositId, bytes] = {}
    for chunk in rows.chunks(sorted(arrived, key=lambda name: arrived[name])):
        # A range of weeks, which PostgreSQL knows how to leave partitions out for; then what was kept past its week.
        found |= _on_shelves(unit, chunk, week_of(arrived[chunk[0]]), week_of(arrived[chunk[-1]]))
        if missing := [name for name in chunk if name not in found]:
            found |= _on_shelves(unit, missing, KEPT, KEPT)
    return found


def _on_shelves(unit: Unit, ids: Sequence[DepositId], first: int, last: int) -> Mapping[DepositId, bytes]:
    statement = select(bodies.c.deposit_id, bodies.c.body).where(
        bodies.c.week.between(first, last), bodies.c.deposit_id.in_(ids)
    )
    return {DepositId(row.deposit_id): row.body for row in unit.connection.execute(statement)}


# Shelves


def shelves(unit: Unit) -> list[tuple[int, bool]]:
    """Return each week that may have bodies, oldest first, `KEPT` among them, and whether it can be dropped whole."""
    if unit.dialect == "postgresql":
        found = unit.connection.execute(text("SELECT week, apart FROM keymailbox_shelves() ORDER BY week"))
        return [(row.week, row.apart) for row in found]
    weeks: list[int] = []
    while (following := _next_week(unit, weeks[-1] if weeks else None)) is not None:
        weeks.append(following)
    return [(week, False) for week in weeks]


def make_shelf(unit: Unit, week: int) -> bool:
    """Make a week's partition ahead of time; False where there is one, or where bodies were quicker."""
    if unit.dialect != "postgresql":
        return False
    return bool(unit.connection.execute(text("SELECT keymailbox_make_shelf(:week)"), {"week": week}).scalar_one())


def drop_shelf(unit: Unit, week: int) -> bool:
    """Detach a week's partition and drop it, with all that is on it; False when it is gone.

    The database itself refuses, with ConflictError, while a body on it has neither a counterfoil nor a copy on the
    shelf of what is kept. Raises UnavailableError when readers do not let go of the table for half a second.
    """
    # It looks at every body's id, which may take longer than a request may.
    without_limit(unit.connection)
    return bool(unit.connection.execute(text("SELECT keymailbox_drop_shelf(:week)"), {"week": week}).scalar_one())


def look(unit: Unit, week: int, after: str, limit: int) -> list[Shelved]:
    """Return what is on a shelf past a deposit's id, in order of ids: ``limit`` at once until nothing is left."""
    if week == INSIDE:
        page = select(deposits.c.id.label("deposit_id")).where(text("length(body) > 0"), deposits.c.id > after)
        page = page.order_by(deposits.c.id).limit(limit)
    else:
        page = select(bodies.c.deposit_id).where(bodies.c.week == week, bodies.c.deposit_id > after)
        page = page.order_by(bodies.c.deposit_id).limit(limit)
    # The page first: however little of it is due, no statement looks at more.
    found = page.cte("page")
    statement = (
        select(
            found.c.deposit_id,
            deposits.c.settled_at,
            deposits.c.sequence,
            deposits.c.size,
            deposits.c.body_sha256,
            counterfoils.c.deposit_id.label("deleted"),
        )
        .join(deposits, deposits.c.id == found.c.deposit_id)
        .outerjoin(counterfoils, counterfoils.c.deposit_id == found.c.deposit_id)
        .order_by(found.c.deposit_id)
    )
    return [
        Shelved(
            deposit_id=DepositId(row.deposit_id),
            settled_at=row.settled_at,
            numbered=row.sequence is not None,
            size=row.size,
            body_sha256=row.body_sha256,
            deleted=row.deleted is not None,
        )
        for row in unit.connection.execute(statement)
    ]


def read(unit: Unit, week: int, ids: Sequence[DepositId]) -> Mapping[DepositId, bytes]:
    """Return bodies from one shelf."""
    if week != INSIDE:
        return _on_shelves(unit, ids, week, week)
    statement = select(deposits.c.id, deposits.c.body).where(deposits.c.id.in_(ids))
    return {DepositId(row.id): row.body for row in unit.connection.execute(statement)}


def keep(unit: Unit, week: int, ids: Sequence[DepositId]) -> None:
    """Copy bodies to the shelf of what outlives its week; the same again changes nothing."""
    source = select(bodies.c.deposit_id, literal(KEPT), bodies.c.body).where(
        bodies.c.week == week, bodies.c.deposit_id.in_(ids)
    )
    copied = rows.insert(unit, bodies).from_select(["deposit_id", "week", "body"], source)
    unit.connection.execute(copied.on_conflict_do_nothing())


def remove(unit: Unit, week: int, ids: Sequence[DepositId]) -> None:
    """Delete bodies from a shelf that is not dropped whole."""
    if week == INSIDE:
        # Held first, in the order in which everybody holds deposits: an UPDATE takes them as it comes upon them.
        held = select(deposits.c.id).where(deposits.c.id.in_(ids)).order_by(deposits.c.id).with_for_update()
        unit.connection.execute(held)
        unit.connection.execute(update(deposits).where(deposits.c.id.in_(ids)).values(body=b""))
    else:
        unit.connection.execute(delete(bodies).where(bodies.c.week == week, bodies.c.deposit_id.in_(ids)))


# Counterfoils


def insert_counterfoils(unit: Unit, new: Sequence[CounterfoilRecord]) -> None:
    """Write down what is kept of deposits; what is there already stays."""
    values = [{"deposit_id": one.deposit_id, "deleted_at": one.deleted_at, "der": one.der} for one in new]
    rows.insert_new(unit, counterfoils, values, counterfoils.c.deposit_id)


def counterfoils_of(unit: Unit, ids: Sequence[DepositId]) -> Mapping[DepositId, CounterfoilRecord]:
    """Return what is kept of those deposits whose bodies were deleted."""
    found = {}
    for chunk in rows.chunks(sorted(set(ids))):
        for row in unit.connection.execute(select(counterfoils).where(counterfoils.c.deposit_id.in_(chunk))):
            found[DepositId(row.deposit_id)] = CounterfoilRecord(DepositId(row.deposit_id), row.deleted_at, row.der)
    return found


def deleted_at(unit: Unit, ids: Sequence[DepositId]) -> Mapping[DepositId, datetime]:
    """Return when the bodies of those deposits were deleted of which they were."""
    found = {}
    for chunk in rows.chunks(sorted(set(ids))):
        statement = select(counterfoils.c.deposit_id, counterfoils.c.deleted_at)
        for row in unit.connection.execute(statement.where(counterfoils.c.deposit_id.in_(chunk))):
            found[DepositId(row.deposit_id)] = row.deleted_at
    return found


def _next_week(unit: Unit, after: int | None) -> int | None:
    # One step of the index for each week, however many bodies are on it.
    statement = select(func.min(bodies.c.week))
    if after is not None:
        statement = statement.where(bodies.c.week > after)
    found: int | None = unit.connection.execute(statement).scalar_one()
    return found
