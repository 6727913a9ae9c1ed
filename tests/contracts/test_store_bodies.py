"""Contract of bodies: where they lie, before and after they have a table of their own, and on shelves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, text

from pki.core.errors import ConflictError
from pki.server.store import bodies, deposits, schema
from pki.server.store.engine import Store
from tests.contracts.conftest import Databases
from tests.kit.facts import NOW, deposit

WEEK = bodies.week_of(NOW)


@pytest.fixture
def old(databases: Databases, dialect: str) -> Iterator[Store]:
    """A database that an earlier release worked on, migrated meanwhile."""
    url = databases.empty(dialect)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        schema.upgrade(connection, "0009")
    engine.dispose()
    store = Store(url)
    store.migrate()
    yield store
    store.close()
    databases.drop(url)


def _inside(store: Store) -> list[int]:
    with store.read() as unit:
        return sorted(unit.connection.execute(text("SELECT length(body) FROM deposits")).scalars())


def test_a_week_begins_on_monday() -> None:
    """The number of a week leads to its beginning and back."""
    start = bodies.monday(WEEK)
    assert (start.weekday(), start.hour) == (0, 0) and start <= NOW < start + timedelta(weeks=1)
    assert bodies.week_of(start) == WEEK and bodies.week_of(start - timedelta(microseconds=1)) == WEEK - 1


def test_bodies_stay_inside_until_no_earlier_release_is_left(old: Store) -> None:
    """An earlier release reads the deposit's row alone: only after the switch are bodies written elsewhere."""
    before, after = deposit(), deposit()
    with old.unit() as unit:
        deposits.insert(unit, [before])
    assert _inside(old) == [100]
    with old.unit() as unit:
        bodies.set_apart(unit)
    with old.unit() as unit:
        deposits.insert(unit, [after])
    assert _inside(old) == [0, 100]
    with old.read() as unit:
        found = {record.id: record.body for record in deposits.many(unit, [before.id, after.id], with_body=True)}
    assert found == {before.id: before.body, after.id: after.body}


def test_a_new_installation_has_its_bodies_apart(store: Store) -> None:
    """Where no earlier release ever ran, nothing has to be switched."""
    with store.unit() as unit:
        assert bodies.apart(unit)
        deposits.insert(unit, [deposit()])
    assert _inside(store) == [0]


def test_bodies_are_found_whenever_they_came(store: Store) -> None:
    """In one batch from several weeks, with a shelf of their own or without, or kept past their week."""
    weeks = [replace(deposit(), received_at=NOW + timedelta(weeks=number)) for number in range(4)]
    with store.unit() as unit:
        if store.dialect == "postgresql":
            assert bodies.make_shelf(unit, WEEK) and bodies.make_shelf(unit, WEEK + 2)
            assert not bodies.make_shelf(unit, WEEK)
        deposits.insert(unit, weeks)
        # The one that came first is on the shelf of what is kept, too.
        unit.connection.execute(text("UPDATE bodies SET week = -1 WHERE week = :week"), {"week": WEEK})
    with store.read() as unit:
        found = deposits.many(unit, [one.id for one in weeks], with_body=True)
        assert {record.id: record.body for record in found} == {one.id: one.body for one in weeks}
        apart = store.dialect == "postgresql"
        assert {week for week, _ in bodies.shelves(unit)} >= {bodies.KEPT, WEEK + 1, WEEK + 2, WEEK + 3}
        assert (WEEK + 2, apart) in bodies.shelves(unit) and (WEEK + 1, False) in bodies.shelves(unit)


def test_a_body_without_a_shelf_is_not_overtaken(store: Store) -> None:
    """A partition that comes after its first body is not made: the body stays where it is, and is found."""
    new = deposit()
    with store.unit() as unit:
        deposits.insert(unit, [new])
    with store.unit() as unit:
        assert not bodies.make_shelf(unit, WEEK)
    with store.read() as unit:
        assert deposits.many(unit, [new.id], with_body=True)[0].body == new.body


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_shelf_is_dropped_only_when_nothing_on_it_is_needed(store: Store) -> None:
    """The database itself refuses while a body has neither a counterfoil nor a copy that is kept."""
    gone, kept = deposit(), deposit()
    with store.unit() as unit:
        bodies.make_shelf(unit, WEEK)
        deposits.insert(unit, [gone, kept])
    for statement in (
        "INSERT INTO counterfoils VALUES (:gone, now(), NULL)",
        "INSERT INTO bodies SELECT deposit_id, -1, body FROM bodies WHERE deposit_id = :kept",
    ):
        with pytest.raises(ConflictError), store.unit() as unit:
            bodies.drop_shelf(unit, WEEK)
        with store.unit() as unit:
            values = {"gone": gone.id, "kept": kept.id}
            unit.connection.execute(text(statement), {name: v for name, v in values.items() if f":{name}" in statement})
    with store.unit() as unit:
        assert bodies.drop_shelf(unit, WEEK) and not bodies.drop_shelf(unit, WEEK)
        assert not bodies.drop_shelf(unit, bodies.KEPT)
    with store.read() as unit:
        found = {record.id: record.body for record in deposits.many(unit, [gone.id, kept.id], with_body=True)}
        assert bodies.shelves(unit) == [(bodies.KEPT, False)]
    assert found == {gone.id: None, kept.id: kept.body}
