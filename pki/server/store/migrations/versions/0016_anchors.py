"""How far the trail was verified; tables that churn are swept sooner, so that they stay as small as what is in them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_COUNTERS = ("mailboxes", "tallies", "leases", "cursors")
_CHURNING = ("jobs", "nonces", "idempotency", "ticks", "ocsp_questions", "cmp_exchanges")
_GROWING = ("deposits", "events", "event_audience", "bodies_kept")


def upgrade() -> None:
    """Add the anchor's chain value, and say to PostgreSQL which tables are changed how."""
    if op.get_bind().dialect.name == "postgresql":
        _set_sweeping()
    # Last, as nobody passes this lock, and the others are waited for one after the other.
    op.add_column("cursors", sa.Column("chain", sa.LargeBinary(), nullable=True))


def _set_sweeping() -> None:
    # A row that is counted up stays on its page, with no new entry in an index (PostgreSQL, "Heap-Only Tuples").
    for table in _COUNTERS:
        op.execute(f"ALTER TABLE {table} SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05)")
    # Everything in them goes: a fifth of the table, the default, would be swept too late, and with pauses.
    for table in _CHURNING:
        op.execute(
            f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,"
            " autovacuum_vacuum_cost_delay = 0)"
        )
    # Each row is changed a few times while it is young: a fiftieth, so that what follows takes the room.
    for table in _GROWING:
        op.execute(
            f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)"
        )
