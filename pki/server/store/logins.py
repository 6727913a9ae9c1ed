"""The logins of PostgreSQL: who owns the tables, who works on them, and the API, which sees its callers' rows alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from pki.core.errors import SettingsError
from pki.server.store import schema
from pki.server.store.rights import RIGHTS, Rights
from pki.server.store.tables import metadata

POLICY = "keymailbox_"
"""How our policies are called: this and the verb, or ``workers``. Others' are left alone."""
_WORKERS = f"{POLICY}workers"
_VERBS = ("select", "insert", "update", "delete")
_VERSION = "alembic_version"


@dataclass(frozen=True)
class Login:
    """A login by name, and the password it is made with where it is not there yet."""

    name: str
    password: str | None = None

    def __repr__(self) -> str:
        return f"Login({self.name!r})"


@dataclass(frozen=True)
class Logins:
    """The two logins that own nothing: the API's, and that of workers, relay, beat and the operator's commands."""

    api: Login
    workers: Login


@dataclass(frozen=True)
class Standing:
    """How the database's logins stand: ``faults`` are what keeps row-level security from holding for ``api``."""

    api: str | None
    workers: str | None
    faults: tuple[str, ...] = ()


def agree(connection: Connection, wanted: Logins | None) -> tuple[str, str] | None:
    """Return the API's login and the workers' that get rights, as the tables' owner; None where there are no such.

    ``wanted`` are made where they are not there. Without, it is those that were settled before. Raises SettingsError
    for logins that row-level security cannot hold for, and where one is missing that may not be made by this owner.
    """
    owner = str(connection.execute(text("SELECT current_user")).scalar_one())
    if wanted is not None:
        _check_apart(owner, wanted)
        for login in (wanted.api, wanted.workers):
            _make(connection, login)
        names = (wanted.api.name, wanted.workers.name)
    else:
        known = _settled(connection)
        if known is None:
            return None
        if owner in known:
            raise SettingsError("Only the tables' owner may change the schema", on=owner, hint=OWNER_HINT)
        names = known
    for name in names:
        for fault in [*_faults_of(connection, name), *_may_become_owner(connection, name)]:
            raise SettingsError(f"A login would not be held by row-level security: {fault}", on=name, hint=_HINT)
    return names


def unsettled(connection: Connection, names: tuple[str, str]) -> tuple[str, ...]:
    """Return the tables on which the logins' rights are not as this release has them, in the order to settle them.

    Raises SettingsError when nobody has said what the API may do with a table.
    """
    for table in metadata.sorted_tables:
        if table.name not in RIGHTS:
            raise SettingsError("Nobody said what the API may do with a table", on=table.name, hint="store/rights.py")
    there = _there(connection)
    return tuple(name for name in RIGHTS if not _is_settled(connection, name, names, there))


def settle(connection: Connection, table: str, names: tuple[str, str]) -> None:
    """Give both logins their rights on a table, unless they have just these, or those of a later release."""
    there = _there(connection)
    if schema.is_later(connection) or _is_settled(connection, table, names, there):
        return
    quote = connection.dialect.identifier_preparer.quote_identifier
    # Policies are made anew under a lock that nobody passes: only where something has changed.
    for policy in there.get(table, _NONE)[1]:
        _run(connection, f"DROP POLICY {quote(policy)} ON {table}")
    statements = _statements(connection, table, names)
    for statement in (*statements, f"COMMENT ON POLICY {_WORKERS} ON {table} IS '{_mark(statements)}'"):
        _run(connection, statement)


def settle_functions(connection: Connection, names: tuple[str, str]) -> None:
    """Keep everybody but the workers from what acts as the owner, unless it is a later release's to give."""
    if schema.is_later(connection):
        return
    ours = connection.execute(
        text(
            "SELECT p.oid::regprocedure::text FROM pg_proc p"
            " WHERE p.pronamespace = current_schema()::regnamespace AND p.prosecdef AND p.proname LIKE :ours ORDER BY 1"
        ),
        {"ours": f"{POLICY}%"},
    )
    workers = connection.dialect.identifier_preparer.quote_identifier(names[1])
    for name in ours.scalars().all():
        _run(connection, f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC")
        _run(connection, f"GRANT EXECUTE ON FUNCTION {name} TO {workers}")


def settle_version(connection: Connection, names: tuple[str, str]) -> None:
    """Let both logins see the schema's version, without which no process is ready: when they have all other rights."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    if not schema.is_later(connection):
        for name in names:
            _run(connection, f"GRANT SELECT ON {_VERSION} TO {quote(name)}")


def standing(connection: Connection) -> Standing:
    """Return who the logins are and what is wrong with them; readable by each of them."""
    known = _settled(connection)
    if known is None:
        return Standing(None, None)
    api, workers = known
    there = _there(connection)
    faults = [f"{api}: {fault}" for fault in _faults_of(connection, api)]
    # A later release's rights are that one's to judge; who may not see the version has not got all of ours yet.
    seen = connection.execute(text(f"SELECT has_table_privilege('{_VERSION}', 'SELECT')")).scalar_one()
    tables = () if seen and schema.is_later(connection) else RIGHTS
    faults += [
        f"{name} is not as this release has it" for name in tables if not _is_settled(connection, name, known, there)
    ]
    return Standing(api, workers, tuple(faults))


def current(connection: Connection) -> tuple[str, bool]:
    """Return this connection's login, and whether row-level security holds for it."""
    row = connection.execute(text("SELECT current_user, row_security_active('deposits')")).one()
    return str(row[0]), bool(row[1])


_HINT = "docs/operations.md, The database's logins"
OWNER_HINT = (
    "set KMB_OWNER_DATABASE_URL to the tables' owner, who needs CREATE on the schema; then: kmb-server migrate"
    f" ({_HINT})"
)


_Given = tuple[str, frozenset[str], bool]
"""What a table was given: the mark of the statements, the policies' names, whether they are on."""
_NONE: _Given = ("", frozenset(), False)


def _is_settled(connection: Connection, table: str, names: tuple[str, str], there: Mapping[str, _Given]) -> bool:
    wanted = (_mark(_statements(connection, table, names)), _policies(RIGHTS[table]), True)
    return there.get(table, _NONE) == wanted


def _mark(statements: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()


def _statements(connection: Connection, name: str, names: tuple[str, str]) -> list[str]:
    """Return what gives both logins their rights on a table, in SQL."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    table, rights, api, workers = metadata.tables[name], RIGHTS[name], *(quote(one) for one in names)
    conditions: Mapping[str, str | None] = {verb: getattr(rights, verb) for verb in _VERBS}
    columns = ", ".join(column.name for column in table.columns if column.name not in rights.hidden)
    granted = {"select": f"SELECT ({columns})", "update": f"UPDATE ({', '.join(rights.settable)})"}
    said = [
        f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
        f"REVOKE ALL ON {name} FROM {api}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO {workers}",
        f"CREATE POLICY {_WORKERS} ON {name} TO {workers} USING (true) WITH CHECK (true)",
    ]
    for verb, condition in conditions.items():
        if condition is None:
            continue
        said.append(f"GRANT {granted.get(verb, verb.upper())} ON {name} TO {api}")
        using = "" if verb == "insert" else f" USING ({condition})"
        becomes = {"insert": condition, "update": rights.into or condition}.get(verb)
        check = f" WITH CHECK ({becomes})" if becomes else ""
        said.append(f"CREATE POLICY {POLICY}{verb} ON {name} FOR {verb.upper()} TO {api}{using}{check}")
    counter = table.autoincrement_column
    if counter is not None and counter.autoincrement is not False:
        sequence = f"{name}_{counter.name}_seq"
        said.append(f"GRANT USAGE ON SEQUENCE {sequence} TO {workers}")
        if rights.insert is not None:
            said.append(f"GRANT USAGE ON SEQUENCE {sequence} TO {api}")
    return said


def _policies(rights: Rights) -> frozenset[str]:
    verbs = (verb for verb in _VERBS if getattr(rights, verb) is not None)
    return frozenset({_WORKERS, *(f"{POLICY}{verb}" for verb in verbs)})


def _there(connection: Connection) -> Mapping[str, _Given]:
    """Return what each table with policies of ours was given."""
    found = connection.execute(
        text(
            "SELECT c.relname, c.relrowsecurity, array_agg(p.polname::text),"
            " coalesce(max(obj_description(p.oid, 'pg_policy')), '')"
            " FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid"
            " WHERE c.relnamespace = current_schema()::regnamespace AND p.polname LIKE :ours GROUP BY 1, 2"
        ),
        {"ours": f"{POLICY}%"},
    )
    return {name: (mark, frozenset(policies), enabled) for name, enabled, policies, mark in found}


def _settled(connection: Connection) -> tuple[str, str] | None:
    """Return the names of the API's and the workers' logins that rights were given to."""

    def owner_of(policy: str) -> str | None:
        found: str | None = connection.execute(
            text(
                "SELECT r.rolname FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid"
                " JOIN pg_roles r ON r.oid = ANY (p.polroles)"
                " WHERE c.oid = to_regclass('deposits') AND p.polname = :policy"
            ),
            {"policy": policy},
        ).scalar_one_or_none()
        return found

    api, workers = owner_of(f"{POLICY}select"), owner_of(_WORKERS)
    return None if api is None or workers is None else (api, workers)


def _faults_of(connection: Connection, name: str) -> Sequence[str]:
    """Return what would let a login past row-level security (PostgreSQL, "Row Security Policies")."""
    row = connection.execute(
        text(
            "SELECT r.rolsuper, r.rolbypassrls, EXISTS (SELECT FROM pg_class c WHERE c.relkind IN ('r', 'p')"
            " AND c.relnamespace = current_schema()::regnamespace AND pg_has_role(r.oid, c.relowner, 'MEMBER')),"
            " has_schema_privilege(r.oid, current_schema(), 'CREATE')"
            " FROM pg_roles r WHERE r.rolname = :name"
        ),
        {"name": name},
    ).one_or_none()
    if row is None:
        return ["it is not there"]
    found = ("it is a superuser", "it has BYPASSRLS", "it owns tables, or may become who does", "it may make tables")
    return [fault for fault, given in zip(found, row, strict=True) if given]


def _may_become_owner(connection: Connection, name: str) -> Sequence[str]:
    """The same of whoever is about to own tables: asked as the owner, where there may be none yet."""
    found = connection.execute(text("SELECT pg_has_role(:name, current_user, 'MEMBER')"), {"name": name}).scalar_one()
    return ["it may become the owner of the tables"] if found else []


def _check_apart(owner: str, wanted: Logins) -> None:
    if len({owner, wanted.api.name, wanted.workers.name}) < 3:
        raise SettingsError(
            "The tables' owner, the API and the workers each need a login of their own",
            on=f"{owner}, {wanted.api.name}, {wanted.workers.name}",
            hint=_HINT,
        )


def _make(connection: Connection, login: Login) -> None:
    if connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": login.name}).first():
        return
    name = connection.dialect.identifier_preparer.quote_identifier(login.name)
    password = ""
    if login.password:
        # Hashed on this side: the statement may be logged.
        driver = connection.connection.driver_connection
        assert driver is not None
        password = driver.pgconn.encrypt_password(
            login.password.encode(), login.name.encode(), b"scram-sha-256"
        ).decode()
        password = f" PASSWORD '{password}'"
    try:
        with connection.begin_nested():
            _run(connection, f"CREATE ROLE {name} LOGIN{password}")
    except ProgrammingError:
        raise SettingsError(
            "The tables' owner may not make logins",
            on=login.name,
            hint=f"as PostgreSQL's administrator: CREATE ROLE {name} LOGIN PASSWORD '…'; then kmb-server migrate",
        ) from None


def _run(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement)
