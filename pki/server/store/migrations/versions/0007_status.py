"""Revocation lists are numbered for each issuing CA and have delta lists; OCSP responses and questions."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op
from cryptography import x509

from pki.server.store.columns import Counter, Utc

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BATCH = 500
_LISTS = 17
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def upgrade() -> None:
    """Add what is missing, and say of each list and certificate which key signed it."""
    op.add_column("certificates", sa.Column("issuer", sa.Text(), server_default="", nullable=False))
    _say_who_issued()
    _number_by_issuer()
    op.create_table(
        "ocsp_responses",
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=True),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("this_update", Utc, nullable=True),
        sa.Column("next_update", Utc, nullable=True),
        sa.Column("refresh_at", Utc, nullable=True),
        sa.PrimaryKeyConstraint("serial", "algorithm", name="pk_ocsp_responses"),
    )
    op.create_index("ix_ocsp_responses_refresh_at", "ocsp_responses", ["refresh_at"])
    _enlist()
    op.create_table(
        "ocsp_questions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("asked_at", Utc, nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_ocsp_questions"),
    )
    op.create_index("ix_ocsp_questions_asked_at", "ocsp_questions", ["asked_at"])


def _say_who_issued() -> None:
    connection = op.get_bind()
    table = sa.table("certificates", sa.column("fingerprint"), sa.column("der", sa.LargeBinary()), sa.column("issuer"))
    missing = sa.select(table.c.fingerprint, table.c.der).where(table.c.issuer == "").limit(_BATCH)
    while found := connection.execute(missing).all():
        for fingerprint, der in found:
            issuer = _authority(x509.load_der_x509_certificate(der).extensions)
            connection.execute(sa.update(table).where(table.c.fingerprint == fingerprint).values(issuer=issuer))


def _number_by_issuer() -> None:
    # A new primary key is a new table; older lists than these nobody asks for.
    connection = op.get_bind()
    lists = connection.execute(
        sa.text("SELECT number, der, this_update, next_update FROM crls ORDER BY number DESC LIMIT :most").bindparams(
            most=_LISTS
        )
    ).all()
    op.drop_table("crls")
    op.create_table(
        "crls",
        sa.Column("issuer", sa.Text(), server_default="", nullable=False),
        sa.Column("number", Counter, autoincrement=False, nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("this_update", Utc, nullable=False),
        sa.Column("next_update", Utc, nullable=False),
        sa.Column("base", Counter, nullable=True),
        sa.Column("delta", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("issuer", "number", name="pk_crls"),
    )
    for one in lists:
        issuer = _authority(x509.load_der_x509_crl(one.der).extensions)
        columns = "(issuer, number, der, this_update, next_update)"
        connection.execute(
            sa.text(f"INSERT INTO crls {columns} VALUES (:issuer, :number, :der, :this, :next)"),  # noqa: S608  constant
            {"issuer": issuer, "number": one.number, "der": one.der, "this": one.this_update, "next": one.next_update},
        )


def _enlist() -> None:
    # What is listed and valid gets its first OCSP response from the issuer.
    listed = sa.table("certificates", *(sa.column(name) for name in ("serial", "issuer", "state")))
    responses = sa.table(
        "ocsp_responses", *(sa.column(name) for name in ("serial", "algorithm", "issuer", "refresh_at"))
    )
    due = sa.literal(_LONG_AGO, Utc)
    chosen = sa.select(listed.c.serial, sa.literal("sha1"), listed.c.issuer, due).where(
        listed.c.state.in_(["active", "retired", "revoked"])
    )
    op.get_bind().execute(sa.insert(responses).from_select(["serial", "algorithm", "issuer", "refresh_at"], chosen))


def _authority(extensions: x509.Extensions) -> str:
    value = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    # Something, so that it is not looked at again.
    return (value.key_identifier or b"\0").hex()
