"""What holds in every database at every moment, and what holds besides when nobody has anything left to do.

`RULES` names each table; a new one joins it, or `UNRULED` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pki.server.store.engine import Store, Unit
from tests.kit.holding import certificates, deposits, events
from tests.kit.holding.seen import Complaints, Seen

RULES: Mapping[str, Callable[[Seen], Complaints]] = {
    "instances": certificates.instances,
    "invitations": certificates.invitations,
    "requests": certificates.requests,
    "certificates": certificates.certificates,
    "revocations": certificates.revocations,
    "crls": certificates.crls,
    "mailboxes": deposits.mailboxes,
    "deposits": deposits.deposits,
    "bodies": deposits.bodies,
    "idempotency": deposits.idempotency,
    "receipts": deposits.receipts,
    "tallies": deposits.tallies,
    "jobs": events.jobs,
    "events": events.events,
    "event_audience": events.audience,
    "cursors": events.cursors,
    "deliveries": events.deliveries,
    "reminders": certificates.reminders,
    "orders": certificates.orders,
    "cmp_exchanges": certificates.exchanges,
}

UNRULED: Mapping[str, str] = {
    "cmp_transactions": "each outlives the message that opened it",
    "counterfoils": "looked at from the bodies",
    "switches": "what was turned on stays so",
    "limits": "what an operator has said last",
    "policies": "what a recipient has said last",
    "listed_senders": "what a recipient has said last",
    "leases": "each ends by itself",
    "tenants": "looked at from the instances",
    "nonces": "any may be there: each stands for itself",
    "webhooks": "looked at from the deliveries",
    "ocsp_responses": "made anew from evidence whenever they are due",
    "ocsp_questions": "whoever asked asks again",
    "ticks": "each stands for itself",
}
"""Tables without a rule of their own, and why."""


def broken(store: Store, *, settled: bool = False) -> list[str]:
    """Return all that does not hold, each with its table and row; ``settled`` when no work should be left either."""
    with store.read() as unit:
        return broken_in(unit, settled=settled)


def broken_in(unit: Unit, *, settled: bool = False) -> list[str]:
    """Return the same for what one transaction sees."""
    seen = Seen(unit, settled=settled)
    return [f"{name}: {complaint}" for name, rule in RULES.items() for complaint in rule(seen)]
