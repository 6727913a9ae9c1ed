"""The evidence of a revocation holds what says whose key the certificate is for: the owner's request for it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the request, and take it from the certificates for what was revoked before."""
    op.add_column("revocations", sa.Column("endorsement", sa.LargeBinary(), nullable=True))
    op.execute(
        "UPDATE revocations SET endorsement = (SELECT request_der FROM certificates"
        " WHERE certificates.fingerprint = revocations.fingerprint) WHERE evidence = 'owner'"
    )
