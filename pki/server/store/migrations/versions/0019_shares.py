"""What a tenant has in a mailbox, all its instances together, is counted like what each of them has."""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_TENANT = {"sqlite": "substr(sender, 1, instr(sender, '/') - 1)", "postgresql": "split_part(sender, '/', 1)"}


def upgrade() -> None:
    """Add up what is counted of pairs; who counts on with an earlier release leaves it to be counted anew."""
    tenant = _TENANT[op.get_bind().dialect.name]
    op.execute(
        "INSERT INTO tallies (sender, recipient, deposits, bytes, day, today, accepted, acknowledged)"  # noqa: S608  constants
        f" SELECT {tenant}, recipient, sum(deposits), sum(bytes), 0, 0, sum(accepted), sum(acknowledged)"
        f" FROM tallies WHERE sender LIKE '%/%' AND recipient <> '' GROUP BY {tenant}, recipient"
        # A process of this release that was started too early has begun to count.
        " ON CONFLICT (sender, recipient) DO UPDATE SET deposits = excluded.deposits, bytes = excluded.bytes,"
        " accepted = excluded.accepted, acknowledged = excluded.acknowledged"
    )
