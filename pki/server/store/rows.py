"""Writing many rows alike on both databases, in one statement of a constant text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import ARRAY, Column, Table, TableValuedAlias, bindparam, func, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects import postgresql, sqlite

from pki.server.store.engine import Unit

T = TypeVar("T")

CHUNK = 1000
"""How many values one statement names; SQLite takes 32,766 of them."""
_DETAIL = 500


def insert(unit: Unit, table: Table) -> postgresql.Insert:
    """Return an INSERT that knows ON CONFLICT on this unit's database."""
    # The two constructs have the same face, but no common class.
    if unit.dialect == "sqlite":
        return cast("postgresql.Insert", sqlite.insert(table))
    return postgresql.insert(table)


def insert_new(unit: Unit, table: Table, rows: Sequence[Mapping[str, Any]], key: Column[Any]) -> list[Any]:
    """Insert the rows that break no unique constraint, in one statement; return the ``key`` of those inserted."""
    if not rows:
        return []
    statement = insert(unit, table)
    if unit.dialect == "sqlite" or len(rows) == 1:
        returned = unit.connection.execute(statement.on_conflict_do_nothing().returning(key), list(rows))
    else:
        names = list(rows[0])
        source = _unnested(table, names)
        selected = statement.from_select(names, source.select()).on_conflict_do_nothing().returning(key)
        returned = unit.connection.execute(selected, _arrays(names, rows))
    return list(returned.scalars())


def update_each(unit: Unit, table: Table, rows: Sequence[Mapping[str, Any]], key: Column[Any]) -> None:
    """Set in each row that ``key`` names the other values given for it."""
    if not rows:
        return
    names = list(rows[0])
    changed = [name for name in names if name != key.name]
    if unit.dialect == "sqlite":
        # A bound parameter must not be called like a column that is set.
        statement = update(table).where(key == bindparam(f"old_{key.name}"))
        statement = statement.values({name: bindparam(f"new_{name}") for name in changed})
        values = [{f"old_{key.name}": row[key.name]} | {f"new_{name}": row[name] for name in changed} for row in rows]
        unit.connection.execute(statement, values)
        return
    source = _unnested(table, names)
    statement = update(table).where(key == source.c[key.name]).values({name: source.c[name] for name in changed})
    unit.connection.execute(statement, _arrays(names, rows))


def detail(message: str | None) -> str | None:
    """Return what went wrong as text that every database stores: short, and without NUL and lone surrogates."""
    if message is None:
        return None
    return message[:_DETAIL].replace("\0", "\ufffd").encode(errors="replace").decode()


def chunks(values: Sequence[T]) -> list[Sequence[T]]:
    """Cut ``values`` into pieces that one statement can name."""
    return [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]


def _unnested(table: Table, names: Sequence[str]) -> TableValuedAlias:
    # Arrays keep the statement's text the same for any number of rows: it is compiled, parsed and planned once.
    columns = [table.c[name] for name in names]
    arrays = [
        sql_cast(bindparam(f"all_{column.name}", type_=ARRAY(column.type)), ARRAY(column.type)) for column in columns
    ]
    valued = func.unnest(*arrays).table_valued(*(Column(column.name, column.type) for column in columns))
    return valued.render_derived("given")


def _arrays(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {f"all_{name}": [row[name] for row in rows] for name in names}
