"""Writing many rows alike on both databases, in one statement of a constant text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, cast

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Executable,
    Row,
    RowMapping,
    Table,
    TableValuedAlias,
    and_,
    any_,
    bindparam,
    delete,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects import postgresql, sqlite

from pki.server.store.engine import Unit

T = TypeVar("T")

CHUNK = 1000
"""How many values one statement names; SQLite takes 32,766 of them."""
_DETAIL = 500


def insert(unit: Unit, table: Table) -> postgresql.Insert:
    """Return an INSERT that knows ON CONFLICT on this unit's database."""
    return inserting(unit.dialect, table)


def inserting(dialect: str, table: Table) -> postgresql.Insert:
    """Return an INSERT that knows ON CONFLICT on a database of this kind."""
    # The two constructs have the same face, but no common class.
    return cast("postgresql.Insert", sqlite.insert(table)) if dialect == "sqlite" else postgresql.insert(table)


def insert_new(unit: Unit, table: Table, rows: Sequence[Mapping[str, Any]], key: Column[Any]) -> list[Any]:
    """Insert the rows that break no unique constraint, in one statement; return the ``key`` of those inserted."""
    return [row[0] for row in insert_returning(unit, table, rows, key)]


def insert_returning(
    unit: Unit, table: Table, rows: Sequence[Mapping[str, Any]], *columns: Column[Any]
) -> list[Row[Any]]:
    """Insert the rows that break no unique constraint, in one statement; return ``columns`` of those inserted."""
    if not rows:
        return []
    names = tuple(rows[0])
    if unit.dialect == "sqlite" or len(rows) == 1:
        return list(unit.connection.execute(_inserting(unit.dialect, table, None, columns), list(rows)))
    return list(unit.connection.execute(_inserting(unit.dialect, table, names, columns), arrays(names, rows)))


def select_each(unit: Unit, table: Table, keys: Sequence[Mapping[str, Any]]) -> list[RowMapping]:
    """Return the rows whose columns, which are text, have the values of one of ``keys``, which all name the same."""
    if not keys:
        return []
    names = tuple(keys[0])
    if unit.dialect == "sqlite":
        places = json.dumps([[key[name] for name in names] for key in keys])
        return list(unit.connection.execute(_selecting(unit.dialect, table, names), {"places": places}).mappings())
    return list(unit.connection.execute(_selecting(unit.dialect, table, names), arrays(names, keys)).mappings())


def select_among(unit: Unit, key: Column[Any], values: Iterable[Any], *columns: Column[Any]) -> list[Row[Any]]:
    """Return ``columns`` of the rows whose ``key`` is one of ``values``, in no order."""
    wanted = sorted(set(values))
    found: list[Row[Any]] = []
    for chunk in chunks(wanted):
        found += unit.connection.execute(_among(unit.dialect, key, columns), {"wanted": chunk})
    return found


def insert_unseen(unit: Unit, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert rows as `insert_new` does, and return only how many: a scoped unit may write rows that it may not see."""
    if not rows:
        return 0
    names = tuple(rows[0])
    if unit.dialect == "sqlite" or len(rows) == 1:
        return unit.connection.execute(_inserting(unit.dialect, table, None, ()), list(rows)).rowcount
    return unit.connection.execute(_inserting(unit.dialect, table, names, ()), arrays(names, rows)).rowcount


def update_each(unit: Unit, table: Table, rows: Sequence[Mapping[str, Any]], key: Column[Any]) -> None:
    """Set in each row that ``key`` names the other values given for it."""
    if not rows:
        return
    names = tuple(rows[0])
    statement = _updating(unit.dialect, table, names, key)
    if unit.dialect == "sqlite":
        changed = [name for name in names if name != key.name]
        values = [{f"old_{key.name}": row[key.name]} | {f"new_{name}": row[name] for name in changed} for row in rows]
        unit.connection.execute(statement, values)
        return
    unit.connection.execute(statement, arrays(names, rows))


def delete_first(unit: Unit, table: Table, condition: ColumnElement[bool], order: Column[Any], limit: int) -> int:
    """Delete up to ``limit`` rows, by ``order``, and return how many: what goes in pieces keeps nobody waiting."""
    # By their places in the file, which both databases know: by their keys, each would be looked up once more.
    place: ColumnElement[Any] = literal_column("ctid" if unit.dialect == "postgresql" else "rowid")
    chosen = select(place).select_from(table).where(condition).order_by(order).limit(limit).scalar_subquery()
    wanted = place == func.any(func.array(chosen)) if unit.dialect == "postgresql" else place.in_(chosen)
    return unit.connection.execute(delete(table).where(wanted)).rowcount


# Statements are made once: to build one, and to find out that it was compiled before, takes longer than to run it.


@cache
def _inserting(
    dialect: str, table: Table, names: tuple[str, ...] | None, columns: tuple[Column[Any], ...]
) -> Executable:
    """Return the statement that inserts rows, given one by one or, with ``names``, as `arrays` of their columns."""
    statement = inserting(dialect, table)
    # Inline: SQLAlchemy would have the number of a new row told to it.
    statement = statement if columns else statement.inline().execution_options(preserve_rowcount=True)
    if names is not None:
        statement = statement.from_select(names, unnested(table, names).select())
    statement = statement.on_conflict_do_nothing()
    return statement.returning(*columns) if columns else statement


@cache
def _selecting(dialect: str, table: Table, names: tuple[str, ...]) -> Executable:
    if dialect == "sqlite":
        # Joined, not with IN: of several columns together SQLite asks no index, and would look at each row there is.
        given = func.json_each(bindparam("places")).table_valued("value", name="given")
        values = [func.json_extract(given.c.value, f"$[{place}]") for place in range(len(names))]
        matches = and_(*(table.c[name] == value for name, value in zip(names, values, strict=True)))
        return select(table).select_from(given.join(table, matches))
    source = unnested(table, names)
    joined = table.join(source, and_(*(table.c[name] == source.c[name] for name in names)))
    return select(table).select_from(joined)


@cache
def _among(dialect: str, key: Column[Any], columns: tuple[Column[Any], ...]) -> Executable:
    return select(*columns).where(among(dialect, key))


@cache
def _updating(dialect: str, table: Table, names: tuple[str, ...], key: Column[Any]) -> Executable:
    changed = [name for name in names if name != key.name]
    if dialect == "sqlite":
        # A bound parameter must not be called like a column that is set.
        statement = update(table).where(key == bindparam(f"old_{key.name}"))
        return statement.values({name: bindparam(f"new_{name}") for name in changed})
    source = unnested(table, names)
    return update(table).where(key == source.c[key.name]).values({name: source.c[name] for name in changed})


def detail(message: str | None) -> str | None:
    """Return what went wrong as text that every database stores: short, and without NUL and lone surrogates."""
    if message is None:
        return None
    return message[:_DETAIL].replace("\0", "\ufffd").encode(errors="replace").decode()


def chunks(values: Sequence[T]) -> list[Sequence[T]]:
    """Cut ``values`` into pieces that one statement can name."""
    return [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]


def among(dialect: str, key: Column[Any]) -> ColumnElement[bool]:
    """Return the condition that ``key`` is one of the parameter ``wanted``, a list; the same text for any number."""
    if dialect == "sqlite":
        return key.in_(bindparam("wanted", expanding=True))
    # Told what the array is of: psycopg sends text without saying so, and an index wants to know.
    return key == any_(sql_cast(bindparam("wanted", type_=ARRAY(key.type)), ARRAY(key.type)))


def unnested(table: Table, names: Sequence[str]) -> TableValuedAlias:
    """Return rows of these columns, given as `arrays`, to select from on PostgreSQL."""
    # Arrays keep the statement's text the same for any number of rows: it is compiled, parsed and planned once.
    columns = [table.c[name] for name in names]
    arrays = [
        sql_cast(bindparam(f"all_{column.name}", type_=ARRAY(column.type)), ARRAY(column.type)) for column in columns
    ]
    valued = func.unnest(*arrays).table_valued(*(Column(column.name, column.type) for column in columns))
    return valued.render_derived("given")


def arrays(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values that `unnested` takes."""
    return {f"all_{name}": [row[name] for row in rows] for name in names}
