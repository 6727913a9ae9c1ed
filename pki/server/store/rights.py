"""What the API's login may do with each table on PostgreSQL: which rows, as a condition, and which columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rights:
    """The API's rights on one table: a condition in SQL for the rows of each verb, None where it may not at all.

    ``hidden`` are columns that it may not read; ``settable`` those that it may change, in rows that stay as ``into``
    says, or as ``update`` does. The workers' login has all rows of all tables, and owns none of them.
    """

    select: str | None = None
    insert: str | None = None
    update: str | None = None
    into: str | None = None
    delete: str | None = None
    hidden: frozenset[str] = frozenset()
    settable: tuple[str, ...] = ()


def _own(name: str) -> str:
    """The row is one of the tenants' on whose behalf the unit works: an address, or the tenant's name itself.

    In a subselect, which is evaluated once for each statement and not for each row.
    """
    return (
        f"split_part({name}, '/', 1) = ANY ((SELECT string_to_array(current_setting('keymailbox.tenants', true), ','))"
        "::text[])"
    )


def _of_deposit(column: str, table: str) -> str:
    # As one value, not as EXISTS: that may be planned as a hash of all deposits.
    return f"(SELECT d.{column} FROM deposits d WHERE d.id = {table}.deposit_id)"  # noqa: S608  two names of ours


_ALL = "true"
_NOTHING = Rights()
_DEPOSIT = f"{_own('sender')} OR (sequence IS NOT NULL AND {_own('recipient')})"
_TALLY = f"sender = '' OR recipient = '' OR {_own('sender')} OR {_own('recipient')}"
_INVITATION = "reference = nullif(current_setting('keymailbox.invitation', true), '')"
_REVOKED = _own("(SELECT c.address FROM certificates c WHERE c.fingerprint = revocations.fingerprint)")

RIGHTS: Mapping[str, Rights] = {
    # Who has rights here is who has them on deposits. The recipient sees one from when it has a number in its mailbox.
    "deposits": Rights(
        select=_DEPOSIT,
        insert=f"{_own('sender')} AND state = 'received' AND sequence IS NULL",
        update=_DEPOSIT,
        settable=("state", "collected_at", "settled_at", "successor"),
    ),
    # Who there is. Calls are authenticated before it is known for whom; and the directory shows everybody.
    "tenants": Rights(select=_own("name")),
    "invitations": Rights(select=_INVITATION, update=_INVITATION, settable=("used_at", "used_by")),
    "instances": Rights(
        select=_ALL,
        insert=f"{_own('tenant')} AND {_own('address')}",
        update=_own("address"),
        settable=("access_key", "access_key_id"),
    ),
    "nonces": Rights(select=_ALL, insert=_ALL),
    # Certificates. A certificate whose owner has not proved possession is nobody else's business yet.
    "requests": Rights(
        select=_own("address"),
        insert=f"{_own('address')} AND serial IS NULL AND tbs IS NULL AND challenge IS NULL",
        update=_own("address"),
        # A request may be taken up again; issuing is the issuer's.
        into=f"{_own('address')} AND state = 'pending' AND serial IS NULL AND tbs IS NULL",
        settable=("state", "reason", "fingerprint", "challenge", "serial", "tbs", "settled_at"),
    ),
    "certificates": Rights(
        select=f"state <> 'unproved' OR {_own('address')}",
        update=_own("address"),
        settable=("state", "revoked_at", "revocation_reason", "revoked_by", "because"),
    ),
    "reminders": _NOTHING,
    "orders": _NOTHING,
    "revocations": Rights(select=_REVOKED, insert=f"evidence = 'owner' AND order_id IS NULL AND {_REVOKED}"),
    "crls": Rights(select=_ALL),
    "ocsp_responses": Rights(select=_ALL, insert="der IS NULL AND status IS NULL"),
    "ocsp_questions": Rights(select=_ALL, insert="response IS NULL", delete=_ALL),
    "cmp_exchanges": Rights(select=_ALL, insert="response IS NULL", update=_ALL, settable=("asked",), delete=_ALL),
    "cmp_transactions": _NOTHING,
    # Mail.
    "mailboxes": Rights(
        # Who hands in a receipt counts it for the sender, whoever that is.
        select=_ALL,
        insert="last_sequence = 0",
        update=_ALL,
        hidden=frozenset({"last_sequence"}),
        settable=("last_receipt",),
    ),
    "bodies": Rights(
        select=_of_deposit("id", "bodies") + " IS NOT NULL",
        insert=_own(_of_deposit("sender", "bodies")),
    ),
    "counterfoils": Rights(select=_of_deposit("id", "counterfoils") + " IS NOT NULL"),
    "switches": Rights(select=_ALL),
    "idempotency": Rights(select=_own("sender"), insert=_own("sender")),
    "receipts": Rights(
        select=f"{_own('sender')} OR {_of_deposit('id', 'receipts')} IS NOT NULL",
        insert=f"{_own(_of_deposit('recipient', 'receipts'))} AND sender = {_of_deposit('sender', 'receipts')}",
    ),
    # What is allowed. Whom a recipient takes is told to that one alone, and how much goes between two to these two;
    # what an address has under way altogether is counted by whoever it exchanges with.
    "limits": Rights(select=_ALL),
    "policies": Rights(
        select=_ALL,
        insert=_own("address"),
        update=_own("address"),
        settable=("senders", "max_bytes", "max_lifetime", "changed_at"),
    ),
    "listed_senders": Rights(
        select=f"{_own('address')} OR {_own('sender')}", insert=_own("address"), delete=_own("address")
    ),
    "tallies": Rights(
        select=_TALLY,
        insert=_TALLY,
        update=_TALLY,
        settable=("deposits", "bytes", "day", "today", "accepted", "acknowledged"),
    ),
    # Work for others. What a job is about is the workers' business.
    "jobs": Rights(
        select=_ALL,
        insert="dead_at IS NULL AND lease_until IS NULL",
        hidden=frozenset({"subject", "error", "trace"}),
    ),
    "event_audience": Rights(select=_own("address"), insert="position IS NULL"),
    "events": Rights(
        select="(SELECT max(a.rank) FROM event_audience a WHERE a.event_id = events.id) IS NOT NULL",
        insert="position IS NULL AND chain IS NULL",
    ),
    "cursors": _NOTHING,
    "webhooks": Rights(select=_own("address"), insert=_own("address"), delete=_own("address")),
    # An owner sees what its webhooks were not told; telling them is the workers'.
    "deliveries": Rights(select="(SELECT w.id FROM webhooks w WHERE w.id = deliveries.webhook_id) IS NOT NULL"),
    "ticks": _NOTHING,
    "leases": _NOTHING,
}
"""By the table's name, in the order in which rights are given: what others' conditions look at stands before them. One
that is missing here is nobody's: migrating with logins of their own refuses it."""
