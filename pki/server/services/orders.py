"""Orders of the operator: one officer gives an order, another approves it, and only then it is carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pki.core.certificates import CERTIFICATE_MOVES, CertificateRecord, CertificateState
from pki.core.crl import Reason
from pki.core.errors import (
    ForbiddenError,
    IllegalMoveError,
    NotFoundError,
    StaleError,
    UsageError,
)
from pki.core.events import Event, EventType
from pki.core.ids import Fingerprint
from pki.core.orders import (
    SKEW,
    CapLift,
    RevocationOrder,
    VerifiedOrder,
    parse_approval,
    parse_order,
)
from pki.core.tenants import Address
from pki.server.facts import OrderRecord, RevocationRecord
from pki.server.services import events, evidence, officers, revocations, warrants
from pki.server.services.admission import HASH
from pki.server.services.deps import Deps
from pki.server.store import certificates as certificate_store
from pki.server.store import events as event_store
from pki.server.store import orders as store
from pki.server.store.engine import Unit


@dataclass(frozen=True)
class Outcome:
    """An order that was approved, and the certificates that it revoked."""

    order: OrderRecord
    revoked: tuple[CertificateRecord, ...]


def reach(unit: Unit, wanted: Sequence[Address | Fingerprint], reason: Reason) -> list[CertificateRecord]:
    """Return what an order for addresses and fingerprints is to name: all that can be revoked, and what falls with it.

    Raises NotFoundError for what is not there, IllegalMoveError when there is nothing left to revoke.
    """
    found: dict[Fingerprint, CertificateRecord] = {}
    for one in wanted:
        if isinstance(one, Address):
            named = certificate_store.history(unit, one)
        else:
            record = certificate_store.certificate(unit, one) if HASH.fullmatch(one) else None
            named = [] if record is None else [record]
        if not named:
            raise NotFoundError("There is no such certificate", on=str(one)[:80], hint="kmb-server tenant list")
        open_ones = [item for item in named if CertificateState.REVOKED in CERTIFICATE_MOVES[item.state]]
        for item in open_ones:
            found |= {each.fingerprint: each for each in (item, *revocations.falls_with(unit, item, reason))}
    if not found:
        raise IllegalMoveError(
            "There is nothing left to revoke", on=", ".join(map(str, wanted))[:80], hint="kmb-server revoke list"
        )
    return [found[one] for one in sorted(found)]


def give(deps: Deps, der: bytes) -> OrderRecord:
    """Store an officer's order, to be approved by another; the same one again changes nothing.

    Raises what is wrong with it: ProfileError, ForbiddenError for who is no officer, SignatureError, StaleError,
    NotFoundError and IllegalMoveError for a certificate, ForbiddenError when the cap does not hold it (rule ORD-007).
    """
    now = deps.clock.now()
    order = parse_order(der)
    content = order.content
    if not content.created - SKEW <= now < content.expires:
        raise StaleError("The order was not signed just now", on=f"at {content.created}", rule="ORD-006")
    with deps.store.unit() as unit:
        store.hold(unit)
        known = officers.read(deps, unit)
        giver = order.ordered_by(known)
        known.at(giver.name, now)
        there = store.order(unit, order.id)
        if there is not None:
            return there
        if isinstance(content, RevocationOrder):
            _open(unit, content)
            cap = evidence.cap(deps, unit, now)
            if len(content.fingerprints) > cap.room:
                raise warrants.over_the_cap(len(content.fingerprints), cap)
        record = OrderRecord(
            id=order.id,
            kind=warrants.LIFT if isinstance(content, CapLift) else warrants.REVOCATION,
            der=der,
            ordered_by=giver.name,
            because=content.because,
            created_at=now,
            expires_at=content.expires,
        )
        store.insert(unit, record)
        event_store.append(unit, [_told(EventType.ORDER_GIVEN, record, content, now)])
    return record


def approve(deps: Deps, der: bytes) -> Outcome:
    """Carry an order out that another officer approves: all of it with its effects, or nothing.

    The same approval again changes nothing. Raises NotFoundError without the order, ForbiddenError for the same person
    or key, for who is no officer (any more) and above the cap, SignatureError, StaleError when it is too late,
    IllegalMoveError when somebody else has approved it or a certificate cannot be revoked any more.
    """
    now = deps.clock.now()
    approval = parse_approval(der)
    if not now - SKEW <= approval.approved <= now + SKEW:
        raise StaleError("The approval was not signed just now", on=f"at {approval.approved}", rule="ORD-006")
    with deps.store.unit() as unit:
        store.hold(unit)
        record = store.order(unit, approval.order)
        if record is None:
            raise NotFoundError("There is no such order", on=approval.order, hint="kmb-server revoke list")
        if record.approval is not None:
            if record.approval == der:
                return Outcome(record, ())
            raise IllegalMoveError(
                "The order was approved before",
                on=f"by {record.approved_by}",
                hint=f"kmb-server revoke show {record.id}",
            )
        order = warrants.verified(record, der, officers.read(deps, unit), now=now)
        if now >= order.content.expires:
            raise StaleError("The order was not approved in time", on=f"until {order.content.expires}", rule="ORD-006")
        store.approve(unit, order.id, der, order.approved_by, now)
        gone: list[CertificateRecord] = []
        if isinstance(order.content, RevocationOrder):
            gone = _carry_out(deps, unit, order, order.content, now)
        done = store.order(unit, order.id)
        assert done is not None
        event_store.append(unit, [_told(EventType.ORDER_APPROVED, done, order.content, now)])
    return Outcome(done, tuple(gone))


def find(unit: Unit, text: str) -> OrderRecord:
    """Return the order whose id begins like this, with at least 8 digits; raises NotFoundError, UsageError."""
    found = [one for one in store.newest(unit, _LOOKED_THROUGH) if len(text) >= 8 and one.id.startswith(text.lower())]
    if len(found) > 1:
        raise UsageError("Several orders begin like this", on=text[:64], hint="kmb-server revoke list")
    if not found:
        raise NotFoundError("There is no such order", on=text[:64], hint="kmb-server revoke list")
    return found[0]


def standing(record: OrderRecord, now: datetime) -> str:
    """Say where an order stands: ``open``, ``done`` or ``expired``."""
    if record.executed_at is not None:
        return "done"
    return "open" if now < record.expires_at else "expired"


def _carry_out(
    deps: Deps, unit: Unit, order: VerifiedOrder, content: RevocationOrder, now: datetime
) -> list[CertificateRecord]:
    gone = _open(unit, content, lock=True)
    proofs = [
        RevocationRecord(
            fingerprint=item.fingerprint,
            evidence=evidence.ORDER,
            certificate=item.der,
            created_at=now,
            order_id=order.id,
        )
        for item in gone
    ]
    before = {(one.doubt, one.on) for one in evidence.proved(deps, unit, now).suspicions}
    by = f"operator: {order.ordered_by}, {order.approved_by}"
    revocations.carry_out(unit, gone, proofs, content.reason, now, by=by, because=content.because)
    # What the issuer will say of it is asked before it is done: what it would not list is not revoked here, nor may
    # this order take the place of one that was approved before.
    proof = evidence.proved(deps, unit, now)
    for one in proof.suspicions:
        if one.error is not None and (one.doubt, one.on) not in before:
            raise one.error
    listed = {entry.fingerprint for entry in proof.entries.values()}
    for item in gone:
        if item.fingerprint not in listed:
            raise ForbiddenError("The issuer would not list it", on=item.fingerprint, hint="kmb-server doctor")
    return [found for item in gone if (found := certificate_store.certificate(unit, item.fingerprint)) is not None]


def _open(unit: Unit, content: RevocationOrder, *, lock: bool = False) -> list[CertificateRecord]:
    """Return what there is to revoke of what an order names; what was revoked or has expired meanwhile is passed over.

    Raises NotFoundError for what was never there, IllegalMoveError when nothing is left.
    """
    found = []
    for one in content.fingerprints:
        record = certificate_store.certificate(unit, one, lock=lock)
        if record is None:
            raise NotFoundError("There is no such certificate", on=one, hint="kmb-server tenant list")
        if CertificateState.REVOKED in CERTIFICATE_MOVES[record.state]:
            found.append(record)
    if not found:
        raise IllegalMoveError(
            "There is nothing left to revoke", on=content.fingerprints[0], hint="kmb-server revoke list"
        )
    return found


def _told(kind: EventType, record: OrderRecord, content: RevocationOrder | CapLift, now: datetime) -> Event:
    """Return an event about an order, for those who operate: the owners hear of each certificate."""
    lift = content if isinstance(content, CapLift) else None
    return events.event(
        kind,
        record.id,
        now,
        kind=record.kind,
        ordered_by=record.ordered_by,
        approved_by=record.approved_by,
        because=content.because,
        expires_at=events.time(content.expires),
        certificates=len(content.fingerprints) if isinstance(content, RevocationOrder) else None,
        lifted_to=lift.count if lift else None,
        lifted_for=int(lift.lasts.total_seconds()) if lift else None,
    )


_LOOKED_THROUGH = 10_000
