"""Bodies of deposits have a table of their own, partitioned by week on PostgreSQL, and may go before the deposit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pki.server.store.columns import Utc

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_INSIDE = sa.text("length(body) > 0")


def upgrade() -> None:
    """Make the tables; bodies that are there stay in their deposits' rows until they are deleted."""
    op.create_index("ix_deposits_body", "deposits", ["id"], sqlite_where=_INSIDE, postgresql_where=_INSIDE)
    op.create_table(
        "bodies",
        sa.Column("deposit_id", sa.Text(), nullable=False),
        sa.Column("week", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("deposit_id", "week", name="pk_bodies"),
        postgresql_partition_by="RANGE (week)",
    )
    op.create_table(
        "counterfoils",
        sa.Column("deposit_id", sa.Text(), nullable=False),
        sa.Column("deleted_at", Utc, nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("deposit_id", name="pk_counterfoils"),
    )
    op.create_table(
        "switches",
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_switches"),
    )
    if op.get_bind().dialect.name == "sqlite":
        op.create_index("ix_bodies_week", "bodies", ["week"])
        return
    # Ciphertext does not get shorter.
    op.execute("ALTER TABLE bodies ALTER COLUMN body SET STORAGE EXTERNAL")
    op.execute("CREATE TABLE bodies_kept PARTITION OF bodies DEFAULT")
    (schema,) = op.get_bind().execute(sa.text("SELECT current_schema()")).one()
    for function in (_SHELVES, _MAKE_SHELF, _DROP_SHELF):
        op.execute(function.replace("AS OWNER", _AS_OWNER.replace("SCHEMA", f'"{schema}"')))
    # Nobody's until the workers are given them, which is another transaction.
    for name in ("shelves()", "make_shelf(integer)", "drop_shelf(integer)"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION keymailbox_{name} FROM PUBLIC")


# Partitions belong to whom the tables belong to, while those who serve requests may own nothing: these functions act as
# the owner, and let nobody do with them what would lose a body that is needed. Their search_path is fixed, so that
# nobody puts tables of his own in front (PostgreSQL, CREATE FUNCTION, "Writing SECURITY DEFINER Functions Safely").
_AS_OWNER = "LANGUAGE plpgsql SECURITY DEFINER SET search_path = SCHEMA, pg_temp"

_SHELVES = """
CREATE FUNCTION keymailbox_shelves(OUT week integer, OUT apart boolean) RETURNS SETOF record
AS OWNER AS $$
BEGIN
    -- Each week that has a partition, and each whose bodies lie in the default one.
    RETURN QUERY
        SELECT (to_date(right(c.relname, 8), 'YYYYMMDD') - date '1969-12-29') / 7, true
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'bodies'::regclass AND c.relname ~ '^bodies_[0-9]{8}$'
        UNION ALL
        SELECT DISTINCT k.week, false FROM bodies_kept k;
END $$
"""

_MAKE_SHELF = """
CREATE FUNCTION keymailbox_make_shelf(wanted integer) RETURNS boolean
AS OWNER SET lock_timeout = '500ms' AS $$
DECLARE
    name text := 'bodies_' || to_char(date '1969-12-29' + 7 * wanted, 'YYYYMMDD');
BEGIN
    IF wanted < 0 THEN
        RAISE EXCEPTION 'there is no such week';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('keymailbox shelves'));
    IF to_regclass(name) IS NOT NULL OR EXISTS (SELECT FROM bodies_kept k WHERE k.week = wanted) THEN
        -- Bodies that came before their partition stay where they are, and are cleared row by row.
        RETURN false;
    END IF;
    -- Attached, not created in place: that would lock out everybody who reads.
    EXECUTE format('CREATE TABLE %I (LIKE bodies INCLUDING ALL)', name);
    EXECUTE format('ALTER TABLE bodies ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', name, wanted, wanted + 1);
    RETURN true;
EXCEPTION WHEN check_violation THEN
    RETURN false;
END $$
"""

_DROP_SHELF = """
CREATE FUNCTION keymailbox_drop_shelf(wanted integer) RETURNS boolean
AS OWNER SET lock_timeout = '500ms' AS $$
DECLARE
    name text := 'bodies_' || to_char(date '1969-12-29' + 7 * wanted, 'YYYYMMDD');
    needed text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('keymailbox shelves'));
    IF wanted < 0 OR to_regclass(name) IS NULL THEN
        RETURN false;
    END IF;
    -- Nobody puts anything there any more, and those who read go on.
    EXECUTE format('LOCK TABLE %I IN SHARE MODE', name);
    EXECUTE format(
        'SELECT min(b.deposit_id) FROM %I b'
        ' WHERE NOT EXISTS (SELECT FROM counterfoils c WHERE c.deposit_id = b.deposit_id)'
        ' AND NOT EXISTS (SELECT FROM bodies_kept k WHERE k.deposit_id = b.deposit_id AND k.week = -1)', name)
        INTO needed;
    IF needed IS NOT NULL THEN
        RAISE EXCEPTION 'the body of deposit % is still needed', needed USING ERRCODE = 'restrict_violation';
    END IF;
    EXECUTE format('ALTER TABLE bodies DETACH PARTITION %I', name);
    EXECUTE format('DROP TABLE %I', name);
    RETURN true;
END $$
"""
