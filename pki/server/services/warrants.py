"""What the officers' orders prove: two signatures, in time, and no more certificates in a day than the cap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from pki.core.crl import Reason, Revoked
from pki.core.errors import ForbiddenError, KeymailboxError, NotFoundError, WrongPartyError
from pki.core.ids import Fingerprint
from pki.core.officers import Officers
from pki.core.orders import (
    GRACE,
    LONGEST_LIFT,
    CapLift,
    RevocationOrder,
    VerifiedOrder,
    parse_approval,
    parse_order,
    verify_order,
)
from pki.server.facts import OrderRecord, RevocationRecord
from pki.server.services import officers
from pki.server.services.deps import Deps
from pki.server.store import orders as store
from pki.server.store.engine import Unit

REVOCATION, LIFT = "revocation", "lift"
"""Kinds of orders."""
DAY = timedelta(hours=24)
"""What the cap counts over."""


@dataclass(frozen=True)
class Cap:
    """How many certificates orders may revoke in 24 hours at a moment, and how many they have."""

    allowed: int
    spent: int

    @property
    def room(self) -> int:
        """How many more they may revoke."""
        return max(self.allowed - self.spent, 0)


class Warrants:
    """The orders at one moment: what they prove, and how many certificates may still come on a list because of them."""

    def __init__(self, deps: Deps, unit: Unit, now: datetime, count: Callable[[], int]) -> None:
        """Begin with what ``count`` finds, where it matters: what came on a list within a day, but for the owners'."""
        self._unit = unit
        self._now = now
        self._count = count
        self._more = 0
        self._cap = deps.settings.order_cap
        self._officers: Officers | KeymailboxError
        try:
            self._officers = officers.read(deps, unit)
        except KeymailboxError as error:
            self._officers = error

    @property
    def cap(self) -> Cap:
        """What orders may revoke now."""
        return Cap(self._allowed(self._now), self._spent)

    @cached_property
    def _before(self) -> int:
        return self._count()

    @property
    def _spent(self) -> int:
        return self._before + self._more

    def judge(
        self, rows: Sequence[RevocationRecord], listed: Mapping[Fingerprint, Revoked]
    ) -> Mapping[Fingerprint, Revoked | KeymailboxError]:
        """Return for each certificate when and why an order revoked it, or what is wrong with that.

        ``listed`` are those that stand on a list already: they count no more, and their officers may be gone.
        """
        groups: dict[str, list[RevocationRecord]] = defaultdict(list)
        for row in rows:
            groups[row.order_id or ""].append(row)
        known: dict[str, OrderRecord] = {order.id: order for order in store.many(self._unit, list(groups))}
        verdicts: dict[Fingerprint, Revoked | KeymailboxError] = {}
        first = datetime.max.replace(tzinfo=self._now.tzinfo)
        for order_id in sorted(groups, key=lambda one: (_executed(known.get(one), first), one)):
            names = [row.fingerprint for row in groups[order_id]]
            new = [one for one in names if one not in listed]
            try:
                order = self._verified(known.get(order_id), order_id, now=self._now if new else None)
                reason = self._take(order, names, len(new))
            except KeymailboxError as error:
                verdicts |= dict.fromkeys(names, error)
                continue
            for one in names:
                # The time of the list, which nobody can set back: the cap counts by it.
                verdicts[one] = listed.get(one) or Revoked(self._now, reason)
        return verdicts

    def _verified(self, record: OrderRecord | None, order_id: str, *, now: datetime | None) -> VerifiedOrder:
        if isinstance(self._officers, KeymailboxError):
            raise self._officers
        if record is None or record.approval is None:
            raise NotFoundError("There is no such order that was approved", on=order_id[:80])
        return verified(record, record.approval, self._officers, now=now)

    def _take(self, order: VerifiedOrder, names: Collection[Fingerprint], new: int) -> Reason:
        content = order.content
        if not isinstance(content, RevocationOrder) or not set(names) <= set(content.fingerprints):
            raise WrongPartyError("The order is not for these certificates", on=order.id, rule="ORD-004")
        if new and self._spent + new > (allowed := self._allowed(order.approved)):
            raise over_the_cap(new, Cap(allowed, self._spent))
        self._more += new
        return content.reason

    def _allowed(self, moment: datetime) -> int:
        """Return the cap at a moment: the setting, or what the largest lift says that held then."""
        allowed = self._cap
        for record in store.approved_since(self._unit, self._now - LONGEST_LIFT - GRACE, LIFT):
            try:
                lift = self._verified(record, record.id, now=self._now)
            except KeymailboxError:
                continue
            if isinstance(lift.content, CapLift) and lift.approved <= moment <= lift.approved + lift.content.lasts:
                allowed = max(allowed, lift.content.count)
        return allowed


def verified(record: OrderRecord, approval: bytes, known: Officers, *, now: datetime | None) -> VerifiedOrder:
    """Return the order in a row, with an approval, if both are what two officers signed; raises what is wrong."""
    order = parse_order(record.der)
    if order.id != record.id:
        raise WrongPartyError("The order is not the one that was stored under its id", on=record.id, rule="ORD-004")
    return verify_order(order, parse_approval(approval), known, now=now)


def over_the_cap(wanted: int, cap: Cap) -> ForbiddenError:
    """Return the error for an order that would revoke too many certificates (rule ORD-007)."""
    count = cap.spent + wanted
    return ForbiddenError(
        f"Orders may revoke {cap.allowed} certificates in 24 hours",
        on=f"{cap.spent} are spent, {wanted} more are wanted",
        hint=f"kmb-server revoke lift-cap --count {count} --for 1h --because TEXT --officer NAME --key FILE",
        rule="ORD-007",
    )


def _executed(record: OrderRecord | None, otherwise: datetime) -> datetime:
    return otherwise if record is None or record.executed_at is None else record.executed_at
