"""What happens because time has passed: certificates and deposits expire, what nobody needs any more is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pki.core.certificates import CertificateState
from pki.core.deposits import DepositState
from pki.core.events import Event, EventType
from pki.server.facts import DepositRecord
from pki.server.services import events
from pki.server.services.deps import Deps
from pki.server.services.validation import to_sender
from pki.server.store import access as access_store
from pki.server.store import certificates as certificate_store
from pki.server.store import deposits as deposit_store
from pki.server.store import events as event_store
from pki.server.store import exchanges as exchange_store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Unit

IDEMPOTENCY_KEPT = timedelta(days=7)
"""For how long a deposit's Idempotency-Key is remembered; the deposit's own id is for ever."""
TICKS_KEPT = timedelta(days=7)
"""Longer than the longest period, so that no beat takes one twice."""

_BATCH = 200
_PIECE = 10_000


@dataclass(frozen=True)
class Expired:
    """How many came to their end, and how many deposits were not answered in time."""

    certificates: int
    deposits: int
    overdue: int = 0


def expire(deps: Deps) -> Expired:
    """Expire all certificates and deposits whose time is over; a second call finds nothing left to do.

    Of deposits that live and should have been answered by now, sender and recipient are told, once.
    """
    return Expired(
        certificates=_all(deps, _expire_certificates),
        deposits=_all(deps, _expire_deposits),
        overdue=_all(deps, _tell_overdue),
    )


def purge(deps: Deps) -> int:
    """Forget what nobody needs any more; return how many.

    That is: nonces that are too old to be replayed, old idempotency keys and ticks, CMP messages, secrets of
    invitations that have expired.
    """
    now = deps.clock.now()
    nonces = _in_pieces(deps, lambda unit: access_store.purge_nonces(unit, now, _PIECE))
    keys = _in_pieces(deps, lambda unit: deposit_store.purge_idempotency(unit, now - IDEMPOTENCY_KEPT, _PIECE))
    with deps.store.unit() as unit:
        known = exchange_store.purge(unit, now) + tenant_store.forget_secrets(unit, now)
        return nonces + known + keys + event_store.purge_ticks(unit, now - TICKS_KEPT)


def _in_pieces(deps: Deps, forget: Callable[[Unit], int]) -> int:
    # There may be millions: nobody waits for more of them than these, and no statement takes too long.
    total, count = 0, _PIECE
    while count == _PIECE:
        with deps.store.unit() as unit:
            count = forget(unit)
        total += count
    return total


def _all(deps: Deps, batch: Callable[[Deps], int]) -> int:
    # Short transactions: whoever deposits meanwhile does not wait for a long one.
    total = 0
    while True:
        count = batch(deps)
        total += count
        if count < _BATCH:
            return total


def _expire_certificates(deps: Deps) -> int:
    now = deps.clock.now()
    with deps.store.unit() as unit:
        due = certificate_store.due_expiry(unit, now, _BATCH)
        for record in due:
            certificate_store.set_certificate_state(unit, record.fingerprint, CertificateState.EXPIRED, now=now)
        listed = [record for record in due if record.state is not CertificateState.UNPROVED]
        event_store.append(
            unit, [events.of_certificate(EventType.CERTIFICATE_EXPIRED, record, now) for record in listed]
        )
    return len(due)


def _expire_deposits(deps: Deps) -> int:
    now = deps.clock.now()
    with deps.store.unit() as unit:
        due = deposit_store.due_expiry(unit, now, _BATCH)
        deposit_store.set_state(unit, [record.id for record in due], DepositState.EXPIRED, now=now)
        event_store.append(unit, [_of_expiry(record, now) for record in due])
        for record in due:
            unit.after_commit(f"deposit:{record.id}")
            unit.after_commit(f"mailbox:{record.recipient}")
    return len(due)


def _tell_overdue(deps: Deps) -> int:
    now = deps.clock.now()
    with deps.store.unit() as unit:
        due = deposit_store.due_answers(unit, now, _BATCH)
        event_store.append(unit, [_of_overdue(record, now) for record in due])
    return len(due)


def _of_overdue(record: DepositRecord, now: datetime) -> Event:
    by = None if record.respond_by is None else events.time(record.respond_by)
    told = events.of_deposit(EventType.DEPOSIT_OVERDUE, record, now, state=record.state.value, respond_by=by)
    return told if record.sequence is not None else to_sender(told, record)


def _of_expiry(record: DepositRecord, now: datetime) -> Event:
    told = events.of_deposit(EventType.DEPOSIT_EXPIRED, record, now)
    # Without a number it was never validated, so its recipient has not heard of it either.
    return told if record.sequence is not None else to_sender(told, record)
