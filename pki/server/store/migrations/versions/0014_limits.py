"""What is under way is counted for each sender, mailbox and pair; operators set limits, recipients whom they take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pki.server.store.columns import Counter, Utc

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# On whose behalf: a sender's unit reads limits, policies, listed_senders and tallies of its recipients, and counts its
# deposits into its own row of tallies, its recipients' and those of the pairs. A recipient's unit does the same with
# the rows of its senders when it collects and answers; it alone writes its policy and its list. Limits are set by the
# operator. An API's unit reads of jobs, when it adds some, the lanes, ranks and turns that wait in the queue.


def upgrade() -> None:
    """Make the tables, and count what is there."""
    op.create_table(
        "limits",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", Counter, nullable=False),
        sa.Column("set_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("subject", "name", name="pk_limits"),
    )
    op.create_table(
        "policies",
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("senders", sa.Text(), nullable=False),
        sa.Column("max_bytes", Counter, nullable=True),
        sa.Column("max_lifetime", Counter, nullable=True),
        sa.Column("changed_at", Utc, nullable=False),
        sa.PrimaryKeyConstraint("address", name="pk_policies"),
        sa.CheckConstraint("senders IN ('anyone', 'known', 'listed')", name=op.f("ck_policies_senders")),
    )
    op.create_table(
        "listed_senders",
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("address", "sender", name="pk_listed_senders"),
    )
    op.create_table(
        "tallies",
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("deposits", Counter, nullable=False),
        sa.Column("bytes", Counter, nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("today", Counter, nullable=False),
        sa.Column("accepted", Counter, nullable=False),
        sa.Column("acknowledged", Counter, nullable=False),
        sa.PrimaryKeyConstraint("sender", "recipient", name="pk_tallies"),
    )
    for sender, recipient, waiting in (
        ("sender", "''", "'received', 'available', 'quarantined'"),
        ("''", "recipient", "'received', 'available', 'collected', 'quarantined'"),
        ("sender", "recipient", "'received', 'available', 'collected', 'quarantined'"),
    ):
        grouped = ", ".join(name for name in (sender, recipient) if name != "''")
        open_ = f"state IN ({waiting})"
        op.execute(
            "INSERT INTO tallies (sender, recipient, deposits, bytes, day, today, accepted, acknowledged)"  # noqa: S608  constants
            f" SELECT {sender}, {recipient}, sum(CASE WHEN {open_} THEN 1 ELSE 0 END),"
            f" sum(CASE WHEN {open_} THEN size ELSE 0 END), 0, 0, count(*),"
            f" sum(CASE WHEN state = 'acknowledged' THEN 1 ELSE 0 END) FROM deposits GROUP BY {grouped}"
        )
