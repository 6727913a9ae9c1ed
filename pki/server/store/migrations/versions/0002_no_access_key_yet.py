"""An instance that was enrolled by EST or CMP has no access key yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let both columns be null."""
    with op.batch_alter_table("instances") as table:
        table.alter_column("access_key", existing_type=sa.LargeBinary(), nullable=True)
        table.alter_column("access_key_id", existing_type=sa.Text(), nullable=True)
