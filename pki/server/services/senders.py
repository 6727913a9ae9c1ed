"""Whom recipients take deposits from: kept when a deposit comes, and once more before it is put into the mailbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from pki.core.errors import KeymailboxError, NotFoundError
from pki.core.events import Event, EventType
from pki.core.senders import SenderMode, SenderPolicy
from pki.core.tenants import Address
from pki.server.facts import Caller, DepositRecord, NewDeposit
from pki.server.services.deps import Deps
from pki.server.services.events import event
from pki.server.store import events as event_store
from pki.server.store import limits as limit_store
from pki.server.store import senders as store
from pki.server.store.engine import Unit


def policy(deps: Deps, caller: Caller, recipient: Address) -> SenderPolicy:
    """Return the caller's own policy; NotFoundError for anybody else's, of the same tenant too."""
    _check_own(caller, recipient)
    with deps.store.read() as unit:
        return store.of(unit, [recipient]).get(recipient, SenderPolicy())


def set_policy(deps: Deps, caller: Caller, recipient: Address, wanted: SenderPolicy) -> SenderPolicy:
    """Put the caller's own policy in the place of the one before; the same again changes nothing.

    What is in the mailbox stays there. What was not validated yet is judged by the new one. Raises NotFoundError.
    """
    _check_own(caller, recipient)
    now = deps.clock.now()
    with deps.store.unit() as unit:
        stored = store.of(unit, [recipient]).get(recipient, SenderPolicy())
        listed = tuple(sorted(set(wanted.listed)))
        if replace(stored, changed_at=None) == replace(wanted, listed=listed, changed_at=None):
            return stored
        new = replace(wanted, listed=listed, changed_at=now)
        store.put(unit, recipient, new)
        event_store.append(unit, [_changed(recipient, new, now)])
    return new


def unwelcome(unit: Unit, deposits: Sequence[DepositRecord | NewDeposit]) -> list[KeymailboxError | None]:
    """Return for each deposit what its recipient's policy has against it, None where nothing.

    One statement for all of them as long as their recipients have no policy, three at most.
    """
    found = store.of(unit, [one.recipient for one in deposits]) if deposits else {}
    asking = [one for one in deposits if one.recipient in found and found[one.recipient].mode is SenderMode.KNOWN]
    tallies = limit_store.found(unit, [place for one in asking for place in _both(one)]) if asking else {}
    answers: list[KeymailboxError | None] = []
    for one in deposits:
        there, back = (tallies.get(place) for place in _both(one))
        known = bool((there and there.acknowledged > 0) or (back and back.accepted > 0))
        try:
            lifetime = one.expires_at - one.received_at
            found.get(one.recipient, _OPEN).check(one.sender, known=known, size=one.size, lifetime=lifetime)
            answers.append(None)
        except KeymailboxError as error:
            answers.append(error)
    return answers


_OPEN = SenderPolicy()


def _changed(recipient: Address, policy: SenderPolicy, now: datetime) -> Event:
    # Who is on the list only its owner may know, and events are read by others too: the operator's, an auditor.
    return event(
        EventType.SENDERS_CHANGED,
        str(recipient),
        now,
        recipient,
        address=str(recipient),
        mode=policy.mode.value,
        listed=len(policy.listed),
        max_bytes=policy.max_bytes,
        max_lifetime=None if policy.max_lifetime is None else int(policy.max_lifetime.total_seconds()),
    )


def _both(one: DepositRecord | NewDeposit) -> tuple[tuple[str, str], tuple[str, str]]:
    return (str(one.sender), str(one.recipient)), (str(one.recipient), str(one.sender))


def _check_own(caller: Caller, recipient: Address) -> None:
    if caller.instance.address != recipient:
        raise NotFoundError(on=str(recipient))
